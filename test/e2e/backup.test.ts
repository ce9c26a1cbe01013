/**
 * The table put back from a backup that is older than what has happened since. The hosts are right and the table is wrong: commands of a migration
 * that is long over are sent again to shims that have forgotten it, and nothing of the guest, wherever it runs now, may be touched by them.
 */
import assert from "node:assert/strict";
import { cp, rm } from "node:fs/promises";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import type { CommandKind } from "#protocol/command";
import { type Attempt, commandMark, FailureScene, slowly } from "./failure-scene.ts";
import { eventually, treeOf } from "./world.ts";

describe("the table is put back from a backup", { timeout: 1_200_000 }, () => {
  let scene: FailureScene;
  before(async () => {
    scene = await FailureScene.start();
  });
  after(() => scene?.stop());
  beforeEach(() => scene.ready());

  const table = () => join(scene.world.fleet.dir, "data", "dynamodb");
  const backup = () => join(scene.world.fleet.dir, "backup");

  async function backUp(): Promise<void> {
    await scene.world.fleet.controlPlane?.kill();
    await rm(backup(), { recursive: true, force: true });
    await cp(table(), backup(), { recursive: true });
    await scene.world.fleet.startControlPlane();
  }

  async function restore(): Promise<void> {
    await scene.world.fleet.controlPlane?.stop();
    await rm(table(), { recursive: true });
    await cp(backup(), table(), { recursive: true });
    await scene.world.fleet.startControlPlane();
  }

  /** The guest is where it was and as it was, the old migration has an end, and the next one completes. */
  async function unharmed(attempt: Attempt): Promise<void> {
    const { world } = scene;
    await eventually("the migration of the backup has an end, or says that it is stranded", async () => {
      const { endedAt, status } = await world.migration(attempt.id);
      return endedAt !== null || status === "stranded";
    });
    const migration = await world.migration(attempt.id);
    console.log(`      ${migration.status} ${migration.error?.code ?? ""}: ${migration.error?.cause ?? ""}`);
    await scene.isOn(scene.source, attempt.before);
    assert.equal(scene.guest.witness.boots, 1);
    await scene.nextCompletes();
  }

  test("of before a migration: the hosts tell where the guest is, and it can move on", async () => {
    await backUp();
    const attempt = await scene.migrate();
    await scene.completed(attempt);
    await restore();
    await scene.world.heardOf(scene.guest.name, [scene.source]);
    await scene.isOn(scene.source, attempt.before);
    const drift = await scene.world.fleet.run(["drift"]);
    assert.equal(drift.code, 0, drift.stdout + drift.stderr);
    await scene.nextCompletes();
  });

  test("of within Perform: the guest stays where it has arrived", async () => {
    const attempt = await scene.migrate(slowly);
    await scene.performing(attempt);
    await backUp();
    await scene.hurry();
    await scene.completed(attempt);
    await restore();
    await unharmed(attempt);
  });

  for (const kind of ["stage", "begin", "prepare", "settle"] satisfies CommandKind[])
    test(`of when ${kind} was to be sent: the guest stays where it has arrived`, async () => {
      const host = kind === "begin" ? scene.source : scene.destination;
      const proxy = scene.proxy(host);
      const seen = proxy.stallWhen(commandMark(kind), { direction: "down" });
      const attempt = await scene.migrate();
      await seen;
      await backUp();
      proxy.heal();
      await scene.completed(attempt);
      await restore();
      await unharmed(attempt);
    });

  test("of within Perform, and the guest has gone home since", async () => {
    const attempt = await scene.migrate(slowly);
    await scene.performing(attempt);
    await backUp();
    await scene.hurry();
    await scene.completed(attempt);
    await scene.nextCompletes();
    await restore();
    await unharmed({ ...attempt, before: await treeOf(scene.source, scene.guest.name) });
  });
});
