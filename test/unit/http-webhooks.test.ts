/** Webhooks over the real app: made, shown, changed, refused, tried, delivered; and no secret anywhere but in the answer that made it. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { chronicleSettleMs } from "#core/limits";
import { webhooksMax } from "#core/webhook";
import {
  webhookRowSchema,
  webhookSecretMadeSchema,
  webhookTestedSchema,
  webhookWrittenSchema,
} from "#functions/http/webhook-resource";
import { isSignedBy, secretBytes } from "#functions/trigger-signature";
import type { WebhookPost } from "#functions/webhook-post";
import { type MemoryFleet, memoryFleet, refusal } from "#test/fake/memory-fleet";
import { eventOf } from "#test/fake/webhook-world";

let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
});

const url = "https://receiver.example/hook?key=word";
const read = async <T>(schema: z.ZodMiniType<T>, response: Response): Promise<T> => {
  assert.ok(response.ok, await response.clone().text());
  return schema.parse(await response.json());
};
const put = (name: string, body: object = { url }) => fleet.ask(`/v1/webhooks/${name}`, { method: "PUT", body });
const post = (path: string, body?: object) =>
  fleet.ask(`/v1/webhooks/${path}`, { method: "POST", ...(body === undefined ? {} : { body }) });
const show = async (name: string) => read(webhookRowSchema, await fleet.ask(`/v1/webhooks/${name}`));
const made = async (name: string, body?: object) => {
  const { secret, ...row } = await read(webhookWrittenSchema, await put(name, body));
  assert.ok(secret !== null);
  return { ...row, secret };
};
const happens = (id: string) =>
  fleet.ports.chronicle.append(eventOf(id, "dev.vmferry.host.enrolled", fleet.ports.clock.now()));
const look = async () => {
  fleet.pass(chronicleSettleMs + 1);
  await fleet.webhooks.runner.tick();
};
const isSigned = async ({ headers, body }: WebhookPost, ...secrets: string[]): Promise<boolean[]> => {
  const [id = "", timestamp = "", signature = ""] = ["id", "timestamp", "signature"].map(
    (part) => headers[`webhook-${part}`],
  );
  return Promise.all(
    secrets.map((secret) => {
      const bytes = secretBytes(secret);
      assert.ok(bytes);
      return isSignedBy({ id, timestamp, signature, body }, [{ kind: "secret", bytes, counts: true }]);
    }),
  );
};

describe("making a webhook", () => {
  test("shows its secret once, of 32 bytes; the same again changes nothing and shows none", async () => {
    const response = await put("ops", { url });
    assert.equal(response.status, 201);
    const first = await read(webhookWrittenSchema, response);
    assert.equal(secretBytes(first.secret ?? "")?.length, 32);
    assert.deepEqual([first.changed, first.url, first.paused], [true, url, null]);
    assert.ok(!first.types.includes("request") && first.types.includes("migration"));
    const again = await put("ops", { url });
    assert.equal(again.status, 200);
    assert.deepEqual((({ changed, secret }) => [changed, secret])(await read(webhookWrittenSchema, again)), [
      false,
      null,
    ]);
    const moved = await read(
      webhookWrittenSchema,
      await put("ops", { url: "https://other.example/", types: ["host"] }),
    );
    assert.deepEqual(
      [moved.changed, moved.secret, moved.url, moved.types],
      [true, null, "https://other.example/", ["host"]],
    );
    assert.deepEqual(moved.secrets, first.secrets);
  });

  const refusals: [string, object, RegExp][] = [
    ["an inner address", { url: "https://169.254.169.254/" }, /`url`: .*metadata/],
    ["plain http", { url: "http://example.com/" }, /plain http/],
    ["a user", { url: "https://a@example.com/" }, /user name/],
    ["a type that there is not", { url, types: ["migraton.ended"] }, /migraton\.ended/],
    ["no type at all", { url, types: [] }, /types/],
    ["an unknown key", { url, secret: "mine" }, /`secret`/],
  ];
  for (const [what, body, pattern] of refusals)
    test(`refuses ${what}`, async () => {
      const response = await put("ops", body);
      assert.match(await response.clone().text(), pattern);
      assert.deepEqual(await refusal(response), [400, "request.malformed"]);
      assert.deepEqual(await refusal(await fleet.ask("/v1/webhooks/ops")), [404, "request.notFound"]);
    });
  test("refuses a name that is none", async () => {
    for (const name of ["UP", "-a", "a_b", "x".repeat(64)])
      assert.deepEqual(await refusal(await put(name)), [400, "request.malformed"]);
  });
  test("there is an end to how many", async () => {
    for (let index = 0; index < webhooksMax; index += 1) await made(`n${String(index).padStart(2, "0")}`);
    assert.deepEqual(await refusal(await put("one-more")), [409, "request.conflict"]);
    const page = z.object({ items: z.array(webhookRowSchema), cursor: z.nullable(z.string()) });
    const first = await read(page, await fleet.ask("/v1/webhooks?limit=30"));
    const rest = await read(page, await fleet.ask(`/v1/webhooks?limit=30&cursor=${first.cursor}`));
    assert.deepEqual([first.items.length, rest.items.length, rest.cursor], [30, webhooksMax - 30, null]);
  });
});

describe("delivering", () => {
  test("posts what happened after it was made as a CloudEvent, signed, under the event's own id", async () => {
    await happens("before");
    fleet.pass(1_000);
    const { secret } = await made("ops");
    await happens("e-1");
    await fleet.webhooks.runner.tick();
    assert.equal(fleet.script.posted.length, 0, "what is so young may still be joined by something older");
    await look();
    const [only, ...more] = fleet.script.posted;
    assert.ok(only !== undefined && more.length === 0);
    assert.equal(only.url, url);
    assert.equal(only.headers["content-type"], "application/cloudevents+json");
    assert.equal(only.headers["webhook-id"], "e-1");
    assert.match(only.headers["webhook-timestamp"] ?? "", /^\d{10}$/);
    assert.deepEqual(await isSigned(only, secret), [true]);
    const event = z.looseObject({}).parse(JSON.parse(new TextDecoder().decode(only.body)));
    const { specversion, id, source, type, datacontenttype } = event;
    assert.deepEqual(
      [specversion, id, source, type, datacontenttype],
      ["1.0", "e-1", "/vmferry", "dev.vmferry.host.enrolled", "application/json"],
    );
    const { delivery } = await show("ops");
    assert.deepEqual([delivery.delivered, delivery.failed, delivery.lastStatus, delivery.lagMs], [1, 0, 204, 0]);
    await look();
    assert.equal(fleet.script.posted.length, 1);
  });

  test("what a person asks for is delivered to those who ask for requests, and to no others", async () => {
    await made("audit", { url, types: ["request"] });
    await made("ops");
    await look();
    const paths = fleet.script.posted.map(({ body }) => {
      const event: unknown = JSON.parse(new TextDecoder().decode(body));
      return z
        .object({ type: z.literal("dev.vmferry.request.received"), data: z.looseObject({ path: z.string() }) })
        .parse(event).data.path;
    });
    assert.ok(paths.includes("/v1/webhooks/ops"), paths.join());
  });

  test("a receiver that fails is shown with what waits; resumed, it is tried at once", async () => {
    await made("ops");
    await happens("e-1");
    await happens("e-2");
    fleet.script.receiverStatus = 500;
    await look();
    const { delivery } = await show("ops");
    assert.deepEqual(
      [delivery.delivered, delivery.failed, delivery.attempts, delivery.lastError, delivery.pending?.eventId],
      [0, 1, 1, "it answered 500", "e-1"],
    );
    assert.ok(delivery.lagMs >= chronicleSettleMs && delivery.nextAttemptAt !== null);
    await fleet.webhooks.runner.tick();
    assert.equal(fleet.script.posted.length, 1);
    fleet.script.receiverStatus = 200;
    await read(webhookRowSchema, await post("ops/resume"));
    await fleet.webhooks.runner.tick();
    assert.deepEqual(
      fleet.script.posted.map(({ headers }) => headers["webhook-id"]),
      ["e-1", "e-1", "e-2"],
    );
  });

  test("paused by a person or by 410 it keeps what happens for later", async () => {
    await made("ops");
    const paused = await read(webhookRowSchema, await post("ops/pause"));
    assert.deepEqual([paused.paused?.by, paused.paused?.reason], ["admin", "asked for"]);
    await happens("e-1");
    await look();
    assert.equal(fleet.script.posted.length, 0);
    fleet.script.receiverStatus = 410;
    await post("ops/resume");
    await look();
    const gone = await show("ops");
    assert.deepEqual([gone.paused?.by, gone.delivery.lastStatus], ["its receiver", 410]);
    assert.match(gone.paused?.reason ?? "", /410 Gone/);
    fleet.script.receiverStatus = 204;
    await look();
    assert.equal(fleet.script.posted.length, 1);
    await post("ops/resume");
    await look();
    assert.deepEqual([fleet.script.posted.length, (await show("ops")).delivery.delivered], [2, 1]);
  });

  test("replays since a time, and leaves out what lies before a later one", async () => {
    await made("ops");
    for (const id of ["e-1", "e-2", "e-3"]) {
      await happens(id);
      fleet.pass(60_000);
    }
    await look();
    const ids = () => fleet.script.posted.splice(0).map(({ headers }) => headers["webhook-id"]);
    assert.deepEqual(ids(), ["e-1", "e-2", "e-3"]);
    const since = new Date(Date.parse(fleet.ports.clock.now()) - chronicleSettleMs - 1 - 120_000).toISOString();
    await read(webhookRowSchema, await post("ops/replay", { since }));
    await look();
    assert.deepEqual(ids(), ["e-2", "e-3"]);
    await happens("e-4");
    fleet.pass(60_000);
    await read(webhookRowSchema, await post("ops/replay", { since: fleet.ports.clock.now() }));
    await happens("e-5");
    await look();
    assert.deepEqual(ids(), ["e-5"]);
    for (const bad of ["tomorrow", "2036-01-01T00:00:00Z", "2020-01-01T00:00:00Z"])
      assert.deepEqual(await refusal(await post("ops/replay", { since: bad })), [400, "request.malformed"]);
  });

  test("one that is deleted and made anew begins anew, with another secret", async () => {
    const first = await made("ops");
    await happens("e-1");
    fleet.script.receiverStatus = 500;
    await look();
    assert.equal((await fleet.ask("/v1/webhooks/ops", { method: "DELETE" })).status, 204);
    assert.deepEqual(await refusal(await fleet.ask("/v1/webhooks/ops")), [404, "request.notFound"]);
    assert.deepEqual(await fleet.webhooks.webhooks.deliveries(), []);
    const second = await made("ops");
    assert.notEqual(second.secret, first.secret);
    assert.deepEqual([second.delivery.failed, second.delivery.attempts], [0, 0]);
    fleet.script.posted.length = 0;
    await look();
    assert.equal(fleet.script.posted.length, 0);
  });
});

describe("trying and rotating", () => {
  test("a test says what the receiver answered, signed as events are; nothing of the delivery changes", async () => {
    const { secret } = await made("ops");
    await post("ops/pause");
    const before = await show("ops");
    for (const [status, taken] of [
      [200, true],
      [302, false],
      [500, false],
    ] as const) {
      fleet.script.receiverStatus = status;
      const tested = await read(webhookTestedSchema, await post("ops/test"));
      assert.deepEqual([tested.status, tested.taken, tested.error], [status, taken, null]);
      const posted = fleet.script.posted.pop();
      assert.ok(posted);
      assert.equal(posted.headers["webhook-id"], tested.eventId);
      assert.match(new TextDecoder().decode(posted.body), /"type":"dev\.vmferry\.webhook\.test"/);
      assert.deepEqual(await isSigned(posted, secret), [true]);
    }
    assert.deepEqual(await show("ops"), before);
  });

  test("both secrets sign during a rotation, then the new one alone", async () => {
    const { secret: former } = await made("ops");
    const rotated = await read(webhookSecretMadeSchema, await post("ops/secret", { overlapMs: 3_600_000 }));
    assert.notEqual(rotated.secret, former);
    assert.deepEqual(
      rotated.secrets.map(({ until }) => until),
      [null, new Date(Date.parse(fleet.ports.clock.now()) + 3_600_000).toISOString()],
    );
    const signs = async () => {
      await post("ops/test");
      const posted = fleet.script.posted.pop();
      assert.ok(posted);
      return isSigned(posted, rotated.secret, former);
    };
    assert.deepEqual(await signs(), [true, true]);
    fleet.pass(3_600_000);
    assert.deepEqual(await signs(), [true, false]);
    assert.equal((await show("ops")).secrets.length, 1);
    const at = await read(webhookSecretMadeSchema, await post("ops/secret", { overlapMs: 0 }));
    assert.equal(at.secrets.length, 1);
    assert.deepEqual(await refusal(await post("ops/secret", { overlapMs: 8 * 86_400_000 })), [
      400,
      "request.malformed",
    ]);
  });
});

test("no secret is in a store, a log, an event or an answer but the one that made it; no URL is in a log or an event (I9)", async () => {
  const secrets = [(await made("ops")).secret];
  secrets.push((await read(webhookSecretMadeSchema, await post("ops/secret", {}))).secret);
  await happens("e-1");
  fleet.script.receiverStatus = 500;
  await look();
  const answers = [
    await put("ops", { url, types: ["host"] }),
    await fleet.ask("/v1/webhooks"),
    await fleet.ask("/v1/webhooks/ops"),
    await post("ops/test"),
    await post("ops/pause"),
    await post("ops/resume"),
    await post("ops/replay", { since: fleet.ports.clock.now() }),
    await put("ops", { url: "https://127.0.0.1/" }),
  ];
  fleet.script.receiverStatus = 410;
  await happens("e-2");
  await look();
  const { webhooks } = fleet.webhooks;
  const stored = JSON.stringify([await webhooks.list(), await webhooks.deliveries()]);
  const events = JSON.stringify(await fleet.ports.chronicle.after({ at: null, until: null, limit: 100 }));
  const said = [
    ...(await Promise.all(answers.map((answer) => answer.text()))),
    stored,
    events,
    ...fleet.script.logged,
  ].join("\n");
  assert.match(said, /410 Gone/);
  for (const secret of secrets)
    for (const part of [secret, secret.slice("whsec_".length), Buffer.from(secret.slice(6), "base64").toString("hex")])
      assert.ok(!said.includes(part), "a secret is told");
  for (const line of [events, ...fleet.script.logged]) assert.ok(!line.includes("receiver.example"), line);
  const headers = fleet.script.posted.map((posted) => JSON.stringify(posted.headers)).join();
  for (const secret of secrets) assert.ok(!headers.includes(secret.slice(6)));
});
