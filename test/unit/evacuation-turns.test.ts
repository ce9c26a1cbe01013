/**
 * Many evacuations at once: what a minute costs in loads of evacuations, and that what is remembered between turns never lets two processes start more than the
 * limits allow.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { type EvacuationPolicy, evacuationPolicyDefault } from "#core/evacuation-state";
import { freshEvacuation } from "#functions/evacuation-request";
import { Round } from "#functions/evacuation-round";
import { numbered } from "#test/fake/evacuation-fleet";
import { hostId, type MemoryFleet, memoryFleet } from "#test/fake/memory-fleet";

/** So many hosts with so many domains each, all being emptied to two more. */
async function rack(hosts: number, domains: number, policy: Partial<EvacuationPolicy>): Promise<MemoryFleet> {
  const fleet = await memoryFleet();
  let serial = 0;
  fleet.ports.ids.ulid = () => `01JE000000${String(++serial).padStart(6, "0")}0000000000`;
  for (let index = 1; index <= hosts + 2; index += 1) {
    const count = index <= hosts ? domains : 0;
    const own = Array.from({ length: count }, (_, at) => numbered(index * 10 + at, { memoryKiB: 1024 }));
    await fleet.addHost(index, {}, own);
    fleet.scriptInspections(index, index, {});
  }
  for (let index = 1; index <= hosts; index += 1) {
    const host = await fleet.ports.hosts.byId(hostId(index));
    assert.ok(host);
    const wish = {
      id: `e_${fleet.ports.ids.ulid()}`,
      origin: { by: "test", rule: null, trigger: null },
      policy: { ...evacuationPolicyDefault, ...policy },
      deadlineMs: null,
    };
    const fresh = await freshEvacuation(fleet.ports, host, wish);
    await fleet.ports.evacuations.claim(host.id, fresh.id);
    await fleet.ports.evacuations.create(fresh);
  }
  return fleet;
}

async function minute(fleet: MemoryFleet, hosts: number): Promise<void> {
  fleet.pass(60_000);
  for (let index = 1; index <= hosts + 2; index += 1)
    await fleet.ports.hosts.seen(hostId(index), { at: fleet.ports.clock.now() });
}

describe("evacuations of a whole rack", () => {
  test("a minute of 50 loads each a few times, not each for each", async () => {
    const fleet = await rack(50, 1, {});
    const { evacuations } = fleet.ports;
    const load = evacuations.load.bind(evacuations);
    let loads = 0;
    evacuations.load = (id) => {
      loads += 1;
      return load(id);
    };
    for (let round = 0; round < 3; round += 1) {
      await minute(fleet, 50);
      loads = 0;
      await fleet.evacuations.tick();
      // Two for its own look and two for all the others': the first reading, and the one of the first turn. Each for each were 5,004.
      assert.ok(loads <= 4 * 50, `${loads} loads of 50 evacuations`);
    }
    // Two into each of the two destinations.
    assert.equal((await fleet.ports.migrations.activeMigrations()).length, 4);
  });
});

describe("what a round remembers of others", () => {
  const free = { destinationId: null, migrationId: null, state: "waiting" } as const;

  async function scene() {
    const fleet = await rack(2, 1, {});
    const { evacuations } = fleet.ports;
    const ids = (await evacuations.claims()).map(({ evacuationId }) => evacuationId);
    const [first = "", second = ""] = ids;
    const load = evacuations.load.bind(evacuations);
    const loads: string[] = [];
    evacuations.load = (id) => {
      loads.push(id);
      return load(id);
    };
    /** Commits that its domain moves, or not any more; nothing is created yet, so nothing but this says so. */
    const commit = async (id: string, moves: boolean) => {
      const state = await load(id);
      assert.ok(state);
      const moving = { state: "moving", destinationId: hostId(3), migrationId: "m_1" } as const;
      const domains = state.domains.map((each) => ({ ...each, ...(moves ? moving : free) }));
      const next = { ...state, domains, version: state.version + 1 };
      assert.equal(await evacuations.commit(next), "committed");
      return next;
    };
    return { fleet, first, second, loads, commit, round: () => new Round(fleet.ports) };
  }
  const movesOf = async (round: Round, id: string) =>
    (await round.inTurn(() => round.others(id)))?.flatMap(({ domains }) => domains.map(({ state }) => state));

  test("is not read again as long as nobody else has had the turn, and what it commits itself is known", async () => {
    const { first, second, loads, commit, round } = await scene();
    const one = round();
    assert.deepEqual(await movesOf(one, second), ["waiting"]);
    assert.deepEqual(await movesOf(one, second), ["waiting"]);
    assert.deepEqual(loads, [first]);
    await one.inTurn(async () => one.note(await commit(first, true), one.era));
    assert.deepEqual(await movesOf(one, second), ["moving"]);
    assert.deepEqual(loads, [first]);
  });

  test("is read again when another process has had the turn", async () => {
    const { first, second, commit, round } = await scene();
    const [one, other] = [round(), round()];
    assert.deepEqual(await movesOf(one, second), ["waiting"]);
    await other.inTurn(() => commit(first, true));
    assert.deepEqual(await movesOf(one, second), ["moving"]);
  });

  test("a turn that was long in coming is over so much earlier: it lapses from when it was asked for", async () => {
    const { fleet, round } = await scene();
    const { evacuations } = fleet.ports;
    const takeTurn = evacuations.takeTurn.bind(evacuations);
    evacuations.takeTurn = async (holder, lifeMs) => {
      const taken = await takeTurn(holder, lifeMs);
      fleet.pass(15_000);
      return taken;
    };
    const askedMs = Date.parse(fleet.ports.clock.now());
    const untilMs = await round().inTurn(async (until) => until);
    // A commit takes up to 12 s.
    assert.ok((untilMs ?? 0) - askedMs <= 30_000 - 12_000, `${(untilMs ?? 0) - askedMs} ms`);
  });

  test("a read that was under way while another had the turn is not kept, nor an older version over a newer one", async () => {
    const { fleet, first, second, commit, round } = await scene();
    const [one, other] = [round(), round()];
    await movesOf(one, "nobody's");
    const { era } = one;
    const before = await fleet.ports.evacuations.load(first);
    assert.ok(before);
    await other.inTurn(() => commit(first, true));
    await one.inTurn(async () => {});
    one.note(before, era);
    assert.deepEqual(await movesOf(one, second), ["moving"]);
    one.note(before, one.era);
    assert.deepEqual(await movesOf(one, second), ["moving"]);
  });

  test("a commit of which nobody knows whether it was written is read", async () => {
    const { first, second, commit, round } = await scene();
    const one = round();
    assert.deepEqual(await movesOf(one, second), ["waiting"]);
    const lost = one.inTurn(async () => {
      await commit(first, true);
      throw new Error("the answer was lost");
    });
    await assert.rejects(lost, /lost/);
    assert.deepEqual(await movesOf(one, second), ["moving"]);
  });

  test("its turns come one after the other, and who has none waits for nobody of its own", async () => {
    const { fleet, round } = await scene();
    const one = round();
    const order: string[] = [];
    const work = (name: string) => async () => {
      order.push(`${name} begins`);
      await new Promise((resolve) => setImmediate(resolve));
      order.push(`${name} ends`);
    };
    await Promise.all([one.inTurn(work("a")), one.inTurn(work("b"))]);
    assert.deepEqual(order, ["a begins", "a ends", "b begins", "b ends"]);
    assert.notEqual(await fleet.ports.evacuations.takeTurn("somebody", 60_000), null);
  });
});
