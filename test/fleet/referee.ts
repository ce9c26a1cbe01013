/**
 * Judges a run by what the simulated libvirts saw: each guest on exactly one host, running, in its first life and with its tree; never on two at once;
 * limits kept at every instant; every evacuation ended with a stated result; the API's inventory equal to the truth.
 */

import type * as z from "zod/mini";
import type { evacuationSchema } from "../../functions/http/evacuation-resource.ts";
import type { domainSchema } from "../../functions/http/host-resource.ts";
import type { Limits } from "./fleet.ts";
import { type FleetLayout, hostName } from "./fleet-layout.ts";
import type { HeldDomain, Span } from "./fleet-truth.ts";
import type { Look } from "./host-process.ts";

/** Violations named in a verdict; the rest is counted. */
const namedMax = 20;

type Domain = z.infer<typeof domainSchema>;
type Evacuation = z.infer<typeof evacuationSchema>;

/** What is broken; empty: nothing. */
export function verdict(seen: {
  layout: FleetLayout;
  looks: readonly Look[];
  inventory: readonly Domain[];
  evacuations: readonly Evacuation[];
  limits: Limits;
}): string[] {
  const { layout, looks, inventory, evacuations, limits } = seen;
  const domains = looks.flatMap((look) => look.domains);
  const spans = looks.flatMap((look) => look.spans);
  const found = [
    ...looks.flatMap(({ violations }) => violations),
    ...whole(layout, domains),
    ...neverTwice(spans),
    ...limitsKept(spans, limits),
    ...stated(evacuations),
    ...sameInventory(domains, inventory),
    ...looks.flatMap(({ hosts }) =>
      hosts.flatMap(({ index, connected }) => (connected ? [] : [`${hostName(index)} is not connected`])),
    ),
  ];
  return found.length <= namedMax ? found : [...found.slice(0, namedMax), `and ${found.length - namedMax} more`];
}

function whole(layout: FleetLayout, domains: readonly HeldDomain[]): string[] {
  const held = new Map<string, HeldDomain[]>();
  for (const domain of domains) held.set(domain.uuid, [...(held.get(domain.uuid) ?? []), domain]);
  return [...layout.domains.values()].flatMap(({ uuid, name, snapshots }) => {
    const [domain, ...more] = held.get(uuid) ?? [];
    if (domain === undefined) return [`${name} is on no host`];
    if (more.length > 0) return [`${name} is on ${more.length + 1} hosts`];
    const { state, persistent, life, snapshots: tree } = domain;
    if (state !== "running" || !persistent || life !== 1)
      return [`${name} is ${state}, persistent ${persistent}, in life ${life}`];
    return tree === treeOf(snapshots) ? [] : [`${name} has the tree "${tree}" instead of "${treeOf(snapshots)}"`];
  });
}

/** As `SnapshotRecords.digest` tells the chain of fleet-libvirtd.ts. */
function treeOf(snapshots: number): string {
  const lines = Array.from({ length: snapshots }, (_, at) => `s${at + 1}<${at === 0 ? "" : `s${at}`}@${at + 1}`);
  return `${lines.sort().join(" ")} *${snapshots === 0 ? "" : `s${snapshots}`}`;
}

/** A guest's CPUs never run on two hosts at one time. */
function neverTwice(spans: readonly Span[]): string[] {
  const found: string[] = [];
  const last = new Map<string, Span>();
  const runs = spans.filter(({ kind }) => kind === "runs").sort((one, other) => one.fromMs - other.fromMs);
  for (const span of runs) {
    const before = last.get(span.uuid);
    if (before !== undefined && (before.toMs === null || before.toMs > span.fromMs))
      found.push(`${span.uuid} ran on ${hostName(before.host)} and ${hostName(span.host)} at once`);
    last.set(span.uuid, span);
  }
  return found;
}

/** The most that was under way at one instant: out of one host, into one host, in the fleet. */
export function peaks(spans: readonly Span[]): { out: number; in: number; fleet: number } {
  const hostsOf = (kind: Span["kind"]) => {
    const byHost = new Map<number, Span[]>();
    for (const span of spans) if (span.kind === kind) byHost.set(span.host, [...(byHost.get(span.host) ?? []), span]);
    return Math.max(0, ...[...byHost.values()].map(most));
  };
  return { out: hostsOf("leaves"), in: hostsOf("arrives"), fleet: most(spans.filter(({ kind }) => kind === "leaves")) };
}

function most(spans: readonly Span[]): number {
  const changes = spans
    .flatMap(({ fromMs, toMs }) => [{ at: fromMs, by: 1 }, ...(toMs === null ? [] : [{ at: toMs, by: -1 }])])
    .sort((one, other) => one.at - other.at || one.by - other.by);
  let now = 0;
  let max = 0;
  for (const { by } of changes) {
    now += by;
    max = Math.max(max, now);
  }
  return max;
}

function limitsKept(spans: readonly Span[], limits: Limits): string[] {
  const peak = peaks(spans);
  const over = (what: string, was: number, max: number) =>
    was > max ? [`${was} migrations ${what}, ${max} are allowed`] : [];
  return [
    ...over("out of one host at once", peak.out, limits.outMax),
    ...over("into one host at once", peak.in, limits.inMax),
    ...over("in the fleet at once", peak.fleet, limits.fleetMax),
  ];
}

function stated(evacuations: readonly Evacuation[]): string[] {
  return evacuations.flatMap(({ id, status, endedAt, domains }) =>
    endedAt === null
      ? [`${id} has not ended (${status})`]
      : domains.flatMap(({ domain, state, reason }) =>
          state === "moved" || ((state === "stays" || state === "failed") && reason !== null)
            ? []
            : [`${id} ended and says nothing of ${domain.name} (${state})`],
        ),
  );
}

function sameInventory(domains: readonly HeldDomain[], inventory: readonly Domain[]): string[] {
  const text = (host: string, uuid: string, state: string) => `${uuid} ${state} on ${host}`;
  const truth = new Set(domains.map(({ host, uuid, state }) => text(hostName(host), uuid, state)));
  const told = new Set(inventory.map(({ host, uuid, state }) => text(host, uuid, state)));
  return [
    ...[...truth].filter((each) => !told.has(each)).map((each) => `the API does not tell: ${each}`),
    ...[...told].filter((each) => !truth.has(each)).map((each) => `the API tells what is not so: ${each}`),
  ];
}
