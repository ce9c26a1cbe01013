/** The calls of the `inventory` vectors: everything on one host that needs no running domain. */
import { connectLibvirt, type LibvirtConnection } from "#libvirt/client";
import { CheckpointCreateFlag, DomainXmlFlag, SnapshotCreateFlag, SnapshotListFlag } from "#libvirt/constants";
import { isUnsupported, LibvirtError } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { type Procedure, procedures as p } from "#libvirt/procedures";

/** A refusal is a vector too; anything but libvirt's own refusal ends the recording. */
async function attempt<A, R>(connection: LibvirtConnection, procedure: Procedure<A, R>, args: A): Promise<void> {
  try {
    await connection.call(procedure, args);
  } catch (error) {
    if (!(error instanceof LibvirtError)) throw error;
    if (isUnsupported(error)) console.log(`${procedure.name}: ${error.message}`);
  }
}

function snapshotXml(dom: RemoteDomain, name: string, parent: string | undefined): string {
  const above = parent === undefined ? "" : `<parent><name>${parent}</name></parent>`;
  return (
    `<domainsnapshot><name>${name}</name>${above}<creationTime>1700000000</creationTime><state>shutoff</state>` +
    `<memory snapshot='no'/><disks/><domain type='qemu'><name>${dom.name}</name><uuid>${dom.uuid}</uuid>` +
    "<memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type></os></domain></domainsnapshot>"
  );
}

export async function recordInventory(socketPath: string): Promise<void> {
  const connection = await connectLibvirt({ socketPath, keepalive: true });
  const questions = ["Type", "Version", "LibVersion", "Hostname", "Uri", "Capabilities"] as const;
  for (const name of questions) {
    await attempt<Readonly<Record<string, never>>, unknown>(connection, p[`connectGet${name}`], {});
  }
  await connection.call(p.nodeGetInfo, {});
  await connection.call(p.nodeGetFreeMemory, {});
  await connection.call(p.nodeGetMemoryStats, { nparams: 0, cellNum: -1, flags: 0 });
  await connection.call(p.nodeGetMemoryStats, { nparams: 4, cellNum: -1, flags: 0 });
  await connection.call(p.nodeGetCpuMap, { needMap: true, needOnline: true, flags: 0 });
  await connection.call(p.nodeGetSecurityModel, {});
  const cpu = { emulator: null, arch: null, machine: null, virttype: "qemu" };
  const xmlCpu = "<cpu mode='custom' match='exact'><model>qemu64</model></cpu>";
  await attempt(connection, p.connectCompareHypervisorCpu, { ...cpu, xmlCpu, flags: 0 });
  await attempt(connection, p.connectBaselineHypervisorCpu, { ...cpu, xmlCpus: [xmlCpu], flags: 0 });
  const subscription = await connection.onLifecycle(() => {});

  const xml =
    "<domain type='qemu'><name>inactive</name><title>Überfahrt</title><memory unit='MiB'>32</memory>" +
    "<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>";
  const { dom } = await connection.call(p.domainDefineXmlFlags, { xml, flags: 0 });
  await connection.call(p.connectListAllDomains, { needResults: true, flags: 0 });
  await connection.call(p.domainLookupByName, { name: "inactive" });
  await connection.call(p.domainLookupByUuid, { uuid: dom.uuid });
  await attempt(connection, p.domainLookupByName, { name: "absent" });
  await attempt(connection, p.domainLookupById, { id: 77 });
  await connection.call(p.domainGetXmlDesc, { dom, flags: DomainXmlFlag.SECURE | DomainXmlFlag.INACTIVE });
  for (const name of ["domainIsActive", "domainIsPersistent", "domainGetAutostart", "domainGetInfo"] as const) {
    await attempt<{ dom: RemoteDomain }, unknown>(connection, p[name], { dom });
  }
  await connection.call(p.domainSetAutostart, { dom, autostart: true });
  await connection.call(p.domainSetAutostart, { dom, autostart: false });
  for (const name of ["domainGetState", "domainHasManagedSaveImage", "domainMigrateGetMaxSpeed"] as const) {
    await attempt<{ dom: RemoteDomain; flags: number }, unknown>(connection, p[name], { dom, flags: 0 });
  }
  const uri = "https://vmferry.invalid/labels";
  const metadata = { dom, type: 2, uri, flags: 0 };
  await connection.call(p.domainSetMetadata, {
    ...metadata,
    metadata: "<labels><tier>a</tier></labels>",
    key: "vmferry",
  });
  await connection.call(p.domainGetMetadata, metadata);

  for (const [name, parent] of [
    ["s1", undefined],
    ["s2", "s1"],
    ["s3", "s1"],
  ] as const) {
    const flags = SnapshotCreateFlag.REDEFINE | (name === "s2" ? SnapshotCreateFlag.CURRENT : 0);
    await connection.call(p.domainSnapshotCreateXml, { dom, xmlDesc: snapshotXml(dom, name, parent), flags });
  }
  await connection.call(p.domainSnapshotNum, { dom, flags: 0 });
  const flags = SnapshotListFlag.TOPOLOGICAL;
  const { snapshots } = await connection.call(p.domainListAllSnapshots, { dom, needResults: true, flags });
  await connection.call(p.domainHasCurrentSnapshot, { dom, flags: 0 });
  await connection.call(p.domainSnapshotCurrent, { dom, flags: 0 });
  await connection.call(p.domainSnapshotLookupByName, { dom, name: "s3", flags: 0 });
  await attempt(connection, p.domainSnapshotLookupByName, { dom, name: "absent", flags: 0 });
  for (const snap of snapshots.toReversed()) {
    await connection.call(p.domainSnapshotGetXmlDesc, { snap, flags: 1 });
    await connection.call(p.domainSnapshotIsCurrent, { snap, flags: 0 });
    await connection.call(p.domainSnapshotHasMetadata, { snap, flags: 0 });
    await connection.call(p.domainSnapshotDelete, { snap, flags: 2 });
  }
  const checkpointXml =
    "<domaincheckpoint><name>c1</name><creationTime>1700000000</creationTime><disks/>" +
    `<domain type='qemu'><name>inactive</name><uuid>${dom.uuid}</uuid><memory unit='MiB'>32</memory>` +
    "<os><type arch='x86_64' machine='pc'>hvm</type></os></domain></domaincheckpoint>";
  const redefine = { dom, xmlDesc: checkpointXml, flags: CheckpointCreateFlag.REDEFINE };
  await attempt(connection, p.domainCheckpointCreateXml, redefine);
  await attempt(connection, p.domainListAllCheckpoints, { dom, needResults: true, flags: 2 });
  await attempt(connection, p.domainCheckpointLookupByName, { dom, name: "c1", flags: 0 });
  const checkpoint = { name: "c1", dom };
  await attempt(connection, p.domainCheckpointGetXmlDesc, { checkpoint, flags: 1 });
  await attempt(connection, p.domainCheckpointDelete, { checkpoint, flags: 2 });
  await connection.call(p.domainUndefineFlags, { dom, flags: 2 | 16 });

  await attempt(connection, p.storagePoolLookupByName, { name: "absent" });
  await attempt(connection, p.storageVolLookupByPath, { path: "/var/lib/libvirt/images/m.qcow2" });
  await attempt(connection, p.connectListAllStoragePools, { needResults: true, flags: 0 });
  await attempt(connection, p.connectListAllSecrets, { needResults: true, flags: 0 });
  await attempt(connection, p.secretLookupByUuid, { uuid: "00000000-0000-4000-8000-000000000001" });
  await subscription.cancel();
  await connection.close();
}
