/** What is read of the fleet for many looks in a row: once in a while and not each time, handed on to those who come after, never kept when it failed. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { hostsAgeMsMax, Inventories, inventoryAgeMsMax } from "#functions/placement-look";
import { hostId, memoryFleet } from "#test/fake/memory-fleet";

async function counted() {
  const fleet = await memoryFleet();
  await fleet.addHost(1);
  await fleet.addHost(2);
  const { hosts } = fleet.ports;
  const reads = { lists: 0, inventories: 0 };
  let failing = false;
  const ports = {
    clock: fleet.ports.clock,
    hosts: Object.assign(Object.create(hosts), {
      list: async () => {
        reads.lists += 1;
        if (failing) throw new Error("the store is away");
        return hosts.list();
      },
      domainsOf: async (id: string) => {
        reads.inventories += 1;
        return hosts.domainsOf(id);
      },
    }),
  };
  return {
    ports,
    reads,
    pass: fleet.pass,
    fail: (isFailing: boolean) => {
      failing = isFailing;
    },
  };
}

describe("inventories of looks in a row", () => {
  test("are read once while they are young, side by side as well, and again when they are old", async () => {
    const { ports, reads, pass } = await counted();
    const inventories = new Inventories(ports);
    await Promise.all([inventories.of(hostId(1)), inventories.of(hostId(1)), inventories.list(), inventories.list()]);
    assert.deepEqual(reads, { lists: 1, inventories: 1 });
    pass(hostsAgeMsMax + 1);
    await Promise.all([inventories.of(hostId(1)), inventories.list()]);
    assert.deepEqual(reads, { lists: 2, inventories: 1 });
    await inventories.of(hostId(1), hostsAgeMsMax);
    assert.deepEqual(reads, { lists: 2, inventories: 2 });
    pass(inventoryAgeMsMax + 1);
    await inventories.of(hostId(1));
    assert.deepEqual(reads, { lists: 2, inventories: 3 });
  });

  test("are handed on with their age", async () => {
    const { ports, reads, pass } = await counted();
    const first = new Inventories(ports);
    await Promise.all([first.of(hostId(1)), first.list()]);
    const second = new Inventories(ports, first);
    await Promise.all([second.of(hostId(1)), second.list()]);
    assert.deepEqual(reads, { lists: 1, inventories: 1 });
    pass(inventoryAgeMsMax + 1);
    const third = new Inventories(ports, second);
    await Promise.all([third.of(hostId(1)), third.list()]);
    assert.deepEqual(reads, { lists: 2, inventories: 2 });
  });

  test("a host that we have opened is seen at once, and a reading that failed is not kept", async () => {
    const { ports, reads, fail } = await counted();
    const inventories = new Inventories(ports);
    await inventories.list();
    inventories.forgetHosts();
    fail(true);
    await assert.rejects(inventories.list());
    fail(false);
    assert.equal((await inventories.list()).length, 2);
    assert.equal(reads.lists, 3);
  });
});
