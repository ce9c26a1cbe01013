/**
 * What every store must do, as one list of cases; store.test.ts runs it on the fake and on DynamoDB's API. A case gets fresh
 * ids, so a store may be shared between cases, as it is in life.
 */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import type { BundleTask } from "#core/bundle-task";
import { newMigration } from "#core/new-migration";
import type { MigrationState } from "#core/state";
import type {
  BundleTaskStore,
  EvacuationStore,
  HostRecord,
  HostStore,
  MigrationStore,
  TokenRecord,
  TokenStore,
} from "#functions/ports";
import { Fault, type FaultCode } from "#protocol/fault";
import type { InventoryDomain } from "#protocol/message";

export interface Stores {
  migrations: MigrationStore;
  tasks: BundleTaskStore;
  evacuations: EvacuationStore;
  hosts: HostStore;
  tokens: TokenStore;
  /** Moves the clock that the stores see. */
  setNow(at: string): void;
}

const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
let serial = 0;
/** Rises from call to call, as ULIDs do over time. */
export const ulid = (): string => {
  serial += 1;
  const random = [...randomBytes(18)].map((byte) => alphabet[byte % 32]).join("");
  return `01${String(serial).padStart(6, "0")}${random}`;
};
export const uuid = (): string => {
  const hex = randomBytes(16).toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
};
export const sha256 = (bytes: Uint8Array | string) => createHash("sha256").update(bytes).digest("hex");
const now = "2026-11-01T00:00:00.000Z";

export const migration = (changes: Partial<MigrationState> = {}): MigrationState => ({
  ...newMigration(
    {
      id: `m_${ulid()}`,
      domain: { uuid: uuid(), name: "web-1" },
      source: { id: `h_${ulid()}`, name: "alpha" },
      destination: { id: `h_${ulid()}`, name: "beta" },
      options: { offline: false, unsafe: false, autoConverge: false, bandwidthMiBps: null },
      accept: [],
    },
    now,
  ),
  ...changes,
});

export const host = (changes: Partial<HostRecord> = {}): HostRecord => ({
  id: `h_${ulid()}`,
  name: `host-${ulid().toLowerCase()}`,
  publicKey: randomBytes(32).toString("base64url"),
  cordoned: false,
  enrolledAt: now,
  lastSeenAt: null,
  protocol: null,
  features: [],
  facts: null,
  ...changes,
});

export const domain = (changes: Partial<InventoryDomain> = {}): InventoryDomain => ({
  uuid: uuid(),
  name: `domain-${ulid().toLowerCase()}`,
  state: "running",
  persistent: true,
  autostart: false,
  memoryKiB: 131072,
  vcpus: 1,
  snapshots: 3,
  checkpoints: 0,
  labels: { tier: "web" },
  ...changes,
});

export const joinToken = (changes: Partial<TokenRecord> = {}): TokenRecord => ({
  id: ulid(),
  kind: "join",
  secretSha256: sha256("secret"),
  name: null,
  createdAt: now,
  expiresAt: "2026-11-02T00:00:00.000Z",
  usesLeft: 1,
  ...changes,
});

export const throwsFault = (code: FaultCode) => (error: unknown) => {
  assert.ok(error instanceof Fault, `a Fault is expected, not ${String(error)}`);
  assert.equal(error.code, code);
  return true;
};

export const storeCases: Record<string, (stores: Stores) => Promise<void>> = {
  "an absent migration is null": async ({ migrations }) => {
    assert.equal(await migrations.load(`m_${ulid()}`), null);
  },
  "a created migration is read back whole": async ({ migrations }) => {
    const state = migration({ accept: ["storage.notShared"], timeline: [entry("Grüße, 世界")] });
    assert.equal(await migrations.create(state), "committed");
    assert.deepEqual(await migrations.load(state.id), state);
  },
  "creating over another migration of that id is a conflict": async ({ migrations }) => {
    const state = migration();
    await migrations.create(state);
    assert.equal(await migrations.create({ ...state, domain: { uuid: uuid(), name: "other" } }), "conflict");
    assert.deepEqual(await migrations.load(state.id), state);
  },
  "creating the very same again is committed": async ({ migrations }) => {
    const state = migration();
    await migrations.create(state);
    assert.equal(await migrations.create(state), "committed");
  },
  "I5: a commit goes over the version before only": async ({ migrations }) => {
    const state = migration();
    await migrations.create(state);
    const next = { ...state, version: 2, step: "exporting" as const };
    assert.equal(await migrations.commit(next), "committed");
    assert.equal(await migrations.commit({ ...state, version: 2, step: "staging" }), "conflict");
    assert.equal(await migrations.commit({ ...state, version: 4 }), "conflict");
    assert.equal(await migrations.commit({ ...state, version: 1 }), "conflict");
    assert.deepEqual(await migrations.load(state.id), next);
  },
  "I5: a commit never lowers the epoch": async ({ migrations }) => {
    const state = migration({ epoch: 3 });
    await migrations.create(state);
    assert.equal(await migrations.commit({ ...state, version: 2, epoch: 2 }), "conflict");
    assert.equal(await migrations.commit({ ...state, version: 2, epoch: 4 }), "committed");
  },
  "a commit of a migration that was never created is a conflict": async ({ migrations }) => {
    assert.equal(await migrations.commit(migration({ version: 2 })), "conflict");
  },
  "a repeated commit of the same content is our own": async ({ migrations }) => {
    const state = migration();
    await migrations.create(state);
    const next = { ...state, version: 2 };
    assert.equal(await migrations.commit(next), "committed");
    assert.equal(await migrations.commit(next), "committed");
  },
  "of eight writers of one version one wins": async ({ migrations }) => {
    const state = migration();
    await migrations.create(state);
    const results = await Promise.all(
      Array.from({ length: 8 }, (_, writer) =>
        migrations.commit({ ...state, version: 2, updatedAt: `2026-11-01T00:00:0${writer}.000Z` }),
      ),
    );
    assert.equal(results.filter((result) => result === "committed").length, 1, results.join());
  },
  "a state that an item cannot hold is refused and the item stays": async ({ migrations }) => {
    const state = migration();
    await migrations.create(state);
    const large = { ...state, version: 2, timeline: Array.from({ length: 200 }, () => entry("x".repeat(2500))) };
    await assert.rejects(migrations.commit(large), throwsFault("message.tooLarge"));
    assert.deepEqual(await migrations.load(state.id), state);
  },
  "lists are newest first, in pages, and without what has ended when asked": async ({ migrations }) => {
    const states = [migration(), migration(), migration()] as const;
    for (const state of states) await migrations.create(state);
    const [first, second, third] = states;
    await migrations.commit({ ...second, version: 2, status: "completed", step: "ended", endedAt: now });
    const one = await migrations.list({ limit: 2, cursor: null, active: false });
    assert.deepEqual(
      one.items.map((item) => item.id),
      [third.id, second.id],
    );
    assert.equal(one.items[1]?.status, "completed");
    const two = await migrations.list({ limit: 1, cursor: one.cursor, active: false });
    assert.deepEqual(
      two.items.map((item) => item.id),
      [first.id],
    );
    const active = await migrations.list({ limit: 2, cursor: null, active: true });
    assert.deepEqual(
      active.items.map((item) => item.id),
      [third.id, first.id],
    );
  },
  "a stranded migration is listed as active": async ({ migrations }) => {
    const state = migration({ status: "stranded" });
    await migrations.create(state);
    const active = await migrations.list({ limit: 1, cursor: null, active: true });
    assert.equal(active.items[0]?.id, state.id);
  },
  "a payload is kept byte for byte and may be written again": async ({ migrations }) => {
    const id = `m_${ulid()}`;
    const bytes = Uint8Array.from(randomBytes(24 * 1024));
    const blob = await migrations.putBlob(id, "A", bytes, sha256(bytes));
    assert.deepEqual(await migrations.putBlob(id, "A", bytes, sha256(bytes)), blob);
    assert.equal(blob.bytes, bytes.byteLength);
    assert.deepEqual(await migrations.getBlob(id, blob), bytes);
  },
  "an empty payload is a payload": async ({ migrations }) => {
    const id = `m_${ulid()}`;
    const blob = await migrations.putBlob(id, "D", new Uint8Array(), sha256(""));
    assert.deepEqual(await migrations.getBlob(id, blob), new Uint8Array());
  },
  "two payloads of one name stand beside each other": async ({ migrations }) => {
    const id = `m_${ulid()}`;
    const [left, right] = [Uint8Array.of(1), Uint8Array.of(2)];
    const blob = await migrations.putBlob(id, "A", left, sha256(left));
    await migrations.putBlob(id, "A", right, sha256(right));
    assert.deepEqual(await migrations.getBlob(id, blob), left);
  },
  "a payload with another digest is refused": async ({ migrations }) => {
    const put = migrations.putBlob(`m_${ulid()}`, "A", Uint8Array.of(1), sha256("other"));
    await assert.rejects(put, throwsFault("cookie.altered"));
  },
  "a payload of another migration is null": async ({ migrations }) => {
    const blob = await migrations.putBlob(`m_${ulid()}`, "A", Uint8Array.of(1), sha256(Uint8Array.of(1)));
    assert.equal(await migrations.getBlob(`m_${ulid()}`, blob), null);
  },
  "a domain's lock has one holder": async ({ migrations }) => {
    const [domainUuid, ours, theirs] = [uuid(), `m_${ulid()}`, `m_${ulid()}`];
    const lock = { domainUuid, migrationId: ours, source: "h_1", destination: "h_2" };
    assert.equal(await migrations.domainLock(domainUuid), null);
    assert.equal(await migrations.lockDomain(lock), true);
    assert.equal(await migrations.lockDomain(lock), true, "taking it again is no error");
    assert.equal(await migrations.lockDomain({ ...lock, migrationId: theirs }), false);
    assert.deepEqual(await migrations.domainLock(domainUuid), { migrationId: ours });
    assert.ok((await migrations.activeMigrations()).some((one) => one.migrationId === ours));
    await migrations.unlockDomain(domainUuid, theirs);
    assert.deepEqual(await migrations.domainLock(domainUuid), { migrationId: ours }, "a stranger frees nothing");
    await migrations.unlockDomain(domainUuid, ours);
    await migrations.unlockDomain(domainUuid, ours);
    assert.equal(await migrations.domainLock(domainUuid), null);
    assert.equal(await migrations.lockDomain({ ...lock, migrationId: theirs }), true);
  },
  "of eight migrations one gets the lock": async ({ migrations }) => {
    const domainUuid = uuid();
    const got = await Promise.all(
      Array.from({ length: 8 }, () =>
        migrations.lockDomain({ domainUuid, migrationId: `m_${ulid()}`, source: "h_1", destination: "h_2" }),
      ),
    );
    assert.equal(got.filter(Boolean).length, 1);
  },
  "a host knows its migrations": async ({ migrations }) => {
    const [hostId, one, two] = [`h_${ulid()}`, `m_${ulid()}`, `m_${ulid()}`];
    await migrations.point([hostId], one);
    await migrations.point([hostId], two);
    await migrations.point([hostId], two);
    assert.deepEqual((await migrations.migrationsOf(hostId)).sort(), [one, two].sort());
    await migrations.unpoint([hostId], one);
    await migrations.unpoint([hostId], one);
    assert.deepEqual(await migrations.migrationsOf(hostId), [two]);
    assert.deepEqual(await migrations.migrationsOf(`h_${ulid()}`), []);
  },
  "an idempotency key binds the first request, per owner": async ({ migrations }) => {
    const first = { owner: ulid(), key: "k".repeat(255), bodySha256: sha256("a"), resource: "m_1" };
    const bound = { bodySha256: first.bodySha256, resource: "m_1" };
    assert.deepEqual(await migrations.bindKey(first), bound);
    assert.deepEqual(await migrations.bindKey({ ...first, resource: "m_2" }), bound);
    assert.deepEqual(await migrations.bindKey({ ...first, bodySha256: sha256("b"), resource: "m_3" }), bound);
    const other = { ...first, owner: ulid(), resource: "m_4" };
    assert.deepEqual(await migrations.bindKey(other), { bodySha256: first.bodySha256, resource: "m_4" });
  },
  "an idempotency key binds for a day, whatever the broom does": async ({ migrations, setNow }) => {
    const first = { owner: ulid(), key: "k", bodySha256: sha256("a"), resource: "m_1" };
    setNow("2026-11-01T00:00:00.000Z");
    await migrations.bindKey(first);
    setNow("2026-11-01T23:59:59.000Z");
    assert.equal((await migrations.bindKey({ ...first, resource: "m_2" })).resource, "m_1");
    setNow("2026-11-02T00:00:01.000Z");
    assert.equal((await migrations.bindKey({ ...first, resource: "m_2" })).resource, "m_2");
    setNow("2026-11-01T00:00:00.000Z");
  },
  "a bundle task goes from version to version": async ({ tasks }) => {
    const task: BundleTask = {
      id: `b_${ulid()}`,
      kind: "export",
      host: { id: `h_${ulid()}`, name: "alpha" },
      domain: { uuid: uuid(), name: "web-1" },
      status: "running",
      bundle: null,
      pending: null,
      failure: null,
      version: 1,
      createdAt: now,
      endedAt: null,
    };
    assert.equal(await tasks.load(task.id), null);
    assert.equal(await tasks.create(task), "committed");
    assert.equal(await tasks.create({ ...task, kind: "restore" }), "conflict");
    const next = { ...task, version: 2, status: "completed" as const, endedAt: now };
    assert.equal(await tasks.commit(next), "committed");
    assert.equal(await tasks.commit(next), "committed", "our own");
    assert.equal(await tasks.commit({ ...task, version: 2, status: "failed" }), "conflict");
    assert.deepEqual(await tasks.load(task.id), next);
  },
  "a host's name is unique": async ({ hosts }) => {
    const one = host();
    assert.equal(await hosts.byId(one.id), null);
    assert.equal(await hosts.byName(one.name), null);
    assert.equal(await hosts.create(one), "committed");
    assert.equal(await hosts.create(host({ name: one.name })), "conflict");
    assert.deepEqual(await hosts.byName(one.name), one);
    assert.deepEqual(await hosts.byName(one.name), one, "also when the name is known already");
    assert.ok((await hosts.list()).some((entry) => entry.id === one.id));
  },
  "a removed host's name is free, and a late heartbeat brings nothing back": async ({ hosts }) => {
    const one = host();
    await hosts.create(one);
    await hosts.byName(one.name);
    await hosts.putInventory(one.id, { full: true, domains: [domain()], gone: [] });
    assert.equal(await hosts.remove(one.id), true);
    assert.equal(await hosts.remove(one.id), false);
    await hosts.seen(one.id, { at: now });
    assert.equal(await hosts.byId(one.id), null);
    assert.equal(await hosts.byName(one.name), null);
    assert.deepEqual(await hosts.domainsOf(one.id), []);
    const two = host({ name: one.name });
    assert.equal(await hosts.create(two), "committed");
    assert.equal((await hosts.byName(one.name))?.id, two.id);
  },
  "what a session says does not touch what a person set": async ({ hosts }) => {
    const one = host();
    await hosts.create(one);
    assert.equal(await hosts.setCordoned(one.id, true), true);
    assert.equal(await hosts.setCordoned(`h_${ulid()}`, true), false);
    const facts = {
      shimVersion: "0.1.0",
      nodeVersion: "24.0.0",
      migrationAddress: null,
      libvirt: { reachable: false as const, cause: "no socket" },
    };
    await hosts.seen(one.id, { at: "2026-11-01T00:00:10.000Z", protocol: 1, features: ["bundle.1"], facts });
    const openJournals = [{ id: `m_${ulid()}`, epoch: 2 }];
    await hosts.seen(one.id, { at: "2026-11-01T00:00:15.000Z", openJournals });
    await hosts.seen(one.id, { at: "2026-11-01T00:00:16.000Z", shuttingUntil: "2026-11-01T00:15:00.000Z" });
    assert.equal((await hosts.byId(one.id))?.shuttingUntil, "2026-11-01T00:15:00.000Z");
    await hosts.seen(one.id, { at: "2026-11-01T00:00:17.000Z", shuttingUntil: null });
    await hosts.seen(one.id, { at: "2026-11-01T00:00:20.000Z" });
    assert.deepEqual(await hosts.byId(one.id), {
      ...one,
      cordoned: true,
      lastSeenAt: "2026-11-01T00:00:20.000Z",
      protocol: 1,
      features: ["bundle.1"],
      facts,
      openJournals: { at: "2026-11-01T00:00:15.000Z", journals: openJournals },
    });
  },
  "a full inventory replaces, a change changes": async ({ hosts }) => {
    const hostId = `h_${ulid()}`;
    const many = Array.from({ length: 60 }, () => domain());
    await hosts.putInventory(hostId, { full: true, domains: many, gone: [] });
    assert.equal((await hosts.domainsOf(hostId)).length, 60);
    const [first, second, third] = [domain(), domain(), domain()];
    await hosts.putInventory(hostId, { full: true, domains: [first, second], gone: [] });
    await hosts.putInventory(hostId, { full: false, domains: [third, { ...first, vcpus: 4 }], gone: [second.uuid] });
    const expected = [third, { ...first, vcpus: 4 }].map((one) => ({ ...one, hostId }));
    const byUuid = (left: { uuid: string }, right: { uuid: string }) => (left.uuid < right.uuid ? -1 : 1);
    assert.deepEqual((await hosts.domainsOf(hostId)).sort(byUuid), expected.sort(byUuid));
  },
  "a domain is found by name and by UUID over all hosts": async ({ hosts }) => {
    const [left, right] = [`h_${ulid()}`, `h_${ulid()}`];
    const one = domain();
    const twin = domain({ name: one.name });
    await hosts.putInventory(left, { full: true, domains: [one], gone: [] });
    await hosts.putInventory(right, { full: true, domains: [twin], gone: [] });
    assert.deepEqual((await hosts.findDomains(one.name)).map((found) => found.hostId).sort(), [left, right].sort());
    assert.deepEqual(await hosts.findDomains(twin.uuid), [{ ...twin, hostId: right }]);
    assert.deepEqual(await hosts.findDomains(twin.uuid.toUpperCase()), [{ ...twin, hostId: right }]);
    assert.deepEqual(await hosts.findDomains("no-such-domain"), []);
  },
  "a token of three uses is used three times, also at once": async ({ tokens }) => {
    const one = joinToken({ usesLeft: 3 });
    await tokens.create(one);
    assert.deepEqual(await tokens.byId(one.id), one);
    const uses = await Promise.all(Array.from({ length: 8 }, () => tokens.use(one.id, now)));
    assert.equal(uses.filter(Boolean).length, 3);
    assert.equal((await tokens.byId(one.id))?.usesLeft, 0);
  },
  "an expired, removed or unlimited token gives no use": async ({ tokens }) => {
    const expired = joinToken({ expiresAt: now });
    const api = joinToken({ kind: "api", usesLeft: null, name: "ci" });
    await tokens.create(expired);
    await tokens.create(api);
    assert.equal(await tokens.use(expired.id, now), false);
    assert.equal(await tokens.use(api.id, now), false);
    assert.equal(await tokens.use(ulid(), now), false);
    assert.ok((await tokens.list("api")).some((one) => one.id === api.id));
    assert.ok(!(await tokens.list("join")).some((one) => one.id === api.id));
    assert.equal(await tokens.remove(api.id), true);
    assert.equal(await tokens.remove(api.id), false);
    assert.equal(await tokens.byId(api.id), null);
  },
};

function entry(note: string) {
  return { at: now, step: "exporting" as const, side: null, ms: null, note };
}
