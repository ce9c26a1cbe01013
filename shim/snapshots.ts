/**
 * What is done to a snapshot tree: strip it, redefine it from a bundle, verify it.
 *
 * I3: nothing here deletes a record before the caller has compared the live tree with a bundle on this host's disk, whose
 * copy in S3 was verified by its digest. I4: what was redefined is read back and compared.
 */
import type { LibvirtConnection } from "#libvirt/client";
import { CheckpointCreateFlag, SnapshotCreateFlag, SnapshotDeleteFlag, SnapshotXmlFlag } from "#libvirt/constants";
import { isNoSnapshot } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import type { BundleEntry } from "#protocol/bundle";
import { Fault } from "#protocol/fault";
import { faultBodyOf, isNoAnswer } from "./libvirt-fault.ts";
import { read } from "./probe.ts";
import { withParent } from "./snapshot-xml.ts";
import {
  differenceOf,
  type Listing,
  nodeKey,
  type ReadEntries,
  readLiveTree,
  type Tree,
  type TreeNode,
} from "./tree-reader.ts";

/**
 * Deletes the metadata of all snapshots of a listing: the leaves first and one call each. DELETE_CHILDREN with
 * METADATA_ONLY has crashed libvirtd 9.0.0 on a branching tree, and a parent deleted first rewrites all its children.
 * Checkpoints stay: they do not hinder Begin.
 */
export async function stripSnapshots(libvirt: LibvirtConnection, listing: Listing): Promise<void> {
  for (const snap of listing.snapshots.toReversed()) {
    try {
      await libvirt.call(procedures.domainSnapshotDelete, { snap, flags: SnapshotDeleteFlag.METADATA_ONLY });
    } catch (error) {
      // Gone already: a repetition after a crash in the middle.
      if (!isNoSnapshot(error)) throw error;
    }
  }
}

export interface Redefining {
  /** Which entries of the bundle; default all. */
  wanted?: (entry: BundleEntry) => boolean;
  /** False: libvirt's current snapshot stays where it is. */
  setsCurrent?: boolean;
  /** Counts entries, for progress. */
  onDone?: (done: number) => void;
}

/**
 * Gives a domain its snapshots and checkpoints from a bundle, parents first; exactly the bundle's current one is made
 * current. Redefining an existing name replaces it, so a repetition is harmless. Throws `snapshot.refused` with libvirt's
 * own error and the record's name.
 */
export async function redefineFrom(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  entries: ReadEntries,
  { wanted = () => true, setsCurrent = true, onDone = () => {} }: Redefining = {},
): Promise<void> {
  let done = 0;
  for await (const entry of entries()) {
    if (entry.kind === "domain" || !wanted(entry)) continue;
    try {
      await redefine(libvirt, dom, entry, setsCurrent && entry.current);
    } catch (error) {
      if (isNoAnswer(error)) throw error;
      throw new Fault(
        faultBodyOf(error, {
          code: "snapshot.refused",
          what: `libvirt refuses to redefine the ${entry.kind} "${entry.name}"`,
          action: `Look at the record with \`vmferry bundle show\`; repair it on the source, or delete its metadata there, and migrate again.`,
          retry: "never",
        }),
        { cause: error },
      );
    }
    done += 1;
    onDone(done);
  }
}

async function redefine(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  entry: Pick<BundleEntry, "kind" | "xml">,
  current: boolean,
): Promise<void> {
  if (entry.kind === "checkpoint") {
    const flags = CheckpointCreateFlag.REDEFINE;
    await libvirt.call(procedures.domainCheckpointCreateXml, { dom, xmlDesc: entry.xml, flags });
    return;
  }
  const flags = SnapshotCreateFlag.REDEFINE | (current ? SnapshotCreateFlag.CURRENT : 0);
  await libvirt.call(procedures.domainSnapshotCreateXml, { dom, xmlDesc: entry.xml, flags });
}

/** Whose the missing records are. `stripped`: this migration took them away, so what somebody added meanwhile may have lost
 *  its parent by that. */
export type Missing = "stripped" | "lost";

/**
 * Makes the live tree hold everything of a bundle again: redefines what is missing or different, and the current one when
 * nobody added a snapshot meanwhile. What somebody added is kept, stays current, and gets back the parent that a strip took
 * from it. Returns the live tree; throws `snapshot.mismatch` when it still differs.
 */
export async function completeTree(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  entries: ReadEntries,
  wantedTree: Tree,
  missing: Missing = "lost",
): Promise<Tree> {
  await redefineMissing(libvirt, dom, entries, wantedTree, missing);
  return verifyTree(libvirt, dom, wantedTree, true);
}

/** As `completeTree`, without reading back what was done. Returns the names of added snapshots whose parent could not be
 *  given back. */
export async function redefineMissing(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  entries: ReadEntries,
  wantedTree: Tree,
  missing: Missing,
): Promise<readonly string[]> {
  const before = await readLiveTree(libvirt, dom);
  const orphans = missing === "stripped" ? orphansOf(before, wantedTree) : null;
  if (differenceOf(wantedTree, before, true) !== null) {
    const theirs = [...before.nodes.values()].find((node) => node.current && !isOf(wantedTree, node));
    await redefineFrom(libvirt, dom, entries, {
      setsCurrent: theirs === undefined,
      wanted: (entry) => {
        if (entry.kind === "domain") return false;
        const key = nodeKey(entry.kind, entry.name);
        const live = before.nodes.get(key);
        const wanted = wantedTree.nodes.get(key);
        if (live === undefined || wanted === undefined) return true;
        if (entry.current && theirs === undefined) return true;
        return live.xmlSha256 !== wanted.xmlSha256 || live.parent !== wanted.parent;
      },
    });
  }
  const left: string[] = [];
  for (const node of orphans?.nodes ?? [])
    if (!(await reattach(libvirt, dom, node, orphans?.parent ?? ""))) left.push(node.name);
  return left;
}

const isOf = (tree: Tree, node: TreeNode) => tree.nodes.has(nodeKey(node.kind, node.name));

/**
 * Snapshots that somebody took around a strip, and the parent they had. libvirt hands the children of a deleted record to
 * the one above, so the child of the bundle's current one ends below one of its ancestors or below nothing.
 */
function orphansOf(live: Tree, wanted: Tree): { parent: string; nodes: readonly TreeNode[] } | null {
  const current = [...wanted.nodes.values()].find((node) => node.current);
  if (current === undefined) return null;
  const above = new Set<string | null>([null]);
  // While the current one is there, its ancestors' other children are where their owner put them.
  if (!isOf(live, current))
    for (let at = current.parent; at !== null; at = wanted.nodes.get(nodeKey("snapshot", at))?.parent ?? null)
      above.add(at);
  const nodes = [...live.nodes.values()].filter(
    (node) => node.kind === "snapshot" && !isOf(wanted, node) && above.has(node.parent),
  );
  return { parent: current.name, nodes };
}

/** False when the record could not be given that parent; it is as it was then. */
async function reattach(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  { name, current }: TreeNode,
  parent: string,
): Promise<boolean> {
  try {
    const snap = { name, dom };
    const { xml } = await read(libvirt, procedures.domainSnapshotGetXmlDesc, { snap, flags: SnapshotXmlFlag.SECURE });
    const made = withParent(xml, parent);
    if (made === null) return false;
    await redefine(libvirt, dom, { kind: "snapshot", xml: made }, current);
    return true;
  } catch (error) {
    if (isNoAnswer(error)) throw error;
    // Its owner deleted it again, or libvirt does not want it so: it is theirs, and is said to have lost its parent.
    return isNoSnapshot(error);
  }
}

/** Reads the tree back and compares it with the wanted one (I4). Throws `snapshot.mismatch` that names the first difference. */
export async function verifyTree(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  wanted: Tree,
  extraAllowed: boolean,
): Promise<Tree> {
  const live = await readLiveTree(libvirt, dom);
  const difference = differenceOf(wanted, live, extraAllowed);
  if (difference === null) return live;
  throw new Fault({
    code: "snapshot.mismatch",
    cause: `After redefining, the tree on this host is not the exported one: ${difference}.`,
    action:
      "Compare `virsh snapshot-dumpxml` on both hosts; a destination with an older libvirt drops what it does not know.",
    retry: "never",
  });
}
