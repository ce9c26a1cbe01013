/**
 * The control plane of the simulation: as the real loop it loads an evacuation from its text, asks the planner, lets the core decide,
 * stores the text and then dispatches, and may die between any two of these. An onlooker checks each migration when it is created
 * and each evacuation whenever it was looked after.
 */
import assert from "node:assert/strict";
import { evacuate } from "#core/evacuation";
import type { EvacuationEffect, EvacuationEvent, RunningMigration } from "#core/evacuation-event";
import { itemBytesMax, lostStartMs, occupied, runningOf } from "#core/evacuation-limits";
import { newEvacuation, newUndo } from "#core/evacuation-new";
import { evacuationPlan, type Planner, strayed, withWaiting } from "#core/evacuation-plan";
import { isEnded } from "#core/evacuation-result";
import {
  type EvacuationPolicy,
  type EvacuationState,
  evacuationPolicyDefault,
  evacuationStateSchema,
} from "#core/evacuation-state";
import { plan } from "#core/placement";
import type { World } from "./evacuation-world.ts";

export interface Options {
  planner: Planner;
  /** Broken on purpose: looks that do not see the migrations of others; looks that do not see which hosts share a network. */
  blind: boolean;
  blindToNetworks: boolean;
}

export const honest: Options = { planner: plan, blind: false, blindToNetworks: false };
const origin = { by: "token t1", rule: null, trigger: null };

export class ControlPlane {
  readonly world: World;
  readonly options: Options;
  readonly texts = new Map<string, string>();
  readonly policy: EvacuationPolicy;
  /** Migrations that were started, for those who ask whether anything happened. */
  started = 0;
  held = 0;

  constructor(world: World, options: Options = honest) {
    this.world = world;
    this.options = options;
    this.policy = {
      ...evacuationPolicyDefault,
      outMax: 1 + world.below(3),
      inMax: 1 + world.below(3),
      fleetMax: 2 + world.below(5),
      attemptsMax: 2 + world.below(3),
      breakerFailures: 3 + world.below(4),
      networkMax: [null, 1, 2][world.below(3)] ?? null,
    };
  }

  at = (): string => new Date(this.world.nowMs).toISOString();

  /** What the text says, and nothing else; a text is read once. */
  load(id: string): EvacuationState {
    const text = this.texts.get(id) ?? "null";
    const read = this.#read.get(id);
    if (read?.text === text) return read.state;
    const state = evacuationStateSchema.parse(JSON.parse(text));
    this.#read.set(id, { text, state });
    return state;
  }

  readonly #read = new Map<string, { text: string; state: EvacuationState }>();

  all = (): EvacuationState[] => [...this.texts.keys()].map((id) => this.load(id));
  active = (): EvacuationState[] => this.all().filter((state) => !isEnded(state));

  #id = (): string => `e_01KAAAAAAA${String(this.texts.size).padStart(13, "0")}000`;

  empty(hostId: string, deadlineMs: number): string {
    const { id, name } = this.world.host(hostId);
    const domains = [...this.world.domains.values()]
      .filter((domain) => domain.hostId === hostId)
      .map(({ uuid, name: called, memoryKiB, vcpus }) => ({
        domain: { uuid, name: called },
        memoryKiB,
        vcpus,
        priority: 50,
      }));
    const { policy } = this;
    return this.#store(
      newEvacuation({ id: this.#id(), host: { id, name }, origin, policy, deadlineMs, domains }, this.at()),
    );
  }

  undo(id: string, deadlineMs: number): string {
    const places = new Map([...this.world.domains.values()].map(({ uuid, hostId }) => [uuid, hostId]));
    const { policy } = this;
    return this.#store(newUndo({ id: this.#id(), origin, policy, deadlineMs, of: this.load(id), places }, this.at()));
  }

  #store(state: EvacuationState): string {
    const text = JSON.stringify(state);
    assert.ok(text.length <= itemBytesMax);
    this.texts.set(state.id, text);
    return state.id;
  }

  cancel(id: string): void {
    this.#apply(id, { type: "cancelRequested", at: this.at(), by: "token t2" });
  }

  /** One round of the timer: each active evacuation in its turn, unless the control plane is away. */
  round(): void {
    if (this.world.chance(this.world.weather.away)) return;
    for (const { id } of this.active()) this.#lookAfter(id);
  }

  #lookAfter(id: string): void {
    for (const event of this.#owed(this.load(id))) this.#apply(id, event);
    const state = this.load(id);
    if (isEnded(state)) return;
    const others = this.active().filter((other) => other.id !== id);
    const committed = [...others, state].flatMap(runningOf);
    const emptied = new Set([...others, state].filter(({ kind }) => kind === "evacuate").map(({ host }) => host.id));
    const homeward = state.kind === "evacuate" ? [] : others.filter(({ kind }) => kind !== "evacuate");
    const asked = [state, ...homeward].flatMap(({ domains }) => domains.map(({ domain }) => domain.uuid));
    const view = this.world.view(emptied, committed, new Set(asked));
    for (const event of strayed(state, view, this.at())) this.#apply(id, event);
    const now = this.load(id);
    if (isEnded(now)) return;
    const running: RunningMigration[] = this.options.blind
      ? []
      : [...this.world.running(), ...others.flatMap(runningOf)];
    const crossing = homeward.flatMap(({ status, host, domains }) =>
      domains.flatMap(({ domain, state: each }) =>
        status === "running" && each === "waiting" ? [{ domainUuid: domain.uuid, toId: host.id }] : [],
      ),
    );
    const made = withWaiting(now, evacuationPlan(now, view, this.options.planner, crossing), running);
    const hosts = this.world.seen().map((host) => (this.options.blindToNetworks ? { ...host, network: null } : host));
    this.#apply(id, { type: "looked", at: this.at(), plan: made, running, hosts });
    this.#inTime(this.load(id));
  }

  /** What the migrations of an evacuation say, or that there is none. */
  #owed(state: EvacuationState): EvacuationEvent[] {
    return state.domains.flatMap((each): EvacuationEvent[] => {
      if (each.state !== "moving" || each.migrationId === null) return [];
      const { migrationId } = each;
      const event = { at: this.at(), domainUuid: each.domain.uuid, migrationId };
      const migration = this.world.migrations.get(migrationId);
      if (migration === undefined) return [{ ...event, type: "migrationMissing" }];
      const { status, fault } = migration;
      return status === "running" ? [] : [{ ...event, type: "migrationEnded", status, fault }];
    });
  }

  #apply(id: string, event: EvacuationEvent): void {
    const before = this.load(id);
    const { state, effects } = evacuate(before, event);
    if (state === before) return;
    assert.equal(state.version, before.version + 1);
    this.#store(state);
    if (state.held !== null) this.held += 1;
    for (const effect of effects) {
      if (this.world.chance(this.world.weather.lost)) continue;
      this.#dispatch(state, effect);
      if (this.world.chance(this.world.weather.repeated)) this.#dispatch(state, effect);
    }
  }

  #dispatch(state: EvacuationState, effect: EvacuationEffect): void {
    const { world } = this;
    switch (effect.type) {
      case "cordon":
        world.host(effect.hostId).cordoned = true;
        return;
      case "uncordon":
        world.host(effect.hostId).cordoned = false;
        return;
      case "release":
        assert.ok(isEnded(state));
        return;
      case "startMigration": {
        const known = world.migrations.has(effect.migrationId);
        const fault = world.start(effect, state.id);
        const { migrationId, domain } = effect;
        if (fault !== null)
          this.#apply(state.id, {
            type: "migrationRefused",
            at: this.at(),
            domainUuid: domain.uuid,
            migrationId,
            fault,
          });
        else if (!known) this.#created(state, effect);
      }
    }
  }

  /** Right at this instant? Counted in the world itself, not in what the control plane believes. */
  #created(
    state: EvacuationState,
    { sourceId, destinationId, domain }: Extract<EvacuationEffect, { type: "startMigration" }>,
  ): void {
    const { world } = this;
    this.started += 1;
    const running = world.running();
    const counts = occupied(running, new Map());
    const { policy } = state;
    assert.ok(counts.fleet <= policy.fleetMax, `${counts.fleet} migrations of ${policy.fleetMax} in the fleet`);
    assert.ok((counts.out.get(sourceId) ?? 0) <= policy.outMax, `out of ${sourceId}`);
    assert.ok((counts.in.get(destinationId) ?? 0) <= policy.inMax, `into ${destinationId}`);
    this.#networksAreKept(policy, sourceId, destinationId);
    assert.equal(
      running.filter(({ domainUuid }) => domainUuid === domain.uuid).length,
      1,
      "two migrations of one domain",
    );
    assert.equal(world.host(sourceId).silentSinceMs, null, "a silent source");
    assert.equal(world.host(destinationId).silentSinceMs, null, "a silent destination");
    assert.ok(state.deadlineAt !== null && world.nowMs < Date.parse(state.deadlineAt), "started after the deadline");
    const lately = world.hosts.filter(
      ({ silentSinceMs: since }) => since !== null && world.nowMs - since <= 60_000,
    ).length;
    assert.ok(lately < 2 || lately <= world.hosts.length * 0.25, `started while ${lately} hosts had just gone silent`);
    const room = world.host(destinationId).memoryKiB - policy.memoryReserveKiB;
    const used = [...world.domains.values()].filter(({ hostId }) => hostId === destinationId);
    const coming = running.filter((each) => each.destinationId === destinationId && each.by !== "person");
    // What persons bring there is theirs to weigh.
    if (!running.some(({ by }) => by === "person") && world.weather.persons === 0) {
      const memory = [...used, ...coming.flatMap(({ domainUuid }) => world.domains.get(domainUuid) ?? [])];
      const total = memory.reduce((sum, { memoryKiB }) => sum + memoryKiB, 0);
      assert.ok(
        total <=
          Math.max(
            room,
            used.reduce((sum, { memoryKiB }) => sum + memoryKiB, 0),
          ),
        "no room",
      );
    }
  }

  /** Counted host by host, not by the core's own way of counting. */
  #networksAreKept({ networkMax }: EvacuationPolicy, sourceId: string, destinationId: string): void {
    const { world } = this;
    if (networkMax === null) return;
    for (const network of new Set([world.host(sourceId).network, world.host(destinationId).network])) {
      if (network === null) continue;
      const touching = world
        .running()
        .filter((each) => [each.sourceId, each.destinationId].some((id) => world.host(id).network === network));
      assert.ok(touching.length <= networkMax, `${touching.length} migrations touch ${network}, of ${networkMax}`);
    }
  }

  /** Past its deadline it has ended as soon as nothing of it runs: looked after just now, there is no excuse. */
  #inTime(state: EvacuationState): void {
    const { nowMs } = this.world;
    if (isEnded(state) || state.deadlineAt === null || nowMs < Date.parse(state.deadlineAt)) return;
    const lasting = state.domains.filter(({ state: each, migrationId }) => {
      if (each !== "moving") return false;
      const migration = this.world.migrations.get(migrationId ?? "");
      return migration === undefined
        ? nowMs - Date.parse(state.deadlineAt ?? "") < lostStartMs
        : migration.status === "running";
    });
    assert.ok(lasting.length > 0, `${state.id} goes on after its deadline: ${JSON.stringify(state.domains)}`);
    assert.equal(state.status, "ending");
  }
}

/** Rounds until all have ended. */
export function runToEnd(
  plane: ControlPlane,
  roundMs: number,
  hoursMax: number,
  each: () => void = () => undefined,
): void {
  const untilMs = plane.world.nowMs + hoursMax * 3_600_000;
  while (plane.active().length > 0) {
    assert.ok(plane.world.nowMs < untilMs, `not ended after ${hoursMax} hours`);
    plane.world.pass(roundMs);
    each();
    plane.round();
  }
}

/** What an ended evacuation says is what is. */
export function statesTruth(plane: ControlPlane, state: EvacuationState): void {
  const { world } = plane;
  for (const { domain, state: result, reason, migrationId, destinationId } of state.domains) {
    assert.ok(result === "moved" || result === "stays" || result === "failed", result);
    assert.ok(result === "moved" || (reason?.cause ?? "") !== "", "a result without a reason");
    if (result !== "moved") continue;
    const migration = world.migrations.get(migrationId ?? "");
    assert.equal(migration?.status, "completed");
    assert.equal(migration?.destinationId, destinationId);
    assert.equal(migration?.domainUuid, domain.uuid);
  }
}
