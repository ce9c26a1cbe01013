/** What happened, on the real local control plane: workerd, the embedded DynamoDB, the real command line. Only the hosts are invented. It is stopped in between. */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import * as z from "zod/mini";
import { type ChronicleEvent, chronicleEventSchema } from "#core/chronicle-event";
import { readEvents } from "#functions/cli/event-parser";
import { startUp, type Up } from "#functions/cli/up";
import { migrationSummarySchema } from "#functions/http/migration-resource";
import { numbered } from "#test/fake/evacuation-fleet";
import { run, says } from "#test/fake/memory-terminal";
import { ScriptedShim, type Table } from "#test/fake/scripted-shim";

let folder: string;
let up: Up;
const table: Table = new Map();
const shims: ScriptedShim[] = [];

const start = (listen = "127.0.0.1:0") =>
  startUp({
    listen,
    dataDir: join(folder, "data"),
    timerMs: 1_000,
    env: { HOME: folder, VMFERRY_CONFIG: join(folder, "config.json") },
    out: () => undefined,
    err: () => undefined,
  });
const env = () => ({ HOME: folder, VMFERRY_CONFIG: join(folder, "config.json") });
const vmferry = (...argv: string[]) => run(argv, { env: env(), pace: { retryMs: 50, retryMsMax: 200 } });
const told = async (...argv: string[]): Promise<ChronicleEvent[]> => {
  const ran = await vmferry("events", "--json", ...argv);
  assert.equal(ran.exit, 0, ran.err);
  return z.array(chronicleEventSchema).parse(JSON.parse(ran.out));
};

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "vmferry-events-up-"));
  up = await start();
  const made = await vmferry("join-token", "create", "--uses", "2", "--json");
  const { token } = z.object({ token: z.string() }).parse(JSON.parse(made.out));
  for (const index of [1, 2]) shims.push(await ScriptedShim.enrol(up.url, token, index, table));
  for (const index of [1, 2]) {
    const domain = numbered(index, { snapshots: 0 });
    table.set(domain.uuid, { domain, hostId: shims[0]?.hostId ?? "" });
  }
  for (const shim of shims) await shim.connect();
  // The inventory comes behind the welcome.
  while (z.array(z.unknown()).parse(JSON.parse((await vmferry("domains", "--json")).out)).length < table.size)
    await new Promise((resolve) => setTimeout(resolve, 20));
});
after(async () => {
  for (const shim of shims) shim.close();
  await up.close();
  await rm(folder, { recursive: true });
});

describe("what happened, by vmferry up", () => {
  test("hosts, requests and migrations are told, with who asked", async () => {
    says(await vmferry("migrate", "web1", "--to", "host2"), 0, /completed/);
    const events = await told();
    assert.deepEqual(events.map(({ type }) => type.slice("dev.vmferry.".length)).toSorted(), [
      "host.enrolled",
      "host.enrolled",
      "migration.ended",
      "migration.started",
      "request.received",
      "request.received",
    ]);
    const ended = events.find(({ type }) => type === "dev.vmferry.migration.ended");
    assert.ok(ended?.type === "dev.vmferry.migration.ended");
    assert.equal(ended.data.status, "completed");
    assert.equal(ended.data.origin?.by, "admin");
  });

  test("a watcher sees rows and lines as they come", async () => {
    const token = (await readFile(join(folder, "data", "admin-token"), "utf8")).trim();
    const headers = { authorization: `Bearer ${token}`, accept: "text/event-stream" };
    const response = await fetch(`${up.url}/v1/events`, { headers, signal: AbortSignal.timeout(60_000) });
    assert.ok(response.body);
    const events = readEvents(response.body);
    // Greeted: from here on everything is told.
    await events.next();
    const moving = vmferry("migrate", "web2", "--to", "host2");
    const seen: string[] = [];
    for await (const event of events) {
      if (event === null || event.name === "") continue;
      const isRow = event.name === "migration";
      seen.push(isRow ? `row ${migrationSummarySchema.parse(JSON.parse(event.data)).status}` : event.name);
      if (
        seen.includes("dev.vmferry.migration.ended") &&
        (seen.includes("row completed") || !seen.includes("row running"))
      )
        break;
    }
    says(await moving, 0, /completed/);
    for (const type of ["request.received", "migration.started", "migration.ended"])
      assert.equal(seen.filter((name) => name === `dev.vmferry.${type}`).length, 1, seen.join(" "));
  });

  test("a follower goes on over a control plane that is stopped and started, and hears each line once", async () => {
    const stop = new AbortController();
    let out = "";
    const following = run(["events", "--follow", "--since", "1h", "--type", "request", "--json"], {
      env: env(),
      signal: stop.signal,
      pace: { retryMs: 50, retryMsMax: 200 },
      onOut: (text) => {
        out = text;
      },
    });
    const lines = () => out.split("\n").filter(Boolean);
    const until = async (count: number) => {
      for (let tries = 0; lines().length < count; tries += 1) {
        assert.ok(tries < 600, out);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    };
    const already = (await told("--type", "request")).length;
    await until(already);
    const { host } = new URL(up.url);
    await up.close();
    up = await start(host);
    says(await vmferry("host", "cordon", "host1"), 0);
    says(await vmferry("host", "uncordon", "host1"), 0);
    await until(already + 2);
    stop.abort();
    await following;
    const ids = lines().map((line) => chronicleEventSchema.parse(JSON.parse(line)).id);
    assert.equal(new Set(ids).size, ids.length);
    assert.deepEqual(
      ids,
      (await told("--type", "request")).map(({ id }) => id),
    );
  });
});
