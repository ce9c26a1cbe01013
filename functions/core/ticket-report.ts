/**
 * What shims report of commands that they made themselves, by their ticket. The functions learn of it, in whatever order it
 * comes: the source may have died after its guest had moved, or its channel may have healed while we relayed.
 */
import type { TicketKind } from "#protocol/ticket";
import { advances, contradicts, peerReceipt, turnRound } from "./advance.ts";
import { change, type Draft } from "./draft.ts";
import type { StoredReport } from "./event.ts";
import { wake } from "./retreat.ts";
import type { Step } from "./state.ts";

/** Where a receipt is awaited by us, and where a confirmation is. */
const finishing: ReadonlySet<Step> = new Set(["finishing", "abortingFinish"]);
const confirming: ReadonlySet<Step> = new Set([
  "performing",
  "finishing",
  "abortingFinish",
  "confirming",
  "abortingConfirm",
]);

const forward: ReadonlySet<Step> = new Set(["performing", "finishing"]);

export function ticketReported(draft: Draft, kind: TicketKind, report: StoredReport): Draft {
  const { result } = report;
  if (!result.ok || result.body.kind !== kind) return draft;
  const { body, blobs } = result;
  const { step } = draft.state;
  if (body.kind === "finish") {
    if (contradicts(draft.state, body.receipt)) return draft;
    if (finishing.has(step)) return advances.finish({ draft: wake(draft), body, blobs, ms: report.ms });
    if (step !== "performing" || draft.state.receipt !== null) return draft;
    // Perform's own report will follow, with what the source has done by this receipt.
    const told = { receipt: body.receipt, blobs: { ...draft.state.blobs, ...blobs }, performSeen: null };
    return peerReceipt(change(wake(draft), told), body.receipt, report.ms);
  }
  if (body.kind !== "confirm" || !confirming.has(step) || contradicts(draft.state, body.receipt)) return draft;
  const known = draft.state.receipt;
  const told = change(wake(draft), { receipt: known === null || known.evidence === "fenced" ? body.receipt : known });
  // The source has taken the domain back before we had turned round.
  const turned = body.receipt.outcome === "destroyed" && forward.has(step) ? turnRound(told, null) : told;
  return advances.confirm({ draft: turned, body, blobs, ms: report.ms });
}
