/**
 * The items of a release's table, as DynamoDB keeps them, under the present adapters: they read what the release's own adapters
 * read, migrations and tasks in flight go on from them, and what they write stands beside the old.
 */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import {
  type AttributeValue,
  type DynamoDBClient,
  PutItemCommand,
  waitUntilTableExists,
} from "@aws-sdk/client-dynamodb";
import * as z from "zod/mini";
import { type BundleTask, bundleTaskSchema } from "#core/bundle-task";
import { migrationStateSchema } from "#core/state";
import { openDynalite } from "#functions/cli/up-dynalite";
import { createRunner } from "#functions/runner";
import { DynamoBundleTasks } from "#functions/store/dynamo-bundle-tasks";
import { DynamoHosts } from "#functions/store/dynamo-hosts";
import { DynamoMigrations } from "#functions/store/dynamo-migrations";
import { createDynamoClient, createTable, DynamoTable } from "#functions/store/dynamo-table";
import { DynamoTokens } from "#functions/store/dynamo-tokens";
import { decodeDown, decodeUp } from "#protocol/codec";
import { commandSchema } from "#protocol/command";
import { memoryFleet, reportBody } from "#test/fake/memory-fleet";
import { historiesOf, linesOf, releases } from "./history-reader.ts";

const attributeSchema = z.union([
  z.object({ S: z.string() }),
  z.object({ N: z.string() }),
  z.object({ BOOL: z.boolean() }),
  z.object({ B: z.string() }),
]);
const itemSchema = z.record(z.string(), attributeSchema);

const attribute = (value: z.infer<typeof attributeSchema>): AttributeValue =>
  "B" in value ? { B: Buffer.from(value.B, "base64") } : value;

/** One for each test that fills one. */
const tables = ["read", "owed", "onward", "tasks", "states"] as const;

/** What the release's adapters read of it. */
const readSchema = z.looseObject({
  now: z.string(),
  hosts: z.array(z.looseObject({ id: z.string(), name: z.string() })),
  byName: z.unknown(),
  domains: z.array(z.looseObject({ name: z.string() })),
  found: z.object({
    name: z.array(z.looseObject({ name: z.string() })),
    uuid: z.array(z.looseObject({ uuid: z.string() })),
  }),
  tokens: z.object({ join: z.array(z.looseObject({ id: z.string() })), api: z.unknown() }),
  migrations: z.array(migrationStateSchema),
  newest: z.unknown(),
  active: z.unknown(),
  locks: z.unknown(),
  pointers: z.unknown(),
  bound: z.object({
    key: z.object({ owner: z.string(), key: z.string(), bodySha256: z.string(), resource: z.string() }),
    to: z.unknown(),
  }),
  tasks: z.array(bundleTaskSchema),
  pending: z.array(commandSchema),
});

const taskLineSchema = z.union([
  z.object({ task: bundleTaskSchema }),
  z.object({ down: z.unknown() }),
  z.object({ up: z.unknown() }),
]);

async function stores(client: DynamoDBClient, name: string, now: string) {
  const table = new DynamoTable(client, name);
  const fleet = await memoryFleet();
  const clock = { now: () => now };
  const ports = {
    ...fleet.ports,
    clock,
    migrations: new DynamoMigrations(table, clock),
    tasks: new DynamoBundleTasks(table),
    hosts: new DynamoHosts(table),
    tokens: new DynamoTokens(table),
  };
  return { ports, runner: createRunner(ports), pushed: fleet.script.pushed };
}

for (const release of releases)
  describe(`the table of ${release}`, () => {
    const read = readSchema.parse(linesOf(release, "store-read.jsonl")[0]);
    let folder: string;
    let dynalite: { endpoint: string; close(): Promise<void> };
    let client: DynamoDBClient;
    before(async () => {
      folder = await mkdtemp(join(tmpdir(), "vmferry-history-"));
      dynalite = await openDynalite(folder);
      const credentials = { accessKeyId: "local", secretAccessKey: "local" };
      client = createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials });
      for (const name of tables) {
        await createTable(client, name);
        // The embedded store says that it has made a table a moment before it has.
        await waitUntilTableExists({ client, minDelay: 1, maxWaitTime: 20 }, { TableName: name });
      }
    });
    after(async () => {
      client.destroy();
      await dynalite.close();
      await rm(folder, { recursive: true });
    });

    /** A table of its own for each test, filled as the release left it. */
    async function filled(name: (typeof tables)[number]) {
      for (const line of linesOf(release, "items.jsonl")) {
        const item = Object.entries(itemSchema.parse(line)).map(([key, value]) => [key, attribute(value)] as const);
        await client.send(new PutItemCommand({ TableName: name, Item: Object.fromEntries(item) }));
      }
      return stores(client, name, read.now);
    }

    test("the present adapters read what the release's own read", async () => {
      const { hosts, tokens, migrations, tasks } = (await filled("read")).ports;
      assert.deepEqual(await hosts.list(), read.hosts);
      assert.deepEqual(await hosts.byName("host2"), read.byName);
      const host = read.hosts[0]?.id ?? "";
      assert.deepEqual(await hosts.domainsOf(host), read.domains);
      assert.deepEqual(await hosts.findDomains(read.found.name[0]?.name ?? ""), read.found.name);
      assert.deepEqual(await hosts.findDomains(read.found.uuid[0]?.uuid ?? ""), read.found.uuid);
      assert.deepEqual({ join: await tokens.list("join"), api: await tokens.list("api") }, read.tokens);
      for (const migration of read.migrations) assert.deepEqual(await migrations.load(migration.id), migration);
      assert.deepEqual(await migrations.list({ limit: 10, cursor: null, active: false }), read.newest);
      assert.deepEqual(await migrations.list({ limit: 10, cursor: null, active: true }), read.active);
      // Since 0.2 the hosts are read as well; they stand in the items of before.
      const locks = await migrations.activeMigrations();
      assert.ok(locks.every(({ source, destination }) => source !== "" && destination !== ""));
      assert.deepEqual(
        locks.map(({ migrationId, domainUuid }) => ({ migrationId, domainUuid })),
        read.locks,
      );
      assert.deepEqual(await migrations.migrationsOf(host), read.pointers);
      assert.deepEqual(await migrations.bindKey({ ...read.bound.key, resource: "another" }), read.bound.to);
      for (const task of read.tasks) assert.deepEqual(await tasks.load(task.id), task);
      assert.equal(await tokens.use(read.tokens.join[0]?.id ?? "", read.now), true);
    });

    test("a host is told the very commands that it owed", async () => {
      const { runner } = await filled("owed");
      assert.ok(read.pending.length > 0);
      assert.deepEqual(await runner.pendingOf(read.hosts[0]?.id ?? ""), read.pending);
    });

    test("a migration in flight goes on to its end, and frees what it held", async () => {
      const { runner, ports, pushed } = await filled("onward");
      const running = read.migrations.find(({ status }) => status === "running");
      assert.ok(running);
      const owed = await Promise.all(
        [running.source.id, running.destination.id].map(async (id) =>
          (await runner.pendingOf(id)).map((command) => ({ id, command })),
        ),
      );
      const queue = owed.flat().filter(({ command }) => command.migrationId === running.id);
      for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
        const { command, id } = next;
        await runner.reported(id, {
          commandId: command.id,
          migrationId: command.migrationId,
          epoch: command.epoch,
          ms: 3,
          result: { ok: true, body: reportBody(command.kind) },
        });
        for (const { hostId, message } of pushed.splice(0))
          if (message.type === "command") queue.push({ id: hostId, command: message.command });
      }
      assert.equal((await ports.migrations.load(running.id))?.status, "completed");
      assert.equal(await ports.migrations.domainLock(running.domain.uuid), null);
      assert.ok(!(await ports.migrations.migrationsOf(running.destination.id)).includes(running.id));
    });

    test("bundle tasks: a host is told the very command, and each report leads where it led", async () => {
      const { runner, ports } = await stores(client, "tasks", read.now);
      let standing: BundleTask | null = null;
      const ends: string[] = [];
      for (const line of linesOf(release, "tasks.jsonl").map((each) => taskLineSchema.parse(each))) {
        const host: string = standing?.host.id ?? "";
        if ("task" in line) {
          standing = line.task;
          if (standing.version > 1) {
            const { endedAt, ...told } = standing;
            assert.deepEqual({ ...(await ports.tasks.load(standing.id)), endedAt }, { ...told, endedAt });
            ends.push(standing.status);
          } else {
            assert.equal(await ports.tasks.create(standing), "committed");
            await ports.migrations.point([standing.host.id], standing.id);
          }
        } else if ("down" in line) {
          const message = decodeDown(JSON.stringify(line.down));
          assert.ok(message.type === "command");
          assert.deepEqual(await runner.pendingOf(host), [message.command]);
        } else {
          const message = decodeUp(JSON.stringify(line.up));
          assert.ok(message.type === "report");
          await runner.reported(host, message.report);
        }
      }
      assert.deepEqual(ends, ["completed", "completed"]);
    });

    test("a state of every kind there was, as an item, is loaded and written over", async () => {
      const { ports } = await stores(client, "states", read.now);
      let count = 0;
      const seen = new Set<string>();
      for (const { name, moments } of historiesOf(release))
        for (const { state } of moments) {
          if (state === null) continue;
          const kind = JSON.stringify([state.status, state.step, state.fenced === null, state.attempts]);
          if (seen.has(kind)) continue;
          seen.add(kind);
          count += 1;
          const id = `m_01JG${String(count).padStart(22, "0")}`;
          const { status, step, version, epoch, domain, source, destination, createdAt, endedAt } = state;
          const row = { id, domain, source, destination, status, step, createdAt, endedAt };
          const text = {
            pk: `MIG#${id}`,
            sk: "STATE",
            body: JSON.stringify({ ...state, id }),
            row: JSON.stringify(row),
          };
          const Item = {
            ...Object.fromEntries(Object.entries(text).map(([key, S]) => [key, { S }])),
            version: { N: String(version) },
            epoch: { N: String(epoch) },
          };
          await client.send(new PutItemCommand({ TableName: "states", Item }));
          const loaded = await ports.migrations.load(id);
          assert.ok(loaded !== null, `${name} v${version}`);
          const next = { ...loaded, version: loaded.version + 1 };
          assert.equal(await ports.migrations.commit(next), "committed");
        }
      assert.ok(count > 50, `${count} states`);
    });
  });
