/** Rules whose reason goes while what they asked for has not been taken; and what is kept of runs where everything is as long as it may be. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import {
  fitted,
  newRuleState,
  pastRunsMax,
  type RuleRun,
  type RunHost,
  restoreWaitMsMax,
  runHostsMax,
} from "#core/rule-state";
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

describe("hosts that wait to be brought home", () => {
  const day = 86_400_000;
  const hostNamed = (name: string) => {
    const host = world.script.hosts.find((one) => one.name === name);
    assert.ok(host);
    return host;
  };

  /** host3 is empty and closed, and waits for a host that is back. */
  async function emptied(): Promise<void> {
    await world.write(rackRule);
    world.setNow("2027-02-07T01:00:00.000Z");
    for (const name of ["host3", "host4"]) hostNamed(name).cordoned = true;
    await world.minutes(1);
    world.end("host3");
    await world.minutes(2);
    world.end("host4");
    await world.minutes(1);
    assert.deepEqual(await waiting(), ["host3", "host4"]);
  }

  const waiting = async () => (await world.rules.state("rack-b-first-sunday"))?.restores.map(({ host }) => host.name);
  const refusals = async () =>
    (await world.rules.state("rack-b-first-sunday"))?.refusals.map(({ host, cause }) => `${host}: ${cause}`) ?? [];

  test("do so for a week, and then it is said that they are a person's", async () => {
    await emptied();
    hostNamed("host3").connected = false;
    hostNamed("host4").connected = false;
    world.pass(restoreWaitMsMax - 4 * 60_000);
    await world.minutes(1);
    assert.deepEqual(await waiting(), ["host3", "host4"]);
    await world.minutes(5);
    assert.deepEqual(await waiting(), []);
    const said = await refusals();
    assert.equal(said.length, 2);
    assert.match(said.join("\n"), /^host3: .*not back within 7 days.*vmferry restore host3$/m);
    // Nothing is left that costs a look, and a host that comes back later is not filled unasked.
    hostNamed("host3").connected = true;
    await world.minutes(5);
    assert.deepEqual(world.restored(), []);
  });

  test("one that is being brought home is not let go, however long that takes", async () => {
    await emptied();
    hostNamed("host3").cordoned = false;
    await world.minutes(1);
    assert.deepEqual(world.restored(), ["host3"]);
    world.pass(8 * day);
    await world.minutes(1);
    assert.deepEqual(await waiting(), ["host3"]);
    assert.ok(!(await refusals()).some((line) => line.startsWith("host3")));
  });

  test("one that was removed, or whose restore is refused for good, is said too", async () => {
    await emptied();
    world.script.hosts.splice(2, 1);
    world.script.refusing = new Fault({ ...passing.toBody(), cause: "No room for it.", retry: "never" });
    hostNamed("host4").cordoned = false;
    await world.minutes(1);
    assert.deepEqual(await waiting(), []);
    assert.match((await refusals()).join("\n"), /^host3: .*removed/m);
    assert.match((await refusals()).join("\n"), /^host4: .*No room for it/m);
  });

  test("the list of hosts is read once in a minute, for however many rules", async () => {
    await emptied();
    for (const name of ["b", "c", "d"]) {
      await world.write({ ...rackRule, name });
      const state = await world.rules.state("rack-b-first-sunday");
      assert.ok(state);
      assert.equal(await world.rules.commitState({ ...state, rule: name, version: 1 }), "committed");
    }
    let reads = 0;
    const { hosts } = world.fleet;
    world.fleet.hosts = () => {
      reads += 1;
      return hosts();
    };
    await world.minutes(1);
    assert.equal(reads, 1);
  });
});
