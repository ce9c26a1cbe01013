/** The pure parts of the command line: the event parser at every cut, trees, tables, sizes, mounts, progress. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { acceptedCodes } from "#functions/cli/check-command";
import { mountOf, parseMounts } from "#functions/cli/doctor-machine";
import { readEvents, type StreamEvent } from "#functions/cli/event-parser";
import { exitOf } from "#functions/cli/exit-code";
import { fractionDone, progressLine } from "#functions/cli/progress-bar";
import { treeLines } from "#functions/cli/snapshot-tree";
import { tableLines } from "#functions/cli/table";
import { durationText, printable, sizeText } from "#functions/cli/terminal";
import { parseToken, sameDigest } from "#functions/http/token";
import type { Progress } from "#protocol/message";

async function eventsOf(chunks: readonly Uint8Array[]): Promise<(StreamEvent | null)[]> {
  const events: (StreamEvent | null)[] = [];
  async function* source() {
    yield* chunks;
  }
  for await (const event of readEvents(source())) events.push(event);
  return events;
}

describe("server-sent events", () => {
  const text =
    'retry: 5\n\n: alive\n\nid: 7\nevent: migration\ndata: {"a":"é"}\n\nevent: progress\ndata: one\ndata: two\n\nid: 8\ndata: cut off';
  const wanted = [
    null,
    { id: "7", name: "migration", data: '{"a":"é"}' },
    { id: null, name: "progress", data: "one\ntwo" },
  ];

  for (const [what, end] of [
    ["LF", "\n"],
    ["CRLF", "\r\n"],
    ["CR", "\r"],
  ] as const)
    test(`with ${what}, cut at every byte`, async () => {
      const bytes = new TextEncoder().encode(text.replaceAll("\n", end));
      for (let cut = 0; cut <= bytes.byteLength; cut += 1)
        assert.deepEqual(await eventsOf([bytes.subarray(0, cut), bytes.subarray(cut)]), wanted, `cut at ${cut}`);
      assert.deepEqual(await eventsOf([...bytes].map((byte) => Uint8Array.of(byte))), wanted);
    });
});

describe("a snapshot tree", () => {
  const node = (name: string, parent: string | null) => ({
    name,
    parent,
    current: false,
    state: "off",
    createdAt: null,
  });

  test("of any shape has one line for each snapshot, deeper than its parent's", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(), { maxLength: 60 }), (seeds) => {
        const nodes = seeds.map((seed, index) =>
          node(`n${index}`, index === 0 || seed % 4 === 0 ? null : `n${seed % index}`),
        );
        const lines = treeLines(nodes);
        assert.equal(lines.length, nodes.length);
        const depth = (name: string) => lines.find((line) => line.includes(`─ ${name}  `))?.indexOf("─") ?? -1;
        for (const { name, parent } of nodes) assert.equal(depth(name), parent === null ? 1 : depth(parent) + 3);
      }),
    );
  });

  test("of 2,000 in a row is drawn; an orphan is a root", () => {
    const chain = Array.from({ length: 2_000 }, (_, index) => node(`n${index}`, index === 0 ? null : `n${index - 1}`));
    assert.equal(treeLines(chain).length, 2_000);
    assert.deepEqual(treeLines([node("a", "gone")]), ["└─ a  off"]);
  });
});

test("tables are as wide as their cells, and printable", () => {
  assert.deepEqual(
    tableLines(
      ["A", "B"],
      [
        ["long", "x"],
        ["é", "\u0007"],
      ],
    ),
    ["A     B", "long  x", "é     \ufffd"],
  );
  assert.equal(printable("a\tb\r\n\u009b"), "a\ufffdb\ufffd\ufffd\ufffd");
});

test("sizes and durations read well at their borders", () => {
  assert.deepEqual([0, 1023, 1024, 10 * 1024, 2 ** 30].map(sizeText), [
    "0 B",
    "1023 B",
    "1.0 KiB",
    "10 KiB",
    "1.0 GiB",
  ]);
  assert.deepEqual([0.4, 20, 1_500, 61_000, 3_660_000].map(durationText), [
    "0.4 ms",
    "20 ms",
    "1.5 s",
    "1 min 1 s",
    "1 h 1 min",
  ]);
});

test("mounts: the longest that fits, with escaped spaces", () => {
  const mounts = parseMounts(
    "/dev/sda / ext4 rw 0 0\nnas:/x /var/lib/libvirt nfs4 rw 0 0\nnas:/y /my\\040disks nfs rw 0 0\n",
  );
  assert.equal(mountOf(mounts, "/var/lib/libvirt/images")?.type, "nfs4");
  assert.equal(mountOf(mounts, "/var/lib/libvirtual")?.type, "ext4");
  assert.equal(mountOf(mounts, "/my disks/a")?.type, "nfs");
});

test("--accept takes lists and repetitions", () => {
  assert.deepEqual(acceptedCodes(["a,b", " b ,c", ""]), ["a", "b", "c"]);
});

test("every code has an exit code; what is not known is blocked", () => {
  assert.deepEqual(
    ["risk.notAccepted", "request.unauthorised", "store.unreachable", "internal", "domain.absent", "what.ever"].map(
      exitOf,
    ),
    [2, 77, 69, 70, 3, 3],
  );
});

test("progress counts what the step moves", () => {
  const progress: Progress = {
    memory: {
      totalBytes: 400,
      processedBytes: 100,
      remainingBytes: 300,
      bytesPerSecond: 1024,
      dirtyPagesPerSecond: 1,
      iteration: 2,
    },
    disk: { totalBytes: 0, processedBytes: 0, remainingBytes: 0 },
    elapsedMs: 1,
    expectedDowntimeMs: null,
    snapshots: { done: 3, total: 4 },
  };
  assert.deepEqual(
    [
      fractionDone("perform", progress),
      fractionDone("stage", progress),
      fractionDone("begin", progress),
      fractionDone("perform", null),
    ],
    [0.25, 0.75, null, null],
  );
  const line = progressLine({ domain: { uuid: "", name: "web" }, step: "perform" }, progress);
  assert.equal(line, "web  perform (6/9)  [######..................]  25%  300 B left  1.0 KiB/s  round 2");
});

test("tokens: only the exact form is one; digests compare as equal only when they are", () => {
  const id = "01JE0000000000000000000001";
  const secret = `${"a_-Z".repeat(10)}abc`;
  assert.deepEqual(parseToken(`vmj_${id}_${secret}`), { kind: "join", id, secret });
  for (const bad of ["", `vmx_${id}_${secret}`, `vmk_${id}_${secret}x`, `vmk_${id}${secret}`, ` vmk_${id}_${secret}`])
    assert.equal(parseToken(bad), null, bad);
  fc.assert(fc.property(fc.string(), fc.string(), (one, other) => sameDigest(one, other) === (one === other)));
  fc.assert(fc.property(fc.string(), (text) => sameDigest(text, `${text}`) && !sameDigest(text, `${text}0`)));
});
