/**
 * What one look at the fleet starts. Upheld here: limits out of a host, into a host, of a network and of the fleet count every migration,
 * whoever asked for it; a silent host neither sends nor receives; nothing is started that is not estimated to end before the
 * deadline; one domain that cannot move holds no other; while a mass of hosts is silent nothing is started at all.
 */
import { change, changeDomain, type Draft, emit, note, reasonOf, unheld } from "./evacuation-draft.ts";
import type { EvacuationEvent, SeenHost } from "./evacuation-event.ts";
import { passes } from "./evacuation-fault.ts";
import { evacuationMigrationId } from "./evacuation-id.ts";
import {
  attemptsMaxOf,
  massSilence,
  networksOf,
  type Occupied,
  occupied,
  occupy,
  patienceMs,
  runningOf,
} from "./evacuation-limits.ts";
import { actionForRest, heldFault, settledByOthers, stop } from "./evacuation-result.ts";
import { closedNote, type EvacuationDomain, type EvacuationState } from "./evacuation-state.ts";
import { type Networks, touched } from "./network.ts";
import type { BlockedDomain, PlannedMove } from "./placement-view.ts";

type Looked = Extract<EvacuationEvent, { type: "looked" }>;

export function looked(draft: Draft, event: Looked): Draft {
  if (draft.state.status !== "running") return draft;
  const seen = brake(draft, event.hosts);
  const host = event.hosts.find(({ id }) => id === seen.state.host.id);
  const { draft: gated, open } = gate(seen, host);
  if (!open || gated.state.held !== null) return gated;
  const others = new Set(event.running.map(({ domainUuid }) => domainUuid));
  const weighed = event.plan.blocked.reduce(
    (next, blocked) => (others.has(blocked.domainUuid) ? next : weigh(next, blocked)),
    patient(gated, event),
  );
  const { draft: started, unfit } = start(weighed, event, others);
  return tooLate(started, unfit);
}

/** Held while too many went silent at once. Its figures stay those of when it began: a brake that holds is one fact. */
function brake(draft: Draft, hosts: readonly SeenHost[]): Draft {
  const mass = massSilence(hosts, draft.atMs);
  if (mass === null)
    return draft.state.held === null ? draft : note(change(draft, { held: null }), "the hosts are back: going on");
  if (draft.state.held !== null) return draft;
  const cause = `${mass.silent} of ${mass.of} hosts went silent within a minute: more likely the network than the hosts.`;
  const action = "Look at the control plane's network first. It goes on by itself when they are heard of again.";
  const held = heldFault({ code: "host.offline", cause, action, retry: "safe" });
  return note(change(draft, { held }), `held: ${cause}`);
}

/**
 * An evacuation closes its host and keeps it closed until it ends; to open it, cancel the evacuation. An undo and a restore
 * open it once; what closes it after that is somebody's wish, and its domains stay where they are. Both are said again
 * until they are seen done.
 */
function gate(draft: Draft, host: SeenHost | undefined): { draft: Draft; open: boolean } {
  const { kind, cordoned } = draft.state;
  if (host === undefined) return { draft, open: true };
  if (kind === "evacuate") {
    if (host.cordoned) return { draft, open: true };
    const closing = note(change(draft, { cordoned: true, closedHost: true }), closedNote);
    return { draft: emit(closing, { type: "cordon", hostId: host.id }), open: true };
  }
  if (!cordoned) return { draft, open: true };
  if (!host.cordoned) return { draft: change(draft, { cordoned: false }), open: true };
  const opening = note(draft, "the host is opened, so that it takes its domains back");
  return { draft: emit(opening, { type: "uncordon", hostId: host.id }), open: false };
}

const find = ({ domains }: EvacuationState, uuid: string): EvacuationDomain | undefined =>
  domains.find(({ domain }) => domain.uuid === uuid);

/** To be started if the plan says so: also what stays, for a blocker may have vanished. */
const startable = (each: EvacuationDomain): boolean =>
  each.state === "waiting" || (each.state === "stays" && !settledByOthers(each));

const isBackingOff = ({ notBefore }: EvacuationDomain, atMs: number): boolean =>
  notBefore !== null && Date.parse(notBefore) > atMs;

/** While something leaves home, who is blocked by nothing else waits for that, however long it takes: his patience begins when it has left. */
function patient(draft: Draft, { plan, running }: Looked): Draft {
  const { kind, host, domains } = draft.state;
  if (kind === "evacuate" || !running.some(({ sourceId }) => sourceId === host.id)) return draft;
  const blocked = new Set(plan.blocked.map(({ domainUuid }) => domainUuid));
  return domains
    .filter(
      ({ state, waitsSince, domain }) => state === "waiting" && waitsSince !== undefined && !blocked.has(domain.uuid),
    )
    .reduce((next, { domain }) => unheld(next, domain.uuid), draft);
}

/** What the planner says is in the way of a domain: waited for with patience, or stated as the reason why it stays. */
function weigh(draft: Draft, { domainUuid, blocker }: BlockedDomain): Draft {
  const each = find(draft.state, domainUuid);
  if (each === undefined || !startable(each) || isBackingOff(each, draft.atMs)) return draft;
  const reason = reasonOf(draft, blocker);
  if (each.state === "stays") {
    if (each.reason?.code === blocker.code) return draft;
    return note(changeDomain(draft, domainUuid, { reason }), `stays: ${blocker.cause}`, domainUuid);
  }
  const since = each.waitsSince ?? draft.at;
  if (passes(blocker) && draft.atMs - Date.parse(since) < patienceMs) {
    if (each.waitsSince !== undefined && each.reason?.code === blocker.code) return draft;
    const held = changeDomain(draft, domainUuid, { waitsSince: since, reason });
    return note(held, `waits: ${blocker.cause}`, domainUuid);
  }
  const stays = unheld(changeDomain(draft, domainUuid, { state: "stays", notBefore: null, reason }), domainUuid);
  return note(stays, `stays: ${blocker.cause}`, domainUuid);
}

/** Starts what the plan puts first, as far as the limits go. `unfit`: the domains that only the deadline keeps. */
function start(draft: Draft, event: Looked, others: ReadonlySet<string>): { draft: Draft; unfit: Set<string> } {
  const { deadlineAt } = draft.state;
  const timely = (move: PlannedMove): boolean =>
    deadlineAt === null || draft.atMs + Math.max(0, move.endMs - move.startMs) <= Date.parse(deadlineAt);
  const possible = event.plan.moves.filter((move) => isPossible(draft, event, move) && !others.has(move.domainUuid));
  const unfit = new Set(possible.filter((move) => !timely(move)).map(({ domainUuid }) => domainUuid));
  const candidates = possible.filter(timely);
  const networks = networksOf(event.hosts);
  const counts = occupied([...event.running, ...runningOf(draft.state)], networks);
  // A wave is an order, not a gate: who has no slot now holds nobody who has one.
  const next = candidates
    .sort((one, other) => one.wave - other.wave || one.startMs - other.startMs)
    .reduce(
      (made, move) => (hasRoom(counts, draft.state, move, networks) ? begin(made, counts, move, networks) : made),
      draft,
    );
  return { draft: next, unfit };
}

function isPossible({ state, atMs }: Draft, { hosts }: Looked, move: PlannedMove): boolean {
  const each = find(state, move.domainUuid);
  if (each === undefined || !startable(each) || isBackingOff(each, atMs)) return false;
  if (each.attempts >= attemptsMaxOf(state, each) || move.waits === true) return false;
  if (move.fromId !== each.homeId || move.toId === move.fromId) return false;
  const meant =
    state.kind === "evacuate"
      ? (state.policy.to?.includes(move.toId) ?? true)
      : move.toId === state.host.id || (move.stopsOver === true && each.stop === undefined);
  const heard = (id: string): boolean => hosts.some((host) => host.id === id && host.silentSinceMs === null);
  return meant && heard(move.fromId) && heard(move.toId);
}

function hasRoom(
  counts: Occupied,
  { policy }: EvacuationState,
  { fromId, toId }: PlannedMove,
  networks: Networks,
): boolean {
  const networkMax = policy.networkMax ?? Number.POSITIVE_INFINITY;
  return (
    touched(networks, fromId, toId).every((network) => (counts.networks.get(network) ?? 0) < networkMax) &&
    counts.fleet < policy.fleetMax &&
    (counts.out.get(fromId) ?? 0) < policy.outMax &&
    (counts.in.get(toId) ?? 0) < policy.inMax
  );
}

function begin(draft: Draft, counts: Occupied, move: PlannedMove, networks: Networks): Draft {
  const { state } = draft;
  const each = find(state, move.domainUuid);
  // A plan that names a domain twice moves it once.
  if (each === undefined || !startable(each)) return draft;
  const attempts = each.attempts + 1;
  const migrationId = evacuationMigrationId(state.id, state.domains.indexOf(each), attempts, draft.atMs);
  const moving = unheld(
    changeDomain(draft, move.domainUuid, {
      state: "moving",
      destinationId: move.toId,
      migrationId,
      attempts,
      notBefore: null,
      reason: null,
    }),
    move.domainUuid,
  );
  occupy(counts, { sourceId: move.fromId, destinationId: move.toId }, networks);
  const again = attempts === 1 ? "" : `, try ${attempts} of ${attemptsMaxOf(state, each)}`;
  return emit(note(moving, `goes to ${move.toId}${again}: ${move.reason}`, move.domainUuid), {
    type: "startMigration",
    migrationId,
    domain: each.domain,
    sourceId: each.homeId,
    destinationId: move.toId,
    accept: state.policy.accept,
    bandwidthMiBps: state.policy.bandwidthMiBps,
  });
}

/** States of each domain what the deadline keeps from moving; when nothing else is left to wait for, that is the end. */
function tooLate(draft: Draft, unfit: ReadonlySet<string>): Draft {
  const { deadlineAt } = draft.state;
  if (deadlineAt === null) return draft;
  const cause = `Moving it is estimated to take longer than until the deadline at ${deadlineAt}.`;
  const late = {
    code: "step.overdue" as const,
    cause,
    action: actionForRest(draft.state, "Evacuate again with a later deadline."),
    retry: "safe" as const,
  };
  const stated = draft.state.domains.reduce((next, each) => {
    const { uuid } = each.domain;
    if (each.state !== "waiting" || !unfit.has(uuid) || each.reason?.code === late.code) return next;
    return note(unheld(changeDomain(next, uuid, { reason: reasonOf(next, late) }), uuid), cause, uuid);
  }, draft);
  const { domains } = stated.state;
  const hopeless = ({ domain, notBefore }: EvacuationDomain): boolean =>
    unfit.has(domain.uuid) || (notBefore !== null && Date.parse(notBefore) >= Date.parse(deadlineAt));
  const left = domains.filter(({ state }) => state === "waiting");
  if (left.length === 0 || domains.some(({ state }) => state === "moving") || !left.every(hopeless)) return stated;
  return stop(stated, deadlineFault(stated.state, deadlineAt));
}

export const deadlineFault = (state: EvacuationState, deadlineAt: string) => ({
  code: "step.overdue" as const,
  cause: `What is left cannot be moved before the deadline at ${deadlineAt}.`,
  action: actionForRest(state, "Evacuate again with a later deadline for what is left."),
  retry: "safe" as const,
});
