/** XDR: what is written is read back equal; what is broken is refused by name, whatever the bytes. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { remoteError } from "#libvirt/error";
import { events } from "#libvirt/event";
import { remoteDomain, uuid } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import {
  array,
  chars,
  count,
  decodePayload,
  encodePayload,
  opaque,
  optional,
  type Shape,
  string,
} from "#libvirt/shape";
import {
  intParam,
  numberOf,
  stringOf,
  stringParam,
  type TypedParam,
  typedParam,
  ullongParam,
} from "#libvirt/typed-param";
import { XdrError, XdrReader, XdrWriter } from "#libvirt/xdr";

const i32 = fc.integer({ min: -0x8000_0000, max: 0x7fff_ffff });
const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const text = fc.string({ unit: "grapheme", maxLength: 40 }).filter((value) => !value.includes("\0"));
const param: fc.Arbitrary<TypedParam> = fc.oneof(
  fc.record({ field: text, type: fc.constant("int" as const), value: i32 }),
  fc.record({ field: text, type: fc.constant("uint" as const), value: u32 }),
  fc.record({
    field: text,
    type: fc.constant("llong" as const),
    value: fc.bigInt({ min: -(1n << 63n), max: (1n << 63n) - 1n }),
  }),
  fc.record({
    field: text,
    type: fc.constant("ullong" as const),
    value: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
  }),
  fc.record({ field: text, type: fc.constant("double" as const), value: fc.double() }),
  fc.record({ field: text, type: fc.constant("boolean" as const), value: fc.boolean() }),
  fc.record({ field: text, type: fc.constant("string" as const), value: text }),
);
const domain = fc.record({ name: text, uuid: fc.uuid(), id: i32 });

function roundTrip<T>(shape: Shape<T>, value: T): void {
  // fast-check's records have no prototype; the clone has the usual one.
  assert.deepEqual(decodePayload(shape, encodePayload(shape, value)), structuredClone(value));
}

function code(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    if (error instanceof XdrError) return error.code;
    throw error;
  }
  return "accepted";
}

const words = (...values: number[]): Uint8Array => {
  const writer = new XdrWriter();
  for (const value of values) writer.u32(value);
  return writer.finish();
};

describe("round trip", () => {
  test("typed parameters", () => {
    fc.assert(fc.property(fc.array(param, { maxLength: 64 }), (params) => roundTrip(array(typedParam, 64), params)));
  });

  test("a migration call", () => {
    const call = fc.record({
      dom: domain,
      dconnuri: fc.option(text),
      params: fc.array(param, { maxLength: 10 }),
      cookieIn: fc.uint8Array({ maxLength: 5_000 }),
      flags: u32,
    });
    fc.assert(fc.property(call, (args) => roundTrip(procedures.domainMigratePerform3Params.args, args)));
  });

  test("an error", () => {
    const line = fc.option(text);
    const fault = fc.record({
      ...{ code: i32, domain: i32, message: line, level: i32, dom: fc.option(domain) },
      ...{ str1: line, str2: line, str3: line, int1: i32, int2: i32 },
      net: fc.option(fc.record({ name: text, uuid: fc.uuid() })),
    });
    fc.assert(fc.property(fault, (error) => roundTrip(remoteError, error)));
  });

  test("a payload that grows many times over", () => {
    for (let length = 0; length < 3_000; length += 7) {
      roundTrip(array(opaque(4_000), 10), [new Uint8Array(length).fill(1), new Uint8Array(3), new Uint8Array(length)]);
    }
  });

  test("char arrays", () => {
    roundTrip(chars(32, true), "x86_64");
    roundTrip(chars(257, false), "selinux");
    assert.equal(encodePayload(chars(32, true), "x").byteLength, 128);
  });
});

describe("limits", () => {
  test("a string of 4 MiB is taken, one byte more is not, neither written nor read", () => {
    const most = "x".repeat(4_194_304);
    assert.equal(decodePayload(string, encodePayload(string, most)).length, most.length);
    assert.equal(
      code(() => encodePayload(string, `${most}x`)),
      "xdr.limit",
    );
    assert.equal(
      code(() => encodePayload(string, "ä".repeat(2_097_153))),
      "xdr.limit",
    );
    assert.equal(
      code(() => decodePayload(string, words(4_194_305))),
      "xdr.limit",
    );
  });

  test("a count is believed only as far as there are bytes", () => {
    assert.equal(
      code(() => decodePayload(opaque(4_194_304), words(4_194_304))),
      "xdr.truncated",
    );
    assert.equal(
      code(() => decodePayload(array(remoteDomain, 16_384), words(16_384))),
      "xdr.truncated",
    );
    assert.equal(
      code(() => decodePayload(array(remoteDomain, 16_384), words(16_385))),
      "xdr.limit",
    );
  });

  test("a message cannot outgrow libvirt's", () => {
    const writer = new XdrWriter();
    const part = new Uint8Array(4_194_304);
    assert.equal(
      code(() => {
        for (let times = 0; times < 9; times += 1) writer.fixedOpaque(part, part.byteLength);
      }),
      "xdr.limit",
    );
  });

  test("numbers that do not fit are refused, not wrapped", () => {
    const writer = new XdrWriter();
    for (const bad of [-1, 2 ** 32, 1.5, Number.NaN])
      assert.equal(
        code(() => writer.u32(bad)),
        "xdr.range",
      );
    for (const bad of [2 ** 31, -(2 ** 31) - 1])
      assert.equal(
        code(() => writer.i32(bad)),
        "xdr.range",
      );
    assert.equal(
      code(() => writer.u64(-1n)),
      "xdr.range",
    );
    assert.equal(
      code(() => writer.u64(1n << 64n)),
      "xdr.range",
    );
    assert.equal(
      code(() => writer.i64(1n << 63n)),
      "xdr.range",
    );
    assert.equal(
      code(() => count.write(writer, 2 ** 53)),
      "xdr.range",
    );
    assert.equal(writer.offset, 0);
    assert.equal(
      code(() => decodePayload(count, words(0x20_0000, 0))),
      "xdr.range",
    );
    assert.equal(decodePayload(count, words(0x1f_ffff, 0xffff_ffff)), Number.MAX_SAFE_INTEGER);
  });
});

describe("broken payloads", () => {
  test("padding that is not zero", () => {
    assert.equal(
      code(() => decodePayload(opaque(8), Buffer.from("0000000161000001", "hex"))),
      "xdr.padding",
    );
  });

  test("padding that is missing", () => {
    assert.equal(
      code(() => decodePayload(opaque(8), Buffer.from("000000016100", "hex"))),
      "xdr.truncated",
    );
  });

  test("bytes after the end", () => {
    assert.equal(
      code(() => decodePayload(opaque(8), words(0, 0))),
      "xdr.trailing",
    );
  });

  test("a pointer flag, a bool or a union tag that does not exist", () => {
    assert.equal(
      code(() => decodePayload(optional(string), words(2))),
      "xdr.value",
    );
    assert.equal(
      code(() => decodePayload(procedures.domainIsActive.result, words(7))),
      "xdr.value",
    );
    assert.equal(
      code(() => decodePayload(typedParam, words(0, 8))),
      "xdr.value",
    );
  });

  test("text: no NUL, no lone surrogate, no bytes that are no UTF-8; messages for people are kept", () => {
    assert.equal(
      code(() => encodePayload(string, "a\0b")),
      "xdr.text",
    );
    assert.equal(
      code(() => encodePayload(string, "\ud800")),
      "xdr.text",
    );
    assert.equal(
      code(() => decodePayload(string, Buffer.from("0000000361006200", "hex"))),
      "xdr.text",
    );
    const latin1 = Buffer.from("00000001e4000000", "hex");
    assert.equal(
      code(() => decodePayload(string, latin1)),
      "xdr.text",
    );
    assert.equal(new XdrReader(latin1).message(10), "\ufffd");
  });

  test("a UUID that is not canonical", () => {
    for (const bad of ["", "7B1F6AC2-0F35-4C4F-9D0E-4F7F2F0C9A11", "7b1f6ac20f354c4f9d0e4f7f2f0c9a11"]) {
      assert.equal(
        code(() => encodePayload(uuid, bad)),
        "xdr.value",
      );
    }
  });

  test("any bytes, read as any reply or event, give a value or a named error", () => {
    const shapes: Shape<unknown>[] = [
      ...Object.values(procedures).map((procedure) => procedure.result),
      ...Object.values(events).map((event) => event.message),
      remoteError,
    ];
    // Mostly small words, so that counts and flags look real and decoding gets deep.
    const small = fc
      .array(fc.oneof(fc.integer({ min: 0, max: 8 }), u32), { maxLength: 60 })
      .map((all) => words(...all));
    fc.assert(
      fc.property(fc.oneof(small, fc.uint8Array({ maxLength: 200 })), (bytes) => {
        for (const shape of shapes) code(() => decodePayload(shape, bytes));
      }),
      { numRuns: 300 },
    );
  });
});

test("typed parameters are looked up by name, and a value beyond 2^53 is not rounded", () => {
  const params = [intParam("a", 1), ullongParam("b", 5), ullongParam("c", (1n << 64n) - 1n), stringParam("d", "x")];
  assert.equal(numberOf(params, "a"), 1);
  assert.equal(numberOf(params, "b"), 5);
  assert.equal(numberOf(params, "c"), undefined);
  assert.equal(numberOf(params, "d"), undefined);
  assert.equal(stringOf(params, "d"), "x");
  assert.equal(stringOf(params, "a"), undefined);
});
