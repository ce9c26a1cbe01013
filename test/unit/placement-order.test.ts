/** Orders of moves whose ends are given: by example, and held against a judge and against brute force. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { orderMoves } from "#core/placement";
import {
  type PlacementDomain,
  type PlacementHost,
  type PlacementView,
  type PlannedMove,
  placementPolicyDefault,
  type Verdict,
} from "#core/placement-view";
import { fleetAtMs, fleetView, shuffled } from "../fake/fleet-view.ts";
import { judge, orderExists } from "../fake/plan-referee.ts";

const gib = 1024 ** 2;
const policy = { ...placementPolicyDefault, memoryReserveKiB: 0 };

const host = (id: string, size: number, closed: PlacementHost["closed"] = null): PlacementHost => ({
  id,
  name: id,
  labels: {},
  cpus: 64,
  memoryKiB: size * gib,
  closed,
});
const domain = (uuid: string, hostId: string, size: number, labels: Record<string, string> = {}): PlacementDomain => ({
  uuid,
  name: uuid,
  hostId,
  memoryKiB: size * gib,
  vcpus: 1,
  active: true,
  snapshots: 0,
  labels,
});
const viewOf = (
  hosts: PlacementHost[],
  domains: PlacementDomain[],
  verdicts: [string, Verdict][] = [],
  moving: PlacementView["moving"] = [],
): PlacementView => ({ atMs: fleetAtMs, hosts, domains, verdicts: new Map(verdicts), moving, networks: new Map() });
const hops = (moves: readonly PlannedMove[]) =>
  moves.map(({ domainUuid, fromId, toId }) => `${domainUuid} ${fromId}>${toId}`);
const closed = { code: "host.cordoned", cause: "It is cordoned.", action: "Uncordon it." } as const;
const swap = [
  { domainUuid: "a", toId: "h2" },
  { domainUuid: "b", toId: "h1" },
];

describe("orders of moves", () => {
  test("one waits until the other has left, whatever its urgency", () => {
    const view = viewOf(
      [host("h1", 8), host("h2", 8), host("h3", 8)],
      [domain("a", "h1", 8, { priority: "100" }), domain("b", "h2", 8)],
    );
    const { moves, blocked } = orderMoves(
      view,
      [
        { domainUuid: "a", toId: "h2" },
        { domainUuid: "b", toId: "h3" },
      ],
      policy,
    );
    assert.deepEqual(hops(moves), ["b h2>h3", "a h1>h2"]);
    assert.deepEqual(blocked, []);
    assert.equal(moves[1]?.startMs, moves[0]?.endMs);
    assert.deepEqual(
      moves.map(({ wave }) => wave),
      [0, 1],
    );
  });

  test("a swap is taken apart over a third host, the smaller one stops over", () => {
    const view = viewOf([host("h1", 8), host("h2", 8), host("h3", 8)], [domain("a", "h1", 7), domain("b", "h2", 6)]);
    const { moves, blocked } = orderMoves(view, swap, policy);
    assert.deepEqual(hops(moves), ["b h2>h3", "a h1>h2", "b h3>h1"]);
    assert.match(moves[0]?.reason ?? "", /stops over on the way to h1/);
    assert.deepEqual(blocked, []);
    judge(view, moves, policy);
  });

  test("twenty swaps that know nothing of each other share the one host with room", () => {
    const pairs = Array.from({ length: 20 }, (_, index) => [`a${index}`, `b${index}`] as const).flatMap(
      ([one, other]) => [[one, other] as const, [other, one] as const],
    );
    const view = viewOf(
      [...pairs.map(([id]) => host(id, 8)), host("z", 8)],
      pairs.map(([id]) => domain(`on-${id}`, id, 7)),
    );
    const wanted = pairs.map(([id, toId]) => ({ domainUuid: `on-${id}`, toId }));
    const { moves, blocked } = orderMoves(view, wanted, policy);
    assert.deepEqual(blocked, []);
    assert.equal(moves.length, 60);
    judge(view, moves, policy);
    const { blocked: stuck } = orderMoves(
      { ...view, hosts: view.hosts.filter(({ id }) => id !== "z") },
      wanted,
      policy,
    );
    assert.equal(stuck.filter(({ blocker }) => blocker.code === "placement.swap").length, 20);
    assert.equal(stuck.length, 40);
  });

  test("two that fit side by side need no stop", () => {
    const view = viewOf([host("h1", 16), host("h2", 16)], [domain("a", "h1", 7), domain("b", "h2", 6)]);
    assert.deepEqual(hops(orderMoves(view, swap, policy).moves), ["a h1>h2", "b h2>h1"]);
  });

  test("a swap with no third host that has the room is said to be one, and both stay", () => {
    for (const third of [host("h3", 5), host("h3", 8, closed)]) {
      const view = viewOf([host("h1", 8), host("h2", 8), third], [domain("a", "h1", 7), domain("b", "h2", 6)]);
      const { moves, blocked } = orderMoves(view, swap, policy);
      assert.deepEqual(moves, []);
      assert.deepEqual(
        blocked.map(({ domainUuid, blocker }) => [domainUuid, blocker.code]),
        [
          ["a", "placement.noRoom"],
          ["b", "placement.swap"],
        ],
      );
      assert.match(blocked[1]?.blocker.cause ?? "", /b can go to h1 only after a left it/);
    }
  });

  test("a stop goes neither where a check refuses nor outside of the destinations that were named", () => {
    const refused: Verdict = {
      allowed: false,
      atMs: fleetAtMs,
      blockers: [{ code: "destination.cpu", cause: "no", action: "no" }],
    };
    const hosts = [host("h1", 8), host("h2", 8), host("h3", 8), host("h4", 8)];
    const domains = [domain("a", "h1", 7), domain("b", "h2", 6)];
    const checked = viewOf(hosts, domains, [["b h3", refused]]);
    assert.deepEqual(hops(orderMoves(checked, swap, policy).moves), ["b h2>h4", "a h1>h2", "b h4>h1"]);
    const named = orderMoves(viewOf(hosts, domains), swap, { ...policy, to: ["h4"] });
    assert.deepEqual(hops(named.moves), ["b h2>h4", "a h1>h2", "b h4>h1"]);
  });

  test("members of an anti-affinity group take turns on a host", () => {
    const apart = { "anti-affinity": "db" };
    const view = viewOf(
      [host("h1", 64), host("h2", 64), host("h3", 64)],
      [domain("a", "h1", 1, apart), domain("b", "h2", 1, apart)],
    );
    const { moves } = orderMoves(view, swap, policy);
    assert.deepEqual(hops(moves), ["b h2>h3", "a h1>h2", "b h3>h1"]);
    judge(view, moves, policy);
  });

  test("who would start at once must not take the room that the way of others needs", () => {
    // z has to come through h1 first: if x took the room of h1 at once, y could never leave it.
    const view = viewOf(
      [host("h1", 20), host("h2", 10), host("h3", 10)],
      [domain("y", "h1", 10), domain("z", "h2", 10), domain("x", "h3", 10, { priority: "100" })],
    );
    const { moves, blocked } = orderMoves(
      view,
      [
        { domainUuid: "x", toId: "h1" },
        { domainUuid: "y", toId: "h2" },
        { domainUuid: "z", toId: "h1" },
      ],
      policy,
    );
    assert.deepEqual(blocked, []);
    assert.equal(moves.length, 3, "no stop");
    judge(view, moves, policy);
  });

  test("while a limit holds the first one up, none that would close its way starts before it", () => {
    const view = viewOf(
      [host("h1", 20), host("h2", 12), host("h3", 10), host("h4", 10)],
      [domain("w", "h2", 2, { priority: "90" }), domain("x", "h3", 10), domain("y", "h1", 10), domain("z", "h2", 10)],
    );
    const { moves, blocked } = orderMoves(
      view,
      [
        { domainUuid: "w", toId: "h4" },
        { domainUuid: "x", toId: "h1" },
        { domainUuid: "y", toId: "h2" },
        { domainUuid: "z", toId: "h1" },
      ],
      { ...policy, outMax: 1 },
    );
    assert.deepEqual(blocked, []);
    assert.deepEqual(hops(moves), ["w h2>h4", "z h2>h1", "y h1>h2", "x h3>h1"]);
    judge(view, moves, { ...policy, outMax: 1 });
  });

  test("what cannot go has its cause: absent, held, pinned, closed, refused, no room; what is there already is left out", () => {
    const refused: Verdict = {
      allowed: false,
      atMs: fleetAtMs,
      blockers: [{ code: "destination.cpu", cause: "no", action: "no" }],
    };
    const view = viewOf(
      [host("h1", 64), host("h2", 64), host("h3", 64, closed), host("h4", 2)],
      [
        domain("a", "h1", 1, { pinned: "" }),
        domain("b", "h1", 1),
        domain("c", "h1", 1),
        domain("d", "h1", 1),
        domain("e", "h1", 3),
        domain("f", "h2", 1),
      ],
      [["c h2", refused]],
      [{ domainUuid: "d", sourceId: "h1", destinationId: "h2" }],
    );
    const wanted = ["a h2", "b h3", "c h2", "d h4", "e h4", "f h2", "g h2", "b h9"].map((text) => {
      const [domainUuid = "", toId = ""] = text.split(" ");
      return { domainUuid, toId };
    });
    const { moves, blocked } = orderMoves(view, wanted, policy);
    assert.deepEqual(moves, []);
    assert.deepEqual(
      blocked.map(({ domainUuid, blocker }) => `${domainUuid} ${blocker.code}`),
      [
        "a placement.pinned",
        "b host.cordoned",
        "b host.absent",
        "c destination.cpu",
        "d domain.busy",
        "e placement.noRoom",
        "g domain.absent",
      ],
    );
  });
});

/** Some domains of a tight fleet and a host for each at random. */
const tangle = fc.record({
  seed: fc.integer({ min: 0, max: 1_000_000 }),
  domains: fc.integer({ min: 2, max: 7 }),
  antiAffinity: fc.constantFrom(0, 0.5),
  picks: fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 2, maxLength: 6 }),
});
function tangled({ seed, domains, antiAffinity, picks }: typeof tangle extends fc.Arbitrary<infer T> ? T : never) {
  const view = fleetView(seed, {
    hosts: 4,
    hostGib: [8, 10],
    domainGib: [2, 4, 6],
    fillMax: 1,
    off: 0.1,
    pinned: 0,
    closed: 0.1,
    checked: 0,
    domains,
    antiAffinity,
  });
  const open = view.hosts.filter((candidate) => candidate.closed === null).map(({ id }) => id);
  const wanted = view.domains.slice(0, picks.length).flatMap(({ uuid }, index) => {
    const toId = open[(picks[index] ?? 0) % Math.max(1, open.length)];
    return toId === undefined ? [] : [{ domainUuid: uuid, toId }];
  });
  return { view, wanted };
}

describe("orders of generated tangles", () => {
  const standing = { ...placementPolicyDefault, overheadMs: 1_000 };

  test("no rule is broken at any instant; each wanted move arrives, is there already, or is blocked with its cause", () => {
    fc.assert(
      fc.property(tangle, (asked) => {
        const { view, wanted } = tangled(asked);
        const { moves, blocked } = orderMoves(view, wanted, standing);
        judge(view, moves, standing);
        for (const { domainUuid, toId } of wanted) {
          const last = moves.findLast((move) => move.domainUuid === domainUuid);
          const stays = blocked.find((entry) => entry.domainUuid === domainUuid);
          const at = view.domains.find(({ uuid }) => uuid === domainUuid)?.hostId;
          if (stays !== undefined) assert.ok(last === undefined && stays.blocker.cause.length > 10);
          else assert.equal(last?.toId ?? at, toId);
        }
      }),
      { numRuns: 400 },
    );
  });

  test("where brute force finds an order, all arrive; the tangles are hard enough", () => {
    let stopped = 0;
    let impossible = 0;
    fc.assert(
      fc.property(tangle, (asked) => {
        const { view, wanted } = tangled(asked);
        const goals = new Map(wanted.map(({ domainUuid, toId }) => [domainUuid, toId]));
        const { moves, blocked } = orderMoves(view, wanted, standing);
        const exists = orderExists(view, goals, standing, 4);
        if (exists) assert.deepEqual(blocked, []);
        else assert.notEqual(blocked.length, 0);
        if (!exists) impossible += 1;
        if (moves.length > new Set(moves.map(({ domainUuid }) => domainUuid)).size) stopped += 1;
      }),
      { numRuns: 600 },
    );
    assert.ok(stopped > 10 && impossible > 10, `${stopped} with stops, ${impossible} without an order`);
  });

  test("the order of what is known and wanted changes nothing", () => {
    fc.assert(
      fc.property(tangle, fc.integer(), (asked, order) => {
        const { view, wanted } = tangled(asked);
        const other = orderMoves(shuffled(view, order), wanted.toReversed(), standing);
        assert.deepEqual(other, orderMoves(view, wanted, standing));
      }),
      { numRuns: 150 },
    );
  });
});
