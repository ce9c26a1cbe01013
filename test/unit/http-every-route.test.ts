/**
 * What holds for every route alike, driven by the routes themselves: a route that is added is tested here at once. Its
 * example below is needed for the cases that must get past validation.
 */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { ruleSchema } from "#core/rule";
import { bodyBytesMax } from "#functions/http/limits";
import type { Ports } from "#functions/ports";
import { Fault } from "#protocol/fault";
import { routes } from "#test/fake/memory-document";
import { type MemoryFleet, memoryFleet, refusal, webUuid } from "#test/fake/memory-fleet";
import { bundleRef } from "#test/fake/migration";

let fleet: MemoryFleet;
/** A rule that each of its routes finds. */
const rule = {
  name: "rack-b",
  when: { kind: "schedule", cron: "0 2 * * SUN#1", timeZone: "Europe/Berlin", window: "3h" },
  which: { labels: { rack: "b" } },
};
beforeEach(async () => {
  fleet = await memoryFleet();
  await fleet.rules.book.put(ruleSchema.parse(rule), "test", null);
  await fleet.webhooks.book.put("rack-b", { url: "https://example.com/" }, "test");
});

/** A body that each route with a body takes. */
const examples: Record<string, object> = {
  "PUT /v1/rules/:name": rule,
  "PATCH /v1/rules/:name": { paused: true },
  "POST /v1/rules/:name/run": {},
  "POST /v1/rules/:name/credentials": {},
  "PUT /v1/webhooks/:name": { url: "https://example.com/hook", types: ["migration"] },
  "POST /v1/webhooks/:name/secret": {},
  "POST /v1/webhooks/:name/replay": { since: "2026-11-22T09:00:00Z" },
  "POST /v1/join-tokens": {},
  "POST /v1/api-tokens": { name: "ci" },
  "POST /v1/enrolments": {
    token: `vmj_01JE0000000000000000000099_${"a".repeat(43)}`,
    name: "alpha",
    publicKey: "A".repeat(43),
  },
  "PATCH /v1/hosts/:host": { cordoned: true },
  "POST /v1/checks": { domain: "web" },
  "POST /v1/migrations": { domain: "web", destination: "host2" },
  "POST /v1/migrations/:id/resolve": { fenced: "host2", reason: "powered off" },
  "POST /v1/evacuations": { host: "host1", to: ["host2"], policy: { outMax: 3 }, deadline: "2h" },
  "POST /v1/evacuations/:id/undo": { deadline: "2026-11-23T10:00:00Z" },
  "POST /v1/hosts/:host/restore": { skip: ["web"] },
  "POST /v1/bundles": { domain: "web" },
  "POST /v1/bundle-uploads": { sha256: bundleRef.sha256, bytes: bundleRef.bytes },
  "POST /v1/bundle-restores": { host: "host1", domain: { uuid: webUuid, name: "web" }, bundle: bundleRef },
};

const pathOf = (path: string) =>
  path
    .replace(":host", "host1")
    .replace(":name", "rack-b")
    .replace(":rule", "rack-b")
    .replace(":uuid", webUuid)
    .replace(":id", `${/bundles/.test(path) ? "b" : /evacuations/.test(path) ? "e" : "m"}_01JD0000000000000000000077`);

/** Every port fails; the clock, the ids and the log are no ports that can. */
function failing(ports: Ports, error: () => Error): void {
  for (const port of [
    ports.migrations,
    ports.tasks,
    ports.evacuations,
    ports.chronicle,
    ports.hosts,
    ports.tokens,
    ports.bundles,
    ports.sockets,
    fleet.rules.rules,
    fleet.webhooks.webhooks,
  ])
    for (const name of methodsOf(port))
      Object.defineProperty(port, name, {
        value: async () => {
          throw error();
        },
      });
}
const methodsOf = (port: object): string[] => [
  ...Object.getOwnPropertyNames(port),
  ...Object.getOwnPropertyNames(Object.getPrototypeOf(port)).filter(
    (name) => name !== "constructor" && !Object.hasOwn(Object.prototype, name),
  ),
];

async function joinToken(): Promise<string> {
  const made = await fleet.ask("/v1/join-tokens", { body: {} });
  return z.object({ token: z.string() }).parse(await made.json()).token;
}

for (const route of routes) {
  const name = `${route.method} ${route.path}`;
  const path = pathOf(route.path);
  const example = examples[name];
  const ask = (more: Parameters<MemoryFleet["ask"]>[1] = {}) =>
    fleet.ask(path, { method: route.method, ...(example === undefined ? {} : { body: example }), ...more });

  describe(name, () => {
    if (route.access !== "open") {
      test("without a token: 401", async () => {
        assert.deepEqual(await refusal(await ask({ token: null })), [401, "request.unauthorised"]);
      });
      test("with a join token: 403", async () => {
        assert.deepEqual(await refusal(await ask({ token: await joinToken() })), [403, "request.forbidden"]);
      });
    }
    if (route.body !== null) {
      test("has an example here that it takes", () => {
        assert.ok(route.body?.safeParse(example).success);
      });
      test("with an oversized body: 413; with an unknown key: 400 that names it", async () => {
        const raw = JSON.stringify({ pad: "x".repeat(bodyBytesMax) });
        assert.deepEqual(await refusal(await ask({ raw })), [413, "request.tooLarge"]);
        const response = await ask({ body: { ...example, surprise: 1 } });
        assert.match(await response.clone().text(), /`surprise`/);
        assert.deepEqual(await refusal(response), [400, "request.malformed"]);
      });
    }
    if (route.query !== null)
      test("with an unknown parameter: 400", async () => {
        assert.deepEqual(await refusal(await fleet.ask(`${path}?surprise=1`, { method: route.method })), [
          400,
          "request.malformed",
        ]);
      });
    if (route.idempotent)
      test("with a key that was used for another body: 422", async () => {
        const headers = { "idempotency-key": "k" };
        await ask({ headers });
        await fleet.ports.migrations.bindKey({ owner: "admin", key: "used", bodySha256: "other", resource: "x" });
        assert.deepEqual(await refusal(await ask({ headers: { "idempotency-key": "used" } })), [
          422,
          "idempotency.mismatch",
        ]);
      });
    if (route.access !== "open" || route.body !== null) {
      test("when everything behind it fails: 500 that says nothing of it", async () => {
        failing(fleet.ports, () => new Error("hunter2 in table vmferry-prod"));
        const response = await ask();
        assert.ok(!/hunter2|vmferry-prod/.test(await response.clone().text()));
        assert.deepEqual(await refusal(response), [500, "internal"]);
      });
      test("when the store does not answer: 503 with Retry-After", async () => {
        const away = { code: "store.unreachable", cause: "It is away.", action: "Wait.", retry: "safe" } as const;
        failing(fleet.ports, () => new Fault(away));
        const response = await ask();
        assert.ok(response.headers.has("retry-after"));
        assert.deepEqual(await refusal(response), [503, "store.unreachable"]);
      });
    }
  });
}
