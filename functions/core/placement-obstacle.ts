/**
 * Why a domain stays: every destination is asked what stands in the way there, the one with the least in its way is named with its cause and the
 * next step, and the others are counted by kind. Answers are given for the state after the plan, so that what is said of room is true then.
 */
import type { Finding } from "#protocol/fault";
import { textCharsMax } from "#protocol/limits";
import { type Fleet, hostAt, type Ledger, type Load, placementLabels } from "./placement-ledger.ts";
import { sizeText } from "./placement-rank.ts";

export type Blocker = Pick<Finding, "code" | "cause" | "action">;

/** What stands in the way, the smallest hindrance first: of two hosts with one each, the nearer miss is the one that comes first here. */
const kinds = ["room", "antiAffinity", "closed", "unnamed", "refused", "twin"] as const;
type Kind = (typeof kinds)[number];

const kindTexts: Record<Kind, string> = {
  room: "too full",
  antiAffinity: "held by its anti-affinity group",
  closed: "closed",
  unnamed: "not named as destinations",
  refused: "refused by a check",
  twin: "with a copy of it",
};

export interface Obstacle {
  kind: Kind;
  code: Blocker["code"];
  /** How far from possible; to compare two of one kind. Of room: what is missing as a share of what is needed. */
  shortage: number;
  words: () => Pick<Blocker, "cause" | "action">;
}

/** Which hosts a plan may choose from. `emptied`: it empties them itself. */
export interface Choice {
  emptied: ReadonlySet<string>;
  to: ReadonlySet<string> | null;
}

export const cut = (text: string): string =>
  text.length > textCharsMax ? `${text.slice(0, textCharsMax - 1)}…` : text;

/** A domain that no plan moves, wherever to; null: it may go. */
export function heldBack(fleet: Fleet, load: Load): Blocker | null {
  const { view, hosts, slotOf, underWay } = fleet;
  const { domain } = load;
  const move = underWay.get(domain.uuid);
  if (move !== undefined) {
    const host = hosts[slotOf.get(move.destinationId) ?? -1];
    return {
      code: "domain.busy",
      cause: `${domain.name} is already on its way to ${host?.name ?? move.destinationId}.`,
      action: "Wait until that migration has ended, then plan again.",
    };
  }
  const source = hosts[slotOf.get(domain.hostId) ?? -1];
  if (source === undefined)
    return {
      code: "host.absent",
      cause: `The host ${domain.hostId} of ${domain.name} is not known (of ${view.hosts.length} hosts).`,
      action: "Look at `vmferry hosts`; a removed host has to join again before anything leaves it.",
    };
  if (source.closed?.code === "host.offline") return source.closed;
  const twins = fleet.loadsOf.get(domain.uuid) ?? [];
  if (twins.length > 1 && !isOnlyActive(load, twins))
    return {
      code: "domain.notUnique",
      cause: `${domain.name} stands on ${twins.length} hosts with the same UUID, and not this one alone runs: it is not known which one is right.`,
      action: "Look at each: vmferry domains; undefine those that are not needed.",
    };
  if (domain.labels[placementLabels.pinned] !== undefined)
    return {
      code: "placement.pinned",
      cause: `${domain.name} is labelled \`pinned\`: it stays where it is.`,
      action: `Take the label off, or move it by hand: vmferry migrate ${domain.name} --to HOST`,
    };
  return null;
}

const isOnlyActive = (load: Load, twins: readonly Load[]): boolean =>
  load.domain.active && twins.every((twin) => twin === load || !twin.domain.active);

/** All that stands in the way of one domain on one host; none: it could go there. Their words are made only when they are asked for. */
export function obstaclesOn(fleet: Fleet, ledger: Ledger, load: Load, slot: number, to: Choice["to"]): Obstacle[] {
  const host = hostAt(fleet, slot);
  const obstacles: Obstacle[] = [];
  const { memoryLack, vcpusLack } = lackOf(ledger, load, slot);
  if (memoryLack > 0 || vcpusLack > 0)
    obstacles.push({
      kind: "room",
      code: "placement.noRoom",
      shortage: Math.max(memoryLack / Math.max(1, load.memoryKiB), vcpusLack / Math.max(1, load.vcpus)),
      words: () => ({
        cause: `${host.name} lacks ${lackText(fleet, ledger, load, slot)}.`,
        action: `Free that much on ${host.name}, add a host, or state a smaller reserve or a larger overcommit.`,
      }),
    });
  const rivals = ledger.rivals(load, slot);
  if (rivals > 0)
    obstacles.push({
      kind: "antiAffinity",
      code: "placement.antiAffinity",
      shortage: rivals,
      words: () => ({
        cause: `${host.name} has ${rivalText(fleet, load, host.id)} of the same anti-affinity group ${load.antiAffinity}, which never share a host.`,
        action: `Move that one away from ${host.name} first, add a host for the group, or take the label off.`,
      }),
    });
  const { closed } = host;
  if (closed !== null) obstacles.push({ kind: "closed", code: closed.code, shortage: 0, words: () => closed });
  if (to !== null && !to.has(host.id))
    obstacles.push({
      kind: "unnamed",
      code: "placement.noDestination",
      shortage: 0,
      words: () => ({
        cause: `${host.name} is not among the destinations that were named.`,
        action: `Name ${host.name} as well, or leave the choice open.`,
      }),
    });
  const verdict = load.verdicts?.get(slot);
  if (verdict?.allowed === false) {
    const [first, ...others] = verdict.blockers;
    obstacles.push({
      kind: "refused",
      code: first?.code ?? "placement.noDestination",
      shortage: verdict.blockers.length,
      words: () => ({
        cause: `The check for ${host.name} says: ${first?.cause ?? "no"}${others.length === 0 ? "" : ` (and ${others.length} more)`}`,
        action: first?.action ?? `Ask it again: vmferry check ${load.domain.name} --to ${host.name}`,
      }),
    });
  }
  if (load.twinSlots?.includes(slot) === true)
    obstacles.push({
      kind: "twin",
      code: "destination.duplicateUuid",
      shortage: 0,
      words: () => ({
        cause: `${host.name} has a domain of the same UUID already.`,
        action: "Look at both; undefine the one that is not needed.",
      }),
    });
  return obstacles;
}

export const blockerOf = ({ code, words }: Obstacle): Blocker => {
  const { cause, action } = words();
  return { code, cause, action };
};

/** Who of its group stands there; one that comes there by the same plan is not on the host yet. */
function rivalText({ loads }: Fleet, load: Load, hostId: string): string {
  const names = loads.flatMap(({ antiAffinity, domain }) =>
    antiAffinity === load.antiAffinity && domain.hostId === hostId && domain !== load.domain ? domain.name : [],
  );
  return names.length === 0 ? "another one, coming there in this plan or under way," : names.slice(0, 3).join(", ");
}

function lackOf(ledger: Ledger, load: Load, slot: number): { memoryLack: number; vcpusLack: number } {
  return {
    memoryLack: load.memoryKiB === 0 ? 0 : load.memoryKiB - Math.max(0, ledger.memoryFree(slot)),
    vcpusLack: load.vcpus === 0 ? 0 : load.vcpus - Math.max(0, ledger.vcpusFree(slot)),
  };
}

function lackText(fleet: Fleet, ledger: Ledger, load: Load, slot: number): string {
  const { memoryLack, vcpusLack } = lackOf(ledger, load, slot);
  const texts = [];
  if (memoryLack > 0)
    texts.push(
      `${sizeText(memoryLack)} of memory (${sizeText(load.memoryKiB)} needed, ${sizeText(Math.max(0, ledger.memoryFree(slot)))} of ` +
        `${sizeText(hostAt(fleet, slot).memoryKiB)} free beside the reserve)`,
    );
  if (vcpusLack > 0)
    texts.push(
      `${vcpusLack} vCPUs (${load.vcpus} needed, ${Math.max(0, ledger.vcpusFree(slot))} of ${ledger.vcpusMax[slot] ?? 0} free)`,
    );
  return texts.join(" and ");
}

/** Why nowhere. `ledger`: after the plan, without this domain on any destination. */
export function explain(fleet: Fleet, ledger: Ledger, load: Load, { emptied, to }: Choice): Blocker {
  const missed = fleet.hosts
    .flatMap((host, slot) =>
      emptied.has(host.id) || host.id === load.domain.hostId
        ? []
        : [{ host, obstacles: obstaclesOn(fleet, ledger, load, slot, to).sort(byKind) }],
    )
    .sort(
      (one, other) =>
        one.obstacles.length - other.obstacles.length ||
        byKind(one.obstacles[0], other.obstacles[0]) ||
        (one.obstacles[0]?.shortage ?? 0) - (other.obstacles[0]?.shortage ?? 0),
    );
  const [nearest, ...rest] = missed;
  const [first, ...more] = nearest?.obstacles ?? [];
  if (first === undefined)
    return {
      code: "placement.noDestination",
      cause:
        nearest === undefined
          ? `There is no other host to take ${load.domain.name}.`
          : `${nearest.host.name} might take ${load.domain.name}, but no plan was found that places it too.`,
      action:
        nearest === undefined
          ? "Add a host, or empty fewer at once."
          : `Try it: vmferry migrate ${load.domain.name} --to ${nearest.host.name}`,
    };
  const also = more.length === 0 ? "" : ` It is also ${more.map(({ kind }) => kindTexts[kind]).join(", ")}.`;
  const same = rest.every(({ obstacles }) => obstacles[0]?.code === first.code);
  const { cause, action } = first.words();
  return {
    code: same ? first.code : "placement.noDestination",
    cause: cut(
      rest.length === 0 ? `${cause}${also}` : `No host can take it; the nearest: ${cause}${also} ${countText(rest)}`,
    ),
    action,
  };
}

function byKind(one: Obstacle | undefined, other: Obstacle | undefined): number {
  const place = (obstacle: Obstacle | undefined) => (obstacle === undefined ? -1 : kinds.indexOf(obstacle.kind));
  return place(one) - place(other);
}

/** "The other 5: 3 closed (host.cordoned), 2 refused by a check (destination.cpu)." */
function countText(rest: readonly { obstacles: readonly Obstacle[] }[]): string {
  const counts = new Map<string, number>();
  for (const { obstacles } of rest) {
    const [first] = obstacles;
    if (first === undefined) continue;
    const told = first.kind === "closed" || first.kind === "refused";
    const text = `${kindTexts[first.kind]}${told ? ` (${first.code})` : ""}`;
    counts.set(text, (counts.get(text) ?? 0) + 1);
  }
  const [only] = counts;
  if (counts.size === 1 && only !== undefined)
    return rest.length === 1 ? `The other one is ${only[0]}.` : `The other ${rest.length} are ${only[0]}.`;
  const texts = [...counts]
    .sort(([oneText, one], [otherText, other]) => other - one || (oneText < otherText ? -1 : 1))
    .map(([text, count]) => `${count} ${text}`);
  return `The other ${rest.length}: ${texts.join(", ")}.`;
}
