/** What a host says of its domains, in messages that API Gateway hands over side by side and in any order. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { createSocketHandler } from "#functions/socket/api-gateway-handler";
import type { GatewayEvent } from "#lab/api-gateway";
import type { InventoryDomain, UpMessage } from "#protocol/message";
import { openGatewayLab } from "./api-gateway-lab.ts";
import { domain, ulid } from "./store-cases.ts";

/** Looks until it holds; the suite's own bound ends it if it never does. */
async function until(holds: () => Promise<boolean>): Promise<void> {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 10));
}

describe("inventory over API Gateway", { timeout: 120_000 }, () => {
  let lab: Awaited<ReturnType<typeof openGatewayLab>>;
  before(async () => {
    lab = await openGatewayLab();
  });
  after(() => lab.close());

  const partsOf = (domains: InventoryDomain[], id = ulid()): UpMessage[] =>
    [0, 1, 2].map((part) => ({
      type: "inventory",
      series: { id, part, parts: 3 },
      full: part === 0,
      last: part === 2,
      domains: domains.slice(part * 150, (part + 1) * 150),
      gone: [],
    }));
  const partOf = ({ body }: GatewayEvent): number | null => {
    const part = /"part":(\d)/.exec(body ?? "")?.[1];
    return part === undefined ? null : Number(part);
  };
  const many = () => Array.from({ length: 450 }, () => domain());
  const namesOf = async (hostId: string) =>
    (await lab.wire().ports.hosts.domainsOf(hostId)).map(({ uuid: id }) => id).sort();
  const idsOf = (domains: InventoryDomain[]) => domains.map(({ uuid: id }) => id).sort();

  test("450 domains in three parts that arrive in reverse: known at once, and what was not named is gone", async () => {
    const hostId = await lab.newHost();
    const shim = await lab.connect(hostId);
    const standing = domain();
    shim.say({ type: "inventory", full: true, last: true, domains: [standing], gone: [] });
    await lab.settled();
    assert.deepEqual(await namesOf(hostId), [standing.uuid]);
    const gates = [0, 1, 2].map(() => Promise.withResolvers<void>());
    lab.gateway.before = (event) => gates[partOf(event) ?? -1]?.promise;
    const domains = many();
    for (const part of partsOf(domains)) shim.say(part);
    gates[2]?.resolve();
    gates[1]?.resolve();
    await until(async () => lab.gateway.running === 1);
    assert.deepEqual(await namesOf(hostId), [standing.uuid]);
    gates[0]?.resolve();
    await lab.settled();
    lab.gateway.before = null;
    assert.deepEqual(await namesOf(hostId), idsOf(domains));
    await shim.leave();
  });

  test("in parallel, twice over", async () => {
    const hostId = await lab.newHost();
    const shim = await lab.connect(hostId);
    const [first, second] = [many(), many()];
    const message = partsOf(first);
    for (const part of [...message, ...message]) shim.say(part);
    await lab.settled();
    assert.deepEqual(await namesOf(hostId), idsOf(first));
    for (const part of partsOf(second).reverse()) shim.say(part);
    await lab.settled();
    assert.deepEqual(await namesOf(hostId), idsOf(second));
    assert.ok(lab.gateway.open.includes(shim.connectionId));
    await shim.leave();
  });

  test("of an older shim, parts are the changes they look like", async () => {
    const hostId = await lab.newHost();
    const shim = await lab.connect(hostId);
    const [standing, one, two] = [domain(), domain(), domain()];
    for (const [part, each] of [standing, one, two].entries()) {
      shim.say({ type: "inventory", full: part === 1, last: part !== 1, domains: [each], gone: [] });
      await lab.settled();
    }
    assert.deepEqual(await namesOf(hostId), idsOf([standing, one, two]));
    await shim.leave();
  });

  test("what was overtaken does not undo what is newer", async () => {
    const hostId = await lab.newHost();
    const shim = await lab.connect(hostId);
    const older = domain();
    const newer: InventoryDomain = { ...older, state: "paused" };
    const held = Promise.withResolvers<void>();
    const isHeld = (text: string) => (event: GatewayEvent) => (event.body?.includes(text) ? held.promise : undefined);
    lab.gateway.before = isHeld('"state":"running"');
    shim.say({ type: "inventory", full: false, last: true, domains: [older], gone: [] });
    // The carrier's clock tells them apart.
    await new Promise((resolve) => setTimeout(resolve, 5));
    shim.say({ type: "inventory", full: false, last: true, domains: [newer], gone: [] });
    await until(async () => (await namesOf(hostId)).length > 0);
    held.resolve();
    await lab.settled();
    lab.gateway.before = null;
    assert.deepEqual(
      (await lab.wire().ports.hosts.domainsOf(hostId)).map(({ state }) => state),
      ["paused"],
    );
    await shim.leave();
  });

  test("a complete list that changes have overtaken is asked for anew", async () => {
    const hostId = await lab.newHost();
    const shim = await lab.connect(hostId);
    const held = Promise.withResolvers<void>();
    lab.gateway.before = (event) => (event.body?.includes('"full":true') ? held.promise : undefined);
    shim.say({ type: "inventory", full: true, last: true, domains: [domain()], gone: [] });
    await new Promise((resolve) => setTimeout(resolve, 5));
    const changed = domain();
    shim.say({ type: "inventory", full: false, last: true, domains: [changed], gone: [] });
    await until(async () => (await namesOf(hostId)).length > 0);
    held.resolve();
    assert.equal((await shim.closed).code, 1000);
    await lab.settled();
    lab.gateway.before = null;
    assert.deepEqual(await namesOf(hostId), [changed.uuid]);
  });

  test("a change that is stored while a complete list is being stored is not lost with it", async () => {
    const hostId = await lab.newHost();
    const shim = await lab.connect(hostId);
    const born = domain();
    const atMs = Date.now();
    const wiring = lab.wire();
    const { hosts } = wiring.ports;
    const event = (afterMs: number, message: UpMessage) => ({
      type: "message" as const,
      connectionId: shim.connectionId,
      atMs: atMs + afterMs,
      text: JSON.stringify(message),
    });
    // The list has got its leave and is not written yet when the change comes and goes through.
    hosts.putInventory = async (id, change) => {
      const { putInventory } = Object.getPrototypeOf(hosts) as typeof hosts;
      hosts.putInventory = putInventory;
      await createSocketHandler(wiring)(
        event(1_000, { type: "inventory", full: false, last: true, domains: [born], gone: [] }),
      );
      assert.deepEqual(await namesOf(hostId), [born.uuid]);
      return hosts.putInventory(id, change);
    };
    await createSocketHandler(wiring)(event(0, { type: "inventory", full: true, last: true, domains: [], gone: [] }));
    assert.equal((await shim.closed).code, 1000, "everything is said anew");
    // Its end was told and taken note of.
    await until(async () => (await lab.wire().links.byConnection(shim.connectionId)) === null);
    await lab.settled();
  });
});
