/** Undo, restore, what is asked of the planner, and what others' deeds are told as. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { evacuate } from "#core/evacuation";
import { evacuationRefusal, newEvacuation, newRestore, newUndo, type RestoreInput } from "#core/evacuation-new";
import { evacuationPlan, type Planner, placementPolicyOf, strayed } from "#core/evacuation-plan";
import { type EvacuationState, evacuationPolicyDefault } from "#core/evacuation-state";
import { plan } from "#core/placement";
import { type PlacementDomain, type PlacementView, verdictKey } from "#core/placement-view";
import {
  after,
  block,
  born,
  domainAt,
  ends,
  evacuationId,
  hostId,
  input,
  kindsOf,
  look,
  move,
  planOf,
  play,
  seen,
  started,
  startMs,
  uuid,
} from "./evacuation-scene.ts";

const origin = { by: "token t1", rule: null, trigger: null };
const policy = evacuationPolicyDefault;

/** Domains 0 and 1 have moved to hosts 1 and 2, domain 2 stays, domain 3 has failed by stranding on its way to 3. */
const evacuated = (id = evacuationId(1)): EvacuationState =>
  play(
    { ...born(4, { policy: { ...policy, outMax: 9, inMax: 9 } }), id },
    () =>
      look(0, [move(0, 1), move(1, 2), move(3, 3)], { blocked: [block(2, "domain.hostdev")], hosts: seen(4, {}, []) }),
    (state) => ends(state, 0, 1, "completed"),
    (state) => ends(state, 1, 2, "completed"),
    (state) => ends(state, 3, 3, "stranded"),
  ).state;

const places = (...hosts: (number | null)[]): Map<string, string> =>
  new Map(hosts.flatMap((host, index) => (host === null ? [] : [[uuid(index), hostId(host)]])));

const goals = ({ domains }: EvacuationState) =>
  domains.map(({ domain, homeId }) => `${domain.name}@${homeId.slice(-1)}`).sort();

describe("undo", () => {
  const undo = (where: Map<string, string>) =>
    newUndo(
      { id: evacuationId(2), origin, policy, deadlineMs: null, of: evacuated(), places: where },
      after(1_000_000),
    );

  test("takes back what stands where it was brought, the stranded that arrived as well, and nothing else", () => {
    assert.equal(evacuated().status, "partial");
    assert.deepEqual(goals(undo(places(1, 2, 0, 0))), ["vm0@1", "vm1@2"]);
    assert.deepEqual(goals(undo(places(1, 2, 0, 3))), ["vm0@1", "vm1@2", "vm3@3"]);
    assert.deepEqual(goals(undo(places(3, null, 0, 0))), []);
    assert.equal(undo(places(1, 2, 0, 0)).undoes, evacuationId(1));
    assert.ok(undo(places(1)).domains.every(({ attempts, state }) => attempts === 0 && state === "waiting"));
  });

  test("opens the host first, says so until it is open, moves home only, and leaves it open", () => {
    const home = [move(0, 0, { fromId: hostId(1) }), move(1, 0, { fromId: hostId(2) })];
    const closed = play(
      undo(places(1, 2, 0, 0)),
      () => look(1_000_001, [], { blocked: [block(0, "host.cordoned")] }),
      () => look(1_000_002, home),
    );
    assert.deepEqual(kindsOf(closed.effects), ["uncordon", "uncordon"]);
    assert.equal(domainAt(closed.state, 0).state, "waiting");
    const open = play(closed.state, () =>
      look(1_000_003, [...home, move(1, 3, { fromId: hostId(2) })], { hosts: seen(4, {}, []) }),
    );
    assert.deepEqual(started(open.effects), ["vm0>0", "vm1>0"]);
    const done = play(
      open.state,
      (state) => ends(state, 0, 1_000_004, "completed"),
      (state) => ends(state, 1, 1_000_005, "completed"),
    );
    assert.equal(done.state.status, "completed");
    assert.deepEqual(kindsOf(done.effects), ["release"]);
  });

  test("who closes the host again meanwhile is not overruled", () => {
    const { effects } = play(
      undo(places(1, 2, 0, 0)),
      () => look(1_000_001, [], { hosts: seen(4, {}, []) }),
      () => look(1_000_002, []),
    );
    assert.deepEqual(kindsOf(effects), []);
  });

  test("with nothing to bring back it opens the host and is done", () => {
    const { state, effects } = play(undo(new Map()), () => look(1_000_001, []));
    assert.equal(state.status, "completed");
    assert.deepEqual(kindsOf(effects), ["uncordon", "release"]);
  });
});

describe("restore", () => {
  const restore = (more: Partial<RestoreInput>) =>
    newRestore(
      {
        id: evacuationId(3),
        origin,
        policy,
        deadlineMs: null,
        host: { id: hostId(0), name: "host0" },
        of: [evacuated()],
        places: places(1, 2, 0, 0),
        movedByPerson: new Set(),
        skip: new Set(),
        ...more,
      },
      after(2_000_000),
    );

  test("brings home what evacuations took away, but for what is skipped or was moved by a person", () => {
    assert.deepEqual(goals(restore({})), ["vm0@1", "vm1@2"]);
    assert.deepEqual(goals(restore({ skip: new Set([uuid(0)]) })), ["vm1@2"]);
    assert.deepEqual(goals(restore({ movedByPerson: new Set([uuid(1)]) })), ["vm0@1"]);
    assert.deepEqual(goals(restore({ places: places(3, 2) })), ["vm1@2"]);
    assert.deepEqual(goals(restore({ of: [] })), []);
  });

  test("follows a domain that a second evacuation moved on, and knows what is home already", () => {
    const fresh = {
      ...input(1),
      id: evacuationId(4),
      host: { id: hostId(1), name: "host1" },
    };
    const second = play(
      newEvacuation(fresh, after(5_000)),
      () => look(5_001, [move(0, 3, { fromId: hostId(1) })], { hosts: seen(4, {}, [1]) }),
      (state) => ends(state, 0, 5_002, "completed"),
    ).state;
    assert.equal(second.status, "completed");
    assert.deepEqual(goals(restore({ of: [second, evacuated()], places: places(3, 2) })), ["vm0@3", "vm1@2"]);
    const undone = play(
      newUndo(
        { id: evacuationId(5), origin, policy, deadlineMs: null, of: evacuated(), places: places(1, 2) },
        after(9_000),
      ),
      () =>
        look(9_001, [move(0, 0, { fromId: hostId(1) }), move(1, 0, { fromId: hostId(2) })], { hosts: seen(4, {}, []) }),
      (state) => ends(state, 0, 9_002, "completed"),
    ).state;
    assert.deepEqual(goals(restore({ of: [undone, evacuated()], places: places(0, 2) })), ["vm1@2"]);
  });
});

describe("what is too large", () => {
  const named = (count: number, name: string) => {
    const some = input(count);
    const domains = some.domains.map((each) => ({ ...each, domain: { ...each.domain, name } }));
    return evacuationRefusal(newEvacuation({ ...some, domains }, after(0)));
  };

  test("is refused before it is stored", () => {
    assert.equal(named(500, "vm"), null);
    assert.match(named(501, "vm")?.cause ?? "", /501 domains/);
    assert.match(named(500, "ü".repeat(255))?.cause ?? "", /too long/);
    assert.equal(named(100, "ü".repeat(255)), null);
  });
});

describe("what the planner is asked", () => {
  const domain = (index: number, host: number): PlacementDomain => ({
    uuid: uuid(index),
    name: `vm${index}`,
    hostId: hostId(host),
    memoryKiB: 1_048_576,
    vcpus: 1,
    active: true,
    snapshots: 0,
    labels: {},
  });
  const view = (domains: PlacementDomain[], more: Partial<PlacementView> = {}): PlacementView => ({
    atMs: startMs,
    hosts: [0, 1, 2].map((index) => ({
      id: hostId(index),
      name: `host${index}`,
      labels: {},
      cpus: 8,
      memoryKiB: 16 * 1_048_576,
      closed: null,
    })),
    domains,
    verdicts: new Map(
      domains.flatMap(({ uuid: id }) =>
        [0, 1, 2].map((index) => [verdictKey(id, hostId(index)), { allowed: true as const, atMs: startMs }] as const),
      ),
    ),
    moving: [],
    networks: new Map(),
    ...more,
  });

  test("only what may be started now is planned; the rest holds its room", () => {
    const state = play(
      born(3, { policy: { ...policy, outMax: 3 } }),
      () => look(-9, [move(0, 1), move(1, 1)]),
      (now) => ends(now, 0, -8, "rolledBack"),
    ).state;
    const made = evacuationPlan(state, view([domain(0, 0), domain(1, 0), domain(2, 0), domain(7, 0)]), plan);
    assert.deepEqual(
      made.moves.map((each) => each.domainUuid),
      [uuid(2)],
    );
    assert.deepEqual(made.blocked, []);
  });

  test("a destination that failed it is avoided, unless nothing else is left", () => {
    const asked: (readonly string[])[] = [];
    const spy: Planner = (...args) => {
      asked.push([...args[0].verdicts].flatMap(([key, verdict]) => (verdict.allowed ? [] : [key])));
      return plan(...args);
    };
    const failedOn = (to: number) =>
      play(
        born(1),
        () => look(-9e6, [move(0, to)]),
        (now) => ends(now, 0, -8e6, "rolledBack"),
      ).state;
    const avoid = (to: number) => evacuationPlan(failedOn(to), view([domain(0, 0)]), spy).moves.map(({ toId }) => toId);
    assert.deepEqual(avoid(1), [hostId(2)]);
    assert.deepEqual(avoid(2), [hostId(1)]);
    const only = { ...failedOn(1), policy: { ...policy, to: [hostId(1)] } };
    asked.length = 0;
    assert.deepEqual(
      evacuationPlan(only, view([domain(0, 0)]), spy).moves.map(({ toId }) => toId),
      [hostId(1)],
    );
    assert.deepEqual(asked, [[verdictKey(uuid(0), hostId(1))], []]);
  });

  test("what is the domain's own is said, though another host is only away", () => {
    const { hosts, verdicts } = view([domain(0, 0)]);
    const away = { code: "host.offline" as const, cause: "host2 is silent.", action: "Wait." };
    const hostdev = { code: "domain.hostdev" as const, cause: "It has a device.", action: "Detach it." };
    const seenNow = view([domain(0, 0)], {
      hosts: hosts.map((host) => (host.id === hostId(2) ? { ...host, closed: away } : host)),
      verdicts: new Map(verdicts).set(verdictKey(uuid(0), hostId(1)), {
        allowed: false,
        atMs: startMs,
        blockers: [hostdev],
      }),
    });
    assert.equal(
      plan(seenNow, [hostId(0)], placementPolicyOf(born(1))).blocked[0]?.blocker.code,
      "placement.noDestination",
    );
    assert.deepEqual(evacuationPlan(born(1), seenNow, plan).blocked[0]?.blocker, hostdev);
  });

  test("home is the only destination of the way home", () => {
    const undo = newUndo(
      { id: evacuationId(2), origin, policy, deadlineMs: null, of: evacuated(), places: places(1, 2) },
      after(0),
    );
    assert.deepEqual(placementPolicyOf(undo).to, [hostId(0)]);
    const foreign = domain(9, 1);
    const made = evacuationPlan(undo, view([domain(0, 1), domain(1, 2), foreign]), plan);
    assert.deepEqual(
      made.moves.map(({ domainUuid, toId }) => [domainUuid, toId]).sort(),
      [uuid(0), uuid(1)].map((id) => [id, hostId(0)]),
    );
    const next = evacuate(
      { ...undo, cordoned: false },
      { type: "looked", at: after(1), plan: made, running: [], hosts: seen(3, {}, []) },
    );
    assert.equal(started(next.effects).length, 2);
    assert.deepEqual(evacuationPlan(undo, view([]), () => planOf([move(8, 1)])).moves, []);
  });

  test("what others did is told of those that wait or stay, and of none that is moving", () => {
    const state = play(born(5), () => look(0, [move(0, 1)])).state;
    const told = strayed(
      state,
      view([domain(1, 0), domain(2, 2), domain(3, 2)], {
        moving: [{ domainUuid: uuid(3), sourceId: hostId(0), destinationId: hostId(2) }],
      }),
      after(1),
    );
    assert.deepEqual(told, [
      { type: "domainElsewhere", at: after(1), domainUuid: uuid(2), hostId: hostId(2) },
      { type: "domainGone", at: after(1), domainUuid: uuid(4) },
    ]);
  });
});
