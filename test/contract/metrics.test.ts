/**
 * What the store of `/metrics` must do, as one list of cases: on the fake, on the embedded DynamoDB and, where there is Java, on Amazon's own. And what a scrape
 * and a minute of the timer cost there in requests, for three hosts and for a thousand.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { chronicleSettleMs } from "#core/limits";
import { countInventory } from "#core/metric-inventory";
import { advanced, fold, type MetricRecord, metricLayout, noRecord, noTotals } from "#core/metric-totals";
import { createRunners } from "#functions/evacuation-runner";
import { createApp } from "#functions/http/app";
import { createMetricCounter } from "#functions/metric-counter";
import { everyMinute } from "#functions/minute";
import type { MetricStore, Ports } from "#functions/ports";
import { preflightMemory } from "#functions/preflights";
import { createReconciler } from "#functions/reconciler";
import { createRules } from "#functions/rule-fleet";
import { DynamoChronicle } from "#functions/store/dynamo-chronicle";
import { DynamoMetrics } from "#functions/store/dynamo-metrics";
import { DynamoDedup, DynamoRules } from "#functions/store/dynamo-rules";
import { createDynamoClient, DynamoTable } from "#functions/store/dynamo-table";
import { DynamoWebhooks } from "#functions/store/dynamo-webhooks";
import type { RequestCounter } from "#functions/store/request-counter";
import { createWebhooks } from "#functions/webhook-face";
import { MemoryChronicle, positionsBy } from "#test/fake/memory-chronicle";
import { adminToken, domainNamed, factsOf, memoryFleet } from "#test/fake/memory-fleet";
import { MemoryMetrics } from "#test/fake/memory-metrics";
import { metricEvent } from "#test/fake/metric-events";
import { parsedMetrics, seriesValue } from "#test/fake/metric-parser";
import { type DynamoEndpoint, onEachDynamo, startDynalite } from "./dynamo-endpoints.ts";
import { sha256, throwsFault, uuid } from "./store-cases.ts";
import { dynamoStores, makeTable, testClock } from "./store-dynamo.ts";
import { openFaultyStore } from "./store-faults-proxy.ts";

const entry = (at: number) => ({ at: String(at).padStart(26, "0"), event: metricEvent("migration.ended") });
const counted = (record: MetricRecord, at: number) => advanced(record, [entry(at)], { atEnd: true, countedMs: at });

/** Each begins with a store that has kept nothing yet. */
const cases: Record<string, (store: MetricStore) => Promise<void>> = {
  "nothing is kept at first": async (store) => {
    assert.deepEqual(await store.load(), { record: null, inventory: null, tasks: {} });
  },
  "totals are written over the version before only; the same again is our own": async (store) => {
    const first = counted(noRecord(), 1);
    assert.equal(await store.commit(first), "committed");
    assert.equal(await store.commit(first), "committed");
    assert.equal(await store.commit(counted(noRecord(), 2)), "conflict");
    const second = counted(first, 2);
    assert.equal(await store.commit({ ...second, version: 3 }), "conflict");
    assert.equal(await store.commit(second), "committed");
    assert.equal(await store.commit(first), "conflict");
    assert.deepEqual((await store.load()).record, second);
  },
  "of many that count at once one is written": async (store) => {
    const first = counted(noRecord(), 1);
    await store.commit(first);
    const results = await Promise.all([2, 3, 4, 5, 6].map((at) => store.commit(counted(first, at))));
    assert.equal(results.filter((result) => result === "committed").length, 1);
  },
  "sums come back as they were, to the last bit": async (store) => {
    const events = [0.1, 0.2, 1e15, 1e-9].map((durationMs, at) => ({
      at: String(at).padStart(26, "0"),
      event: metricEvent("migration.ended", { durationMs, transferredBytes: 2 ** 53 }),
    }));
    const record = advanced(noRecord(), events, { atEnd: true, countedMs: 1 });
    await store.commit(record);
    assert.deepEqual((await store.load()).record?.totals, fold(noTotals(), events));
  },
  "the newest count of domains is kept beside them": async (store) => {
    const record = counted(noRecord(), 1);
    await store.commit(record);
    const hosts = [{ id: "h_01JD0000000000000000000001", domains: [{ state: "running" as const }] }];
    await store.putInventory(countInventory("2026-11-01T00:00:00.000Z", hosts));
    const newer = countInventory("2026-11-01T00:10:00.000Z", hosts);
    await store.putInventory(newer);
    const kept = await store.load();
    assert.deepEqual([kept.record, kept.inventory], [record, newer]);
  },
  "each task of the timer has its own time": async (store) => {
    await store.succeeded(["migrations", "rules"], "2026-11-01T00:00:00.000Z");
    await store.succeeded([], "2026-11-01T00:01:00.000Z");
    await store.succeeded(["migrations"], "2026-11-01T00:02:00.000Z");
    assert.deepEqual((await store.load()).tasks, {
      migrations: "2026-11-01T00:02:00.000Z",
      rules: "2026-11-01T00:00:00.000Z",
    });
  },
};

describe("metrics in memory", () => {
  for (const [title, run] of Object.entries(cases)) test(title, () => run(new MemoryMetrics()));
});

const credentials = { accessKeyId: "local", secretAccessKey: "local" };
const tableAt = (endpoint: string, name: string, counter?: RequestCounter) =>
  new DynamoTable(createDynamoClient({ region: "local", endpoint, credentials, counter }), name);
let tables = 0;

/** Requests that `work` makes. */
async function costOf(counter: RequestCounter, work: () => Promise<unknown>): Promise<number> {
  const already = counter.total("dynamodb").requests;
  await work();
  return counter.total("dynamodb").requests - already;
}

/** A control plane over a table of its own with so many hosts, each with one domain. */
async function plane(endpoint: string, hosts: number) {
  const name = `metrics-${++tables}`;
  await makeTable(endpoint, name);
  // Everything goes by the fleet's clock, which this test moves.
  const { counter, clock: _, setNow: __, ...stores } = dynamoStores(endpoint, name);
  const table = tableAt(endpoint, name, counter);
  const fleet = await memoryFleet();
  const ports: Ports = {
    ...fleet.ports,
    ...stores,
    chronicle: new DynamoChronicle(table, positionsBy(fleet.ports.clock)),
  };
  const metrics = new DynamoMetrics(table);
  const metricCounter = createMetricCounter({ ...ports, metrics });
  const { runner, evacuations } = createRunners(ports, preflightMemory());
  const ruleStores = { rules: new DynamoRules(table), dedup: new DynamoDedup(table, ports.clock) };
  const webhooks = createWebhooks(ports, new DynamoWebhooks(table), {
    post: async () => ({ kind: "answered", status: 204, retryAfter: null }),
    targets: "public",
    postsAtOnce: 1,
    random: () => 0.5,
  });
  const app = createApp({
    ports,
    runner,
    evacuations,
    rules: createRules(ports, ruleStores, evacuations),
    webhooks,
    storeMetrics: (isolate) => counter.text(isolate),
    metrics: { counter: metricCounter, version: "0.0.0-test" },
    adminTokenSha256: sha256(adminToken),
  });
  for (let from = 0; from < hosts; from += 25)
    await Promise.all(
      Array.from({ length: Math.min(25, hosts - from) }, async (_, offset) => {
        const index = from + offset;
        const id = `h_${String(index).padStart(26, "0")}`;
        const facts = { ...factsOf(1), labels: { rack: `r${index % 40}`, zone: "zone-a" } };
        const at = ports.clock.now();
        await ports.hosts.create({
          id,
          name: `host${index}.example.org`,
          publicKey: "A".repeat(43),
          cordoned: false,
          enrolledAt: at,
          lastSeenAt: at,
          protocol: 1,
          features: [],
          facts,
        });
        const domains = [domainNamed(`web${index}`, { uuid: uuid() })];
        await ports.hosts.putInventory(id, { full: false, domains, gone: [] });
      }),
    );
  const scrape = async () => {
    const response = await app.request("/metrics", { headers: { authorization: `Bearer ${adminToken}` } });
    assert.equal(response.status, 200, await response.clone().text());
    return parsedMetrics(await response.text());
  };
  return { counter, ports, metrics, metricCounter, scrape, pass: fleet.pass };
}

await onEachDynamo("metrics", (started) => {
  async function freshTable(): Promise<DynamoTable> {
    const name = `metrics-${++tables}`;
    await makeTable(started.endpoint, name);
    return tableAt(started.endpoint, name);
  }

  for (const [name, run] of Object.entries(cases)) test(name, async () => run(new DynamoMetrics(await freshTable())));

  test("each layout has an item of its own: an older version's is left to it, and ours is counted anew", async () => {
    const table = await freshTable();
    const theirs = {
      pk: { S: "METRICS" },
      sk: { S: `TOTALS#${metricLayout - 1}` },
      version: { N: "9" },
      body: { S: "of another layout" },
    };
    await table.put("their totals", theirs, { expression: "attribute_not_exists(pk)" });
    const store = new DynamoMetrics(table);
    assert.equal((await store.load()).record, null);
    assert.equal(await store.commit(counted(noRecord(), 1)), "committed");
    const key = { pk: "METRICS", sk: `TOTALS#${metricLayout - 1}` };
    assert.deepEqual(await table.get("their totals", key), theirs);
  });

  test("an item that was altered by hand is named and not written over", async () => {
    const table = await freshTable();
    const store = new DynamoMetrics(table);
    await store.commit(counted(noRecord(), 1));
    await table.update("the totals", { pk: "METRICS", sk: `TOTALS#${metricLayout}` }, "SET body = :body", {
      expression: "attribute_exists(pk)",
      values: { ":body": { S: "{}" } },
    });
    await assert.rejects(store.load(), throwsFault("internal"));
  });

  test("a commit whose answer is lost was one, and each event is counted once", async () => {
    const name = `metrics-${++tables}`;
    await makeTable(started.endpoint, name);
    const faulty = await openFaultyStore(started.endpoint);
    try {
      const clock = testClock();
      const chronicle = new MemoryChronicle(positionsBy(clock));
      const metrics = new DynamoMetrics(tableAt(faulty.endpoint, name));
      const counter = createMetricCounter({ clock, log: { write() {} }, chronicle, metrics });
      for (let minute = 1; minute <= 3; minute += 1) {
        await chronicle.append(metricEvent("migration.ended"));
        clock.at = new Date(Date.parse(clock.at) + chronicleSettleMs + 60_000).toISOString();
        faulty.plague = "lose";
        await counter.tick();
        faulty.plague = "none";
        const { record } = await metrics.load();
        assert.deepEqual(record?.totals.counters.migrations, { completed: minute });
      }
      assert.ok(faulty.struck() > 3);
    } finally {
      await faulty.close();
    }
  });

  test("of four that count at once, each with its own bad days, each event is counted once", async () => {
    const name = `metrics-${++tables}`;
    await makeTable(started.endpoint, name);
    const clock = testClock();
    const chronicle = new DynamoChronicle(tableAt(started.endpoint, name), positionsBy(clock));
    const lines = await Promise.all([1, 2, 3, 4].map(() => openFaultyStore(started.endpoint)));
    try {
      const counters = lines.map(({ endpoint }) => {
        const metrics = new DynamoMetrics(tableAt(endpoint, name));
        const bounds = { rowsMax: 3, timerPagesMax: 2, scrapePagesMax: 1 };
        return createMetricCounter({ clock, log: { write() {} }, chronicle, metrics }, bounds);
      });
      for (let round = 0; round < 6; round += 1) {
        for (let event = 0; event < 4; event += 1) await chronicle.append(metricEvent("migration.ended"));
        clock.at = new Date(Date.parse(clock.at) + chronicleSettleMs + 20_000).toISOString();
        for (const [index, line] of lines.entries())
          line.plague = (["none", "lose", "throttle", "refuse"] as const)[(index + round) % 4] ?? "none";
        // The totals of one that fails are found by the next.
        await Promise.allSettled(counters.map((each, index) => (index % 2 === 0 ? each.tick() : each.view())));
      }
      for (const line of lines) line.plague = "none";
      clock.at = new Date(Date.parse(clock.at) + 60_000).toISOString();
      for (let minute = 0; minute < 6; minute += 1) await counters[0]?.tick();
      const all = await chronicle.after({ at: null, until: null, limit: 1_000 });
      assert.equal(all.length, 24);
      const { record } = await new DynamoMetrics(tableAt(started.endpoint, name)).load();
      assert.deepEqual(record?.totals, fold(noTotals(), all));
    } finally {
      await Promise.all(lines.map((line) => line.close()));
    }
  });
});

describe("what it costs in requests to DynamoDB", () => {
  let dynalite: DynamoEndpoint;
  before(async () => {
    dynalite = await startDynalite();
  });
  after(() => dynalite.end());

  /** Kept totals, hosts (a page for each MiB), locks, open migrations, open evacuations, runs of rules, webhooks and their deliveries. */
  const base = (hostPages: number) => 7 + hostPages;

  for (const { hosts, inventories, hostPages } of [
    { hosts: 3, inventories: 3, hostPages: 1 },
    { hosts: 1_000, inventories: 0, hostPages: 1 },
  ])
    test(`a scrape and a minute with ${hosts} hosts`, async () => {
      const { counter, ports, metrics, metricCounter, scrape, pass } = await plane(dynalite.endpoint, hosts);
      const minute = () =>
        everyMinute(ports.log, { metrics: () => metricCounter.tick() }, (done) =>
          metrics.succeeded(done, ports.clock.now()),
        );
      await createReconciler(ports, metrics).tick();
      await minute();
      const families = await scrape();
      assert.equal(seriesValue(families, "vmferry_domains", { state: "running" }), hosts);
      assert.equal(families.get("vmferry_host_domains")?.samples.length, hosts);

      const plain = base(hostPages) + inventories;
      assert.equal(await costOf(counter, scrape), plain, "soon after another");
      pass(60_000);
      assert.equal(await costOf(counter, scrape), plain + 1, "with a look into the chronicle");
      pass(60_000);
      assert.equal(await costOf(counter, minute), 3, "an idle minute: kept totals, chronicle, sign of life");

      for (let event = 0; event < 10; event += 1) await ports.chronicle.append(metricEvent("migration.ended"));
      pass(60_000);
      assert.equal(await costOf(counter, scrape), plain + 2, "with events that are counted and written");
      for (let event = 0; event < 10; event += 1) await ports.chronicle.append(metricEvent("migration.ended"));
      pass(60_000);
      assert.equal(await costOf(counter, minute), 4, "a minute with events");
      const counted = await scrape();
      assert.equal(seriesValue(counted, "vmferry_migrations_total", { status: "completed" }), 20);
    });
});
