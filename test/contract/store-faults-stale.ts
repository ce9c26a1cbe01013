/**
 * Indexes lag behind their table, for milliseconds or, on a bad day, for long. Here they answer from an earlier moment while
 * whatever is decided upon them is decided: where a domain is, which migrations the timer starts again, what the reconciler
 * frees. An index may make an answer late; it must never make it wrong.
 */
import assert from "node:assert/strict";
import { placeDomain } from "#functions/http/fleet";
import type { Ports } from "#functions/ports";
import { createReconciler } from "#functions/reconciler";
import { createRunner } from "#functions/runner";
import { memoryFleet } from "#test/fake/memory-fleet";
import { domain, host, migration, throwsFault } from "./store-cases.ts";
import type { FaultWorld } from "./store-faults.ts";

/** Everything but the stores is a fleet in memory; the clock is the stores' own. */
async function portsOf({ stores }: FaultWorld): Promise<Ports> {
  const fleet = await memoryFleet();
  const { migrations, tasks, hosts, tokens, clock } = stores;
  return { ...fleet.ports, migrations, tasks, hosts, tokens, clock };
}

/** Two hosts; the first has a domain, and the indexes have been asked for it. */
async function twoHosts(world: FaultWorld) {
  const ports = await portsOf(world);
  const [left, right, web] = [host(), host(), domain()];
  for (const one of [left, right]) await ports.hosts.create(one);
  await ports.hosts.putInventory(left.id, { full: true, domains: [web], gone: [] });
  const at = async (nameOrUuid: string) => (await placeDomain(ports, nameOrUuid, null)).host.id;
  for (const name of [web.name, web.uuid]) assert.equal(await at(name), left.id);
  return { ports, left, right, web, at };
}

const later = "2026-11-01T01:00:00.000Z";
const anyPage = { limit: 200, cursor: null };

export const staleCases: Record<string, (world: FaultWorld) => Promise<void>> = {
  "a domain that has moved is not placed where it was": async (world) => {
    const { ports, left, right, web, at } = await twoHosts(world);
    world.faulty.staleIndexes = true;
    await ports.hosts.putInventory(left.id, { full: true, domains: [], gone: [] });
    await ports.hosts.putInventory(right.id, { full: true, domains: [web], gone: [] });
    // The index knows the new place not yet: then it is nowhere, which may be asked again, and never at the old one.
    for (const name of [web.name, web.uuid]) await assert.rejects(at(name), throwsFault("domain.absent"));
    world.faulty.staleIndexes = false;
    for (const name of [web.name, web.uuid]) assert.equal(await at(name), right.id);
  },
  "of two places the one that runs the domain now is taken": async (world) => {
    const { ports, left, right, web, at } = await twoHosts(world);
    // As a migration stages it, and as the indexes see it last.
    await ports.hosts.putInventory(right.id, { full: true, domains: [{ ...web, state: "shutoff" }], gone: [] });
    for (const name of [web.name, web.uuid]) assert.equal(await at(name), left.id);
    world.faulty.staleIndexes = true;
    await ports.hosts.putInventory(left.id, { full: true, domains: [], gone: [] });
    await ports.hosts.putInventory(right.id, { full: true, domains: [web], gone: [] });
    for (const name of [web.name, web.uuid]) assert.equal(await at(name), right.id);
  },
  "what a domain is now is said of it, and a renamed one is not found by its old name": async (world) => {
    const { ports, left, web } = await twoHosts(world);
    world.faulty.staleIndexes = true;
    const renamed = { ...web, name: `${web.name}-renamed`, state: "shutoff" as const };
    await ports.hosts.putInventory(left.id, { full: true, domains: [renamed], gone: [] });
    assert.deepEqual(await ports.hosts.findDomains(web.uuid), [{ ...renamed, hostId: left.id }]);
    assert.deepEqual(await ports.hosts.findDomains(web.name), []);
  },
  "the timer starts nothing that has ended": async (world) => {
    const ports = await portsOf(world);
    const state = migration();
    await ports.migrations.create(state);
    await ports.migrations.list({ ...anyPage, active: true });
    world.faulty.staleIndexes = true;
    const ended = { ...state, version: 2, status: "rolledBack" as const, step: "ended" as const, endedAt: later };
    await ports.migrations.commit(ended);
    world.stores.setNow(later);
    const listed = await ports.migrations.list({ ...anyPage, active: true });
    assert.deepEqual(
      listed.items.map(({ id, status }) => [id, status]),
      [[state.id, "running"]],
      "the index shows it as it was",
    );
    await createRunner(ports).tick();
    assert.deepEqual(await ports.migrations.load(state.id), ended);
    assert.equal(await ports.migrations.domainLock(state.domain.uuid), null);
  },
  "the timer does not start again what has begun meanwhile": async (world) => {
    const ports = await portsOf(world);
    const runner = createRunner(ports);
    const state = migration();
    await ports.migrations.create(state);
    await ports.migrations.list({ ...anyPage, active: true });
    world.faulty.staleIndexes = true;
    world.stores.setNow(later);
    await runner.tick();
    const begun = await ports.migrations.load(state.id);
    assert.deepEqual(await ports.migrations.domainLock(state.domain.uuid), { migrationId: state.id });
    assert.equal(begun?.pending.length, 1, "started from the table");
    // As when the lock was lost from sight: only the list, which is old, still names it.
    await ports.migrations.unlockDomain(state.domain.uuid, state.id);
    await runner.tick();
    assert.deepEqual(await ports.migrations.load(state.id), begun);
    assert.equal(await ports.migrations.domainLock(state.domain.uuid), null);
  },
  "a start that the list does not show yet is made when it does": async (world) => {
    const ports = await portsOf(world);
    const runner = createRunner(ports);
    const state = migration();
    world.faulty.staleIndexes = true;
    await ports.migrations.create(state);
    world.stores.setNow(later);
    await runner.tick();
    assert.deepEqual(await ports.migrations.load(state.id), state);
    world.faulty.staleIndexes = false;
    await runner.tick();
    assert.equal((await ports.migrations.load(state.id))?.pending.length, 1);
  },
  "the reconciler frees no lock of a migration that the list does not show, or shows as ended": async (world) => {
    const ports = await portsOf(world);
    const hidden = migration();
    await ports.migrations.list({ ...anyPage, active: false });
    world.faulty.staleIndexes = true;
    await ports.migrations.create(hidden);
    const lock = { source: hidden.source.id, destination: hidden.destination.id };
    await ports.migrations.lockDomain({ ...lock, domainUuid: hidden.domain.uuid, migrationId: hidden.id });
    const reconciler = createReconciler(ports);
    world.stores.setNow(later);
    const findings = await reconciler.look();
    assert.deepEqual(findings.drifts, []);
    assert.equal(await reconciler.repair(findings), 0);
    assert.deepEqual(await ports.migrations.domainLock(hidden.domain.uuid), { migrationId: hidden.id });
  },
  "the reconciler frees the lock of one that has ended, though the list shows it running": async (world) => {
    const ports = await portsOf(world);
    const state = migration();
    await ports.migrations.create(state);
    const lock = { source: state.source.id, destination: state.destination.id };
    await ports.migrations.lockDomain({ ...lock, domainUuid: state.domain.uuid, migrationId: state.id });
    await ports.migrations.list({ ...anyPage, active: false });
    world.faulty.staleIndexes = true;
    const at = "2026-11-01T00:10:00.000Z";
    await ports.migrations.commit({ ...state, version: 2, status: "rolledBack", step: "ended", endedAt: at });
    world.stores.setNow(later);
    const reconciler = createReconciler(ports);
    const findings = await reconciler.look();
    assert.deepEqual(
      findings.drifts.map(({ code, migration }) => [code, migration]),
      [["lock.left", state.id]],
    );
    assert.equal(await reconciler.repair(findings), 1);
    assert.equal(await ports.migrations.domainLock(state.domain.uuid), null);
  },
};
