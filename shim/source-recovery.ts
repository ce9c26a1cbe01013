/**
 * The recovery table of the source: moment x found -> what is done. A moment or a find without a row does not compile.
 *
 * I1, I8: no row gives the domain up while it runs here. I2: no row resumes it without a receipt. I3: a tree that was taken
 * away is given back before anything else.
 */
import type { CommandKind, DomainRef, Receipt } from "#protocol/command";
import type { FaultCode } from "#protocol/fault";
import { type Found, foundOf, type Known, type SourceMoment, sourceMoment } from "./moment.ts";
import type { Probe } from "./probe.ts";
import { type Automatic, type Row, type Rows, strandFault } from "./recovery.ts";

/**
 * - `goOn`: the step is carried out (again).
 * - `refuse`: it is not, and what is found here is left alone.
 * - `completeTree`: the records come back from the bundle, then the step goes on.
 * - `callOff`: Perform is not called; the domain is left as it is.
 * - `lookAgain`: libvirt is still at it.
 * - `abortJob`: our job, which nobody can end properly any more, is aborted; then it is looked again.
 * - `handOver`: the destination is told how Perform ended; the domain stays as it is until its receipt is here.
 * - `withdraw`: as `handOver`, but the destination is asked to end its copy although Perform has succeeded.
 * - `onlyHandOver`: the same, and here nothing is done whatever the destination says: a job that is not to be ended is in the way.
 * - `giveUp`: Confirm, and the definition goes.
 * - `takeBack`: Confirm (cancelled), and the guest is resumed.
 * - `endJob`: Confirm (cancelled) takes libvirt's job off; the guest stays paused as its owner left it.
 * - `keep`: nothing has to be done to the domain.
 * - `done`: it is done already.
 * - `restoreTree`: the tree is made what it was and compared.
 * - `reportAbsent`: that it is gone is a fact, and the end.
 */
export type SourceAction =
  | "goOn"
  | "refuse"
  | "completeTree"
  | "callOff"
  | "lookAgain"
  | "abortJob"
  | "handOver"
  | "withdraw"
  | "onlyHandOver"
  | "giveUp"
  | "takeBack"
  | "endJob"
  | "keep"
  | "done"
  | "restoreTree"
  | "reportAbsent";

/** How long libvirt is given to resume the source after its own failed Perform. */
const resumedMsMax = 30_000;
/** How long a job may go on that should have ended: QEMU cancels within seconds, so longer it is somebody else's. */
const endingMsMax = 120_000;
/** After PERFORM3_DONE the job is still there and cannot be aborted (qemuDomainAbortJobFlags): paused is the answer then. */
const undoneMsMax = 2_000;

type SourceRow = Row<SourceAction>;
const row = (action: SourceAction, ends: Automatic<SourceAction>["ends"], why: string): Automatic<SourceAction> => ({
  do: action,
  why,
  ends,
});

const goOn = row("goOn", "either", "nothing stands in its way");
const gone = row(
  "refuse",
  "rolledBack",
  "somebody took the domain away; there is nothing to move, and the bundle keeps its tree",
);
const theirs = row("refuse", "rolledBack", "somebody's own job or migration holds the domain");
const complete = row(
  "completeTree",
  "either",
  "this migration took records away, and no job keeps a redefine out for good",
);
const notCalled = row(
  "callOff",
  "rolledBack",
  "Perform was not called, so whatever the domain does is not this migration's",
);
const notMovable = row(
  "callOff",
  "rolledBack",
  "it is not what Begin saw: Perform would be refused, or would be on somebody else's job",
);
const settled = row(
  "handOver",
  "rolledBack",
  "no job of ours is left; cookie C is lost with the answer, so the destination's copy is ended first",
);
const orphan = (otherwise: SourceAction, patienceMs: number): SourceRow => ({
  ...row("abortJob", "rolledBack", "libvirt carries on with a Perform whose answer nobody will get"),
  patienceMs,
  otherwise,
});
const ending = (otherwise: SourceAction, patienceMs: number): SourceRow => ({
  ...row("lookAgain", "rolledBack", "libvirt ends its own failed Perform and resumes the guest"),
  patienceMs,
  otherwise,
});
const handOn = row(
  "handOver",
  "either",
  "Perform has succeeded and its result is kept: the destination decides, and the guest waits for its receipt",
);
const resumedByHand = row(
  "withdraw",
  "rolledBack",
  "somebody has resumed the guest after Perform: the destination's memory is of before that, and must not be started",
);
const giveUp = row("giveUp", "completed", "the other copy is proven to run");
const isGivenUp = row("done", "completed", "it is given up already; what is here now is not this migration's");
const takeBack = row("takeBack", "rolledBack", "the pause is the migration's, and no other copy is left");
const endJob = row(
  "endJob",
  "rolledBack",
  "its owner had paused it before; only the job that is left after Perform has to end",
);
const keep = row("keep", "rolledBack", "no pause of the migration's is left to end");
const restoreTree = row("restoreTree", "rolledBack", "only the tree and autostart are left to be made what they were");
const reportAbsent = row("reportAbsent", "rolledBack", "somebody took the domain away: there is nothing to restore");

const twice: SourceRow = {
  do: "strand",
  cause: "The destination states that it runs the domain, but the source's copy is running too. Nothing was touched.",
  action:
    "Find out which copy is the right one (`virsh list --all` and the guest's own log on both hosts) and stop the other at once: `virsh destroy UUID` there. With the source's stopped, this ends by itself.",
};
const comesBack: SourceRow = {
  do: "strand",
  cause:
    "The destination has made its statement, but the domain is arriving on the source by another migration. Nothing was touched.",
  action:
    "Wait until that migration has ended, or end it with `virsh domjobabort UUID` on the host that sends; then this ends by itself.",
};
const lost: SourceRow = {
  do: "strand",
  cause: 'The destination has no copy of "NAME", and the source no longer knows it either.',
  action:
    "Define it again from its bundle (`vmferry bundle show`), then run `vmferry bundle restore FILE --host SOURCE`.",
};
const undecided: SourceRow = {
  do: "strand",
  cause: "The source's domain is still paused by the migration, and nobody stated what became of the other copy.",
  action:
    "Bring the destination's shim back. If that host is gone for good, power it off and run `vmferry migration resolve MIGRATION --fenced DESTINATION --reason TEXT`.",
};

export const sourceRecovery: Readonly<Record<SourceMoment, Rows<SourceAction>>> = {
  untouched: {
    absent: gone,
    inactive: goOn,
    endedItself: goOn,
    running: goOn,
    ownerPaused: goOn,
    migrationPaused: theirs,
    outgoing: theirs,
    outgoingPaused: theirs,
    outgoingOwnerPaused: theirs,
    incoming: theirs,
    otherJob: theirs,
  },
  stripping: {
    absent: gone,
    inactive: complete,
    endedItself: complete,
    running: complete,
    ownerPaused: complete,
    migrationPaused: complete,
    outgoing: complete,
    outgoingPaused: complete,
    outgoingOwnerPaused: complete,
    incoming: complete,
    otherJob: complete,
  },
  stripped: {
    absent: gone,
    inactive: complete,
    endedItself: complete,
    running: complete,
    ownerPaused: complete,
    migrationPaused: complete,
    outgoing: complete,
    outgoingPaused: complete,
    outgoingOwnerPaused: complete,
    incoming: complete,
    otherJob: complete,
  },
  begun: {
    absent: notMovable,
    inactive: notMovable,
    endedItself: notMovable,
    running: goOn,
    ownerPaused: goOn,
    migrationPaused: notMovable,
    outgoing: notMovable,
    outgoingPaused: notMovable,
    outgoingOwnerPaused: notMovable,
    incoming: notMovable,
    otherJob: notMovable,
  },
  uncalled: {
    absent: notCalled,
    inactive: notCalled,
    endedItself: notCalled,
    running: notCalled,
    ownerPaused: notCalled,
    migrationPaused: notCalled,
    outgoing: notCalled,
    outgoingPaused: notCalled,
    outgoingOwnerPaused: notCalled,
    incoming: notCalled,
    otherJob: notCalled,
  },
  failing: {
    absent: settled,
    inactive: settled,
    endedItself: settled,
    running: settled,
    ownerPaused: settled,
    migrationPaused: ending("handOver", resumedMsMax),
    outgoing: ending("onlyHandOver", endingMsMax),
    outgoingPaused: ending("onlyHandOver", endingMsMax),
    outgoingOwnerPaused: ending("onlyHandOver", endingMsMax),
    incoming: settled,
    otherJob: settled,
  },
  performing: {
    absent: settled,
    inactive: settled,
    endedItself: settled,
    running: settled,
    ownerPaused: settled,
    migrationPaused: settled,
    outgoing: orphan("onlyHandOver", endingMsMax),
    outgoingPaused: orphan("handOver", undoneMsMax),
    outgoingOwnerPaused: orphan("onlyHandOver", endingMsMax),
    incoming: settled,
    otherJob: settled,
  },
  performed: {
    absent: handOn,
    inactive: handOn,
    endedItself: handOn,
    running: resumedByHand,
    ownerPaused: handOn,
    migrationPaused: handOn,
    outgoing: resumedByHand,
    outgoingPaused: handOn,
    outgoingOwnerPaused: handOn,
    incoming: handOn,
    otherJob: resumedByHand,
  },
  givingUp: {
    absent: isGivenUp,
    inactive: giveUp,
    endedItself: giveUp,
    running: twice,
    ownerPaused: giveUp,
    migrationPaused: giveUp,
    outgoing: twice,
    outgoingPaused: giveUp,
    outgoingOwnerPaused: giveUp,
    incoming: comesBack,
    otherJob: twice,
  },
  givenUp: {
    absent: isGivenUp,
    inactive: isGivenUp,
    endedItself: isGivenUp,
    running: isGivenUp,
    ownerPaused: isGivenUp,
    migrationPaused: isGivenUp,
    outgoing: isGivenUp,
    outgoingPaused: isGivenUp,
    outgoingOwnerPaused: isGivenUp,
    incoming: isGivenUp,
    otherJob: isGivenUp,
  },
  takingBack: {
    absent: lost,
    inactive: keep,
    endedItself: keep,
    running: keep,
    ownerPaused: keep,
    migrationPaused: takeBack,
    outgoing: keep,
    outgoingPaused: takeBack,
    outgoingOwnerPaused: endJob,
    incoming: comesBack,
    otherJob: keep,
  },
  takenBack: {
    absent: lost,
    inactive: keep,
    endedItself: keep,
    running: keep,
    ownerPaused: keep,
    migrationPaused: keep,
    outgoing: keep,
    outgoingPaused: keep,
    outgoingOwnerPaused: keep,
    incoming: keep,
    otherJob: keep,
  },
  restoring: {
    absent: reportAbsent,
    inactive: restoreTree,
    endedItself: restoreTree,
    running: restoreTree,
    ownerPaused: restoreTree,
    migrationPaused: undecided,
    outgoing: restoreTree,
    outgoingPaused: undecided,
    outgoingOwnerPaused: restoreTree,
    incoming: restoreTree,
    otherJob: restoreTree,
  },
  restoringFree: {
    absent: reportAbsent,
    inactive: restoreTree,
    endedItself: restoreTree,
    running: restoreTree,
    ownerPaused: restoreTree,
    migrationPaused: restoreTree,
    outgoing: restoreTree,
    outgoingPaused: restoreTree,
    outgoingOwnerPaused: restoreTree,
    incoming: restoreTree,
    otherJob: restoreTree,
  },
};

/** A row with what it was looked up by, and the fault to throw where it is stranded. */
export type SourceFinding = Automatic<SourceAction> & { moment: SourceMoment; found: Found };

interface Asked extends Known {
  command: { kind: CommandKind; domain: DomainRef; migrationId: string };
}

/** The row for what the probe found. Throws the fault of a stranded one under `code`. */
export function sourceRow(
  known: Asked,
  probe: Probe,
  {
    moment,
    told,
    code = "confirm.failed",
    also = "",
  }: { moment?: SourceMoment; told?: Receipt["outcome"]; code?: FaultCode; also?: string } = {},
): SourceFinding {
  const { history } = known;
  const { kind, domain, migrationId } = known.command;
  const at = moment ?? sourceMoment(known, told === undefined ? { kind } : { kind, told });
  const found = foundOf(probe);
  const looked = sourceRecovery[at][found];
  if (looked.do === "strand")
    throw strandFault(looked, { code, side: "source", moment: at, found, domain, migrationId, history, also });
  return { ...looked, moment: at, found };
}
