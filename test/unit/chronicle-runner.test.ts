/** That nothing that began or ended is missing from the chronicle, also where it cannot be written for a while, and that nothing waits for it for long. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { chronicleEventSchema } from "#core/chronicle-event";
import { migrationEnded, migrationStranded } from "#core/chronicle-migration";
import { strand } from "#core/retreat";
import { createRunner } from "#functions/runner";
import { Fault } from "#protocol/fault";
import { MemoryChronicle, positionsBy } from "#test/fake/memory-chronicle";
import { domainNamed, hostId, type MemoryFleet, memoryFleet, webUuid } from "#test/fake/memory-fleet";
import { at, freshMigration } from "#test/fake/migration";

const fault = (code: "store.unreachable" | "internal") => () =>
  new Fault({ code, cause: "cut", action: "wait", retry: "safe" });

let fleet: MemoryFleet;
let chronicle: MemoryChronicle;
let failing: (() => Error) | null;
let appends: string[];

beforeEach(async () => {
  fleet = await memoryFleet();
  chronicle = new MemoryChronicle(positionsBy(fleet.ports.clock));
  failing = null;
  appends = [];
  // The runners of the fleet were given this very object.
  fleet.ports.chronicle.append = async (event) => {
    appends.push(event.id);
    if (failing !== null) throw failing();
    return chronicle.append(event);
  };
  await fleet.addHost(1, {}, [domainNamed("web")]);
  await fleet.addHost(2);
});

const told = () =>
  chronicle.events.flatMap(({ type, id, subject }) =>
    type.startsWith("dev.vmferry.migration.") ? [id.replace(`${subject}-`, "")] : [],
  );
const ask = async () => {
  const response = await fleet.ask("/v1/migrations", { body: { domain: "web", destination: "host2" } });
  return response.status;
};
const only = async () => {
  const [item] = (await fleet.ports.migrations.list({ limit: 1, cursor: null, active: false })).items;
  assert.ok(item);
  const state = await fleet.ports.migrations.load(item.id);
  assert.ok(state);
  return state;
};
const minute = async () => {
  fleet.pass(60_000);
  for (const index of [1, 2]) await fleet.ports.hosts.seen(hostId(index), { at: fleet.ports.clock.now() });
  await fleet.runner.tick();
};

describe("a migration in the chronicle", () => {
  test("begins and ends, once each, and says who asked", async () => {
    assert.equal(await ask(), 202);
    await fleet.serve();
    const { id } = await only();
    assert.deepEqual(told(), ["started", "ended"]);
    const [, ended] = chronicle.events.filter(({ subject }) => subject === id);
    assert.ok(ended?.type === "dev.vmferry.migration.ended");
    assert.equal(ended.data.status, "completed");
    assert.deepEqual(ended.data.origin, { by: "admin", evacuation: null, rule: null });
    assert.deepEqual(ended.data.snapshots, { total: 5, staged: 5, verified: 5, restored: 0, quarantined: 0 });
    assert.equal(ended.data.phasesMs.performing, 3);
    await minute();
    assert.deepEqual(told(), ["started", "ended"]);
  });

  test("costs one write for each line, and a request", async () => {
    await ask();
    await fleet.serve();
    await minute();
    assert.deepEqual(
      appends.map((id) => id.replace(/_.*-/, " ")),
      [appends[0], "m started", "m ended"],
    );
  });

  test("is not made where its request cannot be written down", async () => {
    await ask();
    await fleet.serve();
    failing = fault("store.unreachable");
    assert.equal(await ask(), 503);
    assert.equal((await fleet.ports.migrations.activeMigrations()).length, 0);
  });

  test("that was created before the chronicle went away begins when it is back", async () => {
    await fleet.ports.migrations.create({
      ...freshMigration(),
      createdAt: fleet.ports.clock.now(),
      domain: { uuid: webUuid, name: "web" },
      source: { id: hostId(1), name: "host1" },
      destination: { id: hostId(2), name: "host2" },
    });
    failing = fault("store.unreachable");
    await minute();
    await minute();
    assert.equal((await only()).timeline.length, 0);
    failing = null;
    await minute();
    await fleet.serve();
    assert.equal((await only()).status, "completed");
    assert.deepEqual(told(), ["started", "ended"]);
  });

  test("ends on its hosts whatever the chronicle does, and keeps its lock until its end is written down", async () => {
    await ask();
    failing = fault("store.unreachable");
    await fleet.serve();
    assert.equal((await only()).status, "completed");
    assert.deepEqual(told(), ["started"]);
    await minute();
    assert.notEqual(await fleet.ports.migrations.domainLock(webUuid), null);
    failing = null;
    await minute();
    assert.deepEqual(told(), ["started", "ended"]);
    assert.equal(await fleet.ports.migrations.domainLock(webUuid), null);
    assert.deepEqual(await fleet.ports.migrations.migrationsOf(hostId(1)), []);
  });

  test("is held up by no defect of a line: that is logged and let be", async () => {
    failing = fault("internal");
    assert.equal(await ask(), 202);
    await fleet.serve();
    assert.equal((await only()).status, "completed");
    assert.equal(await fleet.ports.migrations.domainLock(webUuid), null);
    assert.ok(fleet.script.logged.some((line) => line.includes("could not be written down")));
  });

  test("that is refused because another has the domain is told by its host's next heartbeat, should its process die", async () => {
    await ask();
    const first = await only();
    const second = { ...first, ...freshMigration(), id: "m_01JD0000000000000000000009" };
    const refused = { ...second, domain: first.domain, source: first.source, destination: first.destination };
    failing = fault("store.unreachable");
    await assert.rejects(fleet.runner.request(refused), /already being worked on/);
    failing = null;
    assert.equal((await fleet.ports.migrations.load(refused.id))?.status, "refused");
    assert.ok(!chronicle.events.some(({ subject }) => subject === refused.id));
    await fleet.runner.pendingOf(first.source.id);
    const lines = chronicle.events.filter(({ subject }) => subject === refused.id);
    assert.deepEqual(
      lines.map(({ type }) => type),
      ["dev.vmferry.migration.started", "dev.vmferry.migration.ended"],
    );
    assert.deepEqual(await fleet.ports.migrations.migrationsOf(first.source.id), [first.id]);
  });

  test("that is cancelled while it begins is told as begun and ended, in that order", async () => {
    await fleet.ports.migrations.create(freshMigration());
    await fleet.runner.cancel(freshMigration().id, "ann");
    assert.deepEqual(told(), ["started", "ended"]);
  });
});

describe("a stranded migration in the chronicle", () => {
  const stranded = (version = 1) => {
    const draft = { state: { ...freshMigration(), status: "running" as const }, effects: [], at };
    return { ...strand(draft, "look").state, version };
  };

  async function strandedThere() {
    await ask();
    const state = { ...(await only()), strandings: 1, status: "stranded" as const };
    await fleet.ports.migrations.commit({ ...state, version: state.version + 1 });
    return state;
  }

  test("is told by the timer's look, and not again at each", async () => {
    const { id } = await strandedThere();
    failing = fault("store.unreachable");
    await fleet.runner.tick();
    failing = null;
    appends = [];
    for (let looks = 0; looks < 5; looks += 1) await fleet.runner.tick();
    assert.deepEqual(appends, [`${id}-stranded-1`]);
    // Another process does not know; the line stays one.
    await createRunner(fleet.ports).tick();
    assert.equal(told().filter((line) => line.startsWith("stranded")).length, 1);
  });

  test("each stranding is a line of its own; what has ended is none", () => {
    const once = stranded();
    assert.match(migrationStranded(once)?.id ?? "", /-stranded-1$/);
    const again = strand({ state: { ...once, status: "running" }, effects: [], at }, "look").state;
    assert.match(migrationStranded(again)?.id ?? "", /-stranded-2$/);
    assert.equal(migrationStranded({ ...once, endedAt: at }), null);
    assert.equal(migrationEnded(once), null);
    assert.match(migrationStranded({ ...once, strandings: undefined })?.id ?? "", /-stranded-0$/);
  });

  test("one that waits for a fenced host has not ended: how it ends is told when that host has done what it owes", () => {
    const waits = { ...stranded(), endedAt: at, step: "sweeping" as const };
    assert.match(migrationStranded(waits)?.id ?? "", /-stranded-fenced$/);
    assert.equal(migrationEnded(waits), null);
    assert.equal(migrationEnded({ ...waits, status: "completed", step: "ended" })?.data.status, "completed");
    // Completed or rolled back is how it ended, whatever is still to be swept.
    assert.equal(migrationEnded({ ...waits, status: "completed" })?.data.status, "completed");
    assert.equal(migrationEnded({ ...waits, step: "ended" })?.data.status, "stranded");
  });
});

describe("snapshots in the chronicle", () => {
  test("what a way back from behind Begin found complete on the source counts as restored", async () => {
    await ask();
    await fleet.serve({ prepare: { code: "libvirt.failed", cause: "c", action: "a", retry: "never" } });
    const ended = migrationEnded(await only());
    assert.equal(ended?.data.status, "rolledBack");
    assert.equal(ended.data.snapshots.restored, 5);
    assert.equal(ended.data.error?.code, "libvirt.failed");
  });

  test("a way back from before Begin has restored nothing", async () => {
    await ask();
    await fleet.serve({ stage: { code: "libvirt.failed", cause: "c", action: "a", retry: "never" } });
    assert.equal(migrationEnded(await only())?.data.snapshots.restored, 0);
  });

  test("whatever hosts say of their time, the end can be written down", () => {
    const entry = { at, step: "performing", side: "source", ms: 1.7e308, note: "n" } as const;
    const ended = migrationEnded({ ...freshMigration(), endedAt: at, timeline: [entry, entry] });
    assert.ok(chronicleEventSchema.safeParse(JSON.parse(JSON.stringify(ended))).success);
  });

  test("records without their data count where somebody accepted them", () => {
    const finding = { severity: "risk", code: "snapshot.incomplete", cause: "c", action: "a" } as const;
    const state = { ...freshMigration(), endedAt: at, findings: [{ ...finding, count: 3 }, finding] };
    assert.equal(migrationEnded(state)?.data.snapshots.quarantined, 0);
    const accepted = { ...state, accept: ["snapshot.incomplete"] };
    assert.equal(migrationEnded(accepted)?.data.snapshots.quarantined, 3);
  });
});
