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
import { numberOf, type TypedParam } from "#libvirt/typed-param";
import type { DomainState, ReportBodyOf } from "#protocol/command";
import { Fault, type FaultBody } from "#protocol/fault";
import type { Progress } from "#protocol/message";
import { performParams } from "./flags.ts";
import { faultBodyOf, isNoAnswer } from "./libvirt-fault.ts";
import type { Step, Work } from "./ports.ts";
import { jobStatistics, lookUp, mustLookUp, type Probe, persistently, probeDomain } from "./probe.ts";
import { StepFault } from "./step-fault.ts";
import { entriesOf, listTree, nodeKey, readBundleTree, snapshotChanged, type Tree } from "./tree-reader.ts";

/** Time between two reads of the job's statistics. */
const progressMs = 500;
/** The same until the job has been seen once: the snapshot list is compared as soon as the job keeps others out. */
const jobSoonMs = 25;
/** How long libvirt is given to resume the source after its own failed Perform, and time between two looks. */
const resumedMsMax = 30_000;
const resumedLookMs = 250;
/** How long a job may go on that should have ended: QEMU cancels within seconds, so longer it is somebody else's. */
const endingMsMax = 120_000;
/** How long the job of a Perform that has been called may take to be seen by an abort; its watch sees it in any case. */
const abortMsMax = 2_000;

/** Milestones: Perform3 is being called; it never was, because of what stood in its way; somebody wants it to stop. */
const performing = "performing";
export const performRefused = "performRefused";
const abortAsked = "abortAsked";

export const perform: Step<"perform"> = async (work) => {
  const { domain, options, flags, uri, bundle } = work.command;
  // An earlier Perform's answer, and cookie C with it, is lost: only the state can be stated.
  if (work.resumed) throw await failedPerform(work, { error: null, begun: work.happened(performing) });
  let cookieIn: Uint8Array;
  let wanted: Tree | null;

  let libvirt: LibvirtConnection;
  let dom: RemoteDomain;
  try {
    cookieIn = await work.payloads.read(work.command.cookie);
    wanted = bundle === null ? null : await readBundleTree(entriesOf(work, await work.payloads.downloadBundle(bundle)));
    libvirt = (await work.connection()).libvirt;
    dom = await mustLookUp(libvirt, domain);
    await mustBeIdle(libvirt, domain.uuid);
    if (work.happened(abortAsked)) throw calledOff();
    await work.milestone(performing);
  } catch (error) {
    // Nothing was begun: whatever the domain does, it does not do for this migration.
    await work.milestone(performRefused).catch(() => {});
    throw await failedPerform(work, { error, begun: false });
  }
  const watch = new PerformWatch(work, dom, wanted);
  watch.start();
  let cookieOut: Uint8Array;
  try {
    const params = performParams(options, uri);
    const call = { dom, dconnuri: null, params, cookieIn, flags };
    cookieOut = (await libvirt.call(procedures.domainMigratePerform3Params, call)).cookieOut;
  } catch (error) {
    throw await failedPerform(work, { error, begun: true, stopped: watch.stopped });
  } finally {
    watch.end();
  }
  // The guest is stopped now: nothing below waits for anybody but this host.
  let changed: string | null;
  try {
    changed = await watch.verdict(libvirt);
  } catch (error) {
    throw afterPerform(error, "Perform ended, but the snapshot list could not be compared then", "Migrate again.");
  }
  if (changed !== null) throw new StepFault(changedAfterBegin(changed).toBody(), "paused");
  const statistics = await performStatistics(libvirt, dom);
  try {
    return { kind: "perform", cookie: await work.payloads.write(cookieOut), statistics };
  } catch (error) {
    throw afterPerform(error, "Perform's cookie could not be sent", "Migrate again when the bucket answers.");
  }
};

/** The memory is over there, but nobody can be told: the way back is open, and the source waits for its receipt (I2). */
function afterPerform(error: unknown, what: string, action: string): StepFault {
  return new StepFault(faultBodyOf(error, { code: "perform.failed", retry: "safe", what, action }), "paused");
}

const changedAfterBegin = (what: string) => snapshotChanged(what, "It was left as it is.");

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

function calledOff(): Fault {
  return new Fault({
    code: "migration.cancelled",
    cause: "Perform was called off: it was asked to stop before libvirt had begun it, or as soon as it had.",
    action: "Nothing to do: the domain stays on its source.",
    retry: "safe",
  });
}

/** Watches a running Perform over the inventory connection: progress, whether it is to stop, and once whether the snapshot
 *  list is still the bundle's. */
class PerformWatch {
  readonly #work: Work<"perform">;
  readonly #dom: RemoteDomain;
  readonly #wanted: Tree | null;
  #ended = false;
  #compared = false;
  #changed: string | null = null;
  /** Why this watch has aborted Perform; null: it has not. */
  stopped: Fault | null = null;

  constructor(work: Work<"perform">, dom: RemoteDomain, wanted: Tree | null) {
    this.#work = work;
    this.#dom = dom;
    this.#wanted = wanted;
  }

  start(): void {
    void this.#loop();
  }

  end(): void {
    this.#ended = true;
  }

  /** After Perform: what changed, compared now unless it was compared while the job kept everybody out. */
  async verdict(libvirt: LibvirtConnection): Promise<string | null> {
    if (!this.#compared) await this.#compare(libvirt);
    return this.#changed;
  }

  async #loop(): Promise<void> {
    while (!this.#ended) {
      try {
        const inventory = await this.#work.inventory();
        const stats = await jobStatistics(inventory, this.#dom, false);
        if (this.#ended) return;
        if (stats !== null && numberOf(stats.params, "operation") === JobOperation.MIGRATION_OUT) {
          if (!this.#compared) await this.#compare(inventory);
          const stop = this.#reasonToStop();
          if (stop !== null && this.stopped === null) {
            // Before the call: Perform may have ended by it when its answer comes.
            this.stopped = stop;
            await inventory.call(procedures.domainAbortJob, { dom: this.#dom }).catch(() => {
              this.stopped = null;
            });
          }
          if (!this.#ended) this.#work.progress(progressOf(stats.params));
        }
      } catch {
        // Progress is a courtesy; Perform's own answer decides, and an abort that came too late is seen in `verdict`.
      }
      await this.#work.sleep(this.#compared ? progressMs : jobSoonMs);
    }
  }

  #reasonToStop(): Fault | null {
    if (this.#changed !== null) return changedAfterBegin(this.#changed);
    return this.#work.happened(abortAsked) ? calledOff() : null;
  }

  async #compare(libvirt: LibvirtConnection): Promise<void> {
    const listing = await listTree(libvirt, this.#dom);
    const names = [
      ...listing.snapshots.map(({ name }) => nodeKey("snapshot", name)),
      ...listing.checkpoints.map(({ name }) => nodeKey("checkpoint", name)),
    ];
    const nodes = this.#wanted?.nodes ?? new Map();
    const added = names.find((name) => !nodes.has(name));
    if (added !== undefined) this.#changed = `the ${added.replace("\n", ' "')}" was added after Begin`;
    else if (names.length !== nodes.size) this.#changed = "a snapshot was deleted after Begin";
    else if (listing.current !== null && nodes.get(nodeKey("snapshot", listing.current))?.current !== true)
      this.#changed = `"${listing.current}" was made current after Begin`;
    this.#compared = true;
  }
}

/** Bytes and milliseconds as libvirt counts them (virDomainGetJobStats). */
function progressOf(params: readonly TypedParam[]): Progress {
  const of = (field: string) => numberOf(params, field) ?? 0;
  return {
    memory: {
      totalBytes: of("memory_total"),
      processedBytes: of("memory_processed"),
      remainingBytes: of("memory_remaining"),
      bytesPerSecond: of("memory_bps"),
      dirtyPagesPerSecond: of("memory_dirty_rate"),
      iteration: of("memory_iteration"),
    },
    disk: {
      totalBytes: of("disk_total"),
      processedBytes: of("disk_processed"),
      remainingBytes: of("disk_remaining"),
    },
    elapsedMs: of("time_elapsed"),
    expectedDowntimeMs: numberOf(params, "downtime") ?? null,
  };
}

async function performStatistics(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
): Promise<ReportBodyOf<"perform">["statistics"]> {
  const none = { downtimeMs: null, transferredBytes: null, totalMs: null };
  try {
    const stats = (await jobStatistics(libvirt, dom, true)) ?? (await jobStatistics(libvirt, dom, false));
    if (stats === null) return none;
    return {
      downtimeMs: numberOf(stats.params, "downtime") ?? null,
      transferredBytes: numberOf(stats.params, "memory_processed") ?? null,
      totalMs: numberOf(stats.params, "time_elapsed") ?? null,
    };
  } catch {
    // Perform has succeeded; figures are no reason to say otherwise.
    return none;
  }
}

interface PerformEnd {
  /** Null: an earlier answer was lost. */
  error: unknown;
  /** False: Perform3 was not called, so no job here is ours. */
  begun: boolean;
  /** Why it was aborted by its watch. */
  stopped?: Fault | null;
}

/** Looks at the source until its state is settled, and says what failed. */
async function failedPerform(work: Work<"perform">, { error, begun, stopped = null }: PerformEnd): Promise<StepFault> {
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
  return new StepFault(body, state, error instanceof Error ? { cause: error } : {});
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
