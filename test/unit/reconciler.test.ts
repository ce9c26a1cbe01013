/** The reconciler over stores: what it reads, what it repairs, and what API and command line show of it; and what a host says of its journals. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, mock, test } from "node:test";
import { driftReportSchema } from "#functions/http/drift";
import { createReconciler } from "#functions/reconciler";
import { receive } from "#functions/session";
import { Fault } from "#protocol/fault";
import { journalsMax } from "#protocol/limits";
import { offeredFeatures, type UpMessage } from "#protocol/message";
import { openJournals, sayOpenJournals } from "#shim/open-journals";
import { adminToken, domainNamed, hostId, type MemoryFleet, memoryFleet, webUuid } from "#test/fake/memory-fleet";
import { MemoryServer } from "#test/fake/memory-server";
import { run } from "#test/fake/memory-terminal";

const minute = 60_000;
let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
  await fleet.addHost(1, {}, [domainNamed("web")]);
  await fleet.addHost(2);
});

const reconciler = () => createReconciler(fleet.ports);
const codes = async () => (await reconciler().look()).drifts.map(({ code, hosts }) => [code, ...hosts]);
const place = (index: number, state: "running" | "shutoff" | null, snapshots = 5) =>
  fleet.ports.hosts.putInventory(hostId(index), {
    full: true,
    domains: state === null ? [] : [domainNamed("web", { state, snapshots })],
    gone: [],
  });

/** A migration that has run through; the hosts' inventories follow it. */
async function moved(): Promise<string> {
  const response = await fleet.ask("/v1/migrations", { body: { domain: "web", destination: "host2" } });
  await fleet.serve();
  await place(1, null);
  await place(2, "running");
  return ((await response.json()) as { id: string }).id;
}
const alive = async () => {
  for (const index of [1, 2]) await fleet.ports.hosts.seen(hostId(index), { at: fleet.ports.clock.now() });
};
async function later(minutes: number): Promise<void> {
  fleet.pass(minutes * minute);
  await alive();
}

describe("a healthy fleet has no drift", () => {
  test("before, in the middle and after a migration, at every step", async () => {
    assert.deepEqual(await codes(), []);
    fleet.script.relayed = true;
    await fleet.ask("/v1/migrations", { body: { domain: "web", destination: "host2" } });
    for (const step of ["export", "stage", "prepare", "perform", "finish", "confirm", "settle"] as const) {
      await fleet.serve({}, step);
      if (step === "prepare") await place(2, "shutoff");
      if (step === "finish") await place(2, "running");
      assert.deepEqual(await codes(), [], step);
    }
    await fleet.serve();
    assert.deepEqual(await codes(), [], "ended, and the source has not said so yet");
    await place(1, null);
    await later(5);
    assert.deepEqual(await codes(), []);
  });
});

describe("drift in the stores", () => {
  test("a domain that came back to life on its old host is the worst there is", async () => {
    await moved();
    await place(1, "running");
    await later(5);
    assert.deepEqual(await codes(), [["running.twice", "host2", "host1"]]);
  });

  test("a removed snapshot tree is told with its bundle", async () => {
    await moved();
    await place(2, "running", 0);
    await later(5);
    const { drifts } = await reconciler().look();
    assert.equal(drifts[0]?.code, "snapshot.missing");
    assert.match(drifts[0]?.action ?? "", /bundles\/b+.*--host host2/);
  });

  test("a lock that outlived its migration is freed; a lock of a running one never", async () => {
    const id = await moved();
    const { migrations } = fleet.ports;
    await migrations.lockDomain({ domainUuid: webUuid, migrationId: id, source: hostId(1), destination: hostId(2) });
    await migrations.point([hostId(1)], id);
    const other = "22222222-2222-4222-8222-222222222222";
    const gone = "m_01JD0000000000000000000099";
    await migrations.lockDomain({ domainUuid: other, migrationId: gone, source: hostId(1), destination: hostId(2) });
    await later(5);
    const findings = await reconciler().look();
    assert.deepEqual(
      findings.drifts.map(({ code }) => code),
      ["lock.left", "lock.left"],
    );
    assert.equal(await reconciler().repair(findings), 2);
    assert.deepEqual(await migrations.activeMigrations(), []);
    assert.deepEqual(await migrations.migrationsOf(hostId(1)), []);
    assert.deepEqual(await codes(), []);

    await fleet.ask("/v1/migrations", { body: { domain: "web", destination: "host1" } });
    assert.equal(await reconciler().repair(await reconciler().look()), 0);
    assert.notEqual(await migrations.domainLock(webUuid), null);
  });

  test("what it lets go of was told: the timer of migrations would find it no more", async () => {
    const { chronicle, migrations } = fleet.ports;
    const { append } = chronicle;
    const cut = new Fault({ code: "store.unreachable", cause: "c", action: "a", retry: "safe" });
    chronicle.append = async (event) => {
      if (event.type === "dev.vmferry.migration.ended") throw cut;
      return append.call(chronicle, event);
    };
    const id = await moved();
    await later(5);
    await assert.rejects(reconciler().look().then(reconciler().repair), cut);
    assert.notEqual(await migrations.domainLock(webUuid), null);
    chronicle.append = append;
    assert.equal(await reconciler().repair(await reconciler().look()), 1);
    assert.equal(await migrations.domainLock(webUuid), null);
    assert.notEqual(await chronicle.find(`${id}-ended`), null);
  });

  test("the timer works every tenth minute, logs what it finds and repairs what is safe", async () => {
    const id = await moved();
    await place(1, "running");
    await later(9);
    const { migrations } = fleet.ports;
    await migrations.lockDomain({ domainUuid: webUuid, migrationId: id, source: hostId(1), destination: hostId(2) });
    fleet.script.logged.length = 0;
    await reconciler().tick();
    assert.deepEqual(fleet.script.logged, []);
    await later(1);
    await reconciler().tick();
    assert.match(fleet.script.logged.join("\n"), /"error","drift",\{"code":"running\.twice"/);
    assert.match(fleet.script.logged.join("\n"), /drift repaired/);
    assert.equal(await migrations.domainLock(webUuid), null);
  });
});

describe("what a host says of its journals", () => {
  const session = { hostId: hostId(1), nonce: "n", publicUrl: "http://x", session: "s" };
  const says = (...ids: string[]) =>
    receive(fleet.ports, fleet.runner, session, {
      type: "journals",
      migrations: ids.map((id) => ({ id, epoch: 1 })),
    });

  test("is kept beside the host, and a journal of an ended or unknown migration is named", async () => {
    const id = await moved();
    await later(5);
    const gone = "m_01JD0000000000000000000098";
    assert.deepEqual((await says(id, gone, "b_01JD0000000000000000000097")).replies, []);
    const host = await fleet.ports.hosts.byId(hostId(1));
    assert.equal(host?.openJournals?.journals.length, 3);
    const { drifts } = await reconciler().look();
    assert.deepEqual(drifts.map(({ code, migration }) => [code, migration]).sort(), [
      ["journal.left", gone],
      ["journal.left", id],
    ]);
    await says();
    assert.deepEqual(await codes(), []);
  });

  describe("in time", () => {
    beforeEach(() => mock.timers.enable({ apis: ["setInterval"] }));
    afterEach(() => mock.timers.reset());

    test("at once and each minute, but not that there is none again; never to functions that do not know it", () => {
      const sent: UpMessage[] = [];
      let open = [{ migrationId: "m_01JD0000000000000000000002", epoch: 2 }];
      let up = true;
      const parts = { send: (message: UpMessage) => up && sent.push(message) > 0, records: () => open };
      const stop = sayOpenJournals(parts, [...offeredFeatures]);
      assert.deepEqual(sent, [{ type: "journals", migrations: [{ id: "m_01JD0000000000000000000002", epoch: 2 }] }]);
      mock.timers.tick(minute);
      assert.equal(sent.length, 2, "how fresh it is counts");
      open = [];
      up = false;
      mock.timers.tick(minute);
      up = true;
      for (let minutes = 0; minutes < 3; minutes += 1) mock.timers.tick(minute);
      assert.deepEqual(sent.slice(2), [{ type: "journals", migrations: [] }]);
      stop();
      open = [{ migrationId: "m_01JD0000000000000000000003", epoch: 1 }];
      mock.timers.tick(minute);
      assert.equal(sent.length, 3);
      sayOpenJournals(parts, ["bundle.1"])();
      assert.equal(sent.length, 3);
    });
  });

  test("is bounded, the oldest first", () => {
    const records = Array.from({ length: journalsMax + 5 }, (_, index) => ({
      migrationId: `m_01JD0000000000000000000${String(999 - index)}`,
      epoch: 1,
    }));
    const named = openJournals(records);
    assert.equal(named.length, journalsMax);
    assert.equal(named[0]?.id, records.at(-1)?.migrationId);
  });
});

describe("faces", () => {
  let server: MemoryServer;
  beforeEach(async () => {
    server = new MemoryServer(fleet.app.fetch);
    await server.start();
  });
  afterEach(() => server.stop());
  const vmferry = (...argv: string[]) => run(argv, { env: { VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken } });

  test("GET /v1/drift tells what was looked at and what was found", async () => {
    await moved();
    await place(1, "shutoff");
    await later(5);
    const report = driftReportSchema.parse(await (await fleet.ask("/v1/drift")).json());
    assert.deepEqual([report.hosts, report.migrations, report.complete], [2, 1, true]);
    assert.deepEqual(
      report.drifts.map(({ code, hosts }) => [code, ...hosts]),
      [["defined.twice", "host2", "host1"]],
    );
  });

  test("vmferry drift: exit 0 with nothing on stdout, 2 with cause and next action, 0 for a note", async () => {
    const none = await vmferry("drift");
    assert.deepEqual([none.exit, none.out], [0, ""]);
    assert.match(none.err, /^No drift: 2 hosts and 0 migrations at /);
    const id = await moved();
    await place(2, "running", 4);
    await later(5);
    const note = await vmferry("drift");
    assert.equal(note.exit, 0);
    assert.match(note.out, /^note +snapshot\.missing +web on host2$/m);
    await place(1, "running");
    const found = await vmferry("drift");
    assert.equal(found.exit, 2);
    assert.match(found.out, /^critical +running\.twice +web on host2, host1$/m);
    assert.match(found.out, /next: Suspend at once/);
    const json = await vmferry("drift", "--json");
    assert.deepEqual([json.exit, JSON.parse(json.out).drifts[0].migration], [2, id]);
  });
});
