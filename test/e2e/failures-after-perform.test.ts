/**
 * What goes wrong when the memory is over there and the guest stands still until somebody knows: the instants in which a guest
 * could be run twice or lost. Whatever dies, the guest waits for a statement, and then runs on exactly one host.
 */
import assert from "node:assert/strict";
import { after, before, beforeEach, describe, test } from "node:test";
import { commandMark, FailureScene, slowly } from "./failure-scene.ts";
import { eventually } from "./world.ts";

describe("failures after Perform", { timeout: 900_000 }, () => {
  let scene: FailureScene;
  before(async () => {
    scene = await FailureScene.start();
  });
  after(() => scene?.stop());
  beforeEach(() => scene.ready());

  /**
   * The shims lose each other while memory flows, so the functions relay; holds that command of theirs on its way. What is sent
   * with it arrives when the returned function is called.
   */
  async function heldAt(side: "source" | "destination", kind: "finish" | "confirm" | "settle") {
    const proxy = scene.proxy(scene[side]);
    const held = proxy.stallWhen(commandMark(kind), { direction: "down" });
    const attempt = await scene.relayed();
    await scene.hurry();
    await held;
    return { attempt, release: () => proxy.heal() };
  }

  /** Neither copy of the guest runs: no tick comes, and the source's is paused. */
  async function assertWaiting(): Promise<void> {
    const { source, destination, guest } = scene;
    assert.equal(await source.virsh.domstate(guest.name), "paused");
    assert.notEqual(await destination.virsh.domstate(guest.name), "running");
  }

  for (const { side, kind } of [
    { side: "source", kind: "perform" },
    { side: "destination", kind: "finish" },
    { side: "source", kind: "confirm" },
  ] as const)
    test(`relayed: the ${side}'s shim is killed when ${kind} has ended and nobody has heard of it: completes`, async () => {
      const { fleet } = scene.world;
      const host = scene[side];
      const given = scene.proxy(host).cutWhen(commandMark(kind), { direction: "down", when: "after" });
      const attempt = await scene.relayed();
      await scene.hurry();
      await given;
      await eventually(`${kind} has ended`, () => scene.hasReported(host, attempt, kind));
      if (kind === "perform") await assertWaiting();
      await fleet.shim(host).kill();
      scene.proxy(host).heal();
      await fleet.startShim(host);
      await scene.completed(attempt);
    });

  test("the functions are away when Perform ends: the shims end it by themselves, and the functions learn so", async () => {
    const attempt = await scene.migrate(slowly);
    await scene.performing(attempt);
    for (const host of scene.world.lab.hosts) scene.proxy(host).stall();
    await scene.hurry();
    await eventually("the guest runs on the destination", async () => {
      const state = await scene.destination.virsh.domstate(scene.guest.name).catch(() => undefined);
      return state === "running" && (await scene.source.virsh.domstate(scene.guest.name)) === undefined;
    });
    for (const host of scene.world.lab.hosts) scene.proxy(host).heal();
    await scene.completed(attempt);
  });

  test("the destination's libvirtd is killed before Finish: it states that nothing runs there, the source goes on", async () => {
    const { attempt, release } = await heldAt("destination", "finish");
    await assertWaiting();
    await scene.destination.kill9();
    await scene.destination.start();
    await assertWaiting();
    release();
    await scene.rolledBack(attempt, { exit: 1, status: "rolledBack", code: ["finish.failed", "destination.lost"] });
    await scene.nextCompletes();
  });

  test("the destination's QEMU is killed before Finish: the source goes on", async () => {
    const { attempt, release } = await heldAt("destination", "finish");
    assert.equal(await scene.destination.killQemu(scene.guest.name), 1);
    await assertWaiting();
    release();
    await scene.rolledBack(attempt, { exit: 1, status: "rolledBack", code: ["finish.failed", "destination.lost"] });
    await scene.nextCompletes();
  });

  test("the source's libvirtd is killed before Finish: it runs on the destination, the source's copy goes", async () => {
    const { attempt, release } = await heldAt("destination", "finish");
    await scene.source.kill9();
    await scene.source.start();
    await assertWaiting();
    release();
    await scene.completed(attempt);
  });

  test("the source's libvirtd is killed before Confirm: the source's copy goes, unharmed the other", async () => {
    const { attempt, release } = await heldAt("source", "confirm");
    assert.equal(await scene.destination.virsh.domstate(scene.guest.name), "running");
    await scene.source.kill9();
    await scene.source.start();
    release();
    await scene.completed(attempt);
  });

  test("the destination's libvirtd is killed before settle: it is settled all the same", async () => {
    const { attempt, release } = await heldAt("destination", "settle");
    await scene.destination.kill9();
    await scene.destination.start();
    release();
    await scene.completed(attempt);
  });
});
