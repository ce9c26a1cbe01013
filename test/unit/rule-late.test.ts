/** Rules whose reason goes while what they asked for has not been taken; and what is kept of runs where everything is as long as it may be. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { fitted, newRuleState, pastRunsMax, type RuleRun, type RunHost, runHostsMax } from "#core/rule-state";
import { readTrigger, scheduleEvent, type TriggerEvent } from "#core/trigger-event";
import { bodyText } from "#functions/store/stored-item";
import { Fault } from "#protocol/fault";
import { alertRule, type RuleWorld, rackRule, ruleHostId, ruleWorld } from "#test/fake/rule-world";

let world: RuleWorld;
beforeEach(() => {
  world = ruleWorld();
});

const passing = new Fault({ code: "request.conflict", cause: "another has the host", action: "wait", retry: "safe" });

async function alert(status: "firing" | "resolved", startsAt = "2027-02-01T00:00:00Z"): Promise<void> {
  const labels = { alertname: "HostDiskFailing", severity: "critical", instance: "host1:9100" };
  const body = { version: "4", groupKey: "{}", alerts: [{ status, labels, startsAt, fingerprint: "f1" }] };
  const { rule } = await world.book.load("failing-disk");
  const read = readTrigger("alertmanager", body, { rule, nowMs: world.nowMs(), messageId: "" });
  assert.ok(read.ok);
  await world.runner.triggered("failing-disk", read.events satisfies TriggerEvent[]);
}

const hostsOf = async (rule: string) => {
  const state = await world.rules.state(rule);
  return Object.fromEntries((state?.run ?? state?.past[0])?.hosts.map(({ host, state }) => [host.name, state]) ?? []);
};

describe("asked for and not taken yet", () => {
  test("is not asked for again once its cause is resolved, and ends as never started", async () => {
    await world.write(alertRule);
    world.script.refusing = passing;
    await alert("firing");
    await world.minutes(1);
    await alert("resolved");
    world.script.refusing = null;
    await world.minutes(3);
    assert.deepEqual(world.evacuated(), []);
    assert.deepEqual(await hostsOf("failing-disk"), { host1: "cancelled" });
  });

  test("is not asked for by a rule that was deleted", async () => {
    await world.write(rackRule);
    world.setNow("2027-02-07T01:00:00.000Z");
    world.script.refusing = passing;
    await world.runner.tick();
    await world.runner.step(await world.book.change("rack-b-first-sunday", "test", { deleted: true }));
    world.script.refusing = null;
    await world.minutes(3);
    assert.deepEqual(world.evacuated(), []);
    assert.deepEqual(await hostsOf("rack-b-first-sunday"), { host3: "cancelled", host4: "cancelled" });
  });

  test("waits while the rule is paused, and goes on after", async () => {
    await world.write(rackRule);
    world.setNow("2027-02-07T01:00:00.000Z");
    world.script.refusing = passing;
    await world.runner.tick();
    await world.book.change("rack-b-first-sunday", "test", { paused: true });
    world.script.refusing = null;
    await world.minutes(3);
    assert.deepEqual(world.evacuated(), []);
    await world.book.change("rack-b-first-sunday", "test", { paused: false });
    await world.minutes(1);
    assert.deepEqual(world.evacuated(), ["host3"]);
  });
});

test("a paused rule brings nothing home until it goes on", async () => {
  await world.write(rackRule);
  world.setNow("2027-02-07T01:00:00.000Z");
  const host3 = world.script.hosts.find(({ name }) => name === "host3");
  assert.ok(host3);
  host3.cordoned = true;
  await world.minutes(1);
  world.end("host3");
  await world.minutes(1);
  await world.book.change("rack-b-first-sunday", "test", { paused: true });
  host3.connected = false;
  await world.minutes(1);
  host3.connected = true;
  await world.minutes(3);
  assert.deepEqual(world.restored(), []);
  await world.book.change("rack-b-first-sunday", "test", { paused: false });
  await world.minutes(1);
  assert.deepEqual(world.restored(), ["host3"]);
});

test("an alert that comes while the evacuation of its resolved twin ends is not taken for answered", async () => {
  await world.write(alertRule);
  await alert("firing");
  await alert("resolved");
  assert.equal(world.script.cancelled.length, 1);
  world.pass(60_000);
  const again = "2027-02-01T00:01:00Z";
  await alert("firing", again);
  world.end("host1", "cancelled");
  // The cool-down and the pause pass; Alertmanager repeats what still fires.
  await world.minutes(61);
  await alert("firing", again);
  assert.deepEqual(world.evacuated(), ["host1", "host1"]);
});

test("runs in which everything is as long as it may be are one item still", () => {
  const at = "2027-02-01T00:00:00.000Z";
  const entry = (index: number): RunHost => ({
    host: { id: ruleHostId(index), name: `host${index}` },
    state: "skipped",
    causes: [],
    evacuationId: null,
    deadlineAt: at,
    closesAt: at,
    windowed: true,
    at,
    reason: "ö".repeat(500),
  });
  const run: RuleRun = {
    id: "r_01JE0000000000000000000000",
    ruleVersion: 1,
    event: scheduleEvent("rack", at),
    createdAt: at,
    endedAt: at,
    approvedBy: null,
    hosts: Array.from({ length: runHostsMax }, (_, index) => entry(index)),
  };
  const state = { ...newRuleState("rack"), run, past: Array.from({ length: pastRunsMax }, () => run) };
  assert.throws(() => bodyText("the runs", state));
  const kept = fitted(state);
  assert.ok(bodyText("the runs", kept).length > 0);
  assert.deepEqual(kept.run, run);
  assert.ok(kept.past.length >= 1);
  assert.equal(fitted(kept), kept);
});
