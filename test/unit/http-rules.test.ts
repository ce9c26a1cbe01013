/** Rules and triggers over the real app, the real runner of evacuations and a fleet in memory: written, refused, versioned, tried, run, triggered. */
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { beforeEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { triggerBodyBytesMax } from "#core/trigger-event";
import {
  mintedCredentialSchema,
  ruleDetailSchema,
  ruleRunReplySchema,
  ruleVersionSchema,
  ruleWrittenSchema,
  triggeredSchema,
} from "#functions/http/rule-resource";
import { domainNamed, factsOf, type MemoryFleet, memoryFleet, refusal } from "#test/fake/memory-fleet";
import { alertRule, rackRule } from "#test/fake/rule-world";

let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
  for (const index of [1, 2, 3])
    await fleet.addHost(
      index,
      { facts: { ...factsOf(index), labels: { rack: index === 3 ? "b" : "a" } } },
      index === 3 ? [domainNamed("web")] : [],
    );
});

const put = (rule: { name: string; [key: string]: unknown }, query = "") =>
  fleet.ask(`/v1/rules/${rule.name}${query}`, { method: "PUT", body: rule });
const read = async <T>(schema: z.ZodMiniType<T>, response: Response): Promise<T> => {
  assert.ok(response.ok, await response.clone().text());
  return schema.parse(await response.json());
};
const cause = async (response: Response): Promise<string> =>
  z.object({ cause: z.string() }).parse(await response.json()).cause;
const show = async (name: string) => read(ruleDetailSchema, await fleet.ask(`/v1/rules/${name}`));
const evacuations = async () => (await fleet.ports.evacuations.list({ limit: 50, cursor: null, active: false })).items;

describe("writing a rule", () => {
  test("is shown with its next windows in UTC, and what a run would do now", async () => {
    const written = await read(ruleWrittenSchema, await put(rackRule));
    assert.equal(written.version, 1);
    assert.equal(written.changed, true);
    assert.deepEqual(written.nextWindows.slice(0, 2), [
      { opensAt: "2026-12-06T01:00:00.000Z", closesAt: "2026-12-06T04:00:00.000Z" },
      { opensAt: "2027-01-03T01:00:00.000Z", closesAt: "2027-01-03T04:00:00.000Z" },
    ]);
    assert.deepEqual(written.now?.hosts, ["host3"]);
    assert.deepEqual((await show(rackRule.name)).rule, written.rule);
  });

  test("each change is a version, the same again is none; a version that is not the expected one is a conflict", async () => {
    await put(rackRule);
    assert.equal((await read(ruleWrittenSchema, await put(rackRule))).changed, false);
    const changed = { ...rackRule, description: "the kernel" };
    assert.deepEqual(await refusal(await put(changed, "?version=2")), [409, "request.conflict"]);
    assert.deepEqual(await refusal(await put(changed, "?version=0")), [409, "request.conflict"]);
    assert.equal((await read(ruleWrittenSchema, await put(changed, "?version=1"))).version, 2);
    await fleet.ask(`/v1/rules/${rackRule.name}`, { method: "PATCH", body: { paused: true } });
    await fleet.ask(`/v1/rules/${rackRule.name}`, { method: "DELETE" });
    assert.deepEqual(await refusal(await fleet.ask(`/v1/rules/${rackRule.name}`)), [404, "request.notFound"]);
    assert.equal((await read(ruleWrittenSchema, await put(rackRule, "?version=0"))).version, 5);
    const page = z.object({ items: z.array(ruleVersionSchema), cursor: z.nullable(z.string()) });
    const first = await read(page, await fleet.ask(`/v1/rules/${rackRule.name}/versions?limit=2`));
    assert.deepEqual(
      first.items.map(({ version, deleted }) => [version, deleted]),
      [
        [5, false],
        [4, true],
      ],
    );
    const rest = await read(page, await fleet.ask(`/v1/rules/${rackRule.name}/versions?cursor=${first.cursor}`));
    assert.deepEqual(
      rest.items.map(({ version, paused, rule }) => [version, paused, rule.description]),
      [
        [3, true, "the kernel"],
        [2, false, "the kernel"],
        [1, false, ""],
      ],
    );
    assert.deepEqual(await refusal(await fleet.ask("/v1/rules/never/versions")), [404, "request.notFound"]);
  });

  test("a dry run checks and shows, and stores nothing", async () => {
    const tried = await read(ruleWrittenSchema, await put(rackRule, "?dryRun=true"));
    assert.deepEqual([tried.dryRun, tried.changed, tried.version], [true, true, 1]);
    assert.deepEqual(tried.now?.hosts, ["host3"]);
    assert.deepEqual(await refusal(await fleet.ask(`/v1/rules/${rackRule.name}`)), [404, "request.notFound"]);
    assert.deepEqual(await refusal(await put({ ...rackRule, which: {} }, "?dryRun=true")), [400, "request.malformed"]);
  });

  const when = rackRule.when;
  const refusals: [string, object, RegExp][] = [
    ["an unknown key, by its path", { how: { polcy: {} } }, /`how` has an unknown key: `polcy`/],
    ["an unknown key deep inside", { how: { policy: { outMx: 1 } } }, /`how.policy` has an unknown key: `outMx`/],
    ["a limit of the wrong type", { how: { policy: { outMax: "2" } } }, /`how.policy.outMax`/],
    ["a limit out of bounds", { how: { policy: { outMax: 500 } } }, /`how.policy.outMax` is over the limit of 50/],
    ["a duration without a unit", { how: { coolDown: "90" } }, /`how.coolDown` does not have the right form/],
    ["a kind that there is not", { when: { kind: "cron" } }, /`when.kind`/],
    ["six fields", { when: { ...when, cron: "0 0 2 * * SUN" } }, /`when.cron`/],
    ["a nickname", { when: { ...when, cron: "@daily" } }, /`when.cron`/],
    ["a cron that means nothing", { when: { ...when, cron: "0 25 * * *" } }, /`when.cron`: /],
    ["an unknown zone", { when: { ...when, timeZone: "Europe/Atlantis" } }, /`when.timeZone`/],
    ["no window", { when: { kind: "schedule", cron: "0 2 * * *", timeZone: "UTC" } }, /either `window` or `until`/],
    ["nobody selected", { which: {} }, /`which` selects nothing/],
    ["every host by no label", { which: { labels: {} } }, /`which.labels` is empty/],
    ["a trigger's host in a schedule", { which: { fromTrigger: { label: "x" } } }, /`which.fromTrigger`/],
    ["destinations that are nobody", { how: { to: {} } }, /`how.to` selects nothing/],
    ["another name than the path's", { name: "other" }, /one name|in its body/],
  ];
  for (const [name, fields, pattern] of refusals)
    test(`refuses ${name}`, async () => {
      const body = { ...rackRule, ...fields };
      const response = await fleet.ask(`/v1/rules/${rackRule.name}`, { method: "PUT", body });
      assert.deepEqual(await refusal(response.clone()), [400, "request.malformed"]);
      assert.match(await cause(response), pattern);
      assert.equal(await fleet.rules.rules.load(rackRule.name), null);
    });

  test("all that only the whole rule shows is said at once", async () => {
    const said = await cause(await put({ ...rackRule, which: {}, when: { ...when, until: undefined } }));
    assert.match(said, /`which` selects nothing.*either `window` or `until`/);
  });
});

describe("running a rule", () => {
  beforeEach(() => put(rackRule));

  test("by hand: one evacuation by the rule's policy, however often the request is repeated", async () => {
    await put({
      ...rackRule,
      how: { policy: { outMax: 1 }, to: { labels: { rack: "a" } }, deadline: "2h" },
    });
    const run = () => fleet.ask(`/v1/rules/${rackRule.name}/run`, { body: {}, headers: { "idempotency-key": "one" } });
    const ran = await read(ruleRunReplySchema, await run());
    assert.deepEqual(ran.hosts, ["host3"]);
    assert.equal(ran.run?.hosts[0]?.state, "started");
    await run();
    const [only, ...more] = await evacuations();
    assert.equal(more.length, 0);
    const state = await fleet.ports.evacuations.load(only?.id ?? "");
    assert.equal(state?.policy.outMax, 1);
    assert.deepEqual(state?.policy.to?.length, 2);
    assert.equal(state?.origin.rule, rackRule.name);
    assert.equal(state?.deadlineAt, "2026-11-22T12:00:00.000Z");
  });

  test("a dry run does nothing", async () => {
    const ran = await read(
      ruleRunReplySchema,
      await fleet.ask(`/v1/rules/${rackRule.name}/run`, { body: { dryRun: true } }),
    );
    assert.deepEqual([ran.dryRun, ran.hosts, ran.run], [true, ["host3"], null]);
    assert.deepEqual(await evacuations(), []);
  });

  test("by its window, with the real planner's estimate", async () => {
    fleet.pass(Date.parse("2026-12-06T01:00:00.000Z") - Date.parse("2026-11-22T10:00:00.000Z"));
    for (const host of await fleet.ports.hosts.list())
      await fleet.ports.hosts.seen(host.id, { at: "2026-12-06T01:00:00.000Z" });
    await fleet.rules.runner.tick();
    const [only] = await evacuations();
    assert.equal(only?.host.name, "host3");
    assert.equal(only?.deadlineAt, "2026-12-06T04:00:00.000Z");
  });

  test("an approval that nothing waits for is a conflict, of an unknown rule it is not found", async () => {
    const path = (name: string) => `/v1/rules/${name}/runs/r_x/approve`;
    assert.deepEqual(await refusal(await fleet.ask(path(rackRule.name), { method: "POST" })), [
      409,
      "request.conflict",
    ]);
    assert.deepEqual(await refusal(await fleet.ask(path("none"), { method: "POST" })), [404, "request.notFound"]);
  });
});

describe("triggers", () => {
  test("the document says what each source sends, how it proves itself, and nothing decodes it before that", async () => {
    const operation = z.object({
      parameters: z.array(z.object({ name: z.string(), in: z.string() })),
      requestBody: z.object({
        description: z.string(),
        content: z.object({ "application/json": z.object({ schema: z.record(z.string(), z.unknown()) }) }),
      }),
    });
    const documentSchema = z.object({ paths: z.record(z.string(), z.object({ post: z.optional(z.unknown()) })) });
    const document: unknown = await (await fleet.ask("/v1/openapi.json")).json();
    const { paths } = documentSchema.parse(document);
    for (const [path, named, proof] of [
      ["/v1/triggers/{rule}", ["type", "data"], /signature/],
      ["/v1/triggers/{rule}/alertmanager", ["version", "groupKey", "alerts"], /Bearer vmt_/],
      ["/v1/triggers/{rule}/aws-health", ["source", "detail", "account"], /Bearer vmt_/],
    ] as const) {
      const { requestBody, parameters } = operation.parse(paths[path]?.post);
      const { properties, required } = requestBody.content["application/json"].schema;
      for (const name of named) {
        assert.ok(Object.hasOwn(z.record(z.string(), z.unknown()).parse(properties), name), `${path} ${name}`);
        assert.ok(z.array(z.string()).parse(required).includes(name));
      }
      assert.match(requestBody.description, /At most 262144 bytes/);
      assert.match(requestBody.description, proof);
      const headers = parameters.filter((parameter) => parameter.in === "header").map(({ name }) => name);
      assert.deepEqual(headers, path.endsWith("}") ? ["webhook-id", "webhook-timestamp", "webhook-signature"] : []);
    }
    // Whoever proves nothing learns nothing of the form, whatever he sends.
    const response = await fleet.ask("/v1/triggers/hook", { raw: "no JSON", token: null });
    assert.deepEqual(await refusal(response), [401, "request.unauthorised"]);
  });

  const alert = (instance = "host3:9100") => ({
    version: "4",
    groupKey: "g",
    truncatedAlerts: 0,
    alerts: [
      {
        status: "firing",
        labels: { alertname: "HostDiskFailing", severity: "page", instance },
        startsAt: "2026-11-22T10:00:00Z",
        fingerprint: "f1",
      },
    ],
  });
  const credential = async (rule: string, body: object = {}) =>
    read(mintedCredentialSchema, await fleet.ask(`/v1/rules/${rule}/credentials`, { body }));

  test("an alert by its token: approved by a person, then one evacuation", async () => {
    await put({ ...alertRule, how: { approval: "needed" } });
    const { value } = await credential(alertRule.name);
    const post = () => fleet.ask(`/v1/triggers/${alertRule.name}/alertmanager`, { token: value, body: alert() });
    assert.deepEqual(await read(triggeredSchema, await post()), { accepted: 1, repeated: 0, ignored: 0 });
    assert.deepEqual(await read(triggeredSchema, await post()), { accepted: 0, repeated: 1, ignored: 0 });
    assert.deepEqual(await evacuations(), []);
    const { run } = await show(alertRule.name);
    const approved = await fleet.ask(`/v1/rules/${alertRule.name}/runs/${run?.id}/approve`, { method: "POST" });
    assert.equal((await read(ruleDetailSchema, approved)).run?.hosts[0]?.state, "started");
    assert.deepEqual(
      (await evacuations()).map(({ host }) => host.name),
      ["host3"],
    );
  });

  test("the same alert a thousand times: one evacuation", async () => {
    await put(alertRule);
    const { value } = await credential(alertRule.name);
    const post = () => fleet.ask(`/v1/triggers/${alertRule.name}/alertmanager`, { token: value, body: alert() });
    const answers = await Promise.all(Array.from({ length: 1_000 }, async () => read(triggeredSchema, await post())));
    assert.equal(
      answers.reduce((sum, { accepted }) => sum + accepted, 0),
      1,
    );
    assert.equal(
      answers.reduce((sum, { repeated }) => sum + repeated, 0),
      999,
    );
    assert.deepEqual(
      (await evacuations()).map(({ host }) => host.name),
      ["host3"],
    );
  });

  test("a refused approval starts nothing", async () => {
    await put({ ...alertRule, how: { approval: "needed" } });
    const { value } = await credential(alertRule.name);
    await fleet.ask(`/v1/triggers/${alertRule.name}/alertmanager`, { token: value, body: alert() });
    const { run } = await show(alertRule.name);
    await fleet.ask(`/v1/rules/${alertRule.name}/runs/${run?.id}/refuse`, { method: "POST" });
    const after = await show(alertRule.name);
    assert.equal(after.run, null);
    assert.equal(after.past[0]?.hosts[0]?.state, "cancelled");
    assert.deepEqual(await evacuations(), []);
  });

  test("a signed webhook over the bytes as they came", async () => {
    await put({ name: "hook", when: { kind: "webhook" }, which: { fromTrigger: { label: "host" } } } as {
      name: string;
    });
    const { value, kind } = await credential("hook");
    assert.equal(kind, "secret");
    const key = Buffer.from((value ?? "").replace("whsec_", ""), "base64");
    // Spaces that no JSON writer would make again.
    const raw = '{ "type":"x" ,"data": {"labels":{"host":"host3"}} }';
    const timestamp = String(Date.parse("2026-11-22T10:00:00.000Z") / 1000);
    const signature = createHmac("sha256", key).update(`m1.${timestamp}.${raw}`).digest("base64");
    const headers = { "webhook-id": "m1", "webhook-timestamp": timestamp, "webhook-signature": `v1,${signature}` };
    const post = (more: object = {}) => fleet.ask("/v1/triggers/hook", { raw, headers, token: null, ...more });
    assert.equal((await read(triggeredSchema, await post())).accepted, 1);
    assert.equal((await read(triggeredSchema, await post())).repeated, 1);
    assert.deepEqual(await refusal(await post({ raw: `${raw} ` })), [401, "request.unauthorised"]);
    assert.equal((await evacuations()).length, 1);
  });

  test("whoever cannot prove himself gets one answer, rule or no rule; oversized is the same for all", async () => {
    await put(alertRule);
    const { value } = await credential(alertRule.name);
    const answers = new Set<string>();
    for (const path of [alertRule.name, "none", "No_Rule", `${alertRule.name}/aws-health`])
      for (const token of [null, "vmt_wrong", `${value}x`]) {
        const response = await fleet.ask(`/v1/triggers/${path}${path.includes("/") ? "" : "/alertmanager"}`, {
          token,
          body: alert(),
        });
        const { instance: _, ...problem } = z.record(z.string(), z.unknown()).parse(await response.json());
        answers.add(JSON.stringify([response.status, problem]));
      }
    assert.equal(answers.size, 1, [...answers].join("\n"));
    const raw = `"${"x".repeat(triggerBodyBytesMax)}"`;
    for (const [name, token] of [
      [alertRule.name, value],
      [alertRule.name, null],
      ["none", null],
    ] as const)
      assert.deepEqual(await refusal(await fleet.ask(`/v1/triggers/${name}/alertmanager`, { raw, token })), [
        413,
        "request.tooLarge",
      ]);
    assert.deepEqual(await evacuations(), []);
  });

  test("a body that is refused is refused to its sender alone", async () => {
    await put(alertRule);
    const { value } = await credential(alertRule.name);
    const path = `/v1/triggers/${alertRule.name}/alertmanager`;
    assert.deepEqual(await refusal(await fleet.ask(path, { token: value, body: { version: "3" } })), [
      400,
      "request.malformed",
    ]);
    assert.deepEqual(await refusal(await fleet.ask(path, { token: null, body: { version: "3" } })), [
      401,
      "request.unauthorised",
    ]);
  });

  test("credentials: shown once, bounded, removed at once; none for a schedule; another's token is not brought", async () => {
    await put(alertRule);
    await put(rackRule);
    const made = await credential(alertRule.name);
    for (let more = 0; more < 3; more += 1) await credential(alertRule.name);
    assert.deepEqual(await refusal(await fleet.ask(`/v1/rules/${alertRule.name}/credentials`, { body: {} })), [
      409,
      "request.conflict",
    ]);
    const shown = JSON.stringify(await show(alertRule.name));
    assert.ok(shown.includes(made.id) && !shown.includes(made.value ?? "?"));
    const remove = () => fleet.ask(`/v1/rules/${alertRule.name}/credentials/${made.id}`, { method: "DELETE" });
    assert.equal((await remove()).status, 204);
    assert.deepEqual(await refusal(await remove()), [404, "request.notFound"]);
    const path = `/v1/triggers/${alertRule.name}/alertmanager`;
    assert.deepEqual(await refusal(await fleet.ask(path, { token: made.value, body: alert() })), [
      401,
      "request.unauthorised",
    ]);
    assert.deepEqual(await refusal(await fleet.ask(`/v1/rules/${rackRule.name}/credentials`, { body: {} })), [
      409,
      "request.conflict",
    ]);
    assert.deepEqual(
      await refusal(await fleet.ask(`/v1/rules/${alertRule.name}/credentials`, { body: { value: "mine" } })),
      [400, "request.malformed"],
    );
  });

  test("a rule that is deleted and made anew does not take its old sender", async () => {
    await put(alertRule);
    const { value } = await credential(alertRule.name);
    await fleet.ask(`/v1/rules/${alertRule.name}`, { method: "DELETE" });
    await put(alertRule);
    const path = `/v1/triggers/${alertRule.name}/alertmanager`;
    assert.deepEqual(await refusal(await fleet.ask(path, { token: value, body: alert() })), [
      401,
      "request.unauthorised",
    ]);
  });

  test("no secret is in the log", async () => {
    await put(alertRule);
    const { value } = await credential(alertRule.name);
    await fleet.ask(`/v1/triggers/${alertRule.name}/alertmanager`, { token: value, body: alert() });
    assert.ok(fleet.script.logged.length > 0);
    assert.ok(fleet.script.logged.every((line) => !line.includes(value ?? "?")));
  });
});
