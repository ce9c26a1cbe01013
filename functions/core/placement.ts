/**
 * The planner: from what is known of the fleet to a plan that a person can read before anything moves. `plan` empties hosts; `orderMoves` puts moves whose
 * ends are given into an order that fits (an undo, the way home). Both are pure, and the same view gives the same plan whatever its order.
 *
 * Only the domains of the plan are moved: no other one makes room for them. Room is counted at every instant, a moving domain on both hosts; what
 * is under way when the plan is made is held by both for all of it, for nobody knows how it ends. Nothing here starts or stops anything (I8).
 */
import { assign, groupNeeds } from "./placement-assignment.ts";
import {
  compareText,
  type Fleet,
  fleetOf,
  hostAt,
  isAllowed,
  isProven,
  Ledger,
  type Load,
} from "./placement-ledger.ts";
import { type Blocker, blockerOf, type Choice, explain, heldBack, obstaclesOn } from "./placement-obstacle.ts";
import { bestRanked, leftText, rankOf, reasonText, runnerUpText } from "./placement-rank.ts";
import { makespanOf, type ScheduledStep, type Step, schedule } from "./placement-schedule.ts";
import { type Item, type Sequence, sequence } from "./placement-sequence.ts";
import type { BlockedDomain, PlacementPolicy, PlacementView, Plan, PlannedMove, RoomProof } from "./placement-view.ts";

const runnersUpMax = 3;

/** A move whose end is given. */
export interface WantedMove {
  domainUuid: string;
  toId: string;
}

/** A domain that stops over has two moves, in this order. One that is there already is in neither list. */
export interface OrderedMoves {
  moves: PlannedMove[];
  blocked: BlockedDomain[];
  makespanMs: number;
}

interface Words {
  reason: string;
  runnersUp: PlannedMove["runnersUp"];
}

/** Empties these hosts. Each domain of theirs is in `moves` or in `blocked`; one that is just arriving there is in `blocked` as well. */
export function plan(view: PlacementView, fromHostIds: readonly string[], policy: PlacementPolicy): Plan {
  const fleet = fleetOf(view, policy);
  const choice: Choice = { emptied: new Set(fromHostIds), to: policy.to === null ? null : new Set(policy.to) };
  const ledger = Ledger.of(fleet);
  const blocked: BlockedDomain[] = arriving(fleet, choice.emptied);
  const loads: Load[] = [];
  for (const load of fleet.loads) {
    if (!choice.emptied.has(load.domain.hostId)) continue;
    const blocker = heldBack(fleet, load);
    if (blocker === null) loads.push(load);
    else blocked.push({ domainUuid: load.domain.uuid, fromId: load.domain.hostId, blocker });
  }
  const slots = [...fleet.hosts.keys()].filter((slot) => {
    const { id, closed } = hostAt(fleet, slot);
    return closed === null && !choice.emptied.has(id) && (choice.to === null || choice.to.has(id));
  });
  const assignment = assign({ loads, slots, ledger });
  const words = wordsOf(fleet, ledger, loads, slots, assignment);
  const items = loads.flatMap((load): Item[] => {
    const to = assignment.get(load);
    return to === undefined ? [] : [{ load, from: slotOf(fleet, load.domain.hostId), to }];
  });
  const after = ledger.clone();
  for (const { load, to } of items) after.add(load, to);
  for (const load of loads)
    if (!assignment.has(load))
      blocked.push({
        domainUuid: load.domain.uuid,
        fromId: load.domain.hostId,
        blocker: explain(fleet, after, load, choice),
      });
  // No destination is emptied, so any order fits; the most urgent go first.
  const scheduled = schedule(
    fleet,
    ledger,
    items.map((item) => ({ ...item, after: null })),
    false,
  );
  const moves = scheduled.map((entry) =>
    moveOf(fleet, entry, words.get(entry.step.load) ?? { reason: "", runnersUp: [] }),
  );
  const home = homeOf(view, moves, choice, policy);
  return {
    moves,
    blocked: blocked.sort(byDomain),
    makespanMs: makespanOf(moves),
    rooms: roomsOf(fleet, ledger, after, items),
    home: home.moves,
    homeBlocked: home.blocked,
  };
}

/**
 * An order for moves whose ends are given, in which no host is over its room at any instant; where two wait for each other's room, one stops over on
 * a third host (of `policy.to` where that is set). `policy.to` does not restrict the wanted ends themselves.
 */
export function orderMoves(view: PlacementView, wanted: readonly WantedMove[], policy: PlacementPolicy): OrderedMoves {
  return ordered(view, wanted, policy, false, "wanted there");
}

function ordered(
  view: PlacementView,
  wanted: readonly WantedMove[],
  policy: PlacementPolicy,
  fresh: boolean,
  why: string,
): OrderedMoves {
  const fleet = fleetOf(view, policy);
  const ledger = Ledger.of(fleet);
  const blocked: BlockedDomain[] = [];
  const goals = new Map<Load, number>();
  for (const { domainUuid, toId } of wanted) {
    const records = fleet.loadsOf.get(domainUuid) ?? [];
    if (records.some(({ domain }) => domain.hostId === toId)) continue;
    // One that stands on two hosts (it should not): the one that runs is meant.
    const load = records.find(({ domain }) => domain.active) ?? records[0];
    const blocker = load === undefined ? absent(domainUuid) : (heldBack(fleet, load) ?? goalBlocker(fleet, load, toId));
    if (blocker !== null || load === undefined)
      blocked.push({ domainUuid, fromId: load?.domain.hostId ?? "", blocker: blocker ?? absent(domainUuid) });
    else goals.set(load, slotOf(fleet, toId));
  }
  const items = fleet.loads.flatMap((load): Item[] => {
    const to = goals.get(load);
    return to === undefined ? [] : [{ load, from: slotOf(fleet, load.domain.hostId), to }];
  });
  const stops = [...fleet.hosts.keys()].filter((slot) => {
    const { id, closed } = hostAt(fleet, slot);
    return closed === null && (policy.to === null || policy.to.includes(id));
  });
  const { steps, stays }: Sequence = sequence(fleet, ledger, items, stops);
  for (const { item, blocker } of stays)
    blocked.push({ domainUuid: item.load.domain.uuid, fromId: item.load.domain.hostId, blocker });
  const last = new Map(steps.map((step) => [step.load, step]));
  const room = ledger.clone();
  const waits = waitingOf(ledger, steps);
  const moves = schedule(fleet, ledger, steps, fresh).map((entry) => {
    const { step } = entry;
    const stop = last.get(step.load) !== step;
    const left = leftText(fleet, room, step.load, step.to);
    room.add(step.load, step.to);
    room.remove(step.load, step.from);
    const goal = goals.get(step.load);
    const words = stop
      ? `stops over on the way to ${goal === undefined ? "its end" : hostAt(fleet, goal).name}, whose room comes free only later; has ${left}`
      : `${why}; has ${left}`;
    const move = moveOf(fleet, entry, { reason: words, runnersUp: [] });
    return { ...move, ...(stop ? { stopsOver: true } : {}), ...(waits.has(step) ? { waits: true } : {}) };
  });
  return { moves, blocked: blocked.sort(byDomain), makespanMs: makespanOf(moves) };
}

/**
 * The steps that may not begin yet: those whose room comes free only when one before them has left. All others may begin side by side, in any order. Who
 * comes behind one that waits for a host waits for it too, or it would take the room that this one waits for.
 */
function waitingOf(ledger: Ledger, steps: readonly Step[]): ReadonlySet<Step> {
  const room = ledger.clone();
  const waits = new Set<Step>();
  const awaited = new Set<number>();
  for (const step of steps) {
    if (step.after === null && !awaited.has(step.to) && room.fits(step.load, step.to)) room.add(step.load, step.to);
    else {
      waits.add(step);
      awaited.add(step.to);
    }
  }
  return waits;
}

/** The way back, as if everything had arrived and the emptied hosts took domains again. */
function homeOf(
  view: PlacementView,
  moves: readonly PlannedMove[],
  { emptied }: Choice,
  policy: PlacementPolicy,
): OrderedMoves {
  const arrived = new Map(moves.map(({ domainUuid, fromId, toId }) => [`${domainUuid} ${fromId}`, toId]));
  const later: PlacementView = {
    ...view,
    hosts: view.hosts.map((host) => (emptied.has(host.id) ? { ...host, closed: null } : host)),
    domains: view.domains.map((domain) => ({
      ...domain,
      hostId: arrived.get(`${domain.uuid} ${domain.hostId}`) ?? domain.hostId,
    })),
  };
  const wanted = moves.map(({ domainUuid, fromId }) => ({ domainUuid, toId: fromId }));
  return ordered(later, wanted, policy, true, "where it came from");
}

function arriving(fleet: Fleet, emptied: ReadonlySet<string>): BlockedDomain[] {
  return fleet.view.moving.flatMap(({ domainUuid, sourceId, destinationId }) => {
    const records = fleet.loadsOf.get(domainUuid) ?? [];
    // One that is listed on a host of this plan is held back like all that are under way.
    if (!emptied.has(destinationId) || records.some(({ domain }) => emptied.has(domain.hostId))) return [];
    const source = fleet.hosts[fleet.slotOf.get(sourceId) ?? -1]?.name ?? sourceId;
    const blocker: Blocker = {
      code: "domain.busy",
      cause: `${records[0]?.domain.name ?? domainUuid} is on its way to this host from ${source}.`,
      action: "Cancel that migration, or plan again when it has arrived.",
    };
    return [{ domainUuid, fromId: destinationId, blocker }];
  });
}

/** Why each goes where it goes, replayed in the order of the plan, so that every figure is one of that moment. */
function wordsOf(
  fleet: Fleet,
  ledger: Ledger,
  loads: readonly Load[],
  slots: readonly number[],
  assignment: ReadonlyMap<Load, number>,
): Map<Load, Words> {
  const room = ledger.clone();
  const needs = groupNeeds(loads);
  const words = new Map<Load, Words>();
  for (const load of loads) {
    const slot = assignment.get(load);
    if (slot === undefined) continue;
    const need = needs.get(load) ?? null;
    const { best, fitting } = bestRanked(room, load, slots, need, runnersUpMax + 1);
    const chosen = rankOf(room, load, slot, need);
    words.set(load, {
      reason: reasonText(fleet, room, load, chosen, fitting, best[0]?.slot === slot),
      runnersUp: best
        .filter((rank) => rank.slot !== slot)
        .slice(0, runnersUpMax)
        .map((rank) => ({
          hostId: hostAt(fleet, rank.slot).id,
          why: runnerUpText(fleet, room, load, chosen, rank),
        })),
    });
    room.add(load, slot);
  }
  return words;
}

function roomsOf(fleet: Fleet, before: Ledger, after: Ledger, items: readonly Item[]): RoomProof[] {
  const slots = [...new Set(items.map(({ to }) => to))].sort((one, other) => one - other);
  return slots.map((slot) => ({
    hostId: hostAt(fleet, slot).id,
    memoryKiBMax: before.memoryMax[slot] ?? 0,
    memoryKiBBefore: before.memory[slot] ?? 0,
    memoryKiBAfter: after.memory[slot] ?? 0,
    vcpusMax: before.vcpusMax[slot] ?? 0,
    vcpusBefore: before.vcpus[slot] ?? 0,
    vcpusAfter: after.vcpus[slot] ?? 0,
  }));
}

function moveOf(fleet: Fleet, { step, wave, startMs, endMs }: ScheduledStep, words: Words): PlannedMove {
  return {
    domainUuid: step.load.domain.uuid,
    fromId: hostAt(fleet, step.from).id,
    toId: hostAt(fleet, step.to).id,
    reason: words.reason,
    runnersUp: words.runnersUp,
    wave,
    startMs,
    endMs,
    proven: isProven(step.load, step.to),
  };
}

function goalBlocker(fleet: Fleet, load: Load, toId: string): Blocker | null {
  const slot = fleet.slotOf.get(toId);
  if (slot === undefined)
    return {
      code: "host.absent",
      cause: `The host ${toId} that ${load.domain.name} should go to is not known.`,
      action: "Look at `vmferry hosts`; move it elsewhere, or let that host join again.",
    };
  const host = hostAt(fleet, slot);
  if (host.closed !== null) return host.closed;
  if (isAllowed(load, slot)) return null;
  // Room is judged with all the moves together, not here.
  const refusal = obstaclesOn(fleet, Ledger.of(fleet), load, slot, null).find(
    ({ kind }) => kind === "refused" || kind === "twin",
  );
  return refusal === undefined ? null : blockerOf(refusal);
}

const absent = (domainUuid: string): Blocker => ({
  code: "domain.absent",
  cause: `No host has the domain ${domainUuid}.`,
  action: "Look for it: vmferry domains",
});

function slotOf(fleet: Fleet, hostId: string): number {
  const slot = fleet.slotOf.get(hostId);
  if (slot === undefined) throw new Error(`the host ${hostId} is not in the fleet`);
  return slot;
}

const byDomain = (one: BlockedDomain, other: BlockedDomain): number =>
  compareText(one.domainUuid, other.domainUuid) || compareText(one.fromId, other.fromId);
