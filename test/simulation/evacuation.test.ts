/**
 * Whole evacuations in virtual time, over the real core and the real planner: several at once, migrations that fail, hosts that go
 * silent and come back, a control plane that dies between commit and dispatch and knows nothing but what it has stored,
 * persons who do as they please. What must hold is checked at each migration's creation and after each look.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { EvacuationStatus } from "#core/evacuation-state";
import { ControlPlane, honest, type Options, runToEnd, statesTruth } from "./evacuation-run.ts";
import { calm, randomOf, type Weather, World } from "./evacuation-world.ts";

const storm: Weather = {
  failures: 0.25,
  silence: 0.004,
  massSilence: 0.004,
  persons: 0.15,
  lost: 0.1,
  repeated: 0.2,
  away: 0.2,
  unmovable: 0.08,
};
const hour = 3_600_000;

interface Outcome {
  started: number;
  held: number;
  statuses: EvacuationStatus[];
}

/** One fleet: some hosts are emptied, some of it is cancelled, all of it ends; then, in calm weather, everything goes home. */
function simulate(seed: number, weather: Weather, options: Options = honest): Outcome {
  const draw = randomOf(seed + 1_000_000);
  const size = { hosts: 3 + Math.floor(draw() * 8), domains: 8 + Math.floor(draw() * 40) };
  const world = new World(seed, size, { ...weather });
  const plane = new ControlPlane(world, options);
  const count = 1 + Math.floor(draw() * Math.min(3, size.hosts - 2));
  const ids = world.hosts.slice(0, count).map(({ id }) => plane.empty(id, (0.5 + draw() * 3) * hour));
  const cancelAt = draw() < 0.2 ? world.nowMs + draw() * hour : null;
  runToEnd(plane, 15_000 + Math.floor(draw() * 45_000), 12, () => {
    const [first] = ids;
    if (cancelAt !== null && first !== undefined && world.nowMs >= cancelAt) plane.cancel(first);
  });
  for (const state of plane.all()) statesTruth(plane, state);
  const outcome = { started: plane.started, held: plane.held, statuses: plane.all().map(({ status }) => status) };

  world.heal();
  world.pass(hour);
  // One after the other, or all at once, so that some stand in each other's way.
  const rounds = seed % 2 === 0 ? ids.map((id) => [id]) : [ids];
  const undone = rounds.flatMap((round) => {
    const undos = round.map((id) => plane.undo(id, 4 * hour));
    const began = undos.map((undo) => ({ undo, wanted: plane.load(undo).domains.map(({ domain }) => domain.uuid) }));
    runToEnd(plane, 20_000, 6);
    return began;
  });
  for (const { undo, wanted } of undone) {
    const { status, host, domains } = plane.load(undo);
    statesTruth(plane, plane.load(undo));
    assert.equal(world.host(host.id).cordoned, false, "home is closed");
    // Without persons there is the room at home that there was.
    if (weather.persons === 0) {
      assert.equal(status, "completed", JSON.stringify(domains.find(({ state }) => state !== "moved")));
      for (const uuid of wanted) assert.equal(world.domains.get(uuid)?.hostId, host.id);
    }
  }
  return outcome;
}

const seeds = (from: number, count: number): number[] => Array.from({ length: count }, (_, index) => from + index);

function all(from: number, count: number, weather: Weather, options?: Options): Outcome[] {
  return seeds(from, count).map((seed) => {
    try {
      return simulate(seed, weather, options);
    } catch (error) {
      throw new Error(`seed ${seed}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    }
  });
}

describe("whole evacuations", () => {
  test("in calm weather every one empties its host, and everything goes home", () => {
    const outcomes = all(1, 80, calm);
    const statuses = outcomes.flatMap(({ statuses: each }) => each);
    assert.ok(statuses.filter((status) => status === "completed").length > statuses.length / 2, statuses.join(" "));
    assert.ok(outcomes.every(({ held }) => held === 0));
  });

  test("with failures, silence, and a control plane that dies: each ends in time with what is true, and the rest goes home", () => {
    const outcomes = all(1_000, 300, { ...storm, persons: 0 });
    const started = outcomes.reduce((sum, each) => sum + each.started, 0);
    assert.ok(started > 2_000, `only ${started} migrations were started`);
    assert.ok(
      outcomes.some(({ held }) => held > 0),
      "the brake was never needed",
    );
  });

  test("with persons who do as they please beside all that", () => {
    const outcomes = [...all(2_000, 300, storm), ...all(2_500, 10, { ...storm, failures: 0.95 })];
    const statuses = new Set(outcomes.flatMap(({ statuses: each }) => each));
    assert.deepEqual([...statuses].sort(), ["cancelled", "completed", "failed", "partial"]);
  });

  test("the onlooker is no decoration: looks that do not see others' migrations are caught", () => {
    const caught = seeds(3_000, 30).filter((seed) => {
      try {
        simulate(seed, storm, { ...honest, blind: true });
        return false;
      } catch (error) {
        assert.ok(error instanceof assert.AssertionError, String(error));
        return true;
      }
    });
    assert.ok(caught.length > 5, `only ${caught.length} of 30 caught`);
  });

  test("the limit of a network is checked too: looks that do not see which hosts share one are caught by that alone", () => {
    const caught = seeds(3_000, 30).filter((seed) => {
      try {
        simulate(seed, calm, { ...honest, blindToNetworks: true });
        return false;
      } catch (error) {
        assert.match(String(error), /migrations touch rack-/);
        return true;
      }
    });
    assert.ok(caught.length > 5, `only ${caught.length} of 30 caught`);
  });

  test("a seed is the same run again", () => {
    assert.deepEqual(simulate(2_007, storm), simulate(2_007, storm));
  });
});
