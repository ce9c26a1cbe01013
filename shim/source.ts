/**
 * The first steps on the source: export and begin (perform.ts, confirm.ts and restore.ts have the others).
 *
 * I1: from Begin on the source does not start by itself (autostart.ts). I3: it is stripped only after its live tree was
 * compared with the bundle, journalled before and after.
 */
import type { LibvirtConnection } from "#libvirt/client";
import { DomainXmlFlag } from "#libvirt/constants";
import { LibvirtError } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import type { ValueOf } from "#libvirt/shape";
import type { BundleEntry } from "#protocol/bundle";
import type { ReportBodyOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { clearAutostart } from "./autostart.ts";
import { migrateFlags, migrateParams } from "./flags.ts";
import { faultOf, isNoAnswer } from "./libvirt-fault.ts";
import { isStripped } from "./moment.ts";
import type { Step, Work } from "./ports.ts";
import { mustLookUp, type Probe, persistently, probeDomain, read } from "./probe.ts";
import { completeTree, redefineMissing, stripSnapshots, verifyTree } from "./snapshots.ts";
import { sourceRow } from "./source-recovery.ts";
import {
  differenceOf,
  dumpTree,
  entriesOf,
  type Listing,
  listTree,
  readBundleTree,
  readLiveTree,
  sameListing,
  snapshotChanged,
  type Tree,
} from "./tree-reader.ts";

/** Reads the whole tree into a bundle, lists again and compares, and puts the bundle into S3. Changes nothing. */
export const exportBundle: Step<"export"> = async (work) => {
  const { libvirt } = await work.connection();
  try {
    const dom = await mustLookUp(libvirt, work.command.domain);
    const listing = await listTree(libvirt, dom);
    const facts = await work.bundles.write({
      path: work.bundlePath,
      counts: {
        snapshots: listing.snapshots.length,
        checkpoints: listing.checkpoints.length,
        hasCurrent: listing.current !== null,
      },
      entries: exportedEntries(work, libvirt, dom, listing),
    });
    if (!sameListing(listing, await listTree(libvirt, dom)))
      throw snapshotChanged("a snapshot was taken, deleted or reverted to during the export");
    const { key } = await work.payloads.uploadBundle({
      path: work.bundlePath,
      sha256: facts.sha256,
      bytes: facts.bytes,
    });
    return { kind: "export", bundle: { ...facts, key } };
  } catch (error) {
    throw faultOf(error, {
      code: "libvirt.failed",
      what: "The snapshot tree could not be exported",
      action: "Look at the domain's snapshots on the source with `virsh snapshot-list`; nothing was changed.",
      retry: "safe",
    });
  }
};

async function* exportedEntries(
  work: Pick<Work, "progress">,
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  listing: Listing,
): AsyncGenerator<BundleEntry> {
  const flags = DomainXmlFlag.INACTIVE | DomainXmlFlag.SECURE | DomainXmlFlag.MIGRATABLE;
  const { xml } = await read(libvirt, procedures.domainGetXmlDesc, { dom, flags });
  yield { kind: "domain", name: dom.name, parent: null, current: false, xml };
  const total = listing.snapshots.length;
  let done = 0;
  for await (const entry of dumpTree(libvirt, listing)) {
    yield entry;
    if (entry.kind !== "snapshot") continue;
    done += 1;
    if (done % progressEvery === 0 || done === total) work.progress(snapshotProgress(done, total));
  }
}

/** Records between two progress messages: one for each would cost more than the record. */
const progressEvery = 50;

export function snapshotProgress(done: number, total: number): Parameters<Work["progress"]>[0] {
  return {
    memory: {
      totalBytes: 0,
      processedBytes: 0,
      remainingBytes: 0,
      bytesPerSecond: 0,
      dirtyPagesPerSecond: 0,
      iteration: 0,
    },
    disk: { totalBytes: 0, processedBytes: 0, remainingBytes: 0 },
    elapsedMs: 0,
    expectedDowntimeMs: null,
    snapshots: { done, total },
  };
}

/** How often begin strips again after libvirt's daemon went away in the middle. */
const beginAttemptsMax = 3;

/** Time between two attempts to give the source its tree back when what that needs is away. */
const putBackMs = 5_000;

/**
 * Strip, Begin3 without CHANGE_PROTECTION, redefine at once, whatever Begin said. libvirt checks for snapshots in Begin
 * only (qemuMigrationSrcBeginPhase), and without protection no job keeps the redefine out.
 *
 * I3: while the source lacks records, this ends only with them given back. Cut off in between it is taken up by the shim's
 * next start, and gives them back before anything else, from the bundle on this host and else from the bucket; nobody has
 * to ask for it. What is away is waited for without a bound: nobody else could do it either.
 */
export const begin: Step<"begin"> = async (work) => {
  const course: Course = { stripped: isStripped(work.history), attempts: 0 };
  for (;;) {
    try {
      return await beginOnce(work, course);
    } catch (error) {
      if (!course.stripped || !isAway(error)) throw error;
      await work.sleep(putBackMs);
    }
  }
};

interface Course {
  /** True while records are taken away. */
  stripped: boolean;
  attempts: number;
}

const isAway = (error: unknown) =>
  isNoAnswer(error) || (error instanceof Fault && error.retry === "safe" && error.code === "bundle.unreachable");

async function beginOnce(work: Work<"begin">, course: Course): Promise<ReportBodyOf<"begin">> {
  const { domain, options, bundle } = work.command;
  const entries = bundle === null ? null : entriesOf(work, await work.payloads.downloadBundle(bundle));
  const wanted = entries === null ? null : await readBundleTree(entries);
  const markRedefined = async () => {
    await work.milestone("redefined");
    course.stripped = false;
  };

  return persistently(work, async (libvirt): Promise<ReportBodyOf<"begin">> => {
    const dom = await mustLookUp(libvirt, domain);
    if (course.stripped && entries !== null && wanted !== null) {
      await completeTree(libvirt, dom, entries, wanted, "stripped");
      await markRedefined();
    }
    course.attempts += 1;
    if (course.attempts > beginAttemptsMax) throw goneInBegin();
    const listing = await listTree(libvirt, dom);
    await mustBeUnchanged(libvirt, dom, listing, wanted);
    await mustFit(libvirt, work);
    await clearAutostart(work, libvirt, dom);

    const flags = migrateFlags(options, false);
    const callBegin = () =>
      libvirt.call(procedures.domainMigrateBegin3Params, { dom, params: migrateParams(options), flags });
    let result: BeginResult;
    let strippedMs = 0;
    if (listing.snapshots.length === 0 || entries === null || wanted === null) result = await beginOrFault(callBegin);
    else {
      await work.milestone("stripping", { snapshots: listing.snapshots.length });
      course.stripped = true;
      // The comparison took a millisecond for each record: look once more at the last moment.
      if (!sameListing(listing, await listTree(libvirt, dom))) {
        await markRedefined();
        throw snapshotChanged("a snapshot was taken, deleted or reverted to while the tree was being compared");
      }
      const startedMs = Date.parse(work.now());
      const outcome = await settled(async () => {
        await stripSnapshots(libvirt, listing);
        await work.milestone("stripped");
        return beginOrFault(callBegin);
      });
      if (!outcome.ok && isNoAnswer(outcome.error)) throw outcome.error;
      const parentless = await redefineMissing(libvirt, dom, entries, wanted, "stripped");
      strippedMs = Math.max(0, Date.parse(work.now()) - startedMs);
      const tree = await verifyTree(libvirt, dom, wanted, true);
      await markRedefined();
      mustHaveNothingAdded(wanted, tree, parentless);
      if (!outcome.ok) throw outcome.error;
      result = outcome.value;
    }
    const { state } = await probeState(libvirt, domain.uuid);
    return {
      kind: "begin",
      cookie: await work.payloads.write(result.cookieOut),
      xml: await work.payloads.write(Buffer.from(result.xml, "utf8")),
      flags: migrateFlags(options, state === "paused"),
      strippedMs,
    };
  });
}

/** A snapshot that came while the source was stripped is its owner's: it stays, and the migration goes back. */
function mustHaveNothingAdded(wanted: Tree, live: Tree, parentless: readonly string[]): void {
  const added = [...live.nodes.entries()].flatMap(([key, { kind, name }]) =>
    wanted.nodes.has(key) ? [] : [`the ${kind} "${name}"`],
  );
  if (added.length === 0) return;
  const lost =
    parentless.length === 0
      ? "It was kept where its owner put it."
      : `It was kept, but ${parentless.map((name) => `"${name}"`).join(", ")} lost the link to its parent.`;
  throw snapshotChanged(`${added.join(", ")} was added while Begin was called`, lost);
}

type BeginResult = ValueOf<(typeof procedures)["domainMigrateBegin3Params"]["result"]>;

type Outcome<T> = { ok: true; value: T } | { ok: false; error: unknown };

async function settled<T>(act: () => Promise<T>): Promise<Outcome<T>> {
  try {
    return { ok: true, value: await act() };
  } catch (error) {
    return { ok: false, error };
  }
}

async function beginOrFault(call: () => Promise<BeginResult>): Promise<BeginResult> {
  try {
    return await call();
  } catch (error) {
    if (isNoAnswer(error)) throw error;
    if (error instanceof LibvirtError && /with \d+ snapshots/.test(error.message))
      throw snapshotChanged("a snapshot was taken between the strip and Begin");
    throw faultOf(error, {
      code: "begin.failed",
      what: "Begin on the source failed",
      action: "The source is as it was. Remove what libvirt names, then migrate again.",
      retry: "safe",
    });
  }
}

function goneInBegin(): Fault {
  return new Fault({
    code: "begin.failed",
    cause: `libvirt's daemon on the source went away ${beginAttemptsMax} times during Begin; the tree is complete again.`,
    action: "Look at the daemon's log on the source before you migrate again.",
    retry: "person",
  });
}

async function mustBeUnchanged(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  listing: Listing,
  wanted: Tree | null,
): Promise<void> {
  if (wanted === null) {
    if (listing.snapshots.length + listing.checkpoints.length === 0) return;
    throw snapshotChanged("a snapshot was taken after the inspection, which saw none");
  }
  const difference = differenceOf(wanted, await readLiveTree(libvirt, dom, listing));
  if (difference !== null) throw snapshotChanged(`${difference}, compared with the export`);
}

async function probeState(libvirt: LibvirtConnection, uuid: string): Promise<Extract<Probe, { present: true }>> {
  const probe = await probeDomain(libvirt, uuid);
  if (probe.present) return probe;
  throw new Fault({
    code: "domain.absent",
    cause: "The domain went away from the source.",
    action: "Look where it is with `vmferry domains`.",
    retry: "person",
  });
}

async function mustFit(libvirt: LibvirtConnection, work: Work<"begin">): Promise<void> {
  const probe = await probeState(libvirt, work.command.domain.uuid);
  const { do: action } = sourceRow(work, probe, { moment: "untouched" });
  if (action === "refuse" && probe.job === "none")
    throw new Fault({
      code: "domain.state",
      cause: "The domain was paused by another migration after the inspection, and is not this one's to move.",
      action: "Find out whether another copy runs; `vmferry migrations` names the migration to resolve.",
      retry: "person",
    });
  if (action === "refuse")
    throw new Fault({
      code: "domain.busy",
      cause: `A libvirt job (${probe.job}) is running on the domain.`,
      action: "Wait for it, or end it with `virsh domjobabort`.",
      retry: "safe",
    });
  if (probe.active === work.command.options.offline)
    throw new Fault({
      code: "domain.state",
      cause: `The domain was ${probe.active ? "started" : "shut off"} after the inspection: it is ${probe.state} now.`,
      action: "Migrate again.",
      retry: "safe",
    });
}
