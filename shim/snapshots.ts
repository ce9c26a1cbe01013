/**
 * What is done to a snapshot tree: strip it, redefine it from a bundle, verify it.
 *
 * I3: nothing here deletes a record before the caller has compared the live tree with a bundle on this host's disk, whose
 * copy in S3 was verified by its digest. I4: what was redefined is read back and compared.
 */
import type { LibvirtConnection } from "#libvirt/client";
import { CheckpointCreateFlag, SnapshotCreateFlag, SnapshotDeleteFlag } from "#libvirt/constants";
import { isNoSnapshot } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import type { BundleEntry } from "#protocol/bundle";
import { readBundle } from "#protocol/bundle-reader";
import { Fault } from "#protocol/fault";
import { faultBodyOf, isNoAnswer } from "./libvirt-fault.ts";
import { differenceOf, type Listing, nodeKey, readLiveTree, type Tree } from "./tree-reader.ts";

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

/** Which entries of a bundle to redefine; default all. */
export type Wanted = (entry: BundleEntry) => boolean;

/**
 * Gives a domain its snapshots and checkpoints from a bundle, parents first; exactly the bundle's current one is made
 * current. Redefining an existing name replaces it, so a repetition is harmless. Throws `snapshot.refused` with libvirt's
 * own error and the record's name. `onDone` counts entries for progress.
 */
export async function redefineFrom(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  path: string,
  wanted: Wanted = () => true,
  onDone: (done: number) => void = () => {},
): Promise<void> {
  let done = 0;
  for await (const entry of readBundle(path)) {
    if (entry.kind === "domain" || !wanted(entry)) continue;
    try {
      await redefine(libvirt, dom, entry);
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

async function redefine(libvirt: LibvirtConnection, dom: RemoteDomain, entry: BundleEntry): Promise<void> {
  if (entry.kind === "checkpoint") {
    const flags = CheckpointCreateFlag.REDEFINE;
    await libvirt.call(procedures.domainCheckpointCreateXml, { dom, xmlDesc: entry.xml, flags });
    return;
  }
  const flags = SnapshotCreateFlag.REDEFINE | (entry.current ? SnapshotCreateFlag.CURRENT : 0);
  await libvirt.call(procedures.domainSnapshotCreateXml, { dom, xmlDesc: entry.xml, flags });
}

/**
 * Makes the live tree hold everything of a bundle again: redefines what is missing or different, and the current one when
 * nobody added a snapshot meanwhile. What somebody added is kept. Returns the live tree; throws `snapshot.mismatch` when
 * it still differs.
 */
export async function completeTree(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  path: string,
  wantedTree: Tree,
): Promise<Tree> {
  const before = await readLiveTree(libvirt, dom);
  if (differenceOf(wantedTree, before, true) === null) return before;
  await redefineFrom(libvirt, dom, path, (entry) => {
    if (entry.kind === "domain") return false;
    const key = nodeKey(entry.kind, entry.name);
    const live = before.nodes.get(key);
    const wanted = wantedTree.nodes.get(key);
    if (live === undefined || wanted === undefined || entry.current) return true;
    return live.xmlSha256 !== wanted.xmlSha256 || live.parent !== wanted.parent;
  });
  return verifyTree(libvirt, dom, wantedTree, true);
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
