/**
 * Random crossings over the core and the real planner: several undos at once, each for a host of its own, whose domains stand in each other's way. Room is never
 * exceeded at any instant, every one ends, and where brute force knows an order, nearly always all are home in the end.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { evacuate } from "#core/evacuation";
import type { EvacuationEvent, RunningMigration } from "#core/evacuation-event";
import { newEvacuation, newUndo } from "#core/evacuation-new";
import { evacuationPlan, placementPolicyOf, withWaiting } from "#core/evacuation-plan";
import { isEnded } from "#core/evacuation-result";
import { type EvacuationState, evacuationPolicyDefault } from "#core/evacuation-state";
import { orderMoves, plan, type WantedMove } from "#core/placement";
import { type PlacementView, type Verdict, verdictKey } from "#core/placement-view";
import { orderExists } from "#test/fake/plan-referee";
import { randomOf } from "../simulation/evacuation-world.ts";
import { after, fault, hostId, startMs, uuid } from "./evacuation-scene.ts";

const gib = 1_048_576;
const policy = { ...evacuationPolicyDefault, outMax: 4, inMax: 4, fleetMax: 10 };

interface Guest {
  uuid: string;
  sizeGib: number;
  at: string;
  home: string;
}

/** A fleet within its rooms now, and within them when all are home. Null: this seed made none. */
function guestsOf(draw: () => number, hosts: number): Guest[] | null {
  const below = (count: number) => Math.floor(draw() * count);
  const guests = Array.from({ length: 2 + below(5) }, (_, index) => ({
    uuid: uuid(index),
    sizeGib: 2 + below(13),
    at: hostId(below(hosts)),
    home: hostId(below(hosts)),
  }));
  const fits = (place: (guest: Guest) => string) =>
    Array.from({ length: hosts }, (_, index) => hostId(index)).every(
      (id) => guests.filter((guest) => place(guest) === id).reduce((sum, { sizeGib }) => sum + sizeGib, 0) <= 15,
    );
  return fits(({ at }) => at) && fits(({ home }) => home) && guests.some(({ at, home }) => at !== home) ? guests : null;
}

interface Ways {
  /** Of migrations: rolled back. */
  failures: number;
  /** Broken on purpose: who does not know of the others; who does not wait for room. */
  blind: boolean;
  hasty: boolean;
}
const honest: Ways = { failures: 0, blind: false, hasty: false };

class Fleet {
  readonly ways: Ways;
  readonly guests: Guest[];
  readonly ids: string[];
  readonly running = new Map<string, RunningMigration>();
  states: EvacuationState[];
  now = 0;
  stops = 0;

  constructor(guests: Guest[], hosts: number, ways: Ways) {
    this.ways = ways;
    this.guests = guests;
    this.ids = Array.from({ length: hosts }, (_, index) => hostId(index));
    const places = new Map(guests.map(({ uuid: id, at }) => [id, at]));
    this.states = this.ids.flatMap((home, index) => {
      const away = guests.filter((guest) => guest.home === home && guest.at !== home);
      if (away.length === 0) return [];
      const domains = away.map((guest) => ({
        domain: { uuid: guest.uuid, name: guest.uuid.slice(-3) },
        memoryKiB: guest.sizeGib * gib,
        vcpus: 1,
        priority: 50,
      }));
      const common = { origin: { by: "test", rule: null, trigger: null }, policy, deadlineMs: null };
      const host = { id: home, name: `host${index}` };
      const of = newEvacuation({ ...common, id: this.#id(index), host, domains }, after(-1));
      const moved = of.domains.map((each) => ({
        ...each,
        state: "moved" as const,
        destinationId: places.get(each.domain.uuid) ?? null,
      }));
      return [newUndo({ ...common, id: this.#id(index + 50), of: { ...of, domains: moved }, places }, after(0))];
    });
  }

  #id = (index: number) => `e_01KAAAAAAA${String(index).padStart(2, "0")}${"0".repeat(14)}`;

  view(): PlacementView {
    const allowed: Verdict = { allowed: true, atMs: startMs };
    return {
      atMs: startMs + this.now,
      hosts: this.ids.map((id, index) => ({
        id,
        name: `host${index}`,
        labels: {},
        cpus: 64,
        memoryKiB: 16 * gib,
        closed: null,
      })),
      domains: this.guests.map((guest) => ({
        uuid: guest.uuid,
        name: guest.uuid.slice(-3),
        hostId: guest.at,
        memoryKiB: guest.sizeGib * gib,
        vcpus: 1,
        active: true,
        snapshots: 0,
        labels: {},
      })),
      verdicts: new Map(this.guests.flatMap((guest) => this.ids.map((id) => [verdictKey(guest.uuid, id), allowed]))),
      moving: [...this.running.values()],
      networks: new Map(),
    };
  }

  #apply(index: number, event: EvacuationEvent): void {
    const before = this.states[index];
    assert.ok(before);
    const { state, effects } = evacuate(before, event);
    this.states = this.states.with(index, state);
    for (const effect of effects) {
      if (effect.type !== "startMigration") continue;
      const { migrationId, domain, sourceId, destinationId } = effect;
      assert.ok(!this.running.has(migrationId));
      assert.equal(this.guests.find((guest) => guest.uuid === domain.uuid)?.at, sourceId);
      this.running.set(migrationId, { migrationId, domainUuid: domain.uuid, sourceId, destinationId });
      if (destinationId !== state.host.id) this.stops += 1;
      this.#roomIsKept();
    }
  }

  /** Who moves counts on both. */
  #roomIsKept(): void {
    for (const id of this.ids) {
      const coming = [...this.running.values()].filter(({ destinationId }) => destinationId === id);
      const there = this.guests.filter(
        (guest) => guest.at === id || coming.some(({ domainUuid }) => domainUuid === guest.uuid),
      );
      const sum = there.reduce((total, { sizeGib }) => total + sizeGib, 0);
      assert.ok(sum <= 15, `${id} holds ${sum} GiB`);
    }
  }

  /** A minute: some migrations end, each undo hears of them and looks. */
  minute(draw: () => number): void {
    this.now += 60_000;
    const at = after(this.now);
    for (const migration of [...this.running.values()]) {
      if (draw() < 0.4) continue;
      this.running.delete(migration.migrationId);
      const guest = this.guests.find(({ uuid: id }) => id === migration.domainUuid);
      assert.ok(guest);
      const failed = draw() < this.ways.failures;
      if (!failed) guest.at = migration.destinationId;
      const index = this.states.findIndex(({ domains }) => domains.some(({ domain }) => domain.uuid === guest.uuid));
      const { domainUuid, migrationId } = migration;
      const ended = failed
        ? ({ status: "rolledBack", fault: fault("perform.failed") } as const)
        : ({ status: "completed", fault: null } as const);
      this.#apply(index, { type: "migrationEnded", at, domainUuid, migrationId, ...ended });
    }
    for (const [index, state] of this.states.entries()) {
      if (isEnded(state)) continue;
      const crossing: WantedMove[] = this.states.flatMap((other) =>
        this.ways.blind || other === state || other.status !== "running"
          ? []
          : other.domains
              .filter((each) => each.state === "waiting")
              .map((each) => ({ domainUuid: each.domain.uuid, toId: other.host.id })),
      );
      const view = this.view();
      const made = withWaiting(state, evacuationPlan(state, view, plan, crossing), [...this.running.values()]);
      const hosts = this.ids.map((id) => ({ id, cordoned: false, silentSinceMs: null, network: null }));
      const moves = made.moves.map(({ waits, ...move }) =>
        waits === undefined || this.ways.hasty ? move : { ...move, waits },
      );
      const running = [...this.running.values()];
      this.#apply(index, { type: "looked", at, plan: { ...made, moves }, running, hosts });
    }
  }
}

/** Those of so many seeds for which there is an order: how many are all home in the end. */
function run(seeds: number, ways: Ways): { solvable: number; home: number; stops: number } {
  const tally = { solvable: 0, home: 0, stops: 0 };
  for (let seed = 1; seed <= seeds; seed += 1) {
    const draw = randomOf(seed);
    const hosts = 3 + (seed % 2);
    const guests = guestsOf(draw, hosts);
    if (guests === null) continue;
    const fleet = new Fleet(guests, hosts, ways);
    const [first] = fleet.states;
    assert.ok(first);
    const wanted = new Map(guests.filter(({ at, home }) => at !== home).map(({ uuid: id, home }) => [id, home]));
    const own = { ...placementPolicyOf(first), to: null };
    const before = fleet.view();
    const direct = orderMoves(
      before,
      [...wanted].map(([domainUuid, toId]) => ({ domainUuid, toId })),
      own,
    );
    if (direct.blocked.length > 0 && !orderExists(before, wanted, own, 4)) continue;
    tally.solvable += 1;
    for (let minutes = 0; fleet.states.some((state) => !isEnded(state)); minutes += 1) {
      assert.ok(minutes < 24 * 60 + 10, `seed ${seed} does not end`);
      fleet.minute(draw);
    }
    tally.stops += fleet.stops;
    if (guests.every(({ at, home }) => at === home)) tally.home += 1;
  }
  return tally;
}

test("crossing ways home end, keep every room, and bring all home where there is an order", () => {
  const { solvable, home, stops } = run(4_000, honest);
  assert.equal(home, solvable);
  assert.ok(solvable > 1_000 && stops > 50, `${solvable} fleets, ${stops} stops`);
});

test("with migrations that fail they end and keep every room all the same", () => {
  const { solvable, home } = run(2_000, { ...honest, failures: 0.3 });
  assert.ok(home > solvable / 2, `${home} of ${solvable}`);
});

test("the fleets are no easy ones: who does not know of the others leaves some away, who does not wait exceeds a room", () => {
  const { solvable, home } = run(4_000, { ...honest, blind: true });
  assert.ok(home < solvable, `${home} of ${solvable}`);
  assert.throws(() => run(4_000, { ...honest, hasty: true }), /holds \d+ GiB/);
});
