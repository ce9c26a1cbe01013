/**
 * Three hosts in memory behind the real app, for evacuations: host1 with domains, host2 and host3 that take them. Shims answer every preflight with yes
 * unless told otherwise, and what a migration moves is moved in the inventories as well.
 */
import assert from "node:assert/strict";
import type { HostRecord } from "#functions/ports";
import type { Command } from "#protocol/command";
import type { FaultBody, Finding } from "#protocol/fault";
import type { InventoryDomain } from "#protocol/message";
import { domainNamed, hostId, type MemoryFleet, memoryFleet } from "#test/fake/memory-fleet";

export const uuidOf = (index: number) => `${String(index).padStart(8, "0")}-2222-4333-8444-555555555555`;

/** `name` is "web" and a number, which is in its UUID as well. */
export const numbered = (index: number, fields: Partial<InventoryDomain> = {}): InventoryDomain =>
  domainNamed(`web${index}`, { uuid: uuidOf(index), ...fields });

export interface EvacuationFleet extends MemoryFleet {
  /** Lets shims work and inventories follow, tick by tick and minute by minute, until nothing is active; at most so many minutes. */
  live(minutes?: number, failing?: Partial<Record<Command["kind"], FaultBody>>): Promise<void>;
  /** Serves what was pushed and lets the inventories follow. */
  work(failing?: Partial<Record<Command["kind"], FaultBody>>): Promise<void>;
  /** One minute: heartbeats of these hosts, then the timer. */
  minute(hosts?: readonly number[]): Promise<void>;
  /** Where the inventories show each domain, by name. */
  places(): Promise<Record<string, string>>;
}

export async function evacuationFleet(
  domains: InventoryDomain[],
  options: {
    hosts?: Partial<Record<number, Partial<HostRecord>>>;
    found?: Partial<Record<number, { source?: Finding[]; destination?: Finding[] }>>;
    elsewhere?: Partial<Record<number, InventoryDomain[]>>;
    eventsIdleMs?: number;
  } = {},
): Promise<EvacuationFleet> {
  const fleet = await memoryFleet(options.eventsIdleMs === undefined ? {} : { eventsIdleMs: options.eventsIdleMs });
  // As real ones, different in their random part: an evacuation's migrations are named by that.
  let serial = 0;
  fleet.ports.ids.ulid = () => `01JE000000${String(++serial).padStart(6, "0")}0000000000`;
  for (const index of [1, 2, 3]) {
    await fleet.addHost(index, options.hosts?.[index], index === 1 ? domains : (options.elsewhere?.[index] ?? []));
    fleet.scriptInspections(index, index, options.found?.[index] ?? {});
  }
  const followed = new Set<string>();

  async function follow(): Promise<void> {
    const { items } = await fleet.ports.migrations.list({ limit: 200, cursor: null, active: false });
    for (const { id, status, domain, source, destination } of items.toReversed()) {
      if (status !== "completed" || followed.has(id)) continue;
      followed.add(id);
      const row = (await fleet.ports.hosts.domainsOf(source.id)).find(({ uuid }) => uuid === domain.uuid);
      assert.ok(row, `${domain.name} was on ${source.name}`);
      const { hostId: _, ...moved } = row;
      await fleet.ports.hosts.putInventory(source.id, { full: false, domains: [], gone: [domain.uuid] });
      await fleet.ports.hosts.putInventory(destination.id, { full: false, domains: [moved], gone: [] });
    }
  }
  const work: EvacuationFleet["work"] = async (failing = {}) => {
    while (fleet.script.pushed.some(({ message }) => message.type === "command")) {
      await fleet.serve(failing);
      await follow();
    }
    await follow();
  };
  const minute: EvacuationFleet["minute"] = async (hosts = [1, 2, 3]) => {
    fleet.pass(60_000);
    for (const index of hosts) await fleet.ports.hosts.seen(hostId(index), { at: fleet.ports.clock.now() });
    await fleet.runner.tick();
    await fleet.evacuations.tick();
  };
  return {
    ...fleet,
    work,
    minute,
    async live(minutes = 60, failing = {}) {
      for (let left = minutes; left > 0; left -= 1) {
        await work(failing);
        if ((await fleet.ports.evacuations.claims()).length === 0) return;
        await minute();
      }
      await work(failing);
    },
    async places() {
      const found: Record<string, string> = {};
      for (const { id, name } of await fleet.ports.hosts.list())
        for (const domain of await fleet.ports.hosts.domainsOf(id)) found[domain.name] = name;
      return found;
    },
  };
}
