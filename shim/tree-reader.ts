/**
 * A domain's snapshot tree as libvirt has it now, and the tree of a bundle, in one small form that can be compared: name,
 * parent, current and the digest of the XML of each, never all XML at once.
 *
 * XML is compared byte for byte: tried on libvirt 9.0.0, what one daemon dumps, another takes by redefine and dumps again
 * without a difference.
 */
import { createHash } from "node:crypto";
import type { LibvirtConnection } from "#libvirt/client";
import { CheckpointListFlag, CheckpointXmlFlag, SnapshotListFlag, SnapshotXmlFlag } from "#libvirt/constants";
import { isNoCheckpoint, isNoSnapshot, isUnsupported } from "#libvirt/error";
import type { RemoteCheckpoint, RemoteDomain, RemoteSnapshot } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import type { BundleEntry } from "#protocol/bundle";
import type { TreeSummary } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { TreeDigest, type TreeEntry } from "#protocol/tree";
import type { Work } from "./ports.ts";
import { read } from "./probe.ts";
import { readMomentHead } from "./snapshot-xml.ts";
import { XmlError } from "./xml-reader.ts";

/** Names in libvirt's topological order (parents first). `current` is null when libvirt has no current snapshot. */
export interface Listing {
  snapshots: readonly RemoteSnapshot[];
  checkpoints: readonly RemoteCheckpoint[];
  current: string | null;
}

export interface TreeNode {
  kind: TreeEntry["kind"];
  name: string;
  parent: string | null;
  current: boolean;
  xmlSha256: string;
}

export interface Tree extends TreeSummary {
  /** Key: kind and name. */
  nodes: ReadonlyMap<string, TreeNode>;
}

export const nodeKey = (kind: TreeEntry["kind"], name: string): string => `${kind}\n${name}`;

/** Calls in flight while dumping: enough to hide the round trip, below what a connection may have. */
const dumpsInFlight = 3;

export async function listTree(libvirt: LibvirtConnection, dom: RemoteDomain): Promise<Listing> {
  const flags = SnapshotListFlag.METADATA | SnapshotListFlag.TOPOLOGICAL;
  const { snapshots } = await read(libvirt, procedures.domainListAllSnapshots, { dom, needResults: true, flags });
  return { snapshots, checkpoints: await listCheckpoints(libvirt, dom), current: await currentOf(libvirt, dom) };
}

async function listCheckpoints(libvirt: LibvirtConnection, dom: RemoteDomain): Promise<readonly RemoteCheckpoint[]> {
  try {
    const args = { dom, needResults: true, flags: CheckpointListFlag.TOPOLOGICAL };
    return (await read(libvirt, procedures.domainListAllCheckpoints, args)).checkpoints;
  } catch (error) {
    // A daemon or driver without checkpoints has none to lose.
    if (isUnsupported(error)) return [];
    throw error;
  }
}

async function currentOf(libvirt: LibvirtConnection, dom: RemoteDomain): Promise<string | null> {
  try {
    return (await read(libvirt, procedures.domainSnapshotCurrent, { dom, flags: 0 })).snap.name;
  } catch (error) {
    if (isNoSnapshot(error)) return null;
    throw error;
  }
}

/** True when two listings name the same snapshots and checkpoints with the same current one. */
export function sameListing(one: Listing, other: Listing): boolean {
  const names = (listing: Listing) =>
    JSON.stringify([
      listing.current,
      listing.snapshots.map((each) => each.name).sort(),
      listing.checkpoints.map((each) => each.name).sort(),
    ]);
  return names(one) === names(other);
}

/** Dumps every entry, security information included, in the listing's order. Throws `snapshot.incomplete` for one that
 *  libvirt cannot dump or whose parent is not there, `snapshot.changed` for one that has gone since it was listed. */
export async function* dumpTree(libvirt: LibvirtConnection, listing: Listing): AsyncGenerator<TreeEntry> {
  const seen = { snapshot: new Set<string>(), checkpoint: new Set<string>() };
  const entry = (kind: TreeEntry["kind"], name: string, xml: string): TreeEntry => {
    const parent = parentOf(kind, name, xml);
    if (parent !== null && !seen[kind].has(parent)) throw incomplete(kind, name, `its parent "${parent}" is not there`);
    seen[kind].add(name);
    return { kind, name, parent, current: kind === "snapshot" && name === listing.current, xml };
  };
  const snapshots = inOrder(listing.snapshots, (snap) =>
    dump("snapshot", snap.name, () =>
      read(libvirt, procedures.domainSnapshotGetXmlDesc, { snap, flags: SnapshotXmlFlag.SECURE }),
    ),
  );
  for await (const { name, xml } of snapshots) yield entry("snapshot", name, xml);
  const checkpoints = inOrder(listing.checkpoints, (checkpoint) =>
    dump("checkpoint", checkpoint.name, () =>
      read(libvirt, procedures.domainCheckpointGetXmlDesc, { checkpoint, flags: CheckpointXmlFlag.SECURE }),
    ),
  );
  for await (const { name, xml } of checkpoints) yield entry("checkpoint", name, xml);
}

async function dump(
  kind: TreeEntry["kind"],
  name: string,
  ask: () => Promise<{ xml: string }>,
): Promise<{ name: string; xml: string }> {
  try {
    return { name, xml: (await ask()).xml };
  } catch (error) {
    if (isNoSnapshot(error) || isNoCheckpoint(error))
      throw snapshotChanged(`the ${kind} "${name}" was deleted while the tree was being read`);
    throw error;
  }
}

function parentOf(kind: TreeEntry["kind"], name: string, xml: string): string | null {
  try {
    return readMomentHead(xml).parent;
  } catch (error) {
    if (error instanceof XmlError) throw incomplete(kind, name, `its record is ${error.message}`);
    throw error;
  }
}

/** Runs `ask` for a few items ahead and yields the answers in order. */
async function* inOrder<T, R>(items: readonly T[], ask: (item: T) => Promise<R>): AsyncGenerator<R> {
  const ahead: Promise<R>[] = [];
  try {
    for (const item of items) {
      ahead.push(ask(item));
      const [first] = ahead;
      if (ahead.length < dumpsInFlight || first === undefined) continue;
      yield await first;
      ahead.shift();
    }
    for (let first = ahead.at(0); first !== undefined; first = ahead.at(0)) {
      yield await first;
      ahead.shift();
    }
  } finally {
    // Whoever stopped early has the reason; the others' failures are the same one.
    for (const left of ahead) left.catch(() => {});
  }
}

/** The tree that libvirt has now. */
export async function readLiveTree(libvirt: LibvirtConnection, dom: RemoteDomain, listing?: Listing): Promise<Tree> {
  return treeOf(dumpTree(libvirt, listing ?? (await listTree(libvirt, dom))));
}

/** A bundle's entries from their beginning, as often as it is called. */
export type ReadEntries = () => AsyncIterable<BundleEntry>;

/** How a step reads the bundle at that path. */
export const entriesOf =
  ({ bundles }: Pick<Work, "bundles">, path: string): ReadEntries =>
  () =>
    bundles.read(path);

/** The tree of a bundle on disk; the bundle's own digest is checked on the way. */
export function readBundleTree(entries: ReadEntries): Promise<Tree> {
  return treeOf(entries());
}

export async function treeOf(entries: AsyncIterable<BundleEntry> | Iterable<BundleEntry>): Promise<Tree> {
  const digest = new TreeDigest();
  const nodes = new Map<string, TreeNode>();
  const counts = { snapshot: 0, checkpoint: 0 };
  for await (const { kind, name, parent, current, xml } of entries) {
    if (kind === "domain") continue;
    digest.add({ kind, name, parent, current, xml });
    counts[kind] += 1;
    const xmlSha256 = createHash("sha256").update(xml).digest("hex");
    nodes.set(nodeKey(kind, name), { kind, name, parent, current, xmlSha256 });
  }
  return { nodes, snapshots: counts.snapshot, checkpoints: counts.checkpoint, treeSha256: digest.sha256() };
}

export function summaryOf({ snapshots, checkpoints, treeSha256 }: Tree): TreeSummary {
  return { snapshots, checkpoints, treeSha256 };
}

/** The first difference of a live tree from the wanted one, in words; null when they are equal. `extraAllowed`: what
 *  somebody added meanwhile, and what is current because of it, is no difference. */
export function differenceOf(wanted: Tree, live: Tree, extraAllowed = false): string | null {
  const what = (node: TreeNode) => `the ${node.kind} "${node.name}"`;
  for (const node of wanted.nodes.values()) {
    const found = live.nodes.get(nodeKey(node.kind, node.name));
    if (found === undefined) return `${what(node)} is missing`;
    if (found.parent !== node.parent)
      return `${what(node)} has the parent "${found.parent ?? "none"}" instead of "${node.parent ?? "none"}"`;
    if (found.xmlSha256 !== node.xmlSha256) return `${what(node)} has another XML`;
  }
  const extra = [...live.nodes.values()].find((node) => !wanted.nodes.has(nodeKey(node.kind, node.name)));
  if (extra !== undefined) return extraAllowed ? null : `${what(extra)} has been added`;
  for (const node of wanted.nodes.values()) {
    const found = live.nodes.get(nodeKey(node.kind, node.name));
    if (found?.current !== node.current) return `${what(node)} is ${node.current ? "not " : ""}the current one`;
  }
  return null;
}

/** `left`: what became of the tree, as a sentence. */
export function snapshotChanged(what: string, left = "Nothing was touched."): Fault {
  return new Fault({
    code: "snapshot.changed",
    cause: `The snapshot tree changed during the migration: ${what}. ${left}`,
    action: "Migrate again when nobody works on the domain's snapshots.",
    retry: "safe",
  });
}

function incomplete(kind: TreeEntry["kind"], name: string, why: string): Fault {
  return new Fault({
    code: "snapshot.incomplete",
    cause: `The ${kind} "${name}" cannot be taken along: ${why}.`,
    action: `Look at it with \`virsh ${kind}-dumpxml DOMAIN '${name}'\`; repair it or delete its metadata, then migrate again.`,
    retry: "person",
  });
}
