/**
 * Fleets for the planner, from a seed: hosts of a few sizes, domains of the usual ones, groups, priorities, pins, closed hosts, answers of
 * preflights, migrations under way. Nothing is over its room at the start unless it is asked for. The same seed and shape give the same fleet.
 */
import {
  type PlacementDomain,
  type PlacementHost,
  type PlacementView,
  type Verdict,
  verdictKey,
} from "#core/placement-view";
import { Chance } from "../simulation/virtual-time.ts";

const gib = 1024 ** 2;
const reserveGib = 1;

export interface FleetShape {
  hosts: number;
  domains: number;
  /** Of the memory beside the reserve this share is filled at most. */
  fillMax: number;
  /** GiB of a host; each host takes one of them. */
  hostGib: readonly number[];
  domainGib: readonly number[];
  /** Likelihoods. */
  off: number;
  antiAffinity: number;
  affinity: number;
  pinned: number;
  priority: number;
  closed: number;
  /** Of pairs: a preflight has answered; of the answers: a refusal. */
  checked: number;
  refused: number;
  /** Of domains: under way to another host. */
  moving: number;
  /** Domains of one group, about. */
  groupSize: number;
}

export const fleetShape: FleetShape = {
  hosts: 10,
  domains: 80,
  fillMax: 0.7,
  hostGib: [64, 128, 256],
  domainGib: [1, 2, 4, 8, 16],
  off: 0.1,
  antiAffinity: 0.15,
  affinity: 0.1,
  pinned: 0.02,
  priority: 0.2,
  closed: 0.05,
  checked: 0.3,
  refused: 0.1,
  moving: 0,
  groupSize: 3,
};

export const fleetAtMs = Date.parse("2026-03-01T00:00:00.000Z");

export function fleetView(seed: number, asked: Partial<FleetShape> = {}): PlacementView {
  const shape = { ...fleetShape, ...asked };
  const chance = new Chance(seed);
  const hosts = Array.from({ length: shape.hosts }, (_, index) => someHost(chance, shape, index));
  const domains: PlacementDomain[] = [];
  const filled = hosts.map(() => ({ memoryKiB: 0, vcpus: 0, groups: new Set<string>() }));
  const groups = Math.max(1, Math.ceil(shape.domains / 10 / shape.groupSize));
  for (let index = 0; index < shape.domains; index += 1) {
    const domain = someDomain(chance, shape, index, groups);
    const at = homeFor(chance, shape, hosts, filled, domain);
    if (at === null) continue;
    domains.push({ ...domain, hostId: at });
  }
  return {
    atMs: fleetAtMs,
    hosts,
    domains,
    verdicts: someVerdicts(chance, shape, hosts, domains),
    moving: someMoves(chance, shape, hosts, domains),
    networks: new Map(hosts.flatMap(({ id, labels: { network } }) => (network === undefined ? [] : [[id, network]]))),
  };
}

/** The order of a view's lists changed, nothing else. */
export function shuffled(view: PlacementView, seed: number): PlacementView {
  const chance = new Chance(seed);
  const mixed = <T>(items: readonly T[]): T[] =>
    items
      .map((item) => ({ item, at: chance.next() }))
      .sort((one, other) => one.at - other.at)
      .map(({ item }) => item);
  return {
    ...view,
    hosts: mixed(view.hosts),
    domains: mixed(view.domains),
    verdicts: new Map(mixed([...view.verdicts])),
    moving: mixed(view.moving),
  };
}

function someHost(chance: Chance, shape: FleetShape, index: number): PlacementHost {
  const size = chance.pick(shape.hostGib);
  const id = `h_${String(index).padStart(4, "0")}`;
  return {
    id,
    name: `host-${index}`,
    // Two networks of many hosts, and every third host on none.
    labels: index % 3 === 2 ? {} : { network: `rack-${index % 3}` },
    cpus: Math.max(2, Math.floor(size / 4)),
    memoryKiB: size * gib,
    closed: chance.is(shape.closed)
      ? { code: "host.cordoned", cause: `host-${index} is cordoned.`, action: `vmferry host uncordon host-${index}` }
      : null,
  };
}

function someDomain(chance: Chance, shape: FleetShape, index: number, groups: number): Omit<PlacementDomain, "hostId"> {
  const size = chance.pick(shape.domainGib);
  const labels: Record<string, string> = {};
  if (chance.is(shape.antiAffinity)) labels["anti-affinity"] = `apart-${chance.between(1, groups)}`;
  if (chance.is(shape.affinity)) labels.affinity = `near-${chance.between(1, groups)}`;
  if (chance.is(shape.pinned)) labels.pinned = "";
  if (chance.is(shape.priority)) labels.priority = String(chance.pick([0, 10, 80, 100]));
  const random = () => chance.between(0, 0xffff).toString(16).padStart(4, "0");
  return {
    uuid: `${random()}${random()}-${random()}-4${random().slice(1)}-8${random().slice(1)}-${random()}${random()}${random()}`,
    name: `domain-${index}`,
    memoryKiB: size * gib,
    vcpus: Math.max(1, Math.min(16, Math.ceil(size / 2))),
    active: !chance.is(shape.off),
    snapshots: chance.between(0, 5),
    labels,
  };
}

/** A few tries on any host, as operators do; null: none has room within the shape. */
function homeFor(
  chance: Chance,
  { fillMax }: FleetShape,
  hosts: readonly PlacementHost[],
  filled: { memoryKiB: number; vcpus: number; groups: Set<string> }[],
  { active, memoryKiB, vcpus, labels }: Omit<PlacementDomain, "hostId">,
): string | null {
  const group = labels["anti-affinity"];
  for (let tries = 0; tries < 8; tries += 1) {
    const index = chance.between(0, hosts.length - 1);
    const [host, fill] = [hosts[index], filled[index]];
    if (host === undefined || fill === undefined) continue;
    const fits =
      fill.memoryKiB + memoryKiB <= (host.memoryKiB - reserveGib * gib) * fillMax &&
      fill.vcpus + vcpus <= host.cpus * 4;
    if ((active && !fits) || (group !== undefined && fill.groups.has(group))) continue;
    if (active) {
      fill.memoryKiB += memoryKiB;
      fill.vcpus += vcpus;
    }
    if (group !== undefined) fill.groups.add(group);
    return host.id;
  }
  return null;
}

function someVerdicts(
  chance: Chance,
  { checked, refused }: FleetShape,
  hosts: readonly PlacementHost[],
  domains: readonly PlacementDomain[],
): Map<string, Verdict> {
  const verdicts = new Map<string, Verdict>();
  if (checked === 0) return verdicts;
  for (const { uuid, hostId } of domains)
    for (const host of hosts) {
      if (host.id === hostId || !chance.is(checked)) continue;
      const atMs = fleetAtMs - chance.between(0, 300_000);
      const blockers = [
        {
          code: "destination.cpu",
          cause: `${host.name} lacks the CPU feature avx2.`,
          action: "Choose another host.",
        } as const,
      ];
      verdicts.set(
        verdictKey(uuid, host.id),
        chance.is(refused) ? { allowed: false, atMs, blockers } : { allowed: true, atMs },
      );
    }
  return verdicts;
}

function someMoves(
  chance: Chance,
  { moving }: FleetShape,
  hosts: readonly PlacementHost[],
  domains: readonly PlacementDomain[],
): PlacementView["moving"] {
  if (moving === 0) return [];
  return domains.flatMap(({ uuid, hostId }) => {
    const destinationId = chance.pick(hosts).id;
    return destinationId === hostId || !chance.is(moving)
      ? []
      : [{ domainUuid: uuid, sourceId: hostId, destinationId }];
  });
}
