/** What is asked of hosts for a plan, how much of it, and what is made of answers, silence and age. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { evacuationPlanSchema } from "#functions/http/evacuation-resource";
import { inventoriesMax } from "#functions/placement-look";
import type { HostRecord, PlacedDomain } from "#functions/ports";
import {
  Preflights,
  preflightAgeMsMax,
  preflightMemory,
  preflightsAtOnce,
  refusalAgeMsMax,
} from "#functions/preflights";
import type { Finding } from "#protocol/fault";
import { numbered, uuidOf } from "#test/fake/evacuation-fleet";
import { factsOf, hostId, type MemoryFleet, memoryFleet } from "#test/fake/memory-fleet";

const nobody: ReadonlySet<string> = new Set();
const finding = (severity: Finding["severity"], code: Finding["code"]): Finding => ({
  severity,
  code,
  cause: `${code} it is.`,
  action: "Mend it.",
});

let fleet: MemoryFleet;
let preflights: Preflights;
let source: HostRecord;
let other: HostRecord;
let domain: PlacedDomain;
beforeEach(async () => {
  fleet = await memoryFleet();
  source = await fleet.addHost(1, {}, [numbered(1)]);
  other = await fleet.addHost(2);
  domain = { ...numbered(1), hostId: source.id };
  preflights = new Preflights(fleet.ports, preflightMemory());
});
const nowMs = () => Date.parse(fleet.ports.clock.now());
const ask = (fields: Partial<{ sinceMs: number; untilMs: number }> = {}) =>
  preflights.ask([{ domain, source, destinations: [other] }], {
    sinceMs: 0,
    untilMs: Number.POSITIVE_INFINITY,
    ...fields,
  });
const verdict = (accept = nobody) => preflights.verdict(domain.uuid, source.id, other.id, accept);
const asked = () => fleet.script.queries.map(({ hostId: id, query }) => `${id} ${query.kind}`);

describe("preflights", () => {
  test("allow what both sides allow, and remember it until it is too old", async () => {
    fleet.scriptInspections(1, 2, {});
    assert.equal(verdict(), null);
    await ask();
    assert.deepEqual(verdict(), { allowed: true, atMs: nowMs() });
    await ask();
    assert.deepEqual(asked(), [`${source.id} inspectSource`, `${other.id} inspectDestination`]);
    fleet.pass(preflightAgeMsMax + 1);
    assert.equal(verdict(), null);
    await ask({ sinceMs: nowMs() - preflightAgeMsMax });
    assert.equal(verdict()?.allowed, true);
    assert.equal(asked().length, 4);
  });

  test("the source's word stands against every destination, without asking one", async () => {
    fleet.scriptInspections(1, 2, { source: [finding("blocker", "domain.hostdev")] });
    await ask();
    const found = verdict();
    assert.ok(found !== null && !found.allowed);
    assert.equal(found.blockers[0]?.code, "domain.hostdev");
    assert.equal(preflights.verdict(domain.uuid, source.id, hostId(77), nobody)?.allowed, false);
  });

  test("a risk blocks until it is accepted by its code; a note never does", async () => {
    fleet.scriptInspections(1, 2, { destination: [finding("risk", "lock.none"), finding("note", "transport.clear")] });
    await ask();
    assert.equal(verdict()?.allowed, false);
    assert.equal(verdict(new Set(["lock.none"]))?.allowed, true);
  });

  test("silence is no answer and is not remembered", async () => {
    await ask();
    assert.equal(verdict(), null);
    fleet.scriptInspections(1, 2, {});
    fleet.script.answers.delete(`${other.id} inspectDestination`);
    await ask();
    assert.equal(verdict(), null);
    fleet.scriptInspections(1, 2, {});
    await ask();
    assert.equal(verdict()?.allowed, true);
  });

  test("a refusal is an answer", async () => {
    const fault = { code: "libvirt.unreachable", cause: "Away.", action: "Look.", retry: "safe" } as const;
    fleet.scriptInspections(1, 2, {});
    fleet.script.answers.set(`${other.id} inspectDestination`, { ok: false, fault });
    await ask();
    const found = verdict();
    assert.ok(found !== null && !found.allowed);
    assert.deepEqual(found.blockers, [{ code: "libvirt.unreachable", cause: "Away.", action: "Look." }]);
  });

  test("a refusal is asked again soon, for it may be over", async () => {
    fleet.scriptInspections(1, 2, { source: [finding("blocker", "domain.blockJob")] });
    await ask();
    fleet.scriptInspections(1, 2, {});
    await ask();
    assert.equal(verdict()?.allowed, false);
    fleet.pass(refusalAgeMsMax + 1);
    await ask();
    assert.equal(verdict()?.allowed, true);
  });

  test("shims that do not reach each other are found out; a domain that is off needs no such thing", async () => {
    const facts = { ...factsOf(2), peer: { hosts: ["beta"], port: 16_515 } };
    other = { ...other, facts };
    fleet.scriptInspections(1, 2, {});
    const fault = { code: "peer.unreachable", cause: "No way.", action: "Open it.", retry: "safe" } as const;
    fleet.script.answers.set(`${source.id} reachPeer`, { ok: false, fault });
    await ask();
    assert.equal(verdict()?.allowed, false);
    domain = { ...domain, state: "shutoff" };
    preflights = new Preflights(fleet.ports, preflightMemory());
    await ask();
    assert.equal(verdict()?.allowed, true);
  });

  test("nobody is asked after the time is over", async () => {
    fleet.scriptInspections(1, 2, {});
    await ask({ untilMs: nowMs() });
    assert.deepEqual(asked(), []);
  });
});

test("of a large fleet only what a plan would use is asked, and only so many inventories are read", async () => {
  const large = await memoryFleet();
  const hosts = 90;
  const domains = Array.from({ length: 12 }, (_, index) => numbered(index + 1));
  for (let index = 1; index <= hosts; index += 1) {
    await large.addHost(index, {}, index === 1 ? domains : []);
    large.scriptInspections(index, index, {});
  }
  let reads = 0;
  let atOnce = 0;
  let most = 0;
  const { domainsOf } = large.ports.hosts;
  large.ports.hosts.domainsOf = (id) => {
    reads += 1;
    return domainsOf.call(large.ports.hosts, id);
  };
  const { query } = large.ports.sockets;
  large.ports.sockets.query = async (...words) => {
    atOnce += 1;
    most = Math.max(most, atOnce);
    await new Promise((resolve) => setImmediate(resolve));
    atOnce -= 1;
    return query(...words);
  };
  const response = await large.ask("/v1/evacuations", { body: { host: "host1", dryRun: true } });
  const plan = evacuationPlanSchema.parse(await response.json());
  assert.equal(plan.moves.length, 12);
  assert.ok(plan.moves.every(({ proven }) => proven));
  const pairs = large.script.queries.filter(({ query: { kind } }) => kind === "inspectDestination").length;
  assert.ok(pairs < 12 * 10, `${pairs} pairs of ${12 * (hosts - 1)} were asked`);
  assert.ok(most <= 2 * preflightsAtOnce, `${most} at once`);
  // Once for the request itself: what is on the host.
  assert.ok(reads <= inventoriesMax + 1, `${reads} inventories were read`);
  assert.equal(large.script.queries.filter(({ query: { kind } }) => kind === "inspectSource").length, 12);
  assert.equal(
    plan.moves.some(({ domain }) => domain.uuid === uuidOf(1)),
    true,
  );
});
