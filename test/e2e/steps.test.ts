/**
 * The steps against two real libvirt hosts and a real guest with a branching tree. virsh, which shares no code with vmferry, is
 * the witness of every tree; the guest's serial port is the witness of every stop.
 *
 * One guest lives through all of it: each failure must leave it on the source with its tree, or the next test fails too.
 */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { bootGuest, destroyGuest, type Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import { type Lab, startLab } from "#lab/lab";
import { copyOf, revertAndSee, type TakenTree, takeBranchingTree } from "#lab/snapshot-tree";
import { procedures } from "#libvirt/procedures";
import { stringParam } from "#libvirt/typed-param";
import type { BundleEntry } from "#protocol/bundle";
import { readBundle, readBundleHeader } from "#protocol/bundle-reader";
import { writeBundle } from "#protocol/bundle-writer";
import { StepFault } from "#shim/step-fault";
import { Crossing, faultFrom, live, offline, required } from "./step-driver.ts";

/** Beside other tests on two cores everything takes longer; nothing here is measured. */
const timeout = 900_000;
const tickMs = 60_000;

describe("the steps of a migration on real hosts", { timeout }, () => {
  let lab: Lab;
  let h1: Host;
  let h2: Host;
  let guest: Guest;
  let taken: TakenTree;
  let crossings = 0;
  const open: Crossing[] = [];

  before(async () => {
    lab = await startLab({ hosts: 2 });
    h1 = lab.host(0);
    h2 = lab.host(1);
    guest = await bootGuest(h1);
    taken = await takeBranchingTree(h1, guest);
  });
  after(async () => {
    if (guest !== undefined) await destroyGuest(guest, [h1, h2]);
    await lab?.stop();
  });

  /** A test that failed half way leaves its staging; the next one must not fail for that. */
  afterEach(async () => {
    for (const crossing of open.splice(0)) await crossing.close();
    for (const host of [h1, h2]) {
      for (const name of await host.virsh.domains())
        if (name !== guest.name || (await otherRuns(host))) await host.virsh.undefine(name);
    }
  });

  async function otherRuns(host: Host) {
    const other = host === h1 ? h2 : h1;
    return (
      (await host.virsh.domstate(guest.name)) === "shut off" && (await other.virsh.domstate(guest.name)) === "running"
    );
  }

  async function crossing(from: Host, to: Host, of: { uuid: string; name: string } = guest, options = live) {
    crossings += 1;
    const made = await Crossing.start({ source: from, destination: to }, of, join(lab.dir, `c${crossings}`), options);
    open.push(made);
    return made;
  }

  /** Tree, XML included, as virsh sees it; siblings in the order of their names. */
  async function treeOn(host: Host, name = guest.name) {
    const tree = await host.virsh.snapshotTree(name);
    return tree.toSorted((one, other) => (one.name < other.name ? -1 : 1));
  }

  /** The source is as it was: runs, counts, has its tree; the destination has nothing. */
  async function assertAsBefore(made: Crossing, before: Awaited<ReturnType<typeof treeOn>>) {
    const { source, destination } = made;
    assert.equal(await source.host.virsh.domstate(guest.name), "running");
    assert.deepEqual(await treeOn(source.host), before);
    assert.deepEqual(await destination.host.virsh.domains(), []);
    assert.deepEqual(await destination.host.qemus(), []);
    await guest.witness.waitForTicks(5, tickMs);
    assert.deepEqual(guest.witness.violations, []);
  }

  test("inspection carries the tree, proves the storage shared and finds no blocker", async () => {
    const made = await crossing(h1, h2);
    const { source, destination } = await made.inspect();
    assert.deepEqual(source.carries, { snapshots: taken.snapshots.length, checkpoints: 0 });
    assert.equal(source.domain.state, "running");
    assert.equal(destination.storageProven, true);
    const serious = [...source.findings, ...destination.findings].filter(({ severity }) => severity !== "note");
    assert.deepEqual(serious, []);
  });

  test("a snapshot taken between export and begin is snapshot.changed, and nothing was touched", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    await made.export();
    await made.stage();
    await h1.virsh.snapshotCreate(guest.name, "meanwhile");
    const fault = await faultFrom(() => made.begin());
    assert.equal(fault.code, "snapshot.changed");
    assert.match(fault.cause_, /meanwhile/);
    assert.deepEqual(made.source.milestones(), []);
    await made.unstage();
    const restored = await made.restore();
    assert.equal(restored.tree.snapshots, before.length + 1);
    await h1.virsh.run(["snapshot-delete", guest.name, "meanwhile"]);
    await assertAsBefore(made, before);
  });

  test("Begin fails: the tree is whole again at once", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    await made.export();
    await made.stage();
    const copy = join(lab.storageDir, "copy.qcow2");
    await h1.virsh.run(["blockcopy", guest.name, "vda", "--dest", copy, "--format", "qcow2", "--transient-job"]);
    const { source } = await made.inspect();
    assert.ok(source.findings.some(({ severity, code }) => severity === "blocker" && code === "domain.blockJob"));
    const fault = await faultFrom(() => made.begin());
    assert.equal(fault.code, "begin.failed");
    assert.match(fault.cause_, /block job/);
    assert.equal(fault.libvirt?.code, 55);
    assert.deepEqual(made.source.milestones(), ["stripping", "stripped", "redefined"]);
    await h1.virsh.run(["blockjob", guest.name, "vda", "--abort"]);
    await rm(copy, { force: true });
    assert.deepEqual(await made.unstage(), { kind: "unstage", removed: true });
    await made.restore();
    await assertAsBefore(made, before);
  });

  test("begin cut in the middle of its strip completes the tree from the bundle when it is repeated", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    await made.export();
    await made.stage();
    // What a shim that died there leaves: a milestone, and two leaves gone.
    const commandId = "m_01HZZZZZZZZZZZZZZZZZZZZZZZ:begin:1";
    const at = new Date().toISOString();
    made.source.journal.push({ type: "milestone", at, commandId, name: "stripping", data: {} });
    for (const leaf of ["db-test", "web-done"]) await h1.virsh.run(["snapshot-delete", guest.name, leaf, "--metadata"]);
    await made.begin(true);
    assert.deepEqual(await treeOn(h1), before);
    await made.unstage();
    // And the same found by the way back.
    made.source.journal.push({ type: "milestone", at, commandId, name: "stripping", data: {} });
    for (const leaf of ["db-test", "db"]) await h1.virsh.run(["snapshot-delete", guest.name, leaf, "--metadata"]);
    assert.equal((await made.restore()).tree.treeSha256, made.bundle?.treeSha256);
    await assertAsBefore(made, before);
  });

  test("a record that libvirt refuses to redefine is snapshot.refused with its name, and is swept", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    const ref = await made.export();
    const path = join(lab.dir, `c${crossings}`, "spoilt");
    async function* spoilt(): AsyncGenerator<BundleEntry> {
      for await (const entry of readBundle(join(lab.dir, `c${crossings}`, ref.sha256)))
        yield entry.name === "db"
          ? { ...entry, xml: entry.xml.replace(guest.uuid, guest.uuid.replace(/^./, "0")) }
          : entry;
    }
    const counts = await readBundleHeader(join(lab.dir, `c${crossings}`, ref.sha256));
    const facts = await writeBundle({ path, counts, entries: spoilt() });
    await made.source.putBundle(path, facts.sha256);
    made.bundle = { ...facts, key: "bundles/spoilt" };
    const fault = await faultFrom(() => made.stage());
    assert.equal(fault.code, "snapshot.refused");
    assert.match(fault.cause_, /"db"/);
    assert.match(fault.libvirt?.message ?? "", /uuid/i);
    assert.equal((await made.unstage()).removed, true);
    await made.restore();
    await assertAsBefore(made, before);
  });

  test("an inactive definition of the same domain on the destination is not overwritten", async () => {
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    await made.export();
    await h2.virsh.define(guest.xml);
    const { destination } = await made.inspect();
    assert.ok(destination.findings.some(({ code }) => code === "destination.defined"));
    assert.equal((await faultFrom(() => made.stage())).code, "destination.defined");
    await h2.virsh.undefine(guest.name);
    await h2.virsh.define(
      guest.xml.replace(
        guest.uuid,
        guest.uuid.replace(/^./, (c) => (c === "1" ? "2" : "1")),
      ),
    );
    const taken = await made.inspect();
    assert.ok(taken.destination.findings.some(({ code }) => code === "destination.nameTaken"));
    assert.equal((await faultFrom(() => made.stage())).code, "destination.nameTaken");
    // Nothing of it is ours: the way back leaves the other domain alone.
    assert.equal((await made.unstage()).removed, false);
    assert.deepEqual(await h2.virsh.domains(), [guest.name]);
    await h2.virsh.undefine(guest.name);
    guest.witness.reset();
    await assertAsBefore(made, before);
  });

  test("Prepare fails: libvirt's words are kept and nothing stays", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    await made.export();
    await made.stage();
    await made.begin();
    // TEST-NET-1: no interface has it, so QEMU cannot listen there.
    made.destination.migrationAddress = "192.0.2.1";
    const fault = await faultFrom(() => made.prepare());
    assert.equal(fault.code, "prepare.failed");
    assert.notEqual(fault.libvirt?.message ?? "", "");
    await made.unstage();
    await made.restore();
    await assertAsBefore(made, before);
  });

  /** The slow speed is kept by libvirt with the domain. */
  async function unhurried() {
    await h1.virsh.migrateSetspeed(guest.name, 8796093022207);
  }

  test("Perform fails when the destination's QEMU is killed: the source runs, the receipt says destroyed", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    const performed = await whilePerforming(made, () => h2.killQemu(guest.name));
    assert.ok(performed instanceof StepFault);
    assert.equal(performed.code, "perform.failed");
    assert.equal(performed.sourceState, "running");
    const finished = await made.finish(true);
    assert.equal(finished.receipt.outcome, "destroyed");
    await made.unstage();
    await made.restore();
    await assertAsBefore(made, before);
  });

  async function whilePerforming(made: Crossing, act: () => Promise<unknown>) {
    await made.export();
    await made.stage();
    await made.begin();
    await made.prepare();
    await made.source.host.virsh.migrateSetspeed(guest.name, 2);
    try {
      const performed = faultFrom(() => made.perform());
      while (made.source.progress.every(({ memory }) => memory.processedBytes === 0)) await sleep(50);
      await act();
      return await performed;
    } finally {
      await unhurried();
    }
  }

  test("abort ends a Perform, and the destination's copy goes by Finish", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    const performed = await whilePerforming(made, async () => assert.equal((await made.abort()).aborted, true));
    assert.ok(performed instanceof StepFault);
    assert.equal(performed.sourceState, "running");
    assert.equal((await made.abort()).aborted, false);
    const finished = await made.finish(true);
    // A destination whose stream breaks ends by itself; whether Finish or the look came first is chance.
    assert.equal(finished.receipt.outcome, "destroyed");
    // I7: the same question later, and the other decision, get the same answer.
    assert.deepEqual((await made.finish(false)).receipt, finished.receipt);
    await made.unstage();
    await made.restore();
    await assertAsBefore(made, before);
  });

  test("the source's connection is lost during Perform: its state is looked up, and the guest goes on", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    const performed = await whilePerforming(made, async () => made.source.drop());
    assert.ok(performed instanceof StepFault);
    assert.equal(performed.code, "perform.failed");
    assert.equal(performed.sourceState, "running");
    assert.equal((await made.finish(true)).receipt.outcome, "destroyed");
    await made.unstage();
    await made.restore();
    await assertAsBefore(made, before);
  });

  test("the destination's connection is lost after Prepare: libvirt ends its copy, the source runs on", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    await made.export();
    await made.stage();
    await made.begin();
    await made.prepare();
    made.destination.drop();
    const performed = await faultFrom(() => made.perform());
    assert.ok(performed instanceof StepFault);
    assert.equal(performed.sourceState, "running");
    const finished = await made.finish(true);
    assert.deepEqual([finished.receipt.outcome, finished.receipt.evidence], ["destroyed", "probe"]);
    await made.unstage();
    await made.restore();
    await assertAsBefore(made, before);
  });

  test("the source's connection is lost after Perform: paused until a receipt, then it goes on", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    await made.export();
    await made.stage();
    await made.begin();
    await made.prepare();
    await made.perform();
    made.source.drop();
    // A repeated Perform, whose answer is lost: it is not called again, the state is stated.
    const repeated = await faultFrom(() => made.perform(true));
    assert.ok(repeated instanceof StepFault);
    assert.equal(repeated.sourceState, "paused");
    assert.equal((await faultFrom(() => made.restore())).retry, "person");
    assert.equal((await made.finish(true)).receipt.outcome, "destroyed");
    assert.deepEqual(await made.confirm(), { kind: "confirm", source: "running" });
    await made.unstage();
    await made.restore();
    await assertAsBefore(made, before);
  });

  test("libvirtd of the source dies between strip and Begin: the tree is completed and the step goes on", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    await made.export();
    await made.stage();
    let killed = false;
    made.source.onMilestone = async (name) => {
      if (name !== "stripped" || killed) return;
      killed = true;
      assert.deepEqual(await h1.virsh.snapshotNames(guest.name), []);
      await h1.kill9();
      await h1.start();
    };
    await made.begin();
    assert.equal(killed, true);
    assert.deepEqual(await treeOn(h1), before);
    await made.unstage();
    await made.restore();
    await assertAsBefore(made, before);
  });

  test("a snapshot taken between Begin and Perform is seen once the job keeps others out, and is kept", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    await made.export();
    await made.stage();
    await made.begin();
    await made.prepare();
    await h1.virsh.snapshotCreate(guest.name, "late");
    const performed = await faultFrom(() => made.perform());
    assert.ok(performed instanceof StepFault);
    assert.equal(performed.code, "snapshot.changed");
    assert.match(performed.cause_, /"late"/);
    assert.equal((await made.finish(true)).receipt.outcome, "destroyed");
    if (performed.sourceState === "paused") await made.confirm();
    await made.unstage();
    assert.equal((await made.restore()).tree.snapshots, before.length + 1);
    await h1.virsh.run(["snapshot-delete", guest.name, "late"]);
    await assertAsBefore(made, before);
  });

  test("libvirtd of the source dies during Perform: the new one resumes the guest, and that is what is reported", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    const performed = await whilePerforming(made, async () => {
      await h1.kill9();
      await h1.start();
    });
    assert.ok(performed instanceof StepFault);
    assert.deepEqual([performed.code, performed.sourceState], ["perform.failed", "running"]);
    assert.equal((await made.finish(true)).receipt.outcome, "destroyed");
    await made.unstage();
    await made.restore();
    await assertAsBefore(made, before);
  });

  test("libvirtd of the destination dies before Finish: the receipt says destroyed and the source is taken back", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    await made.export();
    await made.stage();
    await made.begin();
    await made.prepare();
    await made.perform();
    await h2.kill9();
    const finishing = made.finish(false);
    await sleep(1_000);
    await h2.start();
    const { receipt } = await finishing;
    assert.deepEqual([receipt.outcome, receipt.evidence], ["destroyed", "probe"]);
    assert.deepEqual(await made.confirm(), { kind: "confirm", source: "running" });
    await made.unstage();
    await made.restore();
    await assertAsBefore(made, before);
  });

  test("a whole crossing: tree, current and XML equal, and the guest reverts on the destination", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    const settled = await made.all(true);
    assert.equal(settled.tree.treeSha256, made.bundle?.treeSha256);
    assert.equal(settled.autostart, true);
    assert.deepEqual(await treeOn(h2), before);
    assert.deepEqual(await h1.virsh.domains(), []);
    assert.deepEqual(await h1.qemus(), []);
    await guest.witness.waitForTicks(5, tickMs);
    assert.deepEqual(guest.witness.violations, []);
    const jump = await revertAndSee(h2, guest, "base");
    const base = required(taken.snapshots.find(({ name }) => name === "base"));
    assert.ok(jump.after >= base.tickMin && jump.after <= base.tickMax + 2, `${jump.after} is not base's count`);
    assert.equal(await h2.virsh.snapshotCurrent(guest.name), "base");
    await h2.virsh.run(["autostart", guest.name, "--disable"]);
  });

  test("the answer of Finish is lost: the destination is looked at, the receipt says started, late Confirm cleans up", async () => {
    guest.witness.reset();
    const before = await treeOn(h2);
    const made = await crossing(h2, h1);
    await made.export();
    await made.stage();
    await made.begin();
    await made.prepare();
    const performed = await made.perform();
    // Finish as the step calls it, but nobody hears the answer: the shim died with its intent in the journal.
    const at = new Date().toISOString();
    made.destination.journal.push({
      type: "milestone",
      at,
      commandId: "x",
      name: "finishing",
      data: { cancelled: false },
    });
    const libvirt = await made.destination.connection();
    await libvirt.call(procedures.domainMigrateFinish3Params, {
      params: [stringParam("destination_name", guest.name)],
      cookieIn: await made.source.payload(performed.cookie),
      flags: required(made.began).flags,
      cancelled: false,
    });
    made.destination.drop();
    made.source.drop();
    // Asked to give it up by now, it answers with what was decided first (I7).
    const finished = await made.finish(true, true);
    assert.deepEqual([finished.receipt.outcome, finished.receipt.evidence], ["started", "probe"]);
    assert.equal((await faultFrom(() => made.unstage())).code, "destination.active");
    assert.deepEqual(await made.confirm(), { kind: "confirm", source: "gone" });
    await made.settle();
    assert.deepEqual(await treeOn(h1), before);
    assert.deepEqual(await h2.virsh.domains(), []);
    await guest.witness.waitForTicks(5, tickMs);
    assert.deepEqual(guest.witness.violations, []);
  });

  test("a receipt that says started never ends a source that runs", async () => {
    const made = await crossing(h1, h2);
    await made.export();
    await made.stage();
    await made.begin();
    const receipt = { outcome: "started", evidence: "finish", at: new Date().toISOString() } as const;
    const fault = await faultFrom(() => made.confirm(receipt));
    assert.deepEqual([fault.code, fault.retry], ["confirm.failed", "person"]);
    assert.equal(await h1.virsh.domstate(guest.name), "running");
    await made.unstage();
    await made.restore();
  });

  test("a paused guest stays paused on the way and after", async () => {
    await h1.virsh.run(["suspend", guest.name]);
    const made = await crossing(h1, h2);
    const settled = await made.all();
    assert.equal(settled.state, "paused");
    assert.equal(await h2.virsh.domstate(guest.name), "paused");
    assert.deepEqual(await h1.virsh.domains(), []);
    guest.witness.reset();
    await h2.virsh.run(["resume", guest.name]);
    await guest.witness.waitForTicks(5, tickMs);
    assert.deepEqual(guest.witness.violations, []);
  });

  test("a record without data in the image is a risk on the source and no surprise on the destination", async () => {
    const host = (await h1.virsh.domstate(guest.name)) === undefined ? h2 : h1;
    const base = required((await treeOn(host)).find(({ name }) => name === "base"));
    await host.virsh.snapshotRedefine(
      guest.name,
      copyOf(base.xml, { name: "hollow", parent: "base", secondsLater: 1 }),
    );
    const made = await crossing(host, host === h1 ? h2 : h1);
    const { source, destination } = await made.inspect();
    const serious = [...source.findings, ...destination.findings].filter(({ severity }) => severity !== "note");
    assert.deepEqual(
      serious.map(({ severity, code }) => [severity, code]),
      [["risk", "snapshot.incomplete"]],
    );
    assert.match(serious[0]?.cause ?? "", /1 of 7 snapshots: hollow/);
    await host.virsh.run(["snapshot-delete", guest.name, "hollow", "--metadata"]);
  });

  test("checkpoints, which libvirt loses silently, cross with a running guest whose XML is over a megabyte", async () => {
    const blocks = Array.from({ length: 1024 }, () => `<block>${randomBytes(512).toString("hex")}</block>`);
    const metadata = `<big xmlns="urn:vmferry:test">${blocks.join("")}</big>`;
    const big = await bootGuest(h1, { name: "big", metadata });
    try {
      const checkpoint = (host: Host, name: string) =>
        host.virsh.run(["checkpoint-create-as", big.name, name, "--diskspec", "vda,checkpoint=bitmap"]);
      const dump = (host: Host, name: string) =>
        host.virsh.run(["checkpoint-dumpxml", big.name, name, "--security-info"]);
      for (const name of ["first", "second"]) await checkpoint(h1, name);
      const before = [await dump(h1, "first"), await dump(h1, "second")];
      const made = await crossing(h1, h2, big);
      assert.equal((await made.inspect()).source.carries.checkpoints, 2);
      const settled = await made.all();
      assert.equal(settled.tree.checkpoints, 2);
      assert.ok(required(made.performed).cookie.bytes > 1_000_000, "cookie C carries the persistent XML");
      assert.deepEqual([await dump(h2, "first"), await dump(h2, "second")], before);
      assert.equal(await h1.virsh.domstate(big.name), undefined);
      // The bitmaps came with the image: libvirt can measure from one, and make the next.
      assert.match(await h2.virsh.run(["checkpoint-dumpxml", big.name, "second", "--size"]), /size='\d+'/);
      await checkpoint(h2, "third");
      await big.witness.waitForTicks(5, tickMs);
      assert.deepEqual(big.witness.violations, []);
    } finally {
      await destroyGuest(big, [h1, h2]);
    }
  });

  test("a domain that is shut off crosses with its snapshots and a megabyte of metadata", async () => {
    // Hard to compress, so that the cookies and the XML are as big on the way as in memory.
    const blocks = Array.from({ length: 1024 }, () => `<block>${randomBytes(512).toString("hex")}</block>`);
    const metadata = `<big xmlns="urn:vmferry:test">${blocks.join("")}</big>`;
    const still = await bootGuest(h1, { name: "still", inactive: true, metadata });
    try {
      for (const name of ["one", "two"]) await h1.virsh.snapshotCreate(still.name, name);
      const before = await treeOn(h1, still.name);
      const made = await crossing(h1, h2, still, offline);
      const inspected = await made.inspect();
      assert.deepEqual(
        inspected.destination.findings.filter(({ severity }) => severity === "blocker"),
        [],
      );
      const settled = await made.all();
      assert.equal(settled.state, "shutoff");
      assert.ok(required(made.began).xml.bytes > 1_000_000);
      assert.deepEqual(await treeOn(h2, still.name), before);
      assert.equal(await h1.virsh.domstate(still.name), undefined);
      assert.equal(await h2.virsh.snapshotCurrent(still.name), "two");
    } finally {
      await destroyGuest(still, [h1, h2]);
    }
  });
});
