/**
 * The steps against two real libvirt hosts when something fails: each way back, from each point, with a real guest.
 *
 * One guest lives through all of it: each failure must leave it on the source with its tree, or the next test fails too.
 * virsh, which shares no code with vmferry, is the witness of every tree; the guest's serial port of every stop.
 */
import assert from "node:assert/strict";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import type { BundleEntry } from "#protocol/bundle";
import { readBundle, readBundleHeader } from "#protocol/bundle-reader";
import { writeBundle } from "#protocol/bundle-writer";
import { StepFault } from "#shim/step-fault";
import { type Crossing, faultFrom, required } from "./step-driver.ts";
import { StepWorld, timeout } from "./step-world.ts";

describe("the ways back of a migration on real hosts", { timeout }, () => {
  let world: StepWorld;
  let h1: Host;
  let h2: Host;
  let guest: Guest;

  before(async () => {
    world = await StepWorld.start();
    ({ h1, h2, guest } = world);
  });
  after(() => world?.stop());
  afterEach(() => world.sweep());
  const crossing: StepWorld["crossing"] = (...args) => world.crossing(...args);
  const treeOn: StepWorld["treeOn"] = (...args) => world.treeOn(...args);
  const assertAsBefore: StepWorld["assertAsBefore"] = (...args) => world.assertAsBefore(...args);

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
    const copy = join(world.lab.storageDir, "copy.qcow2");
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

  test("a snapshot taken by somebody while the source is stripped keeps its parent and stays current", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const current = required(await h1.virsh.snapshotCurrent(guest.name));
    const made = await crossing(h1, h2);
    await made.export();
    await made.stage();
    made.source.onMilestone = async (name) => {
      if (name === "stripped") await h1.virsh.snapshotCreate(guest.name, "meanwhile");
    };
    const fault = await faultFrom(() => made.begin());
    assert.equal(fault.code, "snapshot.changed");
    assert.match(fault.cause_, /"meanwhile" was added while Begin was called.*kept where its owner put it/);
    const added = required((await treeOn(h1)).find(({ name }) => name === "meanwhile"));
    assert.deepEqual([added.parent, await h1.virsh.snapshotCurrent(guest.name)], [current, "meanwhile"]);
    await made.unstage();
    assert.equal((await made.restore()).tree.snapshots, before.length + 1);
    await h1.virsh.run(["snapshot-delete", guest.name, "meanwhile"]);
    await assertAsBefore(made, before);
  });

  test("a record that libvirt refuses to redefine is snapshot.refused with its name, and is swept", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    const ref = await made.export();
    const path = join(made.dir, "spoilt");
    async function* spoilt(): AsyncGenerator<BundleEntry> {
      for await (const entry of readBundle(join(made.dir, ref.sha256)))
        yield entry.name === "db"
          ? {
              ...entry,
              xml: entry.xml.replace(
                guest.uuid,
                guest.uuid.replace(/^./, (digit) => (digit === "0" ? "1" : "0")),
              ),
            }
          : entry;
    }
    const counts = await readBundleHeader(join(made.dir, ref.sha256));
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
    const performed = await made.perform();
    made.source.drop();
    // A repeated Perform, whose report is lost: its result was kept, so it is told again and nothing is called again.
    const repeated = await made.perform(true);
    assert.deepEqual([repeated.cookie, repeated.ended], [performed.cookie, null]);
    assert.equal(await h1.virsh.domstate(guest.name), "paused");
    assert.equal((await faultFrom(() => made.restore())).retry, "person");
    assert.equal((await made.finish(true)).receipt.outcome, "destroyed");
    assert.equal((await made.confirm()).source, "running");
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
    assert.equal((await made.confirm()).source, "running");
    await made.unstage();
    await made.restore();
    await assertAsBefore(made, before);
  });
});
