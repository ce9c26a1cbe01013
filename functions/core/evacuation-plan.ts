/**
 * The planner asked for one evacuation: what it still wants to move, with what it has learned by its own failures. The planner is
 * given as a function, so that the executor can be proven with any planner, also with a bad one.
 */
import type { EvacuationEvent } from "./evacuation-event.ts";
import { outlookOf } from "./evacuation-fault.ts";
import { settledByOthers } from "./evacuation-result.ts";
import type { EvacuationState } from "./evacuation-state.ts";
import {
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
 * that failed a domain are avoided, unless nothing else is left. Given to `looked` at once: it is good for this view alone.
 */
export function evacuationPlan(state: EvacuationState, view: PlacementView, planner: Planner): Plan {
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
  return only(wanted, ownBlockers(view, stuck ? ask(avoided(avoiding)) : first));
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

/**
 * What others have done to the domains of an evacuation, as events for it: gone from the fleet, or on another host than it
 * was. Of what is moving at this moment, by whomever, nothing is said: the inventory may show it on either side.
 */
export function strayed(
  state: EvacuationState,
  view: Pick<PlacementView, "domains" | "moving">,
  at: string,
): EvacuationEvent[] {
  const places = new Map(view.domains.map(({ uuid, hostId }) => [uuid, hostId]));
  const moving = new Set(view.moving.map(({ domainUuid }) => domainUuid));
  return state.domains.flatMap((each): EvacuationEvent[] => {
    const { uuid } = each.domain;
    if ((each.state !== "waiting" && each.state !== "stays") || settledByOthers(each) || moving.has(uuid)) return [];
    const hostId = places.get(uuid);
    if (hostId === undefined) return [{ type: "domainGone", at, domainUuid: uuid }];
    return hostId === each.homeId ? [] : [{ type: "domainElsewhere", at, domainUuid: uuid, hostId }];
  });
}
