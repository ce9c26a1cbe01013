/** What hinders a domain from arriving on this host. Changes nothing. */
import type { LibvirtConnection } from "#libvirt/client";
import { ErrorCode } from "#libvirt/constants";
import { isNoDomain, isUnsupported, LibvirtError } from "#libvirt/error";
import { procedures } from "#libvirt/procedures";
import { formatVersion } from "#libvirt/version";
import { decodeFacts, type FileFacts, type SourceFacts } from "./facts.ts";
import { Findings } from "./finding.ts";
import { type LibvirtHost, noteLockManager, readLibvirtHost } from "./host-facts.ts";
import { missingSnapshots } from "./image-snapshots.ts";
import { faultOf } from "./libvirt-fault.ts";
import type { Step, Work } from "./ports.ts";
import { probeDomain, read } from "./probe.ts";
import { compareFiles, identifyFile, isAllowedPath, readBootId, type Sameness } from "./storage.ts";

export const inspectDestination: Step<"inspectDestination"> = async (work) => {
  try {
    const libvirt = await work.inventory();
    const facts = await decodeFacts(await work.payloads.read(work.command.facts));
    const findings = new Findings();
    const host = await readLibvirtHost(libvirt);
    await findIdentityBlockers(libvirt, facts, host, findings);
    findVersionBlockers(facts, host, findings);
    await findCapabilityBlockers(libvirt, facts, findings);
    await findSecretBlockers(libvirt, facts, findings);
    const storageProven = await findStorageBlockers(work, facts, findings);
    await noteLockManager(findings, "destination");
    if (facts.domain.active)
      findings.note(
        "transport.clear",
        "The guest's memory crosses the network without TLS.",
        "Keep the migration address on a network of its own.",
      );
    return { kind: "inspectDestination", findings: findings.list(), storageProven };
  } catch (error) {
    throw faultOf(error, {
      code: "libvirt.failed",
      what: "The destination could not be inspected",
      action: "Look at what libvirt names; nothing was changed.",
      retry: "safe",
    });
  }
};

async function findIdentityBlockers(
  libvirt: LibvirtConnection,
  { domain, hostUuid }: SourceFacts,
  host: LibvirtHost,
  findings: Findings,
): Promise<void> {
  if (host.uuid === hostUuid)
    findings.blocker(
      "destination.duplicateUuid",
      `Both hosts have the host UUID ${host.uuid}, so libvirt takes them for one and refuses.`,
      "Set a host_uuid of its own in /etc/libvirt/libvirtd.conf of one of them.",
    );
  const probe = await probeDomain(libvirt, domain.uuid);
  if (probe.present && probe.active)
    findings.blocker(
      "destination.active",
      `A copy of "${domain.name}" is ${probe.state} on the destination.`,
      "Find out which copy is the right one before anything else.",
    );
  else if (probe.present)
    findings.blocker(
      "destination.defined",
      `"${domain.name}" is defined on the destination already and shut off.`,
      `If it is a stale copy, run \`virsh undefine ${domain.uuid} --snapshots-metadata --keep-nvram\` there.`,
    );
  try {
    const { dom } = await read(libvirt, procedures.domainLookupByName, { name: domain.name });
    if (dom.uuid !== domain.uuid)
      findings.blocker(
        "destination.nameTaken",
        `Another domain on the destination is named "${domain.name}" (${dom.uuid}).`,
        "Rename one of them with `virsh domrename`.",
      );
  } catch (error) {
    if (!isNoDomain(error)) throw error;
  }
}

function findVersionBlockers(facts: SourceFacts, host: LibvirtHost, findings: Findings): void {
  const carries = facts.snapshots + facts.checkpoints > 0;
  if (host.libvirtVersion < facts.libvirtVersion) {
    const cause = `The destination's libvirt ${formatVersion(host.libvirtVersion)} is older than the source's ${formatVersion(facts.libvirtVersion)}`;
    if (carries)
      findings.blocker(
        "destination.version",
        `${cause}: it would drop from the snapshots' records what it does not know.`,
        "Update libvirt on the destination.",
      );
    else findings.risk("destination.version", `${cause}.`, "Update libvirt on the destination, or accept the risk.");
  }
  if (host.hypervisorVersion < facts.hypervisorVersion && carries)
    findings.risk(
      "snapshot.revertUncertain",
      `The destination's QEMU ${formatVersion(host.hypervisorVersion)} is older than the source's ${formatVersion(facts.hypervisorVersion)}: it may not be able to revert to snapshots taken there.`,
      "Update QEMU on the destination, or accept the risk.",
    );
}

/** VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE: an incompatible CPU is an error that names the missing features. */
const failIncompatible = 1;

async function findCapabilityBlockers(
  libvirt: LibvirtConnection,
  facts: SourceFacts,
  findings: Findings,
): Promise<void> {
  const { emulator, arch, machine, virtType: virttype } = facts;
  try {
    const args = { emulatorbin: emulator, arch, machine, virttype, flags: 0 };
    await read(libvirt, procedures.connectGetDomainCapabilities, args);
  } catch (error) {
    if (!(error instanceof LibvirtError)) throw error;
    findings.blocker(
      "destination.version",
      `The destination cannot run machine ${machine ?? "?"} (${arch ?? "?"}, ${virttype}) with ${emulator ?? "its emulator"}: ${error.message}`,
      "Install the same QEMU on the destination, or update it.",
    );
    return;
  }
  if (!facts.domain.active) return;
  await findMemoryBlocker(libvirt, facts, findings);
  if (facts.cpu === null) return;
  if (facts.cpu.mode === "host-passthrough" || facts.cpu.mode === "maximum") {
    findings.risk(
      "destination.cpu",
      `The domain's CPU mode is ${facts.cpu.mode}, which only an identical host can run; libvirt cannot compare it.`,
      "Accept the risk if both hosts have the same CPU, microcode and kernel.",
    );
    return;
  }
  try {
    const args = { emulator, arch, machine, virttype, xmlCpu: facts.cpu.xml, flags: failIncompatible };
    const { result } = await read(libvirt, procedures.connectCompareHypervisorCpu, args);
    if (result <= 0) findings.blocker("destination.cpu", "The destination cannot run the domain's CPU.", cpuAction);
  } catch (error) {
    if (!(error instanceof LibvirtError)) throw error;
    const { code, message } = error;
    if (code === ErrorCode.CPU_INCOMPATIBLE)
      findings.blocker("destination.cpu", `The destination cannot run the domain's CPU: ${message}`, cpuAction);
    else if (!isUnsupported(error))
      findings.risk(
        "destination.cpu",
        `libvirt on the destination cannot compare the domain's CPU: ${message}`,
        "Accept the risk if both hosts have the same CPU.",
      );
  }
}

const cpuAction = "Choose a host with that CPU, or give the domain a CPU model that all hosts have.";

/** Free memory and what the kernel gives back at once, against what the domain may use. */
async function findMemoryBlocker(libvirt: LibvirtConnection, facts: SourceFacts, findings: Findings): Promise<void> {
  const ask = (nparams: number) => read(libvirt, procedures.nodeGetMemoryStats, { nparams, cellNum: -1, flags: 0 });
  const { params } = await ask((await ask(0)).nparams);
  const of = (field: string) => Number(params.find((param) => param.field === field)?.value ?? 0n);
  const availableKiB = of("free") + of("buffers") + of("cached");
  if (availableKiB === 0 || availableKiB >= facts.domain.memoryKiB) return;
  findings.blocker(
    "destination.memory",
    `The domain needs ${Math.ceil(facts.domain.memoryKiB / 1024)} MiB, the destination has ${Math.floor(availableKiB / 1024)} MiB available.`,
    "Free memory there, or choose another destination.",
  );
}

async function findSecretBlockers(libvirt: LibvirtConnection, facts: SourceFacts, findings: Findings): Promise<void> {
  for (const uuid of facts.secrets) {
    try {
      await read(libvirt, procedures.secretLookupByUuid, { uuid });
    } catch (error) {
      if (!(error instanceof LibvirtError)) throw error;
      findings.blocker(
        "destination.secretMissing",
        `The secret ${uuid}, which the domain's storage needs, is not on the destination: ${error.message}`,
        "Define it there with `virsh secret-define` and `virsh secret-set-value`; secrets are never moved.",
      );
    }
  }
}

/** Returns true when every disk that the domain writes to is proven to be shared, at least one of them by us alone. */
async function findStorageBlockers(
  work: Work<"inspectDestination">,
  facts: SourceFacts,
  findings: Findings,
): Promise<boolean> {
  const sameMachine = facts.bootId === (await readBootId());
  const proofs: Sameness[] = [];
  for (const file of facts.files) {
    const here = await identifyFile(file.identity.path);
    const { path } = here;
    if (!isAllowedPath(path, work.allowPaths)) {
      findings.blocker(
        "storage.unreachable",
        `${path} (${file.usedBy}) is outside of the folders that the destination's shim allows.`,
        "Add its folder with --allow-path on the destination.",
      );
      continue;
    }
    if (here.kind === "absent" || here.kind === "unreadable") {
      findings.blocker(
        "storage.unreachable",
        `${path} (${file.usedBy}) is ${here.kind} on the destination.`,
        "Mount the storage that holds it on the destination, under the same path.",
      );
      continue;
    }
    const sameness = isStablePath(path) ? "shared" : compareFiles(file.identity, here, sameMachine);
    if (file.role === "disk") {
      proofs.push(sameness);
      findDiskRisk(file, sameness, facts, findings);
    } else if (sameness === "different" || (sameness === "unproven" && file.identity.bytes !== here.bytes))
      findOtherFile(file, here.bytes, findings);
    await findMissingSnapshots(file, findings);
  }
  for (const { type, label } of facts.pathless)
    if (type !== "network")
      findings.risk(
        "storage.notShared",
        `Whether ${label} is the same storage on both hosts cannot be seen from here.`,
        "Accept the risk if it is.",
      );
  return proofs.includes("same") && proofs.every((proof) => proof === "same" || proof === "shared");
}

/** Names that udev makes from the disk's own identity are the same disk wherever they appear. */
function isStablePath(path: string): boolean {
  return /^\/dev\/disk\/by-id\/(wwn-|scsi-|nvme-|dm-uuid-)/.test(path);
}

function findDiskRisk(file: FileFacts, sameness: Sameness, facts: SourceFacts, findings: Findings): void {
  const { path } = file.identity;
  if (sameness === "different")
    findings.blocker(
      "storage.notShared",
      `${path} (${file.usedBy}) is another file on the destination than on the source.`,
      "Mount the source's storage on the destination, under the same path.",
    );
  if (sameness === "unproven")
    findings.risk(
      "storage.notShared",
      `Whether ${path} (${file.usedBy}) is the same storage on both hosts cannot be proven.`,
      "Accept the risk only if both hosts see the very same storage there; two copies would part.",
    );
  // Newer QEMU drops the destination's cache itself; on one machine there is one cache only.
  const stale = file.cache !== "none" && file.cache !== "directsync";
  if (stale && sameness !== "same" && facts.hypervisorVersion < dropsCacheSince)
    findings.risk(
      "storage.cacheMode",
      `${path} (${file.usedBy}) has cache mode ${file.cache ?? "default"}: the destination may read stale data.`,
      "Set cache='none' on the disk, or accept the risk.",
    );
}

/** QEMU 4.0.0 has the file driver's drop-cache; libvirt takes every cache mode as safe then (qemuMigrationSrcIsSafe). Inferred, not tried. */
const dropsCacheSince = 4_000_000;

function findOtherFile(file: FileFacts, bytesHere: number, findings: Findings): void {
  findings.risk(
    "storage.notShared",
    `${file.identity.path} (${file.usedBy}) differs on the two hosts: ${file.identity.bytes} bytes there, ${bytesHere} here.`,
    "Make them equal, or accept the risk if the difference does not matter.",
  );
}

/** A revert on the destination needs the data, not only the record. */
async function findMissingSnapshots(file: FileFacts, findings: Findings): Promise<void> {
  if (file.snapshots.length === 0) return;
  const seen = await missingSnapshots(file.identity.path, file.snapshots);
  if (!seen.readable)
    findings.risk(
      "snapshot.revertUncertain",
      `Whether ${file.identity.path} holds the snapshots' data cannot be seen on the destination: ${seen.cause}`,
      "Install qemu-img there, or accept the risk.",
    );
  else if (seen.missing.length > 0)
    findings.blocker(
      "snapshot.dataUnreachable",
      `${file.identity.path} as the destination sees it lacks the data of ${seen.missing.length} snapshots: ${seen.missing.slice(0, 5).join(", ")}.`,
      "Look with `qemu-img snapshot -l -U` on both hosts; delete the metadata of snapshots whose data is gone.",
    );
}
