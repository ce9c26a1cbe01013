/**
 * transition(state, event) -> {state, effects}: the whole protocol as a pure total function. It awaits nothing, knows no
 * clock and no random, and for an event that does not fit returns the very state it was given, with no effects.
 *
 * Invariants upheld here: I2 (silence never decides: only reports and receipts move a migration on after Perform),
 * I5 (epoch only rises), I6 (command ids are deterministic), I7 (a receipt is never contradicted), I10 (every step has a
 * way on: a report, a retry by the timer, or `stranded` while a host stays away).
 */
import { type CommandKind, commandSide, type Receipt, type ReportBody } from "#protocol/command";
import type { FaultBody } from "#protocol/fault";
import { ticketKindOf } from "#protocol/ticket";
import { advances, contradicts, type Success, stepsOf } from "./advance.ts";
import { change, type Draft, draftOf, enter, fail, failureOf, issue, note, type Transition } from "./draft.ts";
import type { MigrationEvent, StoredReport } from "./event.ts";
import { ticked } from "./overdue.ts";
import { overtaken } from "./overtaken.ts";
import { resolved, swept } from "./resolution.ts";
import { confirmSource, hold, persistentSteps, retreat, wake } from "./retreat.ts";
import type { Failure, MigrationState, Pending, Step } from "./state.ts";
import { ticketReported } from "./ticket-report.ts";

export type { Transition } from "./draft.ts";

type Reported = Extract<MigrationEvent, { type: "reported" }>;

export function transition(state: MigrationState, event: MigrationEvent): Transition {
  if (state.step === "ended") return { state, effects: [] };
  const draft = draftOf(state, event.at);
  const next = apply(draft, event);
  if (next === draft) return { state, effects: [] };
  return { state: { ...next.state, version: state.version + 1, updatedAt: event.at }, effects: next.effects };
}

function apply(draft: Draft, event: MigrationEvent): Draft {
  switch (event.type) {
    case "requested":
      return requested(draft);
    case "refused":
      return fresh(draft.state) ? retreat(draft, failureOf(event.fault, draft.state.step, null)) : draft;
    case "reported":
      return reported(draft, event);
    case "cancelRequested":
      return cancelRequested(draft, event.by);
    case "resolved":
      return resolved(draft, event);
    case "connectionLost":
      return connectionLost(draft, event);
    case "ticked":
      return fresh(draft.state) ? requested(draft) : ticked(draft, event);
  }
}

/** The first command; asked again while it is pending (a retried request, a timer) it is nothing new. */
function requested(draft: Draft): Draft {
  return fresh(draft.state) ? enter(note(draft, { note: "requested" }), "inspectingSource", "inspectSource") : draft;
}

const fresh = (state: MigrationState): boolean =>
  state.step === "inspectingSource" && state.pending.length === 0 && state.timeline.length === 0;

function reported(draft: Draft, { report }: Reported): Draft {
  const byTicket = ticketKindOf(report.commandId);
  if (byTicket !== null) return ticketReported(draft, byTicket, report);
  const pending =
    draft.state.pending.find((candidate) => candidate.id === report.commandId) ?? earlierTry(draft, report);
  if (pending === undefined || !stepsOf[pending.kind].includes(draft.state.step)) return draft;
  if (draft.state.step === "sweeping") return swept(draft, pending, report.result);
  const awake = wake(draft);
  if (!report.result.ok && report.result.forgotten === true) return overtaken(awake, pending.side);
  if (!report.result.ok) return failed(awake, pending, report.result, report.ms);
  const { body, blobs } = report.result;
  if (body.kind !== pending.kind || body.kind === "restoreBundle") return draft;
  const receipt = receiptIn(body);
  if (receipt !== null && contradicts(draft.state, receipt)) return draft;
  return advance(body.kind, { draft: awake, body, blobs, ms: report.ms });
}

/**
 * A try that was given up as silent or failed and has succeeded after all: what it states is a fact, and the shim that has stated
 * its last one forgets the migration as soon as we have taken it. Only where each try asks for the same.
 */
function earlierTry({ state }: Draft, report: StoredReport): Pending | undefined {
  const awaited = persistentSteps[state.step];
  if (!report.result.ok || awaited === undefined || report.result.body.kind !== awaited) return undefined;
  const [, name, attempt] = report.commandId.split(":");
  if (name !== awaited || report.epoch !== state.epoch || Number(attempt) > (state.attempts[awaited] ?? 0))
    return undefined;
  return { id: report.commandId, kind: awaited, side: commandSide[awaited], issuedAt: "", deadlineAt: "" };
}

/** One entry of the table for one kind: the kind ties the body's type to its function. */
function advance<K extends keyof typeof advances>(
  kind: K,
  success: { draft: Draft; body: { kind: CommandKind }; blobs: Success<K>["blobs"]; ms: number },
): Draft {
  return isBody(kind, success) ? advances[kind](success) : success.draft;
}

function isBody<K extends CommandKind>(kind: K, success: { body: { kind: CommandKind } }): success is Success<K> {
  return success.body.kind === kind;
}

/** What a report says of how Finish ended. */
function receiptIn(body: ReportBody): Receipt | null {
  if (body.kind === "finish" || body.kind === "confirm") return body.receipt;
  return body.kind === "perform" ? (body.ended?.receipt ?? null) : null;
}

type FailedResult = Extract<Reported["report"]["result"], { ok: false }>;

function failed(draft: Draft, pending: Pending, result: FailedResult, ms: number): Draft {
  const { fault, sourceState } = result;
  const { step } = draft.state;
  const failure = failureOf(fault, step, pending.side);
  switch (pending.kind) {
    case "inspectSource":
    case "inspectDestination":
    case "export":
    case "begin":
      return retreat(draft, failure);
    case "stage":
      return retreat(fault.code === "bundle.altered" ? discardBundle(draft) : draft, failure);
    case "prepare":
      // Prepare failed: no Finish, there is nothing to abort over there (virDomainMigrateVersion3Full); unstaging still looks.
      return retreat(change(draft, { touched: { ...draft.state.touched, prepared: false, staged: true } }), failure);
    case "perform": {
      // After a failed Perform libvirt itself resumed the source and Confirm is not called. When the shim could not see that
      // it runs, it counts as paused and waits for the receipt (I2).
      const resumedByLibvirt = sourceState !== undefined && sourceState !== "paused";
      const cause = draft.state.abortCause ?? failure;
      const known = draft.state.receipt ?? result.receipt ?? null;
      const noted = note(change(draft, { receipt: known }), {
        side: "source",
        ms,
        note: `Perform failed, source ${sourceState ?? "unknown"}${known === null ? "" : `; receipt: ${known.outcome}`}`,
      });
      // The arbiter had decided to start it before the source gave up: that stands.
      if (known?.outcome === "started") return confirmSource(fail(noted, cause), "confirming");
      return retreat(change(noted, { touched: { ...noted.state.touched, performed: !resumedByLibvirt } }), cause);
    }
    case "abort":
      return note(change(draft, { pending: draft.state.pending.filter((other) => other.id !== pending.id) }), {
        side: "source",
        note: `Perform could not be stopped: ${fault.cause}`,
      });
    case "finish":
      return draft.state.step === "finishing" && isUnusable(draft.state, fault)
        ? giveUpFinish(draft, failure)
        : hold(draft, failure, pending.kind, fault.retry === "safe");
    case "confirm":
    case "settle":
    case "restore":
    case "unstage":
      return hold(draft, failure, pending.kind, fault.retry === "safe");
    case "restoreBundle":
      return draft;
  }
}

/** Tries of Finish with a cookie C that cannot be had before the way back is taken. */
const unreachableCookieMax = 3;

/** Cookie C is gone or altered: the destination can never be told to start, and has decided nothing. */
function isUnusable(state: MigrationState, fault: FaultBody): boolean {
  if (fault.code === "cookie.altered") return true;
  return fault.code === "bundle.unreachable" && (state.attempts.finish ?? 0) >= unreachableCookieMax;
}

/** The destination's journal is the arbiter: it is asked to abort, and its receipt says what became of that. */
function giveUpFinish(draft: Draft, failure: Failure): Draft {
  const failed = fail(draft, failure);
  return enter(change(failed, { epoch: failed.state.epoch + 1 }), "abortingFinish", "finish");
}

function discardBundle(draft: Draft): Draft {
  const { bundle } = draft.state;
  return bundle === null ? draft : { ...draft, effects: [...draft.effects, { type: "discard", key: bundle.key }] };
}

/** Before Perform a cancel turns round at once; during Perform it asks libvirt to stop and the end of Perform decides; while
 *  Finish is being asked for, the destination's journal decides which came first; later it is too late. */
const cancelable: Record<Step, "now" | "abort" | "arbiter" | "late"> = {
  inspectingSource: "now",
  inspectingDestination: "now",
  exporting: "now",
  staging: "now",
  beginning: "now",
  preparing: "now",
  performing: "abort",
  finishing: "arbiter",
  confirming: "late",
  settling: "late",
  abortingFinish: "late",
  abortingConfirm: "late",
  restoring: "late",
  unstaging: "late",
  sweeping: "late",
  ended: "late",
};

function cancelRequested(draft: Draft, by: string): Draft {
  const failure = failureOf(
    {
      code: "migration.cancelled",
      cause: `Cancelled by ${by}.`,
      action: "Nothing to do: the domain stays on its source.",
      retry: "never",
    },
    draft.state.step,
    null,
  );
  const wished = change(draft, { cancel: { by, at: draft.at, outcome: "pending" } });
  switch (cancelable[draft.state.step]) {
    case "now":
      return retreat(wished, failure);
    case "abort":
      return draft.state.receipt === null && draft.state.abortCause === null ? abortPerform(wished, failure) : draft;
    case "arbiter":
      return giveUpFinish(wished, failure);
    case "late":
      return draft;
  }
}

function abortPerform(draft: Draft, abortCause: NonNullable<MigrationState["abortCause"]>): Draft {
  if (draft.state.abortCause !== null) return draft;
  return issue(note(change(draft, { abortCause }), { side: abortCause.side, note: abortCause.cause }), "abort");
}

/** A hint that saves the rest of a hopeless transfer. Only the end of Perform and the receipt decide. */
function connectionLost(draft: Draft, event: Extract<MigrationEvent, { type: "connectionLost" }>): Draft {
  if (draft.state.step !== "performing" || event.epoch !== draft.state.epoch) return draft;
  const failure = failureOf(
    {
      code: "destination.lost",
      cause: event.cause,
      action: "Look at the destination's libvirt daemon (journalctl -u libvirtd), then migrate again.",
      retry: "safe",
    },
    "performing",
    "destination",
  );
  return abortPerform(draft, failure);
}
