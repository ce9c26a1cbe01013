/**
 * The planner asked for one evacuation: what it still wants to move, with what it has learned by its own failures. The planner is
 * given as a function, so that the executor can be proven with any planner, also with a bad one.
 */
import type { EvacuationEvent, RunningMigration } from "./evacuation-event.ts";
import { outlookOf } from "./evacuation-fault.ts";
import { settledByOthers } from "./evacuation-result.ts";
import type { EvacuationDomain, EvacuationState } from "./evacuation-state.ts";
import { orderMoves, type WantedMove } from "./placement.ts";
import {
  type BlockedDomain,
  type PlacementPolicy,
  type PlacementView,
  type Plan,
  placementPolicyDefault,
  type Verdict,
  verdictKey,
} from "./placement-view.ts";

export type Planner = (view: PlacementView, fromHostIds: readonly string[], policy: PlacementPolicy) => Plan;

/** What the planner is to respect for this evacuation: home is the only destination of an undo or a restore. */
export function placementPolicyOf({ kind, host, policy }: EvacuationState): PlacementPolicy {
  const { vcpusPerCpuMax, memoryReserveKiB, outMax, inMax, fleetMax, networkMax, bandwidthMiBps } = policy;
  const { bytesPerSecond, overheadMs } = placementPolicyDefault;
  return {
    to: kind === "evacuate" ? policy.to : [host.id],
    vcpusPerCpuMax,
    memoryReserveKiB,
    outMax,
    inMax,
    fleetMax,
    networkMax,
    bytesPerSecond: bandwidthMiBps === null ? bytesPerSecond : Math.min(bytesPerSecond, bandwidthMiBps * 1024 * 1024),
    overheadMs,
  };
}

/**
 * The plan for what may be started now. All else on the same hosts is held fast (it takes room and is not moved), destinations
 * that failed a domain are avoided, unless nothing else is left. Given to `looked` at once: it is good for this view alone. `crossing`: what other undos and
 * restores want at this time; where home is full of that, an order is looked for that brings all of it home.
 */
export function evacuationPlan(
  state: EvacuationState,
  view: PlacementView,
  planner: Planner,
  crossing: readonly WantedMove[] = [],
): Plan {
  const wanted = new Map(
    state.domains
      .filter((each) => each.state === "waiting" || (each.state === "stays" && !settledByOthers(each)))
      .filter(({ notBefore }) => notBefore === null || Date.parse(notBefore) <= view.atMs)
      .map((each) => [each.domain.uuid, each]),
  );
  const fromIds = [...new Set([...wanted.values()].map(({ homeId }) => homeId))];
  const from = new Set(fromIds);
  const domains = view.domains.map((each) =>
    from.has(each.hostId) && !wanted.has(each.uuid)
      ? { ...each, labels: { ...each.labels, pinned: "elsewhere" } }
      : each,
  );
  const policy = placementPolicyOf(state);
  const ask = (verdicts: PlacementView["verdicts"]): Plan => planner({ ...view, domains, verdicts }, fromIds, policy);

  const tried = [...wanted.values()].filter(({ triedIds }) => state.kind === "evacuate" && triedIds.length > 0);
  const avoided = (uuids: ReadonlySet<string>): PlacementView["verdicts"] => {
    if (uuids.size === 0) return view.verdicts;
    const verdicts = new Map(view.verdicts);
    for (const { domain, triedIds } of tried)
      if (uuids.has(domain.uuid))
        for (const id of triedIds) verdicts.set(verdictKey(domain.uuid, id), failedThere(view.atMs));
    return verdicts;
  };
  const avoiding = new Set(tried.map(({ domain }) => domain.uuid));
  const first = ask(avoided(avoiding));
  const stuck = first.blocked.filter(({ domainUuid }) => avoiding.delete(domainUuid)).length > 0;
  const direct = only(wanted, ownBlockers(view, stuck ? ask(avoided(avoiding)) : first));
  return state.kind === "evacuate" ? direct : homeward(state, view, direct, [...wanted.values()], crossing);
}

/** Codes of a host that is full, by room or by a group; with one destination the others are only not named. */
const fullCodes: ReadonlySet<string> = new Set([
  "placement.noRoom",
  "placement.antiAffinity",
  "placement.noDestination",
]);

const isFull = ({ blocker }: BlockedDomain): boolean => fullCodes.has(blocker.code);

/**
 * The way home where home is full and nothing leaves it at this moment. Where others are to leave it, by an undo or a restore of their own, all these moves are
 * put into one order: some wait for others, and one that has not stopped over may do so on a third host.
 */
function homeward(
  state: EvacuationState,
  view: PlacementView,
  direct: Plan,
  own: readonly EvacuationDomain[],
  crossing: readonly WantedMove[],
): Plan {
  const { host } = state;
  if (!direct.blocked.some(isFull) || view.moving.some(({ sourceId }) => sourceId === host.id)) return direct;
  const leaves = (uuid: string): boolean => view.domains.some((each) => each.uuid === uuid && each.hostId === host.id);
  if (!crossing.some(({ domainUuid, toId }) => toId !== host.id && leaves(domainUuid))) return direct;

  const stops = new Map(own.map((each) => [each.domain.uuid, each.stop === undefined]));
  const wanted = [...own.map(({ domain }) => ({ domainUuid: domain.uuid, toId: host.id })), ...crossing];
  const ordered = orderMoves(view, wanted, { ...placementPolicyOf(state), to: null });
  const moves = ordered.moves.filter(
    ({ domainUuid, stopsOver }) => stopsOver !== true || stops.get(domainUuid) !== false,
  );
  const ours = moves.filter(({ domainUuid }) => stops.has(domainUuid));
  return {
    ...direct,
    moves: ours,
    blocked: ordered.blocked.filter(({ domainUuid }) => stops.has(domainUuid)),
    makespanMs: ours.reduce((most, { endMs }) => Math.max(most, endMs), 0),
  };
}

/**
 * What is said of those that cannot go home yet. While something leaves home that makes room: they wait in silence. While nothing of the order that they are
 * part of goes on they are held up by that: two that wait for each other must not do so for ever. `running`: what is stranded is not in it, for it may never end.
 */
export function withWaiting(state: EvacuationState, plan: Plan, running: readonly RunningMigration[]): Plan {
  const { kind, host } = state;
  if (kind === "evacuate") return plan;
  if (running.some(({ sourceId }) => sourceId === host.id))
    return { ...plan, blocked: plan.blocked.filter((blocked) => !isFull(blocked)) };
  const waiting = plan.moves.filter(({ waits }) => waits === true);
  if (waiting.length < plan.moves.length) return plan;
  const blocked = waiting.map(({ domainUuid, fromId }) => ({
    domainUuid,
    fromId,
    blocker: {
      code: "placement.swap" as const,
      cause: `${host.name} is full of what another undo or restore is to take away first.`,
      action: "It goes on by itself when that one does; look at: vmferry evacuations --active",
    },
  }));
  return { ...plan, blocked: [...plan.blocked, ...blocked] };
}

/**
 * Where every destination has another reason, one may still be the domain's own: it goes nowhere, whatever becomes of the hosts that
 * are full or away. That is what to say of it, and no reason to wait for them.
 */
function ownBlockers(view: PlacementView, plan: Plan): Plan {
  const blocked = plan.blocked.map((each) => {
    if (each.blocker.code !== "placement.noDestination") return each;
    const own = view.hosts
      .flatMap(({ id }) => {
        const verdict = view.verdicts.get(verdictKey(each.domainUuid, id));
        return verdict === undefined || verdict.allowed ? [] : verdict.blockers;
      })
      .find((blocker) => outlookOf(blocker) === "never");
    return own === undefined ? each : { ...each, blocker: own };
  });
  return { ...plan, blocked };
}

const failedThere = (atMs: number): Verdict => ({
  allowed: false,
  atMs,
  blockers: [
    {
      code: "perform.failed",
      cause: "A migration to it has failed in this evacuation.",
      action: "Nothing to do: another destination is tried first.",
    },
  ],
});

function only(wanted: ReadonlyMap<string, unknown>, plan: Plan): Plan {
  const ours = ({ domainUuid }: { domainUuid: string }): boolean => wanted.has(domainUuid);
  return {
    ...plan,
    moves: plan.moves.filter(ours),
    blocked: plan.blocked.filter(ours),
    home: plan.home.filter(ours),
    homeBlocked: plan.homeBlocked.filter(ours),
  };
}

export type Stray = Extract<EvacuationEvent, { type: "domainGone" | "domainElsewhere" }>;

/**
 * What others have done to the domains of an evacuation, as events for it: gone from the fleet, or on another host than it
 * was. Of what is moving at this moment, by whomever, nothing is said: the inventory may show it on either side.
 */
export function strayed(state: EvacuationState, view: Pick<PlacementView, "domains" | "moving">, at: string): Stray[] {
  const places = new Map(view.domains.map(({ uuid, hostId }) => [uuid, hostId]));
  const moving = new Set(view.moving.map(({ domainUuid }) => domainUuid));
  return state.domains.flatMap((each): Stray[] => {
    const { uuid } = each.domain;
    if ((each.state !== "waiting" && each.state !== "stays") || settledByOthers(each) || moving.has(uuid)) return [];
    const hostId = places.get(uuid);
    if (hostId === undefined) return [{ type: "domainGone", at, domainUuid: uuid }];
    return hostId === each.homeId ? [] : [{ type: "domainElsewhere", at, domainUuid: uuid, hostId }];
  });
}
