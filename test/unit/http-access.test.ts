/** Who may do what: tokens, their ends and scopes, enrolment, and what a refusal gives away. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { bodyBytesMax } from "#functions/http/limits";
import { mintedTokenSchema } from "#functions/http/token-resource";
import { Fault } from "#protocol/fault";
import { adminToken, domainNamed, hostId, type MemoryFleet, memoryFleet, refusal } from "#test/fake/memory-fleet";

let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
});

const key = (letter: string) => `${letter.repeat(42)}A`;
const pageSchema = z.object({ items: z.array(z.unknown()), cursor: z.nullable(z.string()) });

async function mint(path: string, body: unknown, headers: Record<string, string> = {}) {
  const response = await fleet.ask(path, { body, headers });
  assert.equal(response.status, 201);
  return mintedTokenSchema.parse(await response.json());
}
const textOf = async (path: string, body: unknown) => {
  const { token } = await mint(path, body);
  assert.ok(token);
  return token;
};

describe("a token", () => {
  for (const [what, headers] of [
    ["none", {}],
    ["another scheme", { authorization: "Basic YWRtaW46YWRtaW4=" }],
    ["nonsense", { authorization: "Bearer nonsense" }],
    [
      "one of our form that was never made",
      { authorization: `Bearer vmk_01JE0000000000000000000099_${"a".repeat(43)}` },
    ],
    ["two words", { authorization: `Bearer ${adminToken} x` }],
  ] as const)
    test(`${what}: 401 with the scheme to use`, async () => {
      const response = await fleet.ask("/v1/hosts", { token: null, headers });
      assert.equal(response.headers.get("www-authenticate"), "Bearer");
      assert.deepEqual(await refusal(response), [401, "request.unauthorised"]);
    });

  test("of the API opens the API until it expires or is revoked", async () => {
    const short = await mint("/v1/api-tokens", { name: "ci", ttlMs: 60_000 });
    const revoked = await mint("/v1/api-tokens", { name: "old" });
    assert.ok(short.token && revoked.token);
    assert.match(short.token, /^vmk_[0-9A-Z]{26}_[A-Za-z0-9_-]{43}$/);
    assert.equal((await fleet.ask("/v1/hosts", { token: short.token })).status, 200);
    assert.equal((await fleet.ask("/v1/hosts", { token: revoked.token })).status, 200);
    assert.equal((await fleet.ask(`/v1/api-tokens/${revoked.id}`, { method: "DELETE" })).status, 204);
    assert.deepEqual(await refusal(await fleet.ask("/v1/hosts", { token: revoked.token })), [
      401,
      "request.unauthorised",
    ]);
    fleet.pass(59_999);
    assert.equal((await fleet.ask("/v1/hosts", { token: short.token })).status, 200);
    fleet.pass(1);
    assert.deepEqual(await refusal(await fleet.ask("/v1/hosts", { token: short.token })), [
      401,
      "request.unauthorised",
    ]);
  });

  test("with its last character changed opens nothing", async () => {
    const token = await textOf("/v1/api-tokens", { name: "ci" });
    const wrong = token.slice(0, -1) + (token.endsWith("A") ? "B" : "A");
    assert.deepEqual(await refusal(await fleet.ask("/v1/hosts", { token: wrong })), [401, "request.unauthorised"]);
  });

  test("of the API does not manage tokens; a join token opens nothing", async () => {
    const api = await textOf("/v1/api-tokens", { name: "ci" });
    const join = await textOf("/v1/join-tokens", {});
    for (const path of ["/v1/api-tokens", "/v1/join-tokens"]) {
      assert.deepEqual(await refusal(await fleet.ask(path, { token: api })), [403, "request.forbidden"]);
      const made = await fleet.ask(path, { token: api, body: { name: "more" } });
      assert.deepEqual(await refusal(made), [403, "request.forbidden"]);
    }
    assert.deepEqual(await refusal(await fleet.ask("/v1/hosts", { token: join })), [403, "request.forbidden"]);
  });

  test("is shown once, stored as a digest, listed without it, and not in the log", async () => {
    const made = await mint("/v1/api-tokens", { name: "ci" }, { "idempotency-key": "one" });
    const again = await mint("/v1/api-tokens", { name: "ci" }, { "idempotency-key": "one" });
    assert.ok(made.token);
    assert.deepEqual(again, { ...made, token: null });
    const secret = made.token.slice(-43);
    const listed = await (await fleet.ask("/v1/api-tokens")).text();
    assert.ok(listed.includes(made.id) && !listed.includes(secret));
    const stored = JSON.stringify(await fleet.ports.tokens.byId(made.id));
    assert.ok(!stored.includes(secret));
    assert.ok(!fleet.script.logged.join().includes(secret));
    assert.equal((await fleet.ask(`/v1/api-tokens/${made.id}`)).status, 200);
    assert.deepEqual(await refusal(await fleet.ask(`/v1/join-tokens/${made.id}`)), [404, "request.notFound"]);
    assert.deepEqual(await refusal(await fleet.ask("/v1/api-tokens/none", { method: "DELETE" })), [
      404,
      "request.notFound",
    ]);
  });

  test("made twice at once by one key is one token, and no secret is shown that opens nothing", async () => {
    const key = { "idempotency-key": "twins" };
    const twins = await Promise.all([1, 2, 3].map(() => mint("/v1/api-tokens", { name: "ci" }, key)));
    assert.equal(new Set(twins.map(({ id }) => id)).size, 1);
    const shown = twins.flatMap(({ token }) => (token === null ? [] : [token]));
    assert.equal(shown.length, 1);
    for (const token of shown) assert.equal((await fleet.ask("/v1/hosts", { token })).status, 200);
  });

  test("lists come in pages", async () => {
    for (const name of ["a", "b", "c"]) await mint("/v1/api-tokens", { name });
    const first = pageSchema.parse(await (await fleet.ask("/v1/api-tokens?limit=2")).json());
    assert.equal(first.items.length, 2);
    const second = pageSchema.parse(await (await fleet.ask(`/v1/api-tokens?limit=2&cursor=${first.cursor}`)).json());
    assert.deepEqual([second.items.length, second.cursor], [1, null]);
  });
});

describe("enrolment", () => {
  const enrol = (token: string, name: string, publicKey = key("B")) =>
    fleet.ask("/v1/enrolments", { token: null, body: { token, name, publicKey } });

  test("makes a host with one use of the token", async () => {
    const token = await textOf("/v1/join-tokens", { uses: 2 });
    const response = await enrol(token, "alpha");
    assert.equal(response.status, 201);
    const host = await fleet.ports.hosts.byName("alpha");
    assert.ok(host);
    assert.deepEqual(await response.json(), {
      hostId: host.id,
      name: "alpha",
      controlKey: await fleet.ports.tickets.publicKey(),
    });
    assert.equal(host.publicKey, key("B"));
    assert.equal((await enrol(token, "beta", key("C"))).status, 201);
    assert.deepEqual(await refusal(await enrol(token, "gamma", key("D"))), [401, "token.invalid"]);
    assert.equal(await fleet.ports.hosts.byName("gamma"), null);
  });

  test("repeated with the same key finds its host and takes no second use", async () => {
    const token = await textOf("/v1/join-tokens", { uses: 1 });
    const first: unknown = await (await enrol(token, "alpha")).json();
    const again = await enrol(token, "alpha");
    assert.equal(again.status, 201);
    assert.deepEqual(await again.json(), first);
  });

  test("eight at once with one use make one host", async () => {
    const token = await textOf("/v1/join-tokens", { uses: 1 });
    const names = Array.from({ length: 8 }, (_, index) => `host-${index}`);
    const statuses = await Promise.all(names.map(async (name) => (await enrol(token, name)).status));
    assert.equal(statuses.filter((status) => status === 201).length, 1);
    assert.equal((await fleet.ports.hosts.list()).length, 1);
  });

  test("refuses a taken name without using the token, and bad, foreign or expired tokens", async () => {
    const token = await textOf("/v1/join-tokens", { uses: 1, ttlMs: 60_000 });
    await fleet.addHost(1);
    assert.deepEqual(await refusal(await enrol(token, "host1")), [409, "host.nameTaken"]);
    assert.deepEqual(await refusal(await enrol("vmj_no", "beta")), [401, "token.invalid"]);
    const api = await textOf("/v1/api-tokens", { name: "ci" });
    assert.deepEqual(await refusal(await enrol(api, "beta")), [401, "token.invalid"]);
    assert.deepEqual(await refusal(await enrol(`${token.slice(0, -1)}_`, "beta")), [401, "token.invalid"]);
    assert.equal((await enrol(token, "beta")).status, 201);
    fleet.pass(60_000);
    assert.deepEqual(await refusal(await enrol(token, "beta")), [401, "token.invalid"]);
  });

  test("refuses names that could not stand in a path and keys that are not 32 bytes", async () => {
    const token = await textOf("/v1/join-tokens", {});
    for (const name of ["", "a b", "../x", "a/b", "-a", "ä", "x".repeat(129)])
      assert.deepEqual(await refusal(await enrol(token, name)), [400, "request.malformed"], name);
    for (const publicKey of ["", "A".repeat(44), `${"A".repeat(42)}B`, "+".repeat(43)])
      assert.deepEqual(await refusal(await enrol(token, "alpha", publicKey)), [400, "request.malformed"], publicKey);
  });
});

describe("a body", () => {
  const path = "/v1/checks";
  const cases: [string, Parameters<MemoryFleet["ask"]>[1], [number, string], RegExp][] = [
    ["that is not JSON", { raw: "{" }, [400, "request.malformed"], /not JSON/],
    ["that is empty", { raw: "" }, [400, "request.malformed"], /not JSON/],
    [
      "of another type",
      { raw: "{}", headers: { "content-type": "text/plain" } },
      [400, "request.malformed"],
      /application\/json/,
    ],
    ["without what is needed", { body: {} }, [400, "request.malformed"], /`domain`/],
    ["with an unknown key", { body: { domain: "web", force: true } }, [400, "request.malformed"], /`force`/],
    ["with an unknown code", { body: { domain: "web", accept: ["all"] } }, [400, "request.malformed"], /`accept.0`/],
    ["that is an array", { body: [] }, [400, "request.malformed"], /object/],
    ["above the limit", { body: { domain: "x".repeat(bodyBytesMax) } }, [413, "request.tooLarge"], /65536/],
  ];
  for (const [what, asked, expected, cause] of cases)
    test(`${what}: ${expected.join(" ")}`, async () => {
      const response = await fleet.ask(path, { method: "POST", ...asked });
      const text = await response.clone().text();
      assert.deepEqual(await refusal(response), expected);
      assert.match(text, cause);
    });

  test("that lies about its length is still bounded", async () => {
    const endless = new ReadableStream({
      pull(controller) {
        controller.enqueue(new Uint8Array(16 * 1024).fill(32));
      },
    });
    const init = { method: "POST", body: endless, duplex: "half" as const };
    const response = await fleet.app.request(path, {
      ...init,
      headers: { authorization: `Bearer ${adminToken}`, "content-type": "application/json" },
    });
    assert.deepEqual(await refusal(response), [413, "request.tooLarge"]);
  });

  test("is not quoted in its refusal", async () => {
    const response = await fleet.ask(path, { raw: '{"domain": "SECRETVALUE' });
    assert.ok(!(await response.text()).includes("SECRETVALUE"));
    const typed = await fleet.ask(path, { body: { domain: 7, destination: "SECRETVALUE" } });
    assert.ok(!(await typed.text()).includes("SECRETVALUE"));
  });

  test("a query is checked as well", async () => {
    for (const query of ["limit=0", "limit=201", "limit=x", "limit=1.5", "other=1", "limit=1&limit=2"])
      assert.deepEqual(await refusal(await fleet.ask(`/v1/hosts?${query}`)), [400, "request.malformed"], query);
  });
});

describe("failures", () => {
  test("a 500 leaks nothing and is found in the log by its instance", async () => {
    fleet.ports.hosts.list = async () => {
      throw new Error("password=hunter2 at /srv/secret");
    };
    const response = await fleet.ask("/v1/hosts");
    const text = await response.clone().text();
    assert.deepEqual(await refusal(response), [500, "internal"]);
    assert.ok(!/hunter2|secret|Error|\.ts/.test(text), text);
    const requestId = response.headers.get("x-request-id");
    assert.ok(requestId && text.includes(`urn:vmferry:request:${requestId}`));
    assert.ok(fleet.script.logged.some((line) => line.includes(requestId)));
  });

  test("an internal fault is not shown either", async () => {
    fleet.ports.hosts.list = async () => {
      throw new Fault({ code: "internal", cause: "table is hunter2", action: "none", retry: "never" });
    };
    assert.ok(!(await (await fleet.ask("/v1/hosts")).text()).includes("hunter2"));
  });

  test("a store that does not answer is 503 with Retry-After", async () => {
    await fleet.addHost(1, {}, [domainNamed("web")]);
    fleet.ports.hosts.byName = async () => {
      throw new Fault({ code: "store.unreachable", cause: "DynamoDB is away.", action: "Wait.", retry: "safe" });
    };
    const response = await fleet.ask("/v1/migrations", { body: { domain: "web", destination: "host2" } });
    assert.equal(response.headers.get("retry-after"), "2");
    assert.deepEqual(await refusal(response), [503, "store.unreachable"]);
  });

  test("an unknown path or method is a problem like any other", async () => {
    for (const [method, path] of [
      ["GET", "/v1/nothing"],
      ["PUT", "/v1/hosts"],
      ["GET", "/"],
    ] as const) {
      const response = await fleet.app.request(path, { method });
      assert.equal(response.headers.get("content-type"), "application/problem+json");
      assert.deepEqual(await refusal(response), [404, "request.notFound"]);
    }
  });

  test("answers are not cached and not sniffed", async () => {
    const response = await fleet.ask("/healthz", { token: null });
    assert.equal(response.headers.get("cache-control"), "no-store");
    assert.equal(response.headers.get("x-content-type-options"), "nosniff");
    assert.deepEqual(await response.json(), { status: "ok", at: fleet.ports.clock.now() });
  });

  test("metrics count requests by route, and append what the stores count", async () => {
    await fleet.addHost(1);
    await fleet.ask(`/v1/hosts/${hostId(1)}`);
    await fleet.ask("/v1/hosts/host1");
    fleet.script.storeMetrics = "vmferry_store_requests_total 7\n";
    const text = await (await fleet.ask("/metrics")).text();
    assert.match(
      text,
      /^vmferry_http_requests_total\{method="GET",path="\/v1\/hosts\/:host",status="200",isolate="[^"]+"\} 2$/m,
    );
    assert.match(text, /^vmferry_active_migrations 0$/m);
    assert.match(text, /^vmferry_store_requests_total 7$/m);
  });
});
