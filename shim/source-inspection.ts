/** What hinders a domain from leaving its host, and what the destination has to know of it. Changes nothing. */
import type { LibvirtConnection } from "#libvirt/client";
import { LibvirtError } from "#libvirt/error";
import { procedures } from "#libvirt/procedures";
import type { ReportBodyOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { type DiskImage, type DomainFacts, readDomain } from "./domain-xml.ts";
import { encodeFacts, type FileFacts, type FileRole, type SourceFacts } from "./facts.ts";
import { Findings } from "./finding.ts";
import { noteLockManager, readLibvirtHost } from "./host-facts.ts";
import { missingSnapshots } from "./image-snapshots.ts";
import { faultOf } from "./libvirt-fault.ts";
import { hasNotRunSinceArrival, sendsInactiveSince } from "./paused-arrival.ts";
import type { Step, Work } from "./ports.ts";
import { mustLookUp, type Probe, probeDomain, read } from "./probe.ts";
import { readMoment } from "./snapshot-xml.ts";
import { identifyFile, readBootId } from "./storage.ts";
import { dumpTree, type Listing, listTree } from "./tree-reader.ts";
import { XmlError } from "./xml-reader.ts";

export const inspectSource: Step<"inspectSource"> = async (work) => {
  try {
    return await inspect(work);
  } catch (error) {
    throw faultOf(error, {
      code: "libvirt.failed",
      what: "The source could not be inspected",
      action: "Look at what libvirt names; nothing was changed.",
      retry: "safe",
    });
  }
};

async function inspect(work: Work<"inspectSource">): Promise<ReportBodyOf<"inspectSource">> {
  const libvirt = await work.inventory();
  const dom = await mustLookUp(libvirt, work.command.domain);
  const findings = new Findings();
  const [probe, info, { autostart }, { xml }, listing, host] = await Promise.all([
    probeDomain(libvirt, dom.uuid),
    read(libvirt, procedures.domainGetInfo, { dom }),
    read(libvirt, procedures.domainGetAutostart, { dom }),
    read(libvirt, procedures.domainGetXmlDesc, { dom, flags: 0 }),
    listTree(libvirt, dom),
    readLibvirtHost(libvirt),
  ]);
  if (!probe.present)
    throw new Fault({
      code: "domain.absent",
      cause: `The domain "${dom.name}" went away during the inspection.`,
      action: "Look where it is with `vmferry domains`.",
      retry: "safe",
    });
  const domain = readableDomain(xml);
  await findStateBlockers(libvirt, probe, findings);
  if (
    probe.state === "paused" &&
    host.hypervisorVersion < sendsInactiveSince &&
    (await hasNotRunSinceArrival(dom.uuid))
  )
    findings.blocker(
      "domain.state",
      "The domain arrived here paused and has not run since; its QEMU would die of sending it on.",
      "Let it run for some seconds (`virsh resume`, then `virsh suspend`), or update QEMU to 10.0 and restart the domain.",
    );
  await findDeviceBlockers(libvirt, probe, domain, findings);
  const files = new FileList();
  addDomainFiles(files, domain, probe.active);
  await addSnapshotFiles(libvirt, listing, files, findings);
  await noteLockManager(findings, "source");
  const facts: SourceFacts = {
    format: 1,
    hostUuid: host.uuid,
    bootId: await readBootId(),
    libvirtVersion: host.libvirtVersion,
    hypervisorVersion: host.hypervisorVersion,
    domain: { uuid: dom.uuid, name: dom.name, active: probe.active, memoryKiB: info.maxMem },
    virtType: domain.virtType,
    arch: domain.arch,
    machine: domain.machine,
    emulator: domain.emulator,
    cpu: domain.cpuXml === null ? null : { xml: domain.cpuXml, mode: domain.cpuMode ?? "custom" },
    secrets: domain.secrets,
    files: await files.identified(findings),
    pathless: files.pathless,
    snapshots: listing.snapshots.length,
    checkpoints: listing.checkpoints.length,
  };
  return {
    kind: "inspectSource",
    facts: await work.payloads.write(await encodeFacts(facts)),
    findings: findings.list(),
    carries: { snapshots: listing.snapshots.length, checkpoints: listing.checkpoints.length },
    domain: { name: dom.name, state: probe.state, memoryKiB: info.maxMem, vcpus: info.nrVirtCpu, autostart },
  };
}

function readableDomain(xml: string): DomainFacts {
  try {
    return readDomain(xml);
  } catch (error) {
    if (!(error instanceof XmlError)) throw error;
    throw new Fault({
      code: "domain.notMigratable",
      cause: `The domain's XML cannot be read: it is ${error.message}.`,
      action: "Look at it with `virsh dumpxml`; vmferry refuses what libvirt itself does not write.",
      retry: "never",
    });
  }
}

type Present = Extract<Probe, { present: true }>;
const migratableStates: ReadonlySet<string> = new Set(["running", "blocked", "paused", "shutoff"]);

async function findStateBlockers(libvirt: LibvirtConnection, probe: Present, findings: Findings): Promise<void> {
  if (!migratableStates.has(probe.state))
    findings.blocker(
      "domain.state",
      `The domain is in the state ${probe.state}, in which it cannot be moved.`,
      "Start it, wake it up or shut it down first.",
    );
  if (probe.pausedByMigration)
    findings.blocker(
      "domain.state",
      "The domain is paused by an earlier migration that has not been resolved.",
      "Find out whether another copy runs; `vmferry migrations` names the migration to resolve.",
    );
  if (probe.job !== "none")
    findings.blocker(
      "domain.busy",
      `A libvirt job (${probe.job}) is running on the domain.`,
      "Wait for it, or end it with `virsh domjobabort`.",
    );
  if (!probe.persistent)
    findings.blocker(
      "domain.transient",
      "The domain is transient: it has no definition that could be moved, and its snapshots end with it.",
      "Make it persistent with `virsh dumpxml` and `virsh define`, then migrate it.",
    );
  const { result: saved } = await read(libvirt, procedures.domainHasManagedSaveImage, { dom: probe.dom, flags: 0 });
  if (saved)
    findings.blocker(
      "domain.managedSave",
      "The domain has a managed save image, which libvirt would leave behind.",
      "Start the domain, or discard the image with `virsh managedsave-remove`.",
    );
}

async function findDeviceBlockers(
  libvirt: LibvirtConnection,
  probe: Present,
  domain: DomainFacts,
  findings: Findings,
): Promise<void> {
  for (const device of domain.hostDevices)
    findings.blocker("domain.hostdev", `The domain has ${device}.`, "Detach it with `virsh detach-device` first.");
  for (const what of domain.notMigratable)
    findings.blocker("domain.notMigratable", `The domain has ${what}, which QEMU cannot migrate.`, "Remove it first.");
  for (const disk of domain.disks) {
    if (disk.transient)
      findings.blocker(
        "domain.transientDisk",
        `The disk ${disk.target} is transient: what was written to it would be lost.`,
        "Take `<transient/>` out of its definition, or shut the domain down.",
      );
    if (disk.mirror || (await hasBlockJob(libvirt, probe, disk.target)))
      findings.blocker(
        "domain.blockJob",
        `A block job is running on the disk ${disk.target}.`,
        `Wait for it, or end it with \`virsh blockjob DOMAIN ${disk.target} --abort\`.`,
      );
  }
}

async function hasBlockJob(libvirt: LibvirtConnection, probe: Present, target: string): Promise<boolean> {
  if (!probe.active) return false;
  try {
    return (await read(libvirt, procedures.domainGetBlockJobInfo, { dom: probe.dom, path: target, flags: 0 })).found;
  } catch (error) {
    // A drive without an image cannot have one.
    if (error instanceof LibvirtError) return false;
    throw error;
  }
}

/** Every file the domain and its tree need, once each, with everything that needs it. */
class FileList {
  readonly #files = new Map<string, { role: FileRole; usedBy: string; cache: string | null; snapshots: Set<string> }>();
  readonly pathless: { type: string; label: string }[] = [];

  add(path: string, role: FileRole, usedBy: string, cache: string | null = null): void {
    // The first use names it: disks come before backing files and snapshots.
    if (!this.#files.has(path)) this.#files.set(path, { role, usedBy, cache, snapshots: new Set() });
  }

  addImage(image: DiskImage, role: FileRole, usedBy: string, cache: string | null = null): void {
    if (image.path !== null) this.add(image.path, role, usedBy, cache);
    else if (!this.pathless.some(({ label }) => label === image.label))
      this.pathless.push({ type: image.type, label: image.label });
  }

  addSnapshot(path: string, name: string): void {
    this.#files.get(path)?.snapshots.add(name);
  }

  async identified(findings: Findings): Promise<FileFacts[]> {
    const files: FileFacts[] = [];
    for (const [path, { role, usedBy, cache, snapshots }] of this.#files) {
      const identity = await identifyFile(path);
      if (identity.kind === "absent" && (role === "snapshot" || role === "memory"))
        findings.blocker(
          "snapshot.incomplete",
          `${path}, which ${usedBy} needs, is not there: that snapshot cannot be reverted even here.`,
          "Bring the file back, or delete the snapshot's metadata with `virsh snapshot-delete --metadata`.",
        );
      const held = await heldSnapshots(path, [...snapshots], findings);
      files.push({ identity, role, usedBy, cache, snapshots: held });
    }
    return files;
  }
}

/**
 * Which of the snapshots have their data in the image here: those must have it on the destination too. A record without
 * data is taken along as it is, since moving it loses nothing, but somebody has to know. Where qemu-img cannot tell, all count.
 */
async function heldSnapshots(path: string, names: string[], findings: Findings): Promise<string[]> {
  if (names.length === 0) return names;
  const seen = await missingSnapshots(path, names);
  if (!seen.readable || seen.missing.length === 0) return names;
  findings.risk(
    "snapshot.incomplete",
    `${path} lacks the data of ${seen.missing.length} of ${names.length} snapshots: ${seen.missing.slice(0, 5).join(", ")}. They cannot be reverted even here; their records are moved as they are.`,
    "Delete their metadata with `virsh snapshot-delete --metadata`, or accept the risk.",
    seen.missing.length,
  );
  const missing = new Set(seen.missing);
  return names.filter((name) => !missing.has(name));
}

function addDomainFiles(files: FileList, domain: DomainFacts, active: boolean): void {
  for (const disk of domain.disks) {
    if (disk.image === null) continue;
    const readonly = disk.readonly || disk.device === "cdrom";
    files.addImage(disk.image, readonly ? "readonly" : "disk", `disk ${disk.target}`, disk.cache);
  }
  for (const disk of domain.disks)
    for (const image of disk.backing) files.addImage(image, "backing", `disk ${disk.target}`);
  for (const path of domain.bootFiles) files.add(path, "boot", "the domain's boot");
  // A running domain's NVRAM travels in the stream; offline only a shared file does.
  if (domain.nvram !== null && !active) files.add(domain.nvram, "disk", "the domain's NVRAM");
}

/** Reads every snapshot: a broken record blocks here, where nothing has been touched. */
async function addSnapshotFiles(
  libvirt: LibvirtConnection,
  listing: Listing,
  files: FileList,
  findings: Findings,
): Promise<void> {
  try {
    for await (const { kind, name, xml } of dumpTree(libvirt, listing)) {
      if (kind !== "snapshot") continue;
      const moment = readMoment(xml);
      const usedBy = `the snapshot "${name}"`;
      if (moment.memory.file !== null) files.add(moment.memory.file, "memory", usedBy);
      const then = new Map((moment.domain?.disks ?? []).map((disk) => [disk.target, disk]));
      for (const disk of moment.disks) {
        if (disk.mode === "no") continue;
        if (disk.image !== null) files.addImage(disk.image, "snapshot", usedBy);
        const image = then.get(disk.target)?.image ?? null;
        if (image === null) continue;
        files.addImage(image, "snapshot", usedBy);
        if (disk.mode === "internal" && image.path !== null) files.addSnapshot(image.path, name);
      }
    }
  } catch (error) {
    if (error instanceof XmlError)
      findings.blocker("snapshot.incomplete", `A snapshot's record is ${error.message}.`, "Repair or delete it.");
    else if (error instanceof Fault && error.code === "snapshot.incomplete")
      findings.blocker(error.code, error.cause_, error.action);
    else throw error;
  }
}
