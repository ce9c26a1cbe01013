/**
 * The control plane is killed at every single write of an evacuation in turn, with everything it had in mind, and another one goes on by its timer. Each time
 * every domain arrives, by one completed migration, and no limit is ever exceeded.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { evacuationPolicyDefault } from "#core/evacuation-state";
import { freshEvacuation } from "#functions/evacuation-request";
import { createRunners } from "#functions/evacuation-runner";
import type { Chronicle, EvacuationStore, MigrationStore, Ports } from "#functions/ports";
import { preflightMemory } from "#functions/preflights";
import { type EvacuationFleet, evacuationFleet, numbered } from "#test/fake/evacuation-fleet";
import { hostId } from "#test/fake/memory-fleet";

const writes = new Set<string>([
  "create",
  "commit",
  "claim",
  "unclaim",
  "takeTurn",
  "endTurn",
  "lockDomain",
  "unlockDomain",
  "point",
  "setCordoned",
  "append",
] satisfies (keyof EvacuationStore | keyof MigrationStore | keyof Chronicle | "setCordoned")[]);

class Killed extends Error {}

/** These ports until the write of that number, which is still done, `before`: not done; after it nothing answers any more. */
function mortal(ports: Ports, deathAt: number, before: boolean): { ports: Ports; died: () => boolean } {
  let count = 0;
  let isDead = false;
  const guard = <T extends object>(port: T): T =>
    new Proxy(port, {
      get(target, name) {
        const member: unknown = Reflect.get(target, name);
        if (typeof member !== "function") return member;
        return async (...words: unknown[]) => {
          if (isDead) throw new Killed("killed");
          if (writes.has(String(name))) {
            count += 1;
            isDead = count >= deathAt;
            if (isDead && before) throw new Killed("killed");
          }
          const answer: unknown = await Reflect.apply(member, target, words);
          if (isDead) throw new Killed("killed");
          return answer;
        };
      },
    });
  const { migrations, evacuations, hosts, sockets, feed, chronicle } = ports;
  const guarded = {
    chronicle: guard(chronicle),
    migrations: guard(migrations),
    evacuations: guard(evacuations),
    hosts: guard(hosts),
    sockets: guard(sockets),
    feed: guard(feed),
  };
  return { ports: { ...ports, ...guarded }, died: () => isDead };
}

const count = 4;
const policy = { ...evacuationPolicyDefault, outMax: 2, inMax: 1, fleetMax: 2 };

async function begin(fleet: EvacuationFleet, ports: Ports, id: string): Promise<void> {
  const host = await fleet.ports.hosts.byId(hostId(1));
  assert.ok(host);
  const wish = { id, origin: { by: "test", rule: null, trigger: null }, policy, deadlineMs: null };
  const { evacuations } = createRunners(ports, preflightMemory());
  await evacuations.request(await freshEvacuation(fleet.ports, host, wish), Number.POSITIVE_INFINITY);
}

async function withinLimits(fleet: EvacuationFleet): Promise<void> {
  const running = await fleet.ports.migrations.activeMigrations();
  assert.ok(running.length <= policy.fleetMax, `${running.length} at once`);
  for (const index of [2, 3])
    assert.ok(running.filter(({ destination }) => destination === hostId(index)).length <= policy.inMax);
}

/** Whatever began and ended is told once each, in that order. */
async function allTold({ ports }: EvacuationFleet, when: string): Promise<void> {
  const { chronicle } = ports;
  const told = (await chronicle.after({ at: null, until: null, limit: 1_000 })).map(({ event }) => event.id);
  assert.equal(new Set(told).size, told.length);
  const page = { limit: 200, cursor: null, active: false };
  const ended = [...(await ports.migrations.list(page)).items, ...(await ports.evacuations.list(page)).items];
  for (const { id, endedAt } of ended) {
    assert.notEqual(endedAt, null, when);
    const places = [told.indexOf(`${id}-started`), told.indexOf(`${id}-ended`)];
    assert.ok(places[0] !== -1 && (places[1] ?? -1) > (places[0] ?? 0), `${when}: ${id} is told at ${places}`);
  }
}

/** One life with a death in it; false when it was over before the death came. */
async function survives(deathAt: number, before: boolean): Promise<boolean> {
  const fleet = await evacuationFleet(Array.from({ length: count }, (_, index) => numbered(index + 1)));
  const mortals = mortal(fleet.ports, deathAt, before);
  const id = `e_${fleet.ports.ids.ulid()}`;
  await begin(fleet, mortals.ports, id).catch((error: unknown) => {
    if (!(error instanceof Killed)) throw error;
  });
  await withinLimits(fleet);
  for (let minutes = 0; minutes < 30; minutes += 1) {
    await fleet.minute();
    await withinLimits(fleet);
    await fleet.work();
    await withinLimits(fleet);
  }
  const state = await fleet.ports.evacuations.load(id);
  // Killed before it was stored: nobody was told that there is one, and the host is free again.
  if (state === null) await begin(fleet, fleet.ports, id).then(() => fleet.live());
  const ended = await fleet.ports.evacuations.load(id);
  assert.equal(ended?.status, "completed", `killed at write ${deathAt}: ${JSON.stringify(ended?.timeline)}`);
  const { items } = await fleet.ports.migrations.list({ limit: 200, cursor: null, active: false });
  const completed = items.filter(({ status }) => status === "completed");
  assert.equal(completed.length, count, `killed at write ${deathAt}`);
  assert.equal(new Set(completed.map(({ domain }) => domain.uuid)).size, count);
  assert.ok(Object.values(await fleet.places()).every((host) => host !== "host1"));
  assert.deepEqual(await fleet.ports.evacuations.claims(), []);
  assert.deepEqual(await fleet.ports.migrations.activeMigrations(), []);
  await allTold(fleet, `killed at write ${deathAt}`);
  return mortals.died();
}

/**
 * The same for what runs by reports and by the timer: from the moment of death until the next minute nothing answers, to nobody. Nothing is kept between
 * calls but answers of preflights, so that is what a kill of the whole control plane is.
 */
async function livesOn(deathAt: number): Promise<boolean> {
  const fleet = await evacuationFleet(Array.from({ length: count }, (_, index) => numbered(index + 1)));
  const id = `e_${fleet.ports.ids.ulid()}`;
  let written = 0;
  let isDead = false;
  const { migrations, evacuations, hosts, chronicle } = fleet.ports;
  for (const port of [migrations, evacuations, hosts, chronicle])
    for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(port))) {
      const member: unknown = Reflect.get(port, name);
      if (name === "constructor" || typeof member !== "function") continue;
      const value = async (...words: unknown[]) => {
        if (isDead) throw new Killed("killed");
        if (writes.has(name)) {
          written += 1;
          isDead = written === deathAt;
        }
        const answer: unknown = await Reflect.apply(member, port, words);
        if (isDead) throw new Killed("killed");
        return answer;
      };
      Object.defineProperty(port, name, { value });
    }
  const unlessKilled = async (work: () => Promise<unknown>) => {
    await work().catch((error: unknown) => {
      if (!(error instanceof Killed)) throw error;
    });
  };
  await unlessKilled(() => begin(fleet, fleet.ports, id));
  for (let minutes = 0; minutes < 30; minutes += 1) {
    await unlessKilled(() => fleet.work());
    isDead = false;
    await unlessKilled(() => fleet.minute());
    isDead = false;
    fleet.script.pushed.length = 0;
    // As the heartbeat of each host: what it owes is told again.
    for (const index of [1, 2, 3])
      for (const command of await fleet.runner.pendingOf(hostId(index)))
        fleet.script.pushed.push({ hostId: hostId(index), message: { type: "command", command } });
    await withinLimits(fleet);
  }
  const state = await fleet.ports.evacuations.load(id);
  assert.ok(state === null || state.status === "completed", `killed at write ${deathAt}: ${JSON.stringify(state)}`);
  const { items } = await fleet.ports.migrations.list({ limit: 200, cursor: null, active: false });
  assert.deepEqual(
    items.filter(({ status }) => status === "completed").length,
    state === null ? 0 : count,
    `killed at write ${deathAt}`,
  );
  assert.deepEqual(await fleet.ports.evacuations.claims(), []);
  assert.deepEqual(await fleet.ports.migrations.activeMigrations(), []);
  await allTold(fleet, `killed at write ${deathAt}`);
  return written >= deathAt;
}

describe("a control plane that is killed", () => {
  test("at each write of the whole run in turn loses nothing", async () => {
    let deaths = 0;
    for (let deathAt = 1; await livesOn(deathAt); deathAt += 1) deaths += 1;
    assert.ok(deaths >= 60, `${deaths} deaths`);
  });

  for (const before of [true, false])
    test(`${before ? "before" : "after"} each write of a request in turn loses nothing`, async () => {
      let deaths = 0;
      for (let deathAt = 1; await survives(deathAt, before); deathAt += 1) deaths += 1;
      // Claim, create, turn, commit, end of the turn, cordon, and for each start its creation, lock, pointers and first command.
      assert.ok(deaths >= 10, `${deaths} deaths`);
    });
});
