/** The store of sockets on DynamoDB's API. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import { openDynalite } from "#functions/cli/up-dynalite";
import { DynamoLinks } from "#functions/store/dynamo-links";
import { createDynamoClient, createTable, DynamoTable } from "#functions/store/dynamo-table";
import { linkCases } from "./link-cases.ts";

describe("links in DynamoDB", () => {
  const startMs = Date.parse("2026-11-01T00:00:00.000Z");
  const credentials = { accessKeyId: "local", secretAccessKey: "local" };
  let nowMs = startMs;
  let folder: string;
  let dynalite: Awaited<ReturnType<typeof openDynalite>>;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "vmferry-links-"));
    dynalite = await openDynalite(folder);
    await createTable(createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials }), "vmferry");
  });
  after(async () => {
    await dynalite.close();
    await rm(folder, { recursive: true });
  });
  beforeEach(() => {
    nowMs = startMs;
  });

  for (const [name, run] of Object.entries(linkCases))
    test(name, () => {
      const client = createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials });
      const clock = { now: () => new Date(nowMs).toISOString() };
      const setNow = (ms: number) => {
        nowMs = ms;
      };
      return run({ links: new DynamoLinks(new DynamoTable(client, "vmferry"), clock), setNow });
    });
});
