/**
 * `GET /metrics` for Prometheus. Three kinds of figures, each as true as it can be: what is so now is read from the store; what has happened is counted from the
 * chronicle, so it is the same whichever process answers and survives all of them; what this isolate has done itself carries its name.
 */

import { pageRowsMax } from "../core/limits.ts";
import { countInventory, freshInventoryHostsMax, type InventoryCount } from "../core/metric-inventory.ts";
import { samplesText, totalsText } from "../core/metric-text.ts";
import type { HostRecord, Page, Ports } from "../ports.ts";
import { isConnected } from "../refusals.ts";
import type { AppDeps } from "./deps.ts";
import {
  buildSamples,
  counterSamples,
  domainSamples,
  hostSamples,
  openSamples,
  ruleSamples,
} from "./metrics-gauges.ts";
import type { RequestCounts } from "./metrics-requests.ts";
import { webhookSamples } from "./metrics-webhooks.ts";
import { type Route, route } from "./route.ts";

/** Open migrations, and open evacuations, that are counted at most: twice what may run at once, and five requests. */
const openRowsMax = 1_000;

async function allOf<T>(list: (cursor: string | null) => Promise<Page<T>>): Promise<T[]> {
  const rows: T[] = [];
  let cursor: string | null = null;
  do {
    const page: Page<T> = await list(cursor);
    rows.push(...page.items);
    ({ cursor } = page);
  } while (cursor !== null && rows.length < openRowsMax);
  return rows;
}

/** Of a few hosts as they are now; of many as the reconciler has counted them, at most ten minutes ago. */
async function inventoryOf(
  { clock, hosts }: Ports,
  known: readonly HostRecord[],
  kept: InventoryCount | null,
): Promise<InventoryCount | null> {
  if (known.length > freshInventoryHostsMax) return kept;
  const read = known.map(async ({ id }) => ({ id, domains: await hosts.domainsOf(id) }));
  return countInventory(clock.now(), await Promise.all(read));
}

async function exposition(deps: AppDeps, requests: RequestCounts, isolate: string): Promise<string> {
  const { ports, metrics, rules, webhooks } = deps;
  const { hosts, migrations, evacuations } = ports;
  const [known, locks, openMigrations, openEvacuations, ruleStates, hooks, deliveries, view] = await Promise.all([
    hosts.list(),
    migrations.activeMigrations(),
    allOf((cursor) => migrations.list({ limit: pageRowsMax, cursor, active: true })),
    allOf((cursor) => evacuations.list({ limit: pageRowsMax, cursor, active: true })),
    rules?.rules.states() ?? [],
    webhooks?.webhooks.list() ?? [],
    webhooks?.webhooks.deliveries() ?? [],
    metrics?.counter.view() ?? null,
  ]);
  const inventory = await inventoryOf(ports, known, view?.inventory ?? null);
  const now = [
    ...(metrics === undefined ? [] : buildSamples(metrics.version)),
    ...hostSamples(known, (host) => isConnected(host, ports)),
    ...domainSamples(inventory, known),
    ...openSamples({ locks: locks.length, migrations: openMigrations, evacuations: openEvacuations }),
    ...(rules === undefined ? [] : ruleSamples(ruleStates)),
    ...(webhooks === undefined ? [] : webhookSamples(hooks, deliveries, Date.parse(ports.clock.now()))),
    ...(view === null ? [] : counterSamples(view)),
  ];
  return [
    samplesText(now),
    view?.record.whole === true ? totalsText(view.record.totals) : "",
    samplesText([requests.samples(isolate)]),
    deps.storeMetrics?.(isolate) ?? "",
  ].join("");
}

export function metricsRoutes(deps: AppDeps, requests: RequestCounts, isolate: () => string): Route[] {
  return [
    route({
      method: "GET",
      path: "/metrics",
      tag: "health",
      summary: "Prometheus metrics: the fleet as it is, what has happened, and what this isolate has done",
      access: "token",
      reply: { status: 200, description: "Text format 0.0.4", mediaType: "text/plain" },
      faults: ["store.unreachable"],
      async handle() {
        return new Response(await exposition(deps, requests, isolate()), {
          headers: { "content-type": "text/plain; version=0.0.4; charset=utf-8" },
        });
      },
    }),
  ];
}
