/**
 * The end of the way back: the source's domain is as it was, its tree complete and compared (I4).
 *
 * I2: a domain that is still paused by the migration is not touched here. The journal says what this migration has taken
 * away; when it is lost, the bundle and the command say what must be there.
 */
import type { LibvirtConnection } from "#libvirt/client";
import { isNoDomain } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import type { ReportBodyOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { putAutostartBack } from "./autostart.ts";
import { faultOf, messageOf } from "./libvirt-fault.ts";
import { isStripped } from "./moment.ts";
import type { JournalEntry, Step, Work } from "./ports.ts";
import { lookUp, persistently, probeDomain } from "./probe.ts";
import { completeTree } from "./snapshots.ts";
import { sourceRow } from "./source-recovery.ts";
import { entriesOf, readBundleTree, readLiveTree, summaryOf, type Tree, treeOf } from "./tree-reader.ts";

export const restore: Step<"restore"> = async (work) => {
  const { domain, autostart } = work.command;
  try {
    return await persistently(work, async (libvirt): Promise<ReportBodyOf<"restore">> => {
      const probe = await probeDomain(libvirt, domain.uuid);
      // A domain that is still paused by the migration is stranded by its row (I2).
      if (sourceRow(work, probe).do === "reportAbsent" || !probe.present) return goneMeanwhile();
      try {
        const tree = await restoredTree(work, libvirt, probe.dom);
        const wasOn = autostart && !hasBegun(work.history);
        if (probe.persistent) await putAutostartBack(libvirt, probe.dom, work.history, wasOn);
        return { kind: "restore", tree: summaryOf(tree), state: probe.state };
      } catch (error) {
        const absent = isNoDomain(error) || (error instanceof Fault && error.code === "domain.absent");
        if (absent && (await lookUp(libvirt, domain.uuid)) === null) return goneMeanwhile();
        throw error;
      }
    });
  } catch (error) {
    throw faultOf(error, {
      code: "libvirt.failed",
      what: `The source could not be restored (${messageOf(error)})`,
      action: `Run \`vmferry bundle restore ${work.bundlePath} --host SOURCE\`; the bundle is complete there and in the bucket.`,
      retry: "person",
    });
  }
};

/** Somebody took the domain away from the source: there is nothing to restore, and that is a fact, not a failure. */
async function goneMeanwhile(): Promise<ReportBodyOf<"restore">> {
  return { kind: "restore", tree: summaryOf(await treeOf([])), state: "nostate", absent: true };
}

/**
 * The live tree, completed when this migration may have left it incomplete. A source that was never stripped has its tree in
 * libvirt: no bucket is needed to go back then, not even one that is away, and what differs is its owner's doing.
 */
async function restoredTree(
  work: Pick<Work<"restore">, "command" | "history" | "milestone" | "payloads" | "bundles">,
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
): Promise<Tree> {
  const { bundle } = work.command;
  if (bundle === null) return readLiveTree(libvirt, dom);
  const stripped = isStripped(work.history);
  if (!stripped) {
    const live = await readLiveTree(libvirt, dom);
    if (hasExported(work.history) || live.treeSha256 === bundle.treeSha256) return live;
  }
  // Stripped, or the journal is lost and the tree is not the bundle's: a record that is missing may be one we took away.
  const entries = entriesOf(work, await work.payloads.downloadBundle(bundle));
  const wanted = await readBundleTree(entries);
  if (!stripped) {
    const live = await readLiveTree(libvirt, dom);
    if ([...wanted.nodes.keys()].every((key) => live.nodes.has(key))) return live;
  }
  const tree = await completeTree(libvirt, dom, entries, wanted, stripped ? "stripped" : "lost");
  await work.milestone("redefined");
  return tree;
}

const hasIntent = (history: readonly JournalEntry[], kind: string) =>
  history.some((entry) => entry.type === "intent" && entry.command.kind === kind);

/** A bundle was exported here, so a journal without that is not the whole of it. */
const hasExported = (history: readonly JournalEntry[]) => hasIntent(history, "export");
/** With Begin in the journal, it also says whether autostart was taken off; without, the inspection's word is what there is. */
const hasBegun = (history: readonly JournalEntry[]) => hasIntent(history, "begin");
