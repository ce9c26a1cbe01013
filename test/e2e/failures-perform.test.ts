/**
 * What goes wrong while the guest's memory moves: QEMU, either libvirtd or either shim dies, or a person changes their mind.
 * The guest ends running on exactly one host, with its tree; no tick is lost or doubled on the way.
 *
 * Perform is slowed to 1 MiB/s, so whatever is done to it is done in its middle. The full table of kills (every process, every
 * step, source and destination) is not here: this proves that none of these leaves a migration stuck or a guest twice.
 *
 * Not here either: a destination that stays away before Perform is given up by the timer after ten minutes (stepMsMax), which
 * cannot be configured; test/unit/transition.test.ts holds that rule for every step ("ticked(overdue, hosts away)").
 */
import assert from "node:assert/strict";
import { after, before, beforeEach, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Host } from "#lab/host";
import { type Attempt, commandMark, FailureScene, slowly } from "./failure-scene.ts";
import { eventually } from "./world.ts";

/** How long a daemon is down before it is started again: systemd's default is 0.1 s, an operator needs longer. */
const daemonDownMs = 3_000;

describe("failures during Perform", { timeout: 900_000 }, () => {
  let scene: FailureScene;
  before(async () => {
    scene = await FailureScene.start();
  });
  after(() => scene?.stop());
  beforeEach(() => scene.ready());

  async function midway(): Promise<Attempt> {
    const attempt = await scene.migrate(slowly);
    await scene.performing(attempt);
    return attempt;
  }

  async function killDaemon(host: Host): Promise<void> {
    await host.kill9();
    await sleep(daemonDownMs);
    await host.start();
  }

  /** The functions may call either outcome right; what may not be is a guest twice, nowhere, or a migration without an end. */
  async function endsSomewhere(attempt: Attempt): Promise<void> {
    const exit = await scene.exitOf(attempt);
    if (exit === 0) await scene.arrived(attempt);
    else await scene.rolledBack(attempt, { exit: 1, status: "rolledBack", code: ["perform.failed", "source.lost"] });
  }

  test("the destination's QEMU is killed: rolled back", async () => {
    const attempt = await midway();
    assert.equal(await scene.destination.killQemu(scene.guest.name), 1);
    await scene.rolledBack(attempt, {
      exit: 1,
      status: "rolledBack",
      code: ["perform.failed", "destination.lost"],
    });
    await scene.nextCompletes();
  });

  test("the destination's libvirtd is killed and started again: destination.lost, rolled back", async () => {
    const attempt = await midway();
    await killDaemon(scene.destination);
    await scene.rolledBack(attempt, { exit: 1, status: "rolledBack", code: "destination.lost" });
    await scene.nextCompletes();
  });

  test("the source's libvirtd is killed and started again: it ends, the guest runs once", async () => {
    const attempt = await midway();
    await killDaemon(scene.source);
    await endsSomewhere(attempt);
    await scene.nextCompletes();
  });

  test("a person cancels: cancelled, the guest stays", async () => {
    const attempt = await midway();
    const cancelled = await scene.world.fleet.run(["migration", "cancel", attempt.id]);
    assert.equal(cancelled.code, 0, cancelled.stderr);
    await scene.rolledBack(attempt, { exit: 1, status: "cancelled", code: "migration.cancelled" });
    await scene.nextCompletes();
  });

  test("a cancel that comes too late says so, and the migration completes", async () => {
    const settling = scene.proxy(scene.destination).stallWhen(commandMark("settle"), { direction: "down" });
    const attempt = await scene.migrate();
    await settling;
    const late = await scene.world.fleet.run(["migration", "cancel", attempt.id]);
    assert.equal(late.code, 1);
    assert.match(late.stdout, new RegExp(`^too late: ${scene.destination.name} has stated that it runs `));
    scene.proxy(scene.destination).heal();
    await scene.completed(attempt);
    const ended = await scene.world.fleet.run(["migration", "cancel", attempt.id]);
    assert.equal(ended.code, 1);
    assert.match(ended.stdout, /^too late: /);
  });

  test("the source's shim is killed while the destination stages, and started again: completes", async () => {
    const { source, destination, world } = scene;
    const staging = scene.proxy(destination).stallWhen(commandMark("stage"), { direction: "down" });
    const attempt = await scene.migrate();
    await staging;
    await world.fleet.shim(source).kill();
    await world.fleet.startShim(source);
    scene.proxy(destination).heal();
    await scene.completed(attempt);
  });

  test("the source's shim is killed and started again: it ends, the guest runs once", async () => {
    const attempt = await midway();
    const { source, world } = scene;
    await world.fleet.shim(source).kill();
    await world.fleet.startShim(source);
    await endsSomewhere(attempt);
    await scene.nextCompletes();
  });

  test("the destination's shim is killed and started again: rolled back", async () => {
    const attempt = await midway();
    const { destination, guest, world } = scene;
    await world.fleet.shim(destination).kill();
    // libvirt ends the incoming copy as soon as the connection that it came on is gone.
    await eventually("the incoming copy is gone", async () => (await destination.qemus(guest.name)).length === 0);
    await world.fleet.startShim(destination);
    await scene.rolledBack(attempt, {
      exit: 1,
      status: "rolledBack",
      code: ["perform.failed", "destination.lost"],
    });
    await scene.nextCompletes();
  });
});
