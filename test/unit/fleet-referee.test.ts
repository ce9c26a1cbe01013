/** The referee of simulated fleets sees each thing that it is there to see: a sound fleet is changed in one place at a time. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { fleetLayout, hostName } from "#test/fleet/fleet-layout";
import type { HeldDomain, Span } from "#test/fleet/fleet-truth";
import type { Look } from "#test/fleet/host-process";
import { verdict } from "#test/fleet/referee";

const layout = fleetLayout({ hosts: 3, domains: 6, seed: 1 });
const laid = [...layout.domains.values()];
const first = laid[0];
assert.ok(first);
const { uuid, name } = first;

type Seen = Parameters<typeof verdict>[0];
type Evacuation = Seen["evacuations"][number];

const treeOf = (snapshots: number) => {
  const lines = Array.from({ length: snapshots }, (_, at) => `s${at + 1}<${at === 0 ? "" : `s${at}`}@${at + 1}`);
  return `${lines.join(" ")} *${snapshots === 0 ? "" : `s${snapshots}`}`;
};

function sound() {
  const domains = laid.map(
    (each): HeldDomain => ({
      uuid: each.uuid,
      name: each.name,
      host: each.home,
      state: "running",
      persistent: true,
      snapshots: treeOf(each.snapshots),
      life: 1,
    }),
  );
  const spans = laid.map((each): Span => ({ uuid: each.uuid, host: each.home, kind: "runs", fromMs: 0, toMs: null }));
  const hosts = layout.hosts.map(({ index }) => ({ index, hostId: `h_${index}`, connected: true, sessions: [1] }));
  const look: Look = {
    process: 0,
    hosts,
    domains,
    spans,
    violations: [],
    counts: { performs: 0, confirmed: 0, broken: 0 },
    said: {},
    cpuMs: 0,
    rssBytes: 0,
  };
  const inventory = domains.map((each) => ({
    uuid: each.uuid,
    name: each.name,
    host: hostName(each.host),
    state: "running" as "running" | "paused",
    persistent: true,
    autostart: true,
    memoryBytes: 1,
    vcpus: 1,
    snapshots: 0,
    checkpoints: 0,
    labels: {},
  }));
  const evacuations: Evacuation[] = [];
  return {
    layout,
    looks: [look],
    look,
    domains,
    spans,
    hosts,
    inventory,
    evacuations,
    limits: { outMax: 1, inMax: 1, fleetMax: 2 },
  };
}

/** The one thing that the referee finds after a change. */
function found(change: (seen: ReturnType<typeof sound>) => void): string {
  const seen = sound();
  change(seen);
  const [one, ...more] = verdict(seen);
  assert.deepEqual(more, []);
  return one ?? "";
}

const span = (kind: Span["kind"], of: number, host: number, fromMs: number, toMs: number | null): Span => ({
  uuid: laid[of]?.uuid ?? "",
  host,
  kind,
  fromMs,
  toMs,
});

describe("the referee of a simulated fleet", () => {
  test("finds nothing in a sound fleet, also after a move", () => {
    assert.deepEqual(verdict(sound()), []);
    const seen = sound();
    seen.spans.splice(0, 1, span("runs", 0, 0, 0, 10), span("runs", 0, 1, 11, null), span("leaves", 0, 0, 5, 12));
    seen.domains.splice(0, 1, { ...(seen.domains[0] as HeldDomain), host: 1 });
    seen.inventory.splice(0, 1, { ...(seen.inventory[0] as (typeof seen.inventory)[number]), host: hostName(1) });
    assert.deepEqual(verdict(seen), []);
  });

  test("finds guests that are lost, doubled, stopped, started again, or without their tree", () => {
    const [domain] = sound().domains;
    assert.ok(domain);
    const inInventory = (seen: ReturnType<typeof sound>, state: "paused") =>
      seen.inventory.splice(0, 1, { ...(seen.inventory[0] as (typeof seen.inventory)[number]), state });
    assert.match(
      found(({ domains, inventory }) => void [domains.shift(), inventory.shift()]),
      new RegExp(`${name} is on no host`),
    );
    assert.match(
      found((seen) => {
        seen.domains.push({ ...domain, host: 1 });
        seen.inventory.push({ ...(seen.inventory[0] as (typeof seen.inventory)[number]), host: hostName(1) });
      }),
      new RegExp(`${name} is on 2 hosts`),
    );
    assert.match(
      found((seen) => {
        seen.domains.splice(0, 1, { ...domain, state: "paused" });
        inInventory(seen, "paused");
      }),
      /is paused/,
    );
    assert.match(
      found(({ domains }) => void domains.splice(0, 1, { ...domain, life: 2 })),
      /in life 2/,
    );
    assert.match(
      found(({ domains }) => void domains.splice(0, 1, { ...domain, snapshots: "s9<@9 *s9" })),
      /has the tree/,
    );
  });

  test("finds a guest that ran on two hosts at one time, and limits that were exceeded for an instant", () => {
    assert.match(
      found(({ spans }) => void spans.push(span("runs", 0, 1, 10, 11))),
      new RegExp(`${uuid} ran on`),
    );
    const twoOf = (kind: Span["kind"]) =>
      found(({ spans }) => void spans.push(span(kind, 0, 0, 10, 20), span(kind, 1, 0, 19, 30)));
    assert.match(twoOf("leaves"), /2 migrations out of one host/);
    assert.match(twoOf("arrives"), /2 migrations into one host/);
    assert.match(
      found(({ spans }) => void spans.push(...[0, 1, 2].map((host) => span("leaves", host, host, 10, 20)))),
      /3 migrations in the fleet/,
    );
    const inTurn = sound();
    inTurn.spans.push(span("leaves", 0, 0, 10, 20), span("leaves", 1, 0, 20, 30));
    assert.deepEqual(verdict(inTurn), []);
  });

  test("finds what the API tells wrongly, hosts without a session, and what the hosts themselves complained of", () => {
    assert.match(
      found(({ inventory }) => void inventory.pop()),
      /the API does not tell/,
    );
    assert.match(
      found(({ hosts }) => void hosts.splice(0, 1, { index: 0, hostId: "h_0", connected: false, sessions: [] })),
      /fleet0000 is not connected/,
    );
    assert.equal(
      found(({ look }) => void look.violations.push("more memory than it has")),
      "more memory than it has",
    );
  });
});
