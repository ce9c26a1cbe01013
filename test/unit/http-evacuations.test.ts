/** Evacuations over HTTP on a fleet in memory: the plan, the whole run, cancel, undo, restore, what is refused, and what a crash leaves. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import * as z from "zod/mini";
import {
  type Evacuation,
  type EvacuationPlan,
  evacuationPlanSchema,
  evacuationRowSchema,
  evacuationSchema,
} from "#functions/http/evacuation-resource";
import type { FaultBody, Finding } from "#protocol/fault";
import { type EvacuationFleet, evacuationFleet, numbered, uuidOf } from "#test/fake/evacuation-fleet";
import { factsOf, hostId, refusal } from "#test/fake/memory-fleet";

const blocker = (code: Finding["code"]): Finding => ({
  severity: "blocker",
  code,
  cause: `${code} it is`,
  action: "mend it",
});
const fault = (code: FaultBody["code"], retry: FaultBody["retry"] = "safe"): FaultBody => ({
  code,
  cause: `${code} happened`,
  action: "mend it",
  retry,
});

const post = (fleet: EvacuationFleet, body: object = {}, headers: Record<string, string> = {}) =>
  fleet.ask("/v1/evacuations", { body: { host: "host1", ...body }, headers });

async function begun(fleet: EvacuationFleet, body: object = {}, path = "/v1/evacuations"): Promise<Evacuation> {
  const response = await fleet.ask(path, { body: path === "/v1/evacuations" ? { host: "host1", ...body } : body });
  assert.equal(response.status, 202, await response.clone().text());
  const evacuation = evacuationSchema.parse(await response.json());
  assert.equal(response.headers.get("location"), `/v1/evacuations/${evacuation.id}`);
  return evacuation;
}

async function planned(fleet: EvacuationFleet, body: object = {}, path = "/v1/evacuations"): Promise<EvacuationPlan> {
  const response = await fleet.ask(path, {
    body: { ...(path === "/v1/evacuations" ? { host: "host1" } : {}), ...body, dryRun: true },
  });
  assert.equal(response.status, 200, await response.clone().text());
  return evacuationPlanSchema.parse(await response.json());
}

const show = async (fleet: EvacuationFleet, id: string): Promise<Evacuation> =>
  evacuationSchema.parse(await (await fleet.ask(`/v1/evacuations/${id}`)).json());

const states = ({ domains }: Evacuation) =>
  Object.fromEntries(domains.map(({ domain, state }) => [domain.name, state]));

const started = async (fleet: EvacuationFleet) =>
  (await fleet.ports.migrations.list({ limit: 200, cursor: null, active: false })).items;

describe("the plan of a dry run", () => {
  test("names for every domain where to, why, how long, who comes next, the room, and the way home; nothing is changed", async () => {
    const fleet = await evacuationFleet([numbered(1), numbered(2), numbered(3, { state: "shutoff" })]);
    const plan = await planned(fleet);
    assert.deepEqual(plan.moves.map(({ domain }) => domain.name).sort(), ["web1", "web2", "web3"]);
    assert.deepEqual(plan.blocked, []);
    for (const move of plan.moves) {
      assert.equal(move.from, "host1");
      assert.ok(["host2", "host3"].includes(move.to));
      assert.ok(move.proven && move.reason.length > 0 && move.endMs > move.startMs);
      assert.equal(move.runnersUp.length, 1);
      assert.doesNotMatch(JSON.stringify(move), /h_[0-9A-Z]{26}/);
    }
    assert.ok(plan.makespanMs > 0);
    assert.deepEqual(
      plan.home.map(({ to }) => to),
      ["host1", "host1", "host1"],
    );
    for (const room of plan.rooms) assert.ok(room.memoryBytesAfter <= room.memoryBytesMax);
    assert.deepEqual(await started(fleet), []);
    assert.deepEqual(await fleet.ports.evacuations.claims(), []);
    assert.equal((await fleet.ports.hosts.byId(hostId(1)))?.cordoned, false);
  });

  test("asks the hosts anew, and says what stands in the way with the next step", async () => {
    const fleet = await evacuationFleet([numbered(1)], { found: { 1: { source: [blocker("domain.hostdev")] } } });
    const plan = await planned(fleet);
    assert.deepEqual(plan.moves, []);
    assert.equal(plan.blocked[0]?.blocker.code, "domain.hostdev");
    assert.match(plan.blocked[0]?.blocker.action ?? "", /mend it/);
    fleet.scriptInspections(1, 1, {});
    fleet.pass(1);
    assert.equal((await planned(fleet)).moves.length, 1);
  });

  test("a risk blocks until it is accepted by its code", async () => {
    const risk = { ...blocker("lock.none"), severity: "risk" as const };
    const fleet = await evacuationFleet([numbered(1)], { found: { 1: { source: [risk] } } });
    const plan = await planned(fleet);
    assert.match(plan.blocked[0]?.blocker.action ?? "", /--accept lock\.none/);
    assert.equal((await planned(fleet, { policy: { accept: ["lock.none"] } })).moves.length, 1);
  });

  test("goes nowhere but to what is named; a host that is away or cordoned takes nothing", async () => {
    const fleet = await evacuationFleet([numbered(1), numbered(2)], { hosts: { 3: { cordoned: true } } });
    assert.deepEqual(new Set((await planned(fleet)).moves.map(({ to }) => to)), new Set(["host2"]));
    const only = await planned(fleet, { to: ["host3"] });
    assert.deepEqual(only.moves, []);
    assert.match(only.blocked[0]?.blocker.cause ?? "", /host3.*cordoned/);
  });

  test("a host that answers nothing is not counted on", async () => {
    const fleet = await evacuationFleet([numbered(1)]);
    fleet.script.answers.delete(`${hostId(2)} inspectDestination`);
    const [move] = (await planned(fleet)).moves;
    assert.equal(move?.to, "host3");
    assert.equal(move?.proven, true);
  });
});

describe("an evacuation", () => {
  test("empties the host within its limits, cordons it, and says of every domain how it ended", async () => {
    const fleet = await evacuationFleet([1, 2, 3, 4, 5].map((index) => numbered(index)));
    const evacuation = await begun(fleet);
    assert.equal(evacuation.status, "running");
    assert.equal(evacuation.counts.moving, 2);
    assert.equal((await started(fleet)).length, 2);
    assert.equal((await fleet.ports.hosts.byId(hostId(1)))?.cordoned, true);
    await fleet.work();
    // Every migration that ended woke it: no minute has passed.
    const ended = await show(fleet, evacuation.id);
    assert.equal(ended.status, "completed");
    assert.deepEqual(new Set(Object.values(states(ended))), new Set(["moved"]));
    assert.equal(Object.values(await fleet.places()).filter((host) => host === "host1").length, 0);
    assert.deepEqual(await fleet.ports.evacuations.claims(), []);
    assert.equal((await started(fleet)).length, 5);
  });

  test("one domain that cannot move holds no other, and says why it stays", async () => {
    const fleet = await evacuationFleet([numbered(1, { labels: { pinned: "license" } }), numbered(2), numbered(3)]);
    const { id } = await begun(fleet);
    await fleet.live();
    const ended = await show(fleet, id);
    assert.equal(ended.status, "partial");
    assert.deepEqual(states(ended), { web1: "stays", web2: "moved", web3: "moved" });
    assert.equal(ended.domains[0]?.reason?.code, "placement.pinned");
  });

  test("a destination that fails is left for another one", async () => {
    const fleet = await evacuationFleet([numbered(1)]);
    const { id, domains } = await begun(fleet);
    const first = domains[0]?.destination;
    await fleet.work({ prepare: fault("prepare.failed") });
    assert.equal((await show(fleet, id)).domains[0]?.state, "waiting");
    await fleet.live();
    const ended = await show(fleet, id);
    assert.equal(ended.status, "completed");
    assert.notEqual(ended.domains[0]?.destination, first);
    assert.equal(ended.domains[0]?.attempts, 2);
  });

  test("failures in a row stop it, and nothing is left unsaid", async () => {
    const fleet = await evacuationFleet([1, 2, 3, 4, 5, 6].map((index) => numbered(index)));
    const { id } = await begun(fleet, { policy: { breakerFailures: 2 } });
    await fleet.live(60, { prepare: fault("prepare.failed") });
    const ended = await show(fleet, id);
    assert.equal(ended.status, "failed");
    assert.equal(ended.stopped?.code, "prepare.failed");
    assert.ok(ended.domains.every(({ state, reason }) => state === "failed" && reason !== null));
    assert.ok((await started(fleet)).length <= 3);
  });

  test("two at once share the limits of the fleet", async () => {
    const fleet = await evacuationFleet(
      [1, 2, 3].map((index) => numbered(index)),
      {
        elsewhere: { 2: [4, 5, 6].map((index) => numbered(index)) },
      },
    );
    const policy = { fleetMax: 3, inMax: 3, outMax: 3 };
    await begun(fleet, { policy, to: ["host3"] });
    await begun(fleet, { host: "host2", policy, to: ["host3"] });
    assert.equal((await fleet.ports.migrations.activeMigrations()).length, 3);
    await fleet.live();
    assert.deepEqual(new Set(Object.values(await fleet.places())), new Set(["host3"]));
  });

  test("a network's limit holds for the plan and for the run, also over an undo that says nothing of it", async () => {
    const facts = (index: number) => ({ facts: { ...factsOf(index), labels: { network: "rack-b" } } });
    const fleet = await evacuationFleet(
      [1, 2, 3].map((index) => numbered(index)),
      {
        hosts: { 1: facts(1), 2: facts(2), 3: facts(3) },
      },
    );
    const policy = { fleetMax: 3, inMax: 3, outMax: 3, networkMax: 2 };
    assert.deepEqual((await planned(fleet, { policy })).limits, policy);
    const waves = async (given: object) => (await planned(fleet, { policy: given })).moves.map(({ wave }) => wave);
    assert.deepEqual(await waves({ ...policy, networkMax: null }), [0, 0, 0]);
    assert.deepEqual(await waves(policy), [0, 0, 1]);
    const { id } = await begun(fleet, { policy });
    assert.equal((await fleet.ports.migrations.activeMigrations()).length, 2);
    await fleet.live();
    const ended = await show(fleet, id);
    assert.equal(ended.status, "completed");
    const undo = await begun(fleet, {}, `/v1/evacuations/${id}/undo`);
    assert.equal(undo.policy.networkMax, 2);
    assert.equal((await fleet.ports.migrations.activeMigrations()).length, 2);
    await fleet.live();
    assert.deepEqual(new Set(Object.values(await fleet.places())), new Set(["host1"]));
  });

  test("a silent host's domains stay where they are: silence starts nothing", async () => {
    const fleet = await evacuationFleet([1, 2, 3].map((index) => numbered(index)));
    const { id } = await begun(fleet, { policy: { outMax: 1 } });
    const before = (await started(fleet)).length;
    for (let minutes = 0; minutes < 3; minutes += 1) await fleet.minute([2, 3]);
    assert.equal((await started(fleet)).length, before);
    assert.equal((await show(fleet, id)).status, "running");
  });

  test("its deadline ends it: nothing is started after, what is left says so", async () => {
    const fleet = await evacuationFleet([1, 2, 3, 4].map((index) => numbered(index)));
    const { id, deadlineAt, createdAt } = await begun(fleet, { policy: { outMax: 1 }, deadline: "5m" });
    assert.equal(Date.parse(deadlineAt ?? "") - Date.parse(createdAt), 300_000);
    fleet.pass(300_000);
    for (const index of [1, 2, 3]) await fleet.ports.hosts.seen(hostId(index), { at: fleet.ports.clock.now() });
    await fleet.evacuations.tick();
    assert.equal((await show(fleet, id)).status, "ending");
    await fleet.live();
    const ended = await show(fleet, id);
    assert.equal((await started(fleet)).length, 1);
    assert.equal(ended.stopped?.code, "step.overdue");
    assert.equal(ended.counts.moved, 1);
    assert.equal(ended.counts.failed, 3);
  });
});

describe("what a crash leaves", () => {
  test("killed between commit and dispatch: its migration is started later, once", async () => {
    const fleet = await evacuationFleet([numbered(1)]);
    const { create } = fleet.ports.migrations;
    fleet.ports.migrations.create = async () => {
      throw new Error("killed");
    };
    const { id, domains } = await begun(fleet);
    assert.equal(domains[0]?.state, "moving");
    assert.deepEqual(await started(fleet), []);
    fleet.ports.migrations.create = create.bind(fleet.ports.migrations);
    await fleet.minute();
    await fleet.live();
    const ended = await show(fleet, id);
    assert.equal(ended.status, "completed");
    assert.equal((await started(fleet)).length, 1);
  });

  test("killed after the request was stored: the timer begins with it", async () => {
    const fleet = await evacuationFleet([numbered(1)]);
    const { takeTurn } = fleet.ports.evacuations;
    fleet.ports.evacuations.takeTurn = async () => {
      throw new Error("killed");
    };
    const { id, counts } = await begun(fleet);
    assert.equal(counts.waiting, 1);
    fleet.ports.evacuations.takeTurn = takeTurn.bind(fleet.ports.evacuations);
    await fleet.live();
    assert.equal((await show(fleet, id)).status, "completed");
  });

  test("a claim without an evacuation is freed after a minute, not before", async () => {
    const fleet = await evacuationFleet([numbered(1)]);
    await fleet.ports.evacuations.claim(hostId(1), "e_01JD0000000000000000000099");
    assert.deepEqual(await refusal(await post(fleet)), [409, "request.conflict"]);
    fleet.pass(61_000);
    for (const index of [1, 2, 3]) await fleet.ports.hosts.seen(hostId(index), { at: fleet.ports.clock.now() });
    await begun(fleet);
  });

  test("an end whose effects were lost is told again: the host is freed", async () => {
    const fleet = await evacuationFleet([numbered(1)]);
    const { unclaim } = fleet.ports.evacuations;
    fleet.ports.evacuations.unclaim = async () => {
      throw new Error("killed");
    };
    const { id } = await begun(fleet);
    await fleet.work();
    assert.equal((await show(fleet, id)).status, "completed");
    assert.equal((await fleet.ports.evacuations.claims()).length, 1);
    fleet.ports.evacuations.unclaim = unclaim.bind(fleet.ports.evacuations);
    await fleet.minute();
    assert.deepEqual(await fleet.ports.evacuations.claims(), []);
  });
});

describe("cancel", () => {
  test("starts nothing more, lets what runs end, and opens the host when nothing had moved", async () => {
    const fleet = await evacuationFleet([1, 2, 3, 4].map((index) => numbered(index)));
    const { id } = await begun(fleet);
    const cancelled = evacuationSchema.parse(
      await (await fleet.ask(`/v1/evacuations/${id}/cancel`, { method: "POST" })).json(),
    );
    assert.equal(cancelled.status, "ending");
    assert.match(cancelled.stopped?.cause ?? "", /cancelled by admin/);
    await fleet.live();
    const ended = await show(fleet, id);
    assert.equal(ended.status, "cancelled");
    assert.equal(ended.counts.moved, 2);
    assert.equal((await started(fleet)).length, 2);
    assert.deepEqual(await refusal(await fleet.ask(`/v1/evacuations/${id}/cancel`, { method: "POST" })), [
      409,
      "request.conflict",
    ]);
  });

  test("before anything has moved, the host is open again", async () => {
    const fleet = await evacuationFleet([numbered(1)], {
      hosts: { 2: { lastSeenAt: null }, 3: { lastSeenAt: null } },
    });
    const { id } = await begun(fleet);
    assert.equal((await fleet.ports.hosts.byId(hostId(1)))?.cordoned, true);
    await fleet.ask(`/v1/evacuations/${id}/cancel`, { method: "POST" });
    assert.equal((await show(fleet, id)).status, "cancelled");
    assert.equal((await fleet.ports.hosts.byId(hostId(1)))?.cordoned, false);
  });
});

describe("the way home", () => {
  test("undo brings back what was moved and opens the host; a dry run shows it first", async () => {
    const fleet = await evacuationFleet([1, 2, 3].map((index) => numbered(index)));
    const { id } = await begun(fleet);
    await fleet.live();
    const plan = await planned(fleet, {}, `/v1/evacuations/${id}/undo`);
    assert.equal(plan.kind, "undo");
    assert.deepEqual(
      plan.moves.map(({ to }) => to),
      ["host1", "host1", "host1"],
    );
    const undo = await begun(fleet, {}, `/v1/evacuations/${id}/undo`);
    assert.equal(undo.undoes, id);
    await fleet.live();
    assert.equal((await show(fleet, undo.id)).status, "completed");
    assert.deepEqual(await fleet.places(), { web1: "host1", web2: "host1", web3: "host1" });
    assert.equal((await fleet.ports.hosts.byId(hostId(1)))?.cordoned, false);
  });

  test("what has just arrived is brought back, though the inventories do not show it yet", async () => {
    const fleet = await evacuationFleet([numbered(1)]);
    const { id, domains } = await begun(fleet);
    await fleet.serve();
    assert.equal((await show(fleet, id)).status, "completed");
    assert.deepEqual(await fleet.places(), { web1: "host1" });
    const undo = await begun(fleet, {}, `/v1/evacuations/${id}/undo`);
    assert.deepEqual(states(undo), { web1: "moving" });
    await fleet.serve();
    assert.equal((await show(fleet, undo.id)).status, "completed");
    assert.equal((await started(fleet)).at(0)?.source.name, domains[0]?.destination);
  });

  test("an evacuation that runs is not undone", async () => {
    const fleet = await evacuationFleet([numbered(1)]);
    const { id } = await begun(fleet);
    assert.deepEqual(await refusal(await fleet.ask(`/v1/evacuations/${id}/undo`, { body: {} })), [
      409,
      "request.conflict",
    ]);
  });

  test("restore brings home what belongs there, but for what is skipped and what a person has moved", async () => {
    const fleet = await evacuationFleet([1, 2, 3].map((index) => numbered(index)));
    await begun(fleet, { to: ["host2"] });
    await fleet.live();
    fleet.pass(1_000);
    await fleet.ask("/v1/migrations", { body: { domain: "web3", destination: "host3" } });
    await fleet.work();
    assert.deepEqual(await fleet.places(), { web1: "host2", web2: "host2", web3: "host3" });
    const restore = await begun(fleet, { skip: ["web2"] }, "/v1/hosts/host1/restore");
    assert.deepEqual(Object.keys(states(restore)), ["web1"]);
    await fleet.live();
    assert.deepEqual(await fleet.places(), { web1: "host1", web2: "host2", web3: "host3" });
  });

  test("restore of a host from which nothing was taken is complete at once", async () => {
    const fleet = await evacuationFleet([numbered(1)]);
    const restore = await begun(fleet, {}, "/v1/hosts/host2/restore");
    assert.deepEqual([restore.status, restore.domains], ["completed", []]);
  });
});

describe("requests", () => {
  for (const [what, body, expected] of [
    ["an unknown host", { host: "nope" }, [404, "host.absent"]],
    ["an unknown destination", { to: ["nope"] }, [404, "host.absent"]],
    ["the host itself as a destination", { to: ["host1"] }, [409, "destination.sameHost"]],
    ["a deadline that has passed", { deadline: "2026-11-22T09:00:00Z" }, [400, "request.malformed"]],
    ["a deadline that is none", { deadline: "soon" }, [400, "request.malformed"]],
    ["a code that is none", { policy: { accept: ["nonsense"] } }, [400, "request.malformed"]],
    ["a policy out of bounds", { policy: { outMax: 0 } }, [400, "request.malformed"]],
  ] as const)
    test(`${what}: ${expected.join(" ")}`, async () => {
      const fleet = await evacuationFleet([numbered(1)]);
      assert.deepEqual(await refusal(await post(fleet, body)), expected);
      assert.deepEqual(await fleet.ports.evacuations.claims(), []);
    });

  test("an offline host is refused, but its plan is shown with the cause", async () => {
    const fleet = await evacuationFleet([numbered(1)], { hosts: { 1: { lastSeenAt: null } } });
    assert.deepEqual(await refusal(await post(fleet)), [409, "host.offline"]);
    assert.equal((await planned(fleet)).blocked[0]?.blocker.code, "host.offline");
  });

  test("a host has one at a time; another host may have its own", async () => {
    const fleet = await evacuationFleet([numbered(1), numbered(2)]);
    await begun(fleet);
    const second = await post(fleet);
    assert.match(await second.clone().text(), /under e_/);
    assert.deepEqual(await refusal(second), [409, "request.conflict"]);
    await begun(fleet, { host: "host2" });
  });

  test("the same key finds the same evacuation, also after it has ended; another body is refused", async () => {
    const fleet = await evacuationFleet([numbered(1)]);
    const headers = { "idempotency-key": "k1" };
    const first = evacuationSchema.parse(await (await post(fleet, {}, headers)).json());
    await fleet.live();
    const again = evacuationSchema.parse(await (await post(fleet, {}, headers)).json());
    assert.equal(again.id, first.id);
    assert.equal(again.status, "completed");
    assert.deepEqual(await refusal(await post(fleet, { to: ["host2"] }, headers)), [422, "idempotency.mismatch"]);
    assert.equal((await started(fleet)).length, 1);
  });

  test("absent ones are 404 on every path", async () => {
    const fleet = await evacuationFleet([]);
    for (const id of ["e_01JD0000000000000000000077", "nonsense"])
      for (const [path, asked] of [
        ["", {}],
        ["/events", {}],
        ["/cancel", { method: "POST" }],
        ["/undo", { body: {} }],
      ] as const)
        assert.deepEqual(await refusal(await fleet.ask(`/v1/evacuations/${id}${path}`, asked)), [
          404,
          "request.notFound",
        ]);
    assert.deepEqual(await refusal(await fleet.ask("/v1/hosts/nope/restore", { body: {} })), [404, "host.absent"]);
  });

  test("the list is newest first, the active ones by themselves", async () => {
    const fleet = await evacuationFleet([numbered(1)]);
    const listed = async (query = "") =>
      z
        .object({ items: z.array(evacuationRowSchema), cursor: z.nullable(z.string()) })
        .parse(await (await fleet.ask(`/v1/evacuations${query}`)).json());
    const first = await begun(fleet);
    await fleet.live();
    const second = await begun(fleet, { host: "host2" });
    assert.deepEqual(
      (await listed()).items.map(({ id }) => id),
      [second.id, first.id],
    );
    assert.deepEqual((await listed("?limit=1")).cursor, second.id);
    const active = (await listed("?active=true")).items;
    assert.deepEqual(
      active.map(({ id }) => id),
      second.status === "running" ? [second.id] : [],
    );
    assert.equal((await listed()).items[1]?.counts.moved, 1);
  });

  test("the stream brings the resource with each change and ends with the end", async () => {
    const fleet = await evacuationFleet([numbered(1)], { eventsIdleMs: 5 });
    const { id } = await begun(fleet);
    const stream = await fleet.ask(`/v1/evacuations/${id}/events`);
    assert.equal(stream.status, 200);
    const text = stream.text();
    await fleet.live();
    const events = (await text).split("\n\n").filter((event) => event.includes("event: "));
    assert.match(events[0] ?? "", /event: evacuation\ndata: \{/);
    const last = events.at(-1) ?? "";
    assert.match(last, /event: ended/);
    const data = evacuationSchema.parse(JSON.parse(last.split("\ndata: ")[1] ?? ""));
    assert.equal(data.status, "completed");
    assert.doesNotMatch(last, /h_[0-9A-Z]{26}/);
    const seen = { headers: { "last-event-id": String(data.version) } };
    assert.equal((await fleet.ask(`/v1/evacuations/${id}/events`, seen)).status, 204);
  });
});

test("a domain that somebody else moved meanwhile is a result, and not fought over", async () => {
  const fleet = await evacuationFleet([1, 2, 3].map((index) => numbered(index)));
  const { id } = await begun(fleet, { policy: { outMax: 1 } });
  await fleet.ports.hosts.putInventory(hostId(1), { full: false, domains: [], gone: [uuidOf(3)] });
  await fleet.ports.hosts.putInventory(hostId(3), { full: false, domains: [numbered(3)], gone: [] });
  await fleet.live();
  const ended = await show(fleet, id);
  assert.equal(ended.domains.find(({ domain }) => domain.name === "web3")?.state, "stays");
  assert.match(ended.domains.find(({ domain }) => domain.name === "web3")?.reason?.cause ?? "", /moved it to host3/);
  assert.equal(ended.status, "completed");
});
