/**
 * Building the next state: notes, commands and faults, written once for the ways forward and back. A draft is a value; every
 * function returns a new one, so a transition can be abandoned half way without a trace.
 */
import { type CommandKind, commandSide, type Side } from "#protocol/command";
import type { FaultBody } from "#protocol/fault";
import type { Effect } from "./effect.ts";
import { inspectMsMax, noteCharsMax, stepMsMax, strandedAfterMs, timelineEntriesMax } from "./limits.ts";
import type { Failure, MigrationState, Pending, Step } from "./state.ts";

export interface Transition {
  state: MigrationState;
  effects: Effect[];
}

export interface Draft extends Transition {
  /** When the event was observed: the only clock there is. */
  at: string;
}

/** How long a command may stay without a report before the timer acts on it. What acting means depends on the step. */
const patienceMs: Record<CommandKind, number> = {
  inspectSource: inspectMsMax,
  inspectDestination: inspectMsMax,
  export: stepMsMax,
  stage: stepMsMax,
  begin: stepMsMax,
  prepare: stepMsMax,
  perform: strandedAfterMs,
  abort: strandedAfterMs,
  finish: strandedAfterMs,
  confirm: strandedAfterMs,
  settle: strandedAfterMs,
  restore: strandedAfterMs,
  unstage: strandedAfterMs,
  restoreBundle: stepMsMax,
};

export const later = (at: string, ms: number) => new Date(Date.parse(at) + ms).toISOString();

export const draftOf = (state: MigrationState, at: string): Draft => ({ state, effects: [], at });

export function change(draft: Draft, fields: Partial<MigrationState>): Draft {
  return { ...draft, state: { ...draft.state, ...fields } };
}

/** Adds a line to the story. What is said again at once is one line with its newest time; a full timeline loses its
 *  second-oldest lines: how it began and how it ends stay readable. */
export function note(draft: Draft, line: { side?: Side | null; ms?: number | null; note: string; step?: Step }): Draft {
  const text = cut(line.note, noteCharsMax);
  const { step } = { step: draft.state.step, ...line };
  const entry = { at: draft.at, step, side: line.side ?? null, ms: line.ms ?? null, note: text };
  const last = draft.state.timeline.at(-1);
  const again = last !== undefined && last.note === text && last.step === step && last.side === entry.side;
  const timeline = [...(again ? draft.state.timeline.slice(0, -1) : draft.state.timeline), entry];
  if (timeline.length > timelineEntriesMax) timeline.splice(1, timeline.length - timelineEntriesMax);
  return change(draft, { timeline });
}

export const cut = (text: string, charsMax: number): string =>
  text.length > charsMax ? `${text.slice(0, charsMax - 1)}…` : text;

/** Issues a command: its id is deterministic (migration, kind, attempt), so the same decision made twice is one command (I6). */
export function issue(draft: Draft, kind: CommandKind): Draft {
  const attempt = (draft.state.attempts[kind] ?? 0) + 1;
  const pending: Pending = {
    id: `${draft.state.id}:${kind}:${attempt}`,
    kind,
    side: commandSide[kind],
    issuedAt: draft.at,
    deadlineAt: later(draft.at, patienceMs[kind]),
  };
  return {
    ...draft,
    state: {
      ...draft.state,
      attempts: { ...draft.state.attempts, [kind]: attempt },
      pending: [...draft.state.pending, pending],
    },
    effects: [...draft.effects, { type: "send", pending }],
  };
}

/** Enters a step with its one command; whatever was still pending belongs to a step that is over. */
export function enter(draft: Draft, step: Step, kind: CommandKind): Draft {
  return issue(change(draft, { step, pending: [] }), kind);
}

export const failureOf = (fault: FaultBody, phase: Step, side: Side | null): Failure => ({ ...fault, phase, side });

/** Keeps the first failure: what goes wrong on the way back must not hide why we turned round. */
export function fail(draft: Draft, failure: Failure): Draft {
  const noted = note(draft, { side: failure.side, note: `${failure.code}: ${failure.cause}` });
  return draft.state.failure === null ? change(noted, { failure }) : noted;
}

/** The migration's result stands from here on. What a fenced host owes is asked of it when it returns; the domain is free. */
export function end(draft: Draft, status: MigrationState["status"], text: string): Draft {
  const { sweep, fenced, cancel } = draft.state;
  const outcome = status === "cancelled" ? ("won" as const) : ("late" as const);
  const ended = change(draft, {
    step: "ended",
    status,
    pending: [],
    endedAt: draft.at,
    cancel: cancel === null ? null : { ...cancel, outcome },
  });
  const [first] = sweep;
  const keep = first === undefined ? null : (fenced?.side ?? null);
  const noted = note(ended, { note: text });
  const swept = first === undefined || keep === null ? noted : issue(change(noted, { step: "sweeping" }), first);
  return { ...swept, effects: [...swept.effects, { type: "release", keep }] };
}
