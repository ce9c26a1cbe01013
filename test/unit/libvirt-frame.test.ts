/** The frame parser where the golden vectors do not reach: limits, broken streams, memory, any bytes at all. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { encodeFrame, type Frame, type FrameCode, FrameError, FrameParser } from "#libvirt/frame";

const frame: fc.Arbitrary<Frame> = fc.record({
  program: fc.integer({ min: 0, max: 0xffff_ffff }),
  version: fc.integer({ min: 0, max: 0xffff_ffff }),
  procedure: fc.integer({ min: -0x8000_0000, max: 0x7fff_ffff }),
  type: fc.integer({ min: 0, max: 6 }),
  serial: fc.integer({ min: 0, max: 0xffff_ffff }),
  status: fc.integer({ min: 0, max: 2 }),
  payload: fc.uint8Array({ maxLength: 300 }),
});

function sizes(): fc.Arbitrary<number[]> {
  return fc.array(fc.integer({ min: 1, max: 64 }), { minLength: 1, maxLength: 20 });
}

function cut(bytes: Uint8Array, pattern: readonly number[]): Uint8Array[] {
  const pieces: Uint8Array[] = [];
  for (let at = 0, turn = 0; at < bytes.byteLength; turn += 1) {
    const size = pattern[turn % pattern.length] ?? 1;
    pieces.push(bytes.subarray(at, at + size));
    at += size;
  }
  return pieces;
}

/** Frames delivered and the code of the error that ended it, if any. */
function feed(pieces: readonly Uint8Array[]): { frames: Frame[]; code: FrameCode | undefined } {
  const parser = new FrameParser();
  const frames: Frame[] = [];
  for (const piece of pieces) {
    try {
      parser.push(piece, (each) => frames.push({ ...each, payload: new Uint8Array(each.payload) }));
    } catch (error) {
      if (!(error instanceof FrameError)) throw error;
      return { frames, code: error.code };
    }
  }
  return { frames, code: undefined };
}

function header(length: number, type = 1, status = 0): Uint8Array {
  const bytes = new Uint8Array(28);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, length);
  view.setUint32(16, type);
  view.setUint32(24, status);
  return bytes;
}

describe("frame parser", () => {
  test("gives back what was encoded, under any cut", () => {
    fc.assert(
      fc.property(fc.array(frame, { maxLength: 5 }), sizes(), (frames, pattern) => {
        const stream = Buffer.concat(frames.map((each) => encodeFrame(each)));
        // fast-check's records have no prototype; the clone has the usual one.
        assert.deepEqual(feed(cut(stream, pattern)), { frames: structuredClone(frames), code: undefined });
      }),
    );
  });

  test("any bytes give the same frames and the same error under any cut, and only named errors", () => {
    // Lengths near the truth, so that the bytes get past the length word often enough to be worth trying.
    const plausible = fc
      .tuple(fc.integer({ min: 0, max: 60 }), fc.uint8Array({ maxLength: 200 }))
      .map(([length, rest]) => {
        const bytes = Buffer.concat([header(length).subarray(0, 4), rest]);
        return new Uint8Array(bytes);
      });
    fc.assert(
      fc.property(fc.oneof(fc.uint8Array({ maxLength: 200 }), plausible), sizes(), (bytes, pattern) => {
        assert.deepEqual(feed(cut(bytes, pattern)), feed([bytes]));
      }),
      { numRuns: 500 },
    );
  });

  test("delivers the frames in front of a broken one", () => {
    const good = encodeFrame({
      program: 1,
      version: 1,
      procedure: 1,
      type: 1,
      serial: 1,
      status: 0,
      payload: new Uint8Array(8),
    });
    const { frames, code } = feed([Buffer.concat([good, good, header(27)])]);
    assert.equal(frames.length, 2);
    assert.equal(code, "frame.tooShort");
  });

  for (const [length, code] of [
    [0, "frame.tooShort"],
    [27, "frame.tooShort"],
    [28, undefined],
    [33_554_432 + 4, undefined],
    [33_554_432 + 5, "frame.tooLong"],
    [0xffff_ffff, "frame.tooLong"],
  ] as const) {
    test(`a length of ${length}: ${code ?? "accepted"}`, () => {
      assert.equal(feed([header(length)]).code, code);
    });
  }

  test("refuses types and states that do not exist", () => {
    assert.equal(feed([header(28, 7)]).code, "frame.type");
    assert.equal(feed([header(28, 1, 3)]).code, "frame.status");
  });

  test("stays failed", () => {
    const parser = new FrameParser();
    assert.throws(() => parser.push(header(1), () => {}), { code: "frame.tooShort" });
    assert.throws(() => parser.push(new Uint8Array(1), () => {}), { code: "frame.afterFailure" });
  });

  test("a frame that is announced and not sent costs no more than its first bytes", () => {
    const before = process.memoryUsage().arrayBuffers;
    const parsers = Array.from({ length: 64 }, () => new FrameParser());
    for (const parser of parsers) parser.push(Buffer.concat([header(33_554_432), Buffer.alloc(10)]), () => {});
    const spent = process.memoryUsage().arrayBuffers - before;
    // 64 announced frames are 2 GiB; 64 KiB each is 4 MiB.
    assert.ok(spent < 64 * 1024 * 1024, `${spent} bytes`);
    assert.ok(parsers.every((parser) => !parser.atBoundary));
  });

  test("the largest frame arrives in small pieces", () => {
    const payload = new Uint8Array(33_554_408);
    payload[payload.length - 1] = 7;
    const bytes = encodeFrame({ program: 1, version: 1, procedure: 1, type: 1, serial: 1, status: 0, payload });
    const { frames } = feed(cut(bytes, [4_096]));
    assert.equal(frames.length, 1);
    assert.equal(frames[0]?.payload.at(-1), 7);
  });

  test("refuses to encode what libvirt would not take", () => {
    const payload = new Uint8Array(33_554_409);
    assert.throws(() => encodeFrame({ program: 1, version: 1, procedure: 1, type: 0, serial: 1, status: 0, payload }), {
      code: "frame.tooLong",
    });
  });
});
