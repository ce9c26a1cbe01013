/** The stores: the contract cases on the fake and on DynamoDB's API, and what only a real connection can go wrong with. */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import { connect, createServer as createTcpServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { openDynalite } from "#functions/cli/up-dynalite";
import { DynamoBundleTasks } from "#functions/store/dynamo-bundle-tasks";
import { DynamoHosts } from "#functions/store/dynamo-hosts";
import { DynamoMigrations } from "#functions/store/dynamo-migrations";
import { createDynamoClient, createTable, DynamoTable } from "#functions/store/dynamo-table";
import { DynamoTokens } from "#functions/store/dynamo-tokens";
import { RequestCounter } from "#functions/store/request-counter";
import { MemoryBundleTasks, MemoryHosts, MemoryMigrations, MemoryTokens } from "#test/fake/memory-store";
import { domain, host, migration, type Stores, sha256, storeCases, throwsFault, uuid } from "./store-cases.ts";

const clock = { at: "2026-11-01T00:00:00.000Z", now: () => clock.at };
const setNow = (at: string) => {
  clock.at = at;
};
const credentials = { accessKeyId: "local", secretAccessKey: "local" };

function dynamoStores(endpoint: string, counter = new RequestCounter()): Stores & { counter: RequestCounter } {
  const client = createDynamoClient({ region: "local", endpoint, credentials, counter });
  const table = new DynamoTable(client, "vmferry");
  return {
    migrations: new DynamoMigrations(table, clock),
    tasks: new DynamoBundleTasks(table),
    hosts: new DynamoHosts(table),
    tokens: new DynamoTokens(table),
    setNow,
    counter,
  };
}

describe("stores in memory", () => {
  const stores: Stores = {
    migrations: new MemoryMigrations(clock),
    tasks: new MemoryBundleTasks(),
    hosts: new MemoryHosts(),
    tokens: new MemoryTokens(),
    setNow,
  };
  for (const [name, run] of Object.entries(storeCases)) test(name, () => run(stores));
});

describe("stores in DynamoDB", () => {
  let folder: string;
  let dynalite: { endpoint: string; close(): Promise<void> };
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "vmferry-store-"));
    dynalite = await openDynalite(folder);
    await createTable(createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials }), "vmferry");
  });
  after(async () => {
    await dynalite.close();
    await rm(folder, { recursive: true });
  });

  for (const [name, run] of Object.entries(storeCases)) test(name, () => run(dynamoStores(dynalite.endpoint)));

  test("creating the table again leaves it as it is", async () => {
    const stores = dynamoStores(dynalite.endpoint);
    const state = migration();
    await stores.migrations.create(state);
    await createTable(createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials }), "vmferry");
    assert.deepEqual(await stores.migrations.load(state.id), state);
  });

  test("a name left behind by a crash is taken over after a minute, not before", async () => {
    const client = createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials });
    const table = new DynamoTable(client, "vmferry");
    const hosts = new DynamoHosts(table);
    const lost = host();
    await table.put(
      "a name",
      {
        pk: { S: `HOSTNAME#${lost.name}` },
        sk: { S: "HOST" },
        hostId: { S: lost.id },
        enrolledAt: { S: "2026-11-01T00:00:00.000Z" },
      },
      { expression: "attribute_not_exists(pk)" },
    );
    const soon = host({ name: lost.name, enrolledAt: "2026-11-01T00:00:59.000Z" });
    const late = host({ name: lost.name, enrolledAt: "2026-11-01T00:01:01.000Z" });
    assert.equal(await hosts.create(soon), "conflict");
    assert.equal(await hosts.create(late), "committed");
    assert.equal((await hosts.byName(lost.name))?.id, late.id);
  });

  test("each call is one request on its normal path", async () => {
    const { migrations, hosts, tokens, counter } = dynamoStores(dynalite.endpoint);
    const state = migration();
    const next = { ...state, version: 2 };
    const lock = { domainUuid: uuid(), migrationId: state.id, source: "h_1", destination: "h_2" };
    const bytes = Uint8Array.of(1, 2, 3);
    const one = host();
    const blob = { in: "item" as const, key: `BLOB#A#${sha256(bytes)}`, sha256: sha256(bytes), bytes: 3 };
    const key = { owner: "o", key: state.id, bodySha256: sha256("a"), resource: state.id };
    const calls: [string, number, () => Promise<unknown>][] = [
      ["create", 1, () => migrations.create(state)],
      ["load", 1, () => migrations.load(state.id)],
      ["commit", 1, () => migrations.commit(next)],
      ["list", 1, () => migrations.list({ limit: 10, cursor: null, active: true })],
      ["putBlob", 1, () => migrations.putBlob(state.id, "A", bytes, sha256(bytes))],
      ["getBlob", 1, () => migrations.getBlob(state.id, blob)],
      ["lockDomain", 1, () => migrations.lockDomain(lock)],
      ["domainLock", 1, () => migrations.domainLock(lock.domainUuid)],
      ["activeMigrations", 1, () => migrations.activeMigrations()],
      ["unlockDomain", 1, () => migrations.unlockDomain(lock.domainUuid, state.id)],
      ["point", 1, () => migrations.point([one.id, "h_2"], state.id)],
      ["migrationsOf", 1, () => migrations.migrationsOf(one.id)],
      ["unpoint", 1, () => migrations.unpoint([one.id, "h_2"], state.id)],
      ["bindKey", 1, () => migrations.bindKey(key)],
      // The unique name is an item of its own, and so is its first reading.
      ["hosts.create", 2, () => hosts.create(one)],
      ["hosts.byName, first", 2, () => hosts.byName(one.name)],
      ["hosts.byName, known", 1, () => hosts.byName(one.name)],
      ["hosts.byId", 1, () => hosts.byId(one.id)],
      ["hosts.seen", 1, () => hosts.seen(one.id, { at: clock.at })],
      [
        "hosts.putInventory, change",
        1,
        () => hosts.putInventory(one.id, { full: false, domains: [domain()], gone: [] }),
      ],
      ["hosts.findDomains", 1, () => hosts.findDomains("web-1")],
      ["tokens.byId", 1, () => tokens.byId("none")],
    ];
    const measured: [string, number][] = [];
    for (const [name, , call] of calls) {
      const before = counter.total("dynamodb").requests;
      await call();
      measured.push([name, counter.total("dynamodb").requests - before]);
    }
    assert.deepEqual(
      measured,
      calls.map(([name, requests]) => [name, requests]),
    );
    const { sentBytes, receivedBytes } = counter.total("dynamodb");
    assert.ok(sentBytes > 1000 && receivedBytes > 1000, "bytes are counted as well");
    assert.match(counter.text(), /vmferry_store_requests_total\{store="dynamodb",operation="PutItem"\} \d+/);
  });

  test("an inventory that did not change is not written", async () => {
    const { hosts, counter } = dynamoStores(dynalite.endpoint);
    const one = host();
    const domains = [domain(), domain()];
    await hosts.putInventory(one.id, { full: true, domains, gone: [] });
    await hosts.putInventory(one.id, { full: true, domains, gone: [] });
    assert.equal(counter.text().match(/operation="BatchWriteItem"\} (\d+)/)?.[1], "1");
  });

  test("a write whose answer was lost is our own, not a conflict", async () => {
    const proxy = await openLossyProxy(dynalite.endpoint);
    try {
      const { migrations, tasks, counter } = dynamoStores(proxy.endpoint);
      const state = migration();
      proxy.loseNextAnswer();
      assert.equal(await migrations.create(state), "committed");
      proxy.loseNextAnswer();
      assert.equal(await migrations.commit({ ...state, version: 2 }), "committed");
      assert.equal(proxy.lost(), 2);
      assert.equal((await migrations.load(state.id))?.version, 2);
      assert.ok(counter.total("dynamodb").requests > 4, "the attempts were repeated and counted");
      // A stranger's write over the same version stays a conflict, lost answer or not.
      proxy.loseNextAnswer();
      assert.equal(await migrations.commit({ ...state, version: 2, uri: "tcp://other" }), "conflict");
      assert.equal(await tasks.load("b_none"), null);
    } finally {
      await proxy.close();
    }
  });

  test("a store that cannot be reached is a fault that says so and may be repeated", async () => {
    const proxy = await openCuttableProxy(dynalite.endpoint);
    const { migrations } = dynamoStores(proxy.endpoint);
    const state = migration();
    await migrations.create(state);
    await proxy.cut();
    await assert.rejects(migrations.load(state.id), throwsFault("store.unreachable"));
    await assert.rejects(migrations.commit({ ...state, version: 2 }), throwsFault("store.unreachable"));
    await proxy.heal();
    assert.equal((await migrations.load(state.id))?.version, 1);
    assert.equal(await migrations.commit({ ...state, version: 2 }), "committed");
    await proxy.cut();
  });

  test("a missing table is said to be missing", async () => {
    const client = createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials });
    const migrations = new DynamoMigrations(new DynamoTable(client, "absent"), clock);
    await assert.rejects(migrations.load("m_1"), throwsFault("store.unreachable"));
  });
});

/** Passes requests on whole; on demand the answer of the next one is dropped after the store has done it. */
async function openLossyProxy(target: string) {
  let toLose = 0;
  let lost = 0;
  const server: Server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const headers = Object.fromEntries(
        Object.entries(request.headers).flatMap(([name, value]) =>
          typeof value === "string" && !["host", "connection", "content-length"].includes(name) ? [[name, value]] : [],
        ),
      );
      fetch(target, { method: "POST", headers, body: Buffer.concat(chunks) })
        .then(async (answer) => {
          const body = await answer.text();
          if (toLose > 0) {
            toLose -= 1;
            lost += 1;
            request.socket.destroy();
            return;
          }
          response.writeHead(answer.status, { "content-type": "application/x-amz-json-1.0" }).end(body);
        })
        .catch(() => request.socket.destroy());
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    endpoint: endpointOf(server),
    loseNextAnswer() {
      toLose += 1;
    },
    lost: () => lost,
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A TCP proxy that can be cut (connections refused) and healed on the same port. */
async function openCuttableProxy(target: string) {
  const { port: targetPort } = new URL(target);
  const sockets = new Set<Socket>();
  let server = makeServer();
  function makeServer() {
    return createTcpServer((inner) => {
      const outer = connect(Number(targetPort), "127.0.0.1");
      for (const socket of [inner, outer]) {
        sockets.add(socket);
        socket.on("error", () => socket.destroy()).on("close", () => sockets.delete(socket));
      }
      inner.pipe(outer);
      outer.pipe(inner);
    });
  }
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const endpoint = endpointOf(server);
  return {
    endpoint,
    async cut() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
    async heal() {
      server = makeServer();
      await new Promise<void>((resolve) => server.listen(Number(new URL(endpoint).port), "127.0.0.1", resolve));
    },
  };
}

function endpointOf(server: { address(): unknown }): string {
  const address = server.address();
  assert.ok(typeof address === "object" && address !== null && "port" in address);
  return `http://127.0.0.1:${address.port}`;
}
