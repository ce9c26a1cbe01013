/**
 * What comes at the wrong moment: a cancel between a decision and its start, an end whose claim was read before it was given back, a deadline while nothing
 * can be read, migrations that are stranded while others wait, an undo of what others have moved since.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type EvacuationPolicy, type EvacuationState, evacuationPolicyDefault } from "#core/evacuation-state";
import { freshEvacuation, freshRestore, freshUndo } from "#functions/evacuation-request";
import { createRunners } from "#functions/evacuation-runner";
import { preflightMemory } from "#functions/preflights";
import { type EvacuationFleet, evacuationFleet, numbered, uuidOf } from "#test/fake/evacuation-fleet";
import { hostId } from "#test/fake/memory-fleet";

const wishOf = (fleet: EvacuationFleet, policy: Partial<EvacuationPolicy> = {}, deadlineMs: number | null = null) => ({
  id: `e_${fleet.ports.ids.ulid()}`,
  origin: { by: "test", rule: null, trigger: null },
  policy: { ...evacuationPolicyDefault, ...policy },
  deadlineMs,
});

async function begin(
  fleet: EvacuationFleet,
  policy: Partial<EvacuationPolicy> = {},
  deadlineMs: number | null = null,
): Promise<EvacuationState> {
  const host = await fleet.ports.hosts.byId(hostId(1));
  assert.ok(host);
  const fresh = await freshEvacuation(fleet.ports, host, wishOf(fleet, policy, deadlineMs));
  return fleet.evacuations.request(fresh, Number.POSITIVE_INFINITY);
}

async function loaded(fleet: EvacuationFleet, id: string): Promise<EvacuationState> {
  const state = await fleet.ports.evacuations.load(id);
  assert.ok(state);
  return state;
}

test("what was decided before a cancel and not begun by then is not begun after it", async () => {
  const fleet = await evacuationFleet([1, 2].map((index) => numbered(index)));
  const { migrations, evacuations } = fleet.ports;
  const lockDomain = migrations.lockDomain.bind(migrations);
  let id: string | null = null;
  migrations.lockDomain = async (lock) => {
    // The first of the two has its lock: somebody cancels before the second is begun.
    if (id === null) {
      id = (await evacuations.claims())[0]?.evacuationId ?? "";
      await fleet.evacuations.cancel(id, "somebody");
    }
    return lockDomain(lock);
  };
  const state = await begin(fleet, { outMax: 2, inMax: 2 });
  const { items } = await migrations.list({ limit: 200, cursor: null, active: false });
  assert.equal(items.length, 1);
  await fleet.live();
  const ended = await loaded(fleet, state.id);
  assert.equal(ended.status, "cancelled");
  assert.deepEqual(ended.domains.map(({ state: result }) => result).sort(), ["moved", "stays"]);
});

test("who let go of the host does nothing more to it, though a timer had read that it holds it", async () => {
  const fleet = await evacuationFleet([numbered(1)], { hosts: { 2: { lastSeenAt: null }, 3: { lastSeenAt: null } } });
  const { evacuations, hosts } = fleet.ports;
  const { id } = await begin(fleet);
  const stale = await evacuations.claims();
  assert.equal(stale.length, 1);
  await fleet.evacuations.cancel(id, "somebody");
  assert.equal((await hosts.byId(hostId(1)))?.cordoned, false);
  await hosts.setCordoned(hostId(1), true);
  const claims = evacuations.claims.bind(evacuations);
  let reads = 0;
  evacuations.claims = async () => {
    reads += 1;
    return reads === 1 ? stale : claims();
  };
  await fleet.evacuations.tick();
  assert.equal((await hosts.byId(hostId(1)))?.cordoned, true);
});

test("the deadline ends it even while nothing of the fleet can be read", async () => {
  const fleet = await evacuationFleet([numbered(1)], { hosts: { 2: { lastSeenAt: null }, 3: { lastSeenAt: null } } });
  const { id } = await begin(fleet, {}, 5 * 60_000);
  fleet.ports.hosts.list = async () => {
    throw new Error("one item is not of the form it must have");
  };
  for (let minute = 0; minute < 4; minute += 1) await fleet.minute();
  assert.equal((await loaded(fleet, id)).status, "running");
  await fleet.minute();
  const ended = await loaded(fleet, id);
  assert.ok(ended.endedAt !== null, ended.status);
  assert.equal(ended.stopped?.code, "step.overdue");
  assert.deepEqual(await fleet.ports.evacuations.claims(), []);
});

test("who remembers no preflight starts nothing, so it hears of an end without the fleet's turn or list", async () => {
  const fleet = await evacuationFleet([1, 2].map((index) => numbered(index)));
  const { migrations, evacuations, hosts } = fleet.ports;
  await begin(fleet, { outMax: 1 });
  const [first] = (await migrations.list({ limit: 200, cursor: null, active: true })).items;
  const state = await migrations.load(first?.id ?? "");
  assert.ok(state);
  const asked: string[] = [];
  const takeTurn = evacuations.takeTurn.bind(evacuations);
  evacuations.takeTurn = async (...words) => {
    asked.push("turn");
    return takeTurn(...words);
  };
  const list = hosts.list.bind(hosts);
  hosts.list = async () => {
    asked.push("hosts");
    return list();
  };
  await createRunners(fleet.ports, preflightMemory()).evacuations.migrationEnded(state);
  assert.equal(asked.join(), "");
  await fleet.evacuations.migrationEnded(state);
  assert.ok(asked.includes("turn"));
});

test("what is on its way to the host when it is to be emptied is moved on as well, and where it turns back it is nobody's concern", async () => {
  for (const failing of [
    {},
    { prepare: { code: "prepare.failed", cause: "no", action: "none", retry: "safe" } } as const,
  ]) {
    const fleet = await evacuationFleet([numbered(1)], { elsewhere: { 2: [numbered(2)] } });
    const response = await fleet.ask("/v1/migrations", { body: { domain: "web2", destination: "host1" } });
    assert.equal(response.status, 202, await response.text());
    const { id } = await begin(fleet, {});
    await fleet.work(failing);
    await fleet.live();
    const places = await fleet.places();
    assert.ok(!Object.values(places).includes("host1"), JSON.stringify(places));
    assert.equal((await loaded(fleet, id)).status, "completed");
  }
});

test("hosts that have said that they shut down are no mass failure: a rack that goes down keeps nobody from being emptied", async () => {
  for (const isSaid of [true, false]) {
    const fleet = await evacuationFleet([1, 2, 3].map((index) => numbered(index)));
    const at = fleet.ports.clock.now();
    for (const index of [4, 5]) {
      await fleet.addHost(index);
      const shuttingUntil = new Date(Date.parse(at) + 15 * 60_000).toISOString();
      await fleet.ports.hosts.seen(hostId(index), { at, ...(isSaid ? { shuttingUntil } : {}) });
    }
    const { id } = await begin(fleet, { outMax: 1 });
    for (let minutes = 0; minutes < 2; minutes += 1) await fleet.minute([1, 2, 3]);
    assert.equal((await loaded(fleet, id)).held === null, isSaid);
  }
});

test("what is stranded takes nobody's slot: the others go on", async () => {
  const fleet = await evacuationFleet([1, 2, 3].map((index) => numbered(index)));
  const { migrations } = fleet.ports;
  const { id } = await begin(fleet, { outMax: 2, inMax: 2, fleetMax: 2 });
  const { items } = await migrations.list({ limit: 200, cursor: null, active: true });
  assert.equal(items.length, 2);
  for (const item of items) {
    const state = await migrations.load(item.id);
    assert.ok(state);
    await migrations.commit({ ...state, status: "stranded", version: state.version + 1 });
  }
  await fleet.evacuations.tick();
  assert.equal((await migrations.activeMigrations()).length, 3);
  const third = (await loaded(fleet, id)).domains.filter(({ state }) => state === "moving");
  assert.equal(third.length, 1);
  assert.ok(!items.some(({ domain }) => domain.uuid === third[0]?.domain.uuid));
});

test("an undo leaves what somebody has taken to the same host since", async () => {
  const fleet = await evacuationFleet([1, 2].map((index) => numbered(index)));
  const policy = { to: [hostId(2)] };
  const { id } = await begin(fleet, policy);
  await fleet.live();
  const first = await loaded(fleet, id);
  assert.equal(first.status, "completed");
  const undo = async () =>
    (await freshUndo(fleet.ports, first, wishOf(fleet))).domains.map(({ domain }) => domain.name);
  assert.deepEqual((await undo()).sort(), ["web1", "web2"]);
  await fleet.evacuations.request(await freshUndo(fleet.ports, first, wishOf(fleet)), Number.POSITIVE_INFINITY);
  await fleet.live();
  assert.deepEqual(await fleet.places(), { web1: "host1", web2: "host1" });
  // Now by another evacuation, which its own undo takes back.
  fleet.pass(60_000);
  for (const index of [1, 2, 3]) await fleet.ports.hosts.seen(hostId(index), { at: fleet.ports.clock.now() });
  const second = await begin(fleet, policy);
  await fleet.live();
  assert.deepEqual(await fleet.places(), { web1: "host2", web2: "host2" });
  assert.deepEqual(await undo(), []);
  const own = await freshUndo(fleet.ports, await loaded(fleet, second.id), wishOf(fleet));
  assert.deepEqual(own.domains.map(({ domain }) => domain.uuid).sort(), [uuidOf(1), uuidOf(2)]);
});

test("where looks take the whole minute, the next minute begins with others", async () => {
  const fleet = await evacuationFleet([]);
  const { evacuations } = fleet.ports;
  const ids = Array.from({ length: 8 }, () => `e_${fleet.ports.ids.ulid()}`);
  for (const [index, id] of ids.entries()) await evacuations.claim(hostId(index + 1), id);
  const looked = new Set<string>();
  evacuations.load = (id) => {
    looked.add(id);
    return new Promise(() => {});
  };
  for (let minute = 0; minute < 2; minute += 1) {
    fleet.pass(60_000);
    void fleet.evacuations.tick();
    for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setImmediate(resolve));
  }
  assert.deepEqual([...looked].sort(), ids.toSorted());
});

test("a claim that the timer took away before the evacuation was stored is made again; who comes too late ends", async () => {
  const fleet = await evacuationFleet([numbered(1)]);
  const { evacuations } = fleet.ports;
  const create = evacuations.create.bind(evacuations);
  let between = async (id: string) => evacuations.unclaim(hostId(1), id);
  evacuations.create = async (state) => {
    await between(state.id);
    return create(state);
  };
  const state = await begin(fleet);
  assert.deepEqual(
    (await evacuations.claims()).map(({ evacuationId }) => evacuationId),
    [state.id],
  );
  await fleet.live();
  assert.equal((await loaded(fleet, state.id)).status, "completed");

  // Worse: meanwhile another has the host.
  const other = `e_${fleet.ports.ids.ulid()}`;
  let late = "";
  between = async (id) => {
    late = id;
    await evacuations.unclaim(hostId(1), id);
    await evacuations.claim(hostId(1), other);
  };
  await assert.rejects(begin(fleet), /request\.conflict/);
  const ended = await loaded(fleet, late);
  assert.equal(ended.status, "cancelled");
  assert.deepEqual(
    (await evacuations.claims()).map(({ evacuationId }) => evacuationId),
    [other],
  );
});

/** The first migration of the evacuation strands, the evacuation ends without it, and only then the domain arrives, or does not. */
async function stranded(fleet: EvacuationFleet, ends: "completed" | "rolledBack"): Promise<EvacuationState> {
  const { migrations } = fleet.ports;
  const { id } = await begin(fleet, { to: [hostId(2)] });
  const [item] = (await migrations.list({ limit: 200, cursor: null, active: true })).items;
  const begun = await migrations.load(item?.id ?? "");
  assert.ok(begun);
  await migrations.commit({ ...begun, status: "stranded", version: begun.version + 1 });
  fleet.script.pushed.splice(0);
  await fleet.evacuations.tick();
  const ended = await loaded(fleet, id);
  assert.equal(ended.domains[0]?.state, "failed");
  fleet.pass(60_000);
  const endedAt = fleet.ports.clock.now();
  await migrations.commit({ ...begun, status: ends, endedAt, version: begun.version + 2 });
  await migrations.unlockDomain(begun.domain.uuid, begun.id);
  await fleet.work();
  return loaded(fleet, id);
}

const restoreOf = async (fleet: EvacuationFleet, index: number) => {
  const host = await fleet.ports.hosts.byId(hostId(index));
  assert.ok(host);
  return freshRestore(fleet.ports, host, { ...wishOf(fleet), skip: [] });
};
const wants = ({ domains }: EvacuationState) => domains.map(({ domain, homeId }) => `${domain.name}@${homeId.at(-1)}`);

test("what arrived after its evacuation had ended belongs home as well, also where it was moved on since", async () => {
  const fleet = await evacuationFleet([numbered(1)]);
  const of = await stranded(fleet, "completed");
  assert.deepEqual(wants(await restoreOf(fleet, 1)), ["web1@2"]);
  assert.deepEqual(wants(await freshUndo(fleet.ports, of, wishOf(fleet))), ["web1@2"]);
  fleet.pass(120_000);
  for (const index of [1, 2, 3]) await fleet.ports.hosts.seen(hostId(index), { at: fleet.ports.clock.now() });
  const second = await fleet.ports.hosts.byId(hostId(2));
  assert.ok(second);
  const on = await freshEvacuation(fleet.ports, second, wishOf(fleet, { to: [hostId(3)] }));
  await fleet.evacuations.request(on, Number.POSITIVE_INFINITY);
  await fleet.live();
  assert.deepEqual(await fleet.places(), { web1: "host3" });
  assert.deepEqual(wants(await restoreOf(fleet, 1)), ["web1@3"]);
});

test("what never arrived and a person has moved there since is not taken back", async () => {
  const fleet = await evacuationFleet([numbered(1)]);
  const of = await stranded(fleet, "rolledBack");
  const [row] = await fleet.ports.hosts.domainsOf(hostId(1));
  assert.ok(row);
  const { hostId: _, ...domain } = row;
  await fleet.ports.hosts.putInventory(hostId(1), { full: false, domains: [], gone: [domain.uuid] });
  await fleet.ports.hosts.putInventory(hostId(2), { full: false, domains: [domain], gone: [] });
  assert.deepEqual(wants(await restoreOf(fleet, 1)), []);
  assert.deepEqual(wants(await freshUndo(fleet.ports, of, wishOf(fleet))), []);
});

test("that it has closed the host is known by its record, not by a line of its story that may have been dropped", async () => {
  const fleet = await evacuationFleet([numbered(1)], { hosts: { 2: { lastSeenAt: null }, 3: { lastSeenAt: null } } });
  const { evacuations, hosts } = fleet.ports;
  const isClosed = async () => (await hosts.byId(hostId(1)))?.cordoned;
  /** Cancelled with nothing moved; its last effects were lost, and the story is as told. */
  async function cancelled(story: (line: { note: string }) => boolean, old = false): Promise<void> {
    const { id } = await begin(fleet);
    await fleet.evacuations.cancel(id, "somebody");
    assert.equal(await isClosed(), false);
    const { closedHost, ...ended } = await loaded(fleet, id);
    const timeline = ended.timeline.filter(story);
    const version = ended.version + 1;
    await evacuations.commit({ ...ended, ...(old ? {} : { closedHost }), timeline, version });
    await hosts.setCordoned(hostId(1), true);
    await evacuations.claim(hostId(1), id);
    await fleet.evacuations.tick();
    assert.deepEqual(await evacuations.claims(), []);
  }
  await cancelled(({ note }) => !note.includes("closed"));
  assert.equal(await isClosed(), false);
  // As it was stored before there was such a field.
  await cancelled(() => true, true);
  assert.equal(await isClosed(), false);
  await cancelled(({ note }) => !note.includes("closed"), true);
  assert.equal(await isClosed(), true);
  // Closed by somebody before: it was not ours to open, whatever the story says.
  const { id } = await begin(fleet);
  assert.equal((await loaded(fleet, id)).closedHost, false);
});

test("a report that ends a migration is not held up by what its evacuation does then, where the runtime goes on after its answer", async () => {
  const fleet = await evacuationFleet([1, 2].map((index) => numbered(index)));
  const { migrations, evacuations } = fleet.ports;
  const { id } = await begin(fleet, { outMax: 1 });
  const works: Promise<void>[] = [];
  const { runner } = createRunners(fleet.ports, preflightMemory(), async (work) => void works.push(work()));
  // Whoever looks after evacuations waits for ever: a report must not.
  const claims = evacuations.claims.bind(evacuations);
  let letGo = () => {};
  evacuations.claims = () => new Promise((resolve) => (letGo = () => resolve(claims())));
  const failed = { code: "domain.hostdev", cause: "It has a device.", action: "Detach it.", retry: "never" } as const;
  while ((await migrations.list({ limit: 200, cursor: null, active: true })).items.length > 0) {
    const next = fleet.script.pushed.shift();
    assert.ok(next, "the migration did not end");
    if (next.message.type !== "command") continue;
    const { id: commandId, migrationId, epoch } = next.message.command;
    await runner.reported(next.hostId, { commandId, migrationId, epoch, ms: 3, result: { ok: false, fault: failed } });
  }
  assert.equal(works.length, 1);
  const results = async () => (await loaded(fleet, id)).domains.map(({ state: result }) => result);
  assert.deepEqual((await results()).sort(), ["moving", "waiting"]);
  evacuations.claims = claims;
  letGo();
  await Promise.all(works);
  assert.deepEqual((await results()).sort(), ["stays", "waiting"]);
});
