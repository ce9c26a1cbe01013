/** The chronicle: one list of cases on the fake, on the embedded DynamoDB and, where there is Java, on Amazon's own; and what only DynamoDB's API shows. */
import assert from "node:assert/strict";
import { before, describe, test } from "node:test";
import { chronicleKeptMs } from "#core/limits";
import { DynamoChronicle } from "#functions/store/dynamo-chronicle";
import { createDynamoClient, DynamoTable } from "#functions/store/dynamo-table";
import { RequestCounter } from "#functions/store/request-counter";
import { MemoryChronicle, positionsBy } from "#test/fake/memory-chronicle";
import { chronicleCases, requested } from "./chronicle-cases.ts";
import { onEachDynamo } from "./dynamo-endpoints.ts";
import { makeTable } from "./store-dynamo.ts";
import { openFaultyStore } from "./store-faults-proxy.ts";

const nowMs = Date.parse("2026-11-01T00:00:00.000Z");
const ids = positionsBy({ now: () => new Date(nowMs).toISOString() });

describe("the chronicle in memory", () => {
  const chronicle = new MemoryChronicle(ids);
  for (const [title, run] of Object.entries(chronicleCases)) test(title, () => run(chronicle));
});

await onEachDynamo("the chronicle", (started) => {
  const counter = new RequestCounter();
  const tableAt = (endpoint: string) => {
    const credentials = { accessKeyId: "local", secretAccessKey: "local" };
    return new DynamoTable(createDynamoClient({ region: "local", endpoint, credentials, counter }), "vmferry");
  };
  before(() => makeTable(started.endpoint));

  for (const [name, run] of Object.entries(chronicleCases))
    test(name, () => run(new DynamoChronicle(tableAt(started.endpoint), ids)));

  test("a line costs one request, one told again two; a page one", async () => {
    const chronicle = new DynamoChronicle(tableAt(started.endpoint), ids);
    const costs: number[] = [];
    const event = requested();
    for (const call of [
      () => chronicle.append(event),
      () => chronicle.append(event),
      () => chronicle.before({ at: null, limit: 3 }),
    ]) {
      const already = counter.total("dynamodb").requests;
      await call();
      costs.push(counter.total("dynamodb").requests - already);
    }
    assert.deepEqual(costs, [1, 2, 1]);
  });

  test("a line is swept after its time, and a kind that only a newer version knows is left to that", async () => {
    const table = tableAt(started.endpoint);
    const chronicle = new DynamoChronicle(table, ids);
    const event = requested();
    await chronicle.append(event);
    const item = await table.get("a line", { pk: `EVENT#${event.id}`, sk: "EVENT" });
    assert.equal(item?.ttl?.N, String((nowMs + chronicleKeptMs) / 1000));
    const newer: Record<string, object> = {
      type: { ...event, type: "dev.vmferry.moon.landed" },
      // Of a version that was gone back from, or that is not everywhere yet.
      words: { ...event, data: { ...event.data, admin: "of the night" } },
    };
    for (const [id, line] of Object.entries(newer)) {
      const stored = {
        pk: { S: `EVENT#${id}` },
        sk: { S: "EVENT" },
        row: { S: JSON.stringify({ ...line, id }) },
        newestOf: { S: "EVENTS" },
        newestSort: { S: ids.ulid() },
      };
      await table.put("a line", stored, { expression: "attribute_not_exists(pk)" });
    }
    await assert.rejects(chronicle.find("words"), { code: "internal" }, "who asks for it is told");
    assert.equal((await chronicle.before({ at: null, limit: 1 }))[0]?.event.id, event.id);
  });

  test("what is older than a moment is swept where the store does not do it itself", async () => {
    const early = positionsBy({ now: () => "2025-01-01T00:00:00.000Z" });
    const table = tableAt(started.endpoint);
    const [old, young] = [new DynamoChronicle(table, early), new DynamoChronicle(table, ids)];
    const [gone, kept] = [requested(), requested()];
    await old.append(gone);
    await young.append(kept);
    const until = Date.parse("2026-06-01T00:00:00.000Z");
    // Lines of other cases have positions of long ago as well.
    while ((await young.sweep(until)) > 0);
    assert.equal(await young.find(gone.id), null);
    assert.equal((await young.find(kept.id))?.event.id, kept.id);
  });

  test("a line that stands too long before the store is not written late: readers would be past its place", async () => {
    const credentials = { accessKeyId: "local", secretAccessKey: "local" };
    const client = createDynamoClient({ region: "local", endpoint: started.endpoint, credentials });
    client.middlewareStack.add(
      (next) => async (args) => {
        await new Promise((resolve) => setTimeout(resolve, 100));
        return next(args);
      },
      { step: "deserialize", priority: "high", name: "line" },
    );
    const waiting = new DynamoChronicle(new DynamoTable(client, "vmferry"), ids, 20);
    const prompt = new DynamoChronicle(tableAt(started.endpoint), ids);
    const event = requested();
    await assert.rejects(waiting.append(event), { code: "store.unreachable" });
    assert.equal(await prompt.find(event.id), null);
    assert.equal(await prompt.append(event), true);
    client.destroy();
  });

  test("a line whose first writing got through without an answer is new all the same", async () => {
    const faulty = await openFaultyStore(started.endpoint);
    try {
      const chronicle = new DynamoChronicle(tableAt(faulty.endpoint), ids);
      faulty.loseNext = 1;
      assert.equal(await chronicle.append(requested()), true);
      assert.equal(faulty.struck(), 1);
    } finally {
      await faulty.close();
    }
  });
});
