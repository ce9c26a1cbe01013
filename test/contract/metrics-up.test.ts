/** `GET /metrics` of `vmferry up` as Prometheus meets it: the bundled Worker in workerd, over a store that holds a history, killed and started again. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { openDynalite } from "#functions/cli/up-dynalite";
import { DynamoChronicle } from "#functions/store/dynamo-chronicle";
import { createDynamoClient, DynamoTable } from "#functions/store/dynamo-table";
import { version } from "#functions/version";
import { positionsBy } from "#test/fake/memory-chronicle";
import { metricEvent } from "#test/fake/metric-events";
import { type ParsedFamily, parsedMetrics, risingValues, seriesValue } from "#test/fake/metric-parser";
import { makeTable } from "./store-dynamo.ts";

const hourMs = 3_600_000;
let folder: string;
let dynalite: Awaited<ReturnType<typeof openDynalite>>;
let running: ChildProcess | null = null;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "vmferry-metrics-up-"));
  dynalite = await openDynalite(join(folder, "store"));
});
after(async () => {
  await kill();
  await dynalite.close();
  await rm(folder, { recursive: true });
});

async function start(): Promise<string> {
  const program = join(import.meta.dirname, "up-program.ts");
  const options = { listen: "127.0.0.1:0", dataDir: join(folder, "data"), dynamodb: dynalite.endpoint };
  const child = spawn(process.execPath, [program, JSON.stringify(options)], {
    env: { ...process.env, VMFERRY_CONFIG: join(folder, "config.json"), HOME: folder },
    stdio: ["ignore", "pipe", "inherit"],
  });
  running = child;
  let output = "";
  child.stdout.on("data", (chunk: Buffer) => {
    output += chunk.toString();
  });
  const ready = /vmferry: ready on (\S+)/;
  while (!ready.test(output)) {
    assert.equal(child.exitCode, null, output);
    await Promise.race([once(child.stdout, "data"), once(child, "exit")]);
  }
  return ready.exec(output)?.[1] ?? "";
}

async function kill(): Promise<void> {
  const child = running;
  running = null;
  if (child === null || child.exitCode !== null) return;
  const gone = once(child, "exit");
  child.kill("SIGKILL");
  await gone;
}

async function scrape(url: string): Promise<Map<string, ParsedFamily>> {
  assert.equal((await fetch(`${url}/metrics`)).status, 401, "whoever has no token learns nothing");
  const token = (await readFile(join(folder, "data", "admin-token"), "utf8")).trim();
  const response = await fetch(`${url}/metrics`, { headers: { authorization: `Bearer ${token}` } });
  assert.equal(response.status, 200, await response.clone().text());
  assert.equal(response.headers.get("content-type"), "text/plain; version=0.0.4; charset=utf-8");
  return parsedMetrics(await response.text());
}

test("what has happened is told by whoever is asked, also after kill -9", async () => {
  await makeTable(dynalite.endpoint);
  const credentials = { accessKeyId: "local", secretAccessKey: "local" };
  const client = createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials });
  const anHourAgo = positionsBy({ now: () => new Date(Date.now() - hourMs).toISOString() });
  const chronicle = new DynamoChronicle(new DynamoTable(client, "vmferry"), anHourAgo);
  // More than a scrape reads at once into two pages.
  for (let event = 0; event < 130; event += 1) await chronicle.append(metricEvent("migration.ended"));

  const first = await scrape(await start());
  assert.equal(seriesValue(first, "vmferry_build_info", { version }), 1);
  assert.equal(seriesValue(first, "vmferry_counters_whole"), 1);
  assert.equal(seriesValue(first, "vmferry_migrations_total", { status: "completed" }), 130);
  assert.equal(seriesValue(first, "vmferry_migration_blackout_seconds_count"), 130);
  assert.equal(seriesValue(first, "vmferry_hosts", { state: "connected" }), 0);
  assert.equal(seriesValue(first, "vmferry_domains", { state: "running" }), 0);
  // The timer has run once before it is ready.
  for (const task of ["migrations", "evacuations", "rules", "drift", "metrics"])
    assert.ok((seriesValue(first, "vmferry_timer_succeeded_timestamp_seconds", { task }) ?? 0) > 0, task);
  assert.ok((first.get("vmferry_store_requests_total")?.samples.length ?? 0) > 0);
  await kill();

  const second = await scrape(await start());
  const isolates = [first, second].map((each) => each.get("vmferry_http_requests_total")?.samples[0]?.labels.isolate);
  assert.notEqual(isolates[0], isolates[1]);
  const after = risingValues(second);
  for (const [key, value] of risingValues(first))
    if (!key.includes("isolate")) assert.ok((after.get(key) ?? -1) >= value, `${key} went back`);
});
