/** Webhooks by the bundles as Lambda runs them: made by one function, delivered by the timer's, each in cold processes that share nothing but the store. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { positionAt } from "#core/chronicle-position";
import { webhookRowSchema, webhookTestedSchema, webhookWrittenSchema } from "#functions/http/webhook-resource";
import { DynamoChronicle } from "#functions/store/dynamo-chronicle";
import { isSignedBy, secretBytes } from "#functions/trigger-signature";
import { LambdaHttpServer } from "#lab/lambda-http-server";
import { LambdaFunction } from "#lab/lambda-process";
import { openReceiver, type Receiver } from "#test/fake/webhook-receiver";
import { eventOf } from "#test/fake/webhook-world";
import { type LambdaStage, openLambdaStage } from "./lambda-stage.ts";

const adminToken = "webhooks-admin-token";
const _credentials = { accessKeyId: "local", secretAccessKey: "local" };
const _region = "eu-central-1";

let stage: LambdaStage;
let chronicle: DynamoChronicle;
let receiver: Receiver;
const lines: string[] = [];
/** An event is written down at this moment, long enough ago. */
const writtenMs = Date.now() - 120_000;

before(async () => {
  stage = await openLambdaStage(adminToken);
  let serial = 0;
  const ids = { ulid: () => `${positionAt(writtenMs)}${String(++serial).padStart(16, "0")}` };
  chronicle = new DynamoChronicle(stage.table, ids);
  receiver = await openReceiver();
});
after(async () => {
  await receiver?.close();
  await stage?.close();
});

const functionOf = (name: "lambda-http" | "lambda-timer", more: Record<string, string> = {}) =>
  new LambdaFunction({
    file: stage.fileOf(name),
    env: { ...stage.env, ...more },
    mode: "cold",
    onLine: (line) => lines.push(line),
  });

/** The API with this environment, closed after `use`. */
async function served<T>(
  more: Record<string, string>,
  use: (ask: (method: string, path: string, body?: unknown) => Promise<{ status: number; text: string }>) => Promise<T>,
): Promise<T> {
  const lambda = functionOf("lambda-http", more);
  const server = new LambdaHttpServer({ lambda });
  await server.start();
  try {
    return await use(async (method, path, body) => {
      const response = await fetch(`${server.url}${path}`, {
        method,
        headers: { authorization: `Bearer ${adminToken}`, "content-type": "application/json" },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      return { status: response.status, text: await response.text() };
    });
  } finally {
    await server.close();
    await lambda.close();
  }
}

test("one minute's timers, at the same time, deliver what was written down; in the cloud nothing is posted inside", async () => {
  const inside = { WEBHOOK_TARGETS: "private" };
  await served({}, async (ask) => {
    const { status, text } = await ask("PUT", "/v1/webhooks/ops", { url: receiver.url });
    assert.equal(status, 400);
    assert.match(text, /posts to the internet only/);
  });
  const secret = await served(inside, async (ask) => {
    const made = await ask("PUT", "/v1/webhooks/ops", { url: `${receiver.url}/hook`, types: ["host"] });
    assert.equal(made.status, 201, made.text);
    const tested = await ask("POST", "/v1/webhooks/ops/test");
    assert.equal(webhookTestedSchema.parse(JSON.parse(tested.text)).status, 204, tested.text);
    const since = new Date(writtenMs - 1_000).toISOString();
    assert.equal((await ask("POST", "/v1/webhooks/ops/replay", { since })).status, 200);
    return webhookWrittenSchema.parse(JSON.parse(made.text)).secret ?? "";
  });
  await receiver.next();
  for (const id of ["e1", "e2"])
    await chronicle.append(eventOf(id, "dev.vmferry.host.enrolled", new Date(writtenMs).toISOString()));

  const timers = [functionOf("lambda-timer", inside), functionOf("lambda-timer", inside)];
  await Promise.all(timers.map((timer) => timer.invoke({})));
  await Promise.all(timers.map((timer) => timer.close()));
  const heard = receiver.heard.slice(1);
  assert.deepEqual(
    heard.map(({ headers }) => headers["webhook-id"]),
    ["e1", "e2"],
  );
  const bytes = secretBytes(secret);
  assert.ok(bytes);
  for (const { headers, body } of heard) {
    const [id = "", timestamp = "", signature = ""] = ["id", "timestamp", "signature"].map((part) =>
      String(headers[`webhook-${part}`]),
    );
    assert.ok(await isSignedBy({ id, timestamp, signature, body }, [{ kind: "secret", bytes, counts: true }]));
  }

  // Deployed without the setting, what it made is not posted to any more, and says why.
  await chronicle.append(eventOf("e3", "dev.vmferry.host.enrolled", new Date(writtenMs).toISOString()));
  const timer = functionOf("lambda-timer");
  await timer.invoke({});
  await timer.close();
  const shown = await served({}, async (ask) => ask("GET", "/v1/webhooks/ops"));
  const { delivery } = webhookRowSchema.parse(JSON.parse(shown.text));
  assert.deepEqual([delivery.delivered, delivery.failed, delivery.pending?.eventId], [2, 1, "e3"]);
  assert.match(delivery.lastError ?? "", /its URL is refused/);
  assert.equal(receiver.heard.length, 3);
  assert.ok(!lines.join("\n").includes(secret.slice(6)), "no secret in a log");
});
