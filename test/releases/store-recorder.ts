/**
 * Records the items of a release's table as DynamoDB keeps them, with what that release's own adapters read from them; and
 * the bundle tasks of that release, state by state. It runs inside a checkout of the release (record.ts puts it there) and
 * only uses what release 0.1.0 had already.
 *
 *   node test/releases/store-recorder.ts FOLDER
 */
import { createHash } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type AttributeValue, ScanCommand } from "@aws-sdk/client-dynamodb";
import { openDynalite } from "#functions/cli/up-dynalite";
import type { Ports } from "#functions/ports";
import { createRunner } from "#functions/runner";
import { DynamoBundleTasks } from "#functions/store/dynamo-bundle-tasks";
import { DynamoHosts } from "#functions/store/dynamo-hosts";
import { DynamoMigrations } from "#functions/store/dynamo-migrations";
import { createDynamoClient, createTable, DynamoTable } from "#functions/store/dynamo-table";
import { DynamoTokens } from "#functions/store/dynamo-tokens";
import type { DownMessage, UpMessage } from "#protocol/message";
import { domainNamed, factsOf, hostId, memoryFleet, reportBody, webUuid } from "#test/fake/memory-fleet";
import { bundleRef } from "#test/fake/migration";

const otherUuid = "22222222-2222-4333-8444-555555555555";
const ulid = (serial: number) => `01JE00000000000000000000${String(serial).padStart(2, "0")}`;
const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");

/** An attribute as JSON carries it. */
const told = (value: AttributeValue): unknown =>
  value.B === undefined ? value : { B: Buffer.from(value.B).toString("base64") };

type Line = { task: unknown } | { down: DownMessage } | { up: UpMessage };

async function record(folder: string, ports: Ports, pushed: { hostId: string; message: DownMessage }[]) {
  const { clock, hosts, tokens, migrations, tasks } = ports;
  const lines: Line[] = [];
  const heard: Ports = {
    ...ports,
    tasks: {
      load: (id) => tasks.load(id),
      async create(task) {
        lines.push({ task });
        return tasks.create(task);
      },
      async commit(task) {
        lines.push({ task });
        return tasks.commit(task);
      },
    },
    sockets: {
      ...ports.sockets,
      async push(id, message) {
        if (message.type === "command" && message.command.migrationId.startsWith("b_")) lines.push({ down: message });
        return ports.sockets.push(id, message);
      },
    },
  };
  const runner = createRunner(heard);

  /** Answers `count` commands as shims would. */
  async function serve(count: number): Promise<void> {
    for (let left = count; left > 0; left -= 1) {
      const next = pushed.shift();
      if (next?.message.type !== "command") return;
      const { command } = next.message;
      const report = {
        commandId: command.id,
        migrationId: command.migrationId,
        epoch: command.epoch,
        ms: 3,
        result: { ok: true as const, body: reportBody(command.kind) },
      };
      if (command.migrationId.startsWith("b_")) lines.push({ up: { type: "report", report } });
      await runner.reported(next.hostId, report);
    }
  }

  for (const index of [1, 2, 3])
    await hosts.create({
      id: hostId(index),
      name: `host${index}`,
      publicKey: `${"A".repeat(42)}${"AEI"[index - 1]}`,
      cordoned: false,
      enrolledAt: clock.now(),
      lastSeenAt: index === 3 ? null : clock.now(),
      protocol: index === 3 ? null : 1,
      features: index === 3 ? [] : ["bundle.1", "snapshot.tree.1", "blob.bucket.1", "peer.1"],
      facts: index === 3 ? null : factsOf(index),
    });
  const facts = { ...factsOf(1), migrationAddress: "10.0.0.1", peer: { hosts: ["10.0.0.1"], port: 16_515 } };
  await hosts.seen(hostId(1), { at: clock.now(), protocol: 1, features: ["bundle.1", "peer.1"], facts });
  await hosts.seen(hostId(2), { at: clock.now(), openJournals: [{ id: `m_${ulid(1)}`, epoch: 1 }] });
  await hosts.setCordoned(hostId(2), true);
  const web = domainNamed("web", { labels: { "vmferry/group": "shop" } });
  const db = domainNamed("db", { uuid: otherUuid, state: "shutoff", snapshots: 0, autostart: true });
  await hosts.putInventory(hostId(1), { full: true, domains: [web, db], gone: [] });

  const secret = { secretSha256: sha256("a secret of the recording"), createdAt: clock.now() };
  const expiresAt = "2026-11-23T10:00:00.000Z";
  await tokens.create({ ...secret, id: ulid(1), kind: "join", name: null, expiresAt, usesLeft: 3 });
  await tokens.use(ulid(1), clock.now());
  await tokens.create({ ...secret, id: ulid(2), kind: "api", name: "ci", expiresAt, usesLeft: null });

  const key = { owner: "admin", key: "deploy-7", bodySha256: sha256("body"), resource: `m_${ulid(1)}` };
  await migrations.bindKey(key);
  const options = { offline: false, unsafe: false, autoConverge: false, bandwidthMiBps: null };
  const ref = (index: number) => ({ id: hostId(index), name: `host${index}`, publicKey: "A".repeat(43) });
  const request = { source: ref(1), destination: ref(2), options, accept: [] };
  await runner.request({ ...request, id: `m_${ulid(1)}`, domain: { uuid: webUuid, name: "web" } });
  await serve(100);
  pushed.length = 0;
  await runner.request({ ...request, id: `m_${ulid(2)}`, domain: { uuid: webUuid, name: "web" } });
  // As far as Perform: everything that a migration in flight holds is there.
  await serve(6);
  pushed.length = 0;
  const task = { host: ref(1), domain: { uuid: otherUuid, name: "db" } };
  await runner.requestBundle({ ...task, id: `b_${ulid(3)}`, kind: "export", bundle: null });
  await serve(1);
  await runner.requestBundle({ ...task, id: `b_${ulid(4)}`, kind: "restore", bundle: bundleRef });
  await serve(1);
  await runner.requestBundle({ ...task, id: `b_${ulid(5)}`, kind: "export", bundle: null });

  const ids = [`m_${ulid(1)}`, `m_${ulid(2)}`];
  const read = {
    now: clock.now(),
    hosts: await hosts.list(),
    byName: await hosts.byName("host2"),
    domains: await hosts.domainsOf(hostId(1)),
    found: { name: await hosts.findDomains("web"), uuid: await hosts.findDomains(otherUuid) },
    tokens: { join: await tokens.list("join"), api: await tokens.list("api") },
    migrations: await Promise.all(ids.map((id) => migrations.load(id))),
    newest: await migrations.list({ limit: 10, cursor: null, active: false }),
    active: await migrations.list({ limit: 10, cursor: null, active: true }),
    locks: await migrations.activeMigrations(),
    pointers: await migrations.migrationsOf(hostId(1)),
    bound: { key, to: await migrations.bindKey({ ...key, resource: "another" }) },
    tasks: await Promise.all([3, 4, 5].map((serial) => tasks.load(`b_${ulid(serial)}`))),
    pending: await runner.pendingOf(hostId(1)),
  };
  await writeFile(join(folder, "store-read.jsonl"), `${JSON.stringify(read)}\n`);
  await writeFile(join(folder, "tasks.jsonl"), lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
}

async function main(folder: string): Promise<void> {
  const data = await mkdtemp(join(tmpdir(), "vmferry-record-"));
  const dynalite = await openDynalite(data);
  try {
    const credentials = { accessKeyId: "local", secretAccessKey: "local" };
    const client = createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials });
    await createTable(client, "vmferry");
    const table = new DynamoTable(client, "vmferry");
    const fleet = await memoryFleet();
    const { ports, script } = fleet;
    const stores = {
      migrations: new DynamoMigrations(table, ports.clock),
      tasks: new DynamoBundleTasks(table),
      hosts: new DynamoHosts(table),
      tokens: new DynamoTokens(table),
    };
    await record(folder, { ...ports, ...stores }, script.pushed);
    const { Items = [] } = await client.send(new ScanCommand({ TableName: "vmferry" }));
    const items = Items.map((item) =>
      JSON.stringify(Object.fromEntries(Object.entries(item).map(([name, value]) => [name, told(value)]))),
    );
    await writeFile(join(folder, "items.jsonl"), items.map((item) => `${item}\n`).join(""));
    console.log(`${items.length} items`);
    client.destroy();
  } finally {
    await dynalite.close();
    await rm(data, { recursive: true });
  }
}

const [folder] = process.argv.slice(2);
if (folder === undefined) throw new Error("name the folder to write into");
await main(folder);
