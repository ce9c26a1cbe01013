/**
 * The recovery table of the destination: moment x found -> what is done. A moment or a find without a row does not compile.
 *
 * I7: what was decided here first stands. I8: no row ends a copy that runs, nor an incoming one that is not this migration's.
 */
import type { CommandKind, DomainRef } from "#protocol/command";
import type { FaultCode } from "#protocol/fault";
import { type DestinationMoment, destinationMoment, type Found, foundOf } from "./moment.ts";
import type { JournalEntry } from "./ports.ts";
import type { Probe } from "./probe.ts";
import { type Automatic, type Row, type Rows, type Stranded, strandFault } from "./recovery.ts";

/**
 * - `stage`: the definition and its tree are made, over this migration's own earlier try too.
 * - `refuse`: they are not; what is here is left alone.
 * - `prepare`: Prepare is called (again).
 * - `callFinish`: libvirt is asked to end the incoming domain as it was decided.
 * - `lookAgain`: libvirt is still at it.
 * - `stateStarted`, `stateDestroyed`: the receipt says so, because the domain shows it.
 * - `settle`: tree, current and autostart are verified and set.
 * - `endIncoming`: giving up is decided, then Finish (cancelled) ends the incoming domain.
 * - `sweep`: the definition goes, with its records.
 * - `sweepIfProven`: the same if it holds exactly the bundle's tree, else it is left.
 * - `leave`: it is not this migration's, and stays.
 * - `done`: nothing is left.
 */
export type DestinationAction =
  | "stage"
  | "refuse"
  | "prepare"
  | "callFinish"
  | "lookAgain"
  | "stateStarted"
  | "stateDestroyed"
  | "settle"
  | "endIncoming"
  | "sweep"
  | "sweepIfProven"
  | "leave"
  | "done";

/** How long an incoming domain whose connection is lost may take to be destroyed by libvirt, before Prepare is repeated. */
const autodestroyMsMax = 30_000;
/** How long a domain may look undecided after Finish or after its connection was lost. */
const undecidedMsMax = 60_000;

type DestinationRow = Row<DestinationAction>;
const row = (
  action: DestinationAction,
  ends: Automatic<DestinationAction>["ends"],
  why: string,
): Automatic<DestinationAction> => ({ do: action, why, ends });

const stage = row("stage", "either", "nobody's domain is in the way");
const stageOver = row("stage", "either", "the definition is this migration's own, from before it was cut off");
const defined = row(
  "refuse",
  "rolledBack",
  "somebody defined it here: a definition that is not ours is never overwritten",
);
const active = row("refuse", "rolledBack", "a copy of somebody else's is active here");
const prepare = row(
  "prepare",
  "either",
  "what an earlier Prepare made is gone with its connection; what was staged is there",
);
const callFinish = row("callFinish", "either", "the incoming domain waits for Finish and has never run here");
const stateStarted = row(
  "stateStarted",
  "completed",
  "it was taken over: an incoming domain that failed would be gone",
);
const neverRan = row("stateDestroyed", "rolledBack", "no QEMU is left here; what is defined is what was staged");
const settle = row("settle", "completed", "it has arrived; what it does since is its owner's business");
const endIncoming = row("endIncoming", "rolledBack", "Finish was never called for it, so it has never run here");
const endArrival = row(
  "endIncoming",
  "rolledBack",
  "nothing of it runs, but libvirt's job holds the definition until Finish",
);
const sweep = row("sweep", "rolledBack", "it is this migration's definition, and nothing runs by it");
const sweepIfProven = row(
  "sweepIfProven",
  "rolledBack",
  "without its journal only the whole tree of the bundle is proof enough",
);
const leave = row("leave", "rolledBack", "it is not this migration's");
const done = row("done", "rolledBack", "nothing is left here");

const dying: DestinationRow = {
  ...row("lookAgain", "either", "libvirt ends an incoming domain whose connection is lost"),
  patienceMs: autodestroyMsMax,
  otherwise: "refuse",
};
const undecided: DestinationRow = {
  ...row("lookAgain", "either", "it can wait for nobody any more: libvirt ends it, or shows what it has become"),
  patienceMs: undecidedMsMax,
  otherwise: "callFinish",
};
/** The action of each row that finds a copy here that nobody may touch. */
const lookAtBoth =
  "Look at both copies before anything else (`virsh domstate UUID --reason` on both hosts); the source must not be resumed while this one is there.";
const arrivedAnyway: DestinationRow = {
  do: "strand",
  cause: '"NAME" runs on the destination, although it was to be given up there. It was not touched.',
  action: `${lookAtBoth} With it stopped here (\`virsh destroy UUID\`), the way back goes on by itself.`,
};
const mayHaveRun: Stranded = {
  do: "strand",
  cause: 'The destination has booted in the instant of Finish: nobody can say whether "NAME" ran on it before.',
  action:
    "Look whether it wrote to its disks there (their times, the guest's own log). If it ran: `virsh start UUID` on the destination. If not: `virsh undefine UUID --snapshots-metadata --checkpoints-metadata --keep-nvram --keep-tpm` there, and it goes on on its source; do that also if anybody has said that this host is fenced. Either way the migration then ends by itself.",
};
const mayHaveEnded: DestinationRow = {
  do: "strand",
  cause:
    'libvirt says that "NAME" has ended by itself on the destination in the instant of Finish: its guest has run and ended, or its QEMU has died before it ever ran. Both look the same.',
  action: mayHaveRun.action,
};
const decidedToStart: DestinationRow = {
  do: "strand",
  cause: '"NAME" is active on the destination, where Finish was decided. It was not touched.',
  action: `${lookAtBoth} With it stopped here (\`virsh destroy UUID\`), the way back goes on by itself.`,
};
const notTakenOver: DestinationRow = {
  do: "strand",
  cause: "The domain on the destination is not settled: it was not taken over.",
  action:
    "Look at it with `virsh domstate UUID --reason` and at its log /var/log/libvirt/qemu/NAME.log on the destination.",
};
const vanished: DestinationRow = {
  do: "strand",
  cause: "The domain on the destination is not settled: it is gone, though Finish had started it.",
  action: "Find out who removed it; its definition and its tree are in the bundle (`vmferry bundle show`).",
};

export const destinationRecovery: Readonly<Record<DestinationMoment, Rows<DestinationAction>>> = {
  untouched: {
    absent: stage,
    inactive: defined,
    endedItself: defined,
    running: active,
    ownerPaused: active,
    migrationPaused: active,
    outgoing: active,
    outgoingPaused: active,
    outgoingOwnerPaused: active,
    incoming: active,
    otherJob: active,
  },
  staging: {
    absent: stage,
    inactive: stageOver,
    endedItself: stageOver,
    running: active,
    ownerPaused: active,
    migrationPaused: active,
    outgoing: active,
    outgoingPaused: active,
    outgoingOwnerPaused: active,
    incoming: active,
    otherJob: active,
  },
  preparing: {
    absent: prepare,
    inactive: prepare,
    endedItself: prepare,
    running: dying,
    ownerPaused: dying,
    migrationPaused: dying,
    outgoing: dying,
    outgoingPaused: dying,
    outgoingOwnerPaused: dying,
    incoming: dying,
    otherJob: dying,
  },
  finishing: {
    absent: neverRan,
    inactive: neverRan,
    endedItself: mayHaveEnded,
    running: stateStarted,
    ownerPaused: stateStarted,
    migrationPaused: callFinish,
    outgoing: stateStarted,
    outgoingPaused: stateStarted,
    outgoingOwnerPaused: stateStarted,
    incoming: callFinish,
    otherJob: stateStarted,
  },
  finishingCut: {
    absent: neverRan,
    inactive: neverRan,
    endedItself: mayHaveEnded,
    running: stateStarted,
    ownerPaused: stateStarted,
    migrationPaused: undecided,
    outgoing: stateStarted,
    outgoingPaused: stateStarted,
    outgoingOwnerPaused: stateStarted,
    incoming: undecided,
    otherJob: stateStarted,
  },
  finishingRefused: {
    absent: neverRan,
    inactive: neverRan,
    endedItself: neverRan,
    running: stateStarted,
    ownerPaused: stateStarted,
    migrationPaused: undecided,
    outgoing: stateStarted,
    outgoingPaused: stateStarted,
    outgoingOwnerPaused: stateStarted,
    incoming: undecided,
    otherJob: stateStarted,
  },
  finishingBooted: {
    absent: row(
      "stateDestroyed",
      "rolledBack",
      "Finish writes the definition before the guest runs, and a staged one that is gone was taken away by a person",
    ),
    inactive: mayHaveRun,
    endedItself: mayHaveEnded,
    running: stateStarted,
    ownerPaused: stateStarted,
    migrationPaused: undecided,
    outgoing: stateStarted,
    outgoingPaused: stateStarted,
    outgoingOwnerPaused: stateStarted,
    incoming: undecided,
    otherJob: stateStarted,
  },
  arriving: {
    absent: neverRan,
    inactive: row("stateStarted", "completed", "a definition is all that arrives of a domain that is not running"),
    endedItself: row("stateStarted", "completed", "a definition is all that arrives of a domain that is not running"),
    running: undecided,
    ownerPaused: undecided,
    migrationPaused: undecided,
    outgoing: undecided,
    outgoingPaused: undecided,
    outgoingOwnerPaused: undecided,
    incoming: undecided,
    otherJob: undecided,
  },
  cancelling: {
    absent: neverRan,
    inactive: neverRan,
    endedItself: neverRan,
    running: stateStarted,
    ownerPaused: stateStarted,
    migrationPaused: callFinish,
    outgoing: stateStarted,
    outgoingPaused: stateStarted,
    outgoingOwnerPaused: stateStarted,
    incoming: callFinish,
    otherJob: stateStarted,
  },
  cancellingCut: {
    absent: neverRan,
    inactive: neverRan,
    endedItself: neverRan,
    running: stateStarted,
    ownerPaused: stateStarted,
    migrationPaused: undecided,
    outgoing: stateStarted,
    outgoingPaused: stateStarted,
    outgoingOwnerPaused: stateStarted,
    incoming: undecided,
    otherJob: stateStarted,
  },
  settling: {
    absent: vanished,
    inactive: settle,
    endedItself: settle,
    running: settle,
    ownerPaused: settle,
    migrationPaused: notTakenOver,
    outgoing: settle,
    outgoingPaused: notTakenOver,
    outgoingOwnerPaused: settle,
    incoming: notTakenOver,
    otherJob: settle,
  },
  sweeping: {
    absent: done,
    inactive: sweep,
    endedItself: sweep,
    running: arrivedAnyway,
    ownerPaused: arrivedAnyway,
    migrationPaused: endIncoming,
    outgoing: arrivedAnyway,
    outgoingPaused: arrivedAnyway,
    outgoingOwnerPaused: arrivedAnyway,
    incoming: endIncoming,
    otherJob: arrivedAnyway,
  },
  sweepingArrival: {
    absent: done,
    inactive: endArrival,
    endedItself: endArrival,
    running: arrivedAnyway,
    ownerPaused: arrivedAnyway,
    migrationPaused: endIncoming,
    outgoing: arrivedAnyway,
    outgoingPaused: arrivedAnyway,
    outgoingOwnerPaused: arrivedAnyway,
    incoming: endIncoming,
    otherJob: arrivedAnyway,
  },
  sweepingDecided: {
    absent: done,
    inactive: sweep,
    endedItself: sweep,
    running: decidedToStart,
    ownerPaused: decidedToStart,
    migrationPaused: decidedToStart,
    outgoing: decidedToStart,
    outgoingPaused: decidedToStart,
    outgoingOwnerPaused: decidedToStart,
    incoming: decidedToStart,
    otherJob: decidedToStart,
  },
  sweepingForeign: {
    absent: done,
    inactive: leave,
    endedItself: leave,
    running: leave,
    ownerPaused: leave,
    migrationPaused: leave,
    outgoing: leave,
    outgoingPaused: leave,
    outgoingOwnerPaused: leave,
    incoming: leave,
    otherJob: leave,
  },
  sweepingUnproven: {
    absent: done,
    inactive: sweepIfProven,
    endedItself: sweepIfProven,
    running: arrivedAnyway,
    ownerPaused: arrivedAnyway,
    migrationPaused: endIncoming,
    outgoing: arrivedAnyway,
    outgoingPaused: arrivedAnyway,
    outgoingOwnerPaused: arrivedAnyway,
    incoming: endIncoming,
    otherJob: arrivedAnyway,
  },
};

/** A row with what it was looked up by. */
export type DestinationFinding = Automatic<DestinationAction> & { moment: DestinationMoment; found: Found };

interface Asked {
  command: { kind: CommandKind; domain: DomainRef; migrationId: string };
  history: readonly JournalEntry[];
}

/** The row for what the probe found. Throws the fault of a stranded one under `code`. */
export function destinationRow(
  { command, history }: Asked,
  probe: Probe,
  { moment, code = "destination.active" }: { moment?: DestinationMoment; code?: FaultCode } = {},
): DestinationFinding {
  const { kind, domain, migrationId } = command;
  const at = moment ?? destinationMoment(history, { kind });
  const found = foundOf(probe);
  const looked = destinationRecovery[at][found];
  if (looked.do === "strand")
    throw strandFault(looked, { code, side: "destination", moment: at, found, domain, migrationId, history });
  return { ...looked, moment: at, found };
}
