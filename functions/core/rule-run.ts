/**
 * What a rule does with an event or an instant: which hosts are to be emptied, or why not. Pure: the runner asks the world first and passes in what it
 * heard. Nothing is started for a silent host, for one that was started lately, or twice for one cause.
 */
import { durationMs, isSelected, type Rule, type RuleHost } from "./rule.ts";
import {
  causeBeyond,
  causesMax,
  pastRunsMax,
  type RuleRecord,
  type RuleRun,
  type RuleState,
  type RunHost,
  runHostsMax,
  withRefusals,
} from "./rule-state.ts";
import { type Cron, openWindow, type Window } from "./schedule.ts";
import { isFor, isNamedBy, namesNoEntity, type TriggerEvent } from "./trigger-event.ts";

/** An evacuation that a trigger asked for and nobody approved or could start is no answer to that trigger any more after this. */
export const waitMsMax = 86_400_000;
/** A silent host or a selector that found nobody may be right a little later; the same alert is listened to again after this. */
const lookAgainMs = 10 * 60_000;

/** What is only possible until an instant is told anew by its source each minute, and listened to each time. */
const listensAgainMs = ({ data: { deadlineAt } }: TriggerEvent, nowMs: number): number =>
  deadlineAt === undefined ? nowMs + lookAgainMs : nowMs;

export interface DueRun {
  record: RuleRecord;
  window: Window;
}

/** The rules whose window is open and was not dealt with yet. `lastRuns`: for each rule the Unix time of the newest opening that was. */
export function dueRuns(
  records: readonly RuleRecord[],
  lastRuns: ReadonlyMap<string, number>,
  nowMs: number,
  cron: Cron,
): DueRun[] {
  return records.flatMap((record) => {
    const { when, name } = record.rule;
    if (when.kind !== "schedule" || record.paused || record.deleted) return [];
    const window = openWindow(when, nowMs, cron);
    // A rule that is written, changed or resumed inside its own window waits for the next: who applies a file does not mean "now".
    if (window === null || window.opensMs <= Math.max(lastRuns.get(name) ?? 0, Date.parse(record.at))) return [];
    return [{ record, window }];
  });
}

export interface Refusal {
  /** Null: it is about the event. */
  host: string | null;
  cause: string;
  /** When the same event may be listened to again; null: never, the answer stays. */
  retryAtMs: number | null;
}

export interface RunDecision {
  hosts: RuleHost[];
  refusals: Refusal[];
  approval: boolean;
}

/** What an event makes of a rule: the hosts to evacuate, and for everything else why not. */
export function ruleRun(
  rule: Rule,
  event: TriggerEvent,
  view: { hosts: readonly RuleHost[]; state: RuleState; nowMs: number },
): RunDecision {
  const { hosts, state, nowMs } = view;
  const byPerson = event.type === "dev.vmferry.trigger.person";
  // Who runs a rule by hand has decided.
  const approval = rule.how.approval === "needed" && !byPerson;
  const nobody = (cause: string, retryAtMs: number | null): RunDecision => ({
    hosts: [],
    refusals: [{ host: null, cause, retryAtMs }],
    approval,
  });
  if (!isFor(rule, event)) return nobody("the event is not of this rule's kind, or its labels do not match", null);
  const { fromTrigger } = rule.which;
  if (byPerson && fromTrigger !== undefined && event.data.hosts === null)
    return nobody("the rule's hosts are named by its trigger: name them", null);
  if (fromTrigger !== undefined && namesNoEntity(event)) return nobody(noEntityCause(rule, event), null);
  const named = hosts.filter(
    (host) =>
      isSelected(rule.which, host) &&
      (fromTrigger === undefined
        ? event.data.hosts === null || event.data.hosts.includes(host.name)
        : isNamedBy(event, fromTrigger, host)),
  );
  if (named.length === 0) return nobody("no host matches", nowMs + lookAgainMs);
  const decision: RunDecision = { hosts: [], refusals: [], approval };
  for (const host of named) {
    const cause = refusalOf(rule, event, host, state, nowMs);
    if (cause !== null) decision.refusals.push({ host: host.name, ...cause });
    else if (decision.hosts.length + activeHosts(state).length >= runHostsMax)
      decision.refusals.push({
        host: host.name,
        cause: `a run holds ${runHostsMax} hosts at most`,
        retryAtMs: nowMs + lookAgainMs,
      });
    else decision.hosts.push(host);
  }
  return decision;
}

/** Emptying a region's hosts is never meant by silence about them: the rule has to name its hosts itself. */
function noEntityCause({ name }: Rule, { source, data: { labels } }: TriggerEvent): string {
  const what = [labels.account, labels.service, labels.region, labels.eventTypeCode].filter(
    (part) => part !== undefined,
  );
  return (
    `the event names no entity (${what.join(", ")}), and this rule takes its hosts from the event: nothing is started. Look at ${source} in AWS Health; ` +
    `for hosts that are struck: vmferry rule run ${name} --host HOST. A rule that is to empty certain hosts on such an event names them (\`which.names\`, \`which.labels\`), without \`fromTrigger\``
  );
}

const isActive = ({ state }: RunHost): boolean =>
  state === "awaitingApproval" || state === "waiting" || state === "started";
const activeHosts = (state: RuleState): RunHost[] => state.run?.hosts.filter(isActive) ?? [];

function refusalOf(
  rule: Rule,
  event: TriggerEvent,
  host: RuleHost,
  state: RuleState,
  nowMs: number,
): Omit<Refusal, "host"> | null {
  const there = activeHosts(state).find((active) => active.host.id === host.id);
  if (there?.state === "started" && there.causes.length === 0)
    return {
      cause: "its evacuation is ending, for its cause was resolved: it takes no new cause",
      retryAtMs: listensAgainMs(event, nowMs),
    };
  // One more cause of what is under way already is no new start, so no cool-down holds it off.
  if (there !== undefined) return null;
  // A window is long: a host that comes back inside it has its turn. An alert about a silent host moves nothing.
  if (!host.connected && event.type !== "dev.vmferry.trigger.schedule")
    return {
      cause: "the host is silent: nothing is moved off a host that does not answer",
      retryAtMs: listensAgainMs(event, nowMs),
    };
  const startedAt = state.starts[host.id];
  const coolUntilMs = startedAt === undefined ? 0 : Date.parse(startedAt) + durationMs(rule.how.coolDown);
  if (event.type !== "dev.vmferry.trigger.person" && nowMs < coolUntilMs)
    return {
      cause: `cool-down: this rule evacuated it at ${startedAt} and leaves it alone until ${iso(coolUntilMs)}`,
      retryAtMs: coolUntilMs,
    };
  return null;
}

const iso = (ms: number): string => new Date(ms).toISOString();

/** The state after a decision: a run is opened, or the open one joined. The same event again changes nothing. */
export function joinRun(
  state: RuleState,
  record: RuleRecord,
  event: TriggerEvent,
  decision: RunDecision,
  moment: { runId: string; nowMs: number; window: Window | null },
): RuleState {
  const at = iso(moment.nowMs);
  const { refusals } = withRefusals(
    state,
    decision.refusals
      .map(({ host, cause }) => ({ at, event: event.dedupkey, host, cause }))
      .filter((one) => !state.refusals.some((other) => isSame(one, other))),
  );
  const lastOpeningAt = moment.window === null ? state.lastOpeningAt : iso(moment.window.opensMs);
  if (decision.hosts.length === 0) return { ...state, refusals, lastOpeningAt };
  const run: RuleRun = state.run ?? {
    id: moment.runId,
    ruleVersion: record.version,
    event,
    createdAt: at,
    endedAt: null,
    approvedBy: null,
    hosts: [],
  };
  const hosts = [...run.hosts];
  for (const { id, name } of decision.hosts) {
    const known = hosts.findIndex(({ host }) => host.id === id);
    const there = hosts[known];
    if (there !== undefined && isActive(there))
      hosts[known] = { ...there, causes: withCause(there.causes, event.dedupkey), ...timed(there, event) };
    else {
      const entry: RunHost = {
        host: { id, name },
        state: decision.approval ? "awaitingApproval" : "waiting",
        causes: [event.dedupkey],
        evacuationId: null,
        deadlineAt: event.data.deadlineAt ?? null,
        closesAt: event.data.deadlineAt ?? iso(moment.window?.closesMs ?? moment.nowMs + waitMsMax),
        windowed: moment.window !== null,
        at,
        reason: null,
      };
      // An entry of the same host that has ended gives way: the run says how each host stands now.
      if (there === undefined) hosts.push(entry);
      else hosts[known] = entry;
    }
  }
  return { ...state, run: { ...run, hosts: kept(hosts) }, refusals, lastOpeningAt };
}

type Remembered = RuleState["refusals"][number];
/** Said again each minute it would drive out what others were told. */
const isSame = (one: Remembered, other: Remembered): boolean =>
  one.event === other.event && one.host === other.host && one.cause === other.cause;

/** Within the bound; those that have ended go first. */
const kept = (hosts: RunHost[]): RunHost[] => {
  const surplus = hosts.length - runHostsMax;
  if (surplus <= 0) return hosts;
  const gone = new Set(hosts.filter((entry) => !isActive(entry)).slice(0, surplus));
  return hosts.filter((entry) => !gone.has(entry));
};

/** What waits goes by the newest word on when it is too late; what was started keeps the deadline that it was started with. */
const timed = (there: RunHost, { data: { deadlineAt } }: TriggerEvent): Partial<RunHost> =>
  deadlineAt === undefined || there.state === "started" ? {} : { deadlineAt, closesAt: deadlineAt };

function withCause(causes: readonly string[], key: string): string[] {
  if (causes.includes(key) || causes.includes(causeBeyond)) return [...causes];
  return [...causes, causes.length < causesMax - 1 ? key : causeBeyond];
}

/**
 * The state after a cause has gone: what nothing else holds and has not started is cancelled; what runs is left without a cause, and the next step lets it
 * start nothing more. A source that left something out of its message takes nothing back: what it left out may still hold.
 */
export function resolveCause(state: RuleState, event: TriggerEvent, nowMs: number): RuleState {
  if (state.run === null || !event.data.whole) return state;
  const hosts = state.run.hosts.map((entry): RunHost => {
    if (!isActive(entry) || !entry.causes.includes(event.dedupkey)) return entry;
    const causes = entry.causes.filter((key) => key !== event.dedupkey);
    if (causes.length > 0) return { ...entry, causes };
    if (entry.state === "started")
      return { ...entry, causes, at: iso(nowMs), reason: "its cause was resolved: nothing more is started" };
    const reason = "its cause was resolved before it was started";
    return { ...entry, causes, state: "cancelled", at: iso(nowMs), reason };
  });
  return closed({ ...state, run: { ...state.run, hosts } }, nowMs);
}

/** A person's word on what waits for it. Null: nothing does. */
export function decideRun(
  state: RuleState,
  word: { approved: boolean; by: string; runId: string; nowMs: number },
): RuleState | null {
  const { run } = state;
  if (run === null || run.id !== word.runId || !run.hosts.some(({ state: at }) => at === "awaitingApproval"))
    return null;
  const hosts = run.hosts.map((entry): RunHost => {
    if (entry.state !== "awaitingApproval") return entry;
    const at = iso(word.nowMs);
    return word.approved
      ? { ...entry, state: "waiting", at }
      : { ...entry, state: "cancelled", at, reason: `refused by ${word.by}` };
  });
  return closed({ ...state, run: { ...run, approvedBy: word.approved ? word.by : run.approvedBy, hosts } }, word.nowMs);
}

/** Ends the open run when nothing of it is active; what waits past its time is skipped. */
export function closed(state: RuleState, nowMs: number): RuleState {
  if (state.run === null) return state;
  const hosts = state.run.hosts.map((entry): RunHost => {
    const waits = entry.state === "waiting" || entry.state === "awaitingApproval";
    if (!waits || nowMs < Date.parse(entry.closesAt)) return entry;
    const why =
      entry.state === "awaitingApproval"
        ? "nobody approved it in time"
        : (entry.reason ?? "it did not come to its turn");
    return { ...entry, state: "skipped", at: iso(nowMs), reason: `${why}; its time ended at ${entry.closesAt}` };
  });
  const run = { ...state.run, hosts };
  if (hosts.some(isActive)) return { ...state, run };
  const ended = { ...run, endedAt: iso(nowMs), hosts: hosts.map((entry) => ({ ...entry, causes: [] })) };
  return { ...state, run: null, past: [ended, ...state.past].slice(0, pastRunsMax) };
}
