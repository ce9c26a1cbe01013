/**
 * A judge of plans that shares no code with the planner: it replays the moves over time and over waves, and counts rooms, groups and limits by
 * walking all domains each time. Slow and plain on purpose. Also the answers by brute force that small plans are held against.
 */
import assert from "node:assert/strict";
import type { PlacementDomain, PlacementPolicy, PlacementView, PlannedMove } from "#core/placement-view";

type Hop = Pick<PlannedMove, "domainUuid" | "fromId" | "toId"> & { start: number; end: number };

/** Throws where a host takes a domain that it has no room for, holds its group, is closed, or a limit is exceeded. */
export function judge(view: PlacementView, moves: readonly PlannedMove[], policy: PlacementPolicy): void {
  const underWay = view.moving.map(({ domainUuid, sourceId, destinationId }) => {
    const domain = view.domains.find(({ uuid }) => uuid === domainUuid);
    assert.ok(domain);
    return { domainUuid, fromId: sourceId, toId: destinationId, start: 0, end: durationMs(domain, policy) };
  });
  const timed = moves.map(({ startMs, endMs, ...move }) => ({ ...move, start: startMs, end: endMs }));
  const waved = moves.map(({ wave, ...move }) => ({ ...move, start: wave, end: wave + 1 }));
  for (const move of timed) {
    const domain = domainOf(view, move.domainUuid);
    assert.ok(move.start >= 0 && move.end - move.start === durationMs(domain, policy), "an estimate of its own");
  }
  replay(view, timed, policy, underWay);
  replay(view, waved, policy, []);
}

function replay(view: PlacementView, hops: readonly Hop[], policy: PlacementPolicy, underWay: readonly Hop[]): void {
  for (const hop of hops) {
    const before = hops.filter((other) => other.domainUuid === hop.domainUuid && other.start < hop.start);
    const last = before.reduce<Hop | null>(
      (latest, other) => (latest === null || other.start > latest.start ? other : latest),
      null,
    );
    const domain = domainOf(view, hop.domainUuid);
    assert.equal(hop.fromId, last?.toId ?? domain.hostId, "a move starts where the domain is");
    assert.ok(last === null || last.end <= hop.start, "a domain moves once at a time");
    const running = (other: Hop) => other.start <= hop.start && hop.start < other.end;
    const side = [...hops, ...underWay].filter(running);
    assert.ok(side.length <= policy.fleetMax || underWay.length > 0, "fleetMax");
    assert.ok(side.filter(({ fromId }) => fromId === hop.fromId).length <= policy.outMax, "outMax");
    assert.ok(side.filter(({ toId }) => toId === hop.toId).length <= policy.inMax, "inMax");
    for (const network of networksOf(view, hop)) {
      const touching = side.filter((other) => networksOf(view, other).has(network)).length;
      assert.ok(touching <= (policy.networkMax ?? touching), `${touching} touch ${network}`);
    }
    judgeRoom(view, hops, hop, policy);
  }
}

const networksOf = ({ networks }: PlacementView, { fromId, toId }: Pick<Hop, "fromId" | "toId">): Set<string> =>
  new Set([fromId, toId].map((id) => networks.get(id)).filter((network) => network !== undefined));

/** The destination at the instant of a start: everything else only gives room back. */
function judgeRoom(view: PlacementView, hops: readonly Hop[], hop: Hop, policy: PlacementPolicy): void {
  const host = view.hosts.find(({ id }) => id === hop.toId);
  assert.ok(host);
  const there = view.domains.filter((domain) => {
    const own = hops.filter(({ domainUuid }) => domainUuid === domain.uuid);
    const move = view.moving.find(({ domainUuid }) => domainUuid === domain.uuid);
    if (move !== undefined)
      return move.sourceId === host.id || move.destinationId === host.id || domain.hostId === host.id;
    const began = own.filter(({ start }) => start <= hop.start).sort((one, other) => other.start - one.start);
    const [current] = began;
    if (current === undefined) return domain.hostId === host.id;
    return current.toId === host.id || (current.fromId === host.id && hop.start < current.end);
  });
  const domain = domainOf(view, hop.domainUuid);
  assert.ok(there.includes(domain));
  const active = there.filter((other) => other.active);
  if (domain.active) {
    const memory = active.reduce((sum, { memoryKiB }) => sum + memoryKiB, 0);
    const vcpus = active.reduce((sum, other) => sum + other.vcpus, 0);
    assert.ok(memory + policy.memoryReserveKiB <= host.memoryKiB, `${host.name} is over its memory`);
    assert.ok(vcpus <= host.cpus * policy.vcpusPerCpuMax, `${host.name} is over its vCPUs`);
  }
  const group = domain.labels["anti-affinity"];
  if (group !== undefined)
    assert.deepEqual(
      there.filter((other) => other !== domain && other.labels["anti-affinity"] === group).map(({ name }) => name),
      [],
      `${host.name} has two of ${group}`,
    );
}

function domainOf(view: PlacementView, uuid: string): PlacementDomain {
  const domain = view.domains.find((candidate) => candidate.uuid === uuid);
  assert.ok(domain, `no domain ${uuid}`);
  return domain;
}

const durationMs = ({ active, memoryKiB }: PlacementDomain, { overheadMs, bytesPerSecond }: PlacementPolicy): number =>
  overheadMs + (active ? Math.ceil((memoryKiB * 1024 * 1000) / bytesPerSecond) : 0);

/** Whether the placement (uuid to host) breaks a rule at rest; moves of nobody. */
function standsAt(
  view: PlacementView,
  at: ReadonlyMap<string, string>,
  hostId: string,
  policy: PlacementPolicy,
): boolean {
  const host = view.hosts.find(({ id }) => id === hostId);
  const there = view.domains.filter(({ uuid }) => at.get(uuid) === hostId);
  if (host === undefined) return false;
  const active = there.filter((domain) => domain.active);
  const groups = there.map(({ labels }) => labels["anti-affinity"]).filter((group) => group !== undefined);
  return (
    active.reduce((sum, { memoryKiB }) => sum + memoryKiB, 0) + policy.memoryReserveKiB <= host.memoryKiB &&
    active.reduce((sum, { vcpus }) => sum + vcpus, 0) <= host.cpus * policy.vcpusPerCpuMax &&
    new Set(groups).size === groups.length
  );
}

/** The most of these domains that can be placed on open hosts other than `emptied`, by trying everything. */
export function mostPlaced(
  view: PlacementView,
  uuids: readonly string[],
  emptied: readonly string[],
  policy: PlacementPolicy,
): number {
  const open = view.hosts.filter(({ id, closed }) => closed === null && !emptied.includes(id)).map(({ id }) => id);
  const at = new Map(view.domains.map(({ uuid, hostId }) => [uuid, hostId]));
  const attempt = (index: number): number => {
    const uuid = uuids[index];
    if (uuid === undefined) return 0;
    const home = at.get(uuid) ?? "";
    let most = attempt(index + 1);
    for (const hostId of open) {
      if (most === uuids.length - index) break;
      if (view.verdicts.get(`${uuid} ${hostId}`)?.allowed === false) continue;
      at.set(uuid, hostId);
      if (standsAt(view, at, hostId, policy)) most = Math.max(most, 1 + attempt(index + 1));
      at.set(uuid, home);
    }
    return most;
  };
  return attempt(0);
}

/** Whether an order exists that brings each where it is wanted, one at a time, with at most one stop each and `stopsMax` in all. */
export function orderExists(
  view: PlacementView,
  wanted: ReadonlyMap<string, string>,
  policy: PlacementPolicy,
  stopsMax: number,
): boolean {
  const open = view.hosts.filter(({ closed }) => closed === null).map(({ id }) => id);
  const homes = new Map(view.domains.map(({ uuid, hostId }) => [uuid, hostId]));
  const seen = new Set<string>();
  const visit = (at: ReadonlyMap<string, string>, stops: number): boolean => {
    if ([...wanted].every(([uuid, toId]) => at.get(uuid) === toId)) return true;
    const key = `${stops} ${[...at.values()].join(",")}`;
    if (seen.has(key)) return false;
    seen.add(key);
    for (const [uuid, toId] of wanted) {
      const now = at.get(uuid);
      if (now === toId) continue;
      const stop = now === homes.get(uuid) && stops < stopsMax ? open.filter((id) => id !== now && id !== toId) : [];
      for (const next of [toId, ...stop]) {
        const after = new Map(at).set(uuid, next);
        if (standsAt(view, after, next, policy) && visit(after, stops + (next === toId ? 0 : 1))) return true;
      }
    }
    return false;
  };
  return visit(homes, 0);
}
