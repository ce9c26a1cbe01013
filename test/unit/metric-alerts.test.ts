/**
 * The example alerts for Prometheus hold: every metric and every label that they name is in the exposition, every command that they tell is one. Where promtool is
 * installed it reads the exposition as well, and rings each alert.
 */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { parse } from "yaml";
import * as z from "zod/mini";
import { ruleSchema } from "#core/rule";
import { commands } from "#functions/cli/command-table";
import { everyMinute } from "#functions/minute";
import { domainNamed, memoryFleet } from "#test/fake/memory-fleet";
import { metricEvent, metricKinds } from "#test/fake/metric-events";
import { type ParsedFamily, parsedMetrics } from "#test/fake/metric-parser";

const folder = join(import.meta.dirname, "../../infra/prometheus");
const alertSchema = z.strictObject({
  alert: z.string(),
  expr: z.string(),
  for: z.optional(z.string()),
  labels: z.strictObject({ severity: z.enum(["critical", "warning", "info"]) }),
  annotations: z.strictObject({ summary: z.string(), action: z.string() }),
});
const { groups } = z
  .object({ groups: z.array(z.object({ name: z.string(), rules: z.array(alertSchema) })) })
  .parse(parse(readFileSync(join(folder, "vmferry-alerts.yml"), "utf8")));
const alerts = groups.flatMap(({ rules }) => rules);

/** Everything that a control plane tells, one of each. */
async function exposition(): Promise<string> {
  const fleet = await memoryFleet();
  await fleet.addHost(1, {}, [domainNamed("web")]);
  const url = "https://receiver.example.org/hook";
  await fleet.ask("/v1/webhooks/chat", { method: "PUT", body: { url } });
  const when = { kind: "schedule", cron: "5 10 * * *", timeZone: "UTC", window: "3h" };
  const rule = ruleSchema.parse({ name: "rack-b", when, which: { names: ["host1"] } });
  await fleet.rules.book.put(rule, "test", null);
  for (const kind of metricKinds) await fleet.ports.chronicle.append(metricEvent(kind));
  fleet.pass(5 * 60_000);
  const { log, clock } = fleet.ports;
  const tasks = { migrations: async () => {}, rules: () => fleet.rules.runner.tick() };
  await everyMinute(log, tasks, (done) => fleet.metrics.succeeded(done, clock.now()));
  return (await fleet.ask("/metrics")).text();
}

/** A metric in an expression, with its selectors. */
interface Selected {
  name: string;
  selectors: { label: string; values: string[] }[];
}

function selectedIn(expr: string): Selected[] {
  return [...expr.matchAll(/\b(vmferry_\w+)(?:\{([^}]*)\})?/g)].map(([, name = "", inside = ""]) => ({
    name,
    selectors: [...inside.matchAll(/(\w+)=(~?)"([^"]*)"/g)].map(([, label = "", isPattern, text = ""]) => ({
      label,
      values: isPattern === "~" ? text.split("|") : [text],
    })),
  }));
}

describe("the example alerts", () => {
  let text: string;
  let families: Map<string, ParsedFamily>;
  before(async () => {
    text = await exposition();
    families = parsedMetrics(text);
  });

  test("name only metrics, labels and values that are told", () => {
    assert.ok(alerts.length >= 10);
    for (const { alert, expr } of alerts) {
      const selected = selectedIn(expr);
      assert.ok(selected.length > 0, alert);
      for (const { name, selectors } of selected) {
        const samples = families.get(name)?.samples ?? [];
        assert.ok(samples.length > 0, `${alert}: ${name} is not told`);
        for (const { label, values } of selectors)
          for (const value of values)
            assert.ok(
              samples.some(({ labels }) => labels[label] === value),
              `${alert}: ${name} has no ${label}="${value}"`,
            );
      }
    }
  });

  test("quote only labels that their metric has", () => {
    for (const { alert, expr, annotations } of alerts) {
      const known = selectedIn(expr).flatMap(({ name }) =>
        (families.get(name)?.samples ?? []).flatMap(({ labels }) => Object.keys(labels)),
      );
      for (const [, label] of `${annotations.summary} ${annotations.action}`.matchAll(/\$labels\.(\w+)/g))
        assert.ok(known.includes(label ?? ""), `${alert} quotes ${label}`);
    }
  });

  test("tell only commands that there are", () => {
    const known = commands.map(({ words }) => words.join(" "));
    const told = alerts.flatMap(({ annotations }) => [...annotations.action.matchAll(/\bvmferry ((?:[a-z-]+ ?)+)/g)]);
    assert.ok(told.length > 5);
    for (const [, words = ""] of told)
      assert.ok(
        known.some((command) => `${words} `.startsWith(`${command} `)),
        `vmferry ${words}`,
      );
  });

  test("each has a name of its own, and says what is so and what to do", () => {
    assert.equal(new Set(alerts.map(({ alert }) => alert)).size, alerts.length);
    for (const { alert, annotations } of alerts) {
      assert.match(alert, /^Vmferry[A-Za-z]+$/);
      assert.match(annotations.summary, /\.$/);
      assert.match(annotations.action, /\.$/);
    }
  });

  const isInstalled = spawnSync("promtool", ["--version"]).status === 0;
  const skip = isInstalled ? false : "promtool is not installed (Debian: prometheus)";

  test("promtool finds no fault with the exposition", { skip }, () => {
    assert.equal(execFileSync("promtool", ["check", "metrics"], { input: text, encoding: "utf8" }), "");
  });

  test("promtool rings each alert when it should, and none in a healthy fleet", { skip }, () => {
    const output = execFileSync("promtool", ["test", "rules", join(folder, "vmferry-alerts.test.yml")]);
    assert.match(output.toString(), /SUCCESS/);
  });
});
