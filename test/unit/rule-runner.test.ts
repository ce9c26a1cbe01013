/** Rules over a driven clock: windows, what fits, cool-down, approval, restore; alerts that storm, repeat, resolve; crashes between a decision and its request. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { ruleSchema } from "#core/rule";
import { causeBeyond } from "#core/rule-state";
import { looksBackMin } from "#core/rule-step";
import { readTrigger, type TriggerEvent } from "#core/trigger-event";
import { Fault } from "#protocol/fault";
import { alertRule, type RuleWorld, rackRule, ruleHost, ruleWorld } from "#test/fake/rule-world";

let world: RuleWorld;
beforeEach(() => {
  world = ruleWorld();
});
const hostsOf = async (rule: string) => {
  const state = await world.rules.state(rule);
  return Object.fromEntries((state?.run ?? state?.past[0])?.hosts.map(({ host, state }) => [host.name, state]) ?? []);
};
const reasonsOf = async (rule: string) => {
  const state = await world.rules.state(rule);
  return (state?.run ?? state?.past[0])?.hosts.map(({ reason }) => reason ?? "").join("; ") ?? "";
};

interface Alert {
  instance?: string;
  fingerprint?: string;
  startsAt?: string;
  status?: "firing" | "resolved";
  alertname?: string;
  severity?: string;
}
function alerts(list: readonly Alert[], truncatedAlerts = 0): TriggerEvent[] {
  const body = {
    version: "4",
    groupKey: "{}:{}",
    truncatedAlerts,
    status: "firing",
    alerts: list.map(
      ({
        instance = "host1:9100",
        fingerprint = "f1",
        startsAt = "2027-02-01T00:00:00Z",
        status = "firing",
        alertname = "HostDiskFailing",
        severity = "critical",
      }) => ({
        status,
        labels: { alertname, severity, instance },
        annotations: {},
        startsAt,
        endsAt: "0001-01-01T00:00:00Z",
        generatorURL: "",
        fingerprint,
      }),
    ),
  };
  const read = readTrigger("alertmanager", body, {
    rule: ruleSchema.parse(alertRule),
    nowMs: world.nowMs(),
    messageId: "",
  });
  assert.ok(read.ok);
  return read.events;
}
const fire = (...list: Alert[]) => world.runner.triggered("failing-disk", alerts(list));

describe("a schedule", () => {
  beforeEach(async () => {
    await world.write(rackRule);
    world.setNow("2027-02-07T00:58:00.000Z");
  });

  test("opens once, takes its hosts one after the other, with the window's end as their deadline", async () => {
    await world.minutes(1);
    assert.deepEqual(world.evacuated(), []);
    await world.minutes(5);
    assert.deepEqual(world.evacuated(), ["host3"]);
    world.end("host3");
    await world.minutes(3);
    assert.deepEqual(world.evacuated(), ["host3", "host4"]);
    const [first] = world.script.evacuations;
    assert.equal(first?.deadlineAt, "2027-02-07T04:00:00.000Z");
    assert.equal(first?.origin.rule, "rack-b-first-sunday");
    world.end("host4", "partial");
    await world.minutes(2);
    assert.deepEqual(await hostsOf("rack-b-first-sunday"), { host3: "ended", host4: "ended" });
    assert.match(await reasonsOf("rack-b-first-sunday"), /partial/);
    // The same window does not open again, the next one does.
    await world.minutes(120);
    assert.equal(world.evacuated().length, 2);
    world.setNow("2027-03-07T01:00:00.000Z");
    await world.minutes(1);
    assert.deepEqual(world.evacuated(), ["host3", "host4", "host3"]);
  });

  test("what does not fit any more is not started, and what runs is left alone", async () => {
    world.script.minutes.set("host4", 60);
    await world.minutes(3);
    world.setNow("2027-02-07T03:30:00.000Z");
    world.end("host3");
    await world.minutes(2);
    assert.deepEqual(world.evacuated(), ["host3"]);
    assert.deepEqual(await hostsOf("rack-b-first-sunday"), { host3: "ended", host4: "skipped" });
    assert.match(await reasonsOf("rack-b-first-sunday"), /60 min and the window closes at 2027-02-07T04:00/);
  });

  test("one that does not fit makes way for one that does; an evacuation outlives its window", async () => {
    world.script.minutes.set("host3", 500);
    await world.minutes(3);
    assert.deepEqual(world.evacuated(), ["host4"]);
    world.setNow("2027-02-07T04:30:00.000Z");
    await world.minutes(1);
    assert.deepEqual(await hostsOf("rack-b-first-sunday"), { host3: "skipped", host4: "started" });
    assert.deepEqual(world.script.cancelled, []);
  });

  test("an estimate that cannot be made starts nothing; the reason stands at the window's end", async () => {
    world.script.minutes.set("host3", null).set("host4", null);
    await world.minutes(5);
    assert.deepEqual(world.evacuated(), []);
    world.setNow("2027-02-07T04:00:00.000Z");
    await world.minutes(1);
    assert.deepEqual(await hostsOf("rack-b-first-sunday"), { host3: "skipped", host4: "skipped" });
    assert.match(await reasonsOf("rack-b-first-sunday"), /no estimate/);
  });

  test("a silent host waits inside the window and has its turn when it is back", async () => {
    world.script.hosts = [ruleHost(3, { connected: false }), ruleHost(4)];
    await world.minutes(3);
    assert.deepEqual(world.evacuated(), ["host4"]);
    world.end("host4");
    world.script.hosts = [ruleHost(3), ruleHost(4)];
    await world.minutes(2);
    assert.deepEqual(world.evacuated(), ["host4", "host3"]);
  });

  test("an excluded day opens nothing", async () => {
    await world.write({ ...rackRule, when: { ...rackRule.when, exclude: { dates: ["2027-02-07"] } } });
    await world.minutes(200);
    assert.deepEqual(world.evacuated(), []);
  });

  test("a paused rule opens nothing, and starts no more of what was open", async () => {
    await world.minutes(3);
    await world.book.change("rack-b-first-sunday", "test", { paused: true });
    world.end("host3");
    await world.minutes(10);
    assert.deepEqual(world.evacuated(), ["host3"]);
    assert.equal((await hostsOf("rack-b-first-sunday")).host3, "ended");
  });

  test("a deleted rule withdraws what has not started and brings nothing home", async () => {
    await world.minutes(3);
    const record = await world.book.change("rack-b-first-sunday", "test", { deleted: true });
    await world.runner.step(record);
    assert.deepEqual(await hostsOf("rack-b-first-sunday"), { host3: "started", host4: "cancelled" });
    world.end("host3");
    await world.minutes(3);
    assert.deepEqual(world.restored(), []);
  });

  test("restore: when the host was away and has answered for a while; a boot between two others is not back", async () => {
    await world.minutes(3);
    const [host3] = world.script.hosts.filter(({ name }) => name === "host3");
    assert.ok(host3);
    host3.cordoned = true;
    world.end("host3");
    await world.minutes(5);
    assert.deepEqual(world.restored(), [], "it is still closed and was never away");
    for (let boot = 0; boot < 2; boot += 1) {
      host3.connected = false;
      await world.minutes(2);
      host3.connected = true;
      await world.minutes(looksBackMin - 1);
      assert.deepEqual(world.restored(), [], "it has not answered for long");
    }
    await world.minutes(1);
    assert.deepEqual(world.restored(), ["host3"]);
    world.end("host3");
    await world.minutes(5);
    assert.deepEqual(world.restored(), ["host3"]);
    assert.equal(
      (await world.rules.state("rack-b-first-sunday"))?.restores.filter(({ host }) => host.name === "host3").length,
      0,
    );
  });

  test("restore: when a person has opened the host to domains", async () => {
    const host3 = world.script.hosts.find(({ name }) => name === "host3");
    assert.ok(host3);
    host3.cordoned = true;
    await world.minutes(3);
    world.end("host3");
    await world.minutes(2);
    host3.cordoned = false;
    await world.minutes(1);
    assert.deepEqual(world.restored(), ["host3"]);
  });
});

describe("alerts", () => {
  beforeEach(() => world.write(alertRule));

  test("the same alert a thousand times: one evacuation", async () => {
    const counts = await Promise.all(Array.from({ length: 1_000 }, () => fire({})));
    assert.deepEqual(world.evacuated(), ["host1"]);
    assert.equal(counts.filter(({ accepted }) => accepted === 1).length, 1);
    assert.equal(counts.filter(({ repeated }) => repeated === 1).length, 999);
    assert.equal(world.script.requests, 1);
  });

  test("a flapping alert, new each time: one evacuation, the rest is held off by the cool-down", async () => {
    for (let flap = 0; flap < 100; flap += 1) {
      await fire({ startsAt: `2027-02-01T00:00:${String(flap).padStart(3, "0")}Z` });
      if (flap === 3) world.end("host1");
    }
    assert.deepEqual(world.evacuated(), ["host1"]);
    await world.minutes(1);
    await fire({ startsAt: "again" });
    const state = await world.rules.state("failing-disk");
    assert.match(state?.refusals[0]?.cause ?? "", /^cool-down: /);
    // The same alert is heard again once the cool-down is over.
    world.pass(3_600_000);
    assert.deepEqual(await fire({ startsAt: "again" }), { accepted: 1, repeated: 0, ignored: 0 });
    assert.deepEqual(world.evacuated(), ["host1", "host1"]);
  });

  test("a storm over many hosts: each once, one after the other", async () => {
    world.script.hosts = Array.from({ length: 40 }, (_, index) => ruleHost(index + 1));
    const list = Array.from({ length: 200 }, (_, index) => ({
      instance: `host${(index % 40) + 1}`,
      fingerprint: `f${index}`,
    }));
    assert.deepEqual(await fire(...list), { accepted: 200, repeated: 0, ignored: 0 });
    assert.equal(world.evacuated().length, 1);
    for (let done = 0; done < 45; done += 1) {
      world.end(world.evacuated().at(-1) ?? "");
      await world.minutes(1);
    }
    assert.deepEqual(
      world.evacuated(),
      world.script.hosts.map(({ name }) => name),
    );
  });

  test("labels that do not match, and hosts that nobody knows, evacuate nothing", async () => {
    assert.equal((await fire({ alertname: "Other" })).ignored, 1);
    assert.equal((await fire({ severity: "info" })).ignored, 1);
    await fire({ instance: "host99:9100", fingerprint: "f9" });
    assert.deepEqual(world.evacuated(), []);
    assert.equal((await world.rules.state("failing-disk"))?.refusals[0]?.cause, "no host matches");
  });

  test("an alert about a silent host moves nothing; the same alert is heard again when it answers", async () => {
    world.script.hosts = [ruleHost(1, { connected: false })];
    await fire({});
    assert.deepEqual(world.evacuated(), []);
    assert.match((await world.rules.state("failing-disk"))?.refusals[0]?.cause ?? "", /silent/);
    world.script.hosts = [ruleHost(1)];
    assert.equal((await fire({})).repeated, 1);
    world.pass(11 * 60_000);
    await fire({});
    assert.deepEqual(world.evacuated(), ["host1"]);
  });

  test("resolved cancels what has not started, and lets what runs start nothing more", async () => {
    await fire({ instance: "host1", fingerprint: "a" }, { instance: "host2", fingerprint: "b" });
    assert.deepEqual(await hostsOf("failing-disk"), { host1: "started", host2: "waiting" });
    await fire({ instance: "host2", fingerprint: "b", status: "resolved" });
    assert.deepEqual(await hostsOf("failing-disk"), { host1: "started", host2: "cancelled" });
    assert.deepEqual(world.script.cancelled, []);
    await fire({ instance: "host1", fingerprint: "a", status: "resolved" });
    assert.deepEqual(world.script.cancelled, [world.script.evacuations[0]?.id]);
    world.end("host1", "cancelled");
    await world.minutes(2);
    assert.deepEqual(world.evacuated(), ["host1"]);
  });

  test("an evacuation that two alerts ask for goes on while one of them holds", async () => {
    await fire({ fingerprint: "a" }, { fingerprint: "b" });
    await fire({ fingerprint: "a", status: "resolved" });
    assert.deepEqual(world.script.cancelled, []);
    await fire({ fingerprint: "b", status: "resolved" });
    assert.equal(world.script.cancelled.length, 1);
  });

  test("causes beyond the bound hold for good", async () => {
    await fire(...Array.from({ length: 9 }, (_, index) => ({ fingerprint: `f${index}` })));
    const causes = (await world.rules.state("failing-disk"))?.run?.hosts[0]?.causes ?? [];
    assert.equal(causes.at(-1), causeBeyond);
    await fire(...Array.from({ length: 9 }, (_, index) => ({ fingerprint: `f${index}`, status: "resolved" as const })));
    assert.deepEqual(world.script.cancelled, []);
  });

  test("a resolve that comes before its firing stands", async () => {
    await fire({ status: "resolved" });
    assert.equal((await fire({})).repeated, 1);
    assert.deepEqual(world.evacuated(), []);
  });

  test("a truncated message takes nothing back, but what it says is firing counts", async () => {
    await fire({});
    await world.runner.triggered("failing-disk", alerts([{ status: "resolved" }], 3));
    assert.deepEqual(world.script.cancelled, []);
    world.end("host1");
    await world.minutes(1);
    await world.runner.triggered("failing-disk", alerts([{ instance: "host2", fingerprint: "x" }], 3));
    assert.deepEqual(world.evacuated(), ["host1", "host2"]);
  });

  test("paused: nothing is heard, and nothing is remembered", async () => {
    await world.book.change("failing-disk", "test", { paused: true });
    assert.equal((await fire({})).ignored, 1);
    await world.book.change("failing-disk", "test", { paused: false });
    assert.equal((await fire({})).accepted, 1);
  });
});

describe("approval", () => {
  beforeEach(() => world.write({ ...alertRule, how: { approval: "needed" } }));
  const runId = async () => (await world.rules.state("failing-disk"))?.run?.id ?? "";
  const record = () => world.book.load("failing-disk");

  test("nothing starts before it, everything that waited after it; who came later waits anew", async () => {
    await fire({});
    await world.minutes(3);
    assert.deepEqual(world.evacuated(), []);
    await world.runner.decide(await record(), { runId: await runId(), approved: true, by: "ann" });
    assert.deepEqual(world.evacuated(), ["host1"]);
    assert.equal((await world.rules.state("failing-disk"))?.run?.approvedBy, "ann");
    await fire({ instance: "host2", fingerprint: "f2" });
    world.end("host1");
    await world.minutes(2);
    assert.deepEqual(world.evacuated(), ["host1"]);
  });

  test("a refusal ends it; a second word on it is a conflict", async () => {
    await fire({});
    const id = await runId();
    await world.runner.decide(await record(), { runId: id, approved: false, by: "ann" });
    assert.deepEqual(await hostsOf("failing-disk"), { host1: "cancelled" });
    await assert.rejects(
      world.runner.decide(await record(), { runId: id, approved: true, by: "bob" }),
      (error) => error instanceof Fault && error.code === "request.conflict",
    );
    assert.deepEqual(world.evacuated(), []);
  });

  test("what nobody approves in a day is skipped", async () => {
    await fire({});
    world.pass(86_400_000);
    await world.minutes(1);
    assert.deepEqual(await hostsOf("failing-disk"), { host1: "skipped" });
    assert.match(await reasonsOf("failing-disk"), /nobody approved/);
  });
});

describe("a person", () => {
  test("runs a schedule outside its window; the same request again is the same run", async () => {
    const record = await world.write(rackRule);
    for (let twice = 0; twice < 2; twice += 1) await world.runner.run(record, { by: "ann", id: "one", hosts: null });
    assert.deepEqual(world.evacuated(), ["host3"]);
    world.end("host3");
    await world.minutes(1);
    world.end("host4");
    await world.minutes(1);
    await world.runner.run(record, { by: "ann", id: "one", hosts: null });
    assert.deepEqual(world.evacuated(), ["host3", "host4"]);
    assert.equal(world.script.evacuations[0]?.deadlineAt, null);
  });

  test("names the hosts of a rule whose trigger names them, within its selector", async () => {
    const record = await world.write({ ...alertRule, which: { ...alertRule.which, labels: { rack: "a" } } });
    const nobody = await world.runner.run(record, { by: "ann", id: "1", hosts: null });
    assert.match(nobody.refusals[0]?.cause ?? "", /name them/);
    await world.runner.run(record, { by: "ann", id: "2", hosts: ["host2", "host3"] });
    await world.minutes(2);
    assert.deepEqual(world.evacuated(), ["host2"]);
  });

  test("a preview says what would be done and does nothing", async () => {
    const record = await world.write(rackRule);
    const decision = await world.runner.preview(record.rule, { by: "ann", hosts: null });
    assert.deepEqual(
      decision.hosts.map(({ name }) => name),
      ["host3", "host4"],
    );
    assert.equal(await world.rules.state(record.name), null);
  });
});

describe("when something fails", () => {
  beforeEach(() => world.write(alertRule));
  const passing = new Fault({ code: "store.unreachable", cause: "away", action: "wait", retry: "safe" });

  test("a request that may pass is repeated under the same id until it is taken", async () => {
    world.script.refusing = passing;
    await fire({});
    assert.deepEqual(world.evacuated(), []);
    await world.minutes(2);
    world.script.refusing = null;
    await world.minutes(1);
    const stored = (await world.rules.state("failing-disk"))?.run?.hosts[0]?.evacuationId;
    assert.deepEqual(
      world.script.evacuations.map(({ id }) => id),
      [stored],
    );
    await world.minutes(3);
    assert.equal(world.script.evacuations.length, 1);
  });

  test("a refusal for good is the host's end, with its cause", async () => {
    world.script.refusing = new Fault({
      code: "request.conflict",
      cause: "Another evacuation has the host.",
      action: "wait",
      retry: "never",
    });
    await fire({});
    assert.deepEqual(await hostsOf("failing-disk"), { host1: "skipped" });
    assert.match(await reasonsOf("failing-disk"), /Another evacuation/);
  });

  test("what was never taken is not begun after its window, and says why", async () => {
    await world.write(rackRule);
    world.setNow("2027-02-07T01:00:00.000Z");
    world.script.refusing = new Fault({ ...passing.toBody(), cause: "Another evacuation has the host." });
    await world.runner.tick();
    world.setNow("2027-02-07T03:58:00.000Z");
    await world.minutes(3);
    world.script.refusing = null;
    await world.minutes(3);
    assert.deepEqual(world.evacuated(), []);
    assert.deepEqual(await hostsOf("rack-b-first-sunday"), { host3: "skipped", host4: "skipped" });
    assert.match(await reasonsOf("rack-b-first-sunday"), /Another evacuation has the host/);
  });

  test("an event whose storing fails is heard again at once", async () => {
    const { commitState } = world.rules;
    world.rules.commitState = async () => {
      throw passing;
    };
    await assert.rejects(fire({}));
    world.rules.commitState = commitState;
    assert.equal((await fire({})).accepted, 1);
    assert.deepEqual(world.evacuated(), ["host1"]);
  });

  test("a process that dies between its claim and its commit leaves a way in after a minute", async () => {
    await world.dedup.first("failing-disk alertmanager f1 2027-02-01T00:00:00Z", world.nowMs() + 60_000);
    assert.equal((await fire({})).repeated, 1);
    world.pass(60_000);
    assert.equal((await fire({})).accepted, 1);
  });

  test("two timers at once open a window once", async () => {
    await world.write(rackRule);
    world.setNow("2027-02-07T01:00:00.000Z");
    await Promise.all([world.runner.tick(), world.runner.tick(), world.runner.tick()]);
    assert.deepEqual(world.evacuated(), ["host3"]);
  });

  test("one rule's trouble is not the others'", async () => {
    await world.write(rackRule);
    await world.write({ ...rackRule, name: "also" });
    const { commitState } = world.rules;
    world.rules.commitState = async (state) => {
      if (state.rule === "also") throw passing;
      return commitState.call(world.rules, state);
    };
    world.setNow("2027-02-07T01:00:00.000Z");
    await world.runner.tick();
    assert.deepEqual(world.evacuated(), ["host3"]);
    assert.ok(world.script.logged.some((line) => line.includes("could not be looked at")));
  });
});
