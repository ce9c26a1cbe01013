/**
 * What the timer does about a migration: nothing while all is in time; try again what failed; give up what was not begun;
 * and from Perform on call a person, for silence decides nothing there (I2, I10).
 */
import type { Side } from "#protocol/command";
import { change, type Draft, failureOf, issue } from "./draft.ts";
import type { MigrationEvent } from "./event.ts";
import { awayMsMax, retryMsMax, strandedAfterMs } from "./limits.ts";
import { persistentSteps, retreat, strandSilent } from "./retreat.ts";
import type { MigrationState } from "./state.ts";

type Ticked = Extract<MigrationEvent, { type: "ticked" }>;
const elapsed = (from: string, to: string) => Date.parse(to) - Date.parse(from);

export function ticked(draft: Draft, event: Ticked): Draft {
  // What a fenced host owes may come in years: nobody waits for it.
  if (draft.state.step === "sweeping") return draft;
  if (draft.state.pending.length === 0) return tryAgain(draft);
  if (draft.state.step === "performing") return watchPerform(draft, event);
  return overdue(draft, event.unreachable);
}

/** The first tries follow each timer; later ones wait longer, so that a step that fails for days costs little and says it once. */
function tryAgain(draft: Draft): Draft {
  const kind = persistentSteps[draft.state.step];
  if (kind === undefined) return draft;
  const attempts = draft.state.attempts[kind] ?? 0;
  const waitMs = attempts < 3 ? 0 : Math.min(retryMsMax, 60_000 * 2 ** Math.min(attempts - 3, 10));
  return elapsed(draft.state.updatedAt, draft.at) < waitMs ? draft : issue(draft, kind);
}

/** Perform may take hours; while libvirt's own count moves that is no reason to call anybody. */
function watchPerform(draft: Draft, { elapsedMs, unreachable }: Ticked): Draft {
  const { state, at } = draft;
  const seen = state.performSeen;
  if (elapsedMs !== null && elapsedMs !== seen?.elapsedMs) return change(draft, { performSeen: { elapsedMs, at } });
  const issuedAt = state.pending.find(({ kind }) => kind === "perform")?.issuedAt ?? state.updatedAt;
  // With its receipt known, the guest runs over there, and only the source's word is missing.
  const waitMs = state.receipt !== null && unreachable.includes("source") ? awayMsMax : strandedAfterMs;
  if (elapsed(seen?.at ?? issuedAt, at) < waitMs) return draft;
  return silent(draft, "source", unreachable.includes("source"));
}

function overdue(draft: Draft, unreachable: readonly Side[]): Draft {
  const { state, at } = draft;
  const persistent = persistentSteps[state.step] !== undefined;
  const late = state.pending.find(
    (pending) =>
      elapsed(pending.deadlineAt, at) >= 0 ||
      (persistent && unreachable.includes(pending.side) && elapsed(pending.issuedAt, at) >= awayMsMax),
  );
  if (late === undefined) return draft;
  const away = unreachable.includes(late.side);
  if (persistent) return silent(draft, late.side, away);
  const { name } = state[late.side];
  const cause = away
    ? `Host ${name} has not been heard of while ${state.step} was waiting for it.`
    : `Host ${name} did not report ${late.kind} in time.`;
  const action = `Look at the shim on ${name} (journalctl -u vmferry-shim), then migrate again.`;
  return retreat(draft, failureOf({ code: code(away), cause, action, retry: "safe" }, state.step, late.side));
}

const code = (away: boolean) => (away ? ("host.offline" as const) : ("step.overdue" as const));

function silent(draft: Draft, side: Side, away: boolean): Draft {
  const { step }: MigrationState = draft.state;
  const { name } = draft.state[side];
  const arrived =
    draft.state.receipt?.outcome === "started" ? `The domain runs on ${draft.state.destination.name}; ` : "";
  const cause = `${arrived}${step} waits for host ${name}, ${away ? "which is away" : "which is connected but silent"}.`;
  const action = away
    ? `Bring the shim on ${name} back; the migration then goes on by itself. If ${name} is gone for good, make sure that it is powered off, then run: vmferry migration resolve ${draft.state.id} --fenced ${name} --reason WHY. Resume or destroy nothing by hand.`
    : `Look at the shim's and libvirt's logs on ${name} (journalctl -u vmferry-shim -u libvirtd). Resume or destroy nothing by hand.`;
  return strandSilent(draft, failureOf({ code: code(away), cause, action, retry: "person" }, step, side));
}
