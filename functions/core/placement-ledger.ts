/**
 * The fleet as the planner counts it: who needs what, and a ledger of what each host holds. A domain that moves is entered on both hosts until it
 * has left, so "fits" is an answer for this instant and not only for the end. The ledger knows room and anti-affinity; what does not change
 * while a plan is made (closed hosts, refusals of preflights) is the fleet's.
 *
 * Invariants: an off domain needs no memory and no CPU, but counts for anti-affinity (it may be started where it lies). A host that holds too much
 * already takes nothing that needs more of it. Everything is in an order of its own, never in that of the input.
 */
import type { PlacementDomain, PlacementHost, PlacementPolicy, PlacementView, Verdict } from "./placement-view.ts";

/** Labels of a domain that the planner reads. */
export const placementLabels = {
  affinity: "affinity",
  antiAffinity: "anti-affinity",
  priority: "priority",
  pinned: "pinned",
} as const;

const priorityDefault = 50;
const priorityMax = 100;

/** `priority=N`, 0 to 100; anything else than such a number counts as the default. */
export function priorityOf(labels: Readonly<Record<string, string>>): number {
  const text = labels[placementLabels.priority];
  if (text === undefined || !/^\d{1,3}$/.test(text)) return priorityDefault;
  const priority = Number(text);
  return priority <= priorityMax ? priority : priorityDefault;
}

/** What a domain asks of the host it is on. */
export interface Load {
  domain: PlacementDomain;
  priority: number;
  memoryKiB: number;
  vcpus: number;
  /** Its groups; null: of none. */
  affinity: string | null;
  antiAffinity: string | null;
  /** Answers of preflights by slot, and the slots of other records of its UUID; null: none. */
  verdicts: ReadonlyMap<number, Verdict> | null;
  twinSlots: readonly number[] | null;
}

function loadOf(domain: PlacementDomain): Load {
  const { labels } = domain;
  return {
    domain,
    priority: priorityOf(labels),
    memoryKiB: domain.active ? domain.memoryKiB : 0,
    vcpus: domain.active ? domain.vcpus : 0,
    affinity: labels[placementLabels.affinity] ?? null,
    antiAffinity: labels[placementLabels.antiAffinity] ?? null,
    verdicts: null,
    twinSlots: null,
  };
}

export const compareText = (one: string, other: string): number => (one < other ? -1 : one > other ? 1 : 0);

/** The order of everything: higher priority, then larger, then by UUID; the host only where one UUID stands on two. */
export const byUrgency = (one: Load, other: Load): number =>
  other.priority - one.priority ||
  other.memoryKiB - one.memoryKiB ||
  other.vcpus - one.vcpus ||
  compareText(one.domain.uuid, other.domain.uuid) ||
  compareText(one.domain.hostId, other.domain.hostId);

/** Hosts are named by their place in `hosts`, sorted by id: a slot. */
export interface Fleet {
  view: PlacementView;
  policy: PlacementPolicy;
  hosts: readonly PlacementHost[];
  slotOf: ReadonlyMap<string, number>;
  /** All domains, by urgency. */
  loads: readonly Load[];
  loadsOf: ReadonlyMap<string, readonly Load[]>;
  /** By UUID: where it is on its way to. */
  underWay: ReadonlyMap<string, PlacementView["moving"][number]>;
}

export function fleetOf(view: PlacementView, policy: PlacementPolicy): Fleet {
  const hosts = view.hosts.toSorted((one, other) => compareText(one.id, other.id));
  const slotOf = new Map(hosts.map(({ id }, slot) => [id, slot]));
  const loads = view.domains.map(loadOf).sort(byUrgency);
  const loadsOf = Map.groupBy(loads, ({ domain }) => domain.uuid);
  enterVerdicts(view, loadsOf, slotOf);
  for (const twins of loadsOf.values())
    if (twins.length > 1)
      for (const load of twins)
        load.twinSlots = twins.flatMap((twin) => (twin === load ? [] : (slotOf.get(twin.domain.hostId) ?? [])));
  const underWay = new Map(view.moving.map((move) => [move.domainUuid, move]));
  return { view, policy, hosts, slotOf, loads, loadsOf, underWay };
}

/** Each domain with its own answers: looked up by key for every pair they would take most of the time of a plan. */
function enterVerdicts(
  { verdicts }: PlacementView,
  loadsOf: ReadonlyMap<string, readonly Load[]>,
  slotOf: ReadonlyMap<string, number>,
): void {
  const rows = new Map<string, Map<number, Verdict>>();
  for (const [key, verdict] of verdicts) {
    const space = key.indexOf(" ");
    const uuid = key.slice(0, space);
    const slot = slotOf.get(key.slice(space + 1));
    if (slot === undefined) continue;
    const row = rows.get(uuid) ?? new Map<number, Verdict>();
    rows.set(uuid, row.set(slot, verdict));
  }
  for (const [uuid, row] of rows) for (const load of loadsOf.get(uuid) ?? []) load.verdicts = row;
}

/** The host of a slot. Throws on a slot that is none: a mistake of ours. */
export function hostAt({ hosts }: Fleet, slot: number): PlacementHost {
  const host = hosts[slot];
  if (host === undefined) throw new Error(`no host has slot ${slot}`);
  return host;
}

/** Neither refused by a preflight nor there already; an answer that is not known refuses nothing. */
export const isAllowed = (load: Load, slot: number): boolean =>
  load.verdicts?.get(slot)?.allowed !== false && load.twinSlots?.includes(slot) !== true;

export const isProven = (load: Load, slot: number): boolean => load.verdicts?.get(slot)?.allowed === true;

type Counts = Map<string, Map<number, number>>;

/** What each host holds at one instant. */
export class Ledger {
  readonly memoryMax: Float64Array;
  readonly vcpusMax: Float64Array;
  readonly memory: Float64Array;
  readonly vcpus: Float64Array;
  readonly #apart: Counts;
  readonly #together: Counts;

  private constructor(
    parts: Pick<Ledger, "memoryMax" | "vcpusMax" | "memory" | "vcpus">,
    apart: Counts,
    together: Counts,
  ) {
    this.memoryMax = parts.memoryMax;
    this.vcpusMax = parts.vcpusMax;
    this.memory = parts.memory;
    this.vcpus = parts.vcpus;
    this.#apart = apart;
    this.#together = together;
  }

  /** As the view shows it; what moves at that moment is held by both hosts for as long as the plan goes, for its end is not known. */
  static of({ hosts, loads, slotOf, underWay, policy }: Fleet): Ledger {
    const ledger = new Ledger(
      {
        memoryMax: Float64Array.from(hosts, ({ memoryKiB }) => Math.max(0, memoryKiB - policy.memoryReserveKiB)),
        // vCPUs are whole; the small term keeps 3 * 0.1 from being less than it is.
        vcpusMax: Float64Array.from(hosts, ({ cpus }) => Math.floor(cpus * policy.vcpusPerCpuMax + 1e-9)),
        memory: new Float64Array(hosts.length),
        vcpus: new Float64Array(hosts.length),
      },
      new Map(),
      new Map(),
    );
    // What is under way may be listed on both hosts already: it is entered once on each.
    const entered = new Set<string>();
    for (const load of loads) {
      const { uuid, hostId } = load.domain;
      const move = underWay.get(uuid);
      const ids = move === undefined ? [hostId] : [hostId, move.sourceId, move.destinationId];
      for (const id of ids) {
        const slot = slotOf.get(id);
        if (slot === undefined || (move !== undefined && entered.has(`${uuid} ${id}`))) continue;
        ledger.add(load, slot);
        if (move !== undefined) entered.add(`${uuid} ${id}`);
      }
    }
    return ledger;
  }

  clone(): Ledger {
    return new Ledger(
      { memoryMax: this.memoryMax, vcpusMax: this.vcpusMax, memory: this.memory.slice(), vcpus: this.vcpus.slice() },
      new Map([...this.#apart].map(([group, counts]) => [group, new Map(counts)])),
      new Map([...this.#together].map(([group, counts]) => [group, new Map(counts)])),
    );
  }

  add(load: Load, slot: number): void {
    this.#enter(load, slot, 1);
  }

  remove(load: Load, slot: number): void {
    this.#enter(load, slot, -1);
  }

  #enter(load: Load, slot: number, sign: 1 | -1): void {
    this.memory[slot] = (this.memory[slot] ?? 0) + sign * load.memoryKiB;
    this.vcpus[slot] = (this.vcpus[slot] ?? 0) + sign * load.vcpus;
    if (load.antiAffinity !== null) count(this.#apart, load.antiAffinity, slot, sign);
    if (load.affinity !== null) count(this.#together, load.affinity, slot, sign);
  }

  memoryFree(slot: number): number {
    return (this.memoryMax[slot] ?? 0) - (this.memory[slot] ?? 0);
  }

  vcpusFree(slot: number): number {
    return (this.vcpusMax[slot] ?? 0) - (this.vcpus[slot] ?? 0);
  }

  hasRoom(memoryKiB: number, vcpus: number, slot: number): boolean {
    return (memoryKiB === 0 || memoryKiB <= this.memoryFree(slot)) && (vcpus === 0 || vcpus <= this.vcpusFree(slot));
  }

  /** Domains of its anti-affinity group on that host. */
  rivals(load: Load, slot: number): number {
    return load.antiAffinity === null ? 0 : (this.#apart.get(load.antiAffinity)?.get(slot) ?? 0);
  }

  /** Domains of its affinity group on that host. */
  mates(load: Load, slot: number): number {
    return load.affinity === null ? 0 : (this.#together.get(load.affinity)?.get(slot) ?? 0);
  }

  /** Whether it could be entered now. */
  fits(load: Load, slot: number): boolean {
    return this.hasRoom(load.memoryKiB, load.vcpus, slot) && this.rivals(load, slot) === 0;
  }

  /** The share of room left there with it: of memory or of vCPUs, whichever is less. It ranks destinations: the largest share wins. */
  shareAfter(load: Load, slot: number): number {
    const share = (free: number, max: number) => (max <= 0 ? 0 : free / max);
    return Math.min(
      share(this.memoryFree(slot) - load.memoryKiB, this.memoryMax[slot] ?? 0),
      share(this.vcpusFree(slot) - load.vcpus, this.vcpusMax[slot] ?? 0),
    );
  }
}

function count(counts: Counts, group: string, slot: number, sign: 1 | -1): void {
  const slots = counts.get(group) ?? new Map<number, number>();
  slots.set(slot, (slots.get(slot) ?? 0) + sign);
  counts.set(group, slots);
}
