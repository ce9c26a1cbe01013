/**
 * Holds the fleet against the records: reads both, lets core/drift.ts name the differences, and does the repairs that it
 * proved to be safe. Inventories are read before locks and migrations, so whatever moved in between is seen as moving.
 */
import { bundleMsKept, type Drift, type DriftHost, type DriftMigration, drifts, type FleetView } from "./core/drift.ts";
import { pageRowsMax } from "./core/limits.ts";
import { countInventory } from "./core/metric-inventory.ts";
import type { MigrationState } from "./core/state.ts";
import { tellEnd } from "./migration-told.ts";
import type { MetricStore, MigrationSummary, Ports } from "./ports.ts";
import { createTeller } from "./teller.ts";

export interface Findings {
  at: string;
  hosts: number;
  migrations: number;
  /** False: the fleet's history is longer than what is looked at once, and only its newest part was. */
  complete: boolean;
  drifts: Drift[];
}

export interface Reconciler {
  look(): Promise<Findings>;
  /** Looks, repairs what is safe and logs the rest. The timer calls it each minute; it works every tenth. */
  tick(): Promise<void>;
  /** Frees what the findings prove to be over; returns how many. */
  repair(findings: Findings): Promise<number>;
}

/** Rows of history read at once: newest first, 5 requests. A domain that moved longer ago has settled. */
const rowsMax = 1_000;
/** Migrations read whole at once: a Worker may make 1,000 requests in one call, and the hosts need theirs. */
const loadsMax = 300;
/** Reads under way at once. */
const readsAtOnce = 16;
/** Reading all inventories each minute would cost more than everything else that an idle fleet does. */
const tickEveryMinutes = 10;

/** `metrics`: where the timer's look leaves the count of the domains that it has read anyway. */
export function createReconciler(ports: Ports, metrics?: Pick<MetricStore, "putInventory">): Reconciler {
  const { clock, hosts, migrations, log, pace } = ports;
  const tell = createTeller(ports);

  async function inventories(): Promise<DriftHost[]> {
    const now = clock.now();
    return inParts(await hosts.list(), async ({ id, name, lastSeenAt, openJournals }) => ({
      id,
      name,
      lastSeenAt,
      connected: lastSeenAt !== null && Date.parse(now) - Date.parse(lastSeenAt) <= pace.offlineAfterMs,
      openJournals: openJournals ?? null,
      domains: await hosts.domainsOf(id),
    }));
  }

  async function history(): Promise<{ rows: MigrationSummary[]; complete: boolean }> {
    const rows: MigrationSummary[] = [];
    let cursor: string | null = null;
    do {
      const page = await migrations.list({ limit: pageRowsMax, cursor, active: false });
      rows.push(...page.items);
      ({ cursor } = page);
    } while (cursor !== null && rows.length < rowsMax);
    return { rows, complete: cursor === null };
  }

  async function view(): Promise<{ view: FleetView; complete: boolean }> {
    const known = await inventories();
    const locks = await migrations.activeMigrations();
    const { rows, complete } = await history();
    const at = clock.now();
    const listed = new Set(rows.map(({ id }) => id));
    const journals = known.flatMap(({ openJournals }) => openJournals?.journals.map(({ id }) => id) ?? []);
    // A lock is looked up always: the list may lag behind, and a repair hangs on it.
    const named = [...locks.map(({ migrationId }) => migrationId), ...journals.filter((id) => !listed.has(id))];
    const told = rows.filter((row) => row.step === "sweeping" || isNewestOfLate(row, rows, at)).map(({ id }) => id);
    const wanted = [...new Set([...named, ...told])].filter((id) => id.startsWith("m_"));
    const loads = await inParts(wanted.slice(0, loadsMax), async (id) => ({ id, state: await migrations.load(id) }));
    const loaded = new Map(loads.flatMap(({ id, state }) => (state === null ? [] : [[id, recordOf(state)] as const])));
    const unread = rows.filter(({ id }) => !loaded.has(id)).map((row): DriftMigration => ({ ...row, detail: null }));
    return {
      complete: complete && wanted.length <= loadsMax,
      view: {
        at,
        hosts: known,
        locks,
        migrations: [...loaded.values(), ...unread],
        unknown: loads.flatMap(({ id, state }) => (state === null ? [id] : [])),
      },
    };
  }

  const findingsOf = ({ view, complete }: { view: FleetView; complete: boolean }): Findings => ({
    at: view.at,
    hosts: view.hosts.length,
    migrations: view.migrations.length,
    complete,
    drifts: drifts(view),
  });

  const reconciler: Reconciler = {
    async look() {
      return findingsOf(await view());
    },

    async repair(findings) {
      let repaired = 0;
      for (const { repair } of findings.drifts) {
        if (repair === null) continue;
        const { migrationId, domainUuid, hostIds } = repair;
        // The timer of migrations finds by its lock what is not written down yet.
        const state = await migrations.load(migrationId);
        if (state !== null) await tellEnd(tell, state);
        await migrations.unpoint(hostIds, migrationId);
        await migrations.unlockDomain(domainUuid, migrationId);
        log.write("info", "drift repaired: a lock was left over", { migration: migrationId, domain: domainUuid });
        repaired += 1;
      }
      return repaired;
    },

    async tick() {
      if (new Date(clock.now()).getUTCMinutes() % tickEveryMinutes !== 0) return;
      const looked = await view();
      const findings = findingsOf(looked);
      for (const { code, severity, domain, hosts: names, migration, cause } of findings.drifts)
        log.write(levels[severity], "drift", { code, domain: domain?.uuid ?? null, hosts: names, migration, cause });
      await reconciler.repair(findings);
      await metrics?.putInventory(countInventory(looked.view.at, looked.view.hosts));
    },
  };
  return reconciler;
}

const levels = { critical: "error", warning: "warn", note: "info" } as const;

/** Whether what it left of snapshots is still worth comparing. `rows` are newest first. */
function isNewestOfLate(row: MigrationSummary, rows: readonly MigrationSummary[], at: string): boolean {
  if (row.endedAt === null || Date.parse(at) - Date.parse(row.endedAt) > bundleMsKept) return false;
  return rows.find(({ domain }) => domain.uuid === row.domain.uuid)?.id === row.id;
}

const recordOf = (state: MigrationState): DriftMigration => {
  const { id, domain, source, destination, status, step, endedAt, snapshots, bundle, fenced, sweep } = state;
  return { id, domain, source, destination, status, step, endedAt, detail: { snapshots, bundle, fenced, sweep } };
};

/** A few at a time, in order. */
async function inParts<T, R>(items: readonly T[], read: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (let from = 0; from < items.length; from += readsAtOnce)
    results.push(...(await Promise.all(items.slice(from, from + readsAtOnce).map(read))));
  return results;
}
