/** The manual way over HTTP, and the OpenAPI document. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { type BundleTaskResource, bundleTaskResourceSchema, uploadGrantSchema } from "#functions/http/bundle-resource";
import { routes } from "#test/fake/memory-document";
import { domainNamed, hostId, type MemoryFleet, memoryFleet, refusal, webUuid } from "#test/fake/memory-fleet";
import { bundleRef } from "#test/fake/migration";

let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
  await fleet.addHost(1, {}, [domainNamed("web")]);
  await fleet.addHost(2);
});

const taskOf = async (response: Response): Promise<BundleTaskResource> =>
  bundleTaskResourceSchema.parse(await response.json());
const show = async (id: string) => taskOf(await fleet.ask(`/v1/bundles/${id}`));
const content = (id: string) => fleet.ask(`/v1/bundles/${id}/content`);

describe("export", () => {
  const start = (body: object = { domain: "web", host: "host1" }, headers: Record<string, string> = {}) =>
    fleet.ask("/v1/bundles", { body, headers });

  test("runs as a task whose content is a redirect to a short-lived URL", async () => {
    const response = await start();
    assert.equal(response.status, 202);
    const task = await taskOf(response.clone());
    assert.equal(response.headers.get("location"), `/v1/bundles/${task.id}`);
    assert.deepEqual(await refusal(await content(task.id)), [409, "request.conflict"]);
    await fleet.serve();
    const done = await show(task.id);
    assert.deepEqual([done.status, done.bundle, done.host], ["completed", bundleRef, "host1"]);
    const found = await content(task.id);
    assert.equal(found.status, 302);
    assert.equal(found.headers.get("location"), `http://api.test/bucket/${bundleRef.key}?signature=get`);
  });

  test("that fails says why and has no content", async () => {
    const { id } = await taskOf(await start());
    const fault = { code: "snapshot.changed", cause: "another one came", action: "again", retry: "safe" } as const;
    await fleet.serve({ export: fault });
    const task = await show(id);
    assert.deepEqual([task.status, task.error], ["failed", fault]);
    assert.deepEqual(await refusal(await content(id)), [409, "request.conflict"]);
  });

  test("repeated with its key is the same task; a busy domain and an offline host are refused", async () => {
    const key = { "idempotency-key": "k" };
    const first = await taskOf(await start(undefined, key));
    assert.equal((await taskOf(await start(undefined, key))).id, first.id);
    assert.deepEqual(await refusal(await start()), [409, "domain.busy"]);
    await fleet.serve();
    fleet.pass(60_000);
    assert.deepEqual(await refusal(await start()), [409, "host.offline"]);
    assert.equal((await taskOf(await start(undefined, key))).status, "completed");
  });

  test("of what is not there is 404", async () => {
    assert.deepEqual(await refusal(await start({ domain: "nope" })), [404, "domain.absent"]);
    assert.deepEqual(await refusal(await start({ domain: "web", host: "nope" })), [404, "host.absent"]);
    for (const id of ["b_01JD0000000000000000000077", "x"]) {
      assert.deepEqual(await refusal(await fleet.ask(`/v1/bundles/${id}`)), [404, "request.notFound"]);
      assert.deepEqual(await refusal(await content(id)), [404, "request.notFound"]);
    }
  });
});

describe("restore", () => {
  const domain = { uuid: webUuid, name: "web" };
  const restore = (fields: object = {}) =>
    fleet.ask("/v1/bundle-restores", { body: { host: "host2", domain, bundle: bundleRef, ...fields } });

  test("asks for a place, then sends one command to the host", async () => {
    const upload = await fleet.ask("/v1/bundle-uploads", {
      body: { sha256: bundleRef.sha256, bytes: bundleRef.bytes },
    });
    const grant = uploadGrantSchema.parse(await upload.json());
    assert.deepEqual([grant.method, grant.key, grant.present], ["PUT", bundleRef.key, true]);
    const task = await taskOf(await restore());
    const [pushed] = fleet.script.pushed;
    assert.deepEqual(pushed?.message.type === "command" ? [pushed.hostId, pushed.message.command.kind] : null, [
      hostId(2),
      "restoreBundle",
    ]);
    await fleet.serve();
    assert.equal((await show(task.id)).status, "completed");
  });

  test("goes to a cordoned host as well: it brings no domain", async () => {
    await fleet.ports.hosts.setCordoned(hostId(2), true);
    assert.equal((await restore()).status, 202);
  });

  test("refuses what was not uploaded, has another size, or is named by another key", async () => {
    const bundle = { ...bundleRef, sha256: "e".repeat(64), key: `bundles/${"e".repeat(64)}` };
    assert.deepEqual(await refusal(await restore({ bundle })), [503, "bundle.unreachable"]);
    const smaller = { ...bundleRef, bytes: bundleRef.bytes - 1 };
    assert.deepEqual(await refusal(await restore({ bundle: smaller })), [422, "bundle.altered"]);
    fleet.script.bucket.set("cookies/other", bundleRef.bytes);
    const elsewhere = { ...bundleRef, key: "cookies/other" };
    assert.deepEqual(await refusal(await restore({ bundle: elsewhere })), [503, "bundle.unreachable"]);
    assert.deepEqual(await refusal(await restore({ host: "nope" })), [404, "host.absent"]);
    assert.deepEqual(await refusal(await restore({ domain: "web" })), [400, "request.malformed"]);
    const huge = await fleet.ask("/v1/bundle-uploads", { body: { sha256: bundleRef.sha256, bytes: 2 ** 40 } });
    assert.deepEqual(await refusal(huge), [400, "request.malformed"]);
  });
});

describe("the document", () => {
  const documentSchema = z.object({
    openapi: z.literal("3.1.0"),
    paths: z.record(
      z.string(),
      z.record(
        z.string(),
        z.object({
          operationId: z.string(),
          parameters: z.array(z.object({ name: z.string(), in: z.string(), required: z.boolean() })),
          responses: z.record(z.string(), z.looseObject({ description: z.string() })),
          security: z.array(z.unknown()),
        }),
      ),
    ),
  });
  const read = async () => documentSchema.parse(await (await fleet.ask("/v1/openapi.json", { token: null })).json());

  test("has every route that the app serves, and no other", async () => {
    const { paths } = await read();
    const inDocument = Object.entries(paths).flatMap(([path, operations]) =>
      Object.keys(operations).map((method) => `${method.toUpperCase()} ${path}`),
    );
    const served = fleet.app.routes
      .filter(({ method }) => method !== "ALL")
      .map(({ method, path }) => `${method} ${path.replaceAll(/:([a-z]+)/g, "{$1}")}`);
    assert.deepEqual(inDocument.sort(), served.sort());
    assert.equal(served.length, routes.length);
  });

  test("names each operation once, each path parameter, and a refusal for each that needs a token", async () => {
    const { paths } = await read();
    const ids = new Set<string>();
    for (const [path, operations] of Object.entries(paths))
      for (const { operationId, parameters, responses, security } of Object.values(operations)) {
        assert.ok(!ids.has(operationId), operationId);
        ids.add(operationId);
        const inPath = [...path.matchAll(/\{([a-z]+)\}/g)].map(([, name]) => name);
        assert.deepEqual(
          parameters.filter((one) => one.in === "path").map(({ name }) => name),
          inPath,
        );
        if (security.length > 0) assert.ok("401" in responses && "403" in responses, path);
        assert.ok("500" in responses, path);
      }
  });

  test("describes bodies by the schemas that decode them: unknown keys refused, defaults shown", async () => {
    const text = await (await fleet.ask("/v1/openapi.json", { token: null })).text();
    const schemaOf = z.object({
      paths: z.object({
        "/v1/migrations": z.object({
          post: z.object({
            requestBody: z.object({ content: z.object({ "application/json": z.object({ schema: z.unknown() }) }) }),
          }),
        }),
      }),
    });
    const { schema } = schemaOf.parse(JSON.parse(text)).paths["/v1/migrations"].post.requestBody.content[
      "application/json"
    ];
    const { required, additionalProperties, properties } = z
      .object({
        required: z.array(z.string()),
        additionalProperties: z.boolean(),
        properties: z.record(z.string(), z.unknown()),
      })
      .parse(schema);
    assert.deepEqual(required, ["domain", "destination"]);
    assert.equal(additionalProperties, false);
    assert.deepEqual(Object.keys(properties), [
      "domain",
      "source",
      "destination",
      "accept",
      "autoConverge",
      "bandwidthMiBps",
    ]);
  });
});
