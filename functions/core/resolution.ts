/**
 * What a person can say that no machine can: that a host is fenced, so that it runs no copy and will not by itself. Nothing
 * less takes the place of a receipt (I1, I2); who said it and why is part of the story. What the fenced host owes is asked
 * of it when it returns (`sweeping`), so that it keeps nothing of the migration (I4).
 */
import type { CommandKind, Report, Side } from "#protocol/command";
import { change, type Draft, enter, fail, failureOf, issue, note } from "./draft.ts";
import type { MigrationEvent } from "./event.ts";
import { sweepAttemptsMax } from "./limits.ts";
import { confirmSource, restoreSource, rolledBack, settleDestination, undoSource, wake } from "./retreat.ts";
import type { Pending, Step } from "./state.ts";

type Resolved = Extract<MigrationEvent, { type: "resolved" }>;

/** Why a statement changes nothing now; null: it would. */
export function unresolvable(state: Draft["state"], fenced: Side): string | null {
  if (state.step === "ended" || state.step === "sweeping") return `It has ended (${state.status}).`;
  if (state.fenced !== null) return `${state[state.fenced.side].name} was stated to be fenced already.`;
  if (!waitsFor[fenced].has(state.step))
    return `${state.step} does not wait for ${state[fenced].name}; what it waits for ends by itself.`;
  if (fenced === "destination" && state.step !== "settling" && state.receipt?.outcome === "started")
    return `${state.destination.name} has stated that it runs the domain; the source's memory is of before that.`;
  return null;
}

/** The steps that a silent host of that side can hold up for good. */
const waitsFor: Record<Side, ReadonlySet<Step>> = {
  source: new Set(["performing", "finishing", "confirming", "abortingFinish", "abortingConfirm", "restoring"]),
  destination: new Set(["finishing", "abortingFinish", "settling", "unstaging"]),
};

export function resolved(draft: Draft, { by, reason, fenced, at }: Resolved): Draft {
  if (unresolvable(draft.state, fenced) !== null) return draft;
  const { name } = draft.state[fenced];
  const spoken = wake(change(draft, { status: "stranded" }));
  const stated = note(change(spoken, { fenced: { side: fenced, by, reason, at } }), {
    side: fenced,
    note: `${by} states that ${name} is fenced: ${reason}`,
  });
  return fenced === "source" ? withoutSource(stated) : withoutDestination(stated);
}

function withoutSource(draft: Draft): Draft {
  const { step, receipt } = draft.state;
  switch (step) {
    case "performing": {
      if (receipt?.outcome === "started") return confirmSource(draft, "confirming");
      const lost = failureOf(
        {
          code: "source.lost",
          cause: `The source ${draft.state.source.name} was lost during Perform, and fenced.`,
          action: "The domain is defined on the source; start it when that host is back.",
          retry: "person",
        },
        "performing",
        "source",
      );
      const turned = change(fail(draft, lost), {
        epoch: draft.state.epoch + 1,
        touched: { ...draft.state.touched, performed: true },
      });
      return receipt === null ? enter(turned, "abortingFinish", "finish") : undoSource(turned);
    }
    case "confirming":
    case "abortingConfirm":
      return confirmSource(draft, step);
    case "restoring":
      return restoreSource(draft);
    default:
      // The destination is being asked; what follows does without the source.
      return draft;
  }
}

/** No copy runs there: the receipt that the destination can no longer give is given by the person. */
function withoutDestination(draft: Draft): Draft {
  const { step } = draft.state;
  if (step === "settling") return settleDestination(draft);
  if (step === "unstaging") return rolledBack(change(draft, { sweep: [...draft.state.sweep, "unstage"] }));
  const lost = failureOf(
    {
      code: "destination.lost",
      cause: `The destination ${draft.state.destination.name} was lost before it stated how Finish ended, and fenced.`,
      action: "The domain goes on on its source.",
      retry: "safe",
    },
    step,
    "destination",
  );
  const failed = fail(draft, lost);
  const receipt = failed.state.receipt ?? { outcome: "destroyed", evidence: "fenced", at: draft.at };
  return undoSource(change(failed, { epoch: failed.state.epoch + (step === "finishing" ? 1 : 0), receipt }));
}

/** A host that was fenced has answered what it owed. */
export function swept(draft: Draft, pending: Pending, result: Report["result"]): Draft {
  const { side } = pending;
  // A host that has finished with the migration and forgotten it keeps nothing of it.
  const forgotten = !result.ok && result.fault.code === "epoch.stale";
  if (!result.ok && !forgotten) return sweepAgain(draft, pending.kind, side, result.fault.cause);
  // What could not be looked at on the fenced host has been, now: the migration is what it was on the way to be.
  const settled = result.ok && result.body.kind === "settle" ? ({ status: "completed", failure: null } as const) : {};
  const noted = note(change(draft, { ...settled, pending: [], sweep: draft.state.sweep.slice(1) }), {
    side,
    note: `${draft.state[side].name} is back and has done what it owed (${pending.kind})`,
  });
  const [next] = noted.state.sweep;
  return next === undefined ? done(noted) : issue(noted, next);
}

/** Asked again with the next heartbeat of that host, a bounded number of times. */
function sweepAgain(draft: Draft, kind: CommandKind, side: Side, cause: string): Draft {
  const noted = note(change(draft, { pending: [] }), { side, note: `${kind} on the returned host failed: ${cause}` });
  if ((draft.state.attempts[kind] ?? 0) >= sweepAttemptsMax)
    return done(note(noted, { side, note: `given up: look at what ${draft.state[side].name} keeps of the domain` }));
  return { ...issue(noted, kind), effects: noted.effects };
}

const done = (draft: Draft): Draft => {
  const rested = change(draft, { step: "ended", pending: [], sweep: [] });
  return { ...rested, effects: [...rested.effects, { type: "release", keep: null }] };
};
