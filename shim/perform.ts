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
import type { DomainState, PeerEnd, ReportBodyOf } from "#protocol/command";
import { Fault, type FaultBody } from "#protocol/fault";
import { inlineBytesMax } from "#protocol/limits";
import { confirmBy } from "./confirm.ts";
import { performParams } from "./flags.ts";
import { type Armed, arm, armedOf, type Handed, handedOf, handOver, keepResult, type Stated } from "./hand-over.ts";
import { faultBodyOf, faultOf, isNoAnswer } from "./libvirt-fault.ts";
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
import { StepFault } from "./step-fault.ts";
import { entriesOf, readBundleTree, type Tree } from "./tree-reader.ts";

/** How long libvirt is given to resume the source after its own failed Perform, and time between two looks. */
const resumedMsMax = 30_000;
const resumedLookMs = 250;
/** How long a job may go on that should have ended: QEMU cancels within seconds, so longer it is somebody else's. */
const endingMsMax = 120_000;
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
    await mustBeIdle(libvirt, domain.uuid);
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
  const stated = await handOver(work, armed, handed).catch(() => null);
  const statistics = await statisticsOf(work, dom);
  const ended = stated === null ? null : await endBy(work, stated, askedAt);
  const bytes = Buffer.from(handed.cookie ?? "", "base64");
  try {
    return { kind: "perform", cookie: await work.payloads.write(bytes), statistics, ended };
  } catch (error) {
    // Only the functions' relay needs cookie C.
    if (ended !== null) return { kind: "perform", cookie: null, statistics, ended };
    throw new StepFault(afterPerform(error).toBody(), "paused");
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
  if (armed !== null && handed?.outcome === "performed") return concluded(work, armed, handed, null);
  throw await failedPerform(work, { error: null, begun: work.happened(performing), armed });
}

/** Perform is given up: the destination ends its copy, and the source goes on by the receipt that says so (I2). */
async function givenUp(
  work: Work<"perform">,
  armed: Armed | null,
  body: FaultBody,
  state: DomainState | undefined,
  cause?: unknown,
): Promise<StepFault> {
  const askedAt = work.now();
  const stated = armed === null ? null : await handOver(work, armed, await keepResult(work, null)).catch(() => null);
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
async function mustBeIdle(libvirt: LibvirtConnection, uuid: string): Promise<void> {
  const probe = await probeDomain(libvirt, uuid);
  if (!probe.present || probe.job === "none") return;
  throw new Fault({
    code: "domain.busy",
    cause: `A libvirt job (${probe.job}) that is not this migration's was begun on the domain after Begin. It was not touched.`,
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
  const state = begun ? await settledState(work, lost) : await stateNow(work);
  return givenUp(work, begun ? armed : null, body, state, error);
}

async function stateNow(work: Work<"perform">): Promise<DomainState> {
  const probe = await persistently(work, (libvirt) => probeDomain(libvirt, work.command.domain.uuid));
  return probe.present ? probe.state : "nostate";
}

/**
 * The source's state once no outgoing job runs any more. A job that nobody can end properly (`lost`) is aborted first.
 * Undefined when a job stays that is not to be ended: then nothing is known, and the source waits for a receipt (I2).
 */
async function settledState(work: Work<"perform">, lost: boolean): Promise<DomainState | undefined> {
  const { uuid } = work.command.domain;
  for (let waitedMs = 0; ; waitedMs += resumedLookMs) {
    const probe: Probe = await persistently(work, (libvirt) => probeDomain(libvirt, uuid));
    if (!probe.present) return "nostate";
    const undecided = probe.job === "outgoing" || (probe.pausedByMigration && !lost);
    if (!undecided || (waitedMs >= resumedMsMax && probe.job !== "outgoing")) return probe.state;
    if (waitedMs >= endingMsMax) return undefined;
    if (probe.job === "outgoing" && lost) {
      // After PERFORM3_DONE the job is still there and cannot be aborted; paused is the answer then.
      if (probe.pausedByMigration && waitedMs >= resumedLookMs * 8) return probe.state;
      await abortOutgoing(await work.inventory(), uuid).catch(() => false);
    }
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
