/**
 * The loop of evacuations: look -> decide -> commit -> dispatch, as the runner's for migrations. State first, effects after; an effect that is lost is
 * found by the next tick, and a migration is asked for under an id that the state has fixed, so asking twice makes one. It only ever requests
 * migrations (I8), by the same way and with the same refusals as a person does.
 *
 * Deciding what to start is one evacuation's turn at a time, from reading what runs to the commit: two that decide at once would count the same
 * slots and the same room as free. Hosts are asked before the turn, not within it.
 */
import { Fault, type FaultBody } from "#protocol/fault";
import { evacuationEnded, evacuationStarted } from "./core/chronicle-evacuation.ts";
import { evacuate } from "./core/evacuation.ts";
import type { EvacuationEffect, EvacuationEvent } from "./core/evacuation-event.ts";
import { evacuationPlan, type Planner, type Stray, strayed, withWaiting } from "./core/evacuation-plan.ts";
import { isEnded } from "./core/evacuation-result.ts";
import { type EvacuationState, hasClosedHost } from "./core/evacuation-state.ts";
import { commitAttemptsMax, pageRowsMax, startMsMax } from "./core/limits.ts";
import { plan as planner } from "./core/placement.ts";
import type { Plan } from "./core/placement-view.ts";
import type { HostRef, MigrationState } from "./core/state.ts";
import { type Around, EvacuationDesk, looksAtOnce } from "./evacuation-desk.ts";
import { askPreflights, provenOnly } from "./evacuation-preflights.ts";
import { Round } from "./evacuation-round.ts";
import { inventoryLagMsMax, lookAround, type Seen } from "./placement-look.ts";
import type { HostRecord, Ports } from "./ports.ts";
import { type PreflightMemory, Preflights, preflightAgeMsMax } from "./preflights.ts";
import { busyRefusal, hostRefusals, pairRefusals } from "./refusals.ts";
import { createRunner, type Runner } from "./runner.ts";
import { createTeller } from "./teller.ts";

/** How long a tick asks hosts for one evacuation; the timer comes again in a minute. */
const tickAskMsMax = 15_000;
/** Looks in a row: the second after a host was opened, the third after a conflict with somebody's cancel. */
const looksMax = 3;

export interface EvacuationRunner {
  /** What a fresh evacuation would do now: asks the hosts anew until `untilMs` (Unix time) and changes nothing. */
  plan(fresh: EvacuationState, untilMs: number): Promise<{ plan: Plan; seen: Seen }>;
  /** Stores a fresh one under its id and begins with it, or goes on with it. Throws `Fault` `request.conflict` while another has the host. */
  request(fresh: EvacuationState, untilMs: number): Promise<EvacuationState>;
  /** Nothing more is started; what runs is let end. Throws `Fault` `request.notFound`, `request.conflict` when it has ended. */
  cancel(id: string, by: string): Promise<EvacuationState>;
  /** Looks after every active evacuation once. Returns how many there were. */
  tick(): Promise<number>;
  /** A migration has ended or is stranded: the evacuation that asked for it goes on at once. Never rejects. */
  migrationEnded(migration: MigrationState): Promise<void>;
}

const refOf = ({ id, name, publicKey }: HostRecord): HostRef => ({ id, name, publicKey });

const fault = (code: FaultBody["code"], cause: string, action: string, retry: FaultBody["retry"] = "safe") =>
  new Fault({ code, cause, action, retry });

/** Said by the store or by us, not about the migration: it may have been created, so the tick looks first. */
const saysNothing: ReadonlySet<FaultBody["code"]> = new Set(["store.unreachable", "internal", "request.conflict"]);

export function createEvacuationRunner(
  ports: Ports,
  runner: Pick<Runner, "request">,
  memory: PreflightMemory,
  decide: Planner = planner,
): EvacuationRunner {
  const { clock, evacuations, hosts, migrations, feed, log } = ports;
  const preflights = new Preflights(ports, memory);
  const tell = createTeller(ports);
  const nowMs = () => Date.parse(clock.now());

  /** Applies an event; null when the evacuation does not exist. */
  async function handle(id: string, event: EvacuationEvent): Promise<EvacuationState | null> {
    for (let attempt = 0; attempt < commitAttemptsMax; attempt += 1) {
      const state = await evacuations.load(id);
      if (state === null) return null;
      const next = evacuate(state, event);
      if (next.state === state) {
        await dispatch(state, next.effects);
        return state;
      }
      if ((await evacuations.commit(next.state)) === "conflict") continue;
      await committed(next.state, next.effects);
      return next.state;
    }
    throw fault("request.conflict", `Evacuation ${id} is being changed by others at this very moment.`, "Try again.");
  }

  async function committed(state: EvacuationState, effects: readonly EvacuationEffect[]): Promise<void> {
    log.write("info", "an evacuation went on", {
      evacuation: state.id,
      status: state.status,
      starts: effects.filter(({ type }) => type === "startMigration").length,
    });
    await feed.publish(state.id, { type: "changed", version: state.version }).catch(() => {
      log.write("debug", "nobody was told of a change; watchers read the store", { evacuation: state.id });
    });
    await dispatch(state, effects);
  }

  async function dispatch(state: EvacuationState, effects: readonly EvacuationEffect[]): Promise<void> {
    for (const effect of effects)
      try {
        if (effect.type === "startMigration") await start(state, effect);
        else if (effect.type === "release") await release(state);
        else await hosts.setCordoned(effect.hostId, effect.type === "cordon");
      } catch (error) {
        log.write("warn", "an effect of an evacuation was not dispatched; the timer repeats it", {
          evacuation: state.id,
          effect: effect.type,
          error: String(error),
        });
      }
  }

  /** The timer finds it by its claim: its end is told first. */
  async function release(state: EvacuationState): Promise<void> {
    await tell(evacuationStarted(state));
    await tell(evacuationEnded(state));
    await evacuations.unclaim(state.host.id, state.id);
  }

  type Start = Extract<EvacuationEffect, { type: "startMigration" }>;

  /** Requests the migration as a person would. A refusal is an event; no answer of the store is none. */
  async function start(state: EvacuationState, effect: Start): Promise<void> {
    const { migrationId, domain } = effect;
    try {
      const known = await migrations.load(migrationId);
      if (known !== null) {
        if (known.timeline.length === 0) await runner.request(known);
        return;
      }
      // Decided a while ago by somebody who was slow: by now it may be decided otherwise.
      const newest = await evacuations.load(state.id);
      const mine = newest?.domains.find(
        ({ migrationId: id, state: result }) => id === migrationId && result === "moving",
      );
      if (mine === undefined) return;
      // Cancelled, or stopped otherwise, since this was decided: that is how the try ends.
      if (newest?.stopped != null) throw new Fault(newest.stopped);
      const [source, destination] = await pairOf(effect);
      const refusal = [
        ...pairRefusals(source, destination),
        ...hostRefusals(source, "source", ports),
        ...hostRefusals(destination, "destination", ports),
      ][0];
      const busy = refusal ?? (await busyRefusal(ports, domain, migrationId));
      if (busy !== null) throw new Fault(busy);
      await runner.request({
        id: migrationId,
        domain,
        source: refOf(source),
        destination: refOf(destination),
        options: {
          offline: false,
          unsafe: false,
          autoConverge: false,
          bandwidthMiBps: effect.bandwidthMiBps,
        },
        accept: effect.accept,
        origin: { by: state.origin.by, evacuation: state.id, rule: state.origin.rule },
      });
    } catch (error) {
      if (!(error instanceof Fault) || saysNothing.has(error.code)) throw error;
      const event = { at: clock.now(), domainUuid: domain.uuid, migrationId, fault: error.toBody() };
      await handle(state.id, { type: "migrationRefused", ...event });
    }
  }

  async function pairOf({ sourceId, destinationId }: Start): Promise<[HostRecord, HostRecord]> {
    const [source, destination] = await Promise.all([hosts.byId(sourceId), hosts.byId(destinationId)]);
    const absent = source === null ? sourceId : destinationId;
    if (source === null || destination === null)
      throw fault("host.absent", `The host ${absent} was removed.`, "Look at: vmferry hosts.", "never");
    return [source, destination];
  }

  /** Learns how its migrations ended and which were never created. */
  async function hear(state: EvacuationState): Promise<EvacuationState> {
    let newest = state;
    for (const { state: result, domain, migrationId } of state.domains) {
      if (migrationId === null || (result !== "moving" && result !== "failed")) continue;
      const migration = await migrations.load(migrationId);
      const at = clock.now();
      const about = { at, domainUuid: domain.uuid, migrationId };
      if (migration === null) {
        if (result === "moving") newest = (await handle(state.id, { type: "migrationMissing", ...about })) ?? newest;
      } else if (migration.status !== "running" && (result === "moving" || migration.status === "completed")) {
        const ended = { ...about, status: migration.status, fault: faultOf(migration) };
        newest = (await handle(state.id, { type: "migrationEnded", ...ended })) ?? newest;
      }
    }
    return newest;
  }

  const untold = ({ id }: EvacuationState, error: unknown) =>
    log.write("warn", "an evacuation is not written down yet; the timer repeats it", {
      evacuation: id,
      error: String(error),
    });

  const see = async (state: EvacuationState, { round, asks }: Around): Promise<Seen> =>
    lookAround(ports, {
      state,
      others: await round.others(state.id),
      preflights,
      inventories: round.inventories,
      onlyAllowed: asks === null,
    });

  /** One whole look: what ended, what hosts say (where they may be asked), then what to start. */
  async function look(id: string, around: Around): Promise<EvacuationState | null> {
    const { asks, round } = around;
    const { era } = round;
    const known = await evacuations.load(id);
    if (known === null) return null;
    if (isEnded(known)) {
      // It may have let go of its host since the claims were read: what is done to that host now is somebody else's.
      if (await holdsHost(known)) await dispatch(known, endEffects(known));
      return known;
    }
    // Told where it is stored; a process that died in between is repaired by the tick.
    if (asks !== null) await tell(evacuationStarted(known)).catch((error: unknown) => untold(known, error));
    // Before anything that may fail: whatever cannot be read or asked, the deadline holds.
    const { deadlineAt } = known;
    const isLate = deadlineAt !== null && nowMs() >= Date.parse(deadlineAt);
    let state = await hear(isLate ? ((await handle(id, { type: "ticked", at: clock.now() })) ?? known) : known);
    round.note(state, era);
    // Nothing waits, or no answer is remembered here (a function that never asks): what runs is heard of, and the timer decides. A report is
    // waiting for this, and the turn is others' as well.
    const canStart = memory.pairs.size > 0 && state.domains.some((each) => each.state === "waiting");
    if (asks === null && !canStart) return state;
    for (let looks = 0; looks < looksMax && state.status === "running"; looks += 1) {
      if (asks !== null)
        await askPreflights(preflights, state, () => see(state, around), {
          sinceMs: nowMs() - preflightAgeMsMax,
          untilMs: asks.untilMs,
          planner: decide,
        });
      const turn = await round.inTurn((untilMs) => decideOn(id, around, untilMs));
      if (turn === null) break;
      await (turn.changed ? committed(turn.state, turn.effects) : dispatch(turn.state, turn.effects));
      ({ state } = turn);
      if (turn.effects.some(({ type }) => type === "cordon" || type === "uncordon")) round.inventories.forgetHosts();
      if (!turn.effects.some(({ type }) => type === "uncordon")) break;
    }
    if (state.status !== "running" && !isEnded(state))
      state = (await handle(id, { type: "ticked", at: clock.now() })) ?? state;
    return state;
  }

  const holdsHost = async ({ host, id }: EvacuationState): Promise<boolean> =>
    (await evacuations.claims()).some(({ hostId, evacuationId }) => hostId === host.id && evacuationId === id);

  interface Decided {
    state: EvacuationState;
    effects: EvacuationEffect[];
    changed: boolean;
  }

  /** Within the turn: reads, decides and commits. Null: somebody else wrote meanwhile, or it has ended. */
  async function decideOn(id: string, around: Around, untilMs: number): Promise<Decided | null> {
    const state = await evacuations.load(id);
    if (state === null || isEnded(state)) return null;
    const seen = await see(state, around);
    const at = clock.now();
    const effects: EvacuationEffect[] = [];
    let next = state;
    const apply = (event: EvacuationEvent) => {
      const made = evacuate(next, event);
      next = made.state;
      effects.push(...made.effects);
    };
    // What had just arrived when this began may be shown nowhere yet: nobody has taken it.
    if (state.kind === "evacuate" || Date.parse(at) - Date.parse(state.createdAt) >= inventoryLagMsMax)
      for (const event of await withoutArrivals(next, strayed(next, seen.view, at))) apply(event);
    const whole = evacuationPlan(next, seen.view, decide, seen.crossing);
    const plan = provenOnly(withWaiting(next, whole, seen.running), seen, around.asks !== null);
    apply({ type: "looked", at, plan, running: seen.running, hosts: seen.hosts });
    if (next === state) return { state, effects, changed: false };
    // Several events, one commit: the version is one above what was read.
    // The turn may be another's by now, and what was read with it.
    if (nowMs() >= untilMs) return null;
    const made = { ...next, version: state.version + 1 };
    if ((await evacuations.commit(made)) === "conflict") return null;
    around.round.note(made, around.round.era);
    return { state: made, effects, changed: true };
  }

  /** Without what inventories say of domains that a migration has brought to where they count as being only now: they may not know of it yet. */
  async function withoutArrivals({ domains }: EvacuationState, events: Stray[]): Promise<Stray[]> {
    if (events.length === 0) return events;
    const lateMs = nowMs() - inventoryLagMsMax;
    const { items } = await migrations.list({ limit: pageRowsMax, cursor: null, active: false });
    // The list lags behind as well: what has just ended may be shown as running.
    const came = new Set(
      items
        .filter(({ status, endedAt }) => endedAt === null || (status === "completed" && Date.parse(endedAt) > lateMs))
        .map(({ domain, destination }) => `${domain.uuid} ${destination.id}`),
    );
    const homes = new Map(domains.map(({ domain, homeId }) => [domain.uuid, homeId]));
    return events.filter(({ domainUuid }) => !came.has(`${domainUuid} ${homes.get(domainUuid)}`));
  }

  /** Makes it the one of its host. Whoever holds the host and has ended, or never came to be, is put aside. */
  async function claim({ host, id }: EvacuationState): Promise<void> {
    for (let tries = 0; tries < commitAttemptsMax; tries += 1) {
      const holder = await evacuations.claim(host.id, id);
      if (holder.evacuationId === id) return;
      const state = await evacuations.load(holder.evacuationId);
      const isDead = state === null ? nowMs() - Date.parse(holder.at) > startMsMax : isEnded(state);
      if (!isDead)
        throw fault(
          "request.conflict",
          `Host ${host.name} is under ${holder.evacuationId} already.`,
          `Watch it (vmferry evacuation watch ${holder.evacuationId}) or cancel it first.`,
        );
      if (state !== null) await dispatch(state, endEffects(state));
      else await evacuations.unclaim(host.id, holder.evacuationId);
    }
    throw fault("request.conflict", `Host ${host.name} is being asked for by others at this moment.`, "Try again.");
  }

  /** Of two that wanted the host the other has it: this one has begun nothing, and ends. */
  async function claimedAgain(fresh: EvacuationState): Promise<void> {
    try {
      await claim(fresh);
    } catch (error) {
      await handle(fresh.id, { type: "cancelRequested", at: clock.now(), by: "vmferry, for another has the host" });
      throw error;
    }
  }

  async function lookAfter(
    { hostId, evacuationId, at }: { hostId: string; evacuationId: string; at: string },
    round: Round,
  ): Promise<void> {
    await guarded(evacuationId, async () => {
      const state = await look(evacuationId, { round, asks: { untilMs: nowMs() + tickAskMsMax } });
      // Its request died before it was stored.
      if (state === null && nowMs() - Date.parse(at) > startMsMax) await evacuations.unclaim(hostId, evacuationId);
    });
  }

  async function guarded(id: string, work: () => Promise<unknown>): Promise<void> {
    try {
      await work();
    } catch (error) {
      log.write("error", "an evacuation could not be looked after", { evacuation: id, error: String(error) });
    }
  }

  const guardedLook = (id: string, around: Around) => guarded(id, () => look(id, around));
  // Two, so that whoever only tells of an end, perhaps a host's own message, never asks hosts.
  const asking = new EvacuationDesk(ports, guardedLook);
  const hearing = new EvacuationDesk(ports, guardedLook);

  return {
    async plan(fresh, untilMs) {
      const options = { sinceMs: nowMs(), untilMs, planner: decide };
      const around = { round: new Round(ports), asks: { untilMs } };
      await askPreflights(preflights, fresh, () => see(fresh, around), options);
      const seen = await see(fresh, around);
      return { plan: evacuationPlan(fresh, seen.view, decide, seen.crossing), seen };
    },

    async request(fresh, untilMs) {
      const standing = await evacuations.load(fresh.id);
      if (standing !== null && isEnded(standing)) return standing;
      await claim(standing ?? fresh);
      if (standing === null && (await evacuations.create(fresh)) === "conflict")
        log.write("debug", "an evacuation was asked for twice at once", { evacuation: fresh.id });
      // The timer takes a claim away whose evacuation it does not find, and finds none without a claim: now that it exists the claim is made sure of.
      if (standing === null) await claimedAgain(fresh);
      // What fails from here on is the tick's: it exists and will go on.
      await asking.seeTo(fresh.id, { untilMs });
      return (await evacuations.load(fresh.id)) ?? fresh;
    },

    async cancel(id, by) {
      const state = await evacuations.load(id);
      if (state === null)
        throw fault("request.notFound", `There is no ${id}.`, "Look at: vmferry evacuations.", "never");
      if (isEnded(state))
        throw fault(
          "request.conflict",
          `Evacuation ${id} has ended (${state.status}).`,
          `To bring back what it moved: vmferry evacuation undo ${id}.`,
          "never",
        );
      return (await handle(id, { type: "cancelRequested", at: clock.now(), by })) ?? state;
    },

    async tick() {
      const claims = await evacuations.claims();
      const round = new Round(ports);
      // Where they are too many for one minute, each minute begins with others.
      const first = claims.length === 0 ? 0 : (Math.floor(nowMs() / 60_000) * looksAtOnce) % claims.length;
      const left = [...claims.slice(first), ...claims.slice(0, first)];
      // Side by side, so that hosts that answer slowly hold up no other's evacuation; what they start is decided by turns.
      const lane = async () => {
        for (let claim = left.shift(); claim !== undefined; claim = left.shift()) await lookAfter(claim, round);
      };
      await Promise.all(Array.from({ length: Math.min(looksAtOnce, left.length) }, lane));
      return claims.length;
    },

    async migrationEnded({ id, source, destination, origin }) {
      await guarded(id, async () => {
        const about = new Set([source.id, destination.id]);
        for (const { hostId, evacuationId } of await evacuations.claims()) {
          // On its way to a stop it is about another host than the one that it goes home to.
          const mayBe = about.has(hostId) || evacuationId === origin?.evacuation;
          const state = mayBe ? await evacuations.load(evacuationId) : null;
          // Hosts are not asked now: this may be the very message of one of them that waits to be taken.
          if (state?.domains.some(({ migrationId }) => migrationId === id) === true)
            await hearing.seeTo(evacuationId, null);
        }
      });
    },
  };
}

/** Does what nobody waits for. Resolves when the caller may go on; the work never rejects. What is lost with the process the timer does. */
export type Afterwards = (work: () => Promise<void>) => Promise<void>;

/**
 * Both loops, tied together: evacuations request migrations, and a migration that ends wakes its evacuation. `afterwards`: how this runtime goes on
 * with that when the report of the end is acknowledged; one that is frozen with its answer (Lambda) does it before.
 */
export function createRunners(
  ports: Ports,
  memory: PreflightMemory,
  afterwards: Afterwards = (work) => work(),
): { runner: Runner; evacuations: EvacuationRunner } {
  const runner = createRunner(ports, undefined, (migration) => afterwards(() => evacuations.migrationEnded(migration)));
  const evacuations = createEvacuationRunner(ports, runner, memory);
  return { runner, evacuations };
}

/** What a migration says of itself, without its place in the handshake. */
function faultOf({ failure }: MigrationState): FaultBody | null {
  if (failure === null) return null;
  const { code, cause, action, retry } = failure;
  return { code, cause, action, retry };
}

/** The effects of its end, for whoever finds that they were lost: an ended state is final and says no more by itself. */
function endEffects(state: EvacuationState): EvacuationEffect[] {
  const { kind, status, cordoned, host, domains } = state;
  const opens = kind === "evacuate" && status === "cancelled" && !cordoned && hasClosedHost(state);
  const opened = opens && !domains.some(({ state }) => state === "moved");
  return [...(opened ? [{ type: "uncordon" as const, hostId: host.id }] : []), { type: "release" }];
}
