/**
 * Whatever happens in whatever order, repeated, late and about what is not known: drawn histories of one evacuation with a planner
 * that may say anything, and what must hold after each event of them.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { evacuate } from "#core/evacuation";
import type { EvacuationEvent } from "#core/evacuation-event";
import { massSilence } from "#core/evacuation-limits";
import { newUndo } from "#core/evacuation-new";
import { isEnded } from "#core/evacuation-result";
import { type EvacuationState, evacuationPolicyDefault, evacuationStateSchema } from "#core/evacuation-state";
import { faultCodes } from "#protocol/fault";
import { after, block, born, evacuationId, fault, hostId, move, planOf, startMs, uuid } from "./evacuation-scene.ts";

const domains = 6;
const hosts = 5;
const deadlineMs = 60 * 60_000;

const someDomain = fc.nat(domains);
const someHost = fc.nat(hosts);
const status = fc.constantFrom(
  "completed",
  "completed",
  "completed",
  "completed",
  "rolledBack",
  "refused",
  "stranded",
  "cancelled",
);
/** Which of a domain's migrations is spoken of: the newest, an older one, one that never was. */
const which = fc.constantFrom("newest", "newest", "newest", "older", "unknown");
const code = fc.oneof(
  fc.constantFrom("perform.failed", "domain.busy", "placement.noRoom"),
  fc.constantFrom(...faultCodes),
);

const action = fc.oneof(
  {
    weight: 60,
    arbitrary: fc.record({
      type: fc.constant("look" as const),
      moves: fc.array(fc.tuple(someDomain, someHost, someHost, fc.integer({ min: 0, max: deadlineMs })), {
        maxLength: 8,
      }),
      blocked: fc.array(fc.tuple(someDomain, code), { maxLength: 3 }),
      running: fc.array(fc.tuple(fc.nat(domains * 3), someHost, someHost), { maxLength: 4 }),
      silent: fc.oneof(
        { weight: 3, arbitrary: fc.constant<[number, number][]>([]) },
        { weight: 1, arbitrary: fc.array(fc.tuple(someHost, fc.nat(15 * 60_000)), { maxLength: 3 }) },
      ),
      cordoned: fc.boolean(),
    }),
  },
  { weight: 60, arbitrary: fc.record({ type: fc.constant("end" as const), domain: someDomain, which, status, code }) },
  { weight: 12, arbitrary: fc.record({ type: fc.constant("refuse" as const), domain: someDomain, which, code }) },
  { weight: 4, arbitrary: fc.record({ type: fc.constant("start" as const), domain: someDomain, which }) },
  { weight: 6, arbitrary: fc.record({ type: fc.constant("miss" as const), domain: someDomain, which }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant("gone" as const), domain: someDomain }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant("elsewhere" as const), domain: someDomain, host: someHost }) },
  { weight: 1, arbitrary: fc.record({ type: fc.constant("cancel" as const) }) },
  { weight: 6, arbitrary: fc.record({ type: fc.constant("tick" as const) }) },
  { weight: 12, arbitrary: fc.record({ type: fc.constant("repeat" as const), back: fc.nat(9) }) },
);
type Action = typeof action extends fc.Arbitrary<infer T> ? T : never;

const history = fc.array(fc.tuple(action, fc.oneof(fc.nat(90_000), fc.nat(9 * 60_000))), {
  maxLength: 60,
  size: "max",
});

const policies = fc.record({
  outMax: fc.integer({ min: 1, max: 4 }),
  inMax: fc.integer({ min: 1, max: 4 }),
  fleetMax: fc.integer({ min: 1, max: 6 }),
  networkMax: fc.constantFrom(null, 1, 2),
  attemptsMax: fc.integer({ min: 1, max: 4 }),
  breakerFailures: fc.integer({ min: 1, max: 6 }),
});

/** One history: the evacuation, and what an onlooker knows of it by its effects alone. */
class Story {
  state: EvacuationState;
  now = 0;
  readonly events: EvacuationEvent[] = [];
  readonly open = new Map<string, string>();
  readonly ids = new Map<string, string[]>();
  readonly reached = new Set<string>();

  constructor(state: EvacuationState) {
    this.state = state;
  }

  id(domain: number, wanted: "newest" | "older" | "unknown"): string {
    const known = this.ids.get(uuid(domain)) ?? [];
    const found = wanted === "newest" ? known.at(-1) : wanted === "older" ? known.at(-2) : undefined;
    return found ?? "m_00000000000000000000000000";
  }

  eventOf(action: Action): EvacuationEvent {
    const at = after(this.now);
    switch (action.type) {
      case "look":
        return {
          type: "looked",
          at,
          plan: planOf(
            action.moves.map(([domain, from, to, ms]) => {
              const home = this.state.domains[domain]?.homeId ?? hostId(from);
              return move(domain, to, { fromId: from === 1 ? hostId(from) : home, endMs: ms, wave: from });
            }),
            action.blocked.map(([domain, why]) => block(domain, why)),
          ),
          running: action.running.map(([domain, source, destination], index) => ({
            migrationId: `m_others${index}`,
            domainUuid: uuid(domain),
            sourceId: hostId(source),
            destinationId: hostId(destination),
          })),
          hosts: Array.from({ length: hosts }, (_, index) => ({
            id: hostId(index),
            cordoned: index === 0 && action.cordoned,
            silentSinceMs: action.silent
              .filter(([host]) => host === index)
              .reduce<number | null>((_last, [, ms]) => startMs + this.now - ms, null),
            network: networkOf(hostId(index)),
          })),
        };
      case "end": {
        const { which: wanted, status: how, code: why } = action;
        const moving = this.state.domains.flatMap(({ state }, index) => (state === "moving" ? [index] : []));
        // Mostly one that runs, so that histories come to something.
        const domain = wanted === "newest" ? (moving[action.domain % moving.length] ?? action.domain) : action.domain;
        const migrationId = this.id(domain, wanted);
        return { type: "migrationEnded", at, domainUuid: uuid(domain), migrationId, status: how, fault: fault(why) };
      }
      case "refuse": {
        const migrationId = this.id(action.domain, action.which);
        return {
          type: "migrationRefused",
          at,
          domainUuid: uuid(action.domain),
          migrationId,
          fault: fault(action.code),
        };
      }
      case "start":
        return {
          type: "migrationStarted",
          at,
          domainUuid: uuid(action.domain),
          migrationId: this.id(action.domain, action.which),
        };
      case "miss":
        return {
          type: "migrationMissing",
          at,
          domainUuid: uuid(action.domain),
          migrationId: this.id(action.domain, action.which),
        };
      case "gone":
        return { type: "domainGone", at, domainUuid: uuid(action.domain) };
      case "elsewhere":
        return { type: "domainElsewhere", at, domainUuid: uuid(action.domain), hostId: hostId(action.host) };
      case "cancel":
        return { type: "cancelRequested", at, by: "token t1" };
      case "tick":
        return { type: "ticked", at };
      case "repeat":
        return this.events[this.events.length - 1 - action.back] ?? { type: "ticked", at };
    }
  }

  /** Applies it and looks whether everything holds. */
  apply(event: EvacuationEvent): void {
    const before = frozen(this.state);
    const made = evacuate(before, event);
    assert.deepEqual(
      evacuate(evacuationStateSchema.parse(JSON.parse(JSON.stringify(before))), event),
      made,
      "depends on more than the state's text",
    );
    if (made.state === before) assert.deepEqual(made.effects, [], "effects without a change");
    else assert.equal(made.state.version, before.version + 1);
    if (isEnded(before)) assert.equal(made.state, before, "an ended one changed");
    this.#closes(event);
    for (const effect of made.effects) {
      assert.ok(["startMigration", "cordon", "uncordon", "release"].includes(effect.type), effect.type);
      if (effect.type === "startMigration") this.#starts(effect, before, event);
      if (effect.type === "release") assert.ok(isEnded(made.state) && !isEnded(before));
    }
    for (const effect of made.effects)
      if (effect.type === "startMigration") this.#limits(made.state, event, effect.sourceId, effect.destinationId);
    for (const [index, each] of made.state.domains.entries()) {
      const was = before.domains[index];
      assert.equal(each.domain.uuid, was?.domain.uuid);
      if (was?.state === "moved") assert.equal(each.state, "moved");
      assert.ok(each.attempts <= made.state.policy.attemptsMax);
      if (isEnded(made.state)) assert.ok(["moved", "stays", "failed"].includes(each.state), each.state);
      if (each.state === "stays" || each.state === "failed") assert.ok((each.reason?.cause ?? "") !== "", "no reason");
    }
    if (isEnded(made.state)) {
      assert.ok(made.state.domains.every(({ state }) => state !== "moving"));
      this.reached.add(made.state.status);
    }
    if (made.state.held !== null) this.reached.add("held");
    this.state = made.state;
    this.events.push(event);
  }

  /** What the event states as a fact: that migration runs no more. */
  #closes(event: EvacuationEvent): void {
    if (event.type !== "migrationEnded" && event.type !== "migrationRefused" && event.type !== "migrationMissing")
      return;
    const young = event.type === "migrationMissing" && Date.parse(event.at) - this.#decided(event.migrationId) < 60_000;
    if (!young && this.open.get(event.domainUuid) === event.migrationId) this.open.delete(event.domainUuid);
  }

  readonly #at = new Map<string, number>();
  #decided(id: string): number {
    return this.#at.get(id) ?? 0;
  }

  #starts(
    effect: { migrationId: string; domain: { uuid: string }; sourceId: string; destinationId: string },
    before: EvacuationState,
    event: EvacuationEvent,
  ): void {
    const { uuid: id } = effect.domain;
    assert.equal(event.type, "looked");
    if (event.type !== "looked") return;
    assert.equal(this.open.has(id), false, `a second migration of ${id}`);
    assert.equal(before.status, "running");
    assert.notEqual(effect.sourceId, effect.destinationId);
    const known = this.ids.get(id) ?? [];
    assert.ok(!known.includes(effect.migrationId), "an id was used twice");
    this.ids.set(id, [...known, effect.migrationId]);
    this.open.set(id, effect.migrationId);
    this.#at.set(effect.migrationId, Date.parse(event.at));
    const planned = event.plan.moves.some(
      ({ domainUuid, toId, endMs, startMs: from }) =>
        domainUuid === id &&
        toId === effect.destinationId &&
        Date.parse(event.at) + endMs - from <= Date.parse(before.deadlineAt ?? ""),
    );
    assert.ok(planned, "not planned to end in time");
    assert.equal(massSilence(event.hosts, Date.parse(event.at)), null, "started under a mass failure");
    for (const host of [effect.sourceId, effect.destinationId])
      assert.equal(event.hosts.find(({ id: one }) => one === host)?.silentSinceMs, null, "a silent host");
    this.reached.add("started");
    if (known.length > 0) this.reached.add("tried again");
  }

  /** Where one was started: all that runs, by others and by this one, counted from what was seen and what was told. */
  #limits({ policy, domains: now }: EvacuationState, event: EvacuationEvent, from: string, to: string): void {
    if (event.type !== "looked") return;
    const own = now.flatMap(({ state, homeId, destinationId }) =>
      state === "moving" && destinationId !== null ? [{ sourceId: homeId, destinationId }] : [],
    );
    const all = [...event.running, ...own];
    assert.ok(all.length <= policy.fleetMax, "fleet");
    assert.ok(all.filter(({ sourceId }) => sourceId === from).length <= policy.outMax, "out");
    assert.ok(all.filter(({ destinationId }) => destinationId === to).length <= policy.inMax, "in");
    for (const network of [networkOf(from), networkOf(to)]) {
      if (network === null || policy.networkMax === null) continue;
      const touching = all.filter((each) =>
        [each.sourceId, each.destinationId].some((id) => networkOf(id) === network),
      );
      assert.ok(touching.length <= policy.networkMax, `${network}: ${touching.length}`);
    }
  }
}

/** The first two hosts share one network, the third and fourth another; the others name none. */
const networkOf = (id: string): string | null =>
  (["east", "east", "west", "west"] as const)[Number(id.slice(2))] ?? null;

function frozen<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) frozen(inner);
  }
  return value;
}

describe("whatever happens", () => {
  const reached = new Set<string>();

  const run = (fresh: EvacuationState, steps: readonly (readonly [Action, number])[]): void => {
    const story = new Story(fresh);
    for (const [step, ms] of steps) {
      story.now += ms;
      story.apply(story.eventOf(step));
    }
    // Then nothing but what is owed: the deadline passes and what runs ends.
    story.now += deadlineMs;
    story.apply({ type: "ticked", at: after(story.now) });
    for (const each of story.state.domains)
      if (each.state === "moving") {
        const { domain, migrationId } = each;
        const ended = { status: "rolledBack" as const, fault: fault("perform.failed") };
        story.apply({
          type: "migrationEnded",
          at: after(story.now),
          domainUuid: domain.uuid,
          migrationId: migrationId ?? "",
          ...ended,
        });
      }
    assert.ok(isEnded(story.state), `it is ${story.state.status} after its deadline with nothing running`);
    for (const each of story.reached) reached.add(each);
  };

  test("of an evacuation", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: domains }), history, policies, (count, steps, policy) => {
        run(born(count, { deadlineMs, policy: { ...evacuationPolicyDefault, ...policy } }), steps);
      }),
      { numRuns: 500, seed: 5 },
    );
  });

  test("of an undo", () => {
    const of = { ...born(domains), status: "completed" as const };
    const moved = of.domains.map((each, index) => ({
      ...each,
      state: "moved" as const,
      destinationId: hostId(2 + (index % 3)),
    }));
    const places = new Map(moved.map(({ domain, destinationId }) => [domain.uuid, destinationId]));
    const origin = { by: "token t1", rule: null, trigger: null };
    fc.assert(
      fc.property(history, policies, (steps, some) => {
        const policy = { ...evacuationPolicyDefault, ...some };
        const wanted = { id: evacuationId(2), origin, policy, deadlineMs, of: { ...of, domains: moved }, places };
        run(newUndo(wanted, after(0)), steps);
      }),
      { numRuns: 150, seed: 5 },
    );
  });

  test("the histories reached every end, second tries and the brake", () => {
    assert.deepEqual([...reached].sort(), [
      "cancelled",
      "completed",
      "failed",
      "held",
      "partial",
      "started",
      "tried again",
    ]);
  });
});
