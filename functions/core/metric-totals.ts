/**
 * The totals behind the counters of `/metrics`: a pure fold over the chronicle, so that they are the same whoever counts, however often it is begun again and
 * wherever the sequence is cut. Nothing that is folded ever makes a total smaller.
 *
 * Kept beside the position that they were counted up to, in one item: an advance is one conditional write, and an event is counted in exactly one of them.
 */
import * as z from "zod/mini";
import type { ChronicleEntry, ChronicleEvent, MigrationResult } from "./chronicle-event.ts";
import { type CountedName, countedFamilies, type ObservedName, observedFamilies } from "./metric-family.ts";

/**
 * Of what is stored, and part of its key: each layout is counted from the beginning of the chronicle into an item of its own, so an older version that still
 * runs goes on with the one that it knows, and going back to it is going back to its item.
 */
export const metricLayout = 1;

/** Rules that have series of their own, the first that ran: a fleet has some tens. All beyond are counted together. */
export const ruleSeriesMax = 100;
/** No rule can be called this: names of rules begin with a letter or a digit. */
const otherRules = "_other";
/** A value that is of no known vocabulary: never repeated in a label, whatever it says. */
const other = "other";

const count = z.number().check(z.minimum(0));

export const metricTotalsSchema = z.object({
  /** By the family's name in metric-family.ts, then by the values of its labels. */
  counters: z.record(z.string(), z.record(z.string(), count)),
  /** `counts`: of each bucket by itself, and last of what is above all. `sum`: seconds. */
  histograms: z.record(z.string(), z.record(z.string(), z.object({ counts: z.array(z.int()), sum: count }))),
  /** The rules that have series of their own. */
  rules: z.array(z.string()),
});
export type MetricTotals = z.infer<typeof metricTotalsSchema>;

export const metricRecordSchema = z.object({
  /** Rises by one with every write (I5). */
  version: z.int(),
  /** The last event that is counted; null: none yet. */
  cursor: z.nullable(z.string()),
  /** Everything before this Unix time (ms) was counted when it was written. */
  countedMs: z.number(),
  /** The end of the chronicle was reached once. Totals are told from then on only: half of them would look as if they rose all at once. */
  whole: z.boolean(),
  totals: metricTotalsSchema,
});
export type MetricRecord = z.infer<typeof metricRecordSchema>;

export const noTotals = (): MetricTotals => ({ counters: {}, histograms: {}, rules: [] });

export const noRecord = (): MetricRecord => ({
  version: 0,
  cursor: null,
  countedMs: 0,
  whole: false,
  totals: noTotals(),
});

/** Values of labels as one key: none of a known vocabulary, and no rule's name, has a bar in it. */
export const seriesKey = (values: readonly string[]): string => values.join("|");

/** The totals with these events counted in. The totals that are given stay as they are. */
export function fold(totals: MetricTotals, entries: readonly ChronicleEntry[]): MetricTotals {
  if (entries.length === 0) return totals;
  const tally = new Tally(totals);
  for (const { event } of entries) tally.add(event);
  return tally.totals;
}

/**
 * The record after these entries, which follow its cursor; the record itself when they change nothing. `atEnd`: there were no more before `countedMs` (Unix time
 * up to which the chronicle was read).
 */
export function advanced(
  record: MetricRecord,
  entries: readonly ChronicleEntry[],
  { atEnd, countedMs }: { atEnd: boolean; countedMs: number },
): MetricRecord {
  const whole = record.whole || atEnd;
  const last = entries.at(-1);
  if (last === undefined && whole === record.whole) return record;
  return {
    version: record.version + 1,
    cursor: last?.at ?? record.cursor,
    countedMs: Math.max(record.countedMs, countedMs),
    whole,
    totals: fold(record.totals, entries),
  };
}

const seconds = (ms: number) => ms / 1_000;
/** What is measured between two clocks may come out below nothing; a total never falls. */
const positive = (value: number) => (Number.isFinite(value) && value > 0 ? value : 0);
/** A number still, whatever hosts say of themselves: JSON has no infinity, and what cannot be read back would be told never again. */
const total = (sum: number, by: number) => Math.min(sum + by, Number.MAX_VALUE);
/** A rule may be called `constructor`. */
const own = <T>(series: Readonly<Record<string, T>>, key: string): T | undefined =>
  Object.hasOwn(series, key) ? series[key] : undefined;
const among = (known: readonly (readonly string[])[], value: string) =>
  known.some(([each]) => each === value) ? value : other;

/** Totals while events are counted in: a copy of its own. */
class Tally {
  readonly totals: MetricTotals;

  constructor(totals: MetricTotals) {
    this.totals = structuredClone(totals);
  }

  add(event: ChronicleEvent): void {
    switch (event.type) {
      case "dev.vmferry.migration.started":
        this.#count("migrationsStarted");
        break;
      case "dev.vmferry.migration.stranded":
        this.#count("migrationStrandings");
        break;
      case "dev.vmferry.migration.ended":
        this.#migration(event.data);
        break;
      case "dev.vmferry.evacuation.started":
        this.#count("evacuationsStarted", [event.data.kind]);
        break;
      case "dev.vmferry.evacuation.ended": {
        const { kind, status, counts, durationMs } = event.data;
        this.#count("evacuations", [kind, status]);
        for (const [result, domains] of Object.entries(counts))
          if (domains > 0) this.#count("evacuationDomains", [result], domains);
        this.#observe("evacuation", [kind], seconds(durationMs));
        break;
      }
      case "dev.vmferry.rule.run.started":
        this.#count("ruleRunsStarted", [this.#rule(event.data.rule)]);
        break;
      case "dev.vmferry.rule.run.ended": {
        this.#count("ruleRunsEnded", [this.#rule(event.data.rule)]);
        for (const { state } of event.data.hosts)
          this.#count("ruleRunHosts", [among(countedFamilies.ruleRunHosts.known, state)]);
        this.#count("ruleRunHosts", [other], event.data.hostsLeftOut ?? 0);
        break;
      }
      case "dev.vmferry.host.enrolled":
        this.#count("hostsEnrolled");
        break;
      case "dev.vmferry.host.shutdownRequested":
        this.#count("hostShutdowns");
        break;
      case "dev.vmferry.request.received":
        this.#count("changes", [among(countedFamilies.changes.known, event.data.method)]);
        break;
      default:
        assertCounted(event);
        break;
    }
  }

  #migration(result: MigrationResult): void {
    const { status, durationMs, blackoutMs, transferredBytes, phasesMs, snapshots, error } = result;
    this.#count("migrations", [status]);
    if (error !== null) this.#count("migrationFailures", [error.phase]);
    this.#count("transferredBytes", [], transferredBytes ?? 0);
    this.#count("snapshotsStaged", [], snapshots.staged);
    this.#count("snapshotsVerified", [], snapshots.verified);
    this.#count("snapshotsRestored", [], snapshots.restored);
    this.#count("snapshotsQuarantined", [], snapshots.quarantined);
    this.#observe("migration", [status], seconds(durationMs));
    if (blackoutMs !== null) this.#observe("blackout", [], seconds(blackoutMs));
    for (const [phase, ms] of Object.entries(phasesMs)) this.#observe("phase", [phase], seconds(ms));
  }

  /** The name that a rule has in labels: its own for the first ones, for good. */
  #rule(name: string): string {
    const { rules } = this.totals;
    if (rules.includes(name)) return name;
    if (rules.length >= ruleSeriesMax) return otherRules;
    rules.push(name);
    return name;
  }

  #count(name: CountedName, values: readonly string[] = [], by = 1): void {
    if (positive(by) === 0) return;
    const { counters } = this.totals;
    const series = counters[name] ?? {};
    counters[name] = series;
    const key = seriesKey(values);
    series[key] = total(own(series, key) ?? 0, by);
  }

  #observe(name: ObservedName, values: readonly string[], measured: number): void {
    const value = positive(measured);
    const { buckets } = observedFamilies[name];
    const { histograms } = this.totals;
    const series = histograms[name] ?? {};
    histograms[name] = series;
    const key = seriesKey(values);
    const { counts, sum } = own(series, key) ?? { counts: [...buckets, 0].map(() => 0), sum: 0 };
    const bucket = buckets.findIndex((bound) => value <= bound);
    const at = bucket === -1 ? buckets.length : bucket;
    counts[at] = (counts[at] ?? 0) + 1;
    series[key] = { counts, sum: total(sum, value) };
  }
}

/** A type that is added to the chronicle does not compile here until somebody has said what it counts. */
function assertCounted(_event: never): void {}
