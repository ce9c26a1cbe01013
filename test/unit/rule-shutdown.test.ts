/** A rule that hears that a host shuts down: its deadlines, its kinds, and when what a host gave away comes home. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { eventOfShutdown, type HostShutdown } from "#core/host-shutdown";
import { ruleSchema } from "#core/rule";
import { ruleHost, ruleWorld } from "#test/fake/rule-world";

const minuteMs = 60_000;

const shutdownRule = (fields: object = {}) =>
  ruleSchema.parse({ name: "off", when: { kind: "host-shutdown" }, which: { names: ["host1"] }, ...fields });

describe("a rule that hears of it", () => {
  const shutdown = (world: ReturnType<typeof ruleWorld>, requestId: string, budgetMs: number): HostShutdown => ({
    hostId: ruleHost(1).id,
    requestId,
    kind: "reboot",
    at: world.clock.now(),
    deadlineAt: new Date(world.nowMs() + budgetMs).toISOString(),
    withdrawnAt: null,
  });
  const host = { id: ruleHost(1).id, name: "host1" };

  test("takes the earlier of its own deadline and the host's", async () => {
    for (const [deadline, ms] of [
      ["5m", 5 * minuteMs],
      ["2h", 15 * minuteMs],
    ] as const) {
      const world = ruleWorld();
      await world.write(shutdownRule({ how: { deadline } }));
      await world.runner.shutdown(eventOfShutdown(shutdown(world, "now-1", 15 * minuteMs), host, "fire"));
      assert.equal(
        world.script.evacuations[0]?.deadlineAt,
        new Date(Date.parse("2027-02-01T00:00:00.000Z") + ms).toISOString(),
      );
    }
  });

  test("waits for no approval longer than the host does, and goes by the newest request meanwhile", async () => {
    const world = ruleWorld();
    await world.write(shutdownRule({ how: { approval: "needed" } }));
    await world.runner.shutdown(eventOfShutdown(shutdown(world, "now-1", 10 * minuteMs), host, "fire"));
    const later = shutdown(world, "at-2", 20 * minuteMs);
    await world.runner.shutdown(eventOfShutdown(later, host, "fire"));
    const waiting = (await world.rules.state("off"))?.run?.hosts[0];
    assert.equal(waiting?.closesAt, later.deadlineAt);
    assert.equal(waiting?.causes.length, 2);
    await world.minutes(20);
    assert.deepEqual(world.evacuated(), []);
    const ended = (await world.rules.state("off"))?.past[0]?.hosts[0];
    assert.equal(ended?.state, "skipped");
    assert.match(ended?.reason ?? "", /nobody approved it in time/);
  });

  test("brings home what a host gave away whose reboot was too short for anybody to see it silent, and not while it still shuts down", async () => {
    const world = ruleWorld();
    await world.write(shutdownRule({ after: { restore: "whenBack" } }));
    await world.runner.shutdown(eventOfShutdown(shutdown(world, "now-1", 10 * minuteMs), host, "fire"));
    const closed = (shutting: boolean) =>
      world.script.hosts.map((each) => (each.name === "host1" ? { ...each, cordoned: true, shutting } : each));
    world.script.hosts = closed(true);
    world.end("host1");
    await world.minutes(5);
    assert.deepEqual(world.restored(), []);
    world.script.hosts = closed(false);
    await world.minutes(5);
    assert.deepEqual(world.restored(), ["host1"]);
  });

  test("leaves a host alone that a person has emptied by it", async () => {
    const world = ruleWorld();
    const record = await world.write(shutdownRule({ after: { restore: "whenBack" } }));
    await world.runner.run(record, { by: "test", id: "1", hosts: null });
    assert.deepEqual(world.evacuated(), ["host1"]);
    world.script.hosts = world.script.hosts.map((each) => ({ ...each, cordoned: each.name === "host1" }));
    world.end("host1");
    await world.minutes(5);
    assert.deepEqual(world.restored(), []);
  });

  test("hears of it whatever becomes of another that does", async () => {
    const world = ruleWorld();
    await world.write(shutdownRule({ name: "broken", which: { names: ["host2"] } }));
    await world.write(shutdownRule());
    const { state } = world.rules;
    world.rules.state = async (name) => {
      if (name === "broken") throw new Error("its item cannot be read");
      return state.call(world.rules, name);
    };
    await assert.rejects(
      world.runner.shutdown(eventOfShutdown(shutdown(world, "now-1", 10 * minuteMs), host, "fire")),
      /cannot be read/,
    );
    assert.deepEqual(world.evacuated(), ["host1"]);
  });

  test("matches the kind of shutdown by its label", async () => {
    const world = ruleWorld();
    await world.write(shutdownRule({ when: { kind: "host-shutdown", matchers: { kind: ["poweroff", "halt"] } } }));
    await world.runner.shutdown(eventOfShutdown(shutdown(world, "now-1", 10 * minuteMs), host, "fire"));
    assert.deepEqual(world.evacuated(), []);
    await world.runner.shutdown(
      eventOfShutdown({ ...shutdown(world, "now-2", 10 * minuteMs), kind: "poweroff" }, host, "fire"),
    );
    assert.deepEqual(world.evacuated(), ["host1"]);
  });
});
