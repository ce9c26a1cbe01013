/** The rules of an evacuation, one by one. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { evacuate } from "#core/evacuation";
import type { EvacuationEvent, RunningMigration } from "#core/evacuation-event";
import { decidedAtMs, evacuationMigrationId } from "#core/evacuation-id";
import { backoffMs, backoffMsMax, patienceMs } from "#core/evacuation-limits";
import { evacuationPolicyDefault, evacuationStateSchema } from "#core/evacuation-state";
import { migrationIdSchema } from "#protocol/command";
import type { FaultBody } from "#protocol/fault";
import {
  after,
  block,
  born,
  cancel,
  domainAt,
  ends,
  evacuationId,
  fault,
  hostId,
  kindsOf,
  look,
  minute,
  move,
  play,
  seen,
  started,
  startMs,
  tick,
  uuid,
} from "./evacuation-scene.ts";

const policy = evacuationPolicyDefault;

describe("the way through", () => {
  test("cordons first, starts, learns, ends completed and frees the host, which stays cordoned", () => {
    const first = play(born(2), () => look(0, [move(0, 1), move(1, 2)], { hosts: seen(4, {}, []) }));
    assert.deepEqual(kindsOf(first.effects), ["cordon", "startMigration", "startMigration"]);
    assert.equal(first.state.cordoned, true);
    assert.deepEqual(started(first.effects), ["vm0>1", "vm1>2"]);
    const done = play(
      first.state,
      (state) => ends(state, 0, 1_000, "completed"),
      (state) => ends(state, 1, 2_000, "completed"),
    );
    assert.equal(done.state.status, "completed");
    assert.equal(done.state.endedAt, after(2_000));
    assert.deepEqual(kindsOf(done.effects), ["release"]);
    assert.equal(done.state.cordoned, true);
    assert.deepEqual(
      done.state.domains.map(({ state }) => state),
      ["moved", "moved"],
    );
  });

  test("a host that is cordoned already is somebody else's to open", () => {
    const { state, effects } = play(
      born(1),
      () => look(0, []),
      () => cancel(1_000),
    );
    assert.equal(state.cordoned, false);
    assert.deepEqual(kindsOf(effects), ["release"]);
  });

  test("a host that is seen open while it is evacuated is closed again", () => {
    const { effects } = play(
      born(1),
      () => look(0, [move(0, 1)], { hosts: seen(4, {}, []) }),
      () => look(minute, [], { hosts: seen(4, {}, []) }),
    );
    assert.deepEqual(kindsOf(effects), ["cordon", "startMigration", "cordon"]);
  });

  test("an empty host is closed and done at the first look, not before", () => {
    const waiting = evacuate(born(0), tick(1_000));
    assert.equal(waiting.state.status, "running");
    const { state, effects } = play(born(0), () => look(0, [], { hosts: seen(2, {}, []) }));
    assert.equal(state.status, "completed");
    assert.deepEqual(kindsOf(effects), ["cordon", "release"]);
  });

  test("an event that changes nothing returns the very state", () => {
    const { state } = play(born(2), () => look(0, [move(0, 1)]));
    const nothing: EvacuationEvent[] = [
      tick(1_000),
      {
        type: "migrationStarted",
        at: after(1),
        domainUuid: uuid(0),
        migrationId: domainAt(state, 0).migrationId ?? "",
      },
      { type: "domainGone", at: after(1), domainUuid: uuid(9) },
      { type: "domainGone", at: after(1), domainUuid: uuid(0) },
      { type: "domainElsewhere", at: after(1), domainUuid: uuid(1), hostId: hostId(0) },
      { ...ends(state, 0, 1, "completed"), migrationId: "m_another" } as EvacuationEvent,
      ends(state, 1, 1, "completed"),
      look(1_000, [move(0, 2)]),
    ];
    for (const event of nothing) {
      const next = evacuate(state, event);
      assert.equal(next.state, state, JSON.stringify(event));
      assert.deepEqual(next.effects, []);
    }
  });

  test("an ended one is final", () => {
    const { state } = play(
      born(1),
      () => look(0, [move(0, 1)]),
      (now) => ends(now, 0, 1, "completed"),
    );
    for (const event of [look(2, [move(0, 2)]), cancel(2), tick(9e9), ends(state, 0, 3, "stranded")])
      assert.equal(evacuate(state, event).state, state);
  });
});

describe("ids of migrations", () => {
  test("are those of migrations, sort by time, differ by place and try and repeat for the same", () => {
    const ids = [0, 1, 499].flatMap((place) =>
      [1, 2, 10].map((attempt) => evacuationMigrationId(evacuationId(7), place, attempt, startMs)),
    );
    for (const id of ids) assert.equal(migrationIdSchema.safeParse(id).success, true, id);
    assert.equal(new Set(ids).size, ids.length);
    assert.equal(decidedAtMs(ids[0] ?? ""), startMs);
    const [one, other] = [1, 2].map(() => evacuate(born(1), look(5, [move(0, 1)])));
    assert.deepEqual(one, other);
    assert.ok(
      evacuationMigrationId(evacuationId(7), 9, 9, startMs) < evacuationMigrationId(evacuationId(7), 0, 1, startMs + 1),
    );
  });
});

describe("limits", () => {
  const running = (migrationId: string, source: number, destination: number) => ({
    migrationId,
    domainUuid: uuid(90 + source * 10 + destination),
    sourceId: hostId(source),
    destinationId: hostId(destination),
  });
  const moves = [move(0, 1), move(1, 1), move(2, 2), move(3, 3)];

  test("out of the host", () => {
    const made = play(born(4), () => look(0, moves));
    assert.deepEqual(started(made.effects), ["vm0>1", "vm1>1"]);
    const one = play(born(4), () => look(0, moves, { running: [running("m_p", 0, 3)] }));
    assert.deepEqual(started(one.effects), ["vm0>1"]);
  });

  test("into a host, others' counted; who has no slot holds nobody", () => {
    const state = born(4, { policy: { ...policy, outMax: 10, inMax: 1 } });
    assert.deepEqual(started(play(state, () => look(0, moves)).effects), ["vm0>1", "vm2>2", "vm3>3"]);
    const others = { running: [running("m_p", 5, 1), running("m_q", 5, 2)] };
    assert.deepEqual(started(play(state, () => look(0, moves, others)).effects), ["vm3>3"]);
  });

  test("of the fleet, and one's own are counted once", () => {
    const state = born(4, { policy: { ...policy, outMax: 10, inMax: 10, fleetMax: 3 } });
    const first = play(state, () => look(0, moves.slice(0, 2)));
    const own = first.state.domains.flatMap(({ domain, migrationId, destinationId }) =>
      migrationId === null || destinationId === null
        ? []
        : [{ migrationId, domainUuid: domain.uuid, sourceId: hostId(0), destinationId }],
    );
    assert.equal(own.length, 2);
    assert.deepEqual(started(play(first.state, () => look(1, moves, { running: own })).effects), ["vm2>2"]);
    assert.deepEqual(started(play(first.state, () => look(1, moves, { running: [running("m_p", 7, 8)] })).effects), []);
  });

  test("of a network: within it counts once, between two in each, others' count, hosts without the label do not", () => {
    const networks = { 0: "east", 1: "east", 2: "west", 5: "west" };
    const state = born(4, { policy: { ...policy, outMax: 10, inMax: 10, networkMax: 2 } });
    const first = (hosts: Record<number, string>, others: RunningMigration[] = []) =>
      started(play(state, () => look(0, moves, { running: others, hosts: seen(6, {}, [0], hosts) })).effects);
    assert.deepEqual(first({}), ["vm0>1", "vm1>1", "vm2>2", "vm3>3"]);
    // All leave the east, whatever they go to.
    assert.deepEqual(first(networks), ["vm0>1", "vm1>1"]);
    assert.deepEqual(first({ 1: "east", 2: "west" }), ["vm0>1", "vm1>1", "vm2>2", "vm3>3"]);
    assert.deepEqual(first({ 1: "east", 2: "west" }, [running("m_p", 1, 1)]), ["vm0>1", "vm2>2", "vm3>3"]);
    // Between two networks somebody else's holds a place in each.
    assert.deepEqual(first({ 1: "east", 2: "west", 5: "west" }, [running("m_p", 5, 1), running("m_q", 5, 4)]), [
      "vm0>1",
      "vm3>3",
    ]);
    const unlimited = born(4, { policy: { ...policy, outMax: 10, inMax: 10, networkMax: null } });
    const made = play(unlimited, () => look(0, moves, { hosts: seen(6, {}, [0], networks) }));
    assert.equal(started(made.effects).length, 4);
  });

  test("what was stored before there was a limit of networks has none", () => {
    const { networkMax: _, ...before } = born(1).policy;
    assert.deepEqual(evacuationStateSchema.parse({ ...born(1), policy: before }).policy.networkMax, null);
  });

  test("a domain that somebody else is moving is left to them", () => {
    const busy = { ...running("m_p", 0, 1), domainUuid: uuid(0) };
    const { state, effects } = play(born(1), () =>
      look(0, [move(0, 2)], { running: [busy], blocked: [block(0, "domain.busy")] }),
    );
    assert.deepEqual(started(effects), []);
    assert.equal(domainAt(state, 0).state, "waiting");
    assert.equal(domainAt(state, 0).attempts, 0);
  });

  test("a plan that names a domain twice, another source or a host that is not meant moves it once or not at all", () => {
    const twice = play(born(1), () => look(0, [move(0, 1), move(0, 2)]));
    assert.deepEqual(started(twice.effects), ["vm0>1"]);
    const wrong = [move(0, 0), move(0, 1, { fromId: hostId(2) }), move(7, 1), move(0, 9)];
    assert.deepEqual(started(play(born(1), () => look(0, wrong)).effects), []);
    const only = born(1, { policy: { ...policy, to: [hostId(2)] } });
    assert.deepEqual(started(play(only, () => look(0, [move(0, 1)])).effects), []);
  });
});

describe("failures", () => {
  test("another try waits for its pause, avoids the destination, and the last one is stated", () => {
    const first = play(
      born(1),
      () => look(0, [move(0, 1)]),
      (state) => ends(state, 0, 1_000, "rolledBack"),
    );
    const failed = domainAt(first.state, 0);
    assert.equal(failed.state, "waiting");
    assert.deepEqual(failed.triedIds, [hostId(1)]);
    assert.equal(failed.notBefore, after(1_000 + backoffMs(1, uuid(0))));
    assert.equal(failed.reason?.code, "perform.failed");
    assert.deepEqual(started(play(first.state, () => look(1_001, [move(0, 2)])).effects), []);
    const second = play(
      first.state,
      () => look(minute, [move(0, 2)]),
      (state) => ends(state, 0, 2 * minute, "completed"),
    );
    assert.equal(second.state.status, "completed");
    assert.equal(second.state.failuresInRow, 0);
    assert.notEqual(domainAt(second.state, 0).migrationId, failed.migrationId);
    const lasting = born(1, { policy: { ...policy, breakerFailures: 9 } });
    const last = play(
      lasting,
      () => look(0, [move(0, 1)]),
      (state) => ends(state, 0, 1_000, "rolledBack"),
      () => look(20 * minute, [move(0, 2)]),
      (state) => ends(state, 0, 21 * minute, "rolledBack"),
      () => look(40 * minute, [move(0, 3)]),
      (state) => ends(state, 0, 41 * minute, "rolledBack", "prepare.failed"),
    );
    assert.equal(last.state.status, "failed");
    assert.equal(domainAt(last.state, 0).reason?.code, "prepare.failed");
    assert.equal(domainAt(last.state, 0).attempts, 3);
  });

  test("the pause doubles, is bounded, and differs from domain to domain without any chance in it", () => {
    const low = "00000000-0000-4000-8000-000000000000";
    const high = "ffffffff-0000-4000-8000-000000000000";
    assert.equal(backoffMs(1, low), 30_000);
    assert.equal(backoffMs(2, low), 60_000);
    assert.ok(backoffMs(1, high) > 37_000 && backoffMs(1, high) <= 37_500);
    assert.ok(backoffMs(10, high) <= backoffMsMax * 1.25);
  });

  test("a refusal that is no destination's fault is tried again there; one of the domain's own is not tried again", () => {
    const moving = play(born(2), () => look(0, [move(0, 1), move(1, 1)])).state;
    const refused = (index: number, code: FaultBody["code"]): EvacuationEvent => ({
      type: "migrationRefused",
      at: after(10),
      domainUuid: uuid(index),
      migrationId: domainAt(moving, index).migrationId ?? "",
      fault: fault(code),
    });
    const { state } = play(
      moving,
      () => refused(0, "domain.busy"),
      () => refused(1, "domain.hostdev"),
    );
    assert.equal(domainAt(state, 0).state, "waiting");
    assert.deepEqual(domainAt(state, 0).triedIds, []);
    assert.equal(domainAt(state, 1).state, "stays");
    assert.equal(domainAt(state, 1).reason?.code, "domain.hostdev");
    assert.equal(state.failuresInRow, 0);
  });

  test("what a person cancels stays; what strands is stated, and taken as moved when it arrives after all", () => {
    const moving = play(born(3), () => look(0, [move(0, 1), move(1, 2)])).state;
    const { state } = play(
      moving,
      (now) => ends(now, 0, 1, "cancelled", "migration.cancelled"),
      (now) => ends(now, 1, 2, "stranded", "host.offline"),
    );
    assert.equal(domainAt(state, 0).state, "stays");
    assert.equal(domainAt(state, 1).state, "failed");
    assert.deepEqual(started(play(state, () => look(minute, [move(0, 1), move(1, 1)])).effects), []);
    assert.equal(domainAt(play(state, (now) => ends(now, 1, 3, "completed")).state, 1).state, "moved");
  });

  test("the breaker: failures in a row stop it, a success resets the count, and the reason is stated", () => {
    const wide = born(5, { policy: { ...policy, outMax: 5, inMax: 5, breakerFailures: 2 } });
    const all = [0, 1, 2, 3].map((index) => move(index, 1));
    const reset = play(
      wide,
      () => look(0, all),
      (state) => ends(state, 0, 1, "rolledBack"),
      (state) => ends(state, 1, 2, "completed"),
      (state) => ends(state, 2, 3, "rolledBack"),
    );
    assert.equal(reset.state.status, "running");
    const tripped = play(
      wide,
      () => look(0, all),
      (state) => ends(state, 0, 1, "rolledBack"),
      (state) => ends(state, 2, 3, "stranded"),
    );
    assert.equal(tripped.state.status, "ending");
    assert.match(tripped.state.stopped?.cause ?? "", /^2 migrations in a row/);
    assert.deepEqual(play(tripped.state, () => look(4 * minute, [move(4, 2)])).effects, []);
    const ended = play(
      tripped.state,
      (state) => ends(state, 1, 9, "completed"),
      (state) => ends(state, 3, 10, "completed"),
    );
    assert.equal(ended.state.status, "partial");
    assert.deepEqual(
      ended.state.domains.map(({ state }) => state),
      ["failed", "moved", "failed", "moved", "failed"],
    );
    for (const each of ended.state.domains)
      if (each.state === "failed") assert.ok((each.reason?.cause ?? "").length > 10);
  });
});

describe("blockers", () => {
  test("one unmovable domain is stated and holds no other; it goes when the blocker is gone", () => {
    const first = play(born(2), () => look(0, [move(0, 1)], { blocked: [block(1, "domain.hostdev")] }));
    assert.equal(domainAt(first.state, 1).state, "stays");
    assert.equal(domainAt(first.state, 1).reason?.code, "domain.hostdev");
    assert.deepEqual(started(first.effects), ["vm0>1"]);
    const partial = play(first.state, (state) => ends(state, 0, 1, "completed"));
    assert.equal(partial.state.status, "partial");
    const ejected = play(first.state, () => look(minute, [move(1, 2)]));
    assert.deepEqual(started(ejected.effects), ["vm1>2"]);
  });

  test("nothing but unmovable ones is partial; a blocker that may pass is waited for with patience", () => {
    assert.equal(play(born(1), () => look(0, [], { blocked: [block(0, "placement.pinned")] })).state.status, "partial");
    const full = { blocked: [block(0, "placement.noRoom")] };
    const waits = play(
      born(1),
      () => look(0, [], full),
      () => look(minute, [], full),
    );
    assert.equal(waits.state.status, "running");
    assert.equal(domainAt(waits.state, 0).waitsSince, after(0));
    assert.equal(waits.state.version, 2);
    assert.deepEqual(started(play(waits.state, () => look(2 * minute, [move(0, 1)])).effects), ["vm0>1"]);
    const stays = play(waits.state, () => look(patienceMs, [], full));
    assert.equal(stays.state.status, "partial");
    assert.equal(domainAt(stays.state, 0).state, "stays");
    assert.equal(domainAt(stays.state, 0).reason?.code, "placement.noRoom");
    assert.equal(domainAt(stays.state, 0).waitsSince, undefined);
  });

  test("what others did is a result: gone or elsewhere is done, and never fought", () => {
    const gone: EvacuationEvent = { type: "domainGone", at: after(1), domainUuid: uuid(0) };
    const away: EvacuationEvent = { type: "domainElsewhere", at: after(1), domainUuid: uuid(1), hostId: hostId(3) };
    const { state } = play(
      born(3),
      () => gone,
      () => away,
    );
    assert.equal(state.status, "running");
    assert.match(domainAt(state, 1).reason?.cause ?? "", /Somebody else moved it/);
    const next = play(state, () => look(2, [move(0, 1), move(1, 1), move(2, 1)]));
    assert.deepEqual(started(next.effects), ["vm2>1"]);
    assert.equal(play(next.state, (now) => ends(now, 2, 3, "completed")).state.status, "completed");
  });
});
