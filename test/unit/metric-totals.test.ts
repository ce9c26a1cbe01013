/** The fold behind the counters: what each event counts, that nothing falls, that the cut does not matter, and that its text reads back as what was counted. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, test } from "node:test";
import fc from "fast-check";
import type { ChronicleEvent } from "#core/chronicle-event";
import { observedFamilies } from "#core/metric-family";
import { samplesText, totalsText } from "#core/metric-text";
import {
  advanced,
  fold,
  metricLayout,
  metricRecordSchema,
  metricTotalsSchema,
  noRecord,
  noTotals,
  ruleSeriesMax,
} from "#core/metric-totals";
import { anyMetricEvent, metricEvent, metricKinds, migrationResult } from "#test/fake/metric-events";
import { parsedMetrics, risingValues, seriesValue } from "#test/fake/metric-parser";

const entriesOf = (events: readonly ChronicleEvent[]) =>
  events.map((event, index) => ({ at: String(index).padStart(26, "0"), event }));
const told = (events: readonly ChronicleEvent[]) => parsedMetrics(totalsText(fold(noTotals(), entriesOf(events))));

describe("what is counted", () => {
  test("a migration that moved", () => {
    const families = told([metricEvent("migration.started"), metricEvent("migration.ended")]);
    const expected: [string, Record<string, string>, number][] = [
      ["vmferry_migrations_started_total", {}, 1],
      ["vmferry_migrations_total", { status: "completed" }, 1],
      ["vmferry_migrations_total", { status: "rolledBack" }, 0],
      ["vmferry_migration_strandings_total", {}, 0],
      ["vmferry_migration_transferred_bytes_total", {}, 1_000_000],
      ["vmferry_snapshots_staged_total", {}, 5],
      ["vmferry_snapshots_verified_total", {}, 5],
      ["vmferry_snapshots_restored_total", {}, 0],
      ["vmferry_snapshots_quarantined_total", {}, 1],
      ["vmferry_migration_duration_seconds_sum", { status: "completed" }, 42],
      ["vmferry_migration_duration_seconds_bucket", { status: "completed", le: "30" }, 0],
      ["vmferry_migration_duration_seconds_bucket", { status: "completed", le: "60" }, 1],
      ["vmferry_migration_blackout_seconds_sum", {}, 0.18],
      ["vmferry_migration_blackout_seconds_bucket", { le: "0.1" }, 0],
      ["vmferry_migration_blackout_seconds_bucket", { le: "0.25" }, 1],
      ["vmferry_migration_phase_seconds_sum", { phase: "performing" }, 30],
      ["vmferry_migration_phase_seconds_bucket", { phase: "performing", le: "30" }, 1],
      ["vmferry_migration_phase_seconds_bucket", { phase: "performing", le: "10" }, 0],
      ["vmferry_migration_phase_seconds_count", { phase: "staging" }, 1],
      ["vmferry_migration_phase_seconds_count", { phase: "exporting" }, 0],
    ];
    for (const [name, labels, value] of expected)
      assert.equal(seriesValue(families, name, labels), value, `${name} ${JSON.stringify(labels)}`);
  });

  test("a migration that stranded, and ended rolled back: one end, its first failure", () => {
    const error = { code: "host.offline", phase: "performing", side: "source", cause: "c", action: "a" };
    const failed = { status: "rolledBack", blackoutMs: null, transferredBytes: null, error };
    const families = told([
      metricEvent("migration.stranded", { ...failed, status: "stranded" }),
      metricEvent("migration.ended", { ...failed, snapshots: { ...migrationResult.snapshots, restored: 5 } }),
    ]);
    assert.equal(seriesValue(families, "vmferry_migration_strandings_total"), 1);
    assert.equal(seriesValue(families, "vmferry_migrations_total", { status: "rolledBack" }), 1);
    assert.equal(seriesValue(families, "vmferry_migrations_total", { status: "stranded" }), undefined);
    assert.equal(seriesValue(families, "vmferry_migration_failures_total", { phase: "performing" }), 1);
    assert.equal(seriesValue(families, "vmferry_snapshots_restored_total"), 5);
    assert.equal(seriesValue(families, "vmferry_migration_blackout_seconds_count"), 0);
    assert.equal(seriesValue(families, "vmferry_migration_transferred_bytes_total"), 0);
  });

  test("evacuations by kind and end, their domains by result, runs by rule", () => {
    const families = told([
      metricEvent("evacuation.started", { kind: "undo" }),
      metricEvent("evacuation.ended", { status: "partial" }),
      metricEvent("rule.run.started"),
      metricEvent("rule.run.ended", { hostsLeftOut: 2 }),
      metricEvent("host.enrolled"),
      metricEvent("host.shutdownRequested"),
      metricEvent("request.received"),
      metricEvent("request.received", { method: "x".repeat(500) }),
    ]);
    assert.equal(seriesValue(families, "vmferry_evacuations_started_total", { kind: "undo" }), 1);
    assert.equal(seriesValue(families, "vmferry_evacuations_total", { kind: "evacuate", status: "partial" }), 1);
    assert.equal(seriesValue(families, "vmferry_evacuation_domains_total", { result: "moved" }), 2);
    assert.equal(seriesValue(families, "vmferry_evacuation_domains_total", { result: "stays" }), 1);
    assert.equal(seriesValue(families, "vmferry_evacuation_duration_seconds_sum", { kind: "evacuate" }), 90);
    assert.equal(seriesValue(families, "vmferry_rule_runs_started_total", { rule: "rack-b" }), 1);
    assert.equal(seriesValue(families, "vmferry_rule_runs_ended_total", { rule: "rack-b" }), 1);
    assert.equal(seriesValue(families, "vmferry_rule_run_hosts_total", { state: "ended" }), 1);
    assert.equal(seriesValue(families, "vmferry_rule_run_hosts_total", { state: "other" }), 2);
    assert.equal(seriesValue(families, "vmferry_hosts_enrolled_total"), 1);
    assert.equal(seriesValue(families, "vmferry_host_shutdown_requests_total"), 1);
    assert.equal(seriesValue(families, "vmferry_api_changes_total", { method: "POST" }), 1);
    assert.equal(seriesValue(families, "vmferry_api_changes_total", { method: "other" }), 1);
  });

  test("whatever a host says of itself, a total stays a number, and the record can be read", () => {
    const huge = { transferredBytes: 1.7e308, durationMs: 1.7e308, phasesMs: { performing: 1.7e308 } };
    const events = Array.from({ length: 2_000 }, () => metricEvent("migration.ended", huge));
    const totals = fold(noTotals(), entriesOf(events));
    assert.deepEqual(metricTotalsSchema.parse(JSON.parse(JSON.stringify(totals))), totals);
  });

  test("every kind of event makes something rise", () => {
    for (const kind of metricKinds) {
      const before = risingValues(told([]));
      const after = risingValues(told([metricEvent(kind)]));
      assert.ok(
        [...after].some(([key, value]) => value > (before.get(key) ?? 0)),
        kind,
      );
    }
  });

  test("the first rules have series of their own for good, the others one together", () => {
    const names = Array.from({ length: ruleSeriesMax + 3 }, (_, index) => `rule-${index}`);
    const families = told([...names, ...names].map((rule) => metricEvent("rule.run.started", { rule })));
    assert.equal(families.get("vmferry_rule_runs_started_total")?.samples.length, ruleSeriesMax + 1);
    assert.equal(seriesValue(families, "vmferry_rule_runs_started_total", { rule: "rule-0" }), 2);
    assert.equal(seriesValue(families, "vmferry_rule_runs_started_total", { rule: "_other" }), 6);
  });

  test("a rule may be called as what every object has", () => {
    for (const rule of ["constructor", "to-string"])
      assert.equal(
        seriesValue(told([metricEvent("rule.run.started", { rule })]), "vmferry_rule_runs_started_total", { rule }),
        1,
      );
  });
});

describe("the fold", () => {
  const sequence = fc.array(anyMetricEvent, { maxLength: 30 });

  test("wherever the sequence is cut the totals are the same, also after they were stored", () => {
    fc.assert(
      fc.property(sequence, fc.array(fc.nat(30), { maxLength: 6 }), (events, cuts) => {
        const entries = entriesOf(events);
        const bounds = [0, ...cuts.sort((one, next) => one - next), entries.length];
        let totals = noTotals();
        for (const [index, bound] of bounds.entries()) {
          const part = entries.slice(bound, Math.max(bound, bounds[index + 1] ?? bound));
          totals = metricTotalsSchema.parse(JSON.parse(JSON.stringify(fold(totals, part))));
        }
        assert.deepEqual(totals, fold(noTotals(), entries));
      }),
      { numRuns: 100 },
    );
  });

  test("nothing falls, and the totals that are given stay as they are", () => {
    fc.assert(
      fc.property(sequence, anyMetricEvent, (events, event) => {
        const totals = fold(noTotals(), entriesOf(events));
        const before = structuredClone(totals);
        const after = risingValues(parsedMetrics(totalsText(fold(totals, entriesOf([event])))));
        assert.deepEqual(totals, before);
        for (const [key, value] of risingValues(parsedMetrics(totalsText(before))))
          assert.ok((after.get(key) ?? -1) >= value, key);
      }),
      { numRuns: 100 },
    );
  });

  test("counted by hand, event by event, it is the same", () => {
    fc.assert(
      fc.property(sequence, (events) => {
        const families = told(events);
        const ended = events.flatMap(({ type, data }) =>
          type === "dev.vmferry.migration.ended" && "transferredBytes" in data && "phasesMs" in data ? [data] : [],
        );
        const within = (one: number | undefined, next: number) =>
          assert.ok(Math.abs((one ?? -1) - next) <= 1e-9 * Math.max(1, next), `${one} is not ${next}`);
        const bytes = ended.reduce((sum, { transferredBytes }) => sum + (transferredBytes ?? 0), 0);
        within(seriesValue(families, "vmferry_migration_transferred_bytes_total"), bytes);
        const staged = ended.reduce((sum, { snapshots }) => sum + snapshots.staged, 0);
        assert.equal(seriesValue(families, "vmferry_snapshots_staged_total"), staged);
        const performed = ended.flatMap(({ phasesMs }) => phasesMs.performing ?? []);
        assert.equal(
          seriesValue(families, "vmferry_migration_phase_seconds_count", { phase: "performing" }),
          performed.length,
        );
        for (const le of ["0.25", "30"])
          assert.equal(
            seriesValue(families, "vmferry_migration_phase_seconds_bucket", { phase: "performing", le }),
            performed.filter((ms) => ms / 1_000 <= Number(le)).length,
          );
        for (const status of ["completed", "rolledBack", "refused", "cancelled"])
          assert.equal(
            seriesValue(families, "vmferry_migrations_total", { status }),
            ended.filter((data) => data.status === status).length,
          );
      }),
      { numRuns: 100 },
    );
  });
});

describe("the record", () => {
  const settled = { atEnd: true, countedMs: 5 };

  test("without news it is the same one, so that an idle fleet writes nothing", () => {
    const whole = advanced(noRecord(), [], settled);
    assert.deepEqual([whole.version, whole.whole, whole.cursor], [1, true, null]);
    assert.equal(advanced(whole, [], { atEnd: true, countedMs: 9 }), whole);
    assert.equal(advanced(whole, [], { atEnd: false, countedMs: 9 }), whole);
  });

  test("it is whole once the end was reached, and stays so", () => {
    const entries = entriesOf([metricEvent("migration.started"), metricEvent("migration.started")]);
    const half = advanced(noRecord(), entries.slice(0, 1), { atEnd: false, countedMs: 1 });
    assert.deepEqual([half.whole, half.cursor], [false, entries[0]?.at]);
    const whole = advanced(half, entries.slice(1), settled);
    assert.deepEqual([whole.whole, whole.version], [true, 2]);
    const late = advanced(whole, entriesOf([metricEvent("migration.started")]), { atEnd: false, countedMs: 3 });
    assert.deepEqual([late.whole, late.countedMs], [true, 5]);
  });

  test("an item that knows less than this version is read: what it lacks begins at 0", () => {
    const old = { ...advanced(noRecord(), entriesOf([metricEvent("migration.started")]), settled) };
    const read = metricRecordSchema.parse(JSON.parse(JSON.stringify(old)));
    const families = parsedMetrics(totalsText(fold(read.totals, entriesOf([metricEvent("host.enrolled")]))));
    assert.equal(seriesValue(families, "vmferry_migrations_started_total"), 1);
    assert.equal(seriesValue(families, "vmferry_hosts_enrolled_total"), 1);
  });

  test("the bounds of buckets belong to the layout: whoever changes them raises it, and names them here", () => {
    const bounds = JSON.stringify(Object.entries(observedFamilies).map(([name, { buckets }]) => [name, buckets]));
    const digest = createHash("sha256").update(bounds).digest("hex").slice(0, 16);
    assert.deepEqual([metricLayout, digest], [1, "adf36c9e9aa0b981"]);
  });
});

describe("the text", () => {
  test("any label and any number read back as they were", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 100 }), fc.double({ noNaN: true }), (label, value) => {
        const family = { name: "vmferry_test", help: 'a \\ and\nb "', type: "gauge" as const, labels: ["one", "two"] };
        const text = samplesText([{ family, series: [{ values: [label, "x"], value }] }]);
        const [sample] = parsedMetrics(text).get("vmferry_test")?.samples ?? [];
        assert.deepEqual(sample, {
          name: "vmferry_test",
          labels: { one: label.toWellFormed(), two: "x" },
          // Zero has no sign there.
          value: value === 0 ? 0 : value,
        });
      }),
      { numRuns: 200 },
    );
  });

  test("a label is cut at its bound", () => {
    const family = { name: "vmferry_test", help: "h", type: "gauge" as const, labels: ["one"] };
    const text = samplesText([{ family, series: [{ values: ["x".repeat(10_000)], value: 1 }] }]);
    assert.equal(parsedMetrics(text).get("vmferry_test")?.samples[0]?.labels.one?.length, 255);
  });
});
