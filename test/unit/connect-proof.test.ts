/** A connect proof: what holds, and each way in which one does not. */
import assert from "node:assert/strict";
import { generateKeyPairSync, sign } from "node:crypto";
import { describe, test } from "node:test";
import { checkConnectProof } from "#functions/connect-proof";
import type { HostRecord } from "#functions/ports";
import { type ConnectProof, connectMsMax, connectSignedText, formatConnectProof } from "#protocol/identity";

const { publicKey, privateKey } = generateKeyPairSync("ed25519");
const nowMs = Date.parse("2026-11-23T00:00:00.000Z");
const hostId = `h_${"0".repeat(26)}`;
const other = `h_${"1".repeat(26)}`;
const nonce = "n".repeat(43);

const host: HostRecord = {
  id: hostId,
  name: "alpha",
  publicKey: publicKey.export({ format: "jwk" }).x ?? "",
  cordoned: false,
  enrolledAt: "2026-01-01T00:00:00.000Z",
  lastSeenAt: null,
  protocol: null,
  features: [],
  facts: null,
};

const socket = "wss://sockets.example/live";
const world = {
  socket,
  hosts: { byId: async (id: string) => (id === hostId ? host : null) },
  clock: { now: () => new Date(nowMs).toISOString() },
};

function headerOf(change: Partial<Omit<ConnectProof, "signature">> = {}, key = privateKey, dialled = socket): string {
  const proof = { hostId, atMs: nowMs, nonce, ...change };
  const signature = sign(null, Buffer.from(connectSignedText({ ...proof, socket: dialled })), key).toString(
    "base64url",
  );
  return formatConnectProof({ ...proof, signature });
}

async function causeOf(header: string | null | undefined, named?: string): Promise<string> {
  const checked = await checkConnectProof(world, header, named);
  assert.ok(!checked.ok, "it must not hold");
  assert.equal(checked.fault.code, "shim.unauthorised");
  assert.notEqual(checked.fault.action, "");
  return checked.fault.cause;
}

describe("a connect proof", () => {
  test("holds, and says whose it is", async () => {
    const checked = await checkConnectProof(world, headerOf(), hostId);
    assert.ok(checked.ok);
    assert.equal(checked.host, host);
    assert.equal(checked.proof.nonce, nonce);
  });

  test("holds for as long as it says and no longer, on either side of the clock", async () => {
    for (const atMs of [nowMs - connectMsMax, nowMs + connectMsMax])
      assert.ok((await checkConnectProof(world, headerOf({ atMs }))).ok);
    assert.match(await causeOf(headerOf({ atMs: nowMs - connectMsMax - 1 })), / ago; /);
    assert.match(await causeOf(headerOf({ atMs: nowMs + connectMsMax + 1 })), / in the future; /);
  });

  test("a late one may be tried again by the shim itself; the others need a person", async () => {
    const late = await checkConnectProof(world, headerOf({ atMs: nowMs - connectMsMax - 1 }));
    const absent = await checkConnectProof(world, undefined);
    assert.deepEqual([!late.ok && late.fault.retry, !absent.ok && absent.fault.retry], ["safe", "person"]);
  });

  test("none, or no proof at all", async () => {
    for (const header of [undefined, null, ""]) assert.match(await causeOf(header), /no proof/);
    for (const header of ["x", `${headerOf()} `, headerOf().replace("1 ", "2 "), "1 ".repeat(4_000)])
      assert.match(await causeOf(header), /malformed/);
  });

  test("of another host than the request names", async () => {
    assert.match(await causeOf(headerOf(), other), /another host/);
  });

  test("of a host that is not enrolled", async () => {
    assert.match(await causeOf(headerOf({ hostId: other })), /not enrolled/);
  });

  test("signed by another key, or over other words", async () => {
    assert.match(await causeOf(headerOf({}, generateKeyPairSync("ed25519").privateKey)), /signature/);
    assert.match(await causeOf(headerOf().replace(nonce, "m".repeat(43))), /signature/);
  });

  test("one that was made for another address is worthless here: whoever relays it gains nothing", async () => {
    assert.match(await causeOf(headerOf({}, privateKey, "wss://relay.example/live")), /made for another address/);
  });
});
