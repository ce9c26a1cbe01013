/**
 * The stores: one list of cases on the fake, on the embedded DynamoDB (dynalite) and on Amazon's own (DynamoDB Local, where
 * there is Java); what only DynamoDB's API shows on both of these; and its faults in front of both.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { openDynalite } from "#functions/cli/up-dynalite";
import { dynamoLocalSkipReason, startDynamoLocal } from "#lab/dynamodb-local";
import {
  MemoryBundleTasks,
  MemoryEvacuations,
  MemoryHosts,
  MemoryMigrations,
  MemoryTokens,
} from "#test/fake/memory-store";
import { evacuationCases } from "./evacuation-cases.ts";
import { type Stores, storeCases, uuid } from "./store-cases.ts";
import { dynamoCases, dynamoStores, makeTable, testClock } from "./store-dynamo.ts";
import { faultCases, plaguedCases } from "./store-faults.ts";
import { openFaultyStore } from "./store-faults-proxy.ts";
import { staleCases } from "./store-faults-stale.ts";

interface Started {
  endpoint: string;
  end(): Promise<void>;
}

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
function dynamoSuite(name: string, start: () => Promise<Started>): void {
  describe(`stores in ${name}`, () => {
    let started: Started;
    before(async () => {
      started = await start();
      await makeTable(started.endpoint);
    });
    after(() => started?.end());

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
}

dynamoSuite("dynalite", async () => {
  const folder = await mkdtemp(join(tmpdir(), "vmferry-store-"));
  const dynalite = await openDynalite(folder);
  const end = async () => {
    await dynalite.close();
    await rm(folder, { recursive: true });
  };
  return { endpoint: dynalite.endpoint, end };
});

const skip = await dynamoLocalSkipReason();
if (skip === false) dynamoSuite("DynamoDB Local", startDynamoLocal);
else test("stores in DynamoDB Local", { skip }, () => {});
