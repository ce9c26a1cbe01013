/**
 * A small fleet of simulated hosts under the real local control plane: shims' own protocol code over real websockets, two hosts emptied at once.
 * What is asserted are outcomes; `npm run fleet` measures, and with --crash kills the control plane in the middle.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { Fleet, type Limits } from "#test/fleet/fleet";
import { verdict } from "#test/fleet/referee";

const limits: Limits = { outMax: 2, inMax: 2, fleetMax: 4 };
/** Patience on a machine that does other things as well. */
const endMsMax = 120_000;

describe("a fleet of simulated hosts", { timeout: 240_000 }, () => {
  let fleet: Fleet;
  before(async () => {
    fleet = await Fleet.start({ hosts: 20, domains: 100, processes: 2, seed: 5, timerMs: 2_000 });
  });
  after(async () => fleet?.end());

  test("two hosts are emptied at once within the limits, and every guest lives on exactly one host", async () => {
    const storm = await fleet.storm();
    assert.equal(storm.hosts, 20);
    await fleet.settled();
    const ids = await fleet.evacuate(fleet.chosen(2), limits);
    const evacuations = await fleet.evacuationsEnded(ids, endMsMax);
    await fleet.settled();
    const [looks, inventory] = await Promise.all([fleet.pool.look(), fleet.inventory()]);
    assert.deepEqual(verdict({ layout: fleet.layout, looks, inventory, evacuations, limits }), []);
    assert.deepEqual(
      evacuations.map(({ status }) => status),
      ["completed", "completed"],
      JSON.stringify(evacuations, null, 1),
    );
    const moved = evacuations.flatMap(({ domains }) => domains.filter(({ state }) => state === "moved"));
    assert.equal(moved.length, 10);
  });
});
