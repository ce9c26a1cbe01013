/**
 * Many at once: four running guests with trees cross between the same two hosts in both directions, and two migrations of one domain
 * are asked for in the same moment.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { bootGuest, destroyGuest, type Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import { takeBranchingTree } from "#lab/snapshot-tree";
import type { SnapshotRecord } from "#lab/virsh";
import { migrationSchema } from "../../functions/http/migration-resource.ts";
import { problemSchema } from "../../functions/http/problem.ts";
import { eventually, refusalOf, treeOf, World } from "./world.ts";

/** Four guests under emulation share two cores. */
const tickMs = 120_000;
const guestsOnEach = 2;

interface Traveller {
  guest: Guest;
  from: Host;
  to: Host;
  tree: SnapshotRecord[];
}

describe("many migrations at once", { timeout: 1_200_000 }, () => {
  let world: World;
  let travellers: Traveller[] = [];

  before(async () => {
    world = await World.start({ hosts: 2 });
    const [h1, h2] = [world.lab.host(0), world.lab.host(1)];
    const settle = async (from: Host, to: Host) => {
      for (let number = 1; number <= guestsOnEach; number += 1) {
        const guest = await bootGuest(from, { name: `${from.name}-guest${number}` });
        travellers.push({ guest, from, to, tree: [] });
        await takeBranchingTree(from, guest);
      }
    };
    await Promise.all([settle(h1, h2), settle(h2, h1)]);
    for (const { guest, from } of travellers) await world.heardOf(guest.name, [from]);
  });
  after(async () => {
    if (world === undefined) return;
    for (const { guest } of travellers) await destroyGuest(guest, world.lab.hosts);
    await world.stop();
  });

  /** All at once, each with its tree, and every one at its other end when this resolves. */
  async function crossAll(): Promise<void> {
    for (const traveller of travellers) {
      traveller.tree = await treeOf(traveller.from, traveller.guest.name);
      traveller.guest.witness.reset();
    }
    const running = travellers.map(({ guest, to }) => world.fleet.start(["migrate", guest.name, "--to", to.name]));
    const exits = await Promise.all(running.map(({ exited }) => exited));
    const said = running.map(({ output }) => output).join("\n");
    assert.deepEqual(
      exits,
      travellers.map(() => 0),
      said,
    );
    for (const { guest, from, to, tree } of travellers) {
      assert.equal(await to.virsh.domstate(guest.name), "running");
      assert.deepEqual(await treeOf(to, guest.name), tree, `${guest.name}: the tree differs`);
      await world.assertNothingOn(from, guest.name);
      await guest.witness.waitForTicks(10, tickMs);
      assert.deepEqual(guest.witness.violations, [], guest.name);
      assert.equal(guest.witness.boots, 1);
      assert.equal(guest.witness.diskErrors, 0);
    }
    for (const host of world.lab.hosts) await world.assertJournalsEmpty(host);
    travellers = travellers.map(({ guest, from, to }) => ({ guest, from: to, to: from, tree: [] }));
  }

  test("four domains, two each way between the same two hosts: all complete with their trees", crossAll);

  test("and all of them back", async () => {
    for (const { guest, from } of travellers) await world.heardOf(guest.name, [from]);
    await crossAll();
  });

  test("two migrations of one domain in the same moment: one completes, the other is domain.busy", async () => {
    const [traveller] = travellers;
    assert.ok(traveller !== undefined);
    const { guest, from, to } = traveller;
    await world.heardOf(guest.name, [from]);
    const tree = await treeOf(from, guest.name);
    const ask = () =>
      world.ask("/v1/migrations", {
        method: "POST",
        headers: { "content-type": "application/json" },
        // Slow enough that the third one below finds the first under way.
        body: JSON.stringify({ domain: guest.uuid, destination: to.name, bandwidthMiBps: 20 }),
      });
    const answers = await Promise.all([ask(), ask()]);
    const ids: string[] = [];
    const refusals: string[] = [];
    for (const answer of answers) {
      const value: unknown = await answer.json();
      if (answer.status === 202) ids.push(migrationSchema.parse(value).id);
      else refusals.push(problemSchema.parse(value).code);
    }
    // A third one, asked for at the command line while the first is under way.
    const late = await world.fleet.run(["migrate", guest.name, "--to", to.name]);
    assert.equal(late.code, 3, late.stderr);
    assert.equal(refusalOf(late).code, "domain.busy");

    // The loser may have been told at once, or have been taken and refused when it did not get the lock.
    const ends: string[] = [];
    for (const id of ids) {
      await eventually(`${id} has ended`, async () => (await world.migration(id)).status !== "running");
      const { status, error } = await world.migration(id);
      ends.push(status);
      if (status !== "completed") refusals.push(error?.code ?? "no code");
    }
    assert.deepEqual(
      ends.filter((status) => status === "completed"),
      ["completed"],
    );
    assert.deepEqual(refusals, ["domain.busy"]);
    assert.equal(await to.virsh.domstate(guest.name), "running");
    assert.deepEqual(await treeOf(to, guest.name), tree);
    await world.assertNothingOn(from, guest.name);
    await guest.witness.waitForTicks(10, tickMs);
    assert.deepEqual(guest.witness.violations, []);
  });
});
