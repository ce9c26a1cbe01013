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
import type { FaultBody } from "#protocol/fault";
import type { Progress } from "#protocol/message";
import { performParams } from "./flags.ts";
import { faultBodyOf, isNoAnswer } from "./libvirt-fault.ts";
import type { Step, Work } from "./ports.ts";
import { jobStatistics, lookUp, mustLookUp, type Probe, persistently, probeDomain } from "./probe.ts";
import { StepFault } from "./step-fault.ts";
import { listTree, nodeKey, readBundleTree, snapshotChanged, type Tree } from "./tree-reader.ts";

/** Time between two reads of the job's statistics. */
const progressMs = 500;
/** The same until the job has been seen once: the snapshot list is compared as soon as the job keeps others out. */
const jobSoonMs = 25;
/** How long libvirt is given to resume the source after its own failed Perform, and time between two looks. */
const resumedMsMax = 30_000;
const resumedLookMs = 250;

export const perform: Step<"perform"> = async (work) => {
  const { domain, options, flags, uri, bundle } = work.command;
  // An earlier Perform's answer, and cookie C with it, is lost: only the state can be stated.
  if (work.resumed) throw await failedPerform(work, null);
  let cookieIn: Uint8Array;
  let wanted: Tree | null;

  let libvirt: LibvirtConnection;
  let dom: RemoteDomain;
  try {
    cookieIn = await work.payloads.read(work.command.cookie);
    wanted = bundle === null ? null : await readBundleTree(await work.payloads.downloadBundle(bundle));
    libvirt = (await work.connection()).libvirt;
    dom = await mustLookUp(libvirt, domain);
  } catch (error) {
    // Nothing was begun: whatever the domain does, it does not do for this migration.
    throw await failedPerform(work, error);
  }
  const watch = new PerformWatch(work, dom, wanted);
  watch.start();
  let cookieOut: Uint8Array;
  try {
    const params = performParams(options, uri);
    const call = { dom, dconnuri: null, params, cookieIn, flags };
    cookieOut = (await libvirt.call(procedures.domainMigratePerform3Params, call)).cookieOut;
  } catch (error) {
    throw await failedPerform(work, error, watch.changed);
  } finally {
    watch.end();
  }
  // The guest is stopped now: nothing below waits for anybody but this host.
  const changed = await watch.verdict(libvirt);
  if (changed !== null) throw new StepFault(snapshotChanged(changed).toBody(), "paused");
  const statistics = await performStatistics(libvirt, dom);
  try {
    return { kind: "perform", cookie: await work.payloads.write(cookieOut), statistics };
  } catch (error) {
    // The memory is over there, but nobody can be told: the way back is open, and the source waits for its receipt (I2).
    const words = { what: "Perform's cookie could not be sent", action: "Migrate again when the bucket answers." };
    throw new StepFault(faultBodyOf(error, { code: "perform.failed", retry: "safe", ...words }), "paused");
  }
};

/** Watches a running Perform over the inventory connection: progress, and once whether the snapshot list is still the bundle's. */
class PerformWatch {
  readonly #work: Work<"perform">;
  readonly #dom: RemoteDomain;
  readonly #wanted: Tree | null;
  #ended = false;
  #compared = false;
  /** What changed, in words; null while nothing is known to have. */
  changed: string | null = null;

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
    return this.changed;
  }

  async #loop(): Promise<void> {
    while (!this.#ended) {
      try {
        const inventory = await this.#work.inventory();
        const stats = await jobStatistics(inventory, this.#dom, false);
        if (this.#ended) return;
        if (stats !== null && numberOf(stats.params, "operation") === JobOperation.MIGRATION_OUT) {
          if (!this.#compared) {
            await this.#compare(inventory);
            if (this.changed !== null) await inventory.call(procedures.domainAbortJob, { dom: this.#dom });
          }
          if (!this.#ended) this.#work.progress(progressOf(stats.params));
        }
      } catch {
        // Progress is a courtesy; Perform's own answer decides, and an abort that came too late is seen in `verdict`.
      }
      await this.#work.sleep(this.#compared ? progressMs : jobSoonMs);
    }
  }

  async #compare(libvirt: LibvirtConnection): Promise<void> {
    const listing = await listTree(libvirt, this.#dom);
    const names = [
      ...listing.snapshots.map(({ name }) => nodeKey("snapshot", name)),
      ...listing.checkpoints.map(({ name }) => nodeKey("checkpoint", name)),
    ];
    const nodes = this.#wanted?.nodes ?? new Map();
    const added = names.find((name) => !nodes.has(name));
    if (added !== undefined) this.changed = `the ${added.replace("\n", ' "')}" was added after Begin`;
    else if (names.length !== nodes.size) this.changed = "a snapshot was deleted after Begin";
    else if (listing.current !== null && nodes.get(nodeKey("snapshot", listing.current))?.current !== true)
      this.changed = `"${listing.current}" was made current after Begin`;
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

/** Looks at the source until its state is settled, and says what failed. `error` null: an earlier answer was lost. */
async function failedPerform(work: Work<"perform">, error: unknown, changed: string | null = null): Promise<StepFault> {
  const lost = error === null || isNoAnswer(error);
  let body: FaultBody;
  if (changed !== null) body = snapshotChanged(changed).toBody();
  else if (lost)
    body = {
      code: "perform.failed",
      cause: "The connection to libvirt on the source was lost during Perform, and its answer with it.",
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
  const state = await settledState(work, lost);
  if (state === "shutoff" || state === "crashed") body = { ...body, action: endedAction(work.command.domain.name) };
  return new StepFault(body, state, error instanceof Error ? { cause: error } : {});
}

/** Its QEMU ended in Perform: to say that it goes on would be wrong. */
const endedAction = (name: string) =>
  `The domain does not run on the source any more: its QEMU ended (see /var/log/libvirt/qemu/${name}.log there). Start it there with \`virsh start\`.`;

/** The source's state once no outgoing job runs any more. A job that nobody can end properly (`lost`) is aborted first. */
async function settledState(work: Work<"perform">, lost: boolean): Promise<DomainState> {
  const { uuid } = work.command.domain;
  let waitedMs = 0;
  for (;;) {
    const probe: Probe = await persistently(work, (libvirt) => probeDomain(libvirt, uuid));
    if (!probe.present) return "nostate";
    const undecided = probe.job === "outgoing" || (probe.pausedByMigration && !lost);
    if (!undecided || (waitedMs >= resumedMsMax && probe.job !== "outgoing")) return probe.state;
    if (probe.job === "outgoing" && lost) {
      // After PERFORM3_DONE the job is still there and cannot be aborted; paused is the answer then.
      if (probe.pausedByMigration && waitedMs >= resumedLookMs * 8) return probe.state;
      await abortOutgoing(await work.inventory(), uuid).catch(() => false);
    }
    waitedMs += resumedLookMs;
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

/** Asks libvirt to end the outgoing job; Perform's own failure is reported by Perform. */
export const abort: Step<"abort"> = async (work) => ({
  kind: "abort",
  aborted: await abortOutgoing(await work.inventory(), work.command.domain.uuid),
});
