/**
 * How an evacuation ends: every domain has a stated result by then, and the whole has the one that follows from them. An ended
 * one is final; what becomes of its domains later is another's story.
 */
import type { FaultBody } from "#protocol/fault";
import { change, type Draft, emit, note, reasonOf, unheld } from "./evacuation-draft.ts";
import type { EvacuationEvent } from "./evacuation-event.ts";
import type { EvacuationDomain, EvacuationState, EvacuationStatus } from "./evacuation-state.ts";

/** It need not move any more, because somebody else moved or removed it: no reason to look at it again, and no fault of ours. */
export const settledByOthers = ({ state, reason }: EvacuationDomain): boolean =>
  state === "stays" && (reason?.code === "domain.absent" || reason?.code === "migration.cancelled");

export const isEnded = ({ status }: EvacuationState): boolean => status !== "running" && status !== "ending";

const isFinal = ({ state }: EvacuationDomain): boolean => state !== "waiting" && state !== "moving";

export interface Tally {
  moved: number;
  stays: number;
  failed: number;
  /** Of those that stay: moved or removed by somebody else, so nothing is left to do. */
  absent: number;
}

export function tallyOf({ domains }: Pick<EvacuationState, "domains">): Tally {
  const count = (matches: (each: EvacuationDomain) => boolean): number => domains.filter(matches).length;
  return {
    moved: count(({ state }) => state === "moved"),
    stays: count(({ state }) => state === "stays"),
    failed: count(({ state }) => state === "failed"),
    absent: count(({ state, reason }) => state === "stays" && reason?.code === "domain.absent"),
  };
}

/** Nothing more is started, for the reason given; what runs is let end. */
export function stop(draft: Draft, fault: FaultBody): Draft {
  if (draft.state.status !== "running") return draft;
  const stopped = reasonOf({ reasonBytes: reasonWhole }, fault);
  return note(change(draft, { status: "ending", held: null, stopped }), `nothing more is started: ${fault.cause}`);
}

/** What to do for those that were left. Who was on the way home, also with a stop, is brought home by a restore; nobody is told to empty that host. */
export const actionForRest = ({ kind, host }: EvacuationState, evacuated: string): string =>
  kind === "evacuate" ? evacuated : `vmferry restore ${host.name} brings home what is left.`;

/** Bytes of what is stated once, of the whole. */
const reasonWhole = 600;

export const heldFault = (fault: FaultBody): FaultBody => reasonOf({ reasonBytes: reasonWhole }, fault);

/** Ends it where nothing runs and nothing is to come. One that has not looked yet has not done its part, even with nothing to move. */
export function settle(draft: Draft, cause: EvacuationEvent["type"]): Draft {
  const { status, domains, stopped } = draft.state;
  if (status === "running" && cause !== "looked" && domains.every(({ attempts }) => attempts === 0)) return draft;
  if (domains.some(({ state }) => state === "moving")) return draft;
  if (status === "running" && !domains.every(isFinal)) return draft;
  const stated = domains.filter(({ state }) => state === "waiting").reduce((made, each) => conclude(made, each), draft);
  return end(stated, stopped?.code === "migration.cancelled");
}

/** The result of a domain that waited when its evacuation ended. */
function conclude(draft: Draft, each: EvacuationDomain): Draft {
  const { stopped } = draft.state;
  const why = each.reason ?? stopped;
  const held = each.waitsSince !== undefined;
  const domains = draft.state.domains.map((one) =>
    one.domain.uuid === each.domain.uuid
      ? {
          ...one,
          state: held ? ("stays" as const) : ("failed" as const),
          notBefore: null,
          reason: why === null ? null : reasonOf(draft, why),
        }
      : one,
  );
  return unheld(change(draft, { domains }), each.domain.uuid);
}

function end(draft: Draft, cancelled: boolean): Draft {
  const tally = tallyOf(draft.state);
  const status = cancelled ? "cancelled" : statusOf(draft.state.domains.length, tally);
  const { moved, stays, failed } = tally;
  const ended = note(
    change(draft, { status, endedAt: draft.at, held: null }),
    `${status}: ${moved} moved, ${stays} stay, ${failed} failed`,
  );
  return emit(openAgain(ended), { type: "release" });
}

function statusOf(all: number, { moved, failed, absent }: Tally): EvacuationStatus {
  if (moved + absent === all) return "completed";
  return moved === 0 && failed > 0 ? "failed" : "partial";
}

/**
 * An emptied host stays closed: whoever emptied it works on it now, and opens it, undoes or restores when that is done. So does a
 * host that could not be emptied. It is opened again only where the evacuation was cancelled before anything had moved,
 * for then nothing has happened. An undo and a restore have opened their host before they began.
 */
function openAgain(draft: Draft): Draft {
  const { kind, status, cordoned, host, domains } = draft.state;
  if (kind !== "evacuate" || !cordoned) return draft;
  if (status !== "cancelled" || domains.some((each) => each.state === "moved"))
    return note(draft, `${host.name} stays cordoned; vmferry host uncordon ${host.name} opens it`);
  const opened = note(change(draft, { cordoned: false }), "nothing has moved: the host is opened again");
  return emit(opened, { type: "uncordon", hostId: host.id });
}
