/**
 * Ways home that cross: each of two full hosts must give back what belongs to the other. One domain stops over on a third host, both come home, and nothing
 * is ever where it has no room.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { type EvacuationPolicy, type EvacuationState, evacuationPolicyDefault } from "#core/evacuation-state";
import { freshEvacuation, freshRestore } from "#functions/evacuation-request";
import { evacuationPlanSchema } from "#functions/http/evacuation-resource";
import { type EvacuationFleet, evacuationFleet, numbered, uuidOf } from "#test/fake/evacuation-fleet";
import { hostId } from "#test/fake/memory-fleet";

const gib = 1024 ** 2;
/** Of a host's 15.25 GiB one is kept free: no two of these fit on one. The smaller one stops over. */
const small = 12 * gib;
const large = 14 * gib;

const wishOf = (fleet: EvacuationFleet, policy: Partial<EvacuationPolicy> = {}) => ({
  id: `e_${fleet.ports.ids.ulid()}`,
  origin: { by: "test", rule: null, trigger: null },
  policy: { ...evacuationPolicyDefault, ...policy },
  deadlineMs: null,
});

async function hostOf(fleet: EvacuationFleet, index: number) {
  const host = await fleet.ports.hosts.byId(hostId(index));
  assert.ok(host);
  return host;
}

/** Empties a host to another one, and opens it again. */
async function emptied(fleet: EvacuationFleet, from: number, to: number): Promise<void> {
  const fresh = await freshEvacuation(fleet.ports, await hostOf(fleet, from), wishOf(fleet, { to: [hostId(to)] }));
  await fleet.evacuations.request(fresh, Number.POSITIVE_INFINITY);
  await fleet.live();
  assert.equal((await fleet.ports.evacuations.load(fresh.id))?.status, "completed");
  await fleet.ports.hosts.setCordoned(hostId(from), false);
  for (let minutes = 0; minutes < 2; minutes += 1) await fleet.minute();
}

/** web1 belongs to host1 and is on host2; web2 belongs to host2 and is on host1; host3 is empty. */
async function crossed(): Promise<EvacuationFleet> {
  const fleet = await evacuationFleet([numbered(1, { memoryKiB: small })], {
    elsewhere: { 2: [numbered(2, { memoryKiB: large })] },
  });
  await emptied(fleet, 1, 3);
  await emptied(fleet, 2, 1);
  await emptied(fleet, 3, 2);
  assert.deepEqual(await fleet.places(), { web1: "host2", web2: "host1" });
  return fleet;
}

async function restore(fleet: EvacuationFleet, index: number): Promise<string> {
  const fresh = await freshRestore(fleet.ports, await hostOf(fleet, index), { ...wishOf(fleet), skip: [] });
  return (await fleet.evacuations.request(fresh, Number.POSITIVE_INFINITY)).id;
}

async function loaded(fleet: EvacuationFleet, id: string): Promise<EvacuationState> {
  const state = await fleet.ports.evacuations.load(id);
  assert.ok(state);
  return state;
}

describe("restores whose domains stand in each other's way", () => {
  test("one stops over on a third host, and both are home", async () => {
    const fleet = await crossed();
    const ids = [await restore(fleet, 1), await restore(fleet, 2)];
    await fleet.live();
    assert.deepEqual(await fleet.places(), { web1: "host1", web2: "host2" });
    const states = await Promise.all(ids.map((id) => loaded(fleet, id)));
    assert.deepEqual(
      states.map(({ status }) => status),
      ["completed", "completed"],
    );
    const stories = states.flatMap(({ timeline }) => timeline.map(({ note }) => note)).join("\n");
    assert.equal(stories.match(/stops over on/g)?.length, 1, stories);
  });

  test("the plan of one says the stop while the other waits for it; alone it says what home is full of", async () => {
    const fleet = await crossed();
    const planned = async (index: number) => {
      const response = await fleet.ask(`/v1/hosts/host${index}/restore`, { body: { dryRun: true } });
      return evacuationPlanSchema.parse(await response.json());
    };
    const alone = await planned(1);
    assert.deepEqual(alone.moves, []);
    assert.match(alone.blocked[0]?.blocker.cause ?? "", /host1 lacks/);
    await restore(fleet, 2);
    const { moves, blocked } = await planned(1);
    assert.deepEqual(blocked, []);
    assert.deepEqual(
      moves.map(({ from, to }) => `${from}>${to}`),
      ["host2>host3", "host3>host1"],
    );
    assert.match(moves[0]?.reason ?? "", /^stops over on the way to host1/);
    const first = await restore(fleet, 1);
    assert.deepEqual((await loaded(fleet, first)).domains[0]?.destinationId, hostId(3));
  });

  test("without a third host both stay in the end, each with its cause, and nothing has moved", async () => {
    const fleet = await crossed();
    await fleet.ports.hosts.setCordoned(hostId(3), true);
    const ids = [await restore(fleet, 1), await restore(fleet, 2)];
    await fleet.live(30);
    assert.deepEqual(await fleet.places(), { web1: "host2", web2: "host1" });
    for (const id of ids) {
      const { status, domains } = await loaded(fleet, id);
      assert.equal(status, "partial");
      assert.equal(domains[0]?.attempts, 0);
      assert.match(domains[0]?.reason?.cause ?? "", /lacks|after web|is full of/);
    }
  });

  test("one that is not home by its deadline is not told to evacuate", async () => {
    const fleet = await crossed();
    const wish = { ...wishOf(fleet), deadlineMs: 5 * 60_000, skip: [] };
    const fresh = await freshRestore(fleet.ports, await hostOf(fleet, 1), wish);
    await fleet.evacuations.request(fresh, Number.POSITIVE_INFINITY);
    await fleet.live();
    const { stopped } = await loaded(fleet, fresh.id);
    assert.equal(stopped?.code, "step.overdue");
    assert.match(stopped.action, /^vmferry restore host1 brings home what is left/);
  });

  test("what leaves home is waited for longer than anybody's patience; what is stranded there is not", async () => {
    for (const status of ["running", "stranded"] as const) {
      const fleet = await crossed();
      // A person takes web2 away from host1, and that takes its time.
      const response = await fleet.ask("/v1/migrations", { body: { domain: "web2", destination: "host3" } });
      assert.equal(response.status, 202, await response.text());
      const [item] = (await fleet.ports.migrations.list({ limit: 200, cursor: null, active: true })).items;
      const state = await fleet.ports.migrations.load(item?.id ?? "");
      assert.ok(state);
      await fleet.ports.migrations.commit({ ...state, status, version: state.version + 1 });
      const id = await restore(fleet, 1);
      fleet.runner.tick = async () => 0;
      for (let minutes = 0; minutes < 15; minutes += 1) await fleet.minute();
      assert.equal((await loaded(fleet, id)).status, status === "running" ? "running" : "partial");
    }
  });

  test("what waited before something left home has its patience anew when that has left", async () => {
    const fleet = await crossed();
    const id = await restore(fleet, 1);
    for (let minutes = 0; minutes < 2; minutes += 1) await fleet.minute();
    assert.ok((await loaded(fleet, id)).domains[0]?.waitsSince !== undefined);
    await fleet.ask("/v1/migrations", { body: { domain: "web2", destination: "host3" } });
    const [item] = (await fleet.ports.migrations.list({ limit: 200, cursor: null, active: true })).items;
    // The command is lost for a while.
    const { tick } = fleet.runner;
    fleet.runner.tick = async () => 0;
    for (let minutes = 0; minutes < 12; minutes += 1) await fleet.minute();
    fleet.runner.tick = tick;
    // It has left, and the inventories do not show it yet.
    while ((await fleet.ports.migrations.load(item?.id ?? ""))?.status === "running") {
      await fleet.serve();
      await fleet.runner.tick();
    }
    await fleet.evacuations.tick();
    assert.equal((await loaded(fleet, id)).status, "running");
    await fleet.live();
    assert.deepEqual(await fleet.places(), { web1: "host1", web2: "host3" });
  });

  test("a refused stop is not tried: the other one stops over", async () => {
    const fleet = await crossed();
    const { query } = fleet.ports.sockets;
    // host3 refuses whoever comes from host2.
    fleet.ports.sockets.query = async (id, asked, waitMs) => {
      const answer = await query(id, asked, waitMs);
      const isRefused = id === hostId(3) && JSON.stringify(asked).includes(uuidOf(1));
      if (!isRefused || answer?.ok !== true || answer.body.kind !== "inspectDestination") return answer;
      const finding = { severity: "blocker", code: "destination.cpu", cause: "no", action: "none" } as const;
      return { ok: true, body: { ...answer.body, findings: [finding] } };
    };
    await restore(fleet, 1);
    await restore(fleet, 2);
    await fleet.live();
    assert.deepEqual(await fleet.places(), { web1: "host1", web2: "host2" });
    const { items } = await fleet.ports.migrations.list({ limit: 200, cursor: null, active: false });
    const stops = items.filter(({ destination, domain }) => destination.name === "host3" && domain.uuid === uuidOf(2));
    assert.equal(stops.length, 1);
  });

  test("one that stopped over and came no further is brought home by the next restore", async () => {
    const fleet = await crossed();
    const [first, second] = [await restore(fleet, 1), await restore(fleet, 2)];
    await fleet.evacuations.tick();
    // The stop is under way: nothing more is started of either.
    for (const id of [first, second]) await fleet.evacuations.cancel(id, "somebody").catch(() => undefined);
    await fleet.live();
    const places = await fleet.places();
    assert.equal(Object.values(places).filter((host) => host === "host3").length, 1, JSON.stringify(places));
    const stopped = places.web1 === "host3" ? 1 : 2;
    const state = await loaded(fleet, stopped === 1 ? first : second);
    assert.equal(state.status, "cancelled");
    assert.equal(state.domains[0]?.homeId, hostId(3));
    assert.match(state.domains[0].reason?.action ?? "", new RegExp(`vmferry restore host${stopped} brings home`));
    const host = await hostOf(fleet, stopped);
    const fresh = await freshRestore(fleet.ports, host, { ...wishOf(fleet), skip: [] });
    assert.deepEqual(
      fresh.domains.map(({ domain, homeId }) => [domain.uuid, homeId]),
      [[uuidOf(stopped), hostId(3)]],
    );
  });

  test("one that its old host does not show any more and its stop not yet is not taken for gone", async () => {
    const fleet = await crossed();
    const ids = [await restore(fleet, 1), await restore(fleet, 2)];
    // Older than what inventories lag behind.
    for (let minutes = 0; minutes < 3; minutes += 1) await fleet.minute();
    const [item] = (await fleet.ports.migrations.list({ limit: 200, cursor: null, active: true })).items;
    assert.equal(item?.destination.name, "host3");
    const { domain, source } = item;
    const row = (await fleet.ports.hosts.domainsOf(source.id)).find(({ uuid }) => uuid === domain.uuid);
    assert.ok(row);
    while ((await fleet.ports.migrations.load(item.id))?.status === "running") {
      await fleet.serve();
      await fleet.runner.tick();
    }
    await fleet.ports.hosts.putInventory(source.id, { full: false, domains: [], gone: [domain.uuid] });
    for (let looks = 0; looks < 2; looks += 1) await fleet.evacuations.tick();
    const { hostId: _, ...shown } = row;
    await fleet.ports.hosts.putInventory(source.id, { full: false, domains: [shown], gone: [] });
    await fleet.live();
    assert.deepEqual(await fleet.places(), { web1: "host1", web2: "host2" });
    for (const id of ids) assert.equal((await loaded(fleet, id)).status, "completed");
  });

  test("the end of a way to a stop is heard at once, though neither of its hosts is the one that is restored", async () => {
    const fleet = await crossed();
    const ids = [await restore(fleet, 1), await restore(fleet, 2)];
    await fleet.evacuations.tick();
    await fleet.work();
    const states = await Promise.all(ids.map((id) => loaded(fleet, id)));
    assert.deepEqual(
      states.flatMap(({ domains }) => domains.flatMap(({ stop, homeId }) => (stop === undefined ? [] : [homeId]))),
      [hostId(3)],
    );
  });

  test("a stop that the inventories do not show yet is not taken for somebody else's doing", async () => {
    const fleet = await crossed();
    await restore(fleet, 1);
    await restore(fleet, 2);
    await fleet.evacuations.tick();
    const shown = await fleet.places();
    // Shims work and the inventories do not follow.
    await fleet.serve();
    await fleet.evacuations.tick();
    assert.deepEqual(await fleet.places(), shown);
    await fleet.live();
    assert.deepEqual(await fleet.places(), { web1: "host1", web2: "host2" });
  });
});
