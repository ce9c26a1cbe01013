/**
 * Which destination is better, and why, in words. The scoring has a name: **most room left**. In this order: proven by a preflight before not
 * checked; where more of its affinity group are; where the whole of that group would fit; then the largest share of room left (of memory or vCPUs,
 * whichever is less). The host's id decides between equals, so that the same fleet gives the same plan.
 */
import { type Fleet, hostAt, isAllowed, isProven, type Ledger, type Load } from "./placement-ledger.ts";

export interface Rank {
  slot: number;
  proven: boolean;
  mates: number;
  gathers: boolean;
  share: number;
}

/** What those of an affinity group that are still to be placed need together; null where there is no group to gather. */
export type GroupNeed = { memoryKiB: number; vcpus: number } | null;

export function rankOf(ledger: Ledger, load: Load, slot: number, need: GroupNeed): Rank {
  return {
    slot,
    proven: isProven(load, slot),
    mates: ledger.mates(load, slot),
    gathers: need !== null && ledger.hasRoom(need.memoryKiB, need.vcpus, slot),
    share: ledger.shareAfter(load, slot),
  };
}

/** Negative: the first is better. */
export const byRank = (one: Rank, other: Rank): number =>
  Number(other.proven) - Number(one.proven) ||
  other.mates - one.mates ||
  Number(other.gathers) - Number(one.gathers) ||
  other.share - one.share ||
  one.slot - other.slot;

/** All that may take it now, the best first. */
export const ranked = (ledger: Ledger, load: Load, slots: readonly number[], need: GroupNeed): Rank[] =>
  slots
    .filter((slot) => ledger.fits(load, slot) && isAllowed(load, slot))
    .map((slot) => rankOf(ledger, load, slot, need))
    .sort(byRank);

/** The best `count` of them and how many there are, without sorting a fleet for each domain. */
export function bestRanked(
  ledger: Ledger,
  load: Load,
  slots: readonly number[],
  need: GroupNeed,
  count: number,
): { best: Rank[]; fitting: number } {
  const best: Rank[] = [];
  let fitting = 0;
  for (const slot of slots) {
    if (!ledger.fits(load, slot) || !isAllowed(load, slot)) continue;
    fitting += 1;
    const rank = rankOf(ledger, load, slot, need);
    const last = best[count - 1];
    if (last !== undefined && byRank(last, rank) < 0) continue;
    const at = best.findIndex((other) => byRank(rank, other) < 0);
    best.splice(at < 0 ? best.length : at, 0, rank);
    best.length = Math.min(best.length, count);
  }
  return { best, fitting };
}

/** "12.4 GiB", "512 MiB": binary, as hosts and domains are sized. */
export function sizeText(kib: number): string {
  if (kib < 1024) return `${kib} KiB`;
  const [value, unit] = kib < 1024 ** 2 ? [kib / 1024, "MiB"] : [kib / 1024 ** 2, "GiB"];
  return `${value.toFixed(1).replace(/\.0$/, "")} ${unit}`;
}

const percentText = (share: number): string => `${Math.max(0, Math.floor(share * 100))} %`;

export const ageText = (ms: number): string => {
  const seconds = Math.max(0, Math.round(ms / 1000));
  return seconds < 120
    ? `${seconds} s`
    : seconds < 7200
      ? `${Math.round(seconds / 60)} min`
      : `${Math.round(seconds / 3600)} h`;
};

/** What a host has left with the domain on it. `ledger`: before it is entered there. */
export function leftText(fleet: Fleet, ledger: Ledger, load: Load, slot: number): string {
  const memory = sizeText(Math.max(0, ledger.memoryFree(slot) - load.memoryKiB));
  const vcpus = Math.max(0, ledger.vcpusFree(slot) - load.vcpus);
  return `${memory} free of ${sizeText(hostAt(fleet, slot).memoryKiB)} after, beside the reserve, and ${vcpus} of ${ledger.vcpusMax[slot] ?? 0} vCPUs`;
}

function provenText(fleet: Fleet, load: Load, slot: number): string {
  const verdict = load.verdicts?.get(slot);
  if (verdict?.allowed !== true) return "not checked yet";
  return `a check allowed it ${ageText(fleet.view.atMs - verdict.atMs)} ago`;
}

/** Why this host. `ledger`: before the domain is entered; `fitting`: how many could take it; `first`: it ranks before all of them. */
export function reasonText(
  fleet: Fleet,
  ledger: Ledger,
  load: Load,
  rank: Rank,
  fitting: number,
  first: boolean,
): string {
  const { slot } = rank;
  const parts = [`has ${leftText(fleet, ledger, load, slot)}`];
  if (load.memoryKiB === 0 && load.vcpus === 0) parts.push("it is off and needs no room there");
  if (load.affinity !== null && rank.mates > 0) parts.push(`${rank.mates} of affinity group ${load.affinity} there`);
  else if (rank.gathers) parts.push(`room for all of affinity group ${load.affinity}`);
  if (load.antiAffinity !== null) parts.push(`holds none of anti-affinity group ${load.antiAffinity}`);
  parts.push(provenText(fleet, load, slot));
  if (fitting === 1) parts.push("the only one that can take it");
  else parts.push(first ? `ranks first of ${fitting} that can take it` : `one of ${fitting} that can take it`);
  return parts.join("; ");
}

/** What speaks against this one, beside the chosen one. */
export function runnerUpText(fleet: Fleet, ledger: Ledger, load: Load, chosen: Rank, other: Rank): string {
  const left = `would have ${leftText(fleet, ledger, load, other.slot)}`;
  const ahead = byRank(other, chosen) < 0;
  if (ahead) return `${left}; ranks higher, but its room is needed for others of this plan`;
  if (other.proven !== chosen.proven) return `${left}; not checked yet`;
  if (other.mates !== chosen.mates)
    return `${left}; ${other.mates === 0 ? "none" : `only ${other.mates}`} of affinity group ${load.affinity} there`;
  if (other.gathers !== chosen.gathers) return `${left}; not all of affinity group ${load.affinity} would fit`;
  if (other.share !== chosen.share)
    return `${left}: ${percentText(other.share)} left, against ${percentText(chosen.share)}`;
  return `${left}; as good, the choice is by host id`;
}
