/**
 * One look at a rule's open run and at the hosts that wait to be brought home: what has ended, what may start, what is over. Ids and deadlines are in the
 * state before anything is asked for, so asking again after a crash asks for the same evacuation (I6).
 */
import { lostStartMs } from "./evacuation-limits.ts";
import type { EvacuationStatus } from "./evacuation-state.ts";
import { durationMs, type Rule, type RuleHost } from "./rule.ts";
import { closed } from "./rule-run.ts";
import {
  notRestored,
  type RuleRecord,
  type RuleState,
  type RunHost,
  restoresMax,
  restoreWaitMsMax,
  startsMax,
  withRefusals,
} from "./rule-state.ts";
import { excludedBy, fits } from "./schedule.ts";

/** What was heard of the world. What was not asked about is absent, and nothing follows from it. */
export interface StepFacts {
  nowMs: number;
  hosts: readonly RuleHost[];
  /** Of evacuations and restores by id; null: there is none of that id. */
  statuses: ReadonlyMap<string, EvacuationStatus | null>;
  /** How long emptying a host takes, by its id; null: it cannot be planned now. */
  estimates: ReadonlyMap<string, number | null>;
  /** Fresh ids of evacuations. */
  newId: () => string;
}

export type RuleEffect =
  | {
      kind: "evacuate";
      id: string;
      host: RunHost["host"];
      deadlineAt: string | null;
      trigger: string;
      run: string | null;
    }
  /** Its cause has gone: it starts nothing more. */
  | { kind: "cancel"; id: string; host: RunHost["host"] }
  | { kind: "restore"; id: string; host: RunHost["host"] };

const iso = (ms: number): string => new Date(ms).toISOString();
const hasEnded = (status: EvacuationStatus): boolean => status !== "running" && status !== "ending";

/** The hosts that could start now, in their order: places are free, the host answers, the day is not excluded. */
export function startable(state: RuleState, record: RuleRecord, facts: Pick<StepFacts, "nowMs" | "hosts">): RunHost[] {
  const { when, how } = record.rule;
  if (state.run === null || record.paused || record.deleted) return [];
  const running = state.run.hosts.filter((entry) => entry.state === "started").length;
  if (running >= how.hostsAtOnce) return [];
  if (when.kind === "schedule" && excludedBy(when, facts.nowMs) !== null)
    return state.run.hosts.filter((entry) => entry.state === "waiting" && !entry.windowed && answers(entry, facts));
  return state.run.hosts.filter((entry) => entry.state === "waiting" && answers(entry, facts));
}
const answers = (entry: RunHost, { hosts }: Pick<StepFacts, "hosts">): boolean =>
  hosts.some(({ id, connected }) => id === entry.host.id && connected);

/** The state after this look, and what to ask for once it is stored. */
export function stepRule(
  before: RuleState,
  record: RuleRecord,
  facts: StepFacts,
): { state: RuleState; effects: RuleEffect[] } {
  const effects: RuleEffect[] = [];
  let state = record.deleted ? withdrawn(before, facts.nowMs) : before;
  state = withEnds(state, record, facts);
  // Before anything is started: at the window's end nothing is.
  state = closed(state, facts.nowMs);
  state = withStarts(state, record, facts);
  state = withRestores(state, record, facts);
  state = closed(state, facts.nowMs);
  for (const entry of state.run?.hosts ?? []) {
    const { evacuationId: id, host, deadlineAt, causes } = entry;
    if (entry.state !== "started" || id === null) continue;
    const begun = !before.run?.hosts.some((was) => was.evacuationId === id);
    if (begun || (facts.statuses.get(id) === null && !record.paused && !isOver(entry, record)))
      effects.push({
        kind: "evacuate",
        id,
        host,
        deadlineAt,
        trigger: causes[0] ?? state.run?.event.dedupkey ?? "",
        run: state.run?.id ?? null,
      });
  }
  for (const { state: at, evacuationId: id, causes, host } of state.run?.hosts ?? [])
    if (at === "started" && id !== null && causes.length === 0 && facts.statuses.get(id) === "running")
      effects.push({ kind: "cancel", id, host });
  for (const { restoreId: id, host } of state.restores) {
    if (id === null) continue;
    const begun = !before.restores.some((was) => was.restoreId === id);
    if (begun || (facts.statuses.get(id) === null && !record.paused)) effects.push({ kind: "restore", id, host });
  }
  return { state, effects };
}

/** Nobody wants it any more: what was asked for and never taken is not asked for again. */
const isOver = ({ causes }: RunHost, { deleted }: RuleRecord): boolean => deleted || causes.length === 0;

/** A rule that is gone starts nothing and brings nothing home; what runs goes on. */
function withdrawn(state: RuleState, nowMs: number): RuleState {
  if (state.run === null) return { ...state, restores: [] };
  const hosts = state.run.hosts.map(
    (entry): RunHost =>
      entry.state === "waiting" || entry.state === "awaitingApproval"
        ? { ...entry, state: "cancelled", at: iso(nowMs), reason: "the rule was deleted" }
        : entry,
  );
  return { ...state, run: { ...state.run, hosts }, restores: [] };
}

function withEnds(state: RuleState, record: RuleRecord, facts: StepFacts): RuleState {
  if (state.run === null) return state;
  const { rule, deleted } = record;
  // Who had begun to ask for it when its cause went may be asking still.
  const overSinceMs = ({ at }: RunHost): number => Math.max(Date.parse(at), deleted ? Date.parse(record.at) : 0);
  const restores = [...state.restores];
  const hosts = state.run.hosts.map((entry): RunHost => {
    const status = entry.evacuationId === null ? undefined : facts.statuses.get(entry.evacuationId);
    if (
      entry.state === "started" &&
      status === null &&
      isOver(entry, record) &&
      facts.nowMs - overSinceMs(entry) >= lostStartMs
    ) {
      const reason = deleted ? "the rule was deleted" : "its cause was resolved before it was taken";
      return { ...entry, state: "cancelled", evacuationId: null, at: iso(facts.nowMs), reason };
    }
    // Asked for and never taken: after its time it is not begun any more.
    if (entry.state === "started" && status === null && facts.nowMs >= Date.parse(entry.closesAt)) {
      const reason = `${entry.reason ?? "it could not be asked for"}; its time ended at ${entry.closesAt}`;
      return { ...entry, state: "skipped", evacuationId: null, at: iso(facts.nowMs), reason };
    }
    if (entry.state !== "started" || status === undefined || status === null || !hasEnded(status)) return entry;
    if (rule.after.restore === "whenBack" && !deleted && entry.evacuationId !== null) {
      // A newer evacuation of a host stands for the one before it: it is restored once.
      const older = restores.findIndex(({ host }) => host.id === entry.host.id);
      if (older >= 0) restores.splice(older, 1);
      restores.push({
        host: entry.host,
        evacuationId: entry.evacuationId,
        restoreId: null,
        away: isForShutdown(state.run, entry),
        looksBack: 0,
        since: iso(facts.nowMs),
      });
    }
    return { ...entry, state: "ended", at: iso(facts.nowMs), reason: entry.reason ?? `the evacuation is ${status}` };
  });
  const beyond = restores.slice(0, Math.max(0, restores.length - restoresMax));
  const why = (name: string) =>
    `${restoresMax} others that were emptied later wait already. By hand: vmferry restore ${name}`;
  return withRefusals(
    { ...state, run: { ...state.run, hosts }, restores: restores.slice(beyond.length) },
    beyond.map((entry) => notRestored(entry, iso(facts.nowMs), why(entry.host.name))),
  );
}

/** It was to shut down, and comes back from that perhaps before anybody has seen it silent. */
const isForShutdown = (run: RuleState["run"], { causes }: RunHost): boolean =>
  run?.event.type === "dev.vmferry.trigger.host-shutdown" && !causes.some((key) => key.startsWith("person "));

function withStarts(state: RuleState, record: RuleRecord, facts: StepFacts): RuleState {
  const { run } = state;
  if (run === null) return state;
  const candidates = new Set(startable(state, record, facts));
  let free = record.rule.how.hostsAtOnce - run.hosts.filter((entry) => entry.state === "started").length;
  const starts: Record<string, string> = { ...state.starts };
  const hosts = run.hosts.map((entry): RunHost => {
    if (entry.state === "waiting" && !answers(entry, facts)) return { ...entry, reason: "the host does not answer" };
    if (free <= 0 || !candidates.has(entry)) return entry;
    const closesMs = Date.parse(entry.closesAt);
    if (entry.windowed) {
      const estimateMs = facts.estimates.get(entry.host.id);
      if (estimateMs === undefined) return entry;
      if (estimateMs === null) return { ...entry, reason: "there is no estimate of how long it takes" };
      if (!fits({ opensMs: 0, closesMs }, facts.nowMs, estimateMs))
        return {
          ...entry,
          state: "skipped",
          at: iso(facts.nowMs),
          reason: `it is estimated to take ${Math.ceil(estimateMs / 60_000)} min and the window closes at ${entry.closesAt}`,
        };
    }
    free -= 1;
    starts[entry.host.id] = iso(facts.nowMs);
    return {
      ...entry,
      state: "started",
      at: iso(facts.nowMs),
      reason: null,
      evacuationId: facts.newId(),
      deadlineAt: deadlineOf(record.rule, entry, facts.nowMs),
    };
  });
  return { ...state, run: { ...run, hosts }, starts: recent(starts) };
}

/** The earliest of the rule's deadline, the window's end and the one that its trigger has brought: from then on no migration is started, and those that run are finished. */
function deadlineOf(rule: Rule, entry: RunHost, nowMs: number): string | null {
  const ends = [
    ...(rule.how.deadline === undefined ? [] : [nowMs + durationMs(rule.how.deadline)]),
    ...(entry.windowed ? [Date.parse(entry.closesAt)] : []),
    ...(entry.deadlineAt === null ? [] : [Date.parse(entry.deadlineAt)]),
  ];
  return ends.length === 0 ? null : iso(Math.min(...ends));
}

/** The newest starts, within the bound. */
const recent = (starts: Readonly<Record<string, string>>): Record<string, string> =>
  Object.fromEntries(
    Object.entries(starts)
      .sort(([, one], [, other]) => (one < other ? 1 : -1))
      .slice(0, startsMax),
  );

/**
 * Looks in a row in which a host must answer after a silence: the timer's, one a minute. One heartbeat that was missed, or a boot in the middle of a
 * maintenance of several, brings nobody home by itself.
 */
export const looksBackMin = 3;

/**
 * A host is back when it has answered for a while after a silence or a shutdown that is over, or when a person has opened it to domains. A paused rule sees that and waits. What is not back
 * within `restoreWaitMsMax` is left to a person, and that is said.
 */
function withRestores(state: RuleState, { paused }: RuleRecord, facts: StepFacts): RuleState {
  const left: ReturnType<typeof notRestored>[] = [];
  const leave = (entry: RuleState["restores"][number], why: string): [] => {
    left.push(notRestored(entry, iso(facts.nowMs), why));
    return [];
  };
  const restores = state.restores.flatMap((entry) => {
    const status = entry.restoreId === null ? null : facts.statuses.get(entry.restoreId);
    // Not asked about: nothing follows.
    if (status === undefined) return [entry];
    if (status !== null) return hasEnded(status) ? [] : [entry];
    const host = facts.hosts.find(({ id }) => id === entry.host.id);
    if (host === undefined && entry.restoreId === null)
      return leave(entry, "the host was removed, so they have no home to come back to");
    if (facts.nowMs - Date.parse(entry.since) >= restoreWaitMsMax) {
      const what = entry.restoreId === null ? "the host was not back" : "the restore could not begin";
      return leave(
        entry,
        `${what} within ${restoreWaitMsMax / 86_400_000} days. By hand: vmferry restore ${entry.host.name}`,
      );
    }
    if (host === undefined || entry.restoreId !== null) return [entry];
    if (!host.connected || (host.shutting === true && entry.away)) return [{ ...entry, away: true, looksBack: 0 }];
    const looksBack = entry.away ? Math.min(entry.looksBack + 1, looksBackMin) : 0;
    const isBack = looksBack >= looksBackMin || !host.cordoned;
    return [{ ...entry, looksBack, ...(isBack && !paused ? { restoreId: facts.newId() } : {}) }];
  });
  return withRefusals({ ...state, restores }, left);
}
