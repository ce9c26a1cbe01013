/** What is so at this moment, as gauges: hosts, shims, domains, open migrations, evacuations and runs. Pure: metrics.ts reads, this names and bounds. */
import { domainStateSchema } from "#protocol/command";
import { type EvacuationSummary, evacuationStateSchema } from "../core/evacuation-state.ts";
import type { MetricFamily } from "../core/metric-family.ts";
import type { InventoryCount } from "../core/metric-inventory.ts";
import type { MetricSamples, MetricSeries } from "../core/metric-text.ts";
import { ruleSeriesMax } from "../core/metric-totals.ts";
import type { RuleState } from "../core/rule-state.ts";
import type { MetricsView } from "../metric-counter.ts";
import type { HostRecord, MigrationSummary } from "../ports.ts";

/** Hosts with series of their own, the first that were enrolled: two series each, and a Prometheus takes some hundred thousand in all. */
export const hostSeriesMax = 1_000;
/** Versions of shims that are told apart, those of most hosts: an upgrade has two or three. */
const versionSeriesMax = 20;

function gauge(name: string, help: string, labels: readonly string[], series: readonly MetricSeries[]): MetricSamples {
  const family: MetricFamily = { name, help, type: "gauge", labels };
  return { family, series };
}
const alone = (value: number): MetricSeries[] => [{ values: [], value }];
/** Null: it is not known, and a gauge that is not known is not told. */
const time = (at: string | null | undefined): MetricSeries[] =>
  at === null || at === undefined ? [] : alone(Date.parse(at) / 1_000);

/** How many there are of each; `known` ones are told at 0 as well. */
function byKind(kinds: readonly string[], known: readonly string[] = []): MetricSeries[] {
  const counts = new Map(known.map((kind) => [kind, 0]));
  for (const kind of kinds) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  return [...counts].map(([kind, value]) => ({ values: [kind], value }));
}

/** The largest, and the rest as one. */
function bounded(series: readonly MetricSeries[], seriesMax: number): MetricSeries[] {
  if (series.length <= seriesMax) return [...series];
  const falling = series.toSorted((one, next) => next.value - one.value);
  const rest = falling.slice(seriesMax).reduce((sum, { value }) => sum + value, 0);
  return [...falling.slice(0, seriesMax), { values: ["_other"], value: rest }];
}

/** By id, which is by enrolment: whoever has a series keeps it while others come. */
const withSeries = (hosts: readonly HostRecord[]): HostRecord[] =>
  hosts.toSorted((one, next) => (one.id < next.id ? -1 : 1)).slice(0, hostSeriesMax);

export function buildSamples(version: string): MetricSamples[] {
  return [gauge("vmferry_build_info", "The version that answers.", ["version"], [{ values: [version], value: 1 }])];
}

export function hostSamples(hosts: readonly HostRecord[], connected: (host: HostRecord) => boolean): MetricSamples[] {
  const facts = hosts.flatMap(({ facts: known }) => (known === null ? [] : [known]));
  const protocols = hosts.flatMap(({ protocol }) => (protocol === null ? [] : [String(protocol)]));
  return [
    gauge(
      "vmferry_hosts",
      "Enrolled hosts, by whether they were heard of lately.",
      ["state"],
      byKind(
        hosts.map((host) => (connected(host) ? "connected" : "silent")),
        ["connected", "silent"],
      ),
    ),
    gauge(
      "vmferry_hosts_cordoned",
      "Hosts that take no new domains.",
      [],
      alone(hosts.filter(({ cordoned }) => cordoned).length),
    ),
    gauge(
      "vmferry_host_last_seen_timestamp_seconds",
      "When a host was heard of last; none for one that never connected.",
      ["host"],
      withSeries(hosts).flatMap(({ name, lastSeenAt }) =>
        time(lastSeenAt).map(({ value }) => ({ values: [name], value })),
      ),
    ),
    gauge(
      "vmferry_hosts_without_series",
      "Hosts beyond the bound of series by host.",
      [],
      alone(Math.max(0, hosts.length - hostSeriesMax)),
    ),
    gauge(
      "vmferry_shims",
      "Hosts by the version of their shim.",
      ["version"],
      bounded(byKind(facts.map(({ shimVersion }) => shimVersion)), versionSeriesMax),
    ),
    gauge(
      "vmferry_shim_protocols",
      "Hosts by the version of the protocol that was agreed on with their shim.",
      ["protocol"],
      bounded(byKind(protocols), versionSeriesMax),
    ),
  ];
}

/** `count` null: it was not counted yet. */
export function domainSamples(count: InventoryCount | null, hosts: readonly HostRecord[]): MetricSamples[] {
  const domains = new Map(count?.hosts ?? []);
  const states = domainStateSchema.options;
  return [
    gauge(
      "vmferry_domains",
      "Domains by state as their hosts said; one that is moving is known to two hosts.",
      ["state"],
      count === null ? [] : states.map((state) => ({ values: [state], value: count.states[state] ?? 0 })),
    ),
    gauge(
      "vmferry_host_domains",
      "Domains of a host.",
      ["host"],
      withSeries(hosts).flatMap(({ id, name }) => {
        const value = domains.get(id);
        return value === undefined ? [] : [{ values: [name], value }];
      }),
    ),
    gauge(
      "vmferry_inventory_counted_timestamp_seconds",
      "When vmferry_domains and vmferry_host_domains were counted.",
      [],
      time(count?.at),
    ),
  ];
}

export function openSamples(open: {
  locks: number;
  migrations: readonly Pick<MigrationSummary, "status">[];
  evacuations: readonly Pick<EvacuationSummary, "kind" | "counts">[];
}): MetricSamples[] {
  const { locks, migrations, evacuations } = open;
  const sum = (state: "waiting" | "moving") => evacuations.reduce((total, { counts }) => total + counts[state], 0);
  return [
    gauge(
      "vmferry_active_migrations",
      "Domains locked by a migration or a bundle task, counted in the store now.",
      [],
      alone(locks),
    ),
    gauge(
      "vmferry_open_migrations",
      "Migrations that have not ended; a stranded one waits for a person.",
      ["status"],
      byKind(
        migrations.map(({ status }) => status),
        ["running", "stranded"],
      ),
    ),
    gauge(
      "vmferry_open_evacuations",
      "Evacuations, undos and restores that have not ended.",
      ["kind"],
      byKind(
        evacuations.map(({ kind }) => kind),
        evacuationStateSchema.shape.kind.options,
      ),
    ),
    gauge(
      "vmferry_open_evacuation_domains",
      "Domains that evacuations, undos and restores have still to move, and those that they are moving.",
      ["state"],
      (["waiting", "moving"] as const).map((state) => ({ values: [state], value: sum(state) })),
    ),
  ];
}

/** Of the rules that have ever run, by name; beyond the bound as one. */
export function ruleSamples(states: readonly Pick<RuleState, "rule" | "run">[]): MetricSamples[] {
  const series = (of: (state: Pick<RuleState, "run">) => boolean): MetricSeries[] => {
    const named = states.toSorted((one, next) => (one.rule < next.rule ? -1 : 1));
    const rest = named.slice(ruleSeriesMax);
    return [
      ...named.slice(0, ruleSeriesMax).map((state) => ({ values: [state.rule], value: of(state) ? 1 : 0 })),
      ...(rest.length === 0 ? [] : [{ values: ["_other"], value: rest.filter(of).length }]),
    ];
  };
  return [
    gauge(
      "vmferry_rule_runs_open",
      "Whether a rule has a run that has not ended; rules beyond the bound of names are counted as _other.",
      ["rule"],
      series(({ run }) => run !== null),
    ),
    gauge(
      "vmferry_rule_runs_awaiting_approval",
      "Whether a rule's run waits for a person's word; rules beyond the bound of names are counted as _other.",
      ["rule"],
      series(({ run }) => run?.hosts.some(({ state }) => state === "awaitingApproval") === true),
    ),
  ];
}

/** How current the rest is. */
export function counterSamples({ record, countedMs, tasks }: MetricsView): MetricSamples[] {
  return [
    gauge(
      "vmferry_counters_whole",
      "1 when the counters of what happened are told; 0 while they are first counted.",
      [],
      alone(record.whole ? 1 : 0),
    ),
    gauge(
      "vmferry_counters_counted_timestamp_seconds",
      "Everything that happened before it is in the counters.",
      [],
      countedMs === 0 ? [] : alone(countedMs / 1_000),
    ),
    gauge(
      "vmferry_timer_succeeded_timestamp_seconds",
      "When a task of the minute's timer has done its work last.",
      ["task"],
      Object.entries(tasks)
        .sort(([one], [next]) => (one < next ? -1 : 1))
        .map(([task, at]) => ({ values: [task], value: Date.parse(at) / 1_000 })),
    ),
  ];
}
