/**
 * Perform on the source, its progress, its abort, and what is said when it fails.
 *
 * I2: after a failure the domain's state is looked up, never assumed; when it is paused by the migration it stays so until
 * a receipt comes. Perform itself has no timeout: it may take hours, and a timeout would be no answer.
 */
import type { LibvirtConnection } from "#libvirt/client";
import { ErrorCode, JobOperation } from "#libvirt/constants";
import { LibvirtError } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import { numberOf } from "#libvirt/typed-param";
import type { Blob } from "#protocol/blob";
import type { DomainState, PeerEnd, ReportBodyOf } from "#protocol/command";
import { Fault, type FaultBody } from "#protocol/fault";
import { inlineBytesMax } from "#protocol/limits";
import { confirmBy } from "./confirm.ts";
import { performParams } from "./flags.ts";
import {
  type Armed,
  arm,
  armedOf,
  type Handed,
  handedOf,
  handOver,
  keepResult,
  type Stated,
  withdrawResult,
} from "./hand-over.ts";
import { faultBodyOf, faultOf, isNoAnswer } from "./libvirt-fault.ts";
import { type SourceMoment, sourceMoment } from "./moment.ts";
import {
  abortAsked,
  calledOff,
  changedAfterBegin,
  PerformWatch,
  performing,
  performRefused,
  performStatistics,
} from "./perform-watch.ts";
import type { Step, Work } from "./ports.ts";
import { jobStatistics, lookUp, mustLookUp, type Probe, persistently, probeDomain } from "./probe.ts";
import { overdue } from "./recovery.ts";
import { sourceRow } from "./source-recovery.ts";
import { StepFault } from "./step-fault.ts";
import { entriesOf, readBundleTree, type Tree } from "./tree-reader.ts";

/** Time between two looks at a domain that libvirt is still settling; how many there are is the row's. */
const resumedLookMs = 250;
/** How long the job of a Perform that has been called may take to be seen by an abort; its watch sees it in any case. */
const abortMsMax = 2_000;

export const perform: Step<"perform"> = async (work) => {
  if (work.resumed) return takeUp(work);
  const { domain, flags, uri, bundle, options, cookie } = work.command;
  let cookieIn: Uint8Array;
  let wanted: Tree | null;
  let armed: Armed;
  let libvirt: LibvirtConnection;
  let dom: RemoteDomain;
  try {
    cookieIn = await work.payloads.read(cookie);
    wanted = bundle === null ? null : await readBundleTree(entriesOf(work, await work.payloads.downloadBundle(bundle)));
    libvirt = (await work.connection()).libvirt;
    dom = await mustLookUp(libvirt, domain);
    await mustBeIdle(work, libvirt);
    // Last, and while the guest runs: from here on both shims can end it without anybody else.
    armed = await arm(work);
    if (work.happened(abortAsked)) throw calledOff();
    await work.milestone(performing);
  } catch (error) {
    // Nothing was begun: whatever the domain does, it does not do for this migration.
    await work.milestone(performRefused).catch(() => {});
    throw await failedPerform(work, { error, begun: false, armed: null });
  }
  const release = work.peers.hold(armed.ticket.destination);
  const watch = new PerformWatch(work, dom, wanted);
  watch.start();
  try {
    let cookieOut: Uint8Array;
    try {
      const params = performParams(options, uri);
      const call = { dom, dconnuri: null, params, cookieIn, flags };
      cookieOut = (await libvirt.call(procedures.domainMigratePerform3Params, call)).cookieOut;
    } catch (error) {
      throw await failedPerform(work, { error, begun: true, armed, stopped: watch.stopped });
    } finally {
      watch.end();
    }
    // The guest is stopped now: nothing below waits for anybody but the two hosts.
    const changed = await watch.verdict(libvirt).catch((error: unknown) => afterPerform(error));
    if (changed !== null) {
      const fault = typeof changed === "string" ? changedAfterBegin(changed) : changed;
      throw await givenUp(work, armed, fault.toBody(), "paused");
    }
    return await concluded(work, armed, await keepResult(work, cookieOut), dom);
  } finally {
    release();
  }
};

/** Perform has succeeded and its result is kept: it is handed over, and the destination's receipt is done. */
async function concluded(
  work: Work<"perform">,
  armed: Armed,
  handed: Handed,
  dom: RemoteDomain | null,
): Promise<ReportBodyOf<"perform">> {
  const askedAt = work.now();
  const bytes = Buffer.from(handed.cookie ?? "", "base64");
  let stated = await handOver(work, armed, handed).catch(() => null);
  let cookie: Blob | null = null;
  try {
    if (stated === null) ({ cookie, stated } = await relayOrAsk(work, armed, handed, bytes));
  } catch (error) {
    throw new StepFault(afterPerform(error).toBody(), "paused");
  }
  // Where the guest goes on here, it is not kept waiting for figures.
  const statistics = await statisticsOf(work, stated?.receipt.outcome === "destroyed" ? null : dom);
  if (stated === null) return { kind: "perform", cookie, statistics, ended: null };
  const ended = await endBy(work, stated, askedAt);
  // Only the functions' relay needs cookie C; for the record it is sent if it can be.
  cookie = await work.payloads.write(bytes).catch(() => null);
  return { kind: "perform", cookie, statistics, ended };
}

/** Between two askings while the bucket is waited for; the guest is stopped. */
const relayAskMs = 1_000;

/** Cookie C for the functions' relay. A large one goes by the bucket; while that is away as well, the destination is asked on,
 *  so that whoever is reached first ends it. */
async function relayOrAsk(
  work: Work<"perform">,
  armed: Armed,
  handed: Handed,
  bytes: Uint8Array,
): Promise<{ cookie: Blob | null; stated: Stated | null }> {
  const writing = work.payloads.write(bytes).then((cookie) => ({ cookie, stated: null }));
  // Looked at below, or not at all once the destination has answered.
  writing.catch(() => {});
  for (;;) {
    const first = await Promise.race([writing, work.sleep(relayAskMs)]);
    if (first !== undefined) return first;
    const stated = await handOver(work, armed, handed).catch(() => null);
    if (stated !== null) return { cookie: null, stated };
  }
}

/** Figures are no reason to say that Perform has failed. */
async function statisticsOf(work: Work<"perform">, dom: RemoteDomain | null) {
  const none = { downtimeMs: null, transferredBytes: null, totalMs: null };
  if (dom === null) return none;
  return work
    .inventory()
    .then((libvirt) => performStatistics(libvirt, dom))
    .catch(() => none);
}

/** Gives the domain up or takes it back. What cannot be done now is asked for again by the functions, from a paused source. */
async function endBy(work: Work<"perform">, stated: Stated, askedAt: string): Promise<PeerEnd> {
  const { receipt, fault } = stated;
  const statedAt = work.now();
  const bytes = Buffer.from(stated.cookie ?? "", "base64");
  const source = await confirmBy(work, receipt, bytes).catch(() => "paused" as const);
  const small = bytes.byteLength > 0 && bytes.byteLength <= inlineBytesMax;
  return {
    receipt,
    source,
    fault,
    cookie: small ? await work.payloads.write(bytes) : null,
    finishMs: msBetween(askedAt, statedAt),
    confirmMs: msBetween(statedAt, work.now()),
  };
}

/** Figures for people; a clock that was set back makes one of them 0. */
const msBetween = (from: string, to: string) => Math.max(0, Date.parse(to) - Date.parse(from));

/** An earlier run of this Perform was cut off. Its answer, and cookie C with it, is lost unless it was kept. */
async function takeUp(work: Work<"perform">): Promise<ReportBodyOf<"perform">> {
  const armed = armedOf(work.history);
  const handed = handedOf(work.history);
  if (armed === null || handed?.outcome !== "performed")
    throw await failedPerform(work, { error: null, begun: work.happened(performing), armed });
  const state = await resumedByHand(work);
  if (state !== null) throw await givenUp(work, armed, runsAgain, state, undefined, await withdrawResult(work));
  return concluded(work, armed, handed, null);
}

/** The source's state when somebody has let it run again although Perform had succeeded; null: not so, or libvirt does not
 *  answer at once. The guest is stopped, so a daemon that is away is not waited for: it resumes nobody meanwhile. */
async function resumedByHand(work: Work<"perform">): Promise<DomainState | null> {
  if (sourceMoment(work, work.command) !== "performed") return null;
  try {
    const probe = await probeDomain(await work.inventory(), work.command.domain.uuid);
    return sourceRow(work, probe).do === "withdraw" ? stateOf(probe) : null;
  } catch {
    return null;
  }
}

const runsAgain: FaultBody = {
  code: "perform.failed",
  cause: "Somebody let the domain run again on the source after Perform, before the destination had stated anything.",
  action: "Leave a domain alone that a migration has paused. The destination's copy is ended; then migrate again.",
  retry: "safe",
};

const stateOf = (probe: Probe): DomainState => (probe.present ? probe.state : "nostate");

/** Perform is given up: the destination ends its copy, and the source goes on by the receipt that says so (I2). */
async function givenUp(
  work: Work<"perform">,
  armed: Armed | null,
  body: FaultBody,
  state: DomainState | undefined,
  cause?: unknown,
  withdrawn: Handed | null = null,
): Promise<StepFault> {
  const askedAt = work.now();
  const handed = armed === null ? null : (withdrawn ?? (await keepResult(work, null)));
  const stated = armed === null || handed === null ? null : await handOver(work, armed, handed).catch(() => null);
  if (stated === null) return new StepFault(body, state, { cause });
  const { receipt } = stated;
  // Somebody's job that does not end keeps the domain: then nothing is done to it here.
  if (state === undefined) return new StepFault(body, state, { cause, receipt });
  const { source } = await endBy(work, stated, askedAt);
  return new StepFault(body, source === "gone" ? "nostate" : source, { cause, receipt });
}

/** The memory is over there, but what has to be known of it here is not. */
function afterPerform(error: unknown): Fault {
  return faultOf(error, {
    code: "perform.failed",
    retry: "safe",
    what: "Perform ended, but its end could not be settled on the source",
    action: "Migrate again when libvirt and the bucket answer.",
  });
}

/** Somebody's own job, a `virsh migrate` say, would be watched and aborted as if it were ours. */
async function mustBeIdle(work: Work<"perform">, libvirt: LibvirtConnection): Promise<void> {
  const probe = await probeDomain(libvirt, work.command.domain.uuid);
  const { do: action, found } = sourceRow(work, probe, { moment: "begun" });
  if (action === "goOn") return;
  if (found === "absent" || found === "inactive")
    throw new Fault({
      code: "domain.state",
      cause: `The domain was ${found === "absent" ? "taken away" : "shut off"} after Begin. Perform was not called.`,
      action: "Look at why, then migrate again.",
      retry: "safe",
    });
  const job = probe.present && probe.job !== "none" ? `libvirt job (${probe.job})` : "migration, which has paused it,";
  throw new Fault({
    code: "domain.busy",
    cause: `A ${job} that is not this migration's was begun on the domain after Begin. It was not touched.`,
    action: "Wait for it, or end it with `virsh domjobabort`; then migrate again.",
    retry: "safe",
  });
}

interface PerformEnd {
  /** Null: an earlier answer was lost. */
  error: unknown;
  /** False: Perform3 was not called, so no job here is ours. */
  begun: boolean;
  /** With it the destination is asked to end its copy. */
  armed: Armed | null;
  /** Why it was aborted by its watch. */
  stopped?: Fault | null;
}

/** Looks at the source until its state is settled, and says what failed. */
async function failedPerform(
  work: Work<"perform">,
  { error, begun, armed, stopped = null }: PerformEnd,
): Promise<StepFault> {
  const lost = error === null || isNoAnswer(error);
  let body: FaultBody;
  if (stopped !== null) body = stopped.toBody();
  else if (lost)
    body = {
      code: "perform.failed",
      cause: begun
        ? "The connection to libvirt on the source was lost during Perform, and its answer with it."
        : "The source's shim or its connection to libvirt was lost before Perform began.",
      action: "The destination's copy is ended first, then the source goes on; migrate again.",
      retry: "safe",
    };
  else
    body = faultBodyOf(error, {
      code: "perform.failed",
      what: "Perform on the source failed",
      action: "The source goes on running. Remove what libvirt names, then migrate again.",
      retry: "safe",
    });
  const state = await settledState(work, begun ? (lost ? "performing" : "failing") : "uncalled");
  return givenUp(work, begun ? armed : null, body, state, error);
}

/**
 * The source's state once no outgoing job of ours runs any more, by the recovery table. Undefined when a job stays that is
 * not to be ended: then nothing is known, and the source waits for a receipt (I2).
 */
async function settledState(work: Work<"perform">, moment: SourceMoment): Promise<DomainState | undefined> {
  const { uuid } = work.command.domain;
  for (let waitedMs = 0; ; waitedMs += resumedLookMs) {
    const probe = await persistently(work, (libvirt) => probeDomain(libvirt, uuid));
    const row = sourceRow(work, probe, { moment });
    const action = overdue(row, waitedMs) ?? row.do;
    if (action === "handOver" || action === "callOff") return stateOf(probe);
    if (action === "onlyHandOver") return undefined;
    if (action === "abortJob") await abortOutgoing(await work.inventory(), uuid).catch(() => false);
    await work.sleep(resumedLookMs);
  }
}

/** Ends an outgoing migration job. False when there was none to end. */
async function abortOutgoing(libvirt: LibvirtConnection, uuid: string): Promise<boolean> {
  const dom = await lookUp(libvirt, uuid);
  if (dom === null) return false;
  const stats = await jobStatistics(libvirt, dom, false);
  if (stats === null || numberOf(stats.params, "operation") !== JobOperation.MIGRATION_OUT) return false;
  try {
    await libvirt.call(procedures.domainAbortJob, { dom });
    return true;
  } catch (error) {
    if (error instanceof LibvirtError && error.code === ErrorCode.OPERATION_INVALID) return false;
    throw error;
  }
}

/**
 * Asks Perform to end, wherever it is: one that still fetches its payloads does not begin, one whose job is not seen yet is
 * aborted by its watch when it is. False: it has ended already. Perform's own failure is reported by Perform.
 */
export const abort: Step<"abort"> = async (work) => {
  const { uuid } = work.command.domain;
  await work.milestone(abortAsked);
  for (let waitedMs = 0; ; waitedMs += resumedLookMs) {
    // Before Perform3 no job is ours: somebody's own `virsh migrate` is left alone.
    if (!work.happened(performing)) return { kind: "abort", aborted: !work.happened(performRefused) };
    if (await abortOutgoing(await work.inventory(), uuid)) return { kind: "abort", aborted: true };
    const probe = await probeDomain(await work.inventory(), uuid);
    const ended = !probe.present || probe.pausedByMigration || waitedMs >= abortMsMax;
    if (ended) return { kind: "abort", aborted: false };
    await work.sleep(resumedLookMs);
  }
};
