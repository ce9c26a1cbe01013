/** What a store of webhooks must do, as one list of cases: on the fake, on the embedded DynamoDB and, where there is Java, on Amazon's own. */
import assert from "node:assert/strict";
import { before, describe, test } from "node:test";
import type { WebhookRecord } from "#core/webhook";
import { leased, newDelivery } from "#core/webhook-delivery";
import type { WebhookStore } from "#functions/ports";
import { createDynamoClient, DynamoTable } from "#functions/store/dynamo-table";
import { DynamoWebhooks } from "#functions/store/dynamo-webhooks";
import { MemoryWebhooks } from "#test/fake/memory-webhooks";
import { onEachDynamo } from "./dynamo-endpoints.ts";
import { ulid } from "./store-cases.ts";
import { makeTable } from "./store-dynamo.ts";

const at = "2026-11-01T00:00:00.000Z";
const record = (changes: Partial<WebhookRecord> = {}): WebhookRecord => ({
  id: `w_${ulid()}`,
  name: `hook-${ulid().toLowerCase()}`,
  version: 1,
  url: "https://example.com/hook",
  types: ["migration"],
  secrets: [{ id: ulid(), sealed: "nonce.sealed", createdAt: at, until: null }],
  createdAt: at,
  changedAt: at,
  by: "test",
  paused: null,
  ...changes,
});

const cases: Record<string, (store: WebhookStore) => Promise<void>> = {
  "a webhook is written over the version before only; the same again is our own": async (store) => {
    const first = record();
    assert.equal(await store.load(first.name), null);
    assert.equal(await store.commit({ ...first, version: 2 }), "conflict");
    assert.equal(await store.commit(first), "committed");
    assert.equal(await store.commit(first), "committed");
    assert.equal(await store.commit({ ...first, url: "https://example.com/other" }), "conflict");
    const second = { ...first, version: 2, paused: { at, by: "test", reason: "asked" } };
    assert.equal(await store.commit(second), "committed");
    assert.equal(await store.commit({ ...first, version: 3 }), "committed");
    assert.equal(await store.commit(second), "conflict");
    assert.deepEqual(await store.load(first.name), { ...first, version: 3 });
  },
  "the list is by name": async (store) => {
    const tag = ulid().toLowerCase();
    for (const letter of ["b", "a", "c"]) await store.commit(record({ name: `${tag}-${letter}` }));
    const names = (await store.list()).map(({ name }) => name).filter((name) => name.startsWith(tag));
    assert.deepEqual(names, [`${tag}-a`, `${tag}-b`, `${tag}-c`]);
  },
  "only the version that was read is removed, and never another of the same name": async (store) => {
    const first = record();
    await store.commit(first);
    await store.commit({ ...first, version: 2 });
    assert.equal(await store.remove(first), "conflict");
    assert.equal(await store.remove({ ...first, version: 2 }), "committed");
    assert.equal(await store.remove({ ...first, version: 2 }), "committed");
    assert.equal(await store.load(first.name), null);
    const anew = record({ name: first.name });
    await store.commit(anew);
    assert.equal(await store.remove({ ...first, version: 2 }), "committed");
    assert.deepEqual(await store.load(first.name), anew);
  },
  "of many who take the lease of a delivery at once one does": async (store) => {
    const fresh = newDelivery(record());
    assert.equal(await store.delivery(fresh.webhook), null);
    const holders = Array.from({ length: 20 }, (_, index) => leased(fresh, `holder ${index}`, 0));
    const results = await Promise.all(holders.map((delivery) => store.commitDelivery(delivery)));
    assert.equal(results.filter((result) => result === "committed").length, 1);
    const standing = await store.delivery(fresh.webhook);
    assert.deepEqual(standing, holders[results.indexOf("committed")]);
    assert.ok((await store.deliveries()).some(({ webhook }) => webhook === fresh.webhook));
  },
  "a delivery that was removed is not brought back by who still delivers": async (store) => {
    const first = leased(newDelivery(record()), "a", 0);
    await store.commitDelivery(first);
    await store.removeDelivery(first.webhook);
    await store.removeDelivery(first.webhook);
    assert.equal(await store.commitDelivery({ ...first, version: 2 }), "conflict");
    assert.equal(await store.delivery(first.webhook), null);
  },
};

describe("webhooks in memory", () => {
  const store = new MemoryWebhooks();
  for (const [title, run] of Object.entries(cases)) test(title, () => run(store));
});

await onEachDynamo("webhooks", (started) => {
  before(() => makeTable(started.endpoint));
  for (const [name, run] of Object.entries(cases))
    test(name, () => {
      const credentials = { accessKeyId: "local", secretAccessKey: "local" };
      const client = createDynamoClient({ region: "local", endpoint: started.endpoint, credentials });
      return run(new DynamoWebhooks(new DynamoTable(client, "vmferry")));
    });
});
