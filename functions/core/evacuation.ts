/**
 * evacuate(state, event) -> {state, effects}: one evacuation, undo or restore as a pure total function. It awaits nothing, knows
 * no clock and no random, and for an event that changes nothing returns the very state it was given, with no effects.
 *
 * Upheld: I8 (it only asks for migrations and learns how they ended; no domain is ever stopped), I6 in its own way (a migration's
 * id is fixed before it is asked for, so it is never asked for twice under two names); at most one migration of a domain; an
 * ended evacuation is final, and each of its domains has a stated result.
 */
import type { FaultBody } from "#protocol/fault";
import {
  change,
  changeDomain,
  type Draft,
  draftOf,
  type Evacuated,
  note,
  reasonOf,
  unheld,
} from "./evacuation-draft.ts";
import type { EvacuationEvent } from "./evacuation-event.ts";
import { outlookOf } from "./evacuation-fault.ts";
import { decidedAtMs } from "./evacuation-id.ts";
import { attemptsMaxOf, backoffMs, lostStartMs, triedMax } from "./evacuation-limits.ts";
import { deadlineFault, looked } from "./evacuation-look.ts";
import { actionForRest, isEnded, settle, settledByOthers, stop } from "./evacuation-result.ts";
import type { EvacuationDomain, EvacuationState } from "./evacuation-state.ts";

export type { Evacuated } from "./evacuation-draft.ts";

export function evacuate(state: EvacuationState, event: EvacuationEvent): Evacuated {
  if (isEnded(state)) return { state, effects: [] };
  const draft = draftOf(state, event.at);
  // The deadline comes first: an event that is late starts nothing.
  const next = settle(apply(overdue(draft), event), event.type);
  if (next.state === state) return { state, effects: [] };
  return { state: { ...next.state, version: state.version + 1, updatedAt: event.at }, effects: next.effects };
}

function apply(draft: Draft, event: EvacuationEvent): Draft {
  switch (event.type) {
    case "looked":
      return looked(draft, event);
    case "migrationStarted":
    case "ticked":
      return draft;
    case "migrationRefused":
      return ended(draft, { ...event, status: "refused" });
    case "migrationEnded":
      return ended(draft, event);
    case "migrationMissing":
      return missing(draft, event);
    case "domainGone":
      return taken(draft, event.domainUuid, "No host has it any more: it was removed or undefined meanwhile.");
    case "domainElsewhere":
      return elsewhere(draft, event);
    case "cancelRequested":
      return stop(draft, {
        code: "migration.cancelled",
        cause: `It was cancelled by ${event.by}.`,
        action: actionForRest(
          draft.state,
          "Evacuate again for what is left; vmferry evacuation undo brings back what has moved.",
        ),
        retry: "safe",
      });
  }
}

const find = ({ domains }: EvacuationState, uuid: string): EvacuationDomain | undefined =>
  domains.find(({ domain }) => domain.uuid === uuid);

function overdue(draft: Draft): Draft {
  const { deadlineAt } = draft.state;
  return deadlineAt === null || draft.atMs < Date.parse(deadlineAt)
    ? draft
    : stop(draft, deadlineFault(draft.state, deadlineAt));
}

type Ended = Pick<
  Extract<EvacuationEvent, { type: "migrationEnded" }>,
  "domainUuid" | "migrationId" | "status" | "fault"
>;

const unsaid: FaultBody = {
  code: "internal",
  cause: "The migration did not say why it ended.",
  action: "Look at it: vmferry migration show.",
  retry: "safe",
};

function ended(draft: Draft, { domainUuid, migrationId, status, fault }: Ended): Draft {
  const each = find(draft.state, domainUuid);
  if (each?.migrationId !== migrationId) return draft;
  // A stranded migration that a person resolved, or whose host came back, says how it ended after all.
  const late = each.state === "failed" && status === "completed";
  if (each.state !== "moving" && !late) return draft;
  const why = fault ?? unsaid;
  switch (status) {
    case "completed":
      return arrived(draft, each, migrationId);
    case "cancelled":
      return conclude(draft, each, "stays", { ...why, code: "migration.cancelled" });
    case "refused":
      return again(draft, each, why);
    case "rolledBack":
      return again(counted(draft, why), each, why);
    case "stranded":
      return conclude(counted(draft, why), each, "failed", why);
  }
}

function arrived(
  draft: Draft,
  { domain: { uuid }, homeId, destinationId }: EvacuationDomain,
  migrationId: string,
): Draft {
  const { kind, host } = draft.state;
  const calm = change(draft, { failuresInRow: 0 });
  if (kind === "evacuate" || destinationId === null || destinationId === host.id)
    return note(changeDomain(calm, uuid, { state: "moved", reason: null }), "has arrived", uuid);
  const stopped = changeDomain(calm, uuid, {
    state: "waiting",
    homeId: destinationId,
    destinationId: null,
    migrationId: null,
    stop: { fromId: homeId, migrationId },
    triedIds: [],
    notBefore: null,
    reason: null,
  });
  return note(unheld(stopped, uuid), `is on ${destinationId}, on its way home`, uuid);
}

/** The breaker: so many failures in a row, of whichever domains, are no bad luck any more. */
function counted(draft: Draft, fault: FaultBody): Draft {
  const failuresInRow = draft.state.failuresInRow + 1;
  const next = change(draft, { failuresInRow });
  if (failuresInRow < draft.state.policy.breakerFailures) return next;
  const cause = `${failuresInRow} migrations in a row have failed; the last: ${fault.cause}`;
  return stop(next, { code: fault.code, cause, action: fault.action, retry: "person" });
}

function conclude(draft: Draft, each: EvacuationDomain, result: "stays" | "failed", why: FaultBody): Draft {
  const { uuid } = each.domain;
  const fields = { state: result, notBefore: null, reason: reasonOf(draft, why) };
  return note(unheld(changeDomain(draft, uuid, fields), uuid), `${result}: ${why.cause}`, uuid);
}

/** A try that came to nothing: the domain is where it was. What becomes of it is said by the fault's code. */
function again(draft: Draft, each: EvacuationDomain, why: FaultBody): Draft {
  const outlook = outlookOf(why);
  if (outlook === "never") return conclude(draft, each, "stays", why);
  if (each.attempts >= attemptsMaxOf(draft.state, each)) return conclude(draft, each, "failed", why);
  const { uuid } = each.domain;
  const tried = outlook === "elsewhere" && each.destinationId !== null ? [each.destinationId] : [];
  const waits = changeDomain(draft, uuid, {
    state: "waiting",
    triedIds: [...new Set([...each.triedIds, ...tried])].slice(-triedMax),
    notBefore: new Date(draft.atMs + backoffMs(each.attempts, uuid)).toISOString(),
    reason: reasonOf(draft, why),
  });
  return note(waits, `try ${each.attempts} came to nothing: ${why.cause}`, uuid);
}

/**
 * The effect was lost on its way: no try was made, so the next look may decide again, with all that is true then. Who dispatches
 * an effect does so within `lostStartMs` of its decision or not at all; the domain's lock stands behind that.
 */
function missing(draft: Draft, { domainUuid, migrationId }: { domainUuid: string; migrationId: string }): Draft {
  const each = find(draft.state, domainUuid);
  if (each?.state !== "moving" || each.migrationId !== migrationId) return draft;
  if (draft.atMs - decidedAtMs(migrationId) < lostStartMs) return draft;
  const fields = { state: "waiting" as const, destinationId: null, migrationId: null, attempts: each.attempts - 1 };
  return note(changeDomain(draft, domainUuid, fields), "its migration was never created", domainUuid);
}

function elsewhere(draft: Draft, { domainUuid, hostId }: { domainUuid: string; hostId: string }): Draft {
  if (find(draft.state, domainUuid)?.homeId === hostId) return draft;
  return taken(draft, domainUuid, `Somebody else moved it to ${hostId} meanwhile.`);
}

/** Somebody else's deed is a result, and never fought. */
function taken(draft: Draft, domainUuid: string, cause: string): Draft {
  const each = find(draft.state, domainUuid);
  if (each === undefined || (each.state !== "waiting" && each.state !== "stays") || settledByOthers(each)) return draft;
  return conclude(draft, each, "stays", { code: "domain.absent", cause, action: "Nothing to do.", retry: "never" });
}
