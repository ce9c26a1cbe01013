/** Bounds of an evacuation, each with its unit and its reason, and the two questions that are asked of the whole fleet. */
import type { RunningMigration, SeenHost } from "./evacuation-event.ts";
import type { EvacuationDomain, EvacuationState } from "./evacuation-state.ts";
import { type Networks, touched } from "./network.ts";

/** Nothing runs without an end: who names no deadline gets this one. A rack's hosts of terabytes are emptied within a day. */
export const deadlineMsDefault = 24 * 60 * 60_000;
/** Longer than a week is not one evacuation but a standing wish: that is a rule. */
export const deadlineMsMax = 7 * 24 * 60 * 60_000;

/** Before a domain is tried again: doubled with each try, up to a pause that still fits some times into a night's window. */
export const backoffMsMin = 30_000;
export const backoffMsMax = 15 * 60_000;
/** Part of a pause that is added by the domain's uuid: those that failed together do not come back together. */
export const backoffSpread = 0.25;

/** How long a domain waits for a blocker that may pass (no room, a host offline) before it counts as staying. It is looked at
 *  even then, as long as others move. Longer than a restart of a host's daemon, shorter than anybody's patience. */
export const patienceMs = 10 * 60_000;

/** Tries of a domain in all: who stops over has two ways to go, so one more. */
export const attemptsMaxOf = ({ policy }: EvacuationState, { stop }: EvacuationDomain): number =>
  policy.attemptsMax + (stop === undefined ? 0 : 1);

/** A started migration that does not exist after this long was lost between commit and dispatch. As a request's `startMsMax`. */
export const lostStartMs = 60_000;

/** Of destinations that failed a domain, so many are kept: the newest are the ones worth avoiding. */
export const triedMax = 2;

/** A DynamoDB item holds 400 KB; the rest is room for its keys and the list's row. */
export const itemBytesMax = 396 * 1024;
/** Of one line of the story, in bytes of JSON: 200 lines are below 52 KB. */
export const noteBytesMax = 160;
/** Of the rest of a line: its time, its domain, its keys. */
export const lineBytes = 95;
/** A domain's record without its name and its reason's texts, at most, in bytes of JSON. */
export const domainBytes = 530;
/** Of the stop of one that goes home. */
export const stopBytes = 100;
/** Cause and action of one reason together: no less than says anything, no more than a migration's own record says better. */
export const reasonBytesMin = 48;
export const reasonBytesMax = 600;

/** More than this share of the fleet silent within `brakeWindowMs`: it is the network, or us, not the hosts. */
export const brakeShareMax = 0.25;
/** One host is never a mass failure, however small the fleet: with three hosts one may die and the other two go on. */
export const brakeHostsMin = 2;
export const brakeWindowMs = 60_000;
/** What has not come back by then is gone for a reason of its own, and the planner knows it as offline. */
export const brakeHoldMs = 10 * 60_000;

/**
 * The mass-failure brake: how many hosts went silent within one window and are silent still, where that is too many; else null.
 * Who has said that it shuts down is none of them.
 * It lifts by itself: when enough of them are heard of again, or `brakeHoldMs` later. Decided from what is seen alone, so
 * that a restart of the control plane changes nothing about it.
 */
export function massSilence(hosts: readonly SeenHost[], atMs: number): { silent: number; of: number } | null {
  const since = hosts
    .flatMap(({ silentSinceMs, shutting }) =>
      silentSinceMs !== null && shutting !== true && atMs - silentSinceMs <= brakeHoldMs ? [silentSinceMs] : [],
    )
    .sort((one, other) => one - other);
  let silent = 0;
  let from = 0;
  for (const [index, ms] of since.entries()) {
    while (ms - (since[from] ?? ms) > brakeWindowMs) from += 1;
    silent = Math.max(silent, index - from + 1);
  }
  return silent >= brakeHostsMin && silent > hosts.length * brakeShareMax ? { silent, of: hosts.length } : null;
}

/** Migrations at once: out of each host, into each host, that touch each network, of all. */
export interface Occupied {
  out: Map<string, number>;
  in: Map<string, number>;
  networks: Map<string, number>;
  fleet: number;
}

export const networksOf = (hosts: readonly SeenHost[]): Networks =>
  new Map(hosts.flatMap(({ id, network }) => (network === null ? [] : [[id, network] as const])));

/** What this evacuation has under way, whether or not its migrations have been created yet. */
export const runningOf = (state: EvacuationState): RunningMigration[] =>
  state.domains.flatMap(({ state: now, domain, homeId, destinationId, migrationId }) =>
    now === "moving" && destinationId !== null && migrationId !== null
      ? [{ migrationId, domainUuid: domain.uuid, sourceId: homeId, destinationId }]
      : [],
  );

export function occupied(running: readonly RunningMigration[], networks: Networks): Occupied {
  const counts: Occupied = { out: new Map(), in: new Map(), networks: new Map(), fleet: 0 };
  for (const migration of new Map(running.map((each) => [each.migrationId, each])).values())
    occupy(counts, migration, networks);
  return counts;
}

export function occupy(
  counts: Occupied,
  { sourceId, destinationId }: Pick<RunningMigration, "sourceId" | "destinationId">,
  networks: Networks,
): void {
  for (const network of touched(networks, sourceId, destinationId))
    counts.networks.set(network, (counts.networks.get(network) ?? 0) + 1);
  counts.out.set(sourceId, (counts.out.get(sourceId) ?? 0) + 1);
  counts.in.set(destinationId, (counts.in.get(destinationId) ?? 0) + 1);
  counts.fleet += 1;
}

/** Deterministic: the spread comes from the uuid. `attempts`: how many there have been. */
export function backoffMs(attempts: number, domainUuid: string): number {
  const spread = (Number.parseInt(domainUuid.slice(0, 8), 16) / 2 ** 32) * backoffSpread;
  return Math.round(Math.min(backoffMsMax, backoffMsMin * 2 ** Math.max(0, attempts - 1)) * (1 + spread));
}
