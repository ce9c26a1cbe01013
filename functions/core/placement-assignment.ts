/**
 * Who goes where: a heuristic that spreads (most room left), and where something stays without a place, repair: chains of replacements inside the
 * plan, best fit, then a search with backtracking. Each is bounded by a count of steps, not by time, so the same view gives the same plan on any
 * machine. On small instances (up to 6 domains on 4 hosts) the bounds are above all there is to try: what can be placed is placed.
 *
 * What counts is more of the highest priority first, then of the next: with equal priorities the most domains. Only domains of the plan are moved.
 */
import { byUrgency, isAllowed, type Ledger, type Load } from "./placement-ledger.ts";
import { byRank, type GroupNeed, type Rank, ranked, rankOf } from "./placement-rank.ts";

/** Domain and destination pairs that chains of replacements may look at, over all of a plan; some tens of ms. */
export const repairPairsMax = 200_000;
/** A replaces B, B replaces C, C finds a place: longer chains hardly ever help. */
export const repairDepthMax = 3;
/** The same for each of the two searches. 6 domains on 4 destinations, each placed or not, are 15,624 pairs. */
export const searchPairsMax = 400_000;

export interface Question {
  /** By urgency. */
  loads: readonly Load[];
  /** Destinations that are open, by slot. */
  slots: readonly number[];
  /** Before the plan; it is not changed. */
  ledger: Ledger;
}

/** Where each goes; one without a place is not in it. */
export type Assignment = ReadonlyMap<Load, number>;

export function assign(question: Question): Assignment {
  // What no destination would take even if nothing else came is no reason to search.
  const loads = question.loads.filter((load) => placesOf(question, load).length > 0);
  const asked = { ...question, loads };
  const attempts = [() => repaired(asked, greedy(asked, "mostRoom")), () => repaired(asked, greedy(asked, "bestFit"))];
  let best: Assignment = new Map();
  for (const attempt of attempts) {
    const found = attempt();
    if (compareLoss(lossOf(loads, found), lossOf(loads, best)) < 0) best = found;
    if (best.size === loads.length) return best;
  }
  const found = search(asked, false, best) ?? search(asked, true, best) ?? best;
  // A search that ended at its bound may have left one that fits.
  return found.size === loads.length ? found : repaired(asked, new Map(found));
}

function placesOf({ slots, ledger }: Question, load: Load): number[] {
  return slots.filter((slot) => ledger.fits(load, slot) && isAllowed(load, slot));
}

/** What the rest of its group needs with it, from this one on; null: it is alone or of none. Walked in the order of `loads`. */
export function groupNeeds(loads: readonly Load[]): Map<Load, GroupNeed> {
  const rest = new Map<string, { memoryKiB: number; vcpus: number; count: number }>();
  const needs = new Map<Load, GroupNeed>();
  for (const load of loads.toReversed()) {
    if (load.affinity === null) continue;
    const before = rest.get(load.affinity) ?? { memoryKiB: 0, vcpus: 0, count: 0 };
    const { memoryKiB, vcpus, count } = before;
    const sum = { memoryKiB: memoryKiB + load.memoryKiB, vcpus: vcpus + load.vcpus, count: count + 1 };
    rest.set(load.affinity, sum);
    if (sum.count > 1) needs.set(load, sum);
  }
  return needs;
}

const byLeastRoom = (one: Rank, other: Rank): number => one.share - other.share || byRank(one, other);

function greedy({ loads, slots, ledger }: Question, strategy: "mostRoom" | "bestFit"): Map<Load, number> {
  const room = ledger.clone();
  const needs = groupNeeds(loads);
  const better = strategy === "mostRoom" ? byRank : byLeastRoom;
  const assignment = new Map<Load, number>();
  for (const load of loads) {
    const need = needs.get(load) ?? null;
    let best: Rank | null = null;
    for (const slot of slots) {
      if (!room.fits(load, slot) || !isAllowed(load, slot)) continue;
      const rank = rankOf(room, load, slot, need);
      if (best === null || better(rank, best) < 0) best = rank;
    }
    if (best === null) continue;
    room.add(load, best.slot);
    assignment.set(load, best.slot);
  }
  return assignment;
}

/** Gives each that has no place one of a domain that finds another. Nobody loses a place by it. */
function repaired({ loads, slots, ledger }: Question, assignment: Map<Load, number>): Map<Load, number> {
  const room = ledger.clone();
  const placed = new Map<number, Set<Load>>();
  const enter = (load: Load, slot: number) => {
    room.add(load, slot);
    assignment.set(load, slot);
    placed.set(slot, (placed.get(slot) ?? new Set()).add(load));
  };
  const leave = (load: Load, slot: number) => {
    room.remove(load, slot);
    assignment.delete(load);
    placed.get(slot)?.delete(load);
  };
  for (const [load, slot] of [...assignment]) enter(load, slot);
  let pairs = 0;
  const place = (load: Load, depth: number, settled: ReadonlySet<Load>): boolean => {
    pairs += slots.length;
    const [free] = ranked(room, load, slots, null);
    if (free !== undefined) {
      enter(load, free.slot);
      return true;
    }
    if (depth === 0) return false;
    for (const slot of slots.filter((candidate) => isAllowed(load, candidate))) {
      for (const other of [...(placed.get(slot) ?? [])].sort(byUrgency)) {
        if (pairs >= repairPairsMax) return false;
        pairs += 1;
        if (settled.has(other)) continue;
        leave(other, slot);
        if (room.fits(load, slot)) {
          enter(load, slot);
          if (place(other, depth - 1, new Set([...settled, load]))) return true;
          leave(load, slot);
        }
        enter(other, slot);
      }
    }
    return false;
  };
  for (const load of loads) if (!assignment.has(load) && pairs < repairPairsMax) place(load, repairDepthMax, new Set());
  return assignment;
}

/** How many of each priority, the highest first, have no place. */
type Loss = readonly number[];

function lossOf(loads: readonly Load[], assignment: Assignment): Loss {
  const classes = Map.groupBy(loads, ({ priority }) => priority);
  return [...classes.keys()]
    .sort((one, other) => other - one)
    .map((priority) => (classes.get(priority) ?? []).filter((load) => !assignment.has(load)).length);
}

function compareLoss(one: Loss, other: Loss): number {
  for (const [index, value] of one.entries()) {
    const difference = value - (other[index] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

/**
 * Depth first with backtracking, the largest first; the first of a node's destinations is the best by rank. Without `mayLeave` only an answer
 * that places all counts. Null: nothing better than `best` was found within the bound.
 */
function search(question: Question, mayLeave: boolean, best: Assignment): Assignment | null {
  const { slots } = question;
  const room = question.ledger.clone();
  const loads = question.loads.toSorted((one, other) => other.memoryKiB - one.memoryKiB || other.vcpus - one.vcpus);
  const priorities = [...new Set(question.loads.map(({ priority }) => priority))].sort((one, other) => other - one);
  const needs = groupNeeds(question.loads);
  const loss = priorities.map(() => 0);
  const assignment = new Map<Load, number>();
  let bound = lossOf(question.loads, best);
  let found: Assignment | null = null;
  let pairs = 0;
  const descend = (index: number): void => {
    if (compareLoss(loss, bound) >= 0) return;
    const load = loads[index];
    if (load === undefined) {
      found = new Map(assignment);
      bound = [...loss];
      return;
    }
    if (pairs >= searchPairsMax) return;
    pairs += slots.length;
    for (const { slot } of ranked(room, load, slots, needs.get(load) ?? null)) {
      room.add(load, slot);
      assignment.set(load, slot);
      descend(index + 1);
      assignment.delete(load);
      room.remove(load, slot);
      if (found !== null && (!mayLeave || found.size === loads.length)) return;
    }
    if (!mayLeave) return;
    const at = priorities.indexOf(load.priority);
    loss[at] = (loss[at] ?? 0) + 1;
    descend(index + 1);
    loss[at] -= 1;
  };
  descend(0);
  return found;
}
