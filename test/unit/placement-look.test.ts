/** What is seen of a fleet that is larger than what is read of it: what a plan says of that, and what comes from hosts that are not read. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { evacuationPlanSchema } from "#functions/http/evacuation-resource";
import { inventoriesMax } from "#functions/placement-look";
import { numbered } from "#test/fake/evacuation-fleet";
import { factsOf, hostId, type MemoryFleet, memoryFleet } from "#test/fake/memory-fleet";

const gib = 1024 ** 2;

/** The first host has these domains; the others have the less free memory the higher their number, so the last ones are not read. */
async function fleetOf(hosts: number, labels: Record<string, string>): Promise<MemoryFleet> {
  const fleet = await memoryFleet();
  for (let index = 1; index <= hosts; index += 1) {
    const facts = factsOf(index);
    const { libvirt } = facts;
    assert.ok(libvirt.reachable);
    const freeMemoryKiB = (16 - index / 10) * gib;
    await fleet.addHost(
      index,
      { facts: { ...facts, libvirt: { ...libvirt, freeMemoryKiB } } },
      index === 1 ? [numbered(1, { labels })] : index === hosts ? [numbered(99, { labels, memoryKiB: 14 * gib })] : [],
    );
    fleet.scriptInspections(index, index, {});
  }
  return fleet;
}

async function planned(fleet: MemoryFleet, to?: string[]) {
  const body = { host: "host1", dryRun: true, ...(to === undefined ? {} : { to }) };
  return evacuationPlanSchema.parse(await (await fleet.ask("/v1/evacuations", { body })).json());
}

describe("a fleet of which not every inventory is read", () => {
  test("says of an affinity group that members of it may be on hosts that were not read", async () => {
    const fleet = await fleetOf(70, { affinity: "shop" });
    const { notes, moves } = await planned(fleet);
    assert.equal(moves.length, 1);
    assert.equal(notes.length, 1);
    assert.match(
      notes[0] ?? "",
      new RegExp(`^${inventoriesMax} of 70 hosts were read: .*affinity group shop .*other 6`),
    );
  });

  test("says nothing where all are read, or where no group is asked for", async () => {
    assert.deepEqual((await planned(await fleetOf(inventoriesMax, { affinity: "shop" }))).notes, []);
    assert.deepEqual((await planned(await fleetOf(70, { "anti-affinity": "shop" }))).notes, []);
  });

  test("what somebody brings from a host that is not read has its room where it goes", async () => {
    const fleet = await fleetOf(70, {});
    const [coming] = await fleet.ports.hosts.domainsOf(hostId(70));
    assert.ok(coming);
    const free = (await planned(fleet, ["host2"])).rooms[0]?.memoryBytesBefore;
    assert.equal(free, 0);
    const lock = {
      domainUuid: coming.uuid,
      migrationId: "m_01JE0000000000000000000000",
      source: hostId(70),
      destination: hostId(2),
    };
    assert.equal(await fleet.ports.migrations.lockDomain(lock), true);
    const { moves, blocked } = await planned(fleet, ["host2"]);
    assert.deepEqual(moves, []);
    assert.match(blocked[0]?.blocker.cause ?? "", /host2 lacks/);
  });
});
