/** What a store of hosts' shutdowns must do, as one list of cases: on the fake, on the embedded DynamoDB and, where there is Java, on Amazon's own. */
import assert from "node:assert/strict";
import { before, describe, test } from "node:test";
import { type HostShutdown, shutdownKeptMs, shutdownsPerHostMax } from "#core/host-shutdown";
import type { ShutdownStore } from "#functions/ports";
import { DynamoShutdowns } from "#functions/store/dynamo-shutdowns";
import { createDynamoClient, DynamoTable } from "#functions/store/dynamo-table";
import { MemoryShutdowns } from "#test/fake/memory-shutdowns";
import { onEachDynamo } from "./dynamo-endpoints.ts";
import { ulid } from "./store-cases.ts";
import { makeTable } from "./store-dynamo.ts";

const startMs = Date.parse("2026-11-01T00:00:00.000Z");
const iso = (ms: number) => new Date(ms).toISOString();
const shutdown = (hostId: string, fields: Partial<HostShutdown> = {}): HostShutdown => ({
  hostId,
  requestId: "now-1",
  kind: "reboot",
  at: iso(startMs),
  deadlineAt: iso(startMs + 60_000),
  withdrawnAt: null,
  ...fields,
});
const newHost = () => `h_${ulid()}`;
const of = async (store: ShutdownStore, hostId: string) =>
  (await store.list())
    .filter((each) => each.hostId === hostId)
    .sort((one, other) => (one.requestId < other.requestId ? -1 : 1));

const cases: Record<string, (store: ShutdownStore) => Promise<void>> = {
  "the same request is kept once, as it was first heard": async (store) => {
    const hostId = newHost();
    assert.deepEqual(await store.keep(shutdown(hostId)), [shutdown(hostId)]);
    assert.deepEqual(await store.keep(shutdown(hostId, { at: iso(startMs + 5), deadlineAt: iso(startMs + 90_000) })), [
      shutdown(hostId),
    ]);
    assert.deepEqual(await of(store, hostId), [shutdown(hostId)]);
  },
  "a withdrawal stands, whichever of the two comes first or again": async (store) => {
    for (const order of [
      [null, iso(startMs + 1), null, iso(startMs + 2)],
      [iso(startMs + 1), null, iso(startMs + 2)],
    ]) {
      const hostId = newHost();
      for (const withdrawnAt of order) await store.keep(shutdown(hostId, { withdrawnAt }));
      assert.deepEqual(await of(store, hostId), [shutdown(hostId, { withdrawnAt: iso(startMs + 1) })]);
    }
  },
  "both said at once, whichever order the store takes them in": async (store) => {
    const hostId = newHost();
    const withdrawnAt = iso(startMs + 1);
    await Promise.all([null, withdrawnAt, null].map((at) => store.keep(shutdown(hostId, { withdrawnAt: at }))));
    assert.deepEqual(await of(store, hostId), [shutdown(hostId, { withdrawnAt })]);
  },
  "what is doubted stands again when it is said again, and what was withdrawn is not doubted": async (store) => {
    const hostId = newHost();
    const at = iso(startMs + 1);
    const withdrawn = shutdown(hostId, { requestId: "at-2", withdrawnAt: at });
    await store.keep(shutdown(hostId));
    await store.keep(withdrawn);
    for (const doubtedAt of [at, iso(startMs + 2)]) await store.doubt(hostId, doubtedAt);
    assert.deepEqual(await of(store, hostId), [withdrawn, shutdown(hostId, { doubtedAt: at })]);
    await store.keep(shutdown(hostId));
    assert.deepEqual(await of(store, hostId), [withdrawn, shutdown(hostId)]);
    await store.doubt(hostId, at);
    await store.keep(shutdown(hostId, { withdrawnAt: at }));
    await store.keep(shutdown(hostId));
    assert.deepEqual(await of(store, hostId), [withdrawn, shutdown(hostId, { withdrawnAt: at })]);
  },
  "hosts and requests are kept apart, and forgotten one by one, again without harm": async (store) => {
    const [one, other] = [newHost(), newHost()];
    await store.keep(shutdown(one));
    await store.keep(shutdown(one, { requestId: "at-2" }));
    await store.keep(shutdown(other));
    for (let times = 0; times < 2; times += 1) await store.forget(shutdown(one));
    assert.deepEqual(await of(store, one), [shutdown(one, { requestId: "at-2" })]);
    assert.deepEqual(await of(store, other), [shutdown(other)]);
  },
  "a host has so many at once; what is over makes room": async (store) => {
    const hostId = newHost();
    for (let index = 0; index < shutdownsPerHostMax; index += 1)
      assert.equal((await store.keep(shutdown(hostId, { requestId: `now-${index}` })))?.length, index + 1);
    assert.equal(await store.keep(shutdown(hostId, { requestId: "more" })), null);
    assert.equal((await store.keep(shutdown(newHost())))?.length, 1);
    const at = iso(startMs + 60_000 + shutdownKeptMs);
    const later = shutdown(hostId, { requestId: "more", at, deadlineAt: at });
    assert.deepEqual(await store.keep(later), [later]);
    assert.deepEqual(await of(store, hostId), [later]);
  },
};

describe("shutdowns in memory", () => {
  const store = new MemoryShutdowns();
  for (const [title, run] of Object.entries(cases)) test(title, () => run(store));
});

await onEachDynamo("shutdowns", (started) => {
  before(() => makeTable(started.endpoint));
  for (const [name, run] of Object.entries(cases))
    test(name, () => {
      const credentials = { accessKeyId: "local", secretAccessKey: "local" };
      const client = createDynamoClient({ region: "local", endpoint: started.endpoint, credentials });
      return run(new DynamoShutdowns(new DynamoTable(client, "vmferry")));
    });
});
