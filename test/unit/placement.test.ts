/** The plan of an evacuation by example: which destination, and what a person reads of it. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { plan } from "#core/placement";
import { priorityOf } from "#core/placement-ledger";
import {
  type PlacementDomain,
  type PlacementHost,
  type PlacementView,
  type Plan,
  placementPolicyDefault,
  type Verdict,
  verdictKey,
} from "#core/placement-view";
import { fleetAtMs } from "../fake/fleet-view.ts";

const gib = 1024 ** 2;
const host = (id: string, size = 64, asked: Partial<PlacementHost> = {}): PlacementHost => ({
  id,
  name: id,
  labels: {},
  cpus: 16,
  memoryKiB: size * gib,
  closed: null,
  ...asked,
});
const domain = (uuid: string, hostId: string, asked: Partial<PlacementDomain> = {}): PlacementDomain => ({
  uuid,
  name: uuid,
  hostId,
  memoryKiB: 4 * gib,
  vcpus: 2,
  active: true,
  snapshots: 0,
  labels: {},
  ...asked,
});
const allowed: Verdict = { allowed: true, atMs: fleetAtMs - 40_000 };
const refused: Verdict = {
  allowed: false,
  atMs: fleetAtMs,
  blockers: [{ code: "destination.cpu", cause: "It lacks avx2.", action: "Choose another host." }],
};
const offline = { code: "host.offline", cause: "It has been silent for 3 min.", action: "Look at its shim." } as const;
const cordoned = { code: "host.cordoned", cause: "It is cordoned.", action: "Uncordon it." } as const;

function viewOf(
  hosts: PlacementHost[],
  domains: PlacementDomain[],
  verdicts: Record<string, Verdict> = {},
  moving: PlacementView["moving"] = [],
): PlacementView {
  const entries = Object.entries(verdicts).map(([text, verdict]): [string, Verdict] => {
    const [uuid = "", id = ""] = text.split(" ");
    return [verdictKey(uuid, id), verdict];
  });
  return { atMs: fleetAtMs, hosts, domains, verdicts: new Map(entries), moving, networks: new Map() };
}
const ends = ({ moves }: Plan) => Object.fromEntries(moves.map(({ domainUuid, toId }) => [domainUuid, toId]));
const codes = ({ blocked }: Plan) =>
  Object.fromEntries(blocked.map(({ domainUuid, blocker }) => [domainUuid, blocker.code]));
const emptied = (view: PlacementView, asked = {}) => plan(view, ["h1"], { ...placementPolicyDefault, ...asked });

describe("where domains go", () => {
  test("each to the host with the largest share of room left, the reason and the runners-up in words", () => {
    const view = viewOf(
      [host("h1"), host("h2", 64), host("h3", 128), host("h4", 32)],
      [domain("a", "h1", { labels: { "anti-affinity": "db" } }), domain("b", "h2", { memoryKiB: 40 * gib })],
      { "a h2": allowed, "a h3": allowed, "a h4": allowed },
    );
    const [move] = emptied(view).moves;
    assert.equal(move?.toId, "h3");
    assert.equal(
      move.reason,
      "has 123 GiB free of 128 GiB after, beside the reserve, and 62 of 64 vCPUs; holds none of anti-affinity group db; a check allowed it 40 s ago; ranks first of 3 that can take it",
    );
    assert.deepEqual(move.runnersUp, [
      {
        hostId: "h4",
        why: "would have 27 GiB free of 32 GiB after, beside the reserve, and 62 of 64 vCPUs: 87 % left, against 96 %",
      },
      {
        hostId: "h2",
        why: "would have 19 GiB free of 64 GiB after, beside the reserve, and 60 of 64 vCPUs: 30 % left, against 96 %",
      },
    ]);
    assert.equal(move.proven, true);
    // 4 GiB at 100 MiB/s and the overhead.
    assert.equal(move.endMs - move.startMs, 5_000 + 40_960);
  });

  test("a proven destination goes before a roomier one that was not checked, and a refusal excludes", () => {
    const hosts = [host("h1"), host("h2", 256), host("h3", 128), host("h4", 32)];
    const proven = emptied(viewOf(hosts, [domain("a", "h1")], { "a h4": allowed, "a h2": refused }));
    assert.deepEqual(ends(proven), { a: "h4" });
    const [move] = emptied(viewOf(hosts, [domain("a", "h1")], { "a h2": refused })).moves;
    assert.deepEqual([move?.toId, move?.proven], ["h3", false]);
    assert.match(move?.reason ?? "", /not checked yet/);
  });

  test("to where its affinity group is; where the group moves as a whole, to where all of it fits; never a reason to stay", () => {
    const near = { labels: { affinity: "web" } };
    const there = viewOf(
      [host("h1"), host("h2"), host("h3")],
      [domain("a", "h1", near), domain("b", "h2", near), domain("c", "h2", { memoryKiB: 40 * gib })],
    );
    assert.deepEqual(ends(emptied(there)), { a: "h2" });
    assert.match(emptied(there).moves[0]?.reason ?? "", /1 of affinity group web there/);
    // h3 has the larger share left for the first, but not for both.
    const big = { memoryKiB: 20 * gib, ...near };
    const whole = viewOf(
      [host("h1"), host("h2", 128), host("h3", 36)],
      [domain("a", "h1", big), domain("b", "h1", big), domain("c", "h2", { memoryKiB: 80 * gib })],
    );
    assert.deepEqual(ends(emptied(whole)), { a: "h2", b: "h2" });
    const full = viewOf([host("h1"), host("h2", 8), host("h3", 24)], [domain("a", "h1", big), domain("b", "h2", near)]);
    assert.deepEqual(ends(emptied(full)), { a: "h3" });
  });

  test("the more urgent and then the larger go first", () => {
    const view = viewOf(
      [host("h1"), host("h2")],
      [
        domain("a", "h1", { memoryKiB: gib }),
        domain("b", "h1", { memoryKiB: 8 * gib }),
        domain("c", "h1", { memoryKiB: gib, labels: { priority: "90" } }),
        domain("d", "h1", { memoryKiB: 16 * gib, labels: { priority: "10" } }),
      ],
    );
    const { moves } = emptied(view, { outMax: 1 });
    assert.deepEqual(
      moves.map(({ domainUuid }) => domainUuid),
      ["c", "b", "a", "d"],
    );
    assert.deepEqual(
      moves.map(({ wave }) => wave),
      [0, 1, 2, 3],
    );
  });

  test("a priority that is none counts as the default", () => {
    const texts = ["0", "100", "101", "-1", "high", "", "7.5", "007"];
    assert.deepEqual(
      texts.map((priority) => priorityOf({ priority })),
      [0, 100, 50, 50, 50, 50, 50, 7],
    );
    assert.equal(priorityOf({}), 50);
  });

  test("several hosts at once: none of them receives", () => {
    const view = viewOf([host("h1"), host("h2"), host("h3", 16)], [domain("a", "h1"), domain("b", "h2")]);
    assert.deepEqual(ends(plan(view, ["h1", "h2"], placementPolicyDefault)), { a: "h3", b: "h3" });
  });

  test("what is under way keeps its room on both hosts and uses the limits", () => {
    const view = viewOf(
      [host("h1"), host("h2", 9), host("h3", 64)],
      [domain("a", "h1"), domain("b", "h3", { memoryKiB: 5 * gib }), domain("c", "h1", { memoryKiB: gib })],
      { "a h3": refused, "c h3": refused },
      [{ domainUuid: "b", sourceId: "h3", destinationId: "h2" }],
    );
    const { moves, blocked } = emptied(view, { fleetMax: 1 });
    assert.deepEqual(
      moves.map(({ domainUuid, toId }) => [domainUuid, toId]),
      [["c", "h2"]],
    );
    assert.deepEqual(
      blocked.map(({ domainUuid, blocker }) => [domainUuid, blocker.code]),
      [["a", "placement.noDestination"]],
    );
    // b, 5 GiB at 100 MiB/s, is before it.
    assert.equal(moves[0]?.startMs, 5_000 + 51_200);
  });

  test("a network's limit: who touches it comes one after the other, whoever touches none of it goes beside, others' count", () => {
    const domains = ["a", "b", "c"].map((uuid) => domain(uuid, "h1", { memoryKiB: gib }));
    const only = { "a h3": refused, "b h3": refused, "c h2": refused };
    const view = viewOf([host("h1"), host("h2"), host("h3")], domains, only);
    const policy = { outMax: 5, inMax: 5, networkMax: 1 };
    const starts = (networks: Record<string, string>, moving: PlacementView["moving"] = []) =>
      emptied({ ...view, moving, networks: new Map(Object.entries(networks)) }, policy).moves.map(
        ({ domainUuid, startMs, wave }) => `${domainUuid} ${startMs} ${wave}`,
      );
    // Of 1 GiB each takes 15,240 ms. Only the way to h2 is limited, so c goes beside.
    assert.deepEqual(starts({ h2: "east" }), ["a 0 0", "c 0 0", "b 15240 1"]);
    assert.deepEqual(starts({ h1: "east" }), ["a 0 0", "b 15240 1", "c 30480 2"]);
    assert.deepEqual(starts({ h1: "east", h2: "east", h3: "east" }), ["a 0 0", "b 15240 1", "c 30480 2"]);
    assert.deepEqual(starts({ h7: "west" }), ["a 0 0", "b 0 0", "c 0 0"]);
    // Between hosts that are not among those read, on the network of h2: 5 s, for its size is not known.
    const elsewhere = [{ domainUuid: "x", sourceId: "h8", destinationId: "h9" }];
    assert.deepEqual(starts({ h2: "east", h9: "east" }, elsewhere), ["c 0 0", "a 5000 0", "b 20240 1"]);
  });
});

describe("what stays, and why", () => {
  test("pinned, under way, on a silent host: each with its own cause; the others go", () => {
    const view = viewOf(
      [host("h1"), host("h2")],
      [domain("a", "h1", { labels: { pinned: "" } }), domain("b", "h1"), domain("c", "h1"), domain("d", "h2")],
      {},
      [
        { domainUuid: "b", sourceId: "h1", destinationId: "h2" },
        { domainUuid: "d", sourceId: "h2", destinationId: "h1" },
      ],
    );
    const result = emptied(view);
    assert.deepEqual(codes(result), { a: "placement.pinned", b: "domain.busy", d: "domain.busy" });
    assert.deepEqual(ends(result), { c: "h2" });
    const silent = emptied(viewOf([host("h1", 64, { closed: offline }), host("h2")], [domain("a", "h1")]));
    assert.deepEqual([codes(silent), ends(silent)], [{ a: "host.offline" }, {}]);
    const closed = emptied(viewOf([host("h1", 64, { closed: cordoned }), host("h2")], [domain("a", "h1")]));
    assert.deepEqual(ends(closed), { a: "h2" }, "a cordoned host is emptied all the same");
  });

  test("no room: what is missing where the least is missing, and what to do", () => {
    const view = viewOf([host("h1"), host("h2", 8), host("h3", 16)], [domain("a", "h1", { memoryKiB: 16 * gib })]);
    assert.deepEqual(emptied(view).blocked[0]?.blocker, {
      code: "placement.noRoom",
      cause:
        "No host can take it; the nearest: h3 lacks 1 GiB of memory (16 GiB needed, 15 GiB of 16 GiB free beside the reserve). The other one is too full.",
      action: "Free that much on h3, add a host, or state a smaller reserve or a larger overcommit.",
    });
    const vcpus = viewOf([host("h1"), host("h2")], [domain("a", "h1", { vcpus: 65 })]);
    assert.match(emptied(vcpus).blocked[0]?.blocker.cause ?? "", /^h2 lacks 1 vCPUs \(65 needed, 64 of 64 free\)/);
  });

  test("different causes: the nearest miss is named, the rest is counted", () => {
    const view = viewOf(
      [
        host("h1"),
        host("h2", 64, { closed: cordoned }),
        host("h3", 64, { closed: cordoned }),
        host("h4"),
        host("h5"),
        host("h6", 4, { closed: offline }),
      ],
      [
        domain("a", "h1", { labels: { "anti-affinity": "db" } }),
        domain("b", "h4", { labels: { "anti-affinity": "db" } }),
      ],
      { "a h5": refused },
    );
    assert.deepEqual(emptied(view).blocked[0]?.blocker, {
      code: "placement.noDestination",
      cause:
        "No host can take it; the nearest: h4 has b of the same anti-affinity group db, which never share a host. The other 4: 2 closed (host.cordoned), 1 refused by a check (destination.cpu), 1 too full.",
      action: "Move that one away from h4 first, add a host for the group, or take the label off.",
    });
  });

  test("one cause everywhere keeps its own code", () => {
    const shut = viewOf([host("h1"), host("h2", 64, { closed: cordoned })], [domain("a", "h1")]);
    assert.deepEqual(emptied(shut).blocked[0]?.blocker, cordoned);
    const no = viewOf([host("h1"), host("h2"), host("h3")], [domain("a", "h1")], { "a h2": refused, "a h3": refused });
    assert.deepEqual(codes(emptied(no)), { a: "destination.cpu" });
    assert.match(
      emptied(no).blocked[0]?.blocker.cause ?? "",
      /The check for h2 says: It lacks avx2\. The other one is refused/,
    );
    const named = viewOf([host("h1"), host("h2"), host("h3", 2)], [domain("a", "h1")]);
    const { cause, action } = emptied(named, { to: ["h3"] }).blocked[0]?.blocker ?? {};
    assert.match(cause ?? "", /h3 lacks/);
    assert.match(action ?? "", /Free that much on h3/);
    assert.deepEqual(codes(emptied(viewOf([host("h1")], [domain("a", "h1")]))), { a: "placement.noDestination" });
  });

  test("the same UUID on two hosts: only the one that alone runs is moved, and not onto its copy", () => {
    const twins = (active: boolean) =>
      viewOf([host("h1"), host("h2", 128), host("h3", 64)], [domain("a", "h1"), domain("a", "h2", { active })]);
    assert.deepEqual(ends(emptied(twins(false))), { a: "h3" });
    assert.deepEqual(codes(emptied(twins(true))), { a: "domain.notUnique" });
  });

  test("one that moved and could not go back is said before anything moves", () => {
    const view = viewOf([host("h1", 8), host("h2")], [domain("a", "h1"), domain("b", "h1")], { "b h1": refused });
    const { home, homeBlocked } = emptied(view);
    assert.deepEqual(
      home.map(({ domainUuid, toId }) => [domainUuid, toId]),
      [["a", "h1"]],
    );
    assert.deepEqual(
      homeBlocked.map(({ domainUuid, blocker }) => [domainUuid, blocker.code]),
      [["b", "destination.cpu"]],
    );
    const over = viewOf([host("h1", 8), host("h2")], [domain("a", "h1"), domain("b", "h1")]);
    assert.deepEqual(
      emptied(over).homeBlocked.map(({ blocker }) => blocker.code),
      ["placement.noRoom"],
      "it was over the reserve",
    );
  });

  test("a fleet of nothing, a host that is not known", () => {
    const nothing = { moves: [], blocked: [], makespanMs: 0, rooms: [], home: [], homeBlocked: [] };
    assert.deepEqual(emptied(viewOf([], [])), nothing);
    assert.deepEqual(codes(emptied(viewOf([host("h2")], [domain("a", "h1")]))), { a: "host.absent" });
  });
});
