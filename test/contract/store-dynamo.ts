/**
 * What only DynamoDB's API can show, for every implementation of it: the table, the cost of a call in requests, a line that
 * is cut. And how the tests make the stores over an endpoint.
 */
import assert from "node:assert/strict";
import { DynamoBundleTasks } from "#functions/store/dynamo-bundle-tasks";
import { DynamoEvacuations } from "#functions/store/dynamo-evacuations";
import { DynamoHosts } from "#functions/store/dynamo-hosts";
import { DynamoMigrations } from "#functions/store/dynamo-migrations";
import { createDynamoClient, createTable, DynamoTable } from "#functions/store/dynamo-table";
import { DynamoTokens } from "#functions/store/dynamo-tokens";
import { RequestCounter } from "#functions/store/request-counter";
import { domain, host, migration, type Stores, sha256, throwsFault, uuid } from "./store-cases.ts";
import { openCuttableProxy } from "./store-proxies.ts";

/** DynamoDB Local takes letters and digits only. */
const credentials = { accessKeyId: "local", secretAccessKey: "local" };
const tableName = "vmferry";

export interface TestClock {
  at: string;
  now(): string;
}
export const testClock = (): TestClock => {
  const clock = { at: "2026-11-01T00:00:00.000Z", now: () => clock.at };
  return clock;
};

const clientOf = (endpoint: string, counter?: RequestCounter) =>
  createDynamoClient({ region: "local", endpoint, credentials, counter });

export type DynamoStores = Stores & { counter: RequestCounter; clock: TestClock };

export function dynamoStores(endpoint: string, name = tableName): DynamoStores {
  const clock = testClock();
  const counter = new RequestCounter();
  const table = new DynamoTable(clientOf(endpoint, counter), name);
  return {
    migrations: new DynamoMigrations(table, clock),
    tasks: new DynamoBundleTasks(table),
    evacuations: new DynamoEvacuations(table, clock),
    hosts: new DynamoHosts(table),
    tokens: new DynamoTokens(table),
    setNow: (at) => {
      clock.at = at;
    },
    counter,
    clock,
  };
}

export const makeTable = (endpoint: string, name = tableName): Promise<void> => createTable(clientOf(endpoint), name);

/** A name that an enrolment left behind when it died before it made the host. */
export async function leaveName(endpoint: string, name: string, hostId: string, inTable = tableName): Promise<void> {
  const table = new DynamoTable(clientOf(endpoint), inTable);
  const item = { pk: { S: `HOSTNAME#${name}` }, sk: { S: "HOST" }, hostId: { S: hostId } };
  await table.put(
    "a name",
    { ...item, enrolledAt: { S: "2026-11-01T00:00:00.000Z" } },
    { expression: "attribute_not_exists(pk)" },
  );
}

export const dynamoCases: Record<string, (endpoint: string) => Promise<void>> = {
  "creating the table again leaves it as it is": async (endpoint) => {
    const stores = dynamoStores(endpoint);
    const state = migration();
    await stores.migrations.create(state);
    await makeTable(endpoint);
    assert.deepEqual(await stores.migrations.load(state.id), state);
  },
  "a name left behind by a crash is taken over after a minute, not before": async (endpoint) => {
    const { hosts } = dynamoStores(endpoint);
    const lost = host();
    await leaveName(endpoint, lost.name, lost.id);
    const soon = host({ name: lost.name, enrolledAt: "2026-11-01T00:00:59.000Z" });
    const late = host({ name: lost.name, enrolledAt: "2026-11-01T00:01:01.000Z" });
    assert.equal(await hosts.create(soon), "conflict");
    assert.equal(await hosts.create(late), "committed");
    assert.equal((await hosts.byName(lost.name))?.id, late.id);
  },

  "each call is one request on its normal path": async (endpoint) => {
    const { migrations, hosts, tokens, counter, clock } = dynamoStores(endpoint);
    const state = migration();
    const next = { ...state, version: 2 };
    const lock = { domainUuid: uuid(), migrationId: state.id, source: "h_1", destination: "h_2" };
    const bytes = Uint8Array.of(1, 2, 3);
    const one = host();
    const placed = domain();
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
      ["hosts.putInventory, change", 1, () => hosts.putInventory(one.id, { full: false, domains: [placed], gone: [] })],
      ["hosts.findDomains, none", 1, () => hosts.findDomains("no-such-domain")],
      // The index says where to look, and it is looked there.
      ["hosts.findDomains, one", 2, () => hosts.findDomains(placed.uuid)],
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
  },

  "an inventory that did not change is not written": async (endpoint) => {
    const { hosts, counter } = dynamoStores(endpoint);
    const one = host();
    const domains = [domain(), domain()];
    await hosts.putInventory(one.id, { full: true, domains, gone: [] });
    await hosts.putInventory(one.id, { full: true, domains, gone: [] });
    assert.equal(counter.text().match(/operation="BatchWriteItem"\} (\d+)/)?.[1], "1");
  },

  "a store that cannot be reached is a fault that says so and may be repeated": async (endpoint) => {
    const proxy = await openCuttableProxy(endpoint);
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
  },

  "a missing table is said to be missing": async (endpoint) => {
    const migrations = new DynamoMigrations(new DynamoTable(clientOf(endpoint), "absent"), testClock());
    await assert.rejects(migrations.load("m_1"), throwsFault("store.unreachable"));
  },
};
