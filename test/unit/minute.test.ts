/** The timer's minute: what fails or hangs in one part of it keeps no other from its turn. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { everyMinute } from "#functions/minute";
import { rackRule, ruleWorld } from "#test/fake/rule-world";

const turns = () => new Promise((resolve) => setImmediate(resolve));

test("each task runs though another fails or never ends; a failure is logged and told at the end", async () => {
  const done: string[] = [];
  const logged: unknown[] = [];
  const log = { write: (...line: unknown[]) => void logged.push(line) };
  const task = (name: string) => async () => void done.push(name);
  const failing = async () => {
    throw new Error("the item cannot be read");
  };
  await assert.rejects(everyMinute(log, { failing, migrations: task("migrations") }), AggregateError);
  assert.deepEqual(done, ["migrations"]);
  assert.match(JSON.stringify(logged), /failing.*the item cannot be read/);
  let end = () => {};
  const hanging = everyMinute(log, {
    slow: () => new Promise<void>((resolve) => (end = resolve)),
    migrations: task("migrations again"),
  });
  await turns();
  assert.deepEqual(done, ["migrations", "migrations again"]);
  end();
  await hanging;
});

test("a rule that takes the whole minute is not the first of every minute", async () => {
  const world = ruleWorld();
  await world.write({ ...rackRule, name: "a", which: { names: ["host3"] } });
  await world.write({ ...rackRule, name: "b", which: { names: ["host4"] } });
  const { estimateMs } = world.fleet;
  const host3 = world.script.hosts.find(({ name }) => name === "host3");
  world.fleet.estimateMs = (hostId, policy) =>
    hostId === host3?.id ? new Promise(() => {}) : estimateMs(hostId, policy);
  for (const at of ["2027-02-07T01:00:00.000Z", "2027-02-07T01:01:00.000Z"]) {
    world.setNow(at);
    void world.runner.tick();
    for (let turn = 0; turn < 20; turn += 1) await turns();
  }
  assert.deepEqual(world.evacuated(), ["host4"]);
});

test("a look asks for estimates no longer than its share of the minute", async () => {
  const world = ruleWorld();
  await world.write({ ...rackRule, which: { names: ["host1", "host2", "host3", "host4"] }, how: { hostsAtOnce: 4 } });
  world.setNow("2027-02-07T01:00:00.000Z");
  let asked = 0;
  world.fleet.estimateMs = async () => {
    asked += 1;
    world.pass(10_000);
    return 60_000;
  };
  await world.runner.tick();
  assert.equal(asked, 2);
  assert.deepEqual(world.evacuated(), ["host1", "host2"]);
  await world.runner.tick();
  assert.deepEqual(world.evacuated(), ["host1", "host2", "host3", "host4"]);
});
