import { before, describe, test } from "node:test";
import {
  MemoryBundleTasks,
  MemoryEvacuations,
  MemoryHosts,
  MemoryMigrations,
  MemoryTokens,
} from "#test/fake/memory-store";
import { onEachDynamo } from "./dynamo-endpoints.ts";
import { evacuationCases } from "./evacuation-cases.ts";
import { type Stores, storeCases, uuid } from "./store-cases.ts";
import { dynamoCases, dynamoStores, makeTable, testClock } from "./store-dynamo.ts";
import { faultCases, plaguedCases } from "./store-faults.ts";
import { openFaultyStore } from "./store-faults-proxy.ts";
import { staleCases } from "./store-faults-stale.ts";

const everyStore = { ...storeCases, ...evacuationCases };

describe("stores in memory", () => {
  const clock = testClock();
  const stores: Stores = {
    migrations: new MemoryMigrations(clock),
    tasks: new MemoryBundleTasks(),
    evacuations: new MemoryEvacuations(clock),
    hosts: new MemoryHosts(),
    tokens: new MemoryTokens(),
    setNow: (at) => {
      clock.at = at;
    },
  };
  for (const [name, run] of Object.entries(everyStore)) test(name, () => run(stores));
});

/** The whole suite on one implementation of DynamoDB's API. */
await onEachDynamo("stores", (started) => {
  before(() => makeTable(started.endpoint));

  for (const [title, run] of Object.entries(everyStore)) test(title, () => run(dynamoStores(started.endpoint)));
  for (const [title, run] of Object.entries(dynamoCases)) test(title, () => run(started.endpoint));

  // Mostly waiting for the client's own pauses between attempts; each in a table of its own, so side by side.
  describe("with faults", { concurrency: 8 }, () => {
    for (const [title, run] of Object.entries({ ...plaguedCases, ...faultCases, ...staleCases }))
      test(title, async () => {
        const table = `case-${uuid()}`;
        await makeTable(started.endpoint, table);
        const faulty = await openFaultyStore(started.endpoint);
        try {
          await run({ faulty, table, stores: dynamoStores(faulty.endpoint, table) });
        } finally {
          await faulty.close();
        }
      });
  });
});
