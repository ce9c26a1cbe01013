/**
 * Connections to the store that are lost in the middle, as workerd meets them: the request has left, the answer never comes. What the SDK's own retry does not
 * know by its name was an answer 503 for each of them; it is tried again instead.
 */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer, request as httpRequest, type Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { startUp, type Up } from "#functions/cli/up";
import { type EmbeddedDynamo, openDynalite } from "#functions/cli/up-dynalite";

/** Every so many requests one loses its connection before its answer. */
const lostEvery = 3;
const requests = 30;

describe("a store whose connections are lost", { timeout: 60_000 }, () => {
  let folder: string;
  let dynamo: EmbeddedDynamo;
  let proxy: Server;
  let up: Up;
  let token: string;
  let losing = false;
  let lost = 0;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "vmferry-lost-"));
    dynamo = await openDynalite(join(folder, "dynamodb"));
    let passed = 0;
    proxy = createServer((incoming, outgoing) => {
      passed += 1;
      if (losing && passed % lostEvery === 0) {
        lost += 1;
        incoming.socket.destroy();
        return;
      }
      const { method, headers } = incoming;
      const onward = httpRequest(dynamo.endpoint, { method, headers }, (answer) => {
        outgoing.writeHead(answer.statusCode ?? 500, answer.headers);
        answer.pipe(outgoing);
      });
      onward.on("error", () => incoming.socket.destroy());
      incoming.pipe(onward);
    });
    await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
    const address = proxy.address();
    assert.ok(address !== null && typeof address === "object");
    up = await startUp({
      listen: "127.0.0.1:0",
      dataDir: join(folder, "data"),
      dynamodb: `http://127.0.0.1:${address.port}`,
      env: { HOME: folder, VMFERRY_CONFIG: join(folder, "config.json") },
      out: () => {},
      err: () => {},
    });
    token = (await readFile(join(folder, "data", "admin-token"), "utf8")).trim();
  });
  after(async () => {
    await up?.close();
    proxy?.closeAllConnections();
    await new Promise((resolve) => proxy?.close(resolve));
    await dynamo?.close();
    await rm(folder, { recursive: true, force: true });
  });

  test("requests are answered although every third connection is lost", async () => {
    losing = true;
    const answers: number[] = [];
    for (let asked = 0; asked < requests; asked += 1) {
      const answer = await fetch(`${up.url}/v1/hosts`, { headers: { authorization: `Bearer ${token}` } });
      await answer.text();
      answers.push(answer.status);
    }
    losing = false;
    assert.ok(lost >= requests / lostEvery / 2, `only ${lost} connections were lost`);
    assert.deepEqual(
      answers.filter((status) => status !== 200),
      [],
    );
  });
});
