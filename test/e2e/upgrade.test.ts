/**
 * A shim is asked to end (SIGTERM, as an upgrade in place does) while a migration is under way: it carries on what it has
 * begun until libvirt holds nothing of it any more, ends by itself, and the next process does what is left.
 */
import assert from "node:assert/strict";
import { after, before, beforeEach, describe, test } from "node:test";
import { FailureScene, slowly } from "./failure-scene.ts";
import { eventually } from "./world.ts";

describe("an upgrade in place", { timeout: 900_000 }, () => {
  let scene: FailureScene;
  before(async () => {
    scene = await FailureScene.start();
  });
  after(() => scene?.stop());
  beforeEach(() => scene.ready());

  for (const sides of [["source"], ["destination"], ["source", "destination"]] as const)
    test(`of the ${sides.join(" and the ")} during Perform: finished first, and nothing is lost`, async () => {
      const { fleet } = scene.world;
      const attempt = await scene.migrate(slowly);
      await scene.performing(attempt);
      const hosts = sides.map((side) => scene[side]);
      const ending = hosts.map((host) => fleet.shim(host).kill("SIGTERM"));
      for (const host of hosts) await fleet.shim(host).says(new RegExp(`waiting for ${attempt.id}`));
      assert.equal(await scene.source.virsh.domstate(scene.guest.name), "running");
      await scene.hurry();
      // 0: it has ended by itself, and so by its own order.
      assert.deepEqual(
        await Promise.all(ending),
        hosts.map(() => 0),
      );
      await eventually("the guest runs on the destination", async () => {
        return (await scene.destination.virsh.domstate(scene.guest.name).catch(() => undefined)) === "running";
      });
      for (const host of hosts) await fleet.startShim(host);
      await scene.completed(attempt);
    });

  test("of both, with the functions away since Perform began: the shims end it, and say so when they are back", async () => {
    const { fleet, lab } = scene.world;
    const attempt = await scene.migrate(slowly);
    await scene.performing(attempt);
    for (const host of lab.hosts) scene.proxy(host).stall();
    const ending = lab.hosts.map((host) => fleet.shim(host).kill("SIGTERM"));
    await scene.hurry();
    assert.deepEqual(
      await Promise.all(ending),
      lab.hosts.map(() => 0),
    );
    for (const host of lab.hosts) scene.proxy(host).heal();
    for (const host of lab.hosts) await fleet.startShim(host);
    await scene.completed(attempt);
  });
});
