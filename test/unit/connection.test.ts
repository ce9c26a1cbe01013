/** One session with the control plane, over a real websocket: every way it can begin, go wrong and end. */
import assert from "node:assert/strict";
import { generateKeyPairSync, sign } from "node:crypto";
import { afterEach, describe, test } from "node:test";
import { connectHeader, connectSignedText, formatConnectProof, helloSignedText } from "#protocol/identity";
import type { DownMessage, HostFacts } from "#protocol/message";
import { systemClock } from "#shim/clock";
import { type ConnectionOutcome, type ConnectionParts, runConnection, type Session } from "#shim/connection";
import { controlPlaneOrigin, socketAddress } from "#shim/socket-address";
import { type Decisions, FakeControlPlane } from "#test/fake/control-plane";
import { inventoryDomains } from "#test/fake/inventory-domain";

const hostId = "h_01JD0000000000000000000000";
const facts: HostFacts = {
  shimVersion: "0.1.0",
  nodeVersion: "v24",
  migrationAddress: null,
  libvirt: { reachable: false, cause: "none here" },
};
const { publicKey, privateKey } = generateKeyPairSync("ed25519");

const cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

interface Run {
  plane: FakeControlPlane;
  sessions: Session[];
  received: DownMessage[];
  logs: string[];
  outcome: Promise<ConnectionOutcome>;
  stop: AbortController;
}

async function run(decide: Decisions, parts: Partial<ConnectionParts> = {}): Promise<Run> {
  const plane = await FakeControlPlane.start(decide);
  plane.hosts.set(hostId, { name: "alpha", publicKey: publicKey.export({ format: "jwk" }).x ?? "" });
  const sessions: Session[] = [];
  const received: DownMessage[] = [];
  const logs: string[] = [];
  const stop = new AbortController();
  const outcome = runConnection({
    dial: { address: socketAddress(controlPlaneOrigin(plane.url), hostId), headers: {}, nonce: null },
    hostId,
    sign: (nonce) => sign(null, Buffer.from(helloSignedText({ hostId, nonce })), privateKey).toString("base64url"),
    facts: async () => facts,
    onSession: (session) => sessions.push(session),
    onMessage: (message) => received.push(message),
    clock: systemClock,
    log: { write: (_level, message, fields) => logs.push(`${message} ${JSON.stringify(fields)}`) },
    signal: stop.signal,
    ...parts,
  });
  cleanups.push(async () => {
    stop.abort();
    await outcome;
    await plane.stop();
  });
  return { plane, sessions, received, logs, outcome, stop };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turn();
}

describe("opening", () => {
  test("challenge, hello with a signature that verifies, welcome", async () => {
    const { plane, sessions } = await run({});
    const hello = await plane.message("hello");
    assert.equal(hello.hostId, hostId);
    assert.deepEqual(hello.facts, facts);
    await until(() => sessions.length === 1);
    assert.equal(sessions[0]?.welcome.name, "alpha");
  });

  test("a signature over another nonce is refused: outcome refused, with the fault", async () => {
    const { outcome, sessions } = await run({
      challenge: () => JSON.stringify({ type: "challenge", nonce: "x".repeat(43), protocols: { min: 1, max: 1 } }),
    });
    const ended = await outcome;
    assert.ok(ended.kind === "refused");
    assert.equal(ended.fault.code, "shim.unauthorised");
    assert.equal(sessions.length, 0);
  });

  test("a control plane of another protocol is incompatible, said from its challenge, before any hello", async () => {
    const { outcome, plane } = await run({
      challenge: (nonce) => JSON.stringify({ type: "challenge", nonce, protocols: { min: 2, max: 3 } }),
    });
    const ended = await outcome;
    assert.ok(ended.kind === "refused");
    assert.equal(ended.fault.code, "shim.incompatible");
    assert.match(ended.fault.action, /Update this shim/);
    assert.deepEqual(plane.messages, []);
  });

  test("a refusal instead of a welcome", async () => {
    const fault = { code: "shim.incompatible", cause: "old", action: "Update the shim.", retry: "person" } as const;
    const { outcome } = await run({ onHello: () => ({ type: "refused", fault }) });
    assert.deepEqual(await outcome, { kind: "refused", fault });
  });

  for (const [name, text] of [
    ["not JSON", "hello?"],
    ["another form", '{"type":"challenge","nonce":7}'],
    ["a nonce that is too short to be one", '{"type":"challenge","nonce":"abc","protocols":{"min":1,"max":1}}'],
    ["a command before the session", '{"type":"acknowledged","commandId":"m_01JD0000000000000000000000:export:1"}'],
    [
      "a welcome before the hello",
      '{"type":"welcome","session":"s","protocol":1,"features":[],"name":"alpha","heartbeatMs":1000}',
    ],
  ] as const)
    test(`${name} instead of a challenge: retryable, nothing was sent`, async () => {
      const { outcome, plane } = await run({ challenge: () => text });
      assert.equal((await outcome).kind, "retryable");
      assert.deepEqual(plane.messages, []);
    });

  test("a peer that opens and says nothing", async () => {
    const { outcome } = await run({ onSocket: () => false }, { handshakeMs: 50 });
    const ended = await outcome;
    assert.ok(ended.kind === "retryable");
    assert.match(ended.cause, /no challenge or welcome/);
  });

  test("a peer that is cut during the handshake", async () => {
    const { outcome } = await run({
      onHello: (socket) => {
        socket.cut();
        return null;
      },
    });
    assert.equal((await outcome).kind, "retryable");
  });

  test("nobody listens, or somebody who speaks plain HTTP", async () => {
    const closed = await FakeControlPlane.start();
    const address = socketAddress(controlPlaneOrigin(closed.url), hostId);
    await closed.stop();
    const nobody = await run({}, { dial: { address, headers: {}, nonce: null } });
    const refused = await nobody.outcome;
    assert.ok(refused.kind === "retryable");
    assert.match(refused.cause, /ECONNREFUSED/);

    const plain = await FakeControlPlane.start();
    cleanups.push(() => plain.stop());
    const elsewhere = new URL(socketAddress(controlPlaneOrigin(plain.url), hostId));
    elsewhere.pathname = "/elsewhere";
    const outcome = await (await run({}, { dial: { address: elsewhere, headers: {}, nonce: null } })).outcome;
    assert.ok(outcome.kind === "retryable");
    assert.match(outcome.cause, /HTTP 404/);
  });

  test("a key that cannot sign is fatal: no attempt would be better", async () => {
    const { outcome } = await run(
      {},
      {
        sign: () => {
          throw new Error("/secret/path");
        },
      },
    );
    const ended = await outcome;
    assert.ok(ended.kind === "fatal");
    assert.doesNotMatch(JSON.stringify(ended), /secret/);
  });

  test("stopped before and during", async () => {
    const stopped = new AbortController();
    stopped.abort();
    const { outcome } = await run({}, { signal: stopped.signal });
    assert.deepEqual(await outcome, { kind: "stopped" });
    const waiting = await run({ onSocket: () => false });
    await waiting.plane.until(() => waiting.plane.sockets.length === 1);
    waiting.stop.abort();
    assert.deepEqual(await waiting.outcome, { kind: "stopped" });
  });
});

function provedDial(plane: FakeControlPlane): ConnectionParts["dial"] {
  const proof = { hostId, atMs: Date.now(), nonce: "n".repeat(43) };
  const signature = sign(null, Buffer.from(connectSignedText({ ...proof, socket: "" })), privateKey).toString(
    "base64url",
  );
  return {
    address: socketAddress(controlPlaneOrigin(plane.url), hostId),
    headers: { [connectHeader]: formatConnectProof({ ...proof, signature }) },
    nonce: proof.nonce,
  };
}

describe("a door that wants a proof in the request", () => {
  const connectDoor = { door: () => ({ socket: null, hello: "connect" as const }) };
  const runProved = async (decide: Decisions, parts: Partial<ConnectionParts> = {}) => {
    const plane = await FakeControlPlane.start({ ...connectDoor, ...decide });
    cleanups.push(() => plane.stop());
    plane.hosts.set(hostId, { name: "alpha", publicKey: publicKey.export({ format: "jwk" }).x ?? "" });
    return { ...(await run({}, { dial: provedDial(plane), ...parts })), at: plane };
  };

  test("hello goes first, signed over the proof's nonce, and says what it renews", async () => {
    const { at, sessions } = await runProved({}, { renews: "session-0" });
    const hello = await at.message("hello");
    assert.equal(hello.renews, "session-0");
    await until(() => sessions.length === 1);
    assert.equal(at.socket.nonce, "n".repeat(43));
  });

  test("a refused request keeps its status", async () => {
    const { outcome } = await runProved({ onConnect: () => 401 });
    const ended = await outcome;
    assert.ok(ended.kind === "retryable");
    assert.equal(ended.refusedStatus, 401);
  });

  test("C3: a carrier that answers no pings is not dead for it; one that did once and stopped is", async () => {
    const { at, sessions, outcome } = await runProved({ heartbeatMs: 100 });
    await until(() => sessions.length === 1);
    const { socket } = at.socket;
    let pings = 0;
    const pong: unknown = Reflect.get(socket, "pong");
    Reflect.set(socket, "pong", () => {});
    socket.on("ping", () => {
      pings += 1;
    });
    while (pings < 5) await new Promise((resolve) => socket.once("ping", resolve));
    assert.equal(sessions[0]?.send({ type: "heartbeat" }), true, "five unanswered pings do not end it");
    assert.ok(at.spokenPings > 0, "it is asked in words");
    Reflect.set(socket, "pong", pong);
    await new Promise((resolve) => socket.once("ping", resolve));
    await new Promise((resolve) => socket.once("ping", resolve));
    at.socket.freeze();
    const ended = await outcome;
    assert.ok(ended.kind === "served");
    assert.match(ended.cause, /silent/);
  });
});

describe("a carrier that answers pings in words only", () => {
  test("C3: is alive while it does and dead when it stops", async () => {
    const plane = await FakeControlPlane.start({
      door: () => ({ socket: null, hello: "connect" }),
      heartbeatMs: 100,
      answersSpokenPings: true,
    });
    cleanups.push(() => plane.stop());
    plane.hosts.set(hostId, { name: "alpha", publicKey: publicKey.export({ format: "jwk" }).x ?? "" });
    const { outcome, sessions } = await run({}, { dial: provedDial(plane) });
    await until(() => sessions.length === 1);
    Reflect.set(plane.socket.socket, "pong", () => {});
    await plane.until(() => plane.spokenPings >= 3);
    assert.equal(sessions[0]?.send({ type: "heartbeat" }), true);
    plane.socket.freeze();
    const ended = await outcome;
    assert.ok(ended.kind === "served");
    assert.match(ended.cause, /silent/);
  });
});

describe("an open session", () => {
  const open = async (decide: Decisions = {}, parts: Partial<ConnectionParts> = {}) => {
    const opened = await run(decide, parts);
    await until(() => opened.sessions.length === 1);
    const session = opened.sessions[0];
    assert.ok(session);
    return { ...opened, session };
  };
  const acknowledged = { type: "acknowledged", commandId: "m_01JD0000000000000000000000:export:1" } as const;

  test("carries messages both ways", async () => {
    const { plane, session, received } = await open();
    assert.equal(session.send({ type: "heartbeat" }), true);
    await plane.message("heartbeat");
    plane.socket.send(acknowledged);
    await until(() => received.length === 1);
    assert.deepEqual(received, [acknowledged]);
  });

  test("a message that is not understood is passed over and said; the session lives on", async () => {
    const { plane, received, logs } = await open();
    plane.socket.raw("{");
    plane.socket.raw('{"type":"command","command":{"kind":"shell"}}');
    plane.socket.raw(Buffer.from([1, 2, 3]));
    plane.socket.send(acknowledged);
    await until(() => received.length === 1);
    assert.equal(logs.length, 3);
  });

  test("a listener that throws does not take the session with it", async () => {
    const { plane, session, logs } = await open(
      {},
      {
        onMessage: () => {
          throw new Error("a defect");
        },
      },
    );
    plane.socket.send(acknowledged);
    await until(() => logs.length === 1);
    assert.equal(session.send({ type: "heartbeat" }), true);
  });

  test("cut: served, with how long it held, and nothing can be sent any more", async () => {
    const { plane, session, outcome } = await open();
    plane.socket.cut();
    const ended = await outcome;
    assert.ok(ended.kind === "served");
    assert.ok(ended.heldMs >= 0);
    assert.equal(session.send({ type: "heartbeat" }), false);
  });

  test("closed by the peer with a reason: the reason is kept", async () => {
    const { plane, outcome } = await open();
    plane.socket.socket.close(4001, "replaced");
    const ended = await outcome;
    assert.ok(ended.kind === "served");
    assert.match(ended.cause, /4001, replaced/);
  });

  test("a peer that is silent, pongs included, is dead after two heartbeats", async () => {
    const { plane, outcome } = await open({ heartbeatMs: 100 });
    plane.socket.freeze();
    const ended = await outcome;
    assert.ok(ended.kind === "served");
    assert.match(ended.cause, /silent/);
  });

  test("a peer that only answers pings is alive", async () => {
    const { plane, session } = await open({ heartbeatMs: 100 });
    let pings = 0;
    plane.socket.socket.on("ping", () => {
      pings += 1;
    });
    while (pings < 5) await new Promise((resolve) => plane.socket.socket.once("ping", resolve));
    assert.equal(session.send({ type: "heartbeat" }), true);
  });

  test("refused in the middle (the host was removed): refused, with the fault", async () => {
    const { plane, outcome } = await open();
    const fault = { code: "shim.unauthorised", cause: "removed", action: "Enrol again.", retry: "person" } as const;
    plane.socket.send({ type: "refused", fault });
    assert.deepEqual(await outcome, { kind: "refused", fault });
  });

  test("a message longer than a frame goes in several and arrives whole", async () => {
    const { plane, session } = await open();
    const frames: number[] = [];
    // The raw stream: a text frame, then its continuations, each at most 32 KB.
    const { socket } = plane.socket;
    const receiver: unknown = Reflect.get(socket, "_receiver");
    assert.ok(typeof receiver === "object" && receiver !== null);
    const getData: unknown = Reflect.get(receiver, "getData");
    assert.ok(typeof getData === "function");
    Reflect.set(receiver, "getData", function (this: { _payloadLength: number }, ...args: unknown[]) {
      frames.push(this._payloadLength);
      return Reflect.apply(getData, this, args);
    });
    const label = "é".repeat(255);
    const domains = inventoryDomains(60, { one: label, two: label, three: label });
    assert.equal(session.send({ type: "inventory", full: true, last: true, domains, gone: [] }), true);
    const arrived = await plane.message("inventory");
    assert.deepEqual(arrived.domains, domains);
    assert.ok(frames.length > 2, "it was sent in several frames");
    assert.ok(Math.max(...frames) <= 32 * 1024, `the largest frame has ${Math.max(...frames)} bytes`);
  });

  test("a message over the limit is refused here, before the wire", async () => {
    const { session } = await open();
    assert.throws(
      () =>
        session.send({
          type: "lost",
          migrationId: "m_01JD0000000000000000000000",
          epoch: 1,
          cause: "x".repeat(200_000),
        }),
      /message.tooLarge/,
    );
  });

  test("stopped: the peer is told", async () => {
    const { plane, outcome, stop } = await open();
    const closed = new Promise<number>((resolve) => plane.socket.socket.once("close", resolve));
    stop.abort();
    assert.deepEqual(await outcome, { kind: "stopped" });
    assert.equal(await closed, 1000);
  });
});

describe("addresses", () => {
  test("http becomes ws, https becomes wss; what is no origin is refused without repeating a password", () => {
    assert.equal(
      socketAddress(controlPlaneOrigin("http://10.0.0.1:8787"), hostId).href,
      `ws://10.0.0.1:8787/v1/shim?host=${hostId}`,
    );
    assert.equal(
      socketAddress(controlPlaneOrigin("https://vmferry.example.org/"), hostId).href,
      `wss://vmferry.example.org/v1/shim?host=${hostId}`,
    );
    for (const wrong of ["", "10.0.0.1:8787", "ftp://x", "https://x/path", "https://x/?q=1"])
      assert.throws(() => controlPlaneOrigin(wrong), /request.malformed/);
    assert.throws(
      () => controlPlaneOrigin("https://me:hunter2@x"),
      (error) => error instanceof Error && !error.message.includes("hunter2"),
    );
  });
});
