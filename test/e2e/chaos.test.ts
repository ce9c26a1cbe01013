/**
 * The nastiest cells of the chaos matrix (`npm run chaos` runs all of them), the control plane gone for good, and the witness itself:
 * a verdict is worth something only if it is another one where something is wrong.
 */
import assert from "node:assert/strict";
import { appendFile, truncate } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { endOf, request } from "../chaos/asking.ts";
import { runCell } from "../chaos/cell.ts";
import { ChaosScene } from "../chaos/chaos-scene.ts";
import { faults } from "../chaos/fault.ts";
import { told } from "../chaos/matrix.ts";
import { moments, performMiBps } from "../chaos/moment.ts";
import { arm } from "../chaos/trigger.ts";
import { type Before, lookBefore, violations } from "../chaos/witness.ts";
import { eventually, treeOf } from "./world.ts";

/** Of a migration whose control plane has come back; each step waits at most for one heartbeat. */
const endMsMax = 120_000;
const tickMs = 60_000;

const cells = [
  ["source shim", "stripped"],
  ["source shim", "performed"],
  ["destination shim", "performed"],
  ["destination shim", "finishing"],
  ["control plane", "performed"],
  ["source libvirtd", "performed"],
  ["destination libvirtd", "finishing"],
  ["peer channel", "performed"],
] as const;

function named<T extends { name: string }>(all: readonly T[], name: string): T {
  const found = all.find((each) => each.name === name);
  assert.ok(found !== undefined, name);
  return found;
}

describe("chaos on real QEMU", { timeout: 1_800_000 }, () => {
  let scene: ChaosScene;
  before(async () => {
    scene = await ChaosScene.start();
  });
  after(() => scene?.stop());

  for (const [fault, moment] of cells)
    test(`${fault} × ${moment}: it ends, nothing is lost, nothing is twice`, async () => {
      const cell = await runCell(scene, named(faults, fault), named(moments, moment));
      assert.deepEqual(cell.violations, [], told(cell));
      assert.ok(cell.struck);
    });

  test("the control plane is killed for good during Perform: the two shims end it; when it is back it learns so", async () => {
    const { fleet, source, destination, guest, world } = scene;
    const seen = await lookBefore(scene);
    const trigger = await arm(
      scene,
      named(moments, "performing"),
      () => void fleet.controlPlane?.child.kill("SIGKILL"),
    );
    const wish = { domain: guest.uuid, destination: destination.name, bandwidthMiBps: performMiBps };
    const id = await request(world, wish);
    await trigger.struck;
    trigger.disarm();
    await fleet.controlPlane?.exited;
    await eventually(
      "it runs on the destination",
      async () => (await destination.virsh.domstate(guest.name)) === "running",
    );
    await eventually("the source has given it up", async () => (await source.virsh.domstate(guest.name)) === undefined);
    assert.deepEqual(await treeOf(destination, guest.name), seen.tree);
    assert.deepEqual(await source.qemus(guest.name), []);
    await guest.witness.waitForTickAfter(seen.tick, tickMs);
    await guest.witness.waitForTicks(10, tickMs);
    assert.deepEqual(guest.witness.violations, []);
    assert.equal(fleet.controlPlane?.alive, false, "nobody has started it again");

    await fleet.startControlPlane();
    const migration = await endOf(world, id, endMsMax);
    assert.equal(migration?.status, "completed");
    assert.equal(migration?.receipt?.outcome, "started");
    scene.turn();
    assert.deepEqual(await violations(scene, destination, seen), []);
  });
});

describe("the outside witness of chaos", { timeout: 900_000 }, () => {
  let scene: ChaosScene;
  let seen: Before;
  before(async () => {
    scene = await ChaosScene.start();
    seen = await lookBefore(scene);
  });
  after(() => scene?.stop());

  const verdict = async () => (await violations(scene, scene.source, seen)).map((line) => line.split(":")[0]);

  test("finds nothing where nothing is wrong", async () => {
    assert.deepEqual(await violations(scene, scene.source, seen), []);
  });

  test("finds a snapshot that is missing, and one that is not current any more", async () => {
    const { source, guest } = scene;
    const lost = seen.tree.find(({ name }) => name === "db-test");
    assert.ok(lost !== undefined);
    await source.virsh.run(["snapshot-delete", guest.name, lost.name, "--metadata"]);
    assert.deepEqual(await verdict(), ["I4 tree"]);
    await source.virsh.snapshotRedefine(guest.name, lost.xml, { current: true });
    assert.deepEqual(await verdict(), ["I4 tree"]);
    const current = seen.tree.find((record) => record.current);
    assert.ok(current !== undefined);
    await source.virsh.snapshotRedefine(guest.name, current.xml, { current: true });
    assert.deepEqual(await verdict(), []);
  });

  test("finds a definition that was left on the other host", async () => {
    const { destination, guest } = scene;
    await destination.virsh.define(guest.xml);
    assert.deepEqual(await verdict(), ["I4 nothing left"]);
    await destination.virsh.undefine(guest.name);
    assert.deepEqual(await verdict(), []);
  });

  test("finds a count that both hosts have printed, and a guest that counts out of order", async () => {
    const { destination, guest } = scene;
    const copy = guest.serialCopyOn(destination);
    await appendFile(copy, `\r\ntick ${guest.witness.current}\r\n`);
    assert.deepEqual(await verdict(), ["I1 serial ports"]);
    await truncate(copy);
    await appendFile(guest.serialLogOn(destination), "\ntick 5\n");
    assert.deepEqual(await verdict(), ["same life"]);
    guest.witness.reset();
    assert.deepEqual(await verdict(), []);
  });

  test("finds a guest that stands still", async () => {
    const { source, guest } = scene;
    await source.virsh.run(["suspend", guest.name]);
    assert.deepEqual(await verdict(), ["runs"]);
    await source.virsh.run(["resume", guest.name]);
    assert.deepEqual(await verdict(), []);
  });

  test("finds an autostart that was lost", async () => {
    const { source, guest } = scene;
    await source.virsh.run(["autostart", guest.name, "--disable"]);
    assert.deepEqual(await verdict(), ["definition"]);
  });
});
