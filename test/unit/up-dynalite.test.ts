/** The embedded store outlives its clients. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { DynamoDBClient, ListTablesCommand } from "@aws-sdk/client-dynamodb";
import { openDynalite } from "../../functions/cli/up-dynalite.ts";

test("a client that dies in its request ends nothing but that request", async () => {
  const folder = await mkdtemp(join(tmpdir(), "vmferry-dynalite-"));
  const store = await openDynalite(folder);
  try {
    const { port } = new URL(store.endpoint);
    const dying = connect(Number(port), "127.0.0.1");
    await once(dying, "connect");
    dying.write("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{");
    await new Promise((done) => setTimeout(done, 100));
    dying.resetAndDestroy();
    await once(dying, "close");
    await new Promise((done) => setTimeout(done, 100));
    const client = new DynamoDBClient({
      endpoint: store.endpoint,
      region: "local",
      credentials: { accessKeyId: "a", secretAccessKey: "b" },
    });
    assert.deepEqual((await client.send(new ListTablesCommand({}))).TableNames, []);
    client.destroy();
  } finally {
    await store.close();
    await rm(folder, { recursive: true });
  }
});
