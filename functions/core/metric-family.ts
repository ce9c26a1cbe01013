/**
 * What the counters of `/metrics` are called and how they are cut. Names follow Prometheus' conventions: base units last, `_total` for what only rises. Labels are of
 * known vocabularies, or bounded, so that no series grows without end.
 *
 * The bounds of buckets are part of what is stored: whoever changes them, or what a name means, raises `metricLayout` (metric-totals.ts). A name that is added
 * needs no new layout; it begins at 0.
 */
import { evacuationStateSchema } from "./evacuation-state.ts";
import { runHostStateSchema } from "./rule-state.ts";
import { stepSchema } from "./state.ts";

export interface MetricFamily {
  name: string;
  help: string;
  type: "counter" | "gauge" | "histogram";
  labels: readonly string[];
}

export interface CountedFamily extends MetricFamily {
  type: "counter";
  /** Label values that are told from the beginning, at 0: a rate needs to see what it rose from. */
  known: readonly (readonly string[])[];
}

export interface ObservedFamily extends MetricFamily {
  type: "histogram";
  /** Upper bounds, rising; what is above the last is counted as well. */
  buckets: readonly number[];
  known: readonly (readonly string[])[];
}

const phases = stepSchema.options.filter((step) => step !== "ended");
const migrationEnds = ["completed", "rolledBack", "refused", "cancelled"];
const evacuationKinds = evacuationStateSchema.shape.kind.options;
const evacuationEnds = ["completed", "partial", "failed", "cancelled"];
const domainResults = ["moved", "stays", "failed"];
/** How a host can stand in a run that has ended. */
const runHostEnds = runHostStateSchema.options.filter((state) => state !== "awaitingApproval" && state !== "waiting");
const changingMethods = ["POST", "PUT", "PATCH", "DELETE"];

const one = (value: string) => [value];
const alone = [[]];

const counted = (
  name: string,
  help: string,
  labels: readonly string[],
  known: readonly (readonly string[])[],
): CountedFamily => ({ name, help, type: "counter", labels, known });

const observed = (
  name: string,
  help: string,
  buckets: readonly number[],
  labels: readonly string[],
  known: readonly (readonly string[])[],
): ObservedFamily => ({ name, help, type: "histogram", labels, buckets, known });

/** Counters that are folded from the chronicle. */
export const countedFamilies = {
  migrationsStarted: counted("vmferry_migrations_started_total", "Migrations that were begun.", [], alone),
  migrations: counted(
    "vmferry_migrations_total",
    "Migrations that have ended, by how.",
    ["status"],
    migrationEnds.map(one),
  ),
  migrationStrandings: counted(
    "vmferry_migration_strandings_total",
    "How often a migration began to wait for a person.",
    [],
    alone,
  ),
  migrationFailures: counted(
    "vmferry_migration_failures_total",
    "Migrations that have ended with a failure, by the phase of the first thing that went wrong.",
    ["phase"],
    [],
  ),
  transferredBytes: counted(
    "vmferry_migration_transferred_bytes_total",
    "Memory and disk bytes that QEMU sent, of migrations that have ended.",
    [],
    alone,
  ),
  snapshotsStaged: counted(
    "vmferry_snapshots_staged_total",
    "Snapshots that were defined on a destination.",
    [],
    alone,
  ),
  snapshotsVerified: counted(
    "vmferry_snapshots_verified_total",
    "Snapshots that were read back on a destination and found the same.",
    [],
    alone,
  ),
  snapshotsRestored: counted(
    "vmferry_snapshots_restored_total",
    "Snapshots that were found on a source again after the migration was rolled back.",
    [],
    alone,
  ),
  snapshotsQuarantined: counted(
    "vmferry_snapshots_quarantined_total",
    "Records of snapshots that lack their data: known, accepted, and moved as they are.",
    [],
    alone,
  ),
  evacuationsStarted: counted(
    "vmferry_evacuations_started_total",
    "Evacuations, undos and restores that were begun.",
    ["kind"],
    evacuationKinds.map(one),
  ),
  evacuations: counted(
    "vmferry_evacuations_total",
    "Evacuations, undos and restores that have ended, by how.",
    ["kind", "status"],
    evacuationKinds.flatMap((kind) => evacuationEnds.map((status) => [kind, status])),
  ),
  evacuationDomains: counted(
    "vmferry_evacuation_domains_total",
    "Domains of evacuations, undos and restores that have ended, by what became of them.",
    ["result"],
    domainResults.map(one),
  ),
  ruleRunsStarted: counted(
    "vmferry_rule_runs_started_total",
    "Runs of rules that were opened; rules beyond the bound of names are counted as _other.",
    ["rule"],
    [],
  ),
  ruleRunsEnded: counted(
    "vmferry_rule_runs_ended_total",
    "Runs of rules that have ended; rules beyond the bound of names are counted as _other.",
    ["rule"],
    [],
  ),
  ruleRunHosts: counted(
    "vmferry_rule_run_hosts_total",
    "Hosts of runs that have ended, by how they stood then.",
    ["state"],
    runHostEnds.map(one),
  ),
  hostsEnrolled: counted("vmferry_hosts_enrolled_total", "Enrolments of hosts.", [], alone),
  hostShutdowns: counted(
    "vmferry_host_shutdown_requests_total",
    "Shutdowns that hosts told before they happened.",
    [],
    alone,
  ),
  changes: counted(
    "vmferry_api_changes_total",
    "Requests for a change that were let in, over all processes.",
    ["method"],
    changingMethods.map(one),
  ),
} satisfies Record<string, CountedFamily>;
export type CountedName = keyof typeof countedFamilies;

const second = {
  /** A phase is some milliseconds on an idle host and minutes where memory is moved. */
  phase: [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800],
  migration: [1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600],
  /** What guests notice begins at some tens of milliseconds. */
  blackout: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
  evacuation: [10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 43_200, 86_400],
};

/** Histograms that are folded from the chronicle; the values are seconds. */
export const observedFamilies = {
  phase: observed(
    "vmferry_migration_phase_seconds",
    "How long the hosts worked on each phase, of migrations that have ended.",
    second.phase,
    ["phase"],
    phases.map(one),
  ),
  migration: observed(
    "vmferry_migration_duration_seconds",
    "From the request of a migration to its end.",
    second.migration,
    ["status"],
    migrationEnds.map(one),
  ),
  blackout: observed(
    "vmferry_migration_blackout_seconds",
    "How long a guest stood still while it changed hosts.",
    second.blackout,
    [],
    alone,
  ),
  evacuation: observed(
    "vmferry_evacuation_duration_seconds",
    "From the request of an evacuation, undo or restore to its end.",
    second.evacuation,
    ["kind"],
    evacuationKinds.map(one),
  ),
} satisfies Record<string, ObservedFamily>;
export type ObservedName = keyof typeof observedFamilies;
