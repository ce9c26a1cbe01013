/** Drift, pure: each kind is found, a healthy fleet has none, and nothing that is said or done touches a running copy (I8). */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { type Drift, type DriftHost, type DriftMigration, driftCodes, drifts, type FleetView } from "#core/drift";
import { type Status, type Step, statusSchema, stepSchema } from "#core/state";
import type { DomainState } from "#protocol/command";
import { domainStateSchema } from "#protocol/command";
import { domainNamed, hostId, webUuid } from "#test/fake/memory-fleet";
import { bundleRef } from "#test/fake/migration";

const at = "2026-11-22T10:00:00.000Z";
const ago = (minutes: number) => new Date(Date.parse(at) - minutes * 60_000).toISOString();
const mig = (index: number) => `m_01JD00000000000000000000${String(index).padStart(2, "0")}`;
const uuidOf = (index: number) => `00000000-0000-4000-8000-0000000000${String(index).padStart(2, "0")}`;

const host = (index: number, states: DomainState[] = [], fields: Partial<DriftHost> = {}): DriftHost => ({
  id: hostId(index),
  name: `host${index}`,
  connected: true,
  lastSeenAt: ago(0),
  openJournals: { at, journals: [] },
  domains: states.map((state) => domainNamed("web", { state })),
  ...fields,
});
const migration = (fields: Partial<DriftMigration> = {}): DriftMigration => ({
  id: mig(1),
  domain: { uuid: webUuid, name: "web" },
  source: { id: hostId(1), name: "host1" },
  destination: { id: hostId(2), name: "host2" },
  status: "completed",
  step: "ended",
  endedAt: ago(60),
  detail: { snapshots: { total: 5, staged: 5, verified: 5 }, bundle: bundleRef, fenced: null, sweep: [] },
  ...fields,
});
const view = (fields: Partial<FleetView>): FleetView => ({
  at,
  hosts: [],
  locks: [],
  migrations: [],
  unknown: [],
  ...fields,
});
const running: Partial<DriftMigration> = { status: "running", step: "performing", endedAt: null };
const fenced = { side: "destination", by: "ann", reason: "off", at } as const;
const owing = {
  status: "rolledBack" as const,
  step: "sweeping" as const,
  detail: { snapshots: { total: 5, staged: 5, verified: 0 }, bundle: null, fenced, sweep: ["unstage" as const] },
};
const journal = (...ids: string[]) => ({ at, journals: ids.map((id) => ({ id, epoch: 1 })) });

describe("each kind is found", () => {
  const cases: [string, Partial<FleetView>, Drift["code"], string[], RegExp][] = [
    [
      "two run",
      { hosts: [host(1, ["running"]), host(2, ["running"])] },
      "running.twice",
      ["host1", "host2"],
      /virsh suspend/,
    ],
    [
      "two run, and the records say which was right",
      { hosts: [host(1, ["running"]), host(2, ["blocked"])], migrations: [migration()] },
      "running.twice",
      ["host2", "host1"],
      /virsh suspend/,
    ],
    [
      "one runs, one is paused",
      { hosts: [host(1, ["paused"]), host(2, ["running"])], migrations: [migration()] },
      "active.twice",
      ["host2", "host1"],
      /Resume and end nothing/,
    ],
    [
      "defined twice, one runs",
      { hosts: [host(3, ["shutoff"]), host(2, ["running"])], migrations: [migration()] },
      "defined.twice",
      ["host2", "host3"],
      /on host3: virsh undefine/,
    ],
    [
      "defined twice and nobody knows which",
      { hosts: [host(1, ["shutoff"]), host(2, ["shutoff"])] },
      "defined.twice",
      ["host1", "host2"],
      /newest/,
    ],
    [
      "a staged definition was left",
      { hosts: [host(1, ["running"]), host(2, ["shutoff"])], migrations: [migration({ status: "rolledBack" })] },
      "staged.left",
      ["host1", "host2"],
      /on host2: virsh undefine/,
    ],
    [
      "a third host has what is being moved",
      {
        hosts: [host(1, ["running"]), host(2, ["paused"]), host(3, ["shutoff"])],
        migrations: [migration(running)],
        locks: [{ domainUuid: webUuid, migrationId: mig(1) }],
      },
      "defined.twice",
      ["host1", "host3"],
      /on host3/,
    ],
    [
      "it runs where the record does not say",
      { hosts: [host(2), host(3, ["running"])], migrations: [migration()] },
      "running.elsewhere",
      ["host3"],
      /other means/,
    ],
    [
      "snapshots are gone",
      {
        hosts: [host(2, [], { domains: [domainNamed("web", { snapshots: 0 })] })],
        migrations: [migration()],
      },
      "snapshot.missing",
      ["host2"],
      /vmferry bundle restore/,
    ],
    [
      "snapshots are gone after a rollback",
      {
        hosts: [host(1, [], { domains: [domainNamed("web", { snapshots: 2 })] })],
        migrations: [migration({ status: "rolledBack" })],
      },
      "snapshot.missing",
      ["host1"],
      /owner/,
    ],
    [
      "a journal of an ended one",
      { hosts: [host(1, [], { openJournals: journal(mig(1)) })], migrations: [migration()] },
      "journal.left",
      ["host1"],
      /keep a copy/,
    ],
    [
      "a journal of one that is not recorded",
      { hosts: [host(1, [], { openJournals: journal(mig(9)) })], unknown: [mig(9)] },
      "journal.left",
      ["host1"],
      /m_\S+09/,
    ],
    [
      "a journal of one that is none of this host's",
      { hosts: [host(3, [], { openJournals: journal(mig(1)) })], migrations: [migration(running)] },
      "journal.left",
      ["host3"],
      /host show host3/,
    ],
    [
      "a lock of an ended one",
      { migrations: [migration()], locks: [{ domainUuid: webUuid, migrationId: mig(1) }] },
      "lock.left",
      [],
      /by itself/,
    ],
    [
      "a lock of nobody",
      { locks: [{ domainUuid: webUuid, migrationId: mig(9) }], unknown: [mig(9)] },
      "lock.left",
      [],
      /./,
    ],
    [
      "a fenced host owes something",
      { hosts: [host(1, ["running"]), host(2, [], { connected: false })], migrations: [migration(owing)] },
      "sweep.owed",
      ["host2"],
      /host remove host2/,
    ],
  ];
  for (const [what, fields, code, hosts, action] of cases)
    test(`${what}: ${code}`, () => {
      const found = drifts(view(fields));
      assert.deepEqual(
        found.map((drift) => [drift.code, drift.hosts]),
        [[code, hosts]],
      );
      assert.match(found[0]?.action ?? "", action);
      assert.ok((found[0]?.cause.length ?? 0) > 20);
    });

  test("every code has its case here", () => {
    assert.deepEqual([...new Set(cases.map(([, , code]) => code))].sort(), [...driftCodes].sort());
  });

  test("only a lock is repaired, and the pointer of a host that owes something stays", () => {
    const locks = [{ domainUuid: webUuid, migrationId: mig(1) }];
    const release = { kind: "release", migrationId: mig(1), domainUuid: webUuid };
    const of = (one: DriftMigration) =>
      drifts(view({ migrations: [one], locks })).find(({ code }) => code === "lock.left")?.repair;
    assert.deepEqual(of(migration()), { ...release, hostIds: [hostId(1), hostId(2)] });
    assert.deepEqual(of(migration(owing)), { ...release, hostIds: [hostId(1)] });
  });

  test("a host that is away is quoted as last heard", () => {
    const away = host(1, ["running"], { connected: false, lastSeenAt: ago(90) });
    const [found] = drifts(view({ hosts: [away, host(2, ["running"])] }));
    assert.match(found?.cause ?? "", /host1 \(running, as last heard at 2026-11-22T08:30/);
  });
});

describe("no drift", () => {
  const healthy: [string, Partial<FleetView>][] = [
    ["an empty fleet", {}],
    ["a domain that never moved", { hosts: [host(1, ["running"]), host(2)] }],
    ["one that moved", { hosts: [host(1), host(2, ["running"])], migrations: [migration()] }],
    [
      "one that turned back",
      { hosts: [host(1, ["running"]), host(2)], migrations: [migration({ status: "cancelled" })] },
    ],
    [
      "one in the middle of moving, paused or even running on both by what was heard",
      {
        hosts: [
          host(1, ["running"], { openJournals: journal(mig(1)) }),
          host(2, ["running"], { openJournals: journal(mig(1)) }),
        ],
        migrations: [migration(running)],
        locks: [{ domainUuid: webUuid, migrationId: mig(1) }],
      },
    ],
    [
      "one that has ended a moment ago, of which hosts and lock still speak",
      {
        hosts: [host(1, ["paused"], { openJournals: journal(mig(1)) }), host(2, ["running"])],
        migrations: [migration({ endedAt: ago(1) })],
        locks: [{ domainUuid: webUuid, migrationId: mig(1) }],
      },
    ],
    [
      "a domain that is off and lies elsewhere than recorded",
      { hosts: [host(3, ["shutoff"])], migrations: [migration()] },
    ],
    [
      "snapshots that were deleted long after",
      {
        hosts: [host(2, [], { domains: [domainNamed("web", { snapshots: 0 })] })],
        migrations: [migration({ endedAt: ago(8 * 24 * 60) })],
      },
    ],
    [
      "an open journal of a fenced host that has yet to sweep it, a moment after the end",
      {
        hosts: [host(1, ["running"]), host(2, [], { openJournals: journal(mig(1)) })],
        migrations: [migration({ ...owing, endedAt: ago(1) })],
      },
    ],
    ["an open journal whose record was not read", { hosts: [host(1, [], { openJournals: journal(mig(5)) })] }],
    [
      "a bundle task's lock and journal",
      {
        hosts: [host(1, [], { openJournals: journal("b_01JD0000000000000000000001") })],
        locks: [{ domainUuid: webUuid, migrationId: "b_01JD0000000000000000000001" }],
        unknown: ["b_01JD0000000000000000000001"],
      },
    ],
  ];
  for (const [what, fields] of healthy)
    test(what, () => {
      assert.deepEqual(drifts(view(fields)), []);
    });
});

/** Fleets of up to four hosts and four domains with any history, sound or not. */
const fleets: fc.Arbitrary<FleetView> = (() => {
  const index = fc.integer({ min: 1, max: 4 });
  const time = fc.integer({ min: 0, max: 20_000 }).map(ago);
  const domain = fc
    .record({ uuid: index.map(uuidOf), state: fc.constantFrom(...domainStateSchema.options), snapshots: fc.nat(6) })
    .map(({ uuid, state, snapshots }) => domainNamed(`d${uuid.at(-1)}`, { uuid, state, snapshots }));
  const journals = fc.array(
    fc.integer({ min: 1, max: 9 }).map((id) => ({ id: mig(id), epoch: 1 })),
    { maxLength: 4 },
  );
  const hosts = fc.uniqueArray(
    fc.record({
      index,
      connected: fc.boolean(),
      lastSeenAt: fc.option(time),
      openJournals: fc.option(fc.record({ at: time, journals })),
      domains: fc.uniqueArray(domain, { selector: ({ uuid }) => uuid, maxLength: 4 }),
    }),
    { selector: (one) => one.index, maxLength: 4 },
  );
  const migrations = fc.uniqueArray(
    fc.record({
      index: fc.integer({ min: 1, max: 8 }),
      domain: index,
      source: index,
      destination: index,
      status: fc.constantFrom<Status>(...statusSchema.options),
      step: fc.constantFrom<Step>(...stepSchema.options),
      endedAt: fc.option(time),
      verified: fc.nat(6),
      fencedSide: fc.option(fc.constantFrom("source" as const, "destination" as const)),
      told: fc.boolean(),
    }),
    { selector: (one) => one.index, maxLength: 8 },
  );
  const locks = fc.uniqueArray(
    fc.record({ domainUuid: index.map(uuidOf), migrationId: fc.integer({ min: 1, max: 9 }).map(mig) }),
    {
      selector: ({ domainUuid }) => domainUuid,
      maxLength: 4,
    },
  );
  return fc.record({ hosts, migrations, locks }).map(
    (made): FleetView => ({
      at,
      hosts: made.hosts.map(({ index: number, ...fields }) => host(number, [], fields)),
      locks: made.locks,
      unknown: [mig(9)],
      migrations: made.migrations.map((one) =>
        migration({
          id: mig(one.index),
          domain: { uuid: uuidOf(one.domain), name: `d${one.domain}` },
          source: { id: hostId(one.source), name: `host${one.source}` },
          destination: { id: hostId(one.destination), name: `host${one.destination}` },
          status: one.status,
          step: one.step,
          endedAt: one.endedAt,
          detail: one.told
            ? {
                snapshots: { total: one.verified, staged: 0, verified: one.verified },
                bundle: null,
                fenced: one.fencedSide === null ? null : { ...fenced, side: one.fencedSide },
                sweep: [],
              }
            : null,
        }),
      ),
    }),
  );
})();

const inactive: ReadonlySet<DomainState> = new Set(["shutoff", "crashed", "nostate"]);

describe("whatever the fleet is like", () => {
  test("nothing that is proposed ends, starts, resumes or undefines a copy that is active (I8)", () => {
    fc.assert(
      fc.property(fleets, (fleet) => {
        for (const { action, domain, hosts } of drifts(fleet)) {
          assert.doesNotMatch(action, /virsh (destroy|start|resume|shutdown|reset|reboot|managedsave)/);
          const place = /on ([\w ]+): virsh undefine/.exec(action)?.[1];
          if (place === undefined) {
            assert.doesNotMatch(action, /undefine [0-9a-f]/);
            continue;
          }
          for (const name of place.split(" and ")) {
            const copy = fleet.hosts
              .find((one) => one.name === name)
              ?.domains.find(({ uuid }) => uuid === domain?.uuid);
            assert.ok(copy !== undefined && inactive.has(copy.state), `${name} ${copy?.state}`);
            // And it is never the last one.
            assert.ok(hosts.length > 1 && hosts[0] !== name);
          }
        }
      }),
      { numRuns: 2_000 },
    );
  });

  test("a repair frees only what a migration that has ended, or never was, still holds", () => {
    fc.assert(
      fc.property(fleets, (fleet) => {
        for (const { repair } of drifts(fleet)) {
          if (repair === null) continue;
          assert.ok(
            fleet.locks.some(
              (lock) => lock.migrationId === repair.migrationId && lock.domainUuid === repair.domainUuid,
            ),
          );
          const record = fleet.migrations.find(({ id }) => id === repair.migrationId);
          if (record === undefined)
            assert.deepEqual([fleet.unknown.includes(repair.migrationId), repair.hostIds], [true, []]);
          else assert.notEqual(record.endedAt, null);
        }
      }),
      { numRuns: 1_000 },
    );
  });

  test("two that run are never passed over, but while they move or have just moved", () => {
    fc.assert(
      fc.property(fleets, (fleet) => {
        const found = drifts(fleet);
        for (const index of [1, 2, 3, 4]) {
          const uuid = uuidOf(index);
          const own = fleet.migrations.filter(({ domain }) => domain.uuid === uuid);
          const settled = own.every(
            ({ endedAt }) => endedAt !== null && Date.parse(at) - Date.parse(endedAt) >= 120_000,
          );
          const run = fleet.hosts.filter(({ domains }) =>
            domains.some((one) => one.uuid === uuid && one.state === "running"),
          );
          if (!settled || run.length < 2) continue;
          const [worst] = found.filter(({ domain }) => domain?.uuid === uuid);
          assert.deepEqual([worst?.code, worst?.severity], ["running.twice", "critical"]);
        }
      }),
      { numRuns: 1_000 },
    );
  });

  test("the same is found in whatever order it is told, and the worst comes first", () => {
    const shuffled = fleets.chain((fleet) =>
      fc.record({
        fleet: fc.constant(fleet),
        hosts: fc.shuffledSubarray([...fleet.hosts], { minLength: fleet.hosts.length }),
        locks: fc.shuffledSubarray([...fleet.locks], { minLength: fleet.locks.length }),
        migrations: fc.shuffledSubarray([...fleet.migrations], { minLength: fleet.migrations.length }),
      }),
    );
    fc.assert(
      fc.property(shuffled, ({ fleet, ...other }) => {
        const found = drifts(fleet);
        assert.deepEqual(drifts({ ...fleet, ...other }), found);
        const ranks = found.map(({ severity }) => ["critical", "warning", "note"].indexOf(severity));
        assert.deepEqual(ranks, ranks.toSorted());
      }),
      { numRuns: 1_000 },
    );
  });
});
