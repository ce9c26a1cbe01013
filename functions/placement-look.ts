/**
 * What is seen of the fleet before an evacuation decides: hosts, inventories, what is under way by anybody, what preflights said. Inventories are what
 * hosts said last, so what our own records know better stands above them: a domain that is moving is on its source, one that an
 * evacuation has moved is where it arrived. The number of inventories that are read does not grow with the fleet.
 */
import type { RunningMigration, SeenHost } from "./core/evacuation-event.ts";
import { networksOf, runningOf } from "./core/evacuation-limits.ts";
import type { EvacuationState } from "./core/evacuation-state.ts";
import { pageRowsMax } from "./core/limits.ts";
import { networkOf } from "./core/network.ts";
import type { WantedMove } from "./core/placement.ts";
import { type PlacementDomain, type PlacementHost, type PlacementView, verdictKey } from "./core/placement-view.ts";
import type { HostRecord, PlacedDomain, Ports } from "./ports.ts";
import { inParts, type Preflights } from "./preflights.ts";
import { hostRefusals, isConnected, isShutting } from "./refusals.ts";

/** Inventories read for one look: sources, named destinations, then the hosts with the most free memory. More choice makes no better plan. */
export const inventoriesMax = 64;

/** A host says within seconds what has changed on it; after a socket's interruption, within a minute. */
export const inventoryLagMsMax = 60_000;

export interface Seen {
  view: PlacementView;
  /** Everything under way, whoever asked for it, and what evacuations have committed to start. */
  running: RunningMigration[];
  hosts: SeenHost[];
  records: ReadonlyMap<string, HostRecord>;
  /** Each domain that was seen, where it counts as being. */
  placed: ReadonlyMap<string, PlacedDomain>;
  /** What other undos and restores want at this time. */
  crossing: WantedMove[];
}

export interface Look {
  /** The evacuation that looks. */
  state: EvacuationState;
  /** All others that have not ended. */
  others: readonly EvacuationState[];
  preflights: Preflights;
  inventories: Inventories;
  /** Only destinations that a preflight has allowed are of use: nobody is asked now. */
  onlyAllowed?: boolean | undefined;
}

/**
 * How old the list of hosts may be within one round: of a thousand hosts it is a megabyte, and what it says of a cordon or a silence is asked once more
 * of both hosts before a migration is requested.
 */
export const hostsAgeMsMax = 2_000;

/** How old an inventory may be: a host tells of a change within seconds itself (`inventoryLagMsMax`), and what we have moved we know ourselves. */
export const inventoryAgeMsMax = 10_000;

/** Reads inventories and the list of hosts for all evacuations that are looked at in a row, each once in a while. */
export class Inventories {
  readonly #hosts: Ports["hosts"];
  readonly #clock: Ports["clock"];
  /** Values and not promises, for those who come after: a promise is its own request's. */
  readonly #read: Map<string, { atMs: number; rows: PlacedDomain[] }>;
  readonly #reading = new Map<string, Promise<PlacedDomain[]>>();
  #listed: { atMs: number; hosts: HostRecord[] } | null;
  #listing: Promise<HostRecord[]> | null = null;

  /** `before`: what was read for those who were looked at before, while it is not too old. */
  constructor({ hosts, clock }: Pick<Ports, "hosts" | "clock">, before: Inventories | null = null) {
    this.#hosts = hosts;
    this.#clock = clock;
    this.#read = new Map(before === null ? [] : before.#read);
    this.#listed = before === null ? null : before.#listed;
  }

  async list(): Promise<HostRecord[]> {
    const listed = this.#listed;
    if (listed !== null && this.#nowMs() - listed.atMs <= hostsAgeMsMax) return listed.hosts;
    const atMs = this.#nowMs();
    this.#listing ??= this.#hosts.list();
    const listing = this.#listing;
    try {
      const hosts = await listing;
      if (this.#listing === listing) this.#listed = { atMs, hosts };
      return hosts;
    } finally {
      if (this.#listing === listing) this.#listing = null;
    }
  }

  /** A host was opened or closed by us: the next look is to see it. */
  forgetHosts(): void {
    this.#listed = null;
    this.#listing = null;
  }

  async of(hostId: string, ageMsMax = inventoryAgeMsMax): Promise<PlacedDomain[]> {
    const known = this.#read.get(hostId);
    if (known !== undefined && this.#nowMs() - known.atMs <= ageMsMax) return known.rows;
    const atMs = this.#nowMs();
    const reading = this.#reading.get(hostId) ?? this.#hosts.domainsOf(hostId);
    this.#reading.set(hostId, reading);
    try {
      const rows = await reading;
      this.#read.set(hostId, { atMs, rows });
      return rows;
    } finally {
      if (this.#reading.get(hostId) === reading) this.#reading.delete(hostId);
    }
  }

  #nowMs(): number {
    return Date.parse(this.#clock.now());
  }
}

const isActive = ({ state }: PlacedDomain): boolean => state !== "shutoff";

const freeKiB = ({ facts }: HostRecord): number =>
  facts?.libvirt.reachable === true ? facts.libvirt.freeMemoryKiB : 0;

/** Why a host takes no domains now; null: it does. */
function closedBy(
  host: HostRecord,
  emptied: ReadonlyMap<string, string>,
  opens: string | null,
  ports: Ports,
): PlacementHost["closed"] {
  const by = emptied.get(host.id);
  if (by !== undefined)
    return {
      code: "host.cordoned",
      cause: `${host.name} is being emptied by ${by}.`,
      action: `Wait for its end (vmferry evacuation watch ${by}) or choose another host.`,
    };
  // An undo opens what was cordoned; nobody opens a host that is about to be off.
  const refusal = hostRefusals(host, "destination", ports).find(
    ({ code }) => code !== "host.cordoned" || host.id !== opens || isShutting(host, ports),
  );
  if (refusal !== undefined) return { code: refusal.code, cause: refusal.cause, action: refusal.action };
  if (host.facts?.libvirt.reachable === true) return null;
  return {
    code: "libvirt.unreachable",
    cause: `The shim on ${host.name} does not reach its libvirt.`,
    action: `Look at libvirtd on ${host.name} (vmferry doctor there).`,
  };
}

/** Looks once. Reads the list of hosts, the locks, and at most `inventoriesMax` inventories. */
export async function lookAround(ports: Ports, look: Look): Promise<Seen> {
  const { state, others, preflights, inventories } = look;
  const records = new Map((await inventories.list()).map((host) => [host.id, host]));
  const evacuations = [state, ...others];
  const { all, running } = await underWay(ports, evacuations);
  const emptied = new Map(
    evacuations.flatMap(({ id, kind, host }) =>
      kind === "evacuate" && id !== state.id ? [[host.id, id] as const] : [],
    ),
  );
  // An undo and a restore open their host before they begin.
  const opens = state.kind !== "evacuate" && state.cordoned ? state.host.id : null;
  const hosts = [...records.values()].map((host) => placementHost(host, closedBy(host, emptied, opens, ports)));
  const read = chosen(look, hosts, records);
  const rows = new Map<string, PlacedDomain[]>();
  const add = (row: PlacedDomain) => rows.set(row.uuid, [...(rows.get(row.uuid) ?? []), row]);
  await inParts(read, async (id) => {
    // What has come to the very host a moment ago is not to be left behind.
    for (const row of await inventories.of(id, id === state.host.id ? hostsAgeMsMax : undefined)) add(row);
  });
  // What is not where it was may be anywhere: asked by its uuid, so that nothing is taken for gone that was only not looked at.
  const sought = state.domains.filter(
    (each) =>
      (each.state === "waiting" || each.state === "stays") &&
      !rows.get(each.domain.uuid)?.some(({ hostId }) => hostId === each.homeId),
  );
  // What comes from a host that is not read takes room on one that is.
  const coming = all.filter(({ domainUuid, destinationId }) => !rows.has(domainUuid) && read.includes(destinationId));
  const uuids = new Set([...sought.map(({ domain }) => domain.uuid), ...coming.map(({ domainUuid }) => domainUuid)]);
  await inParts([...uuids], async (uuid) => {
    for (const row of await ports.hosts.findDomains(uuid))
      if (records.has(row.hostId) && !rows.get(row.uuid)?.some(({ hostId }) => hostId === row.hostId)) add(row);
  });

  const placed = new Map<string, PlacedDomain>();
  const arrived = arrivals(evacuations);
  // An undo takes up what arrived a moment ago: it is where the undo's own record says.
  const isYoung = Date.parse(ports.clock.now()) - Date.parse(state.createdAt) < inventoryLagMsMax;
  for (const each of isYoung && state.kind !== "evacuate" ? state.domains : [])
    if (each.state === "waiting") arrived.set(each.domain.uuid, { homeId: null, destinationId: each.homeId });
  const sources = new Map(all.map(({ domainUuid, sourceId }) => [domainUuid, sourceId]));
  for (const [uuid, found] of rows) {
    const row = placeOf(found, sources.get(uuid), arrived.get(uuid));
    if (row !== null) placed.set(uuid, row);
  }
  const atMs = Date.parse(ports.clock.now());
  const readIds = new Set(read);
  // Two that cross must think of each other with the same answers in mind.
  const homeward = state.kind === "evacuate" ? [state] : [state, ...others.filter(({ kind }) => kind !== "evacuate")];
  const seenHosts = [...records.values()].map((host) => ({
    id: host.id,
    cordoned: host.cordoned,
    silentSinceMs: isConnected(host, ports) ? null : Date.parse(host.lastSeenAt ?? host.enrolledAt),
    shutting: isShutting(host, ports),
    network: networkOf(host.facts?.labels ?? {}),
  }));
  return {
    view: {
      atMs,
      hosts: hosts.filter(({ id }) => readIds.has(id)),
      domains: [...placed.values()].map(placementDomain),
      verdicts: verdictsOf(homeward, hosts, placed, preflights),
      moving: all.map(({ domainUuid, sourceId, destinationId }) => ({ domainUuid, sourceId, destinationId })),
      networks: networksOf(seenHosts),
    },
    running,
    hosts: seenHosts,
    records,
    placed,
    crossing: homeward.slice(1).flatMap((other) => wantedBy(other, atMs)),
  };
}

/** What an undo or a restore still wants to bring home. */
const wantedBy = ({ status, host, domains }: EvacuationState, atMs: number): WantedMove[] =>
  status !== "running"
    ? []
    : domains
        .filter(({ state, notBefore }) => state === "waiting" && (notBefore === null || Date.parse(notBefore) <= atMs))
        .map(({ domain }) => ({ domainUuid: domain.uuid, toId: host.id }));

/**
 * Locks name what has begun, evacuations what they have committed to begin. A bundle task moves nothing. What is stranded keeps its
 * lock and its room on both hosts until a person acts, and no slot of what runs: else it would hold all others until then.
 */
async function underWay(
  ports: Ports,
  evacuations: readonly EvacuationState[],
): Promise<{ all: RunningMigration[]; running: RunningMigration[] }> {
  const locks = await ports.migrations.activeMigrations();
  const running = new Map<string, RunningMigration>();
  for (const each of evacuations.flatMap(runningOf)) running.set(each.migrationId, each);
  for (const { migrationId, domainUuid, source, destination } of locks)
    if (source !== destination)
      running.set(migrationId, { migrationId, domainUuid, sourceId: source, destinationId: destination });
  const all = [...running.values()];
  if (all.length === 0) return { all, running: all };
  const { items } = await ports.migrations.list({ limit: pageRowsMax, cursor: null, active: true });
  const stranded = new Set(items.flatMap(({ id, status }) => (status === "stranded" ? [id] : [])));
  return { all, running: all.filter(({ migrationId }) => !stranded.has(migrationId)) };
}

/** Where domains have arrived by evacuations that still run, and from where: the inventory may lag behind. */
const arrivals = (evacuations: readonly EvacuationState[]) =>
  new Map<string, Arrival>(
    evacuations.flatMap(({ domains }) =>
      domains.flatMap(({ state, domain, homeId, destinationId, stop }) => {
        if (state === "moved" && destinationId !== null) return [[domain.uuid, { homeId, destinationId }] as const];
        // It stopped over: where that was is where it is to be found.
        return stop === undefined ? [] : [[domain.uuid, { homeId: stop.fromId, destinationId: homeId }] as const];
      }),
    ),
  );

/** `homeId`: where the inventory may still show it; null: anywhere. */
interface Arrival {
  homeId: string | null;
  destinationId: string;
}

function placeOf(
  rows: readonly PlacedDomain[],
  sourceId: string | undefined,
  arrived: Arrival | undefined,
): PlacedDomain | null {
  const on = (hostId: string | undefined) => rows.find((row) => row.hostId === hostId);
  const moving = on(sourceId);
  if (moving !== undefined) return moving;
  const there = on(arrived?.destinationId);
  if (there !== undefined) return there;
  const left = arrived?.homeId === null ? rows[0] : on(arrived?.homeId);
  if (arrived !== undefined && left !== undefined && rows.length === 1)
    return { ...left, hostId: arrived.destinationId };
  return rows.find(isActive) ?? rows[0] ?? null;
}

/** Which inventories are read: every source, what is named, and of the rest those that may take something, the roomiest first. */
function chosen(
  { state, preflights, onlyAllowed }: Look,
  hosts: readonly PlacementHost[],
  records: ReadonlyMap<string, HostRecord>,
): string[] {
  const sources = state.domains.map(({ homeId }) => homeId);
  const used = state.domains.flatMap(({ destinationId }) => (destinationId === null ? [] : [destinationId]));
  const named = state.kind === "evacuate" ? (state.policy.to ?? []) : [];
  const isOfUse = (id: string): boolean => onlyAllowed !== true || isAllowed(state, preflights, id);
  const rest = hosts
    .filter(({ id }) => isOfUse(id))
    .map(({ id, closed }) => ({ id, closed: closed !== null, free: freeOf(records.get(id)) }))
    .sort(
      (one, other) =>
        Number(one.closed) - Number(other.closed) || other.free - one.free || (one.id < other.id ? -1 : 1),
    )
    .map(({ id }) => id);
  const ids = new Set([state.host.id, ...sources, ...named, ...used]);
  for (const id of rest) if (ids.size < inventoriesMax) ids.add(id);
  return [...ids].filter((id) => records.has(id));
}

/** Whether a preflight has allowed any domain that waits to go there. */
function isAllowed({ domains, policy }: EvacuationState, preflights: Preflights, hostId: string): boolean {
  const accept = new Set(policy.accept);
  return domains.some(
    ({ state, domain, homeId }) =>
      state === "waiting" && preflights.verdict(domain.uuid, homeId, hostId, accept)?.allowed === true,
  );
}

const freeOf = (host: HostRecord | undefined): number => (host === undefined ? 0 : freeKiB(host));

function placementHost(host: HostRecord, closed: PlacementHost["closed"]): PlacementHost {
  const libvirt = host.facts?.libvirt;
  const known = libvirt?.reachable === true ? libvirt : null;
  return {
    id: host.id,
    name: host.name,
    labels: host.facts?.labels ?? {},
    cpus: known?.cpus ?? 0,
    memoryKiB: known?.memoryKiB ?? 0,
    closed,
  };
}

const placementDomain = (row: PlacedDomain): PlacementDomain => ({
  uuid: row.uuid,
  name: row.name,
  hostId: row.hostId,
  memoryKiB: row.memoryKiB,
  vcpus: row.vcpus,
  active: isActive(row),
  snapshots: row.snapshots,
  labels: row.labels,
});

function verdictsOf(
  states: readonly EvacuationState[],
  hosts: readonly PlacementHost[],
  placed: ReadonlyMap<string, PlacedDomain>,
  preflights: Preflights,
): PlacementView["verdicts"] {
  const verdicts = new Map<string, NonNullable<ReturnType<Preflights["verdict"]>>>();
  for (const { domains, policy } of states) {
    const accept = new Set(policy.accept);
    for (const { domain } of domains) {
      const row = placed.get(domain.uuid);
      if (row === undefined) continue;
      for (const { id } of hosts) {
        const verdict = id === row.hostId ? null : preflights.verdict(row.uuid, row.hostId, id, accept);
        if (verdict !== null) verdicts.set(verdictKey(row.uuid, id), verdict);
      }
    }
  }
  return verdicts;
}
