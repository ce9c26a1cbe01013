/** The bundle's round trip, every kind of damage refused, and constant memory at libvirt's own limit. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { appendFile, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { gunzipSync, gzipSync } from "node:zlib";
import fc from "fast-check";
import { type BundleCounts, type BundleEntry, encodeHeader } from "#protocol/bundle";
import { readBundle, readBundleHeader, verifyBundle } from "#protocol/bundle-reader";
import { writeBundle } from "#protocol/bundle-writer";
import { Fault } from "#protocol/fault";
import { snapshotsMax, xmlBytesMax } from "#protocol/limits";
import { treeSha256 } from "#protocol/tree";

/** So that what is measured is what is held, not what the collector has not come to yet. */
setFlagsFromString("--expose-gc");
const collectGarbage: () => void = runInNewContext("gc");

let directory: string;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), "vmferry-bundle-"));
});
after(() => rm(directory, { recursive: true, force: true }));

const domain: BundleEntry = { kind: "domain", name: "web", parent: null, current: false, xml: "<domain/>" };
const snapshot = (name: string, parent: string | null = null, current = false): BundleEntry => ({
  kind: "snapshot",
  name,
  parent,
  current,
  xml: `<domainsnapshot><name>${name}</name></domainsnapshot>`,
});
const checkpoint = (name: string, parent: string | null = null): BundleEntry => ({
  kind: "checkpoint",
  name,
  parent,
  current: false,
  xml: `<domaincheckpoint><name>${name}</name></domaincheckpoint>`,
});
const tree = [domain, snapshot("a"), snapshot("b", "a", true), snapshot("c", "a"), checkpoint("k")];
const treeCounts: BundleCounts = { snapshots: 3, checkpoints: 1, hasCurrent: true };

const collect = async (source: string | AsyncIterable<Uint8Array>) => {
  const entries: BundleEntry[] = [];
  for await (const entry of readBundle(source)) entries.push(entry);
  return entries;
};

const withCode =
  (...codes: string[]) =>
  (error: unknown) => {
    assert.ok(error instanceof Fault, `not a Fault: ${error}`);
    assert.ok(codes.includes(error.code), `${error.code} is none of ${codes.join()}`);
    return true;
  };

/** Any tree: each entry's parent is an earlier one of its kind. */
const trees = fc
  .record({
    names: fc.uniqueArray(fc.string({ minLength: 1, maxLength: 40, unit: "grapheme" }), { maxLength: 12 }),
    parents: fc.array(fc.nat(), { minLength: 12, maxLength: 12 }),
    xmls: fc.array(fc.string({ minLength: 1, unit: "grapheme" }), { minLength: 12, maxLength: 12 }),
    current: fc.option(fc.nat(11)),
    checkpoints: fc.nat(3),
  })
  .map(({ names, parents, xmls, current, checkpoints }) => {
    const snapshots = names.map((name, index): BundleEntry => {
      const parent = (parents[index] ?? 0) % (index + 1);
      return {
        kind: "snapshot",
        name,
        parent: parent === index ? null : (names[parent] ?? null),
        current: index === current,
        xml: xmls[index] ?? "x",
      };
    });
    const entries = [
      domain,
      ...snapshots,
      ...Array.from({ length: checkpoints }, (_, index) => checkpoint(`k${index}`)),
    ];
    return { entries, counts: { snapshots: names.length, checkpoints, hasCurrent: snapshots.some((s) => s.current) } };
  });

describe("round trip", () => {
  test("what is written is read back, and both sides state the same facts", async () => {
    const path = join(directory, "round");
    await fc.assert(
      fc.asyncProperty(trees, async ({ entries, counts }) => {
        const facts = await writeBundle({ path, counts, entries });
        assert.deepEqual(await collect(path), entries);
        assert.deepEqual(await readBundleHeader(path), counts);
        assert.deepEqual(await verifyBundle(path, facts), facts);
        const stored = await readFile(path);
        assert.equal(facts.sha256, createHash("sha256").update(stored).digest("hex"));
        assert.equal(facts.bytes, stored.byteLength);
        const plain = gunzipSync(stored);
        assert.equal(facts.plainBytes, plain.byteLength - 32);
        assert.equal(facts.plainSha256, plain.subarray(-32).toString("hex"));
        assert.equal(facts.treeSha256, await treeSha256(entries));
      }),
      { numRuns: 60 },
    );
  });

  test("the same entries give the same object, so a repeated export has the same name in the bucket", async () => {
    const first = await writeBundle({ path: join(directory, "same1"), counts: treeCounts, entries: tree });
    const second = await writeBundle({ path: join(directory, "same2"), counts: treeCounts, entries: tree });
    assert.deepEqual(second, first);
  });

  test("a stream in pieces of one byte reads like the file", async () => {
    const path = join(directory, "bytes");
    await writeBundle({ path, counts: treeCounts, entries: tree });
    const bytes = await readFile(path);
    async function* one() {
      for (const byte of bytes) yield Uint8Array.of(byte);
    }
    assert.deepEqual(await collect(one()), tree);
  });

  test("the file is only for its owner", async () => {
    const path = join(directory, "mode");
    await writeBundle({ path, counts: treeCounts, entries: tree });
    assert.equal((await stat(path)).mode & 0o777, 0o600);
  });
});

describe("what a writer refuses", () => {
  const refused: [string, BundleCounts, BundleEntry[]][] = [
    ["fewer entries than counted", { ...treeCounts, snapshots: 4 }, tree],
    ["more entries than counted", { ...treeCounts, snapshots: 2 }, tree],
    ["no domain", treeCounts, tree.slice(1)],
    ["two domains", treeCounts, [domain, ...tree]],
    [
      "a child before its parent",
      { ...treeCounts, snapshots: 2, checkpoints: 0 },
      [domain, snapshot("b", "a", true), snapshot("a")],
    ],
    ["a name twice", { snapshots: 2, checkpoints: 0, hasCurrent: false }, [domain, snapshot("a"), snapshot("a")]],
    [
      "a snapshot after a checkpoint",
      { snapshots: 1, checkpoints: 1, hasCurrent: false },
      [domain, checkpoint("k"), snapshot("a")],
    ],
    [
      "two current ones",
      { snapshots: 2, checkpoints: 0, hasCurrent: true },
      [domain, snapshot("a", null, true), snapshot("b", null, true)],
    ],
    ["a current one that the header denies", { ...treeCounts, hasCurrent: false }, tree],
    [
      "no current one where the header has one",
      { snapshots: 1, checkpoints: 0, hasCurrent: true },
      [domain, snapshot("a")],
    ],
    ["an empty XML", { snapshots: 0, checkpoints: 0, hasCurrent: false }, [{ ...domain, xml: "" }]],
    [
      "an XML over libvirt's limit",
      { snapshots: 0, checkpoints: 0, hasCurrent: false },
      [{ ...domain, xml: "x".repeat(xmlBytesMax + 1) }],
    ],
    ["an empty name", { snapshots: 1, checkpoints: 0, hasCurrent: false }, [domain, snapshot("")]],
    ["too many snapshots", { ...treeCounts, snapshots: snapshotsMax + 1 }, tree],
  ];
  for (const [name, counts, entries] of refused)
    test(name, async () => {
      const path = join(directory, "refused");
      await assert.rejects(writeBundle({ path, counts, entries }), withCode("bundle.malformed"));
      assert.deepEqual(
        (await readdir(directory)).filter((file) => file.startsWith("refused")),
        [],
        "a refused bundle leaves a file",
      );
    });

  test("an error of the entries comes out as it is and leaves nothing", async () => {
    async function* failing() {
      yield domain;
      throw new Error("libvirt went away");
    }
    await assert.rejects(
      writeBundle({ path: join(directory, "refused"), counts: treeCounts, entries: failing() }),
      /libvirt went away/,
    );
    assert.deepEqual(
      (await readdir(directory)).filter((file) => file.startsWith("refused")),
      [],
    );
  });
});

describe("damage is refused", () => {
  const damaged = join(tmpdir(), `vmferry-damaged-${process.pid}`);
  after(() => rm(damaged, { force: true }));
  let plain: Buffer;
  let stored: Buffer;
  before(async () => {
    const path = join(directory, "sound");
    await writeBundle({ path, counts: treeCounts, entries: tree });
    stored = await readFile(path);
    plain = gunzipSync(stored);
  });
  /** Packs plain bytes with a digest that fits them, so that only the structure is wrong. */
  const resealed = (body: Buffer) => gzipSync(Buffer.concat([body, createHash("sha256").update(body).digest()]));
  const refuse = async (bytes: Buffer, ...codes: string[]) => {
    await writeFile(damaged, bytes);
    await assert.rejects(verifyBundle(damaged), withCode(...codes));
    await assert.rejects(collect(damaged), withCode(...codes));
  };

  test("any plain byte changed", async () => {
    for (let at = 0; at < plain.byteLength; at += 1) {
      const copy = Buffer.from(plain);
      copy.writeUInt8(copy.readUInt8(at) ^ 0x41, at);
      await refuse(gzipSync(copy), "bundle.malformed", "bundle.altered");
    }
  });
  test("any stored byte changed cannot pass for the announced object", async () => {
    const sha256 = createHash("sha256").update(stored).digest("hex");
    for (let at = 0; at < stored.byteLength; at += 1) {
      const copy = Buffer.from(stored);
      copy.writeUInt8(copy.readUInt8(at) ^ 0x41, at);
      await writeFile(damaged, copy);
      await assert.rejects(verifyBundle(damaged, { sha256 }), withCode("bundle.malformed", "bundle.altered"));
    }
  });
  test("cut at any byte", async () => {
    for (let bytes = 0; bytes < stored.byteLength; bytes += 1)
      await refuse(stored.subarray(0, bytes), "bundle.malformed");
  });
  test("cut plain bytes under a sound compression", async () => {
    for (let bytes = 0; bytes < plain.byteLength; bytes += 7)
      await refuse(gzipSync(plain.subarray(0, bytes)), "bundle.malformed");
  });
  test("bytes behind it: plain, compressed, a second member, zeros", async () => {
    await refuse(gzipSync(Buffer.concat([plain, Buffer.from("more")])), "bundle.malformed");
    await refuse(Buffer.concat([stored, Buffer.from("more")]), "bundle.malformed");
    await refuse(Buffer.concat([stored, stored]), "bundle.malformed");
    await refuse(Buffer.concat([stored, gzipSync("")]), "bundle.malformed");
    await refuse(Buffer.concat([stored, Buffer.alloc(100)]), "bundle.malformed");
    await refuse(Buffer.concat([stored, Buffer.alloc(200_000)]), "bundle.malformed");
    await refuse(Buffer.concat([stored, Buffer.alloc(200_000, "x")]), "bundle.malformed");
  });
  test("not a bundle, another version, unknown bits", async () => {
    await refuse(Buffer.from("hello"), "bundle.malformed");
    await refuse(gzipSync("hello, this is no bundle at all"), "bundle.malformed");
    const body = plain.subarray(0, -32);
    const version = Buffer.from(body);
    version.writeUInt8(2, 4);
    await refuse(resealed(version), "bundle.malformed");
    const bits = Buffer.from(body);
    bits.writeUInt8(0x81, 5);
    await refuse(resealed(bits), "bundle.malformed");
  });
  test("counts that do not fit the entries", async () => {
    for (const counts of [
      { ...treeCounts, snapshots: 2 },
      { ...treeCounts, snapshots: 4 },
      { ...treeCounts, checkpoints: 0 },
      { ...treeCounts, hasCurrent: false },
    ])
      await refuse(
        resealed(Buffer.concat([encodeHeader(counts), plain.subarray(16, -32)])),
        "bundle.malformed",
        "bundle.altered",
      );
  });
  test("lengths over their limit, before anything is allocated for them", async () => {
    const xml = Buffer.from(plain.subarray(0, -32));
    xml.writeUInt32BE(0xffffffff, 16 + 6);
    await refuse(resealed(xml), "bundle.malformed");
    const name = Buffer.from(plain.subarray(0, -32));
    name.writeUInt16BE(0xffff, 16 + 2);
    await refuse(resealed(name), "bundle.malformed");
  });
  test("text that is not UTF-8", async () => {
    const text = Buffer.from(plain.subarray(0, -32));
    text.writeUInt8(0xff, 16 + 10);
    await refuse(resealed(text), "bundle.malformed");
  });
  test("a bomb ends at its first entry", async () => {
    await refuse(
      gzipSync(Buffer.concat([encodeHeader(treeCounts), Buffer.alloc(64 * 1024 * 1024)])),
      "bundle.malformed",
    );
  });
  test("facts that differ from what was announced", async () => {
    const path = join(directory, "sound");
    await assert.rejects(verifyBundle(path, { treeSha256: "0".repeat(64) }), withCode("bundle.altered"));
    await assert.rejects(verifyBundle(path, { snapshots: 4 }), withCode("bundle.altered"));
  });
  test("a file that is not there is the disk's error, not a statement about the bundle", async () => {
    await assert.rejects(collect(join(directory, "absent")), { code: "ENOENT" });
  });
  test("appended to after it was verified: the next reader sees it", async () => {
    const path = join(directory, "appended");
    await writeBundle({ path, counts: treeCounts, entries: tree });
    await verifyBundle(path);
    await appendFile(path, "x");
    await assert.rejects(collect(path), withCode("bundle.malformed"));
  });
});

describe("tree digest", () => {
  const digest = (entries: BundleEntry[]) => treeSha256(entries);
  test("does not depend on order, nor on the domain's own XML", async () => {
    assert.equal(await digest([...tree].reverse()), await digest(tree));
    assert.equal(await digest([{ ...domain, xml: "<other/>" }, ...tree.slice(1)]), await digest(tree));
  });
  test("depends on every name, parent, current and XML, and on kind", async () => {
    const variants = [
      tree.slice(0, -1),
      [...tree.slice(0, 4), { ...snapshot("k"), xml: checkpoint("k").xml }],
      [domain, snapshot("a"), snapshot("b", "a"), snapshot("c", "a", true), checkpoint("k")],
      [domain, snapshot("a"), snapshot("b", "a", true), snapshot("c", "b"), checkpoint("k")],
      [domain, snapshot("a"), snapshot("b", "a", true), snapshot("c"), checkpoint("k")],
      [domain, snapshot("a"), snapshot("b", "a", true), { ...snapshot("c", "a"), xml: "<x/>" }, checkpoint("k")],
    ];
    const digests = await Promise.all([tree, ...variants].map(digest));
    assert.equal(new Set(digests).size, digests.length);
  });
  test("a normaliser decides what counts as different", async () => {
    const spaced = tree.map((entry) => ({ ...entry, xml: `${entry.xml}\n` }));
    assert.equal(await treeSha256(spaced, (xml) => xml.trim()), await treeSha256(tree, (xml) => xml.trim()));
    assert.notEqual(await treeSha256(spaced), await treeSha256(tree));
  });
  test("a name twice is refused", async () => {
    await assert.rejects(digest([...tree, snapshot("a")]), withCode("snapshot.mismatch"));
  });
});

describe("constant memory", () => {
  /**
   * 16,384 entries of 16 KiB are 256 MiB plain. Holding them would raise the heap or the buffers by at least that; names
   * and digests of 16,384 entries take about 4 MiB. 64 MiB is far above the one and far below the other.
   */
  const growthBytesMax = 64 * 1024 * 1024;

  for (const count of [1_000, snapshotsMax])
    test(`${count} snapshots`, async () => {
      const padding = "0123456789abcdef".repeat(1024);
      async function* many(): AsyncGenerator<BundleEntry> {
        yield domain;
        for (let index = 0; index < count; index += 1)
          yield {
            kind: "snapshot",
            name: `snapshot-${index}`,
            parent: index === 0 ? null : `snapshot-${index - 1}`,
            current: index === count - 1,
            xml: `${index}${padding}`,
          };
      }
      const held = () => {
        const { heapUsed, arrayBuffers } = process.memoryUsage();
        return heapUsed + arrayBuffers;
      };
      const path = join(directory, `many-${count}`);
      collectGarbage();
      const base = held();
      let peak = 0;
      const timer = setInterval(() => {
        collectGarbage();
        peak = Math.max(peak, held() - base);
      }, 100);
      try {
        const facts = await writeBundle({
          path,
          counts: { snapshots: count, checkpoints: 0, hasCurrent: true },
          entries: many(),
        });
        assert.ok(facts.plainBytes > count * 16 * 1024);
        assert.deepEqual(await verifyBundle(path, facts), facts);
        let index = 0;
        for await (const entry of readBundle(path)) {
          if (entry.kind === "domain") continue;
          assert.equal(entry.name, `snapshot-${index}`);
          index += 1;
        }
        assert.equal(index, count);
      } finally {
        clearInterval(timer);
      }
      collectGarbage();
      peak = Math.max(peak, held() - base);
      assert.ok(peak < growthBytesMax, `${peak} bytes were held`);
    });
});
