/**
 * The ways back. Rolling back always ends with: the source as it was, its tree complete and compared; nothing of ours left
 * on the destination. The order is the destination's verdict first, then the source, then the destination's leftovers:
 * the source is confirmed only by a receipt (I2), and what holds the guest comes before what only needs sweeping.
 *
 * Turning round raises the epoch, so a delayed command of the way forward is refused by the shims (I5).
 */
import type { CommandKind, Side } from "#protocol/command";
import type { Draft } from "./draft.ts";
import { change, end, enter, fail, note } from "./draft.ts";
import type { Failure, MigrationState, Step } from "./state.ts";

/** Gives up the way forward because of a failure and starts undoing what was touched. */
export function retreat(draft: Draft, failure: Failure): Draft {
  const failed = fail(draft, failure);
  const turned = change(failed, { epoch: failed.state.epoch + 1, pending: [] });
  if (untouched(turned.state)) return end(turned, endStatus(turned.state), "nothing was changed on either host");
  const { touched, receipt } = turned.state;
  // With a receipt the destination has decided already: it is asked nothing more.
  if (touched.prepared && receipt?.outcome !== "destroyed") return enter(turned, "abortingFinish", "finish");
  return undoSource(turned);
}

/** Only inspections happened: refusing costs nothing and there is nothing to undo. */
const untouched = (state: MigrationState): boolean =>
  state.step === "inspectingSource" || state.step === "inspectingDestination";

/** The destination holds no running copy. A source paused by Perform is resumed by its receipt (I2); otherwise libvirt resumed it itself. */
export function undoSource(draft: Draft): Draft {
  const { touched, receipt } = draft.state;
  if (touched.performed && receipt?.outcome === "destroyed") return confirmSource(draft, "abortingConfirm");
  return restoreSource(draft);
}

/** A fenced host is not waited for: what it owes is kept for the day it returns, and the next step is taken. */
const isFenced = (draft: Draft, side: Side): boolean => draft.state.fenced?.side === side;
const owe = (draft: Draft, kind: CommandKind): Draft => change(draft, { sweep: [...draft.state.sweep, kind] });

/** The source gives the domain up or takes it back, as the receipt says. */
export function confirmSource(draft: Draft, step: "confirming" | "abortingConfirm"): Draft {
  if (!isFenced(draft, "source")) return enter(draft, step, "confirm");
  const owed = owe(draft, "confirm");
  return step === "confirming" ? settleDestination(owed) : restoreSource(owed);
}

export function restoreSource(draft: Draft): Draft {
  if (!isFenced(draft, "source")) return enter(draft, "restoring", "restore");
  return undoDestination(owe(draft, "restore"));
}

/** The domain has arrived. On a destination that was fenced since, nobody can look at it: that is said, not guessed. */
export function settleDestination(draft: Draft): Draft {
  if (!isFenced(draft, "destination")) return enter(draft, "settling", "settle");
  const { destination } = draft.state;
  // What was said before of its going on on the source is not so: it arrived.
  return end(
    fail(change(owe(draft, "settle"), { failure: null }), {
      code: "settle.failed",
      cause: `The domain had arrived on ${destination.name}, which was fenced before its tree was verified.`,
      action: `When ${destination.name} is back, its shim verifies the tree by itself; then start the domain there.`,
      retry: "person",
      phase: draft.state.step,
      side: "destination",
    }),
    "stranded",
    "stranded: the domain is on a fenced host",
  );
}

/** The source is whole again: sweep the destination, if anything of ours may be there. */
export function undoDestination(draft: Draft): Draft {
  const { touched } = draft.state;
  if (!touched.staged && !touched.prepared) return rolledBack(draft);
  return isFenced(draft, "destination") ? rolledBack(owe(draft, "unstage")) : enter(draft, "unstaging", "unstage");
}

export const rolledBack = (draft: Draft): Draft => end(draft, endStatus(draft.state), "rolled back");

function endStatus(state: MigrationState): MigrationState["status"] {
  if (state.failure?.code === "migration.cancelled") return "cancelled";
  return untouched(state) ? "refused" : "rolledBack";
}

/** The steps that are tried until they succeed: from Finish on, silence is no answer (I2), and a way back must reach its end. */
export const persistentSteps: Partial<Record<Step, CommandKind>> = {
  finishing: "finish",
  confirming: "confirm",
  settling: "settle",
  abortingFinish: "finish",
  abortingConfirm: "confirm",
  restoring: "restore",
  unstaging: "unstage",
};

/** Attempts of one command before its failing is shown as `stranded`; the timer goes on trying each minute (I10). */
const quietAttemptsMax = 3;

/** A persistent step's command failed: the step stays, the timer tries again, a person is told unless trying again is all it takes. */
export function hold(draft: Draft, failure: Failure, kind: CommandKind, retrySafe: boolean): Draft {
  const failed = fail(change(draft, { pending: [] }), failure);
  const attempts = failed.state.attempts[kind] ?? 0;
  if (retrySafe && attempts < quietAttemptsMax) return failed;
  return strand(failed, `${failure.action} Then this step is tried again by itself every minute.`);
}

/** Says that a person is needed; the step and its commands stay, and a later report still moves it on. */
export function strand(draft: Draft, text: string): Draft {
  if (draft.state.status === "stranded") return draft;
  const strandings = (draft.state.strandings ?? 0) + 1;
  return note(change(draft, { status: "stranded", strandings }), { note: `stranded: ${text}` });
}

/** Stranded by silence: the cause is the silence, until the host speaks again. */
export function strandSilent(draft: Draft, failure: Failure): Draft {
  if (draft.state.status === "stranded") return draft;
  return strand(fail(draft, failure), failure.action);
}

/** On the way forward a failure is recorded only by silence; on the way back it is why we turned round and stays. */
const forwardSteps: ReadonlySet<Step> = new Set(["performing", "finishing", "confirming", "settling"]);

/** A host that was silent has spoken: its silence is no longer why anything fails. */
export function wake(draft: Draft): Draft {
  const { status, step, failure } = draft.state;
  if (status !== "stranded") return draft;
  const silence = failure?.code === "host.offline" || failure?.code === "step.overdue";
  return change(draft, { status: "running", ...(silence && forwardSteps.has(step) ? { failure: null } : {}) });
}
