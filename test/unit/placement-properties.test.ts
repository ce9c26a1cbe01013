/** The planner held against a judge and against brute force, on generated fleets. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { plan } from "#core/placement";
import { type PlacementPolicy, placementPolicyDefault } from "#core/placement-view";
import { fleetView, shuffled } from "../fake/fleet-view.ts";
import { judge, mostPlaced } from "../fake/plan-referee.ts";

const shape = fc.record({
  hosts: fc.integer({ min: 2, max: 8 }),
  domains: fc.integer({ min: 0, max: 50 }),
  fillMax: fc.constantFrom(0.3, 0.6, 0.9, 1),
  antiAffinity: fc.constantFrom(0, 0.2, 0.6),
  affinity: fc.constantFrom(0, 0.3),
  off: fc.constantFrom(0, 0.3),
  checked: fc.constantFrom(0, 0.3, 1),
  refused: fc.constantFrom(0, 0.4),
  closed: fc.constantFrom(0, 0.3),
  moving: fc.constantFrom(0, 0, 0.1),
  hostGib: fc.constantFrom([64], [32, 64, 128]),
});
const seed = fc.integer({ min: 0, max: 1_000_000 });
const policyOf: fc.Arbitrary<PlacementPolicy> = fc.record({
  to: fc.constantFrom(null, null, ["h_0001", "h_0002", "h_0003"]),
  vcpusPerCpuMax: fc.constantFrom(1, 2, 4),
  memoryReserveKiB: fc.constantFrom(0, 1024 ** 2),
  outMax: fc.integer({ min: 1, max: 3 }),
  inMax: fc.integer({ min: 1, max: 3 }),
  fleetMax: fc.integer({ min: 1, max: 6 }),
  networkMax: fc.constantFrom(null, 1, 2),
  bytesPerSecond: fc.constantFrom(100 * 1024 ** 2, 1024 ** 3),
  overheadMs: fc.constantFrom(0, 5_000),
});
const emptiedOf: fc.Arbitrary<string[]> = fc.constantFrom(
  ["h_0000"],
  ["h_0000", "h_0001"],
  ["h_0001", "h_0003", "h_0005"],
);
/** Everything may go together: tight enough that the heuristic alone often fails. */
const small = {
  hosts: 4,
  hostGib: [12, 16],
  domainGib: [1, 2, 3, 4, 5, 6, 7],
  fillMax: 1,
  off: 0,
  pinned: 0,
  closed: 0,
  groupSize: 2,
};

describe("plans of generated fleets", () => {
  test("no room, no group and no limit is broken at any instant, nor wave by wave; each domain has an answer", () => {
    fc.assert(
      fc.property(seed, shape, policyOf, emptiedOf, (number, asked, policy, emptied) => {
        const view = fleetView(number, asked);
        const { moves, blocked, home, homeBlocked, rooms, makespanMs } = plan(view, emptied, policy);
        judge(view, moves, policy);
        const answered = [...moves, ...blocked].map(({ domainUuid }) => domainUuid);
        assert.equal(new Set(answered).size, answered.length, "answered once");
        const evacuated = view.domains.filter(({ hostId }) => emptied.includes(hostId));
        for (const { uuid } of evacuated) assert.ok(answered.includes(uuid));
        for (const { fromId, toId, domainUuid, reason, runnersUp, proven } of moves) {
          const host = view.hosts.find(({ id }) => id === toId);
          assert.ok(host !== undefined && host.closed === null && !emptied.includes(toId) && emptied.includes(fromId));
          assert.ok(policy.to?.includes(toId) !== false);
          const verdict = view.verdicts.get(`${domainUuid} ${toId}`);
          assert.notEqual(verdict?.allowed, false);
          assert.equal(proven, verdict?.allowed === true);
          assert.match(reason, /free of/);
          assert.ok(runnersUp.length <= 3 && runnersUp.every(({ hostId, why }) => hostId !== toId && why.length > 10));
        }
        for (const { blocker } of blocked) assert.ok(blocker.cause.length > 10 && blocker.action.length > 10);
        assert.equal(makespanMs, Math.max(0, ...moves.map(({ endMs }) => endMs)));
        assert.deepEqual(
          rooms.map(({ hostId }) => hostId),
          [...new Set(moves.map(({ toId }) => toId))].sort(),
        );
        for (const room of rooms) {
          const came = moves.filter(({ toId }) => toId === room.hostId).map(({ domainUuid }) => domainUuid);
          const active = view.domains.filter(({ uuid, active }) => active && came.includes(uuid));
          const memory = active.reduce((sum, { memoryKiB }) => sum + memoryKiB, 0);
          assert.equal(room.memoryKiBAfter - room.memoryKiBBefore, memory);
          if (memory > 0) assert.ok(room.memoryKiBAfter <= room.memoryKiBMax && room.vcpusAfter <= room.vcpusMax);
        }
        // The way home begins where the plan ends, and ends where the plan began.
        const later = {
          ...view,
          domains: view.domains.map((domain) => ({
            ...domain,
            hostId: moves.find(({ domainUuid }) => domainUuid === domain.uuid)?.toId ?? domain.hostId,
          })),
        };
        judge({ ...later, moving: [] }, home, policy);
        for (const { domainUuid, fromId } of moves) {
          const back = home.filter((move) => move.domainUuid === domainUuid).at(-1)?.toId;
          const stays = homeBlocked.some((entry) => entry.domainUuid === domainUuid);
          assert.ok(stays ? back === undefined : back === fromId);
        }
        assert.equal(home.length + homeBlocked.length, moves.length);
      }),
      { numRuns: 300 },
    );
  });

  test("the judge is no decoration: a plan that knows nothing of networks is caught", () => {
    let caught = 0;
    for (let number = 0; number < 20; number += 1) {
      const view = fleetView(number);
      const { moves } = plan(view, ["h_0000"], placementPolicyDefault);
      judge(view, moves, placementPolicyDefault);
      try {
        judge(view, moves, { ...placementPolicyDefault, networkMax: 1 });
      } catch (error) {
        assert.match(String(error), /touch rack-0/);
        caught += 1;
      }
    }
    assert.ok(caught > 10, `only ${caught} of 20 caught`);
  });

  test("from a fleet within its rooms everything comes home", () => {
    fc.assert(
      fc.property(seed, shape, emptiedOf, (number, asked, emptied) => {
        const view = fleetView(number, { ...asked, moving: 0, refused: 0 });
        const { moves, home, homeBlocked } = plan(view, emptied, placementPolicyDefault);
        assert.deepEqual(homeBlocked, []);
        const back = new Map(home.map(({ domainUuid, toId }) => [domainUuid, toId]));
        assert.deepEqual(
          back,
          new Map(
            home.map(({ domainUuid }) => [domainUuid, moves.find((move) => move.domainUuid === domainUuid)?.fromId]),
          ),
        );
        assert.equal(home.length, moves.length);
      }),
      { numRuns: 100 },
    );
  });

  test("the order of what is known changes nothing", () => {
    fc.assert(
      fc.property(seed, seed, shape, emptiedOf, (number, order, asked, emptied) => {
        const view = fleetView(number, asked);
        const one = plan(view, emptied, placementPolicyDefault);
        const other = plan(shuffled(view, order), emptied.toReversed(), placementPolicyDefault);
        assert.deepEqual(other, one);
      }),
      { numRuns: 100 },
    );
  });

  test("up to 6 domains on 4 hosts: as many are placed as brute force places, and the fleets are hard enough", () => {
    let full = 0;
    let partly = 0;
    fc.assert(
      fc.property(
        seed,
        fc.integer({ min: 6, max: 14 }),
        fc.constantFrom(0, 0.5),
        fc.constantFrom(0, 0.5),
        fc.constantFrom(1, 2, 4),
        fc.constantFrom<string[]>(["h_0000"], ["h_0000", "h_0001"]),
        (number, domains, antiAffinity, refused, vcpusPerCpuMax, emptied) => {
          const view = fleetView(number, { ...small, domains, antiAffinity, refused, priority: 0 });
          const policy = { ...placementPolicyDefault, vcpusPerCpuMax };
          const here = view.domains.filter(({ hostId }) => emptied.includes(hostId)).map(({ uuid }) => uuid);
          fc.pre(here.length > 0 && here.length <= 6);
          const { moves } = plan(view, emptied, policy);
          const most = mostPlaced(view, here, emptied, policy);
          assert.equal(moves.length, most);
          if (most === here.length) full += 1;
          else partly += 1;
        },
      ),
      { numRuns: 600 },
    );
    assert.ok(full > 20 && partly > 20, `${full} placed wholly, ${partly} in part`);
  });

  test("where not all fit, no more urgent one stays for a less urgent one of the same size", () => {
    fc.assert(
      fc.property(seed, (number) => {
        const view = fleetView(number, {
          ...small,
          domains: 14,
          domainGib: [4],
          priority: 0.6,
          antiAffinity: 0,
          checked: 0,
        });
        const { moves, blocked } = plan(view, ["h_0000"], placementPolicyDefault);
        const priority = (uuid: string) =>
          Number(view.domains.find((domain) => domain.uuid === uuid)?.labels.priority ?? 50);
        const least = Math.min(...moves.map(({ domainUuid }) => priority(domainUuid)));
        for (const { domainUuid } of blocked) assert.ok(priority(domainUuid) <= least);
      }),
      { numRuns: 100 },
    );
  });
});
