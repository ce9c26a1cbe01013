/**
 * From "empty that host" to an evacuation that can be stored: what is on the host, what an evacuation moved, what belongs to a host, by the records. The
 * same for a person's request and a rule's run.
 */
import { newEvacuation, newRestore, newUndo } from "./core/evacuation-new.ts";
import { isEnded } from "./core/evacuation-result.ts";
import type { EvacuationPolicy, EvacuationState } from "./core/evacuation-state.ts";
import { pageRowsMax } from "./core/limits.ts";
import { priorityOf } from "./core/placement-ledger.ts";
import { inventoryLagMsMax } from "./placement-look.ts";
import type { HostRecord, PlacedDomain, Ports } from "./ports.ts";
import { inParts } from "./preflights.ts";

/** Evacuations read back for a restore: one item each, newest first; what a host gave away longer ago has found another home. */
export const restoreHistoryMax = 100;
/** Migrations looked through for those that persons asked for: 5 requests. */
const migrationRowsMax = 1_000;

export interface Wish {
  id: string;
  origin: EvacuationState["origin"];
  policy: EvacuationPolicy;
  /** From now on; null: the default. */
  deadlineMs: number | null;
}

/** An evacuation of everything that the inventory shows on the host, and of what is on its way there: it goes on when that has arrived. */
export async function freshEvacuation(ports: Ports, host: HostRecord, wish: Wish): Promise<EvacuationState> {
  const placed = await ports.hosts.domainsOf(host.id);
  const there = new Set(placed.map(({ uuid }) => uuid));
  const coming = (await comingTo(ports, host.id)).filter(({ uuid }) => !there.has(uuid));
  const domains = [...placed, ...coming].map(({ uuid, name, memoryKiB, vcpus, labels }) => ({
    domain: { uuid, name },
    memoryKiB,
    vcpus,
    priority: priorityOf(labels),
  }));
  return newEvacuation({ ...wish, host: { id: host.id, name: host.name }, domains }, ports.clock.now());
}

/** The rows, at their sources, of what migrations that run bring to the host. One that is stranded may never arrive. */
async function comingTo(ports: Ports, hostId: string): Promise<PlacedDomain[]> {
  const rows: PlacedDomain[] = [];
  const locks = (await ports.migrations.activeMigrations()).filter(
    ({ source, destination }) => destination === hostId && source !== hostId,
  );
  await inParts(locks, async ({ migrationId, domainUuid, source }) => {
    const migration = await ports.migrations.load(migrationId);
    if (migration !== null && migration.status !== "running") return;
    rows.push(...(await ports.hosts.findDomains(domainUuid)).filter((row) => row.hostId === source));
  });
  return rows;
}

/** An undo of an evacuation that has ended. */
export async function freshUndo(ports: Ports, of: EvacuationState, wish: Wish): Promise<EvacuationState> {
  const places = await placesOf(ports, [of]);
  const known = await withLateArrivals(ports, [of], places);
  // Also what was brought home and then taken to the same host once more is not this one's any longer.
  const moved = await movedByPerson(ports, known);
  const domains = known.flatMap((state) => state.domains);
  const own = domains.filter(({ state, domain }) => state === "moved" && !moved.has(domain.uuid));
  return newUndo({ ...wish, of: { ...of, domains: own }, places }, ports.clock.now());
}

/** A restore of what evacuations took from the host. `skip`: names or UUIDs of domains that stay where they are. */
export async function freshRestore(
  ports: Ports,
  host: HostRecord,
  wish: Wish & { skip: readonly string[] },
): Promise<EvacuationState> {
  const history = await historyOf(ports);
  const places = await placesOf(ports, history);
  const of = await withLateArrivals(ports, history, places);
  const skip = new Set(
    of.flatMap(({ domains }) =>
      domains.flatMap(({ domain }) =>
        wish.skip.includes(domain.name) || wish.skip.includes(domain.uuid) ? [domain.uuid] : [],
      ),
    ),
  );
  const input = {
    id: wish.id,
    origin: wish.origin,
    policy: wish.policy,
    deadlineMs: wish.deadlineMs,
    host: { id: host.id, name: host.name },
    of,
    places,
    movedByPerson: await movedByPerson(ports, of),
    skip,
  };
  return newRestore(input, ports.clock.now());
}

async function historyOf(ports: Ports): Promise<EvacuationState[]> {
  const { items } = await ports.evacuations.list({ limit: restoreHistoryMax, cursor: null, active: false });
  const states: EvacuationState[] = [];
  await inParts(
    items.filter(
      ({ endedAt, kind, counts }) => endedAt !== null && (kind !== "evacuate" || counts.moved + counts.failed > 0),
    ),
    async ({ id }) => {
      const state = await ports.evacuations.load(id);
      if (state !== null && isEnded(state)) states.push(state);
    },
  );
  return states;
}

/**
 * A migration that was stranded counts as failed in its evacuation, and may have arrived after that had ended. Such a domain counts as moved here: its
 * migration's own record says so. Asked only of those that stand where it was to bring them, or that an evacuation has taken on from there.
 */
async function withLateArrivals(
  ports: Ports,
  of: readonly EvacuationState[],
  places: ReadonlyMap<string, string>,
): Promise<EvacuationState[]> {
  const key = (uuid: string, hostId: string) => `${uuid} ${hostId}`;
  const left = new Set(of.flatMap(({ domains }) => domains.map(({ domain, homeId }) => key(domain.uuid, homeId))));
  const asked = of.flatMap(({ domains }) =>
    domains.flatMap(({ state, domain: { uuid }, destinationId, migrationId }) =>
      state === "failed" &&
      migrationId !== null &&
      destinationId !== null &&
      (places.get(uuid) === destinationId || left.has(key(uuid, destinationId)))
        ? [migrationId]
        : [],
    ),
  );
  const arrived = new Set<string>();
  await inParts(asked, async (id) => {
    const status = (await ports.migrations.load(id))?.status;
    // What is stranded still is held by its lock: who asks for it is told so.
    if (status === "completed" || status === "stranded") arrived.add(id);
  });
  return of.map((state) => ({
    ...state,
    domains: state.domains.map((each) =>
      each.state === "failed" && each.migrationId !== null && arrived.has(each.migrationId)
        ? { ...each, state: "moved" as const }
        : each,
    ),
  }));
}

/**
 * Where the inventories of all hosts that are named show the domains; of a domain on two, where it runs. What a migration
 * has moved a moment ago is where it arrived, though the inventories may not say so yet.
 */
async function placesOf(ports: Ports, of: readonly EvacuationState[]): Promise<Map<string, string>> {
  const uuids = new Set(of.flatMap(({ domains }) => domains.map(({ domain }) => domain.uuid)));
  const hostIds = new Set(
    of.flatMap(({ host, domains }) => [host.id, ...domains.flatMap(({ destinationId }) => destinationId ?? [])]),
  );
  const rows = new Map<string, PlacedDomain>();
  await inParts([...hostIds], async (hostId) => {
    for (const row of await ports.hosts.domainsOf(hostId)) {
      const known = rows.get(row.uuid);
      if (uuids.has(row.uuid) && (known === undefined || known.state === "shutoff")) rows.set(row.uuid, row);
    }
  });
  const places = new Map([...rows].map(([uuid, { hostId }]) => [uuid, hostId]));
  const lateMs = Date.parse(ports.clock.now()) - inventoryLagMsMax;
  const newest = await ports.migrations.list({ limit: pageRowsMax, cursor: null, active: false });
  // Oldest first, so that the last word stays.
  for (const { domain, status, destination, endedAt } of newest.items.toReversed())
    if (uuids.has(domain.uuid) && status === "completed" && endedAt !== null && Date.parse(endedAt) > lateMs)
      places.set(domain.uuid, destination.id);
  return places;
}

/** Domains that a migration of none of these evacuations has moved after the last of them that moved it began. */
async function movedByPerson(ports: Ports, of: readonly EvacuationState[]): Promise<Set<string>> {
  const ours = new Set(
    of.flatMap(({ domains }) =>
      domains.flatMap(({ migrationId, stop }) => [migrationId, stop?.migrationId].filter((id) => id != null)),
    ),
  );
  const moved = new Map<string, string>();
  for (const { domains, createdAt } of of)
    for (const { domain, state } of domains)
      if (state === "moved" && createdAt > (moved.get(domain.uuid) ?? "")) moved.set(domain.uuid, createdAt);
  const oldest = [...moved.values()].sort()[0];
  const found = new Set<string>();
  if (oldest === undefined) return found;
  let cursor: string | null = null;
  let rows = 0;
  do {
    const page = await ports.migrations.list({ limit: pageRowsMax, cursor, active: false });
    rows += page.items.length;
    for (const { id, domain, status, createdAt } of page.items) {
      const since = moved.get(domain.uuid);
      if (status === "completed" && since !== undefined && createdAt > since && !ours.has(id)) found.add(domain.uuid);
    }
    cursor = (page.items.at(-1)?.createdAt ?? "") > oldest ? page.cursor : null;
  } while (cursor !== null && rows < migrationRowsMax);
  return found;
}
