/**
 * Runs rules: what a timer, a trigger or a person says becomes a change of the rule's one item, and only then evacuations are asked for, under ids that stand
 * in it (I6). Asking again is harmless, so a control plane that dies anywhere in between goes on at the next minute.
 */
import { Fault } from "#protocol/fault";
import type { EvacuationPolicy, EvacuationStatus } from "./core/evacuation-state.ts";
import { commitAttemptsMax } from "./core/limits.ts";
import { policyOf, type Rule, type RuleHost } from "./core/rule.ts";
import { closed, decideRun, dueRuns, joinRun, type RunDecision, resolveCause, ruleRun } from "./core/rule-run.ts";
import {
  fitted,
  newRuleState,
  notRestored,
  type RuleRecord,
  type RuleRun,
  type RuleState,
  withRefusals,
} from "./core/rule-state.ts";
import { type RuleEffect, type StepFacts, startable, stepRule } from "./core/rule-step.ts";
import type { Cron, Window } from "./core/schedule.ts";
import { isFor, personEvent, scheduleEvent, type TriggerEvent } from "./core/trigger-event.ts";
import type { Chronicle, Clock, DedupStore, Ids, Log, RuleStore, ShutdownStore } from "./ports.ts";
import { tellRuns } from "./rule-told.ts";
import { lookAtShutdowns } from "./shutdown-desk.ts";
import { createTeller } from "./teller.ts";

/** What a rule asks of evacuations and of the fleet. Every request may be repeated: the same id is the same evacuation. */
export interface RuleFleet {
  hosts(): Promise<RuleHost[]>;
  /** How long emptying the host would take now; null: it cannot be said. */
  estimateMs(hostId: string, policy: EvacuationPolicy): Promise<number | null>;
  /** Null: there is none of that id. */
  status(evacuationId: string): Promise<EvacuationStatus | null>;
  /** Throws `Fault`; with `retry` `safe` it is asked again, otherwise the host is skipped with the fault's cause. */
  requestEvacuation(request: {
    id: string;
    host: { id: string; name: string };
    policy: EvacuationPolicy;
    /** No migration is started after it, nor one that is not estimated to end before it. */
    deadlineAt: string | null;
    origin: { by: string; rule: string; trigger: string; run?: string };
  }): Promise<unknown>;
  requestRestore(request: {
    id: string;
    host: { id: string; name: string };
    policy: EvacuationPolicy;
    origin: { by: string; rule: string; trigger: string };
  }): Promise<unknown>;
  /** Starts nothing more of it; what runs ends. Of one that has ended: nothing. */
  cancelEvacuation(id: string, by: string): Promise<unknown>;
}

export interface RulePorts {
  clock: Clock;
  ids: Ids;
  log: Log;
  chronicle: Chronicle;
  rules: RuleStore;
  dedup: DedupStore;
  shutdowns: ShutdownStore;
  cron: Cron;
  fleet: RuleFleet;
}

/** `ignored`: not of this rule, or it is paused. */
export interface Triggered {
  accepted: number;
  repeated: number;
  ignored: number;
}

export interface RuleRunner {
  /** Each minute: opens what is due, goes on with what is open. */
  tick(): Promise<void>;
  /** Events that came in at the rule's own trigger, or from a host itself. */
  triggered(name: string, events: readonly TriggerEvent[]): Promise<Triggered>;
  /** A host's own word that it is to be shut down, or is not any more, proved by its connection: every rule for that hears it. */
  shutdown(event: TriggerEvent): Promise<void>;
  /** Tells what hosts have said of their shutdowns since; the timer does it each minute where there is a rule for it. */
  lookAtShutdowns(): Promise<void>;
  /** A person runs a rule now. `id`: the same again is the same run. */
  run(record: RuleRecord, ask: { by: string; id: string; hosts: readonly string[] | null }): Promise<RunDecision>;
  /** What would be done now, without doing it. */
  preview(rule: Rule, ask: { by: string; hosts: readonly string[] | null }): Promise<RunDecision>;
  /** A person's word on what waits for it. Throws `request.conflict`. */
  decide(record: RuleRecord, word: { runId: string; approved: boolean; by: string }): Promise<RuleState>;
  /** Looks at one rule now; the timer does it each minute. */
  step(record: RuleRecord): Promise<void>;
}

/** A claim before what it is for is stored: who dies in between leaves the sender's next try a way in. */
const claimMs = 60_000;
/** How long the same alert stays the same: longer than any source repeats one that it has not changed. */
const rememberedMs = 7 * 86_400_000;
/** How long one look at a rule asks for estimates; who was not asked is asked at the next. The timer's call must end within its minute. */
const estimatesMsMax = 15_000;
/** Requests to the store under way at once for one body. */
const atOnce = 16;

export function createRuleRunner(ports: RulePorts): RuleRunner {
  const { clock, ids, log, rules, dedup, shutdowns, cron, fleet } = ports;
  const nowMs = () => Date.parse(clock.now());
  const tell = createTeller(ports);

  /** Load -> decide -> one conditional write. `make` may be called again with what somebody else wrote. */
  async function change<T>(name: string, make: (state: RuleState) => { state: RuleState; result: T }): Promise<T> {
    for (let attempt = 0; attempt < commitAttemptsMax; attempt += 1) {
      const before = (await rules.state(name)) ?? newRuleState(name);
      const { state, result } = make(before);
      if (JSON.stringify(state) === JSON.stringify(before)) return result;
      const next = fitted({ ...state, version: before.version + 1 });
      if ((await rules.commitState(next)) === "conflict") continue;
      await told(next);
      return result;
    }
    throw new Fault({
      code: "store.unreachable",
      cause: "The rule's item is written by too many at once.",
      action: "Ask again.",
      retry: "safe",
    });
  }

  const told = (state: RuleState) =>
    tellRuns(tell, state, nowMs()).catch((error: unknown) =>
      log.write("warn", "a rule's run is not written down yet; the timer repeats it", {
        rule: state.rule,
        error: String(error),
      }),
    );

  const join = (
    state: RuleState,
    record: RuleRecord,
    event: TriggerEvent,
    hosts: readonly RuleHost[],
    window: Window | null,
  ) => {
    const at = nowMs();
    const decision = ruleRun(record.rule, event, { hosts, state, nowMs: at });
    return {
      decision,
      state: joinRun(state, record, event, decision, { runId: `r_${ids.ulid()}`, nowMs: at, window }),
    };
  };

  async function request(record: RuleRecord, hosts: readonly RuleHost[], effect: RuleEffect): Promise<void> {
    const origin = { by: `rule ${record.name}`, rule: record.name };
    const policy = policyOf(record.rule, hosts);
    const { id, host } = effect;
    try {
      if (effect.kind === "cancel") await fleet.cancelEvacuation(id, `${origin.by}: its cause was resolved`);
      else if (effect.kind === "restore")
        await fleet.requestRestore({
          id,
          host,
          policy: { ...policy, to: null },
          origin: { ...origin, trigger: "restore" },
        });
      else {
        const { deadlineAt, trigger, run } = effect;
        const ofRun = run === null ? {} : { run };
        await fleet.requestEvacuation({ id, host, policy, deadlineAt, origin: { ...origin, trigger, ...ofRun } });
      }
    } catch (error) {
      const final = error instanceof Fault && error.retry !== "safe" && error.code !== "internal";
      const cause = error instanceof Fault ? error.cause_ : "the control plane failed";
      log.write("warn", "a rule's request was refused", {
        rule: record.name,
        host: host.name,
        what: effect.kind,
        cause,
      });
      // What may pass is asked for again at the next minute; the reason stands where people look.
      await change(record.name, (state) => ({ state: refused(state, effect, cause, final), result: null }));
    }
  }

  function refused(state: RuleState, effect: RuleEffect, cause: string, final: boolean): RuleState {
    // It has ended meanwhile: the next look sees how.
    if (effect.kind === "cancel") return state;
    if (effect.kind === "restore") {
      const entry = state.restores.find(({ restoreId }) => restoreId === effect.id);
      if (!final || entry === undefined) return state;
      const restores = state.restores.filter((other) => other !== entry);
      return withRefusals({ ...state, restores }, [notRestored(entry, clock.now(), cause)]);
    }
    if (state.run === null) return state;
    const reason = cause.slice(0, 500);
    const hosts = state.run.hosts.map((entry): RuleRun["hosts"][number] => {
      if (entry.evacuationId !== effect.id || entry.state !== "started") return entry;
      if (!final) return { ...entry, reason };
      return { ...entry, state: "skipped", evacuationId: null, at: clock.now(), reason };
    });
    return closed({ ...state, run: { ...state.run, hosts } }, nowMs());
  }

  async function step(record: RuleRecord, readHosts: () => Promise<RuleHost[]> = () => fleet.hosts()): Promise<void> {
    const known = await rules.state(record.name);
    if (known === null || (known.run === null && known.restores.length === 0)) return;
    const hosts = await readHosts();
    const asked = [
      ...(known.run?.hosts ?? []).map((entry) => (entry.state === "started" ? entry.evacuationId : null)),
      ...known.restores.map(({ restoreId }) => restoreId),
    ].filter((id) => id !== null);
    const statuses = new Map(await inParts(asked, async (id) => [id, await fleet.status(id)] as const));
    const at = nowMs();
    const policy = policyOf(record.rule, hosts);
    const candidates = startable(known, record, { nowMs: at, hosts }).filter(({ windowed }) => windowed);
    // Some more than there are places: one that does not fit makes way for the next.
    const looked = candidates.slice(0, record.rule.how.hostsAtOnce + 3);
    const estimates = new Map<string, number | null>();
    const lookedUntilMs = nowMs() + estimatesMsMax;
    for (const { host } of looked)
      if (nowMs() < lookedUntilMs) estimates.set(host.id, await fleet.estimateMs(host.id, policy));
    const facts: StepFacts = { nowMs: at, hosts, statuses, estimates, newId: () => `e_${ids.ulid()}` };
    const effects = await change(record.name, (state) => {
      const stepped = stepRule(state, record, facts);
      return { state: stepped.state, result: stepped.effects };
    });
    for (const effect of effects) await request(record, hosts, effect);
  }

  async function triggered(name: string, events: readonly TriggerEvent[]): Promise<Triggered> {
    const count: Triggered = { accepted: 0, repeated: 0, ignored: 0 };
    const record = await rules.load(name);
    if (record === null || record.deleted || record.paused) return { ...count, ignored: events.length };
    const keyOf = (event: TriggerEvent) => `${name} ${event.dedupkey}`;
    const untilMs = nowMs() + rememberedMs;
    const claims = new Map<TriggerEvent, string>();
    const resolved: TriggerEvent[] = [];
    await inParts(events, async (event) => {
      if (!isFor(record.rule, event) || (event.data.action === "resolve" && !event.data.whole)) count.ignored += 1;
      else if (event.data.action === "resolve") {
        // Kept even where its firing was never seen: the firing may come late, and then is over already.
        await dedup.keep(keyOf(event), untilMs);
        resolved.push(event);
      } else {
        const claim = await dedup.first(keyOf(event), nowMs() + claimMs);
        if (claim === null) count.repeated += 1;
        else claims.set(event, claim);
      }
    });
    const fired = [...claims.keys()];
    if (fired.length + resolved.length === 0) return count;
    count.accepted = fired.length + resolved.length;
    try {
      const hosts = await fleet.hosts();
      const decisions = await change(name, (before) => {
        let state = before;
        const decisions: RunDecision[] = [];
        for (const event of fired) {
          const joined = join(state, record, event, hosts, null);
          ({ state } = joined);
          decisions.push(joined.decision);
        }
        for (const event of resolved) state = resolveCause(state, event, nowMs());
        return { state, result: decisions };
      });
      await inParts(fired, (event) => dedup.keep(keyOf(event), heldUntil(decisions[fired.indexOf(event)], untilMs)));
    } catch (error) {
      // Not stored: the sender's next try shall be heard. What could not be let go lapses by itself.
      await inParts([...claims], ([event, claim]) => dedup.forget(keyOf(event), claim)).catch(() => undefined);
      throw error;
    }
    // The timer goes on where this fails: what was asked for is stored.
    await step(record).catch((error: unknown) =>
      log.write("warn", "a triggered rule waits for the timer", {
        rule: name,
        error: error instanceof Error ? error.message.slice(0, 300) : "not an error",
      }),
    );
    return count;
  }

  /**
   * The hosts for all that one tick decides. A minute old at most: an evacuation is refused by the host's own record as it is when it is asked for, and starts
   * nothing of a host that is silent by then.
   */
  function hostsOnce(): () => Promise<RuleHost[]> {
    let reading: Promise<RuleHost[]> | null = null;
    return () => {
      reading ??= fleet.hosts().catch((error: unknown) => {
        reading = null;
        throw error;
      });
      return reading;
    };
  }

  /** One rule's trouble is not the others', and is told when all have heard. */
  async function toldOf(records: readonly RuleRecord[], event: TriggerEvent): Promise<void> {
    const failed: unknown[] = [];
    for (const { name, rule } of records)
      if (rule.when.kind === "host-shutdown")
        await triggered(name, [event]).catch((error: unknown) => failed.push(error));
    if (failed.length > 0) throw failed[0];
  }

  /** Reads nothing where no rule asks for it. */
  async function lookFor(records: readonly RuleRecord[]): Promise<void> {
    if (!records.some(({ rule, deleted, paused }) => rule.when.kind === "host-shutdown" && !deleted && !paused)) return;
    await lookAtShutdowns(
      { clock, log, shutdowns },
      () => fleet.hosts(),
      (event) => toldOf(records, event),
    );
  }

  return {
    step: (record) => step(record),

    async tick() {
      const records = await rules.list();
      if (records.length === 0) return;
      await lookFor(records).catch((error: unknown) =>
        log.write("error", "the shutdowns of hosts could not be looked at", { error: String(error).slice(0, 300) }),
      );
      const states = new Map((await rules.states()).map((state) => [state.rule, state]));
      const lastRuns = new Map<string, number>();
      for (const state of states.values()) await told(state);
      for (const [name, { lastOpeningAt }] of states)
        if (lastOpeningAt !== null) lastRuns.set(name, Date.parse(lastOpeningAt));
      const due = new Map(dueRuns(records, lastRuns, nowMs(), cron).map(({ record, window }) => [record.name, window]));
      const readHosts = hostsOnce();
      // Where one takes the whole minute, the next minute begins with another.
      const first = Math.floor(nowMs() / 60_000) % records.length;
      for (const record of [...records.slice(first), ...records.slice(0, first)])
        try {
          const window = due.get(record.name);
          if (window !== undefined) {
            const opensAt = new Date(window.opensMs).toISOString();
            const hosts = await readHosts();
            await change(record.name, (state) => {
              // Another timer was here first.
              if (state.lastOpeningAt !== null && state.lastOpeningAt >= opensAt) return { state, result: null };
              return { ...join(state, record, scheduleEvent(record.name, opensAt), hosts, window), result: null };
            });
            log.write("info", "a rule's window has opened", { rule: record.name, opensAt });
          }
          const state = states.get(record.name);
          if (window !== undefined || (state !== undefined && (state.run !== null || state.restores.length > 0)))
            await step(record, readHosts);
        } catch (error) {
          // One rule's trouble is not the others'.
          log.write("error", "a rule could not be looked at", {
            rule: record.name,
            error: error instanceof Error ? error.message.slice(0, 300) : "not an error",
          });
        }
    },

    triggered,

    async shutdown(event) {
      await toldOf(await rules.list(), event);
    },

    async lookAtShutdowns() {
      await lookFor(await rules.list());
    },

    async run(record, { by, id, hosts: names }) {
      const event = personEvent(by, id, clock.now(), names);
      const hosts = await fleet.hosts();
      const decision = await change(record.name, (state) => {
        const { decision, state: joined } = join(state, record, event, hosts, null);
        const known =
          state.run?.hosts.some(({ causes }) => causes.includes(event.dedupkey)) === true ||
          [state.run, ...state.past].some((run) => run?.event.dedupkey === event.dedupkey);
        return { state: known ? state : joined, result: decision };
      });
      await step(record);
      return decision;
    },

    async preview(rule, { by, hosts: names }) {
      const state = (await rules.state(rule.name)) ?? newRuleState(rule.name);
      const event = personEvent(by, "preview", clock.now(), names);
      return ruleRun(rule, event, { hosts: await fleet.hosts(), state, nowMs: nowMs() });
    },

    async decide(record, { runId, approved, by }) {
      const decided = await change(record.name, (state) => {
        const after = decideRun(state, { approved, by, runId, nowMs: nowMs() });
        return { state: after ?? state, result: after };
      });
      if (decided === null)
        throw new Fault({
          code: "request.conflict",
          cause: "Nothing of this run waits for an approval.",
          action: `Look at the rule: GET /v1/rules/${record.name}.`,
          retry: "never",
        });
      await step(record);
      return (await rules.state(record.name)) ?? decided;
    },
  };
}

/** Until when an event stays heard: where every answer to it was for the time being, until the first of them is over. */
function heldUntil(decision: RunDecision | undefined, untilMs: number): number {
  if (decision === undefined || decision.hosts.length > 0) return untilMs;
  const retries = decision.refusals.map(({ retryAtMs }) => retryAtMs ?? untilMs);
  return Math.min(untilMs, ...retries);
}

async function inParts<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (let at = 0; at < items.length; at += atOnce)
    results.push(...(await Promise.all(items.slice(at, at + atOnce).map(work))));
  return results;
}
