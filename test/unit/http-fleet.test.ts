/** Hosts, domains and checks over HTTP. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { runCheck } from "#functions/http/check";
import { type Check, checkSchema } from "#functions/http/check-resource";
import { domainDetailSchema, domainSchema, hostDetailSchema, hostSchema } from "#functions/http/host-resource";
import type { Ports } from "#functions/ports";
import type { Finding } from "#protocol/fault";
import { domainNamed, factsOf, hostId, type MemoryFleet, memoryFleet, refusal, webUuid } from "#test/fake/memory-fleet";

let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
  await fleet.addHost(1, {}, [domainNamed("web")]);
  await fleet.addHost(2);
});

const uuid = (index: number) => webUuid.replace("1111", String(index).padStart(4, "0"));
const pageOf = <T extends z.ZodMiniType>(item: T) => z.object({ items: z.array(item), cursor: z.nullable(z.string()) });

describe("hosts", () => {
  test("are listed by name in pages, with liveness and capacity in bytes", async () => {
    await fleet.addHost(3, { lastSeenAt: null, facts: null, protocol: null });
    const first = pageOf(hostSchema).parse(await (await fleet.ask("/v1/hosts?limit=2")).json());
    assert.deepEqual(
      first.items.map(({ name, connected }) => [name, connected]),
      [
        ["host1", true],
        ["host2", true],
      ],
    );
    assert.equal(first.items[0]?.capacity?.memoryBytes, 16_000_000 * 1024);
    const rest = pageOf(hostSchema).parse(await (await fleet.ask(`/v1/hosts?limit=2&cursor=${first.cursor}`)).json());
    assert.deepEqual([rest.items[0]?.connected, rest.items[0]?.capacity, rest.cursor], [false, null, null]);
  });

  test("are connected for 35 s after the last word", async () => {
    fleet.pass(35_000);
    const connected = async () => hostDetailSchema.parse(await (await fleet.ask("/v1/hosts/host1")).json()).connected;
    assert.equal(await connected(), true);
    fleet.pass(1);
    assert.equal(await connected(), false);
  });

  test("are shown with their domains, by name or id; an unknown one is 404", async () => {
    for (const name of ["host1", hostId(1)]) {
      const host = hostDetailSchema.parse(await (await fleet.ask(`/v1/hosts/${name}`)).json());
      assert.deepEqual(
        host.domains.map(({ name: domain, memoryBytes }) => [domain, memoryBytes]),
        [["web", 2 ** 30]],
      );
    }
    for (const name of ["nope", hostId(77)])
      assert.deepEqual(await refusal(await fleet.ask(`/v1/hosts/${name}`)), [404, "host.absent"]);
  });

  test("are cordoned and uncordoned", async () => {
    for (const cordoned of [true, false]) {
      const response = await fleet.ask("/v1/hosts/host2", { method: "PATCH", body: { cordoned } });
      assert.equal(hostSchema.parse(await response.json()).cordoned, cordoned);
      assert.equal((await fleet.ports.hosts.byName("host2"))?.cordoned, cordoned);
    }
    const unknown = await fleet.ask("/v1/hosts/nope", { method: "PATCH", body: { cordoned: true } });
    assert.deepEqual(await refusal(unknown), [404, "host.absent"]);
    const empty = await fleet.ask("/v1/hosts/host2", { method: "PATCH", body: {} });
    assert.deepEqual(await refusal(empty), [400, "request.malformed"]);
  });

  test("are removed with their socket, but not while a migration needs them", async () => {
    await fleet.ports.migrations.point([hostId(2)], "m_01JD0000000000000000000009");
    const busy = await fleet.ask("/v1/hosts/host2", { method: "DELETE" });
    assert.deepEqual(await refusal(busy), [409, "request.conflict"]);
    await fleet.ports.migrations.unpoint([hostId(2)], "m_01JD0000000000000000000009");
    assert.equal((await fleet.ask("/v1/hosts/host2", { method: "DELETE" })).status, 204);
    assert.deepEqual(fleet.script.dropped, [hostId(2)]);
    assert.deepEqual(await refusal(await fleet.ask("/v1/hosts/host2", { method: "DELETE" })), [404, "host.absent"]);
  });
});

describe("domains", () => {
  test("are listed over the fleet; pages of any size give each once", async () => {
    const more = Array.from({ length: 5 }, (_, index) => domainNamed(`d${index}`, { uuid: uuid(index) }));
    await fleet.addHost(3, {}, more);
    await fleet.addHost(4, {}, [domainNamed("last", { uuid: uuid(9) })]);
    for (const limit of [1, 2, 3, 6, 7, 200]) {
      const seen: string[] = [];
      let cursor = "";
      do {
        const page = pageOf(domainSchema).parse(await (await fleet.ask(`/v1/domains?limit=${limit}${cursor}`)).json());
        assert.ok(page.items.length <= limit);
        seen.push(...page.items.map(({ name, host }) => `${host}/${name}`));
        cursor = page.cursor === null ? "" : `&cursor=${encodeURIComponent(page.cursor)}`;
      } while (cursor !== "");
      assert.deepEqual(
        seen,
        ["host1/web", "host3/d0", "host3/d1", "host3/d2", "host3/d3", "host3/d4", "host4/last"],
        `limit ${limit}`,
      );
    }
  });

  test("of one host; of an unknown one 404; a cursor of another kind 400", async () => {
    const page = pageOf(domainSchema).parse(await (await fleet.ask("/v1/domains?host=host2")).json());
    assert.deepEqual(page, { items: [], cursor: null });
    assert.deepEqual(await refusal(await fleet.ask("/v1/domains?host=nope")), [404, "host.absent"]);
    assert.deepEqual(await refusal(await fleet.ask("/v1/domains?cursor=x")), [400, "request.malformed"]);
  });

  test("are shown with the tree that their host tells", async () => {
    const snapshotTree = [
      { name: "base", parent: null, current: false, state: "running", createdAt: null },
      { name: "next", parent: "base", current: true, state: "running", createdAt: "2026-11-22T09:00:00.000Z" },
    ];
    fleet.script.answers.set(`${hostId(1)} describeDomain`, {
      ok: true,
      body: {
        kind: "describeDomain",
        domain: domainNamed("web", { state: "paused" }),
        snapshotTree,
        snapshotsTotal: 2,
      },
    });
    for (const name of [webUuid, "web"]) {
      const domain = domainDetailSchema.parse(await (await fleet.ask(`/v1/hosts/host1/domains/${name}`)).json());
      assert.deepEqual([domain.state, domain.snapshotTree], ["paused", snapshotTree]);
    }
  });

  test("of a silent or offline host are shown from the inventory, the tree as not known", async () => {
    const shown = async () => domainDetailSchema.parse(await (await fleet.ask("/v1/hosts/host1/domains/web")).json());
    assert.deepEqual([(await shown()).snapshotTree, (await shown()).snapshotsTotal], [null, 5]);
    const asked = fleet.script.queries.length;
    fleet.pass(60_000);
    assert.equal((await shown()).snapshotTree, null);
    assert.equal(fleet.script.queries.length, asked, "an offline host is not asked");
  });

  test("pass on what libvirt said, and 404 what is not there", async () => {
    fleet.script.answers.set(`${hostId(1)} describeDomain`, {
      ok: false,
      fault: { code: "libvirt.unreachable", cause: "down", action: "start it", retry: "safe" },
    });
    const path = "/v1/hosts/host1/domains/web";
    assert.deepEqual(await refusal(await fleet.ask(path)), [502, "libvirt.unreachable"]);
    assert.deepEqual(await refusal(await fleet.ask("/v1/hosts/host1/domains/nope")), [404, "domain.absent"]);
    assert.deepEqual(await refusal(await fleet.ask("/v1/hosts/nope/domains/web")), [404, "host.absent"]);
  });
});

describe("checks", () => {
  const finding = (severity: Finding["severity"], code: Finding["code"]): Finding => ({
    severity,
    code,
    cause: `${code} it is`,
    action: "mend it",
  });
  const check = async (body: object): Promise<Check> => {
    const response = await fleet.ask("/v1/checks", { body });
    assert.equal(response.status, 200);
    return checkSchema.parse(await response.json());
  };
  const codes = (found: { code: string; side: string }[]) => found.map(({ code, side }) => `${code} ${side}`);
  const asked = { domain: "web", destination: "host2" };

  test("allow what nothing stands against, and say what is carried", async () => {
    fleet.scriptInspections(1, 2, {});
    const result = await check(asked);
    assert.deepEqual(
      [result.allowed, result.carries, result.source],
      [true, { snapshots: 5, checkpoints: 0 }, "host1"],
    );
    assert.deepEqual(
      result.destinations.map(({ host, allowed }) => [host, allowed]),
      [["host2", true]],
    );
    assert.deepEqual(fleet.script.pushed, []);
  });

  test("sort findings by what may be done about them, and count accepted risks as notes", async () => {
    fleet.scriptInspections(1, 2, {
      source: [finding("risk", "lock.none"), finding("note", "transport.clear")],
      destination: [finding("risk", "storage.notShared")],
    });
    const result = await check(asked);
    assert.deepEqual(
      [result.allowed, codes(result.risks), codes(result.notes), result.blockers],
      [false, ["lock.none source", "storage.notShared destination"], ["transport.clear source"], []],
    );
    const some = await check({ ...asked, accept: ["lock.none"] });
    assert.deepEqual([some.allowed, codes(some.risks)], [false, ["storage.notShared destination"]]);
    const all = await check({ ...asked, accept: ["lock.none", "storage.notShared"] });
    assert.deepEqual([all.allowed, all.risks.length, all.notes.length], [true, 0, 3]);
  });

  test("never let a blocker be accepted", async () => {
    fleet.scriptInspections(1, 2, { destination: [finding("blocker", "destination.cpu")] });
    const result = await check({ ...asked, accept: ["destination.cpu"] });
    assert.deepEqual([result.allowed, codes(result.blockers)], [false, ["destination.cpu destination"]]);
  });

  test("end in time where the answer has to: whoever is left is named as not asked, never as silent", async () => {
    for (let index = 3; index <= 12; index += 1) await fleet.addHost(index);
    fleet.scriptInspections(1, 2, {});
    const waits = new Map<string, number>();
    const slow: Ports["sockets"] = {
      ...fleet.ports.sockets,
      async query(id, query, waitMs) {
        waits.set(id, waitMs);
        const answer = await fleet.ports.sockets.query(id, query, waitMs);
        // One in each round of eight says nothing.
        if (id === hostId(3) || id === hostId(10)) fleet.pass(waitMs);
        return answer;
      },
    };
    const host = await fleet.ports.hosts.byName("host1");
    assert.ok(host);
    const untilMs = Date.parse(fleet.ports.clock.now()) + 24_000;
    const placed = { domain: { ...domainNamed("web"), hostId: host.id }, host };
    const { destinations } = await runCheck({ ...fleet.ports, sockets: slow }, placed, null, [], untilMs);
    assert.deepEqual([waits.get(hostId(3)), waits.get(hostId(10))], [20_000, 4_000]);
    assert.ok(Date.parse(fleet.ports.clock.now()) <= untilMs);
    assert.equal(destinations.find((each) => each.host === "host2")?.allowed, true);
    waits.clear();
    await runCheck({ ...fleet.ports, sockets: slow }, placed, null, [], Date.parse(fleet.ports.clock.now()));
    assert.equal(waits.size, 0);
  });

  test("name every refusal of the records as blockers of a 200, and ask nobody in vain", async () => {
    await fleet.addHost(3, { cordoned: true, lastSeenAt: null, facts: factsOf(1), features: [] });
    fleet.scriptInspections(1, 2, {});
    const result = await check({ domain: "web", destination: "host3" });
    assert.deepEqual(codes(result.blockers), [
      "destination.duplicateUuid destination",
      "host.offline destination",
      "host.cordoned destination",
      "shim.incompatible destination",
    ]);
    assert.ok(fleet.script.queries.every(({ hostId: id }) => id === hostId(1)));
    const same = await check({ domain: "web", destination: "host1" });
    assert.deepEqual(codes(same.blockers), ["destination.sameHost destination"]);
  });

  test("ask a cordoned host all the same, and a busy domain's hosts too", async () => {
    await fleet.ports.hosts.setCordoned(hostId(2), true);
    const lock = { domainUuid: webUuid, migrationId: "m_01JD0000000000000000000009", source: "x", destination: "y" };
    await fleet.ports.migrations.lockDomain(lock);
    fleet.scriptInspections(1, 2, { destination: [finding("risk", "storage.notShared")] });
    const result = await check(asked);
    assert.deepEqual(codes(result.blockers), ["domain.busy source", "host.cordoned destination"]);
    assert.deepEqual(codes(result.risks), ["storage.notShared destination"]);
  });

  test("take silence for no answer: a blocker, carries unknown", async () => {
    const result = await check(asked);
    assert.deepEqual([codes(result.blockers), result.carries], [["host.offline source"], null]);
    fleet.scriptInspections(1, 2, {});
    fleet.script.answers.set(`${hostId(2)} inspectDestination`, null);
    assert.deepEqual(codes((await check(asked)).blockers), ["host.offline destination"]);
    fleet.script.answers.set(`${hostId(2)} inspectDestination`, {
      ok: false,
      fault: { code: "libvirt.unreachable", cause: "down", action: "start it", retry: "safe" },
    });
    assert.deepEqual(codes((await check(asked)).blockers), ["libvirt.unreachable destination"]);
  });

  test("ask the source whether it reaches the destination's shim; its silence about that blocks nothing", async () => {
    const address = { hosts: ["beta"], port: 16_515 };
    await fleet.ports.hosts.seen(hostId(2), { at: fleet.ports.clock.now(), facts: { ...factsOf(2), peer: address } });
    fleet.scriptInspections(1, 2, {});
    assert.deepEqual(codes((await check(asked)).blockers), []);
    assert.ok(fleet.script.queries.some(({ hostId: id, query }) => id === hostId(1) && query.kind === "reachPeer"));
    fleet.script.answers.set(`${hostId(1)} reachPeer`, {
      ok: false,
      fault: { code: "peer.unreachable", cause: "closed", action: "open port 16515", retry: "safe" },
    });
    assert.deepEqual(codes((await check(asked)).blockers), ["peer.unreachable source"]);
    const requested = await fleet.ask("/v1/migrations", { method: "POST", body: asked });
    assert.deepEqual(await refusal(requested), [409, "peer.unreachable"]);
  });

  test("without a destination ask every other host and name the causes", async () => {
    await fleet.addHost(3, { lastSeenAt: null });
    fleet.scriptInspections(1, 2, {});
    const result = await check({ domain: "web" });
    assert.equal(result.destination, null);
    assert.equal(result.allowed, true);
    assert.deepEqual(
      result.destinations.map(({ host, allowed, blockers }) => [host, allowed, codes(blockers)]),
      [
        ["host2", true, []],
        ["host3", false, ["host.offline destination"]],
      ],
    );
    await fleet.ports.hosts.setCordoned(hostId(2), true);
    assert.equal((await check({ domain: "web" })).allowed, false);
  });

  test("refuse what cannot be looked at", async () => {
    for (const [body, expected] of [
      [{ domain: "nope" }, [404, "domain.absent"]],
      [{ domain: "web", destination: "nope" }, [404, "host.absent"]],
      [{ domain: "web", source: "host2" }, [404, "domain.absent"]],
    ] as const)
      assert.deepEqual(await refusal(await fleet.ask("/v1/checks", { body })), expected);
    await fleet.addHost(3, {}, [domainNamed("web", { uuid: uuid(9) })]);
    assert.deepEqual(await refusal(await fleet.ask("/v1/checks", { body: asked })), [409, "domain.notUnique"]);
  });
});
