/** The asking side of the peer channel over real sockets and TLS: whatever happens, an answer is the answer or there is none. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import type { KeyObject } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";
import { describe, type TestContext, test } from "node:test";
import type { TLSSocket } from "node:tls";
import { cookieBytesMax } from "#protocol/limits";
import type { PeerReply, PeerRequest } from "#protocol/ticket";
import { PeerClient, type PeerClientOptions } from "#shim/peer/client";
import { encodeFrame } from "#shim/peer/frame";
import { publicKeyOf } from "#shim/peer/seal";
import { startPeerServer } from "#shim/peer/server";
import {
  armed,
  armOf,
  destinationOf,
  type FakeShim,
  fakeShim,
  finishedAt,
  handOverOf,
  newKey,
  readAsker,
  silent,
  ticketText,
} from "#test/fake/peer-ends";

const timeout = 30_000;
const patienceMs = 20_000;

function clientOf(t: TestContext, bounds: PeerClientOptions["bounds"] = {}, key = newKey()): PeerClient {
  const client = new PeerClient({ key, log: silent, bounds });
  t.after(() => client.close());
  return client;
}

interface Served {
  port: number;
  key: KeyObject;
  asked: PeerRequest[];
  close(): Promise<void>;
}

async function serve(
  t: TestContext,
  given: {
    key?: KeyObject;
    host?: string;
    port?: number;
    answer?: (by: string, request: PeerRequest) => Promise<PeerReply>;
  } = {},
): Promise<Served> {
  const { key = newKey(), host = "127.0.0.1", port = 0, answer = async () => armed } = given;
  const asked: PeerRequest[] = [];
  const server = await startPeerServer({
    listen: { host, port, orAnyPort: false },
    key,
    log: silent,
    answer: (by, request) => {
      asked.push(request);
      return answer(by, request);
    },
  });
  t.after(() => server.close());
  return { port: server.address.port, key, asked, close: () => server.close() };
}

async function fake(
  t: TestContext,
  on: (socket: TLSSocket, n: number) => void,
  given: { key?: KeyObject; port?: number } = {},
): Promise<FakeShim & { key: KeyObject }> {
  const { key = newKey(), ...listen } = given;
  const shim = await fakeShim(key, on, listen);
  t.after(() => shim.close());
  return { ...shim, key };
}

/** Serves pings and requests; `reply` gives the bytes to send. */
const answering = (reply: (id: number, request: unknown) => Uint8Array) => (socket: TLSSocket) =>
  readAsker(socket, (frame) => {
    socket.write(frame.type === "ping" ? encodeFrame({ type: "pong" }) : reply(frame.id, frame.request));
  });
const wellMannered = answering((id) => encodeFrame({ type: "reply", id, reply: armed }));

const unreachable = (cause_: RegExp) => ({
  name: "Fault",
  code: "peer.unreachable",
  retry: "safe",
  cause_,
  action: /Open TCP port \d+ of host beta/,
});

describe("asking", { timeout }, () => {
  test("both ends know each other's key", async (t) => {
    const key = newKey();
    const by: string[] = [];
    const server = await serve(t, {
      answer: async (peer) => {
        by.push(peer);
        return armed;
      },
    });
    const client = clientOf(t, {}, key);
    assert.deepEqual(await client.ask(destinationOf(server.key, server.port), armOf("text"), patienceMs), armed);
    assert.deepEqual(server.asked, [armOf("text")]);
    assert.deepEqual(by, [publicKeyOf(key)]);
  });

  test("a server with another key is told nothing, and named", async (t) => {
    const server = await serve(t);
    await assert.rejects(
      clientOf(t).ask(destinationOf(newKey(), server.port), armOf("text"), patienceMs),
      unreachable(new RegExp(`127.0.0.1:${server.port} is another host's shim \\(key ${publicKeyOf(server.key)}\\)`)),
    );
    assert.deepEqual(server.asked, []);
  });

  test("of several addresses, the one that proves the key: behind a black hole, a wrong machine and a closed door", async (t) => {
    const right = await serve(t, { host: "127.0.0.4" });
    const hole = createServer().listen(right.port, "127.0.0.2");
    await once(hole, "listening");
    t.after(() => hole.close());
    hole.on("connection", (socket) => {
      socket.on("error", () => {});
      t.after(() => socket.destroy());
    });
    const wrong = await serve(t, { host: "127.0.0.3", port: right.port });
    const client = clientOf(t, { staggerMs: 5, handshakeMs: 60_000 });
    const hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.5", "127.0.0.4"];
    assert.deepEqual(await client.ask(destinationOf(right.key, right.port, hosts), armOf("text"), patienceMs), armed);
    assert.deepEqual([right.asked.length, wrong.asked.length], [1, 0]);
  });

  test("when no address leads there, the cause says what happened on each", async (t) => {
    const wrong = await serve(t, { host: "127.0.0.3" });
    const hole = createServer().listen(wrong.port, "127.0.0.2");
    await once(hole, "listening");
    t.after(() => hole.close());
    const plain = createServer((socket) => socket.end("SSH-2.0-OpenSSH\r\n")).listen(wrong.port, "127.0.0.6");
    await once(plain, "listening");
    t.after(() => plain.close());
    const client = clientOf(t, { staggerMs: 1, handshakeMs: 200 });
    const hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.5", "127.0.0.6", "name.invalid"];
    await assert.rejects(
      client.ask(destinationOf(newKey(), wrong.port, hosts), armOf("text"), patienceMs),
      unreachable(
        /127\.0\.0\.2:\d+ gave no answer.*127\.0\.0\.3:\d+ is another host's.*127\.0\.0\.5:\d+ failed: .*ECONNREFUSED.*127\.0\.0\.6:\d+ failed: TLS: .*name\.invalid:\d+ (failed|gave no answer)/,
      ),
    );
  });

  test("a black hole alone: patience ends it", async (t) => {
    const hole = createServer((socket) => void socket.on("error", () => {})).listen(0, "127.0.0.1");
    await once(hole, "listening");
    t.after(() => hole.close());
    const address = hole.address();
    assert.ok(address !== null && typeof address === "object");
    await assert.rejects(
      clientOf(t, { handshakeMs: 60_000 }).ask(destinationOf(newKey(), address.port), armOf("text"), 100),
      unreachable(/has not answered yet, and 100 ms have passed/),
    );
  });

  test("cookies of 4 MiB, both ways", async (t) => {
    const cookie = Buffer.alloc(cookieBytesMax, 0xa7);
    const answer = finishedAt("now", cookie.toString("base64"));
    const server = await serve(t, { answer: async () => answer });
    const reply = await clientOf(t).ask(destinationOf(server.key, server.port), handOverOf(cookie), patienceMs);
    // Compared as a whole: a report of the difference would be megabytes.
    assert.ok(JSON.stringify(reply) === JSON.stringify(answer));
    const [asked] = server.asked;
    assert.ok(asked?.type === "handOver" && asked.cookie === cookie.toString("base64"));
  });

  test("many at once to one destination: each gets its own answer, in whatever order they come", async (t) => {
    const gates: (() => void)[] = [];
    const count = 20;
    const server = await serve(t, {
      answer: async (_, request) => {
        const ticket = { text: ticketText(request) };
        await new Promise<void>((resolve) => {
          gates.push(resolve);
          // All are at work before the first is answered; the last one first.
          if (gates.length === count) for (const gate of gates.reverse()) gate();
        });
        return finishedAt(ticket.text);
      },
    });
    const client = clientOf(t);
    const to = destinationOf(server.key, server.port);
    const texts = Array.from({ length: count }, (_, index) => `ticket ${index}`);
    const replies = await Promise.all(texts.map((text) => client.ask(to, armOf(text), patienceMs)));
    assert.deepEqual(
      replies,
      texts.map((text) => finishedAt(text)),
    );
  });

  test("more at once than there are places: all are answered", async (t) => {
    const server = await serve(t, { answer: async (_, request) => finishedAt(ticketText(request)) });
    const client = clientOf(t);
    const texts = Array.from({ length: 100 }, (_, index) => `ticket ${index}`);
    const to = destinationOf(server.key, server.port);
    const replies = await Promise.all(texts.map((text) => client.ask(to, armOf(text), patienceMs)));
    assert.deepEqual(
      replies,
      texts.map((text) => finishedAt(text)),
    );
  });
});

describe("no answer", { timeout }, () => {
  const once1 = async (t: TestContext, on: (socket: TLSSocket, n: number) => void, request = armOf("text")) => {
    const shim = await fake(t, on);
    const asking = clientOf(t).ask(destinationOf(shim.key, shim.port), request, patienceMs);
    return { shim, asking };
  };

  test("cut before the request", async (t) => {
    const { asking } = await once1(t, (socket) => socket.destroy());
    await assert.rejects(asking, unreachable(/connection/));
  });

  test("cut in the middle of the request", async (t) => {
    const { asking, shim } = await once1(
      t,
      (socket) => socket.on("data", () => socket.destroy()),
      handOverOf(Buffer.alloc(cookieBytesMax)),
    );
    await assert.rejects(asking, unreachable(/connection/));
    assert.equal(shim.connections.length, 1);
  });

  test("cut after the request: it is not repeated, for it may have been acted on", async (t) => {
    let requests = 0;
    const shim = await fake(t, (socket) =>
      readAsker(socket, (frame) => {
        if (frame.type === "ping") return;
        requests += 1;
        // The first one is answered, so that the second comes on a kept connection.
        if (requests === 1) socket.write(encodeFrame({ type: "reply", id: frame.id, reply: armed }));
        else socket.destroy();
      }),
    );
    const client = clientOf(t);
    const to = destinationOf(shim.key, shim.port);
    await client.ask(to, armOf("first"), patienceMs);
    await assert.rejects(client.ask(to, armOf("second"), patienceMs), unreachable(/connection/));
    assert.deepEqual([requests, shim.connections.length], [2, 1]);
  });

  test("a slow server: patience ends it, and its late answer is not taken for the next one's", async (t) => {
    const late = Promise.withResolvers<PeerReply>();
    const server = await serve(t, {
      answer: (_, request) =>
        ticketText(request) === "slow" ? late.promise : Promise.resolve(finishedAt(ticketText(request))),
    });
    const client = clientOf(t);
    const to = destinationOf(server.key, server.port);
    await client.ask(to, armOf("before"), patienceMs);
    await assert.rejects(client.ask(to, armOf("slow"), 50), unreachable(/no answer came in time, and 50 ms/));
    const next = client.ask(to, armOf("next"), patienceMs);
    late.resolve(finishedAt("slow"));
    assert.deepEqual(await next, finishedAt("next"));
  });

  for (const [what, reply, cause] of [
    ["an answer that is no JSON", () => Buffer.from([0, 0, 0, 1, 0x7b]), /cannot be read/],
    ["an answer over the bound", () => Buffer.alloc(8, 0xff), /over the limit/],
    [
      "an answer of no known kind",
      () => {
        const body = Buffer.from('{"type":"reply","id":1,"reply":{"type":"maybe"}}');
        return Buffer.concat([Buffer.from([0, 0, 0, body.byteLength]), body]);
      },
      /does not fit its schema/,
    ],
    [
      "an answer to another request",
      (id: number) => encodeFrame({ type: "reply", id: id + 1, reply: armed }),
      /an answer came to request 2, which nobody asks/,
    ],
    [
      "a refusal of the connection",
      () =>
        encodeFrame({
          type: "reply",
          id: 0,
          reply: {
            type: "refused",
            fault: { code: "message.tooLarge", cause: "Too long.", action: "None.", retry: "never" },
          },
        }),
      /refused the connection: Too long/,
    ],
  ] as const)
    test(`${what} is none`, async (t) => {
      const { asking } = await once1(t, answering(reply));
      await assert.rejects(asking, unreachable(cause));
    });

  test("close ends who waits and who comes later", async (t) => {
    const { promise: reached, resolve: onReached } = Promise.withResolvers<void>();
    const server = await serve(t, {
      answer: () => {
        onReached();
        return new Promise(() => {});
      },
    });
    const client = clientOf(t);
    const to = destinationOf(server.key, server.port);
    const asking = client.ask(to, armOf("text"), patienceMs);
    await reached;
    client.close();
    await assert.rejects(asking, unreachable(/closed here|in time/));
    await assert.rejects(client.ask(to, armOf("text"), patienceMs), unreachable(/is ending/));
    client.hold(to)();
  });
});

describe("kept connections", { timeout }, () => {
  test("are used again", async (t) => {
    const shim = await fake(t, wellMannered);
    const client = clientOf(t);
    const to = destinationOf(shim.key, shim.port);
    for (let turn = 0; turn < 5; turn += 1) await client.ask(to, armOf(`text ${turn}`), patienceMs);
    assert.equal(shim.connections.length, 1);
  });

  test("are dialled anew after the server was restarted between two requests", async (t) => {
    const first = await serve(t);
    const client = clientOf(t);
    const to = destinationOf(first.key, first.port);
    await client.ask(to, armOf("first"), patienceMs);
    await first.close();
    const second = await serve(t, { key: first.key, port: first.port });
    assert.deepEqual(await client.ask(to, armOf("second"), patienceMs), armed);
    assert.deepEqual(second.asked, [armOf("second")]);
  });

  test("one that dies before the request is written wholly is replaced once, and the request arrives once", async (t) => {
    const whole: string[] = [];
    const shim = await fake(t, (socket, n) => {
      readAsker(socket, (frame) => {
        if (frame.type === "ping") return;
        whole.push(`${n}`);
        socket.write(encodeFrame({ type: "reply", id: frame.id, reply: armed }));
        // From now on the first connection reads nothing more, and breaks under the 5 MiB that follow.
        if (n === 1) socket.pause();
      });
    });
    const client = clientOf(t);
    const to = destinationOf(shim.key, shim.port);
    await client.ask(to, armOf("first"), patienceMs);
    const second = client.ask(to, handOverOf(Buffer.alloc(cookieBytesMax, 1)), patienceMs);
    // Written as far as the kernel takes it, which is less than the frame.
    await new Promise((resolve) => setImmediate(resolve));
    (await shim.connection(1)).destroy();
    assert.deepEqual(await second, armed);
    assert.deepEqual(whole, ["1", "2"]);
  });

  test("end when nobody holds them", async (t) => {
    const shim = await fake(t, wellMannered);
    const client = clientOf(t, { idleMs: 20 });
    await client.ask(destinationOf(shim.key, shim.port), armOf("text"), patienceMs);
    const socket = await shim.connection(1);
    if (!socket.destroyed) await once(socket, "close");
  });
});

describe("holding", { timeout }, () => {
  const quick = { pingMs: 10, idleMs: 10, redialBaseMs: 5, redialCapMs: 20 };
  /** A well-mannered server must never seem silent, however slow the machine. */
  const patient = { ...quick, pingMs: 300 };

  test("the next request finds a connection, also long after an unheld one would have ended", async (t) => {
    let pings = 0;
    const enough = Promise.withResolvers<void>();
    const shim = await fake(t, (socket) =>
      readAsker(socket, (frame) => {
        if (frame.type === "ping") {
          pings += 1;
          if (pings === 3) enough.resolve();
          socket.write(encodeFrame({ type: "pong" }));
        } else socket.write(encodeFrame({ type: "reply", id: frame.id, reply: armed }));
      }),
    );
    const client = clientOf(t, patient);
    const to = destinationOf(shim.key, shim.port);
    const release = client.hold(to);
    // Many times as long as an unheld connection is kept.
    await enough.promise;
    await client.ask(to, armOf("text"), patienceMs);
    assert.equal(shim.connections.length, 1);
    release();
    release();
    const socket = await shim.connection(1);
    if (!socket.destroyed) await once(socket, "close");
  });

  test("survives a restart of the server: the connection is there again before anybody asks", async (t) => {
    const first = await fake(t, wellMannered);
    const client = clientOf(t, patient);
    const to = destinationOf(first.key, first.port);
    t.after(client.hold(to));
    await first.connection(1);
    await first.close();
    const pinged = Promise.withResolvers<void>();
    const second = await fake(
      t,
      (socket) =>
        readAsker(socket, (frame) => {
          if (frame.type === "ping") pinged.resolve();
          socket.write(
            encodeFrame(frame.type === "ping" ? { type: "pong" } : { type: "reply", id: frame.id, reply: armed }),
          );
        }),
      { key: first.key, port: first.port },
    );
    await pinged.promise;
    await client.ask(to, armOf("text"), patienceMs);
    assert.equal(second.connections.length, 1);
  });

  test("a server that has gone silent is noticed and dialled anew", async (t) => {
    const shim = await fake(t, (socket, n) => {
      if (n === 1) socket.resume();
      else wellMannered(socket);
    });
    const client = clientOf(t, quick);
    t.after(client.hold(destinationOf(shim.key, shim.port)));
    const mute = await shim.connection(1);
    await shim.connection(2);
    if (!mute.destroyed) await once(mute, "close");
  });

  test("a server that falls silent while it is asked: no answer, without waiting for the end of patience", async (t) => {
    const shim = await fake(t, (socket) => void socket.resume());
    const asking = clientOf(t, { pingMs: 10 }).ask(destinationOf(shim.key, shim.port), armOf("text"), 3_600_000);
    await assert.rejects(asking, unreachable(/silent over 3 pings/));
  });

  test("as many connections are ready as there are holders", async (t) => {
    const shim = await fake(t, wellMannered);
    const client = clientOf(t);
    const to = destinationOf(shim.key, shim.port);
    const releases = [client.hold(to), client.hold(to), client.hold(to)];
    t.after(() => releases.forEach((release) => void release()));
    await shim.connection(3);
    assert.equal(shim.connections.length, 3);
  });

  test("is no reason for a process to stay", async (t) => {
    const server = await serve(t);
    const to = JSON.stringify(destinationOf(server.key, server.port));
    const code = `
      import { PeerClient } from "#shim/peer/client";
      import { armOf, newKey, silent } from "#test/fake/peer-ends";
      const client = new PeerClient({ key: newKey(), log: silent });
      client.hold(${to});
      const reply = await client.ask(${to}, armOf("text"), ${patienceMs});
      process.stdout.write(reply.type);
    `;
    const child = spawn(process.execPath, ["--input-type=module", "-e", code], {
      cwd: join(import.meta.dirname, "../.."),
      stdio: ["ignore", "pipe", "inherit"],
    });
    t.after(() => child.kill("SIGKILL"));
    let said = "";
    child.stdout.on("data", (chunk: Buffer) => {
      said += chunk.toString();
    });
    const [status] = await once(child, "close");
    assert.deepEqual([status, said], [0, "armed"]);
  });
});
