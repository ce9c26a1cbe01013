/**
 * Which preflights an evacuation needs, and what a plan without an answer is worth. Few pairs are all asked; of many only those that a plan would use,
 * with their runners-up, plan by plan, so that a thousand hosts are not asked about each of a hundred domains.
 */
import { evacuationPlan, type Planner } from "./core/evacuation-plan.ts";
import { settledByOthers } from "./core/evacuation-result.ts";
import type { EvacuationState } from "./core/evacuation-state.ts";
import type { BlockedDomain, Plan } from "./core/placement-view.ts";
import type { Seen } from "./placement-look.ts";
import type { Preflights, PreflightWish } from "./preflights.ts";

/** Pairs of a domain and a destination up to which all are asked: some seconds of work for the hosts. */
export const pairsAllMax = 300;
/** Plans made in a row, each asking for what the one before would do; then what is not proven waits for the next look. */
export const roundsMax = 4;

/** Asks what is needed for a plan; what has been answered stays in `preflights`. */
export async function askPreflights(
  preflights: Preflights,
  state: EvacuationState,
  see: () => Promise<Seen>,
  options: { sinceMs: number; untilMs: number; planner: Planner },
): Promise<void> {
  const seen = await see();
  const domains = state.domains.filter(
    (each) => each.state === "waiting" || (each.state === "stays" && !settledByOthers(each)),
  );
  const meant = state.kind === "evacuate" ? state.policy.to : [state.host.id];
  const open = seen.view.hosts.filter(({ id, closed }) => closed === null && (meant?.includes(id) ?? true));
  const pairs = domains.flatMap(({ domain }) => open.map(({ id }) => ({ uuid: domain.uuid, hostId: id })));
  const asked = new Set<string>();
  let newest = seen;
  if (pairs.length <= pairsAllMax) {
    await preflights.ask(wishesOf(seen, pairs), options);
    // Who goes home and finds it full may stop over elsewhere: that is asked for where a plan wants it.
    if (state.kind === "evacuate" || seen.crossing.length === 0) return;
    for (const { uuid, hostId } of pairs) asked.add(`${uuid} ${hostId}`);
    newest = await see();
  }
  for (let round = 0; round < roundsMax; round += 1) {
    const { moves } = evacuationPlan(state, newest.view, options.planner, newest.crossing);
    const wanted = moves
      .flatMap(({ domainUuid, toId, runnersUp }) =>
        [toId, ...runnersUp.map(({ hostId }) => hostId)].map((hostId) => ({ uuid: domainUuid, hostId })),
      )
      .filter(({ uuid, hostId }) => !asked.has(`${uuid} ${hostId}`));
    if (wanted.length === 0) return;
    for (const { uuid, hostId } of wanted) asked.add(`${uuid} ${hostId}`);
    await preflights.ask(wishesOf(newest, wanted), options);
    newest = await see();
  }
}

function wishesOf(seen: Seen, pairs: readonly { uuid: string; hostId: string }[]): PreflightWish[] {
  const wishes = new Map<string, { wish: PreflightWish; destinations: PreflightWish["destinations"][number][] }>();
  for (const { uuid, hostId } of pairs) {
    const domain = seen.placed.get(uuid);
    const source = domain === undefined ? undefined : seen.records.get(domain.hostId);
    const destination = seen.records.get(hostId);
    if (domain === undefined || source === undefined || destination === undefined || source.id === hostId) continue;
    const known = wishes.get(uuid);
    if (known !== undefined) known.destinations.push(destination);
    else {
      const destinations = [destination];
      wishes.set(uuid, { wish: { domain, source, destinations }, destinations });
    }
  }
  return [...wishes.values()].map(({ wish }) => wish);
}

/**
 * Only what a preflight has allowed is started. What has no answer although it was asked waits, and says so; where nobody was asked it is left to the
 * look that asks.
 */
export function provenOnly(plan: Plan, seen: Seen, asked: boolean): Plan {
  const moves = plan.moves.filter(({ proven }) => proven);
  const unanswered: BlockedDomain[] = plan.moves
    .filter(({ proven }) => !proven)
    .map(({ domainUuid, fromId, toId }) => ({
      domainUuid,
      fromId,
      blocker: {
        code: "host.offline",
        cause: `The preflight for ${seen.records.get(toId)?.name ?? toId} was not answered in time.`,
        action:
          "It is asked again by itself; look at the shims of both hosts if it stays (journalctl -u vmferry-shim).",
      },
    }));
  return { ...plan, moves, blocked: [...plan.blocked, ...(asked ? unanswered : [])] };
}
