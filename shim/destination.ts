/**
 * The steps on the destination that build up and take down: stage, prepare, settle, unstage, restoreBundle (Finish is in
 * finish.ts).
 *
 * I3: the tree is complete and compared here before the source is stripped. I4: it is compared again when the domain has
 * arrived, and nothing is left when it has not. I8: nothing here touches an active domain that is not an unfinished
 * incoming one.
 */
import * as z from "zod/mini";
import type { LibvirtConnection } from "#libvirt/client";
import { isNoDomain } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import type { BundleRef } from "#protocol/blob";
import type { DomainRef, ReportBodyOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { destinationRow } from "./destination-recovery.ts";
import { readDomain } from "./domain-xml.ts";
import { cancelIncoming } from "./finish.ts";
import { destinationFlags, prepareParams } from "./flags.ts";
import { faultOf } from "./libvirt-fault.ts";
import { type DestinationMoment, destinationMoment } from "./moment.ts";
import type { JournalEntry, Step, Work } from "./ports.ts";
import { lookUp, mustLookUp, type Probe, persistently, probeDomain, read } from "./probe.ts";
import { overdue } from "./recovery.ts";
import { completeTree, redefineFrom, verifyTree } from "./snapshots.ts";
import { snapshotProgress } from "./source.ts";
import {
  entriesOf,
  listTree,
  nodeKey,
  type ReadEntries,
  readBundleTree,
  readLiveTree,
  summaryOf,
  type Tree,
} from "./tree-reader.ts";
import { undefineDomain } from "./undefine.ts";
import { XmlError } from "./xml-reader.ts";

/** Records between two progress messages. */
const progressEvery = 50;
/** Time between two looks at an incoming domain that libvirt is ending. */
const autodestroyLookMs = 250;

/** Defines the domain inactive and gives it the bundle's tree: libvirt's incoming migration adopts both. */
export const stage: Step<"stage"> = async (work) => {
  const { domain, bundle } = work.command;
  const path = await work.payloads.downloadBundle(bundle);
  await work.bundles.verify(path, factsOf(bundle));
  const entries = entriesOf(work, path);
  const xml = await domainXmlOf(entries, domain);
  const wanted = await readBundleTree(entries);
  let moment = destinationMoment(work.history, work.command);
  try {
    return await persistently(work, async (libvirt): Promise<ReportBodyOf<"stage">> => {
      await mustBeFree(libvirt, work, moment);
      await work.milestone("staging", { uuid: domain.uuid });
      moment = "staging";
      const { dom } = await libvirt.call(procedures.domainDefineXmlFlags, { xml, flags: 0 });
      const total = wanted.snapshots + wanted.checkpoints;
      await redefineFrom(libvirt, dom, entries, {
        onDone: (done) => {
          if (done % progressEvery === 0 || done === total) work.progress(snapshotProgress(done, total));
        },
      });
      const tree = await verifyTree(libvirt, dom, wanted, false);
      await work.milestone("staged", { ...summaryOf(tree) });
      return { kind: "stage", tree: summaryOf(tree) };
    });
  } catch (error) {
    throw faultOf(error, {
      code: "libvirt.failed",
      what: "The domain could not be defined on the destination",
      action: "Nothing was touched on the source. Remove what libvirt names, then migrate again.",
      retry: "never",
    });
  }
};

function factsOf({ key: _, ...facts }: BundleRef): Omit<BundleRef, "key"> {
  return facts;
}

/** The bundle's domain XML, checked to be of this very domain: a bundle of another must not overwrite it. */
async function domainXmlOf(entries: ReadEntries, domain: DomainRef): Promise<string> {
  for await (const entry of entries()) {
    if (entry.kind !== "domain") break;
    let uuid: string;
    try {
      uuid = readDomain(entry.xml).uuid;
    } catch (error) {
      if (!(error instanceof XmlError)) throw error;
      throw malformed(`its domain XML is ${error.message}`);
    }
    if (uuid !== domain.uuid) throw malformed(`it is of the domain ${uuid}, not of ${domain.uuid}`);
    return entry.xml;
  }
  throw malformed("it holds no domain");
}

function malformed(why: string): Fault {
  return new Fault({
    code: "bundle.malformed",
    cause: `The bundle cannot be staged: ${why}.`,
    action: "Export the domain again on the host that has it.",
    retry: "never",
  });
}

/** Nobody else's domain is overwritten: an inactive definition is taken over only if this migration staged it. */
async function mustBeFree(
  libvirt: LibvirtConnection,
  work: Pick<Work<"stage">, "command" | "history">,
  moment: DestinationMoment,
): Promise<void> {
  const { domain } = work.command;
  const row = destinationRow(work, await probeDomain(libvirt, domain.uuid), { moment });
  if (row.do !== "stage" && row.found !== "inactive") throw activeHere(domain);
  if (row.do !== "stage")
    throw new Fault({
      code: "destination.defined",
      cause: `"${domain.name}" (${domain.uuid}) is defined on the destination already.`,
      action: "If it is a stale copy, undefine it there with its snapshot metadata, then migrate again.",
      retry: "never",
    });
  let other: RemoteDomain;
  try {
    other = (await read(libvirt, procedures.domainLookupByName, { name: domain.name })).dom;
  } catch (error) {
    if (isNoDomain(error)) return;
    throw error;
  }
  if (other.uuid !== domain.uuid)
    throw new Fault({
      code: "destination.nameTaken",
      cause: `Another domain on the destination is named "${domain.name}" (${other.uuid}).`,
      action: "Rename one of them with `virsh domrename`, then migrate again.",
      retry: "never",
    });
}

function activeHere(domain: DomainRef): Fault {
  return new Fault({
    code: "destination.active",
    cause: `A copy of "${domain.name}" (${domain.uuid}) is active on the destination. It was not touched.`,
    action: "Find out which copy is the right one before anything else.",
    retry: "person",
  });
}

function hasMilestone(history: readonly JournalEntry[], name: string): boolean {
  return history.some((entry) => entry.type === "milestone" && entry.name === name);
}

/** Prepare3: the destination's QEMU waits for the stream. It is bound to this connection and dies with it. */
export const prepare: Step<"prepare"> = async (work) => {
  const { domain, options, flags } = work.command;
  const cookieIn = await work.payloads.read(work.command.cookie);
  const xml = Buffer.from(await work.payloads.read(work.command.xml)).toString("utf8");
  try {
    if (work.resumed) await waitForAutodestroy(work);
    const { libvirt } = await work.connection();
    await work.milestone("preparing");
    const result = await libvirt.call(procedures.domainMigratePrepare3Params, {
      params: prepareParams(options, xml, work.migrationAddress),
      cookieIn,
      flags: destinationFlags(flags),
    });
    await noteAdoption(work, libvirt);
    return {
      kind: "prepare",
      cookie: await work.payloads.write(result.cookieOut),
      uri: result.uriOut,
      peer: work.seal.peerAddress(),
    };
  } catch (error) {
    throw faultOf(error, {
      code: "prepare.failed",
      what: `Prepare of "${domain.name}" on the destination failed`,
      action: "The source runs on. Remove what libvirt names, or choose another destination.",
      retry: "safe",
    });
  }
};

const stagedSchema = z.object({ snapshots: z.int(), checkpoints: z.int() });

/** Journals that the incoming domain has the staged tree: from then on only its owner changes it. A list needs no job, so
 *  libvirt answers although the incoming migration holds one. Not seen is not proven otherwise: then settle looks closer. */
async function noteAdoption(
  work: Pick<Work<"prepare">, "command" | "history" | "milestone">,
  libvirt: LibvirtConnection,
): Promise<void> {
  const entry = work.history.findLast((each) => each.type === "milestone" && each.name === "staged");
  const staged = stagedSchema.safeParse(entry?.type === "milestone" ? entry.data : null);
  if (!staged.success) return;
  const listing = await lookUp(libvirt, work.command.domain.uuid)
    .then((dom) => (dom === null ? null : listTree(libvirt, dom)))
    .catch(() => null);
  const { snapshots, checkpoints } = staged.data;
  if (listing?.snapshots.length === snapshots && listing.checkpoints.length === checkpoints)
    await work.milestone("adopted");
}

/** After a restart of the shim, what an earlier Prepare made goes with its lost connection; Prepare can be repeated then. */
async function waitForAutodestroy(
  work: Pick<Work<"prepare">, "connection" | "sleep" | "now" | "command" | "history">,
): Promise<void> {
  const { domain } = work.command;
  for (let waitedMs = 0; ; waitedMs += autodestroyLookMs) {
    const row = destinationRow(work, await persistently(work, (libvirt) => probeDomain(libvirt, domain.uuid)));
    if (row.do === "prepare") return;
    if (overdue(row, waitedMs) !== null) throw activeHere(domain);
    await work.sleep(autodestroyLookMs);
  }
}

/** The domain has arrived: its state, tree and current snapshot are verified, then it is set to start with the host. */
export const settle: Step<"settle"> = async (work) => {
  const { domain, bundle, autostart } = work.command;
  try {
    return await persistently(work, async (libvirt): Promise<ReportBodyOf<"settle">> => {
      const probe = await probeDomain(libvirt, domain.uuid);
      // One that is shut off by now has run since its Finish: that is the guest's or its owner's business.
      destinationRow(work, probe, { code: "settle.failed" });
      if (!probe.present || !probe.persistent) throw unsettled("it was not made persistent");
      const { dom } = probe;
      const tree = bundle === null ? await readLiveTree(libvirt, dom) : await settledTree(work, libvirt, dom, bundle);
      // Only now: until Confirm a start by hand or at boot would have been a second copy.
      await libvirt.call(procedures.domainSetAutostart, { dom, autostart });
      const { autostart: set } = await read(libvirt, procedures.domainGetAutostart, { dom });
      const changed = bundle !== null && tree.treeSha256 !== bundle.treeSha256 ? { changedByOwner: true } : {};
      return { kind: "settle", tree: summaryOf(tree), state: probe.state, autostart: set, ...changed };
    });
  } catch (error) {
    throw faultOf(error, {
      code: "settle.failed",
      what: "The domain runs on the destination, but could not be settled",
      action: `Compare its tree with \`vmferry bundle show ${work.bundlePath}\` and restore what is missing.`,
      retry: "person",
    });
  }
};

/**
 * The tree of a domain that has arrived. It was whole here before the source gave anything up, and settle may come hours
 * after Finish: a difference is what the owner has done since (a snapshot deleted with its data, a revert), and it stands.
 * Only a tree that libvirt is not known to have taken over, and of which nothing is there, is given back from the bundle.
 */
async function settledTree(
  work: Pick<Work<"settle">, "history" | "payloads" | "bundles">,
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  bundle: BundleRef,
): Promise<Tree> {
  const live = await readLiveTree(libvirt, dom);
  if (live.treeSha256 === bundle.treeSha256 || hasMilestone(work.history, "adopted")) return live;
  const entries = entriesOf(work, await work.payloads.downloadBundle(bundle));
  const wanted = await readBundleTree(entries);
  if ([...wanted.nodes.keys()].some((key) => live.nodes.has(key))) return live;
  return completeTree(libvirt, dom, entries, wanted);
}

function unsettled(why: string): Fault {
  return new Fault({
    code: "settle.failed",
    cause: `The domain on the destination is not settled: ${why}.`,
    action: "Look at it with `virsh domstate --reason` and at its log in /var/log/libvirt/qemu.",
    retry: "person",
  });
}

/** Takes everything away that this migration made here. An active domain is never touched (I8). */
export const unstage: Step<"unstage"> = async (work) => {
  const { domain, bundle } = work.command;
  try {
    let removed = await cancelIncoming(work);
    const moment = destinationMoment(work.history, { kind: "unstage", ended: removed });
    await persistently(work, async (libvirt) => {
      const probe = await probeDomain(libvirt, domain.uuid);
      const row = destinationRow(work, probe, { moment });
      // Arrived since `cancelIncoming` looked: whose it is has to be asked again.
      if (row.do === "endIncoming") throw activeHere(domain);
      const isOurs =
        row.do === "sweep" || (row.do === "sweepIfProven" && (await isProven(work, libvirt, probe, bundle)));
      if (!probe.present || !isOurs) return;
      await undefineDomain(libvirt, probe.dom);
      if ((await lookUp(libvirt, domain.uuid)) !== null) throw unsettled("it was undefined and is still there");
      removed = true;
    });
    return { kind: "unstage", removed };
  } catch (error) {
    throw faultOf(error, {
      code: "libvirt.failed",
      what: "What was staged on the destination could not be removed",
      action: `Run \`virsh undefine ${domain.uuid} --snapshots-metadata --checkpoints-metadata --keep-nvram --keep-tpm\` there.`,
      retry: "safe",
    });
  }
};

/** Whether this migration staged the inactive definition, where its journal does not say so: only the whole tree of the
 *  bundle is proof enough. */
async function isProven(
  work: Pick<Work<"unstage">, "payloads" | "bundles">,
  libvirt: LibvirtConnection,
  probe: Probe,
  bundle: BundleRef | null,
): Promise<boolean> {
  if (!probe.present || bundle === null) return false;
  const wanted: Tree = await readBundleTree(entriesOf(work, await work.payloads.downloadBundle(bundle)));
  const live = await readLiveTree(libvirt, probe.dom);
  return (
    live.nodes.size > 0 &&
    live.nodes.size === wanted.nodes.size &&
    [...live.nodes.values()].every(
      (node) => wanted.nodes.get(nodeKey(node.kind, node.name))?.xmlSha256 === node.xmlSha256,
    )
  );
}

/** The manual way back: gives a domain that is on this host every record of a bundle that it lacks. */
export const restoreBundle: Step<"restoreBundle"> = async (work) => {
  const { domain, bundle } = work.command;
  const path = await work.payloads.downloadBundle(bundle);
  await work.bundles.verify(path, factsOf(bundle));
  const entries = entriesOf(work, path);
  await domainXmlOf(entries, domain);
  const wanted = await readBundleTree(entries);
  try {
    return await persistently(work, async (libvirt): Promise<ReportBodyOf<"restoreBundle">> => {
      const dom = await mustLookUp(libvirt, domain);
      await work.milestone("restoring");
      const tree = await completeTree(libvirt, dom, entries, wanted);
      return { kind: "restoreBundle", tree: summaryOf(tree) };
    });
  } catch (error) {
    throw faultOf(error, {
      code: "libvirt.failed",
      what: "The bundle could not be restored",
      action: "Remove what libvirt names, then run `vmferry bundle restore` again; it is safe to repeat.",
      retry: "safe",
    });
  }
};
