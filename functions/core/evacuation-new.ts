/**
 * Evacuations that were asked for and have not begun: no migration, no cordon, nothing touched. An evacuation empties its host;
 * an undo brings back what one evacuation moved; a restore brings home what several have moved away from a host. Each is
 * born with a deadline, so each ends.
 */
import type { DomainRef } from "#protocol/command";
import type { FaultBody } from "#protocol/fault";
import { reasonRoom } from "./evacuation-draft.ts";
import { deadlineMsDefault, deadlineMsMax, reasonBytesMin } from "./evacuation-limits.ts";
import {
  type EvacuationDomain,
  type EvacuationPolicy,
  type EvacuationState,
  evacuationDomainsMax,
} from "./evacuation-state.ts";

/** The place of each domain by its uuid, as the inventory knows it; absent: no host has it. */
export type Places = ReadonlyMap<string, string>;

interface Wanted {
  id: string;
  origin: EvacuationState["origin"];
  policy: EvacuationPolicy;
  /** From now on; null: `deadlineMsDefault`. Never more than `deadlineMsMax`. */
  deadlineMs: number | null;
}

export interface EvacuationInput extends Wanted {
  host: { id: string; name: string };
  /** Everything that is on the host. */
  domains: readonly { domain: DomainRef; memoryKiB: number; vcpus: number; priority: number }[];
}

export function newEvacuation(input: EvacuationInput, at: string): EvacuationState {
  const domains = input.domains.map((each) => waiting({ ...each, homeId: input.host.id }));
  return fresh(input, { kind: "evacuate", host: input.host, undoes: null, cordoned: false, domains }, at);
}

export interface UndoInput extends Wanted {
  /** The evacuation to take back. It has ended: one that runs is cancelled first. */
  of: EvacuationState;
  places: Places;
}

/**
 * Takes back what stands where the evacuation brought it: what has been moved on since then, by whomever, is not touched, and
 * neither is what it could not move. A migration that stranded and arrived after all is taken back too.
 */
export function newUndo(input: UndoInput, at: string): EvacuationState {
  const { of, places } = input;
  const domains = of.domains.flatMap((each) =>
    each.destinationId !== null &&
    each.destinationId !== of.host.id &&
    places.get(each.domain.uuid) === each.destinationId
      ? [waiting({ ...each, homeId: each.destinationId })]
      : [],
  );
  return fresh(input, { kind: "undo", host: of.host, undoes: of.id, cordoned: true, domains }, at);
}

export interface RestoreInput extends Wanted {
  host: { id: string; name: string };
  /** Ended evacuations, undos and restores that had to do with the domains of this host, in any order. */
  of: readonly EvacuationState[];
  places: Places;
  /** Those that a person has moved since: their place is a person's wish. */
  movedByPerson: ReadonlySet<string>;
  /** Those that the person who asks leaves out (`--skip`). */
  skip: ReadonlySet<string>;
}

/**
 * Brings home what evacuations took from this host, also where a second one moved it on from where the first had brought it.
 * What an undo or a restore brought home is home; what is not where the last of them left it has been moved by somebody else.
 */
export function newRestore(input: RestoreInput, at: string): EvacuationState {
  const away = new Map<string, EvacuationDomain>();
  const byAge = [...input.of].sort((one, other) => (one.createdAt < other.createdAt ? -1 : 1));
  for (const { kind, host, domains } of byAge)
    for (const each of domains) {
      // It stopped over on its way home, and from there it may have come no further.
      if (each.stop !== undefined && away.get(each.domain.uuid)?.destinationId === each.stop.fromId)
        away.set(each.domain.uuid, { ...each, destinationId: each.homeId });
      if (each.state !== "moved") continue;
      const known = away.get(each.domain.uuid);
      const leaves = kind === "evacuate" && host.id === input.host.id;
      if (leaves || (known !== undefined && known.destinationId === each.homeId)) away.set(each.domain.uuid, each);
      if (each.destinationId === input.host.id) away.delete(each.domain.uuid);
    }
  const domains = [...away].flatMap(([uuid, each]) =>
    each.destinationId !== null &&
    input.places.get(uuid) === each.destinationId &&
    !input.movedByPerson.has(uuid) &&
    !input.skip.has(uuid)
      ? [waiting({ ...each, homeId: each.destinationId })]
      : [],
  );
  return fresh(input, { kind: "restore", host: input.host, undoes: null, cordoned: true, domains }, at);
}

/** Why a new evacuation is too large for one item; null: it is not. To be asked before it is stored. */
export function evacuationRefusal(fresh: EvacuationState): FaultBody | null {
  const count = fresh.domains.length;
  if (count <= evacuationDomainsMax && reasonRoom(fresh) >= reasonBytesMin) return null;
  return {
    code: "request.tooLarge",
    cause:
      count > evacuationDomainsMax
        ? `There are ${count} domains; one evacuation moves at most ${evacuationDomainsMax}.`
        : `The names of ${count} domains and the policy are too long to be kept together.`,
    action: "Move some of them by themselves first (vmferry migrate), or name fewer destinations.",
    retry: "never",
  };
}

function waiting(
  from: Pick<EvacuationDomain, "domain" | "memoryKiB" | "vcpus" | "priority" | "homeId">,
): EvacuationDomain {
  const { domain, memoryKiB, vcpus, priority, homeId } = from;
  return {
    domain,
    memoryKiB,
    vcpus,
    priority,
    homeId,
    state: "waiting",
    destinationId: null,
    migrationId: null,
    attempts: 0,
    triedIds: [],
    notBefore: null,
    reason: null,
  };
}

function fresh(
  { id, origin, policy, deadlineMs }: Wanted,
  what: Pick<EvacuationState, "kind" | "host" | "undoes" | "cordoned" | "domains">,
  at: string,
): EvacuationState {
  const ms = Math.min(deadlineMs ?? deadlineMsDefault, deadlineMsMax);
  return {
    ...what,
    closedHost: false,
    id,
    origin,
    policy,
    status: "running",
    version: 1,
    createdAt: at,
    updatedAt: at,
    endedAt: null,
    deadlineAt: new Date(Date.parse(at) + ms).toISOString(),
    failuresInRow: 0,
    held: null,
    stopped: null,
    timeline: [{ at, domain: null, note: `asked for by ${origin.by}`.slice(0, 120) }],
  };
}
