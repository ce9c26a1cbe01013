/**
 * The stores when DynamoDB throttles, fails, does half of a batch, or does a write and loses the answer: what is promised
 * still holds, what cannot be done is a fault that may be repeated, and nothing is decided wrongly (I5).
 */
import assert from "node:assert/strict";
import { domain, host, joinToken, migration, sha256, storeCases, throwsFault, ulid, uuid } from "./store-cases.ts";
import { type DynamoStores, leaveName } from "./store-dynamo.ts";
import type { FaultyStore } from "./store-faults-proxy.ts";

export interface FaultWorld {
  faulty: FaultyStore;
  /** Over the proxy, in a table of their own. */
  stores: DynamoStores;
  table: string;
}
type FaultCase = (world: FaultWorld) => Promise<void>;

/**
 * Every case of the contract once more, with the first answer of each single request lost after the store has done it: the
 * client repeats, so every write of every adapter is done twice.
 */
export const plaguedCases: Record<string, FaultCase> = Object.fromEntries(
  Object.entries(storeCases).map(([name, run]): [string, FaultCase] => [
    `each answer lost once: ${name}`,
    async ({ faulty, stores }) => {
      faulty.plague = "lose";
      await run(stores);
      const asked = stores.counter.total("dynamodb").requests > 0;
      assert.equal(faulty.struck() > 0, asked, "what was asked was struck");
    },
  ]),
);

/** Chains of writes, one of each kind: what it must answer, and a reading that shows whether it was done. */
function writes({ migrations, tasks, hosts, tokens }: DynamoStores) {
  const state = migration();
  const one = host();
  const token = joinToken();
  const placed = domain();
  const bytes = Uint8Array.of(1, 2, 3);
  const blob = { in: "item" as const, key: `BLOB#A#${sha256(bytes)}`, sha256: sha256(bytes), bytes: 3 };
  const lock = { domainUuid: uuid(), migrationId: state.id, source: "h_1", destination: "h_2" };
  const key = { owner: ulid(), key: "k", bodySha256: sha256("a"), resource: state.id };
  const bound = { bodySha256: key.bodySha256, resource: key.resource };
  const task = {
    id: `b_${ulid()}`,
    kind: "export" as const,
    host: { id: one.id, name: one.name },
    domain: { uuid: uuid(), name: "web-1" },
    status: "running" as const,
    bundle: null,
    pending: null,
    failure: null,
    version: 1,
    createdAt: state.createdAt,
    endedAt: null,
  };
  const seenAt = "2026-11-01T00:00:10.000Z";
  const step = (
    name: string,
    answer: unknown,
    write: () => Promise<unknown>,
    done: unknown,
    read: () => Promise<unknown>,
  ) => ({ name, answer, write, done, read });
  const version = async () => (await migrations.load(state.id))?.version;
  return {
    migrations: [
      step("create", "committed", () => migrations.create(state), 1, version),
      step("commit", "committed", () => migrations.commit({ ...state, version: 2 }), 2, version),
      step(
        "putBlob",
        blob,
        () => migrations.putBlob(state.id, "A", bytes, blob.sha256),
        bytes,
        () => migrations.getBlob(state.id, blob),
      ),
      step(
        "lockDomain",
        true,
        () => migrations.lockDomain(lock),
        { migrationId: state.id },
        () => migrations.domainLock(lock.domainUuid),
      ),
      step(
        "unlockDomain",
        undefined,
        () => migrations.unlockDomain(lock.domainUuid, state.id),
        null,
        () => migrations.domainLock(lock.domainUuid),
      ),
      step(
        "point",
        undefined,
        () => migrations.point([one.id, "h_2"], state.id),
        [state.id],
        () => migrations.migrationsOf(one.id),
      ),
      step(
        "unpoint",
        undefined,
        () => migrations.unpoint([one.id, "h_2"], state.id),
        [],
        () => migrations.migrationsOf(one.id),
      ),
      step(
        "bindKey",
        bound,
        () => migrations.bindKey(key),
        bound,
        () => migrations.bindKey({ ...key, resource: "other" }),
      ),
    ],
    tasks: [
      step(
        "tasks.create",
        "committed",
        () => tasks.create(task),
        task,
        () => tasks.load(task.id),
      ),
      step(
        "tasks.commit",
        "committed",
        () => tasks.commit({ ...task, version: 2 }),
        { ...task, version: 2 },
        () => tasks.load(task.id),
      ),
    ],
    hosts: [
      step(
        "hosts.create",
        "committed",
        () => hosts.create(one),
        one,
        () => hosts.byName(one.name),
      ),
      step(
        "hosts.seen",
        undefined,
        () => hosts.seen(one.id, { at: seenAt }),
        { ...one, lastSeenAt: seenAt },
        () => hosts.byId(one.id),
      ),
      step(
        "hosts.setCordoned",
        true,
        () => hosts.setCordoned(one.id, true),
        true,
        async () => (await hosts.byId(one.id))?.cordoned,
      ),
      step(
        "hosts.putInventory",
        undefined,
        () => hosts.putInventory(one.id, { full: true, domains: [placed], gone: [] }),
        [{ ...placed, hostId: one.id }],
        () => hosts.domainsOf(one.id),
      ),
      step(
        "hosts.remove",
        true,
        () => hosts.remove(one.id),
        null,
        () => hosts.byName(one.name),
      ),
    ],
    tokens: [
      step(
        "tokens.create",
        undefined,
        () => tokens.create(token),
        token,
        () => tokens.byId(token.id),
      ),
      step(
        "tokens.use",
        true,
        () => tokens.use(token.id, state.createdAt),
        token.usesLeft === null ? null : token.usesLeft - 1,
        async () => (await tokens.byId(token.id))?.usesLeft,
      ),
      step(
        "tokens.remove",
        true,
        () => tokens.remove(token.id),
        null,
        () => tokens.byId(token.id),
      ),
    ],
  };
}

/** As many as the client makes of one request. */
const attempts = 3;

/** The client waits half a second after a throttle: the chains of writes go side by side, each in a world of its own. */
const chains = ["migrations", "tasks", "hosts", "tokens"] as const;

const throttleCases = (chain: (typeof chains)[number]): Record<string, FaultCase> => ({
  [`a moment's throttle is bridged by every write: ${chain}`]: async ({ faulty, stores }) => {
    for (const { name, answer, write, done, read } of writes(stores)[chain]) {
      faulty.plague = "throttle";
      const struck = faulty.struck();
      assert.deepEqual(await write(), answer, name);
      assert.ok(faulty.struck() > struck, name);
      faulty.plague = "none";
      assert.deepEqual(await read(), done, name);
    }
  },
  [`a throttle that lasts is a fault that may be repeated, and the repeated write goes through: ${chain}`]: async ({
    faulty,
    stores,
  }) => {
    for (const { name, answer, write, done, read } of writes(stores)[chain]) {
      faulty.throttleNext = attempts;
      await assert.rejects(write(), throwsFault("store.unreachable"), name);
      assert.equal(faulty.throttleNext, 0, name);
      assert.deepEqual(await write(), answer, name);
      assert.deepEqual(await read(), done, name);
    }
  },
});

export const faultCases: Record<string, FaultCase> = {
  ...Object.fromEntries(chains.flatMap((chain) => Object.entries(throttleCases(chain)))),
  "a moment's failure inside DynamoDB is bridged by every call": async ({ faulty, stores }) => {
    faulty.plague = "refuse";
    for (const { name, answer, write, done, read } of Object.values(writes(stores)).flat()) {
      assert.deepEqual(await write(), answer, name);
      assert.deepEqual(await read(), done, name);
    }
  },
  "a write whose answers were all lost may be repeated and is our own": async ({ faulty, stores }) => {
    // A token's use is a new one when the caller asks again: the first is lost with its answer, and never given twice.
    for (const { name, answer, write, done, read } of Object.values(writes(stores))
      .flat()
      .filter((one) => !lostWithAnswer.has(one.name))) {
      faulty.loseNext = attempts;
      await assert.rejects(write(), throwsFault("store.unreachable"), name);
      assert.deepEqual(await write(), answer, name);
      assert.deepEqual(await read(), done, name);
    }
  },
  "of a token's uses those whose answers were all lost are lost, and none is given twice": async ({
    faulty,
    stores,
  }) => {
    const token = joinToken({ usesLeft: 2 });
    await stores.tokens.create(token);
    faulty.loseNext = attempts;
    await assert.rejects(stores.tokens.use(token.id, token.createdAt), throwsFault("store.unreachable"));
    assert.equal((await stores.tokens.byId(token.id))?.usesLeft, 1, "three attempts, one use");
    assert.equal(await stores.tokens.use(token.id, token.createdAt), true);
    assert.equal(await stores.tokens.use(token.id, token.createdAt), false);
  },
  "the last use of a token is given to the one whose answer was lost": async ({ faulty, stores }) => {
    const token = joinToken({ usesLeft: 1 });
    await stores.tokens.create(token);
    faulty.loseNext = 1;
    assert.equal(await stores.tokens.use(token.id, token.createdAt), true);
    assert.equal(await stores.tokens.use(token.id, token.createdAt), false);
  },
  "a stranger's write stays a stranger's, whatever answer is lost": async ({ faulty, stores }) => {
    const { migrations } = stores;
    const state = migration();
    const lock = { domainUuid: state.domain.uuid, migrationId: state.id, source: "h_1", destination: "h_2" };
    await migrations.create(state);
    await migrations.commit({ ...state, version: 2 });
    await migrations.lockDomain(lock);
    faulty.plague = "lose";
    assert.equal(await migrations.commit({ ...state, version: 2, uri: "tcp://other" }), "conflict");
    assert.equal(await migrations.create({ ...state, uri: "tcp://other" }), "conflict");
    assert.equal(await migrations.lockDomain({ ...lock, migrationId: `m_${ulid()}` }), false);
    assert.equal((await migrations.load(state.id))?.uri, null);
    assert.deepEqual(await migrations.domainLock(lock.domainUuid), { migrationId: state.id });
  },
  "a name left behind is taken over also when the answer is lost": async ({ faulty, stores, table }) => {
    const lost = host();
    await leaveName(faulty.endpoint, lost.name, lost.id, table);
    const late = host({ name: lost.name, enrolledAt: "2026-11-01T00:01:01.000Z" });
    faulty.plague = "lose";
    assert.equal(await stores.hosts.create(late), "committed");
    assert.equal((await stores.hosts.byName(lost.name))?.id, late.id);
  },
  "a batch that DynamoDB does by halves is done whole": async ({ faulty, stores }) => {
    const [hostId, migrationId] = [`h_${ulid()}`, `m_${ulid()}`];
    const domains = Array.from({ length: 8 }, () => domain());
    faulty.plague = "halve";
    await stores.hosts.putInventory(hostId, { full: true, domains, gone: [] });
    assert.equal((await stores.hosts.domainsOf(hostId)).length, 8);
    await stores.migrations.point([hostId, "h_2"], migrationId);
    assert.deepEqual(await stores.migrations.migrationsOf("h_2"), [migrationId]);
    await stores.migrations.unpoint([hostId, "h_2"], migrationId);
    assert.deepEqual(await stores.migrations.migrationsOf("h_2"), []);
    assert.ok(faulty.struck() >= 5);
  },
  "a batch that does not end is a fault, and the next inventory makes it good": async ({ faulty, stores }) => {
    const hostId = `h_${ulid()}`;
    const domains = Array.from({ length: 60 }, () => domain());
    faulty.plague = "halve";
    const put = () => stores.hosts.putInventory(hostId, { full: true, domains, gone: [] });
    await assert.rejects(put(), throwsFault("store.unreachable"));
    await put();
    assert.equal((await stores.hosts.domainsOf(hostId)).length, 60);
  },
};

const lostWithAnswer: ReadonlySet<string> = new Set(["tokens.use", "tokens.remove", "hosts.remove"]);
