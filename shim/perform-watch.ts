/**
 * What is looked at while Perform runs, over the inventory connection so that nothing waits behind it: progress, whether it
 * is to stop, and once whether the snapshot list is still the bundle's.
 */
import type { LibvirtConnection } from "#libvirt/client";
import { JobOperation } from "#libvirt/constants";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import { numberOf, type TypedParam } from "#libvirt/typed-param";
import type { ReportBodyOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { Progress } from "#protocol/message";
import type { Work } from "./ports.ts";
import { jobStatistics } from "./probe.ts";
import { listTree, nodeKey, snapshotChanged, type Tree } from "./tree-reader.ts";

/** Time between two reads of the job's statistics. */
const progressMs = 500;
/** The same until the job has been seen once: the snapshot list is compared as soon as the job keeps others out. */
const jobSoonMs = 25;

/** Milestones: Perform3 is being called; it never was, because of what stood in its way; somebody wants it to stop. */
export const performing = "performing";
export const performRefused = "performRefused";
export const abortAsked = "abortAsked";

export const changedAfterBegin = (what: string) => snapshotChanged(what, "It was left as it is.");

export function calledOff(): Fault {
  return new Fault({
    code: "migration.cancelled",
    cause: "Perform was called off: it was asked to stop before libvirt had begun it, or as soon as it had.",
    action: "Nothing to do: the domain stays on its source.",
    retry: "safe",
  });
}

/** Watches a running Perform over the inventory connection: progress, whether it is to stop, and once whether the snapshot
 *  list is still the bundle's. */
export class PerformWatch {
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

/** libvirt's figures of the job that has just ended; nulls where it has none. */
export async function performStatistics(
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
