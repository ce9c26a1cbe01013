/** Rules' runs, hosts that enrol and triggers in the chronicle: told once, also where it could not be written or where the process died in between. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { createRuleRunner } from "#functions/rule-runner";
import { Fault } from "#protocol/fault";
import { memoryFleet } from "#test/fake/memory-fleet";
import { MemoryShutdowns } from "#test/fake/memory-shutdowns";
import { type RuleWorld, rackRule, ruleWorld } from "#test/fake/rule-world";

let world: RuleWorld;
beforeEach(async () => {
  world = ruleWorld();
  await world.write(rackRule);
  world.setNow("2027-02-07T00:58:00.000Z");
});

const told = () => world.chronicle.events.map(({ type }) => type.slice("dev.vmferry.rule.run.".length));
const unreachable = new Fault({ code: "store.unreachable", cause: "cut", action: "wait", retry: "safe" });

/** Both hosts of the rack, one after the other. */
async function wholeRun() {
  await world.minutes(5);
  world.end("host3");
  await world.minutes(3);
  world.end("host4", "partial");
  await world.minutes(3);
}

describe("a rule's run in the chronicle", () => {
  test("begins with what set it off, and ends with how each host ended, once each", async () => {
    await wholeRun();
    await world.minutes(60);
    assert.deepEqual(told(), ["started", "ended"]);
    const [began, ended] = world.chronicle.events;
    assert.ok(began?.type === "dev.vmferry.rule.run.started" && ended?.type === "dev.vmferry.rule.run.ended");
    assert.equal(began.data.trigger.type, "dev.vmferry.trigger.schedule");
    assert.deepEqual(
      ended.data.hosts.map(({ host, state, evacuationId }) => [host.name, state, evacuationId !== null]),
      [
        ["host3", "ended", true],
        ["host4", "ended", true],
      ],
    );
    assert.ok(ended.data.durationMs > 0);
    const [evacuation] = world.script.evacuations;
    assert.equal(evacuation?.origin.run, began.data.id);
  });

  test("is told later where the chronicle was away, and holds nothing up meanwhile", async () => {
    const { append } = world.chronicle;
    world.chronicle.append = async () => {
      throw unreachable;
    };
    await wholeRun();
    assert.deepEqual(world.evacuated(), ["host3", "host4"]);
    assert.deepEqual(told(), []);
    world.chronicle.append = append;
    await world.minutes(1);
    assert.deepEqual(told(), ["started", "ended"]);
  });

  test("is told by the next process where the one before died with it", async () => {
    const { append } = world.chronicle;
    world.chronicle.append = () => new Promise(() => undefined);
    void world.runner.tick();
    await world.minutes(0);
    world.setNow("2027-02-07T01:01:00.000Z");
    const dying = world.runner.tick();
    await Promise.race([dying, new Promise((resolve) => setTimeout(resolve, 20))]);
    assert.notEqual((await world.rules.state("rack-b-first-sunday"))?.run, null);
    assert.deepEqual(told(), []);
    world.chronicle.append = append;
    const { clock, ids, log, chronicle, rules, dedup, cron, fleet } = world;
    const shutdowns = new MemoryShutdowns();
    const next = createRuleRunner({ clock, ids, log, chronicle, rules, dedup, shutdowns, cron, fleet });
    await next.tick();
    assert.deepEqual(told(), ["started"]);
  });

  test("of what is known to be told nothing is asked again, and what ended long ago is left alone", async () => {
    await wholeRun();
    let appends = 0;
    const { append } = world.chronicle;
    world.chronicle.append = async (event) => {
      appends += 1;
      return append.call(world.chronicle, event);
    };
    await world.minutes(30);
    assert.equal(appends, 0);
    const { clock, ids, log, chronicle, rules, dedup, cron, fleet } = world;
    const shutdowns = new MemoryShutdowns();
    const fresh = () => createRuleRunner({ clock, ids, log, chronicle, rules, dedup, shutdowns, cron, fleet });
    await fresh().tick();
    assert.equal(appends, 2);
    world.setNow("2027-02-09T00:00:00.000Z");
    await fresh().tick();
    assert.equal(appends, 2);
    assert.deepEqual(told(), ["started", "ended"]);
  });
});

describe("a host that enrols, in the chronicle", () => {
  test("is told with its join token's id, also when its first answer was lost", async () => {
    const fleet = await memoryFleet();
    const made: { token?: unknown; id?: unknown } = JSON.parse(
      await (await fleet.ask("/v1/join-tokens", { body: {} })).text(),
    );
    const body = { token: made.token, name: "alpha", publicKey: "A".repeat(43) };
    const { append } = fleet.ports.chronicle;
    fleet.ports.chronicle.append = async () => {
      throw unreachable;
    };
    assert.equal((await fleet.ask("/v1/enrolments", { token: null, body })).status, 503);
    fleet.ports.chronicle.append = append;
    for (const _ of [1, 2]) assert.equal((await fleet.ask("/v1/enrolments", { token: null, body })).status, 201);
    const lines = (await fleet.ports.chronicle.after({ at: null, until: null, limit: 10 })).map(({ event }) => event);
    const enrolled = lines.filter(({ type }) => type === "dev.vmferry.host.enrolled");
    assert.equal(enrolled.length, 1);
    assert.ok(enrolled[0]?.type === "dev.vmferry.host.enrolled");
    assert.equal(enrolled[0].data.host.name, "alpha");
    assert.equal(enrolled[0].data.joinToken, String(made.token).split("_")[1]);
    assert.doesNotMatch(JSON.stringify(lines), new RegExp(String(made.token)));
    fleet.ports.chronicle.append = () => Promise.reject(new Error("the line has grown too large"));
    assert.equal((await fleet.ask("/v1/enrolments", { token: null, body })).status, 201);
  });
});
