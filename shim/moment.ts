/**
 * Where a migration stands on one host, read from its journal alone. Pure: entries in, one word out. Together with what the
 * probe finds (`foundOf`) it is what recovery.ts looks its rows up by, after whatever was cut off: the shim, libvirt's
 * daemon, the connection between them, the host.
 */
import * as z from "zod/mini";
import { ShutoffReason } from "#libvirt/constants";
import { blobSchema } from "#protocol/blob";
import { type CommandKind, type Receipt, receiptSchema } from "#protocol/command";
import { handedOf, statedOf } from "./hand-over.ts";
import { performing } from "./perform-watch.ts";
import type { JournalEntry } from "./ports.ts";
import type { Probe } from "./probe.ts";

type History = readonly JournalEntry[];

/** Source, in order. A word is of what may be half done, not of what was asked. */
export const sourceMoments = {
  untouched: "inspected and exported; nothing was changed",
  stripping: "the snapshot records are being taken away for Begin",
  stripped: "they are taken away; they are to be given back at once",
  begun: "Begin is done and the tree is whole; Perform is asked for",
  uncalled: "Perform was asked for and cut off before libvirt was called",
  failing: "Perform has failed by libvirt's own answer",
  performing: "Perform was called, and its answer is lost",
  performed: "Perform has succeeded, its result is kept, and no receipt is here",
  givingUp: "a receipt says that the domain runs on the destination",
  givenUp: "the domain was given up by that receipt",
  takingBack: "a receipt says that the destination has no copy",
  takenBack: "the same, and Perform was never called, or the domain is taken back already",
  restoring: "the way back is asked for, and Perform may have paused the domain",
  restoringFree: "the way back is asked for, and no pause of the domain is this migration's",
} as const;
export type SourceMoment = keyof typeof sourceMoments;

/** Destination. Between Prepare and a decision nothing is open here: an incoming domain waits, or went with its connection. */
export const destinationMoments = {
  untouched: "nothing was staged",
  staging: "the definition and its tree are being staged, or are",
  preparing: "Prepare was cut off: its incoming domain goes with the lost connection",
  finishing: "Finish was decided, and its end is not known",
  finishingCut: "the same, and the incoming domain's connection is lost",
  finishingRefused: "Finish was decided, called, and refused by libvirt's own answer",
  finishingBooted: "Finish was decided, its end is not known, and this host has booted since",
  arriving: "Finish was decided for a domain that is not running, and was refused",
  cancelling: "giving up was decided, and its end is not known",
  cancellingCut: "the same, and the incoming domain's connection is lost or Finish was refused",
  settling: "Finish has started the domain; it is to be settled",
  sweeping: "the way back is asked for, and this migration staged a definition",
  sweepingArrival: "the way back is asked for, and Prepare was called for a domain that is not running",
  sweepingDecided: "the way back is asked for, and Finish was decided before",
  sweepingForeign: "the way back is asked for, and this migration made nothing here",
  sweepingUnproven: "the way back is asked for, and the journal does not say whose a definition is",
} as const;
export type DestinationMoment = keyof typeof destinationMoments;

/** What libvirt shows of the domain on a host. */
export const founds = {
  absent: "libvirt does not know it",
  inactive: "defined, not running",
  endedItself: "defined, not running; libvirt says that it has shut down or crashed by itself",
  running: "running",
  ownerPaused: "paused, not by a migration",
  migrationPaused: "paused by a migration, no job",
  outgoing: "running, a migration leaves",
  outgoingPaused: "paused by the migration that leaves",
  outgoingOwnerPaused: "paused by its owner, a migration leaves",
  incoming: "a migration arrives",
  otherJob: "running, another job holds it",
} as const;
export type Found = keyof typeof founds;

/** A guest that ran and ended, and an incoming QEMU that died before it ever ran, are told alike; the daemon forgets it when it
 *  starts again. */
const byItself: ReadonlySet<number> = new Set([ShutoffReason.SHUTDOWN, ShutoffReason.CRASHED, ShutoffReason.SAVED]);

export function foundOf(probe: Probe): Found {
  if (!probe.present) return "absent";
  if (!probe.active) return byItself.has(probe.reason) ? "endedItself" : "inactive";
  if (probe.job === "incoming") return "incoming";
  if (probe.job === "outgoing" && probe.pausedByMigration) return "outgoingPaused";
  if (probe.job === "outgoing") return probe.state === "paused" ? "outgoingOwnerPaused" : "outgoing";
  if (probe.pausedByMigration) return "migrationPaused";
  if (probe.state === "paused") return "ownerPaused";
  return probe.job === "other" ? "otherJob" : "running";
}

const hasMilestone = (history: History, name: string) =>
  history.some((entry) => entry.type === "milestone" && entry.name === name);

const wasAsked = (history: History, kind: CommandKind) =>
  history.some((entry) => entry.type === "intent" && entry.command.kind === kind);

/** The first milestone of that name that can be read: it stands, whatever was asked later. */
function firstMilestone<T>(history: History, name: string, schema: z.ZodMiniType<T>): T | null {
  for (const entry of history) {
    if (entry.type !== "milestone" || entry.name !== name) continue;
    const decoded = schema.safeParse(entry.data);
    if (decoded.success) return decoded.data;
  }
  return null;
}

/** True when a strip was begun and its redefine is not known to be complete: the tree must be completed from the bundle first. */
export function isStripped(history: History): boolean {
  return lastOf(history, "stripping") > lastOf(history, "redefined");
}

const lastOf = (history: History, name: string) =>
  history.findLastIndex((entry) => entry.type === "milestone" && entry.name === name);

const decisionSchema = z.object({ cancelled: z.boolean(), bootId: z.optional(z.string()) });
const finishedSchema = z.object({ receipt: receiptSchema, cookie: z.nullable(blobSchema) });
const confirmedSchema = z.object({ outcome: z.enum(["started", "destroyed"]) });

/** What the destination's journal has decided; null: nothing yet. */
export const decisionOf = (history: History) => firstMilestone(history, "finishing", decisionSchema);

/** How Finish has ended there; null: not yet. */
export const finishedOf = (history: History) => firstMilestone(history, "finished", finishedSchema);

/** What a step knows of the journal: the entries from before it began, and which points were passed by now. */
export interface Known {
  history: History;
  happened(name: string): boolean;
}

/** Perform3 was never called for a migration whose journal is here: whatever pauses the domain is somebody else. */
const isUncalled = ({ history, happened }: Known) =>
  !happened(performing) && (wasAsked(history, "begin") || wasAsked(history, "perform"));

/** Where the source stands when it goes about `kind`. `told`: the outcome of a receipt that counts; by default what the
 *  destination has told this host itself. `answered`: libvirt itself has said that Perform failed. */
export function sourceMoment(
  known: Known,
  {
    kind,
    told = statedOf(known.history)?.receipt.outcome ?? null,
    answered = false,
  }: { kind: CommandKind; told?: Receipt["outcome"] | null; answered?: boolean },
): SourceMoment {
  const { history } = known;
  const confirmed = firstMilestone(history, "confirmed", confirmedSchema)?.outcome ?? null;
  if (kind === "restore") return confirmed === "destroyed" || isUncalled(known) ? "restoringFree" : "restoring";
  const outcome = told ?? confirmed;
  if (outcome === "started") return confirmed === "started" ? "givenUp" : "givingUp";
  if (outcome === "destroyed") return confirmed === "destroyed" || isUncalled(known) ? "takenBack" : "takingBack";
  if (isStripped(history)) return lastOf(history, "stripped") > lastOf(history, "stripping") ? "stripped" : "stripping";
  if (handedOf(history)?.outcome === "performed") return "performed";
  if (known.happened(performing)) return answered ? "failing" : "performing";
  if (wasAsked(history, "perform")) return "uncalled";
  return wasAsked(history, "begin") ? "begun" : "untouched";
}

/** Where the destination stands once Finish was decided. `cut`: nobody can wait for it any more.
 *  `refused`: libvirt has answered Finish with an error. `offline`: the domain is not
 *  running. `booted`: this host has booted since the decision. */
export function decidedMoment(of: {
  cancelled: boolean;
  cut: boolean;
  refused: boolean;
  offline: boolean;
  booted: boolean;
}): DestinationMoment {
  if (of.cancelled) return of.cut ? "cancellingCut" : "cancelling";
  if (of.offline) return "arriving";
  if (of.refused) return "finishingRefused";
  if (of.booted) return "finishingBooted";
  return of.cut ? "finishingCut" : "finishing";
}

/** Prepare was called for a domain that is not running: no QEMU shows it, but libvirt's job is there until Finish. */
const isArriving = (history: History) =>
  hasMilestone(history, "preparing") &&
  finishedOf(history) === null &&
  history.some((entry) => entry.type === "intent" && entry.command.kind === "prepare" && entry.command.options.offline);

/** Where the destination stands when it goes about `kind`, which is not Finish. `ended`: what was incoming has been ended. */
export function destinationMoment(
  history: History,
  { kind, ended = false }: { kind: CommandKind; ended?: boolean },
): DestinationMoment {
  const decision = decisionOf(history);
  if (kind === "unstage") {
    if (decision?.cancelled === false) return "sweepingDecided";
    if (!ended && isArriving(history)) return "sweepingArrival";
    if (hasMilestone(history, "staging")) return "sweeping";
    if (hasMilestone(history, "preparing")) return "sweepingUnproven";
    return wasAsked(history, "stage") || wasAsked(history, "prepare") ? "sweepingForeign" : "sweepingUnproven";
  }
  if (kind === "settle") return "settling";
  if (kind === "prepare") return "preparing";
  return hasMilestone(history, "staging") ? "staging" : "untouched";
}
