/**
 * The protocol, explored exhaustively: from a new migration every event that can happen is applied in every state that can be
 * reached. Found once for each test file that asks.
 */
import { createHash } from "node:crypto";
import { stepsOf } from "#core/advance";
import { blobsOf } from "#core/command-body";
import type { MigrationEvent } from "#core/event";
import type { MigrationState } from "#core/state";
import { transition } from "#core/transition";
import { commandKindSchema, commandSide } from "#protocol/command";
import { ticketCommandId } from "#protocol/ticket";
import { at, failureReport, forgottenReport, freshMigration, later, receipt, success, successes } from "./migration.ts";

export interface Arrow {
  from: MigrationState;
  label: string;
  event: MigrationEvent;
  to: ReturnType<typeof transition>;
  fromKey: string;
  toKey: string;
}

/** Every event that the world can produce in a state, under a name for the table. */
function eventsIn(state: MigrationState): [string, MigrationEvent][] {
  const events: [string, MigrationEvent][] = [
    ["requested", { type: "requested", at }],
    ["refused", { type: "refused", at, fault: { code: "domain.busy", cause: "busy", action: "wait", retry: "safe" } }],
    ["cancelRequested", { type: "cancelRequested", at, by: "ann" }],
    ["resolved(source fenced)", { type: "resolved", at, by: "ann", reason: "burnt", fenced: "source" }],
    ["resolved(destination fenced)", { type: "resolved", at, by: "ann", reason: "burnt", fenced: "destination" }],
    ["connectionLost", { type: "connectionLost", at, epoch: state.epoch, cause: "libvirtd is gone" }],
    ["connectionLost(old epoch)", { type: "connectionLost", at, epoch: state.epoch - 1, cause: "old news" }],
    ["ticked(in time)", { type: "ticked", at, unreachable: [], elapsedMs: null }],
    ["ticked(overdue)", { type: "ticked", at: later, unreachable: [], elapsedMs: null }],
    ["ticked(Perform moves)", { type: "ticked", at: later, unreachable: [], elapsedMs: 1 }],
    [
      "ticked(overdue, hosts away)",
      { type: "ticked", at: later, unreachable: ["source", "destination"], elapsedMs: null },
    ],
  ];
  for (const pending of state.pending) {
    for (const [name, body] of Object.entries(successes(pending.kind)))
      events.push([`${pending.kind} ${name}`, { type: "reported", at, report: success(state, pending, body) }]);
    for (const sourceState of pending.kind === "perform" ? (["running", "paused", undefined] as const) : [undefined])
      for (const stated of pending.kind === "perform" ? ([undefined, "destroyed", "started"] as const) : [undefined])
        events.push([
          `${pending.kind} failed${sourceState === undefined ? "" : ` (source ${sourceState})`}${stated === undefined ? "" : ` with receipt ${stated}`}`,
          {
            type: "reported",
            at,
            report: failureReport(state, pending, {
              sourceState,
              receipt: stated === undefined ? undefined : receipt(stated),
            }),
          },
        ]);
    if (pending.kind === "finish")
      for (const code of ["cookie.altered", "bundle.unreachable"] as const)
        events.push([
          `finish failed: ${code}`,
          {
            type: "reported",
            at,
            report: failureReport(state, pending, { fault: { code, cause: "c", action: "a", retry: "safe" } }),
          },
        ]);
    // Its host had finished with the migration: the record is older than that.
    events.push([`${pending.kind} forgotten`, { type: "reported", at, report: forgottenReport(state, pending) }]);
    const person = { code: "libvirt.failed", cause: "c", action: "a", retry: "person" } as const;
    events.push([
      `${pending.kind} failed, needs a person`,
      { type: "reported", at, report: failureReport(state, pending, { fault: person }) },
    ]);
  }
  // What shims do by their ticket, whenever it is learnt. Its receipts are of one world: the destination has stated one thing.
  if (state.ticket !== null)
    for (const kind of ["finish", "confirm"] as const)
      for (const [name, body] of Object.entries(successes(kind))) {
        const id = ticketCommandId(state.id, kind, 1);
        const made = { id, kind, side: commandSide[kind], issuedAt: at, deadlineAt: at };
        events.push([`ticket's ${kind} ${name}`, { type: "reported", at, report: success(state, made, body) }]);
      }
  // Reports of commands that nobody awaits: late, repeated, or of another attempt.
  for (const kind of commandKindSchema.options) {
    if (state.pending.some((pending) => pending.kind === kind)) continue;
    const stray = { id: `${state.id}:${kind}:9999`, kind, side: "source" as const, issuedAt: at, deadlineAt: at };
    for (const body of Object.values(successes(kind)))
      events.push([`stray ${kind}`, { type: "reported", at, report: success(state, stray, body) }]);
  }
  return events;
}

/** What makes two states the same for the future: everything but times, counters that no longer count, and the story. */
export const key = (state: MigrationState) => {
  const current = commandKindSchema.options.filter((kind) => stepsOf[kind].includes(state.step));
  const { failure } = state;
  const silence = failure?.code === "host.offline" || failure?.code === "step.overdue";
  const same = JSON.stringify({
    ...state,
    version: 0,
    epoch: 0,
    timeline: [],
    downtimeMs: null,
    transferredBytes: null,
    strippedMs: null,
    strandings: undefined,
    snapshots: { ...state.snapshots, restored: undefined },
    blobs: state.pending.flatMap(({ kind }) => blobsOf(kind)).filter((name) => state.blobs[name] !== undefined),
    receipt: state.receipt?.outcome,
    fenced: state.fenced?.side,
    evidence: state.receipt?.evidence === "fenced",
    updatedAt: "",
    endedAt: state.endedAt === null,
    attempts: current.map((kind) => Math.min(state.attempts[kind] ?? 0, 3)),
    pending: state.pending.map((pending) => pending.kind),
    failure:
      failure === null ? null : silence ? "silence" : failure.code === "migration.cancelled" ? "cancelled" : "other",
    abortCause: state.abortCause === null ? null : state.abortCause.code,
    performSeen: state.step === "performing" && state.performSeen !== null,
  });
  // Half a million arrows name two each.
  return createHash("sha1").update(same).digest("base64");
};

/** The story is not explored: its last line is enough to know that there is one. */
const brief = (from: MigrationState, to: ReturnType<typeof transition>): ReturnType<typeof transition> =>
  to.state === from ? to : { ...to, state: { ...to.state, timeline: to.state.timeline.slice(-1) } };

function explore(): { states: MigrationState[]; arrows: Arrow[] } {
  const states = new Map<string, MigrationState>();
  const arrows: Arrow[] = [];
  const queue = [freshMigration()];
  for (let from = queue.pop(); from !== undefined; from = queue.pop()) {
    const fromKey = key(from);
    if (states.has(fromKey)) continue;
    states.set(fromKey, from);
    for (const [label, event] of eventsIn(from)) {
      const to = brief(from, transition(from, event));
      const toKey = to.state === from ? fromKey : key(to.state);
      arrows.push({ from, label, event, to, fromKey, toKey });
      if (!states.has(toKey)) queue.push(to.state);
    }
  }
  return { states: [...states.values()], arrows };
}

export const explored = explore();

/** A migration in that step, as the exploration reached it on the way forward. */
export function reached(step: MigrationState["step"]): MigrationState {
  const states = explored.states.filter(({ status, pending }) => status === "running" && pending.length > 0);
  const state =
    states.find((candidate) => candidate.step === step && candidate.failure === null) ??
    states.find((candidate) => candidate.step === step);
  if (state === undefined) throw new Error(`the exploration did not reach ${step}`);
  return state;
}
