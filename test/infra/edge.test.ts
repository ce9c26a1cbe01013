/** The Worker on Cloudflare: the bindings that its code reads, its objects, its cron, and an IAM user of few rights. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import * as z from "zod/mini";
import { root } from "../../infra/check/platform.ts";
import { decrypted, ofType, one, planned, secretValues, texts } from "./plan.ts";

const plan = planned("production-edge");
const named = planned("production-edge", { VMFERRY_DOMAIN: "ferry.example.com" });

const bindingsSchema = z.array(
  z.object({
    type: z.string(),
    name: z.string(),
    text: z.optional(z.string()),
    className: z.optional(z.string()),
  }),
);
const bindingsOf = (of: typeof plan) =>
  new Map(bindingsSchema.parse(decrypted(one(of, "WorkersScript").bindings)).map((binding) => [binding.name, binding]));

describe("edge", () => {
  test("runs the Worker that was built, on the date and with the flag that it was tested with", () => {
    const script = one(plan, "WorkersScript");
    assert.match(String(script.contentFile), /vmferry-dist-[^/]+\/worker\.mjs$/);
    assert.match(String(script.contentSha256), /^[0-9a-f]{64}$/);
    assert.deepEqual(script.compatibilityFlags, ["nodejs_compat"]);
    const up = readFileSync(join(root, "functions/cli/up.ts"), "utf8");
    assert.equal(script.compatibilityDate, /compatibilityDate = "([\d-]+)"/.exec(up)?.[1]);
    assert.deepEqual(script.observability, { enabled: true });
  });

  test("binds whatever the Worker's environment must have", () => {
    const wiring = readFileSync(join(root, "functions/entry/worker-wiring.ts"), "utf8");
    const body = /interface WorkerEnv \{(.*?)\n\}/s.exec(wiring)?.[1] ?? "";
    const needed = [...body.matchAll(/^ {2}([A-Z0-9_]+): /gm)].map(([, name]) => String(name));
    assert.ok(needed.includes("TICKET_KEY") && needed.length >= 7, needed.join());
    const bound = bindingsOf(plan);
    assert.deepEqual(
      needed.filter((name) => !bound.has(name)),
      [],
    );
    assert.equal(bound.get("ADMIN_TOKEN_SHA256")?.text, secretValues.AdminTokenSha256);
    assert.equal(bound.get("TICKET_KEY")?.text, secretValues.TicketKey);
    assert.equal(bound.get("TABLE")?.text, plan.outputs.table);
  });

  test("secrets are bound as secrets and appear nowhere else", () => {
    for (const name of ["TICKET_KEY", "ADMIN_TOKEN_SHA256", "SECRET_ACCESS_KEY"])
      assert.equal(bindingsOf(plan).get(name)?.type, "secret_text", name);
    for (const { name, inputs } of plan.resources)
      for (const { path, text, secret } of texts(inputs))
        assert.ok(secret || !Object.values(secretValues).some((value) => text.includes(value)), `${name}${path}`);
  });

  test("all classes of objects are bound, exported by the Worker and made with SQLite", () => {
    const worker = readFileSync(join(root, "functions/entry/worker.ts"), "utf8");
    const classes = [...bindingsOf(plan).values()].filter(({ type }) => type === "durable_object_namespace");
    assert.deepEqual(classes.map(({ name }) => name).sort(), ["HOST_SOCKET", "MIGRATION_FEED", "WEBHOOK_BELL"]);
    for (const { className } of classes) assert.match(worker, new RegExp(`export class ${className} `));
    assert.deepEqual(one(plan, "WorkersScript").migrations, {
      newTag: "v2",
      // What was deployed before webhooks has the first step already, and must find it as it was.
      steps: [{ newSqliteClasses: ["HostSocket", "MigrationFeed"] }, { newSqliteClasses: ["WebhookBell"] }],
    });
  });

  test("the cron of a minute is the same Worker's", () => {
    const trigger = one(plan, "WorkersCronTrigger");
    assert.deepEqual(trigger.schedules, [{ cron: "* * * * *" }]);
    assert.equal(trigger.scriptName, one(plan, "WorkersScript").scriptName);
  });

  test("nothing of Lambda is deployed beside it; the table's alarms are", () => {
    for (const type of ["lambda/function:Function", "apigatewayv2/api:Api", "scheduler/schedule:Schedule"])
      assert.deepEqual(ofType(plan, type), []);
    const names = ofType(plan, "MetricAlarm").map(({ inputs }) => inputs.name);
    assert.deepEqual(names.sort(), [
      "vmferry-production-edge-table-failing",
      "vmferry-production-edge-table-throttled",
    ]);
  });

  test("without a domain it is on workers.dev, with one the domain leads to it", () => {
    assert.match(String(plan.outputs.url), /^https:\/\/.*workers\.dev$/);
    assert.equal(named.outputs.url, "https://ferry.example.com");
    assert.equal(named.outputs.socketUrl, "wss://ferry.example.com");
    assert.equal(one(named, "WorkersCustomDomain").hostname, "ferry.example.com");
    assert.equal(bindingsOf(named).get("PUBLIC_URL")?.text, "https://ferry.example.com");
  });
});
