/** `GET /metrics` over a fleet in memory: what is so now, what has happened, what is unknown and therefore not told; read back by a parser of its own. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { chronicleSettleMs } from "#core/limits";
import { freshInventoryHostsMax, inventoryCountSchema, inventoryHostsMax } from "#core/metric-inventory";
import { ruleSchema } from "#core/rule";
import { hostSamples, hostSeriesMax, ruleSamples } from "#functions/http/metrics-gauges";
import { everyMinute } from "#functions/minute";
import { createReconciler } from "#functions/reconciler";
import { domainNamed, factsOf, hostId, type MemoryFleet, memoryFleet, webUuid } from "#test/fake/memory-fleet";
import { metricEvent } from "#test/fake/metric-events";
import { type ParsedFamily, parsedMetrics, seriesValue } from "#test/fake/metric-parser";

let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
});

async function scrape(): Promise<Map<string, ParsedFamily>> {
  const response = await fleet.ask("/metrics");
  assert.equal(response.headers.get("content-type"), "text/plain; version=0.0.4; charset=utf-8");
  return parsedMetrics(await response.text());
}

/** Which series have which values: name, labels, value. */
async function shows(expected: readonly [string, Record<string, string>, number | undefined][]): Promise<void> {
  const families = await scrape();
  for (const [name, labels, value] of expected)
    assert.equal(seriesValue(families, name, labels), value, `${name} ${JSON.stringify(labels)}`);
}

const uuid = (index: number) => webUuid.replace(/^1{8}/, String(index).padStart(8, "0"));
const second = (at: string) => Date.parse(at) / 1_000;

describe("hosts and domains", () => {
  test("of a few hosts, as they are now", async () => {
    const { clock } = fleet.ports;
    const lastSeenAt = clock.now();
    await fleet.addHost(1, {}, [domainNamed("web"), domainNamed("db", { uuid: uuid(2), state: "shutoff" })]);
    await fleet.addHost(2, { cordoned: true, facts: { ...factsOf(2), shimVersion: "0.2.0" } });
    await fleet.addHost(3, { lastSeenAt: null, facts: null, protocol: null });
    fleet.pass(fleet.ports.pace.offlineAfterMs + 1);
    await fleet.ports.hosts.seen(hostId(2), { at: clock.now() });
    await shows([
      ["vmferry_build_info", { version: "0.0.0-test" }, 1],
      ["vmferry_hosts", { state: "connected" }, 1],
      ["vmferry_hosts", { state: "silent" }, 2],
      ["vmferry_hosts_cordoned", {}, 1],
      ["vmferry_host_last_seen_timestamp_seconds", { host: "host1" }, second(lastSeenAt)],
      ["vmferry_host_last_seen_timestamp_seconds", { host: "host2" }, second(clock.now())],
      ["vmferry_host_last_seen_timestamp_seconds", { host: "host3" }, undefined],
      ["vmferry_hosts_without_series", {}, 0],
      ["vmferry_shims", { version: "0.1.0" }, 1],
      ["vmferry_shims", { version: "0.2.0" }, 1],
      ["vmferry_shim_protocols", { protocol: "1" }, 2],
      ["vmferry_domains", { state: "running" }, 1],
      ["vmferry_domains", { state: "shutoff" }, 1],
      ["vmferry_domains", { state: "crashed" }, 0],
      ["vmferry_host_domains", { host: "host1" }, 2],
      ["vmferry_host_domains", { host: "host2" }, 0],
      ["vmferry_inventory_counted_timestamp_seconds", {}, second(clock.now())],
    ]);
  });

  test("of many hosts as the reconciler has counted them, and nothing before it has", async () => {
    for (let index = 1; index <= freshInventoryHostsMax + 1; index += 1)
      await fleet.addHost(index, {}, [domainNamed("web", { uuid: uuid(index) })]);
    let read = 0;
    const { domainsOf } = fleet.ports.hosts;
    fleet.ports.hosts.domainsOf = (id) => {
      read += 1;
      return domainsOf.call(fleet.ports.hosts, id);
    };
    await shows([
      ["vmferry_hosts", { state: "connected" }, freshInventoryHostsMax + 1],
      ["vmferry_domains", { state: "running" }, undefined],
      ["vmferry_host_domains", { host: "host1" }, undefined],
      ["vmferry_inventory_counted_timestamp_seconds", {}, undefined],
    ]);
    assert.equal(read, 0);
    const countedAt = fleet.ports.clock.now();
    await createReconciler(fleet.ports, fleet.metrics).tick();
    const readOnce = read;
    fleet.pass(60_000);
    await fleet.ports.hosts.putInventory(hostId(1), { full: true, domains: [], gone: [] });
    await shows([
      ["vmferry_domains", { state: "running" }, freshInventoryHostsMax + 1],
      ["vmferry_host_domains", { host: "host1" }, 1],
      ["vmferry_inventory_counted_timestamp_seconds", {}, second(countedAt)],
    ]);
    assert.equal(read, readOnce, "a scrape reads no inventories");
  });

  test("a host that was removed has no series, whatever was counted", async () => {
    for (let index = 1; index <= freshInventoryHostsMax + 2; index += 1) await fleet.addHost(index);
    await createReconciler(fleet.ports, fleet.metrics).tick();
    await fleet.ports.hosts.remove(hostId(1));
    await shows([
      ["vmferry_host_domains", { host: "host1" }, undefined],
      ["vmferry_host_domains", { host: "host2" }, 0],
    ]);
  });

  test("series by host are bounded: the first that were enrolled keep theirs", async () => {
    const one = await fleet.addHost(1);
    const many = Array.from({ length: hostSeriesMax + 5 }, (_, index) => ({
      ...one,
      id: `h_${String(index).padStart(26, "0")}`,
      name: `host${index}`,
      facts: { ...factsOf(1), shimVersion: `0.${index}.0` },
    }));
    const samples = hostSamples(many.toReversed(), () => true);
    const of = (name: string) => samples.find(({ family }) => family.name === name)?.series ?? [];
    assert.deepEqual(
      of("vmferry_host_last_seen_timestamp_seconds").map(({ values }) => values[0]),
      many.slice(0, hostSeriesMax).map(({ name }) => name),
    );
    assert.equal(of("vmferry_hosts_without_series")[0]?.value, 5);
    assert.equal(of("vmferry_shims").length, 21);
    assert.equal(
      of("vmferry_shims").reduce((sum, { value }) => sum + value, 0),
      hostSeriesMax + 5,
    );
  });

  test("a count of the largest fleet fits its item", () => {
    const hosts = Array.from({ length: inventoryHostsMax }, (_, index): [string, number] => [
      `h_${String(index).padStart(26, "0")}`,
      500,
    ]);
    const count = inventoryCountSchema.parse({ at: "2026-11-01T00:00:00.000Z", states: {}, hosts });
    assert.ok(JSON.stringify(count).length < 200_000);
  });
});

describe("what is under way", () => {
  test("a migration that runs, strands and ends", async () => {
    await fleet.addHost(1, {}, [domainNamed("web")]);
    await fleet.addHost(2);
    const response = await fleet.ask("/v1/migrations", { body: { domain: "web", destination: "host2" } });
    const { id } = z.object({ id: z.string() }).parse(await response.json());
    await shows([
      ["vmferry_active_migrations", {}, 1],
      ["vmferry_open_migrations", { status: "running" }, 1],
      ["vmferry_open_migrations", { status: "stranded" }, 0],
    ]);
    const state = await fleet.ports.migrations.load(id);
    assert.ok(state);
    await fleet.ports.migrations.commit({ ...state, version: state.version + 1, status: "stranded" });
    await shows([
      ["vmferry_open_migrations", { status: "running" }, 0],
      ["vmferry_open_migrations", { status: "stranded" }, 1],
    ]);
  });

  test("an evacuation with its domains", async () => {
    await fleet.addHost(1, {}, [domainNamed("web"), domainNamed("db", { uuid: uuid(2) })]);
    await fleet.addHost(2);
    fleet.scriptInspections(1, 2, {});
    const response = await fleet.ask("/v1/evacuations", { body: { host: "host1", policy: { outMax: 1 } } });
    assert.equal(response.status, 202, await response.clone().text());
    await shows([
      ["vmferry_open_evacuations", { kind: "evacuate" }, 1],
      ["vmferry_open_evacuations", { kind: "undo" }, 0],
    ]);
    const families = await scrape();
    const domains = ["waiting", "moving"].map(
      (state) => seriesValue(families, "vmferry_open_evacuation_domains", { state }) ?? 0,
    );
    assert.equal(
      domains.reduce((sum, value) => sum + value, 0),
      2,
    );
  });

  test("a rule's run that waits for a person's word", async () => {
    await fleet.addHost(1, { facts: { ...factsOf(1), labels: { rack: "b" } } });
    const rule = ruleSchema.parse({
      name: "rack-b",
      when: { kind: "schedule", cron: "5 10 * * *", timeZone: "UTC", window: "3h" },
      which: { labels: { rack: "b" } },
      how: { approval: "needed" },
    });
    await fleet.rules.book.put(rule, "test", null);
    fleet.pass(5 * 60_000);
    await fleet.ports.hosts.seen(hostId(1), { at: fleet.ports.clock.now() });
    await fleet.rules.runner.tick();
    await shows([
      ["vmferry_rule_runs_open", { rule: "rack-b" }, 1],
      ["vmferry_rule_runs_awaiting_approval", { rule: "rack-b" }, 1],
    ]);
  });

  test("rules beyond the bound of names are one", () => {
    const states = Array.from({ length: 130 }, (_, index) => ({
      rule: `r${String(index).padStart(3, "0")}`,
      run: null,
    }));
    const [open] = ruleSamples(states);
    assert.equal(open?.series.length, 101);
    assert.deepEqual(open?.series.at(-1), { values: ["_other"], value: 0 });
  });
});

describe("webhooks", () => {
  const url = "https://receiver.example.org/hook";
  /** Made, and told of one event. */
  async function made(status: number): Promise<void> {
    const response = await fleet.ask("/v1/webhooks/chat", { method: "PUT", body: { url, types: ["host"] } });
    assert.equal(response.status, 201, await response.clone().text());
    fleet.script.receiverStatus = status;
    fleet.pass(1_000);
    await fleet.ports.chronicle.append(metricEvent("host.enrolled"));
    fleet.pass(60_000);
    await fleet.webhooks.runner.tick();
  }

  test("that takes what it is sent", async () => {
    await made(200);
    await shows([
      ["vmferry_webhook_delivered_total", { webhook: "chat" }, 1],
      ["vmferry_webhook_failed_attempts_total", { webhook: "chat" }, 0],
      ["vmferry_webhook_dropped_total", { webhook: "chat" }, 0],
      ["vmferry_webhook_failing", { webhook: "chat" }, 0],
      ["vmferry_webhook_lag_seconds", { webhook: "chat" }, 0],
      ["vmferry_webhook_paused", { webhook: "chat" }, 0],
    ]);
  });

  test("that fails", async () => {
    await made(500);
    await shows([
      ["vmferry_webhook_delivered_total", { webhook: "chat" }, 0],
      ["vmferry_webhook_failed_attempts_total", { webhook: "chat" }, 1],
      ["vmferry_webhook_failing", { webhook: "chat" }, 1],
      ["vmferry_webhook_lag_seconds", { webhook: "chat" }, 60],
    ]);
  });

  test("that was never told of anything, and is gone with its webhook", async () => {
    await fleet.ask("/v1/webhooks/chat", { method: "PUT", body: { url } });
    await shows([["vmferry_webhook_delivered_total", { webhook: "chat" }, 0]]);
    await fleet.ask("/v1/webhooks/chat", { method: "DELETE" });
    await shows([["vmferry_webhook_delivered_total", { webhook: "chat" }, undefined]]);
  });
});

describe("what has happened", () => {
  test("is told from the chronicle, settled, and not before the whole of it was counted", async () => {
    await fleet.ports.chronicle.append(metricEvent("migration.ended"));
    await shows([
      ["vmferry_counters_whole", {}, 1],
      ["vmferry_migrations_total", { status: "completed" }, 0],
    ]);
    fleet.pass(chronicleSettleMs + 10_000);
    await shows([
      ["vmferry_migrations_total", { status: "completed" }, 1],
      ["vmferry_migration_blackout_seconds_sum", {}, 0.18],
      [
        "vmferry_counters_counted_timestamp_seconds",
        {},
        (Date.parse(fleet.ports.clock.now()) - chronicleSettleMs) / 1_000,
      ],
    ]);
  });

  test("a migration from the request to its end, one that is rolled back, and who asked for both", async () => {
    await fleet.addHost(1, {}, [domainNamed("web")]);
    await fleet.addHost(2);
    const moving = { domain: "web", destination: "host2" };
    await fleet.ask("/v1/migrations", { body: moving });
    await fleet.serve();
    await fleet.ask("/v1/migrations", { body: moving });
    const fault = { code: "internal", cause: "No room.", action: "Make room.", retry: "never" } as const;
    await fleet.serve({ prepare: fault });
    fleet.pass(60_000);
    await shows([
      ["vmferry_migrations_started_total", {}, 2],
      ["vmferry_migrations_total", { status: "completed" }, 1],
      ["vmferry_migrations_total", { status: "rolledBack" }, 1],
      ["vmferry_migration_failures_total", { phase: "preparing" }, 1],
      ["vmferry_migration_phase_seconds_count", { phase: "performing" }, 1],
      ["vmferry_migration_phase_seconds_count", { phase: "exporting" }, 2],
      ["vmferry_migration_duration_seconds_count", { status: "completed" }, 1],
      ["vmferry_migration_blackout_seconds_count", {}, 1],
      ["vmferry_api_changes_total", { method: "POST" }, 2],
      ["vmferry_open_migrations", { status: "running" }, 0],
    ]);
    const snapshots = seriesValue(await scrape(), "vmferry_snapshots_verified_total") ?? 0;
    assert.ok(snapshots > 0);
  });

  test("half a history is not told", async () => {
    const { chronicle, clock } = fleet.ports;
    for (let event = 0; event < 600; event += 1) await chronicle.append(metricEvent("migration.started"));
    fleet.pass(60_000);
    await shows([
      ["vmferry_counters_whole", {}, 0],
      ["vmferry_migrations_started_total", {}, undefined],
    ]);
    await fleet.metricCounter.tick();
    fleet.pass(1_000);
    await shows([
      ["vmferry_counters_whole", {}, 1],
      ["vmferry_migrations_started_total", {}, 600],
      ["vmferry_counters_counted_timestamp_seconds", {}, (Date.parse(clock.now()) - 1_000 - chronicleSettleMs) / 1_000],
    ]);
  });

  test("the timer's tasks say when they have done their work; one that fails keeps its time", async () => {
    const { clock, log } = fleet.ports;
    const firstAt = clock.now();
    const succeeded = (tasks: readonly string[]) => fleet.metrics.succeeded(tasks, clock.now());
    const work = async () => {};
    await everyMinute(log, { migrations: work, rules: work }, succeeded);
    fleet.pass(60_000);
    const failing = async () => {
      throw new Error("the item cannot be read");
    };
    await assert.rejects(everyMinute(log, { migrations: work, rules: failing }, succeeded));
    await shows([
      ["vmferry_timer_succeeded_timestamp_seconds", { task: "migrations" }, second(clock.now())],
      ["vmferry_timer_succeeded_timestamp_seconds", { task: "rules" }, second(firstAt)],
    ]);
  });

  test("a sign of life that cannot be written is a failure of the minute", async () => {
    const away = async () => {
      throw new Error("throttled");
    };
    await assert.rejects(everyMinute(fleet.ports.log, { migrations: async () => {} }, away), AggregateError);
    assert.match(fleet.script.logged.join("\n"), /throttled/);
  });
});

test("what a host calls itself cannot forge a line", async () => {
  await fleet.addHost(1, { name: 'x"} 1\nvmferry_hosts{state="silent"} 99\n\\' });
  await shows([
    ["vmferry_hosts", { state: "silent" }, 0],
    ["vmferry_host_domains", { host: 'x"} 1\nvmferry_hosts{state="silent"} 99\n\\' }, 0],
  ]);
});
