/** Trees compared, stripped and redefined: what a domain's snapshots must look like before and after. */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import * as fc from "fast-check";
import { connectLibvirt, type LibvirtConnection } from "#libvirt/client";
import { ErrorCode, ErrorDomain, SnapshotCreateFlag, SnapshotDeleteFlag } from "#libvirt/constants";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import type { BundleEntry } from "#protocol/bundle";
import { readBundle } from "#protocol/bundle-reader";
import { writeBundle } from "#protocol/bundle-writer";
import { Fault } from "#protocol/fault";
import { isStripped } from "#shim/moment";
import type { JournalEntry } from "#shim/ports";
import { readMomentHead, withParent } from "#shim/snapshot-xml";
import { completeTree, redefineFrom, stripSnapshots, verifyTree } from "#shim/snapshots";
import { differenceOf, listTree, readBundleTree, readLiveTree, type Tree, treeOf } from "#shim/tree-reader";
import { FakeLibvirtd, Refusal } from "#test/fake/libvirtd";

type Record = { name: string; parent: string | null; xml: string };
const dom: RemoteDomain = { name: "web", uuid: "11111111-2222-3333-4444-555555555555", id: 1 };

const xmlOf = (name: string, parent: string | null) =>
  `<domainsnapshot><name>${name}</name>${parent === null ? "" : `<parent><name>${parent}</name></parent>`}` +
  `<state>running</state><domain/></domainsnapshot>`;

function entryOf(name: string, parent: string | null, current = false): BundleEntry {
  return { kind: "snapshot", name, parent, current, xml: xmlOf(name, parent) };
}

const domain: BundleEntry = { kind: "domain", name: "web", parent: null, current: false, xml: "<domain/>" };

/** What libvirt does with snapshot metadata, as far as these tests go: a parent must exist, a leaf may go. */
class FakeTree {
  readonly records = new Map<string, Record>();
  current: string | null = null;
  readonly calls: string[] = [];

  serve(fake: FakeLibvirtd): void {
    const absent = () => new Refusal(ErrorCode.NO_DOMAIN_SNAPSHOT, ErrorDomain.DOMAIN_SNAPSHOT, "no such snapshot");
    fake.answer(procedures.domainListAllSnapshots, () => {
      const snapshots = [...this.records.values()].map(({ name }) => ({ name, dom }));
      return { snapshots, ret: snapshots.length };
    });
    fake.answer(procedures.domainListAllCheckpoints, () => ({ checkpoints: [], ret: 0 }));
    fake.answer(procedures.domainSnapshotCurrent, () => {
      if (this.current === null) throw absent();
      return { snap: { name: this.current, dom } };
    });
    fake.answer(procedures.domainSnapshotGetXmlDesc, ({ snap }) => {
      const record = this.records.get(snap.name);
      if (record === undefined) throw absent();
      return { xml: record.xml };
    });
    fake.answer(procedures.domainSnapshotDelete, ({ snap, flags }) => {
      assert.equal(flags, SnapshotDeleteFlag.METADATA_ONLY);
      assert.ok(![...this.records.values()].some(({ parent }) => parent === snap.name), `${snap.name} is no leaf`);
      this.calls.push(`delete ${snap.name}`);
      if (this.current === snap.name) this.current = this.records.get(snap.name)?.parent ?? null;
      if (!this.records.delete(snap.name)) throw absent();
      return {};
    });
    fake.answer(procedures.domainSnapshotCreateXml, ({ xmlDesc, flags }) => {
      const { name, parent } = readMomentHead(xmlDesc);
      if (name === "refused") throw new Refusal(ErrorCode.INVALID_ARG, ErrorDomain.DOMAIN_SNAPSHOT, "must use uuid");
      if (parent !== null && !this.records.has(parent))
        throw new Refusal(ErrorCode.INVALID_ARG, ErrorDomain.DOMAIN_SNAPSHOT, `parent ${parent} not found`);
      assert.notEqual(flags & SnapshotCreateFlag.REDEFINE, 0);
      this.calls.push(`redefine ${name}${(flags & SnapshotCreateFlag.CURRENT) === 0 ? "" : " current"}`);
      this.records.set(name, { name, parent, xml: xmlDesc });
      if ((flags & SnapshotCreateFlag.CURRENT) !== 0) this.current = name;
      return { snap: { name, dom } };
    });
  }

  load(entries: readonly BundleEntry[]): void {
    this.records.clear();
    this.calls.length = 0;
    this.current = entries.find(({ current }) => current)?.name ?? null;
    for (const { name, parent, xml } of entries) this.records.set(name, { name, parent, xml });
  }
}

const branching = [
  entryOf("base", null),
  entryOf("web", "base", true),
  entryOf("web-test", "web"),
  entryOf("db", "base"),
  entryOf("db-test", "db"),
];

describe("a tree in libvirt and in a bundle", () => {
  let fake: FakeLibvirtd;
  let libvirt: LibvirtConnection;
  let dir: string;
  let path: string;
  const entries = () => readBundle(path);
  let wanted: Tree;
  const tree = new FakeTree();

  before(async () => {
    fake = await FakeLibvirtd.start();
    tree.serve(fake);
    libvirt = await connectLibvirt({ socketPath: fake.socketPath });
    dir = await mkdtemp(join(tmpdir(), "vmferry-steps-"));
    path = await bundleOf("good", branching);
    wanted = await readBundleTree(entries);
  });
  after(async () => {
    await libvirt.close();
    await fake.stop();
    await rm(dir, { recursive: true });
  });

  async function bundleOf(name: string, entries: BundleEntry[]): Promise<string> {
    const file = join(dir, name);
    const hasCurrent = entries.some(({ current }) => current);
    const counts = { snapshots: entries.length, checkpoints: 0, hasCurrent };
    await writeBundle({ path: file, counts, entries: [domain, ...entries] });
    return file;
  }

  test("the live tree and the bundle's have one digest", async () => {
    tree.load(branching);
    const live = await readLiveTree(libvirt, dom);
    assert.equal(live.treeSha256, wanted.treeSha256);
    assert.equal(live.snapshots, branching.length);
    assert.equal(differenceOf(wanted, live), null);
  });

  test("strip deletes leaves first, one call each; redefine brings all back, parents first, one current", async () => {
    tree.load(branching);
    await stripSnapshots(libvirt, await listTree(libvirt, dom));
    assert.equal(tree.records.size, 0);
    assert.equal(tree.calls.length, branching.length);
    tree.calls.length = 0;
    await redefineFrom(libvirt, dom, entries);
    assert.deepEqual(tree.calls, [
      "redefine base",
      "redefine web current",
      "redefine web-test",
      "redefine db",
      "redefine db-test",
    ]);
    assert.equal((await verifyTree(libvirt, dom, wanted, false)).treeSha256, wanted.treeSha256);
  });

  test("a strip that is repeated passes over what is gone", async () => {
    tree.load(branching);
    const listing = await listTree(libvirt, dom);
    tree.records.delete("db-test");
    await stripSnapshots(libvirt, listing);
    assert.equal(tree.records.size, 0);
  });

  test("from every point of a cut strip the tree is completed, and only what is missing is touched", async () => {
    for (let left = 0; left < branching.length; left += 1) {
      tree.load(branching);
      const listing = await listTree(libvirt, dom);
      await stripSnapshots(libvirt, { ...listing, snapshots: listing.snapshots.slice(left) });
      tree.calls.length = 0;
      const live = await completeTree(libvirt, dom, entries, wanted);
      assert.equal(live.treeSha256, wanted.treeSha256, `${left} left`);
      assert.ok(tree.calls.every((call) => call.startsWith("redefine ")));
    }
    assert.deepEqual(tree.calls.length, 2, "the last one missed one leaf; the current one is set with it");
  });

  test("what somebody added is kept", async () => {
    tree.load([...branching, entryOf("theirs", "web-test", false)]);
    tree.records.delete("db-test");
    const live = await completeTree(libvirt, dom, entries, wanted);
    assert.equal(live.snapshots, branching.length + 1);
  });

  test("a refused record is named with libvirt's own error", async () => {
    tree.load([]);
    const spoilt = await bundleOf("spoilt", [entryOf("base", null), entryOf("refused", "base")]);
    await assert.rejects(
      redefineFrom(libvirt, dom, () => readBundle(spoilt)),
      (error) => {
        assert.ok(error instanceof Fault);
        assert.deepEqual([error.code, error.libvirt?.code], ["snapshot.refused", ErrorCode.INVALID_ARG]);
        assert.match(error.cause_, /"refused".*must use uuid/);
        return true;
      },
    );
  });

  test("a record without its parent, or that is no XML, is snapshot.incomplete", async () => {
    for (const broken of [entryOf("orphan", "nobody"), { ...entryOf("torn", null), xml: "<domainsnapshot><na" }]) {
      tree.load([broken]);
      await assert.rejects(readLiveTree(libvirt, dom), (error) => {
        assert.ok(error instanceof Fault);
        assert.equal(error.code, "snapshot.incomplete");
        assert.match(error.cause_, new RegExp(broken.name));
        return true;
      });
    }
  });
});

describe("differenceOf", () => {
  const changes: [string, BundleEntry[], RegExp | null][] = [
    ["nothing", branching, null],
    [
      "another order",
      [branching[0], branching[3], branching[4], branching[1], branching[2]].flatMap((e) => e ?? []),
      null,
    ],
    ["a missing leaf", branching.slice(0, -1), /"db-test" is missing/],
    [
      "another parent",
      [...branching.slice(0, -1), { ...entryOf("db-test", "db"), parent: "web" }],
      /parent "web" instead of "db"/,
    ],
    [
      "another XML",
      [...branching.slice(0, -1), { ...entryOf("db-test", "db"), xml: "<other/>" }],
      /"db-test" has another XML/,
    ],
    [
      "another current",
      branching.map((entry) => ({ ...entry, current: entry.name === "db" })),
      /"web" is not the current/,
    ],
    ["one more", [...branching, entryOf("more", "db")], /"more" has been added/],
  ];
  for (const [what, live, difference] of changes) {
    test(`sees ${what}`, async () => {
      const found = differenceOf(await treeOf(branching), await treeOf(live));
      if (difference === null) assert.equal(found, null);
      else assert.match(found ?? "", difference);
      // Equal means equal digests, and the other way round.
      assert.equal((await treeOf(branching)).treeSha256 === (await treeOf(live)).treeSha256, found === null);
    });
  }

  test("what was added may be allowed, with what is current because of it; what is missing never is", async () => {
    const moved = branching.map((entry) => ({ ...entry, current: false }));
    const added = [...moved, entryOf("more", "db", true)];
    assert.equal(differenceOf(await treeOf(branching), await treeOf(added), true), null);
    assert.match(differenceOf(await treeOf(branching), await treeOf(added.slice(1)), true) ?? "", /"base" is missing/);
    assert.match(differenceOf(await treeOf(branching), await treeOf(moved), true) ?? "", /not the current/);
  });
});

describe("withParent", () => {
  const record = (parent: string) =>
    `<domainsnapshot>\n  <name>late</name>\n${parent}  <description>a &lt;/name&gt; in words</description>\n` +
    "  <state>running</state>\n  <creationTime>5</creationTime>\n" +
    "  <domain><name>web</name><parent><name>inner</name></parent></domain>\n</domainsnapshot>\n";

  test("gives a parent to one without, and another to one that has one; the domain inside stays", () => {
    for (const parent of ["", "  <parent>\n    <name>old</name>\n  </parent>\n"]) {
      const made = withParent(record(parent), "a&b<c>'\"$1");
      assert.equal(readMomentHead(made ?? "").parent, "a&b<c>'\"$1");
      assert.match(made ?? "", /<domain><name>web<\/name><parent><name>inner<\/name><\/parent><\/domain>/);
      assert.equal(made?.includes("old"), false);
    }
  });

  test("leaves alone what it does not understand", () => {
    const strange = record("")
      .replace("<name>late</name>\n", "")
      .replace("<state>", "<x><name>y</name></x><name>late</name><state>");
    assert.equal(withParent(strange, "base"), null);
  });
});

test("isStripped: from the first deletion until the tree was compared again, however often", () => {
  const milestone = (name: string): JournalEntry => ({ type: "milestone", at: "", commandId: "", name, data: {} });
  const names = fc.array(fc.constantFrom("stripping", "stripped", "redefined", "finishing"));
  fc.assert(
    fc.property(names, (journal) => {
      let stripped = false;
      for (const name of journal) {
        if (name === "stripping") stripped = true;
        if (name === "redefined") stripped = false;
      }
      assert.equal(isStripped(journal.map(milestone)), stripped);
    }),
  );
});
