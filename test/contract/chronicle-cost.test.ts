/** What the chronicle costs, counted on the embedded DynamoDB by the adapters' own counter: a migration asked for over HTTP, from the request to its end. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { after, before, test } from "node:test";
import { createRunners } from "#functions/evacuation-runner";
import { createApp } from "#functions/http/app";
import type { Ports } from "#functions/ports";
import { preflightMemory } from "#functions/preflights";
import { DynamoChronicle } from "#functions/store/dynamo-chronicle";
import { createDynamoClient, DynamoTable } from "#functions/store/dynamo-table";
import { positionsBy } from "#test/fake/memory-chronicle";
import { adminToken, domainNamed, hostId, memoryFleet } from "#test/fake/memory-fleet";
import { type DynamoEndpoint, startDynalite } from "./dynamo-endpoints.ts";
import { dynamoStores, makeTable } from "./store-dynamo.ts";

let dynalite: DynamoEndpoint;
before(async () => {
  dynalite = await startDynalite();
  await makeTable(dynalite.endpoint);
});
after(() => dynalite.end());

test("a migration costs three requests more than without the chronicle: who asked, that it began, how it ended", async (context) => {
  const fleet = await memoryFleet();
  const { migrations, hosts, counter } = dynamoStores(dynalite.endpoint);
  const credentials = { accessKeyId: "local", secretAccessKey: "local" };
  const client = createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials, counter });
  const written = new DynamoChronicle(new DynamoTable(client, "vmferry"), positionsBy(fleet.ports.clock));
  const run = async (domain: string, chronicle: Ports["chronicle"]) => {
    const ports: Ports = { ...fleet.ports, migrations, hosts, chronicle };
    const { runner, evacuations } = createRunners(ports, preflightMemory());
    const adminTokenSha256 = createHash("sha256").update(adminToken).digest("hex");
    const app = createApp({ ports, runner, evacuations, adminTokenSha256 });
    const first = counter.total("dynamodb").requests;
    const response = await app.request("http://api.test/v1/migrations", {
      method: "POST",
      headers: { authorization: `Bearer ${adminToken}`, "content-type": "application/json" },
      body: JSON.stringify({ domain, destination: "host2" }),
    });
    assert.equal(response.status, 202, await response.text());
    await fleet.serve({}, undefined, runner);
    const [newest] = (await migrations.list({ limit: 1, cursor: null, active: false })).items;
    assert.equal(newest?.status, "completed");
    return counter.total("dynamodb").requests - first - 1;
  };
  const host = async (index: number) => {
    const record = await fleet.addHost(index);
    await hosts.create(record);
  };
  await host(1);
  await host(2);
  const uuid = (digit: string) => `${digit.repeat(8)}-2222-4333-8444-555555555555`;
  const domains = [domainNamed("web1", { uuid: uuid("1") }), domainNamed("web2", { uuid: uuid("2") })];
  await hosts.putInventory(hostId(1), { full: true, domains, gone: [] });
  for (const name of ["host1", "host2"]) await hosts.byName(name);
  const without = await run("web1", fleet.ports.chronicle);
  const withIt = await run("web2", written);
  context.diagnostic(`${without} requests to DynamoDB without the chronicle, ${withIt} with it`);
  assert.equal(withIt - without, 3);
});
