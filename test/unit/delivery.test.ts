/**
 * What is promised of delivery: whatever instant a function dies at, what is owed to a host reaches it by its next hello or
 * heartbeat or by the timer, always the same command, and nothing is held for good. The function dies here at every single
 * request that it makes.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { receive } from "#functions/session";
import type { Command } from "#protocol/command";
import { domainNamed, hostId, memoryFleet, reportBody, webUuid } from "#test/fake/memory-fleet";

/** A function that has died makes no further request: after the fatal one every other fails as well, until it is revived. */
async function mortal() {
  const fleet = await memoryFleet();
  await fleet.addHost(1, {}, [domainNamed("web")]);
  await fleet.addHost(2);
  let left = Number.POSITIVE_INFINITY;
  let made = 0;
  let died = false;
  const { migrations, tasks, sockets } = fleet.ports;
  for (const port of [migrations, tasks, sockets])
    for (const name of [
      ...Object.getOwnPropertyNames(port),
      ...Object.getOwnPropertyNames(Object.getPrototypeOf(port)),
    ]) {
      const method: unknown = Reflect.get(port, name);
      if (typeof method !== "function" || name === "constructor" || name in Object.prototype) continue;
      Object.defineProperty(port, name, {
        value: async (...words: unknown[]) => {
          if (made >= left) {
            died = true;
            throw new Error("the function is dead");
          }
          made += 1;
          return Reflect.apply(method, port, words);
        },
      });
    }
  /** Runs it and lets it die before its n-th request; false: it came through. */
  async function dyingAt(n: number, act: () => Promise<unknown>): Promise<boolean> {
    [made, left, died] = [0, n, false];
    // What it would have answered reaches nobody.
    await act().catch(() => {});
    left = Number.POSITIVE_INFINITY;
    return died;
  }
  /** What a host gets with its heartbeat, as its shim sees it. */
  async function heartbeat(index: number): Promise<Command[]> {
    const session = { hostId: hostId(index), nonce: "n", publicUrl: "http://x", session: "s" };
    const { replies } = await receive(fleet.ports, fleet.runner, session, { type: "heartbeat" });
    return replies.flatMap((reply) => (reply.type === "command" ? [reply.command] : []));
  }
  const report = (command: Command, index: number) =>
    fleet.runner.reported(hostId(index), {
      commandId: command.id,
      migrationId: command.migrationId,
      epoch: command.epoch,
      ms: 1,
      result: { ok: true, body: reportBody(command.kind) },
    });
  return { ...fleet, dyingAt, heartbeat, report };
}
type Mortal = Awaited<ReturnType<typeof mortal>>;

/** Heartbeats of both hosts alone move everything on, with the timer each minute, until nothing is owed any more. */
async function carry(it: Mortal): Promise<void> {
  for (let minutes = 0; minutes < 40; minutes += 1) {
    it.script.pushed.length = 0;
    for (const index of [1, 2]) for (const command of await it.heartbeat(index)) await it.report(command, index);
    it.pass(60_000);
    for (const index of [1, 2]) await it.ports.hosts.seen(hostId(index), { at: it.ports.clock.now() });
    await it.runner.tick();
  }
}

const nothingHeld = async (it: Mortal) => {
  assert.deepEqual(await it.ports.migrations.activeMigrations(), []);
  for (const index of [1, 2]) assert.deepEqual(await it.ports.migrations.migrationsOf(hostId(index)), []);
};

/** More requests than any of these calls makes. */
const requestsMax = 60;

describe("a function that dies before each of its requests in turn", () => {
  const request = {
    id: "m_01JE0000000000000000009999",
    domain: { uuid: webUuid, name: "web" },
    source: { id: hostId(1), name: "host1", publicKey: "A".repeat(43) },
    destination: { id: hostId(2), name: "host2", publicKey: "A".repeat(43) },
    options: { offline: false, unsafe: false, autoConverge: false, bandwidthMiBps: null },
    accept: [],
  };

  test("a request for a migration: it is carried to its end, or has left no trace", async () => {
    let deaths = 0;
    for (let n = 0; n < requestsMax; n += 1) {
      const it = await mortal();
      if (!(await it.dyingAt(n, () => it.runner.request(request)))) break;
      deaths += 1;
      await carry(it);
      const state = await it.ports.migrations.load(request.id);
      assert.ok(state === null || state.status === "completed", `died at ${n}: ${state?.status} ${state?.step}`);
      await nothingHeld(it);
    }
    assert.ok(deaths >= 4, `${deaths}`);
  });

  test("a report: the shim repeats it, and the next command arrives with a heartbeat at the latest", async () => {
    let deaths = 0;
    for (let n = 0; n < requestsMax; n += 1) {
      const it = await mortal();
      await it.runner.request(request);
      const [first] = await it.heartbeat(1);
      assert.ok(first);
      it.script.pushed.length = 0;
      if (!(await it.dyingAt(n, () => it.report(first, 1)))) break;
      deaths += 1;
      assert.deepEqual(it.script.pushed, []);
      // Unacknowledged, so it is said again; stored already or not makes no difference.
      await it.report(first, 1);
      const owed = await it.heartbeat(2);
      assert.deepEqual(
        owed.map(({ kind }) => kind),
        ["inspectDestination"],
      );
      assert.deepEqual(await it.heartbeat(2), owed, "the very same again");
      await carry(it);
      assert.equal((await it.ports.migrations.load(request.id))?.status, "completed");
      await nothingHeld(it);
    }
    assert.ok(deaths >= 3, `${deaths}`);
  });

  test("a bundle by hand: it is done by heartbeat and timer, or has left no trace; asked again it is the same", async () => {
    const task = {
      id: "b_01JE0000000000000000009999",
      kind: "export" as const,
      host: request.source,
      domain: request.domain,
      bundle: null,
    };
    let deaths = 0;
    for (let n = 0; n < requestsMax; n += 1) {
      const it = await mortal();
      if (!(await it.dyingAt(n, () => it.runner.requestBundle(task)))) break;
      deaths += 1;
      await carry(it);
      const found = await it.ports.tasks.load(task.id);
      assert.ok(found === null || found.status === "completed", `died at ${n}: ${found?.status}`);
      await nothingHeld(it);
      const again = await it.runner.requestBundle(task);
      assert.equal(again.status, found === null ? "running" : "completed");
      await carry(it);
      assert.equal((await it.ports.tasks.load(task.id))?.status, "completed");
      await nothingHeld(it);
    }
    assert.ok(deaths >= 4, `${deaths}`);
  });
});
