/**
 * The steps against two real libvirt hosts and a real guest with a branching tree: the whole way, and each thing that is
 * carried. virsh, which shares no code with vmferry, is the witness of every tree; the serial port of every stop.
 */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, afterEach, before, describe, test } from "node:test";
import { bootGuest, destroyGuest, type Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import { copyOf, revertAndSee } from "#lab/snapshot-tree";
import { procedures } from "#libvirt/procedures";
import { stringParam } from "#libvirt/typed-param";
import { describeDomain } from "#shim/domain-description";
import { faultFrom, offline, required } from "./step-driver.ts";
import { StepWorld, tickMs, timeout } from "./step-world.ts";

describe("the steps of a migration on real hosts", { timeout }, () => {
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

  test("inspection carries the tree, proves the storage shared and finds no blocker", async () => {
    const made = await crossing(h1, h2);
    const { source, destination } = await made.inspect();
    assert.deepEqual(source.carries, { snapshots: world.taken.snapshots.length, checkpoints: 0 });
    assert.equal(source.domain.state, "running");
    assert.equal(destination.storageProven, true);
    const serious = [...source.findings, ...destination.findings].filter(({ severity }) => severity !== "note");
    assert.deepEqual(serious, []);
  });

  test("a whole crossing: tree, current and XML equal, and the guest reverts on the destination", async () => {
    guest.witness.reset();
    const before = await treeOn(h1);
    const made = await crossing(h1, h2);
    const settled = await made.all(true);
    assert.equal(settled.tree.treeSha256, made.bundle?.treeSha256);
    assert.equal(settled.autostart, true);
    assert.equal(settled.changedByOwner, undefined);
    assert.ok(made.destination.milestones().includes("adopted"));
    assert.deepEqual(await treeOn(h2), before);
    assert.deepEqual(await h1.virsh.domains(), []);
    assert.deepEqual(await h1.qemus(), []);
    await guest.witness.waitForTicks(5, tickMs);
    assert.deepEqual(guest.witness.violations, []);
    const jump = await revertAndSee(h2, guest, "base");
    const base = required(world.taken.snapshots.find(({ name }) => name === "base"));
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
      cookieIn: await made.source.payload(required(performed.cookie)),
      flags: required(made.began).flags,
      cancelled: false,
    });
    made.destination.drop();
    made.source.drop();
    // Asked to give it up by now, it answers with what was decided first (I7).
    const finished = await made.finish(true, true);
    assert.deepEqual([finished.receipt.outcome, finished.receipt.evidence], ["started", "probe"]);
    assert.equal((await faultFrom(() => made.unstage())).code, "destination.active");
    assert.equal((await made.confirm()).source, "gone");
    await made.settle();
    assert.deepEqual(await treeOn(h1), before);
    assert.deepEqual(await h2.virsh.domains(), []);
    await guest.witness.waitForTicks(5, tickMs);
    assert.deepEqual(guest.witness.violations, []);
  });

  test("autostart is off on the source from Begin on, and on again after the way back", async () => {
    const { here, there } = await world.home();
    const autostart = async () => /Autostart:\s+enable/.test(await here.virsh.run(["dominfo", guest.name]));
    await here.virsh.run(["autostart", guest.name]);
    try {
      const made = await crossing(here, there);
      const { source } = await made.inspect();
      assert.equal(source.domain.autostart, true);
      await made.export();
      await made.stage();
      await made.begin();
      assert.equal(await autostart(), false);
      await made.unstage();
      // By the journal first, then by the inspection's word alone, as after the journal is lost.
      await made.restore();
      assert.equal(await autostart(), true);
      await here.virsh.run(["autostart", guest.name, "--disable"]);
      made.source.journal.length = 0;
      await made.restore(true);
      assert.equal(await autostart(), true);
    } finally {
      await here.virsh.run(["autostart", guest.name, "--disable"]);
    }
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
    const { here: host, there } = await world.home();
    const base = required((await treeOn(host)).find(({ name }) => name === "base"));
    await host.virsh.snapshotRedefine(
      guest.name,
      copyOf(base.xml, { name: "hollow", parent: "base", secondsLater: 1 }),
    );
    const made = await crossing(host, there);
    const { source, destination } = await made.inspect();
    const serious = [...source.findings, ...destination.findings].filter(({ severity }) => severity !== "note");
    assert.deepEqual(
      serious.map(({ severity, code }) => [severity, code]),
      [["risk", "snapshot.incomplete"]],
    );
    assert.match(serious[0]?.cause ?? "", /1 of 7 snapshots: hollow/);
    await host.virsh.run(["snapshot-delete", guest.name, "hollow", "--metadata"]);
  });

  test("a bundle gives a domain back what it lost, by the manual way; described, the tree is the one virsh sees", async () => {
    const { here: host, there } = await world.home();
    const before = await treeOn(host);
    const made = await crossing(host, there);
    const bundle = await made.export();
    for (const leaf of ["web-done", "web-test", "web"])
      await host.virsh.run(["snapshot-delete", guest.name, leaf, "--metadata"]);
    const restored = await made.source.run<"restoreBundle">({ ...made.head("restoreBundle"), bundle });
    assert.equal(restored.tree.treeSha256, bundle.treeSha256);
    assert.deepEqual(await treeOn(host), before);
    const described = await describeDomain(await made.source.inventory(), guest);
    assert.equal(described.snapshotsTotal, before.length);
    assert.deepEqual(
      described.snapshotTree
        .map(({ name, parent, current }) => ({ name, parent: parent ?? undefined, current }))
        .toSorted((one, other) => (one.name < other.name ? -1 : 1)),
      before.map(({ name, parent, current }) => ({ name, parent, current })),
    );
    const absent = { uuid: guest.uuid.replace(/^./, (c) => (c === "1" ? "2" : "1")), name: "nobody" };
    const command = { ...made.head("restoreBundle"), bundle, domain: absent };
    const fault = await faultFrom(() => made.source.run<"restoreBundle">(command));
    // Not of that domain: refused before libvirt is asked for anything.
    assert.equal(fault.code, "bundle.malformed");
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
      assert.ok(required(required(made.performed).cookie).bytes > 1_000_000, "cookie C carries the persistent XML");
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
