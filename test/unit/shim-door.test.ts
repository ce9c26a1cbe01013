/** Where a shim connects: what the door says, what it says of a refusal, and what a control plane without one means. */
import assert from "node:assert/strict";
import { generateKeyPairSync, sign } from "node:crypto";
import { afterEach, describe, test } from "node:test";
import { Fault } from "#protocol/fault";
import { connectHeader, connectMsMax, connectSignedText, parseConnectProof } from "#protocol/identity";
import { ControlPlaneDoor, DoorUnreachableError } from "#shim/door";
import { ProgressGate } from "#shim/progress-gate";
import { controlPlaneOrigin, socketAddress } from "#shim/socket-address";
import { type Decisions, FakeControlPlane } from "#test/fake/control-plane";
import { progressOf } from "../contract/socket-cases.ts";

const hostId = "h_01JD0000000000000000000000";
const { publicKey, privateKey } = generateKeyPairSync("ed25519");
const cleanups: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup();
});

async function open(decide: Decisions = {}) {
  const plane = await FakeControlPlane.start(decide);
  cleanups.push(() => plane.stop());
  plane.hosts.set(hostId, { name: "alpha", publicKey: publicKey.export({ format: "jwk" }).x ?? "" });
  const clock = { atMs: 0, monotonicMs: () => clock.atMs };
  const door = new ControlPlaneDoor({
    origin: controlPlaneOrigin(plane.url),
    hostId,
    signConnect: (proof) => sign(null, Buffer.from(connectSignedText(proof)), privateKey).toString("base64url"),
    clock,
    signal: new AbortController().signal,
  });
  return { plane, door, clock };
}

describe("the door", () => {
  test("a control plane of before doors has its socket beside it and challenges", async () => {
    const { plane, door } = await open();
    assert.deepEqual(await door.dial(), {
      address: socketAddress(controlPlaneOrigin(plane.url), hostId),
      headers: {},
      nonce: null,
    });
  });

  test("its answer is kept until a dial came to nothing", async () => {
    const { plane, door } = await open({ door: () => ({ socket: null, hello: "challenge" }) });
    await door.dial();
    await door.dial();
    assert.equal(plane.doorRequests, 1);
    door.forget();
    await door.dial();
    assert.equal(plane.doorRequests, 2);
  });

  test("a proof is fresh each time, by the control plane's clock, and holds", async () => {
    const { door, clock } = await open({ door: () => ({ socket: "wss://sockets.example/live", hello: "connect" }) });
    const nowMs = Date.now();
    const first = await door.dial();
    clock.atMs += 90 * 60_000;
    const second = await door.dial();
    assert.equal(first.address.href, `wss://sockets.example/live?host=${hostId}`);
    const [one, other] = [first, second].map(({ headers }) => parseConnectProof(headers[connectHeader] ?? ""));
    assert.ok(one && other);
    assert.equal(first.nonce, one.nonce);
    assert.notEqual(one.nonce, other.nonce);
    assert.ok(Math.abs(one.atMs - nowMs) < connectMsMax);
    assert.equal(Math.round((other.atMs - one.atMs) / 60_000), 90, "an hour and a half later it says so");
  });

  test("why a socket was refused is asked with a proof", async () => {
    const body = { code: "shim.unauthorised", cause: "This host was removed.", action: "Enrol it again." };
    const { door } = await open({
      door: (proof) => (proof === null ? { socket: null, hello: "connect" } : { status: 401, body }),
    });
    assert.deepEqual(await door.refusal(), { ...body, retry: "person" });
    const { door: content } = await open({ door: () => ({ socket: null, hello: "connect" }) });
    assert.equal(await content.refusal(), null);
    const { door: silent, plane } = await open();
    await plane.stop();
    cleanups.length -= 1;
    assert.equal(await silent.refusal(), null);
  });

  test("nobody there, or nonsense, may be tried again", async () => {
    const { door } = await open({ door: () => ({ status: 503, body: {} }) });
    await assert.rejects(door.dial(), DoorUnreachableError);
    const { door: odd } = await open({ door: () => ({ status: 200, body: { socket: "http://x", hello: "connect" } }) });
    await assert.rejects(odd.dial(), DoorUnreachableError);
    const { door: gone, plane } = await open();
    await plane.stop();
    cleanups.length -= 1;
    await assert.rejects(gone.dial(), DoorUnreachableError);
  });

  test("an address that leads away from TLS is refused", () => {
    const origin = controlPlaneOrigin("https://vmferry.example");
    assert.throws(() => socketAddress(origin, hostId, "ws://sockets.example/live"), /request.malformed/);
    assert.equal(socketAddress(origin, hostId, "wss://s.example/x").protocol, "wss:");
  });

  test("a name that is no address is a refusal with its cause, not the end of the shim", async () => {
    for (const socket of ["wss://host:99999/live", "wss://[1"]) {
      const { door } = await open({ door: () => ({ socket, hello: "connect" }) });
      await assert.rejects(door.dial(), (error) => error instanceof Fault && error.code === "request.malformed");
    }
  });
});

describe("the progress gate", () => {
  const of = (id: string) =>
    ({ type: "progress", migrationId: id, commandId: `${id}:perform:1`, progress: progressOf(1) }) as const;
  test("passes one in so many milliseconds for each migration, and everything else always", () => {
    const clock = { atMs: 0, monotonicMs: () => clock.atMs };
    const gate = new ProgressGate(clock);
    assert.deepEqual([gate.passes(of("m_1")), gate.passes(of("m_1"))], [true, true], "nothing is held back unasked");
    gate.everyMs = 5_000;
    assert.deepEqual([gate.passes(of("m_1")), gate.passes(of("m_1"))], [true, false]);
    assert.deepEqual([gate.passes(of("m_2")), gate.passes({ type: "heartbeat" })], [true, true]);
    clock.atMs = 4_999;
    assert.equal(gate.passes(of("m_1")), false);
    clock.atMs = 5_000;
    assert.equal(gate.passes(of("m_1")), true);
  });
});
