/** The codec: what every message type looks like on the wire, what is refused and where the refusal points. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { decodeDown, decodeUp, encode } from "#protocol/codec";
import { Fault } from "#protocol/fault";
import { inlineBytesMax, messageBytesMax } from "#protocol/limits";
import type { DownMessage, UpMessage } from "#protocol/message";

const commandId = "m_01JD0000000000000000000000:prepare:1";
const migrationId = "m_01JD0000000000000000000000";
const sha256 = "a".repeat(64);
const blob = (bytes: number) => ({
  in: "inline" as const,
  base64: Buffer.alloc(bytes).toString("base64"),
  sha256,
  bytes,
});

const up: UpMessage[] = [
  { type: "heartbeat" },
  { type: "inventory", full: true, last: true, domains: [], gone: [] },
  { type: "lost", migrationId, epoch: 1, cause: "libvirt closed the connection" },
  {
    type: "grant",
    request: "g1",
    migrationId,
    commandId,
    want: { op: "put", purpose: "bundle", sha256, bytes: 1 },
  },
  {
    type: "report",
    report: {
      commandId,
      migrationId,
      epoch: 1,
      ms: 12,
      result: { ok: true, body: { kind: "prepare", cookie: blob(10), uri: null, peer: null } },
    },
  },
];
const down: DownMessage[] = [
  { type: "challenge", nonce: "n".repeat(43), protocols: { min: 1, max: 1 } },
  { type: "welcome", session: "s", protocol: 1, features: ["bundle.1"], name: "alpha", heartbeatMs: 10_000 },
  { type: "acknowledged", commandId },
];

const code = (wanted: string, pattern?: RegExp) => (error: unknown) => {
  assert.ok(error instanceof Fault);
  assert.equal(error.code, wanted);
  if (pattern !== undefined) assert.match(error.cause_, pattern);
  return true;
};

describe("codec", () => {
  test("what is encoded is decoded, each way", () => {
    for (const message of up) assert.deepEqual(decodeUp(encode(message)), message);
    for (const message of down) assert.deepEqual(decodeDown(encode(message)), message);
  });

  test("a message of the other direction is refused", () => {
    for (const message of up) assert.throws(() => decodeDown(encode(message)), code("message.malformed"));
    for (const message of down) assert.throws(() => decodeUp(encode(message)), code("message.malformed"));
  });

  test("the refusal names the first path that does not fit", () => {
    const text = JSON.stringify({ ...up[2], epoch: "1" });
    assert.throws(() => decodeUp(text), code("message.malformed", /epoch/));
  });

  test("anything that is not such a message is a fault and never another exception", () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json(), fc.constantFrom("null", "[]", '{"type":"__proto__"}')), (text) => {
        assert.throws(() => decodeUp(text), code("message.malformed"));
        assert.throws(() => decodeDown(text), code("message.malformed"));
      }),
    );
  });

  test("two inline payloads of the full size fit one message; more than the limit is refused on both sides", () => {
    const command: DownMessage = {
      type: "command",
      command: {
        id: commandId,
        migrationId,
        epoch: 1,
        domain: { uuid: "c7a5fdbd-edaf-9455-926a-d65c16db1809", name: "web" },
        kind: "prepare",
        cookie: blob(inlineBytesMax),
        xml: blob(inlineBytesMax),
        options: { offline: false, unsafe: false, autoConverge: false, bandwidthMiBps: null },
        flags: 0,
      },
    };
    assert.deepEqual(decodeDown(encode(command)), command);
    const large: UpMessage = { type: "lost", migrationId, epoch: 1, cause: "x".repeat(messageBytesMax) };
    assert.throws(() => encode(large), code("message.tooLarge"));
    assert.throws(() => decodeUp(JSON.stringify(large)), code("message.tooLarge"));
  });

  test("an inline payload over 24 KiB belongs in the bucket", () => {
    const report = structuredClone(up[4]);
    assert.ok(report?.type === "report" && report.report.result.ok && report.report.result.body.kind === "prepare");
    report.report.result.body.cookie = blob(inlineBytesMax + 3);
    assert.throws(() => decodeUp(encode(report)), code("message.malformed", /cookie/));
  });

  test("ids that could leave a directory are no ids", () => {
    for (const id of ["../../etc/passwd", "m_..", `${migrationId}/x`, migrationId.toLowerCase()])
      assert.throws(
        () => decodeUp(JSON.stringify({ type: "lost", migrationId: id, epoch: 1, cause: "x" })),
        code("message.malformed", /migrationId/),
      );
  });
});
