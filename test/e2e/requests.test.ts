/**
 * Requests at the real Worker, over HTTP as a script sends them: what is malformed, too large, unauthorised or repeated, and
 * the streams and documents that are served. Real shims of two real hosts are behind it; the domain moved is shut off, which
 * takes every path but the guest's. Then shims of another make: one that speaks another protocol, one that knows less.
 */
import assert from "node:assert/strict";
import { request as httpRequest } from "node:http";
import { after, before, describe, test } from "node:test";
import * as z from "zod/mini";
import type { Host } from "#lab/host";
import { protocolFeatures } from "#protocol/message";
import { type Migration, migrationSchema } from "../../functions/http/migration-resource.ts";
import { type Problem, problemMediaType, problemSchema } from "../../functions/http/problem.ts";
import { FakeShim } from "./fake-shim.ts";
import { eventually, refusalOf, rows, World } from "./world.ts";

const timeout = 600_000;
const domain = "still";

describe("requests at the real Worker", { timeout }, () => {
  let world: World;
  let h1: Host;
  let h2: Host;
  /** Two API tokens: two principals. */
  let alice: string;
  let bob: string;

  before(async () => {
    world = await World.start({ hosts: 2 });
    [h1, h2] = [world.lab.host(0), world.lab.host(1)];
    await world.define(h1, domain);
    await h1.virsh.snapshotCreate(domain, "one");
    await h1.virsh.snapshotCreate(domain, "two");
    await world.heardOf(domain, [h1]);
    [alice, bob] = [await apiToken("alice"), await apiToken("bob")];
  });
  after(() => world?.stop());

  const json = { "content-type": "application/json" };

  async function apiToken(name: string): Promise<string> {
    const response = await world.ask("/v1/api-tokens", {
      method: "POST",
      headers: json,
      body: JSON.stringify({ name }),
    });
    assert.equal(response.status, 201);
    return z.object({ token: z.string() }).parse(await response.json()).token;
  }

  interface Post {
    token?: string | null;
    key?: string;
    headers?: Record<string, string>;
  }

  const post = (path: string, body: unknown, { token, key, headers = {} }: Post = {}) =>
    world.ask(path, {
      method: "POST",
      headers: { ...json, ...(key === undefined ? {} : { "idempotency-key": key }), ...headers },
      body: typeof body === "string" ? body : JSON.stringify(body),
      ...(token === undefined ? {} : { token }),
    });

  /** A problem as RFC 9457 wants it, with code, cause and action. */
  async function problem(response: Response, status: number, code: string): Promise<Problem> {
    const text = await response.text();
    assert.equal(response.status, status, text);
    assert.equal(response.headers.get("content-type"), problemMediaType);
    const found = problemSchema.parse(JSON.parse(text));
    assert.equal(found.code, code, text);
    assert.equal(found.status, status);
    for (const said of [found.cause, found.action, found.title, found.type]) assert.notEqual(said, "");
    return found;
  }

  async function ended(id: string): Promise<Migration> {
    let migration: Migration | undefined;
    await eventually(`${id} has ended`, async () => {
      migration = migrationSchema.parse(await world.get(`/v1/migrations/${id}`));
      return migration.step === "ended";
    });
    assert.ok(migration);
    return migration;
  }

  const wish = (destination = h2.name) => ({ domain, destination });
  const migrationCount = async () => rows(await world.get("/v1/migrations")).length;

  test("bodies that are wrong are refused with what is wrong, and make nothing", async () => {
    const cases: [unknown, RegExp][] = [
      ["", /not JSON/],
      ["{", /not JSON/],
      ["null", /object|type/],
      ["[]", /object|type/],
      [{}, /`domain`/],
      [{ domain }, /`destination`/],
      [{ ...wish(), force: true }, /`force`/],
      [{ ...wish(), domain: 7 }, /`domain`/],
      [{ ...wish(), domain: "" }, /`domain`/],
      [{ ...wish(), domain: "d".repeat(256) }, /`domain`/],
      [{ ...wish(), accept: "storage.cacheMode" }, /`accept`/],
      [{ ...wish(), accept: ["everything"] }, /`accept/],
      [{ ...wish(), bandwidthMiBps: 0 }, /`bandwidthMiBps`/],
      [{ ...wish(), bandwidthMiBps: 1.5 }, /`bandwidthMiBps`/],
    ];
    for (const [body, cause] of cases) {
      const refused = await problem(await post("/v1/migrations", body), 400, "request.malformed");
      assert.match(refused.cause, cause, JSON.stringify(body));
    }
    assert.equal(await migrationCount(), 0);
  });

  test("a wrong content type is refused", async () => {
    for (const type of ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
      await problem(
        await post("/v1/migrations", wish(), { headers: { "content-type": type } }),
        400,
        "request.malformed",
      );
    assert.equal(await migrationCount(), 0);
  });

  test("an oversized body is refused, whether its length is said or not", async () => {
    const body = JSON.stringify({ ...wish(), domain: "d".repeat(70 * 1024) });
    await problem(await post("/v1/migrations", body), 413, "request.tooLarge");
    await problem(
      await post("/v1/migrations", `${JSON.stringify(wish())}${" ".repeat(70 * 1024)}`),
      413,
      "request.tooLarge",
    );
    // Chunked: no Content-Length to go by.
    const { status, text } = await chunked("/v1/migrations", Array(8).fill("x".repeat(16 * 1024)));
    assert.equal(status, 413, text);
    assert.equal(problemSchema.parse(JSON.parse(text)).code, "request.tooLarge");
    assert.equal(await migrationCount(), 0);
  });

  async function chunked(path: string, chunks: string[]): Promise<{ status: number; text: string }> {
    const headers = { ...json, authorization: `Bearer ${alice}` };
    return new Promise((resolve, reject) => {
      const sent = httpRequest(`${world.fleet.url}${path}`, { method: "POST", headers }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => {
          text += chunk;
        });
        response.once("end", () => resolve({ status: response.statusCode ?? 0, text }));
      });
      sent.once("error", reject);
      for (const chunk of chunks) sent.write(chunk);
      sent.end();
    });
  }

  test("without a token, with a wrong one, and with one for something else", async () => {
    for (const path of ["/v1/hosts", "/v1/domains", "/v1/migrations", "/metrics"]) {
      const refused = await problem(await world.ask(path, { token: null }), 401, "request.unauthorised");
      assert.match(refused.cause, /[Nn]o token/);
      const wrong = `${alice.slice(0, -4)}AAAA`;
      await problem(await world.ask(path, { token: wrong }), 401, "request.unauthorised");
    }
    await problem(await post("/v1/migrations", wish(), { token: null }), 401, "request.unauthorised");
    const basic = await world.ask("/v1/hosts", { token: null, headers: { authorization: "Basic YTpi" } });
    await problem(basic, 401, "request.unauthorised");
    const joinToken = (await world.fleet.mustRun(["join-token", "create"])).stdout.trim().split(/\s+/).at(-1) ?? "";
    await problem(await world.ask("/v1/hosts", { token: joinToken }), 403, "request.forbidden");
    await problem(await post("/v1/join-tokens", {}, { token: alice }), 403, "request.forbidden");
    assert.equal(await migrationCount(), 0);
  });

  test("the command line says the same of a wrong token, with an exit code of its own", async () => {
    const env = { ...world.fleet.env };
    try {
      Object.assign(world.fleet.env, { VMFERRY_URL: world.fleet.url, VMFERRY_TOKEN: "vmk_wrong" });
      const finished = await world.fleet.run(["hosts"]);
      assert.equal(finished.code, 77);
      assert.equal(refusalOf(finished).code, "request.unauthorised");
    } finally {
      for (const name of ["VMFERRY_URL", "VMFERRY_TOKEN"]) delete world.fleet.env[name];
      assert.deepEqual(world.fleet.env, env);
    }
  });

  test("ids that are none are not found, and paths lead nowhere else", async () => {
    const ids = [
      "m_1",
      "m_01HZZZZZZZZZZZZZZZZZZZZZZZ",
      "..%2f..%2fetc",
      "%00",
      "m_01hzzzzzzzzzzzzzzzzzzzzzzz",
      "'; --",
    ];
    for (const id of ids) {
      for (const rest of ["", "/events"])
        await problem(await world.ask(`/v1/migrations/${id}${rest}`), 404, "request.notFound");
      await problem(await post(`/v1/migrations/${id}/cancel`, {}), 404, "request.notFound");
      await problem(await world.ask(`/v1/bundles/${id}`), 404, "request.notFound");
    }
    await problem(await world.ask("/v1/hosts/h9"), 404, "host.absent");
    await problem(await world.ask(`/v1/hosts/${h1.name}/domains/nobody`), 404, "domain.absent");
    await problem(await world.ask("/v1/nothing"), 404, "request.notFound");
    await problem(await world.ask("/v1/migrations?limit=0"), 400, "request.malformed");
    await problem(await world.ask("/v1/migrations?limit=1&limit=2"), 400, "request.malformed");
    await problem(await world.ask("/v1/migrations?colour=red"), 400, "request.malformed");
  });

  test("a key makes one migration however often and by whomever else it is sent", async () => {
    const key = crypto.randomUUID();
    const answers = await Promise.all([1, 2, 3].map(() => post("/v1/migrations", wish(), { token: alice, key })));
    const ids = new Set<string>();
    for (const answer of answers) {
      assert.equal(answer.status, 202);
      const { id } = migrationSchema.parse(await answer.json());
      assert.equal(answer.headers.get("location"), `/v1/migrations/${id}`);
      ids.add(id);
    }
    assert.equal(ids.size, 1, `one key made ${[...ids].join(", ")}`);
    const [id = ""] = ids;

    const other = await problem(
      await post("/v1/migrations", { ...wish(), bandwidthMiBps: 5 }, { token: alice, key }),
      422,
      "idempotency.mismatch",
    );
    assert.match(other.cause, /Idempotency-Key/);

    assert.equal((await ended(id)).status, "completed");
    await world.heardOf(domain, [h2]);
    // After its end, and though the domain is somewhere else now.
    const late = await post("/v1/migrations", wish(), { token: alice, key });
    assert.equal(late.status, 202);
    assert.equal(migrationSchema.parse(await late.json()).id, id);
    assert.equal(await migrationCount(), 1);

    // Another's key is simply another key: Bob's request is his own, and refused or served for its own sake.
    const bobs = await post("/v1/migrations", wish(h1.name), { token: bob, key });
    assert.equal(bobs.status, 202);
    const bobsId = migrationSchema.parse(await bobs.json()).id;
    assert.notEqual(bobsId, id);
    assert.equal((await ended(bobsId)).status, "completed");
    await world.heardOf(domain, [h1]);
    assert.equal(await migrationCount(), 2);
  });

  test("keys that cannot be one are refused", async () => {
    for (const key of ["k".repeat(256), "two words"])
      await problem(await post("/v1/migrations", wish(), { key }), 400, "request.malformed");
  });

  test("events are resumed where they were left, and end with the end", async () => {
    const answer = await post("/v1/migrations", wish());
    assert.equal(answer.status, 202);
    const { id } = migrationSchema.parse(await answer.json());
    // Left after the first event, as by a cut connection.
    const leaving = new AbortController();
    let seen = 0;
    const stream = await world.ask(`/v1/migrations/${id}/events`, { signal: leaving.signal });
    assert.equal(stream.status, 200);
    assert.match(stream.headers.get("content-type") ?? "", /^text\/event-stream/);
    for await (const event of events(stream)) {
      if (event.id === undefined) continue;
      seen = event.id;
      break;
    }
    leaving.abort();
    assert.ok(seen > 0);

    const resumed = await world.ask(`/v1/migrations/${id}/events`, { headers: { "last-event-id": String(seen) } });
    assert.equal(resumed.status, 200);
    const rest: { id: number; name: string; migration: Migration }[] = [];
    for await (const event of events(resumed))
      if (event.id !== undefined)
        rest.push({ id: event.id, name: event.name, migration: migrationSchema.parse(JSON.parse(event.data)) });
    assert.ok(rest.length > 0);
    for (const [index, event] of rest.entries()) {
      assert.ok(event.id > (rest[index - 1]?.id ?? seen), "an event came twice or went back");
      assert.equal(event.migration.version, event.id);
      assert.equal(event.name, index === rest.length - 1 ? "ended" : "migration");
    }
    const last = rest.at(-1);
    assert.equal(last?.migration.status, "completed");

    const done = await world.ask(`/v1/migrations/${id}/events`, { headers: { "last-event-id": String(last?.id) } });
    assert.equal(done.status, 204);
    await world.heardOf(domain, [h2]);
  });

  test("documents and numbers are served", async () => {
    const health = await world.ask("/healthz", { token: null });
    assert.equal(health.status, 200);
    assert.equal(z.object({ status: z.string() }).parse(await health.json()).status, "ok");

    const answer = await world.ask("/v1/openapi.json", { token: null });
    assert.equal(answer.status, 200);
    const document = z
      .object({ openapi: z.string(), paths: z.record(z.string(), z.record(z.string(), z.unknown())) })
      .parse(await answer.json());
    assert.match(document.openapi, /^3\.1/);
    for (const path of [
      "/v1/migrations",
      "/v1/migrations/{id}",
      "/v1/migrations/{id}/events",
      "/v1/checks",
      "/v1/hosts",
    ])
      assert.ok(document.paths[path], `${path} is not documented`);

    const metrics = await world.ask("/metrics");
    assert.equal(metrics.status, 200);
    const text = await metrics.text();
    assert.match(text, /^vmferry_active_migrations 0$/m);
    assert.match(text, /^vmferry_http_requests_total\{.*path="\/v1\/migrations".*\} \d+$/m);
    assert.ok(!text.includes(alice), "a token stands in the metrics");
  });

  test("a revoked token opens nothing any more", async () => {
    const tokens = rows(await world.get("/v1/api-tokens"));
    const bobs = tokens.find(({ name }) => name === "bob");
    assert.ok(bobs);
    assert.ok(!JSON.stringify(tokens).includes(bob), "a list of tokens shows a secret");
    assert.equal((await world.ask("/v1/hosts", { token: bob })).status, 200);
    assert.equal((await world.ask(`/v1/api-tokens/${String(bobs.id)}`, { method: "DELETE" })).status, 204);
    await problem(await world.ask("/v1/hosts", { token: bob }), 401, "request.unauthorised");
  });

  describe("shims of another make", () => {
    const fakes: FakeShim[] = [];
    after(async () => {
      for (const fake of fakes) await fake.close();
    });

    async function fake(name: string): Promise<FakeShim> {
      const joinToken = (await world.fleet.mustRun(["join-token", "create"])).stdout.trim().split(/\s+/).at(-1) ?? "";
      const made = await FakeShim.enrol({ url: world.fleet.url, joinToken, name });
      fakes.push(made);
      return made;
    }

    test("one that speaks a later protocol only is told so and not let in", async () => {
      const later = await fake("later");
      const answer = await later.connect({ protocols: { min: 2, max: 3 } });
      assert.equal(answer.type, "refused");
      assert.ok(answer.type === "refused");
      assert.equal(answer.fault.code, "shim.incompatible");
      assert.match(answer.fault.cause, /2 to 3/);
      assert.notEqual(answer.fault.action, "");
      const finished = await world.fleet.run(["migrate", domain, "--to", "later"]);
      assert.equal(finished.code, 3);
      assert.equal(refusalOf(finished).code, "host.offline");
    });

    test("one whose signature is not its host's is not let in", async () => {
      const forger = await fake("forger");
      const answer = await forger.connect({ signature: Buffer.alloc(64).toString("base64url") });
      assert.ok(answer.type === "refused");
      assert.equal(answer.fault.code, "shim.unauthorised");
    });

    test("one that lacks a feature connects, and a migration to it is refused before anything is touched", async () => {
      const lacking = await fake("lacking");
      const answer = await lacking.connect({ features: protocolFeatures.filter((feature) => feature !== "bundle.1") });
      assert.equal(answer.type, "welcome");
      const before = await world.seen(h2);
      const sentBefore = lacking.received.length;
      const journal = await world.get("/v1/migrations");
      for (const words of [
        ["check", domain, "--to", "lacking"],
        ["migrate", domain, "--to", "lacking"],
      ]) {
        const finished = await world.fleet.run(words);
        assert.equal(finished.code, 3, finished.stdout + finished.stderr);
        assert.match(finished.stdout + finished.stderr, /shim\.incompatible.*lacking.*bundle\.1/);
      }
      await problem(await post("/v1/migrations", { domain, destination: "lacking" }), 409, "shim.incompatible");
      assert.deepEqual(await world.get("/v1/migrations"), journal, "a migration was made");
      assert.equal(lacking.received.length, sentBefore, "the shim was sent something");
      assert.deepEqual(await world.seen(h2), before);
    });

    test("the same shim with all features is not refused for them", async () => {
      const [lacking] = fakes.slice(-1);
      assert.ok(lacking);
      assert.equal((await lacking.connect()).type, "welcome");
      const check = await world.json(["check", domain, "--to", "lacking"]);
      assert.ok(!check.finished.stdout.includes("shim.incompatible"));
    });
  });
});

interface ServerEvent {
  id: number | undefined;
  name: string;
  data: string;
}

/** Server-sent events by hand, so that the CLI's own reader cannot hide a fault in them. */
async function* events(response: Response): AsyncGenerator<ServerEvent> {
  assert.ok(response.body);
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of response.body) {
    text += decoder.decode(chunk, { stream: true });
    const blocks = text.split("\n\n");
    text = blocks.pop() ?? "";
    for (const block of blocks) {
      const field = (name: string) => new RegExp(`^${name}: (.*)$`, "m").exec(block)?.[1];
      const id = field("id");
      const name = field("event");
      if (name !== undefined) yield { id: id === undefined ? undefined : Number(id), name, data: field("data") ?? "" };
    }
  }
  assert.equal(text, "", "the stream ended in the middle of an event");
}
