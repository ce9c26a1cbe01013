/**
 * What a simulated fleet looks like, decided by its seed alone: hosts with their room, domains with size, labels and snapshots, and how long each takes to
 * move. Every process of a run computes it for itself, so nothing but the seed has to be told around.
 */
import { Chance } from "#test/simulation/virtual-time";

const GiBInKiB = 1024 * 1024;

export interface LaidDomain {
  uuid: string;
  name: string;
  memoryKiB: number;
  vcpus: number;
  labels: Readonly<Record<string, string>>;
  snapshots: number;
  /** Index of the host where it is when the run begins. */
  home: number;
  /** How long its memory takes to move here. Scaled down: a tenth of a second for each GiB, with a spread. */
  performMs: number;
}

export interface LaidHost {
  index: number;
  name: string;
  uuid: string;
  cpus: number;
  memoryKiB: number;
  labels: Readonly<Record<string, string>>;
}

export interface FleetLayout {
  hosts: readonly LaidHost[];
  domains: ReadonlyMap<string, LaidDomain>;
}

/** Hosts of a rack, as labels say it. */
const rackHosts = 20;
/** Memory of domains, GiB: many small ones, few large ones. */
const sizesGiB = [1, 1, 2, 2, 2, 4, 4, 8, 16] as const;
/** Snapshots of domains: most have none. */
const trees = [0, 0, 0, 0, 0, 0, 1, 2, 3, 5] as const;

const hex = (value: number, digits: number) => value.toString(16).padStart(digits, "0");

/** A valid UUID (version 4, its variant) made of a kind and a number. */
const uuidOf = (kind: number, index: number) => `${hex(kind, 8)}-0000-4000-8000-${hex(index, 12)}`;

export const hostName = (index: number) => `fleet${String(index).padStart(4, "0")}`;

/** Domains are dealt out evenly; a host has room for twice of what lies on it. */
export function fleetLayout(options: { hosts: number; domains: number; seed: number }): FleetLayout {
  const chance = new Chance(options.seed);
  const hosts = Array.from({ length: options.hosts }, (_, index): LaidHost => {
    const perHost = Math.ceil(options.domains / options.hosts);
    return {
      index,
      name: hostName(index),
      uuid: uuidOf(0xf1ee0000, index),
      cpus: 64,
      memoryKiB: Math.max(64, perHost * 16) * GiBInKiB,
      labels: { rack: `r${Math.floor(index / rackHosts)}` },
    };
  });
  const domains = new Map<string, LaidDomain>();
  for (let index = 0; index < options.domains; index += 1) {
    const gib = chance.pick(sizesGiB);
    const uuid = uuidOf(0xd0000000, index);
    domains.set(uuid, {
      uuid,
      name: `vm${String(index).padStart(5, "0")}`,
      memoryKiB: gib * GiBInKiB,
      vcpus: Math.min(8, gib),
      labels: { tier: chance.pick(["web", "db", "batch"]), priority: String(chance.between(0, 100)) },
      snapshots: chance.pick(trees),
      home: index % options.hosts,
      performMs: Math.round(gib * 100 * (0.5 + chance.next())),
    });
  }
  return { hosts, domains };
}
