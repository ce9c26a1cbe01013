/**
 * The recorded vectors: every frame decodes by its shape to the annotated fields and encodes to the same bytes, and the
 * parser gives the same frames whatever the cut. See record.ts for where they come from.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { encodeFrame, type Frame, FrameParser } from "#libvirt/frame";
import { procedures } from "#libvirt/procedures";
import { decodePayload, encodePayload } from "#libvirt/shape";
import { annotate, describeFrame, parseVectors } from "./libvirt-vector.ts";

const files = readdirSync(import.meta.dirname).filter((name) => /^libvirt-.*\.jsonl$/.test(name));

function parse(pieces: readonly Uint8Array[]): Frame[] {
  const parser = new FrameParser();
  const frames: Frame[] = [];
  for (const piece of pieces) parser.push(piece, (frame) => frames.push(frame));
  assert.ok(parser.atBoundary);
  return frames;
}

const read = files.map((name) => ({ name, file: parseVectors(readFileSync(join(import.meta.dirname, name), "utf8")) }));

test("there are vectors, and virsh's own migration calls are among them", () => {
  const calls = read.flatMap(({ file }) => file.vectors.map((v) => `${file.client} ${v.direction} ${v.procedure}`));
  for (const phase of ["begin3", "prepare3", "perform3", "finish3", "confirm3"]) {
    assert.ok(calls.includes(`virsh call domain_migrate_${phase}_params`), phase);
    assert.ok(calls.includes(`vmferry reply domain_migrate_${phase}_params`), phase);
  }
});

test("the procedure table has no number and no name twice", () => {
  const all = Object.values(procedures);
  assert.equal(new Set(all.map((procedure) => procedure.number)).size, all.length);
  assert.equal(new Set(all.map((procedure) => procedure.name)).size, all.length);
});

for (const { name, file } of read) {
  describe(name, () => {
    test("the file is named after the libvirt that spoke", () => {
      assert.ok(name.startsWith(`libvirt-${file.libvirt}-`));
    });

    for (const [index, vector] of file.vectors.entries()) {
      test(`${index} ${vector.host}: ${vector.direction} ${vector.procedure}`, () => {
        const bytes = Buffer.from(vector.hex, "hex");
        const [frame] = parse([bytes]);
        assert.ok(frame !== undefined);
        const described = describeFrame(frame);
        assert.ok(described !== undefined);
        assert.equal(described.procedure, vector.procedure);
        assert.equal(described.direction, vector.direction);
        assert.deepEqual(annotate(bytes, described.shape), vector.fields);

        const value = decodePayload(described.shape, frame.payload);
        const again = encodeFrame({ ...frame, payload: encodePayload(described.shape, value) });
        assert.equal(Buffer.from(again).toString("hex"), vector.hex);

        for (let cut = 1; cut < bytes.length; cut += 1) {
          const cutFrames = parse([bytes.subarray(0, cut), bytes.subarray(cut)]);
          assert.equal(cutFrames.length, 1);
          assert.ok(sameFrame(cutFrames[0], frame), `cut at ${cut}`);
        }
      });
    }

    const stream = Buffer.concat(file.vectors.map((vector) => Buffer.from(vector.hex, "hex")));
    const whole = parse([stream]);

    test("the whole stream byte by byte", () => {
      const frames = parse(Array.from(stream, (_, at) => stream.subarray(at, at + 1)));
      assert.deepEqual(frames.map(plain), whole.map(plain));
    });

    test("the whole stream in random pieces", () => {
      const piece = fc.integer({ min: 1, max: 5_000 });
      fc.assert(
        fc.property(fc.array(piece, { minLength: 1, maxLength: 40 }), (sizes) => {
          const pieces: Buffer[] = [];
          for (let at = 0, turn = 0; at < stream.length; turn += 1) {
            const size = sizes[turn % sizes.length] ?? 1;
            pieces.push(stream.subarray(at, at + size));
            at += size;
          }
          assert.deepEqual(parse(pieces).map(plain), whole.map(plain));
        }),
        { numRuns: 20 },
      );
    });
  });
}

function plain(frame: Frame): unknown {
  return { ...frame, payload: Buffer.from(frame.payload).toString("latin1") };
}

function sameFrame(a: Frame | undefined, b: Frame): boolean {
  return (
    a !== undefined &&
    a.program === b.program &&
    a.version === b.version &&
    a.procedure === b.procedure &&
    a.type === b.type &&
    a.serial === b.serial &&
    a.status === b.status &&
    Buffer.compare(a.payload, b.payload) === 0
  );
}
