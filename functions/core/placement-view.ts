/**
 * What the planner sees and what it says: the fleet's capacity and what is known of it, a policy, a plan. Plain data, so that a plan can be made again
 * from what was seen, and shown to a person before anything moves. A plan never counts on what is not known: an unknown answer of a
 * preflight is said to be one.
 */
import type { Finding } from "#protocol/fault";
import type { Networks } from "./network.ts";

export interface PlacementHost {
  id: string;
  name: string;
  labels: Readonly<Record<string, string>>;
  cpus: number;
  memoryKiB: number;
  /** Why it takes no domain now (offline, cordoned, being evacuated, too old); null: it does. */
  closed: Pick<Finding, "code" | "cause" | "action"> | null;
}

/**
 * Labels that the planner reads of a domain: `affinity=GROUP` wants to be where the others of its group are; `anti-affinity=GROUP` may not be where
 * another one of its group is; `priority=N` (0 to 100, default 50) moves earlier when higher; `pinned` (any value) stays.
 */
export interface PlacementDomain {
  uuid: string;
  name: string;
  hostId: string;
  memoryKiB: number;
  vcpus: number;
  /** One that is off needs no memory and no CPU where it goes. */
  active: boolean;
  snapshots: number;
  labels: Readonly<Record<string, string>>;
}

/** A preflight's answer for one domain and one destination. `atMs`: Unix time of it. */
export type Verdict =
  | { allowed: true; atMs: number }
  | { allowed: false; atMs: number; blockers: Pick<Finding, "code" | "cause" | "action">[] };

/** The key of a verdict. */
export const verdictKey = (domainUuid: string, hostId: string): string => `${domainUuid} ${hostId}`;

export interface PlacementView {
  /** Unix time of the view. */
  atMs: number;
  hosts: readonly PlacementHost[];
  /** All of the fleet, for capacity and affinity; those that move at this moment are named in `moving`. */
  domains: readonly PlacementDomain[];
  verdicts: ReadonlyMap<string, Verdict>;
  /** Under way: counted on both hosts until it has ended. */
  moving: readonly { domainUuid: string; sourceId: string; destinationId: string }[];
  /** Of the whole fleet, also of hosts that are not in `hosts`: what moves between those counts as well. */
  networks: Networks;
}

export interface PlacementPolicy {
  /** Only these may receive; null: all that do. */
  to: readonly string[] | null;
  /** vCPUs of active domains for each CPU of a host, at most. */
  vcpusPerCpuMax: number;
  /** Of a host's memory this much stays free for itself. */
  memoryReserveKiB: number;
  /** Migrations at once: out of a host, into a host, of all. */
  outMax: number;
  inMax: number;
  fleetMax: number;
  /** Migrations at once that touch one network; null: no such limit. */
  networkMax: number | null;
  /** For the estimate: measured lately, or the default. */
  bytesPerSecond: number;
  /** Beside the memory: checks, staging, the handshake. */
  overheadMs: number;
}

export const placementPolicyDefault: PlacementPolicy = {
  to: null,
  // Below what most providers promise; a stated figure that a person may raise.
  vcpusPerCpuMax: 4,
  memoryReserveKiB: 1024 * 1024,
  // As KubeVirt: more at once lengthen each other's blackout.
  outMax: 2,
  inMax: 2,
  fleetMax: 5,
  networkMax: null,
  // A line of 1 Gbit/s, of which a migration gets most.
  bytesPerSecond: 100 * 1024 * 1024,
  overheadMs: 5_000,
};

export interface PlannedMove {
  domainUuid: string;
  fromId: string;
  toId: string;
  /** Why there, in a person's words. */
  reason: string;
  /** The next best, with what speaks against them; at most three. */
  runnersUp: { hostId: string; why: string }[];
  /** From 0: moves of one wave may run side by side within the limits. */
  wave: number;
  /** From the start of the plan. */
  startMs: number;
  endMs: number;
  /** Whether a preflight has allowed exactly this move. */
  proven: boolean;
  /** Not its end: it makes room for others there, and goes on from it. */
  stopsOver?: boolean;
  /** Its room comes free only when one before it has left; absent: it may begin at once. */
  waits?: boolean;
}

export interface BlockedDomain {
  domainUuid: string;
  fromId: string;
  blocker: Pick<Finding, "code" | "cause" | "action">;
}

/** What a destination has and what it would have: the proof that there is room. */
export interface RoomProof {
  hostId: string;
  memoryKiBMax: number;
  memoryKiBBefore: number;
  memoryKiBAfter: number;
  vcpusMax: number;
  vcpusBefore: number;
  vcpusAfter: number;
}

export interface Plan {
  moves: PlannedMove[];
  blocked: BlockedDomain[];
  makespanMs: number;
  rooms: RoomProof[];
  /** The same domains back to where they are now, in an order that fits; empty where nothing moves. */
  home: PlannedMove[];
  /** Those of `moves` that could not go back as things stand, with the reason: said before anything moves. */
  homeBlocked: BlockedDomain[];
}
