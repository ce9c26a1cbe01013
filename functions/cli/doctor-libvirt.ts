/** Doctor's questions to libvirt, asked read-only: reachable, new enough, which QEMU, which identity, where disks lie. */
import { existsSync } from "node:fs";
import { parseLibvirtAddress } from "#libvirt/address";
import { connectLibvirt, type LibvirtConnection } from "#libvirt/client";
import { procedures } from "#libvirt/procedures";
import { formatVersion } from "#libvirt/version";
import { readLibvirtHost } from "#shim/host-facts";
import { elementAt, readXml } from "#shim/xml-reader";
import type { Diagnosis } from "./doctor-command.ts";

/** 6.3.0 is the first to redefine checkpoints of a domain that is not active (qemu_checkpoint.c), which staging needs. */
const libvirtVersionMin = 6_003_000;
/** QEMU of the same spring; older ones are not tested. */
const qemuVersionMin = 5_000_000;
const waitMsMax = 20_000;
/** VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE (libvirt-storage.h). */
const activePools = 2;

export async function checkLibvirt(
  address: string | undefined,
  signal: AbortSignal,
): Promise<{ diagnoses: Diagnosis[]; storageDirs: string[] }> {
  let connection: LibvirtConnection | null = null;
  try {
    const { socketPath, uri } = parseLibvirtAddress(address, existsSync);
    const patience = AbortSignal.any([signal, AbortSignal.timeout(waitMsMax)]);
    connection = await connectLibvirt({ socketPath, uri, readOnly: true, signal: patience });
    const host = await readLibvirtHost(connection);
    const storageDirs = await poolDirs(connection).catch(() => []);
    return { diagnoses: [...versions(host, socketPath), identity(host.uuid)], storageDirs };
  } catch (error) {
    signal.throwIfAborted();
    const action =
      error instanceof Error && "action" in error && typeof error.action === "string"
        ? error.action
        : "Look at the daemon: systemctl status libvirtd virtqemud. Name its socket with --libvirt.";
    const says = error instanceof Error ? error.message : "it does not answer";
    return { diagnoses: [{ check: "libvirt", verdict: "fail", says, action }], storageDirs: [] };
  } finally {
    await connection?.close();
  }
}

function versions(host: { libvirtVersion: number; hypervisorVersion: number }, socketPath: string): Diagnosis[] {
  const judge = (check: string, version: number, least: number): Diagnosis => ({
    check,
    verdict: version >= least ? "ok" : "fail",
    says: `${formatVersion(version)}${check === "libvirt" ? ` at ${socketPath}` : ""}`,
    action: version >= least ? "" : `Update to ${formatVersion(least)} or newer.`,
  });
  return [
    judge("libvirt", host.libvirtVersion, libvirtVersionMin),
    judge("QEMU", host.hypervisorVersion, qemuVersionMin),
  ];
}

/** Two hosts with one UUID are one host to libvirt; boards without a serial number are known to share theirs. */
function identity(uuid: string): Diagnosis {
  const suspicious =
    uuid === "" || /^([0f-])\1*$/.test(uuid.replaceAll("-", "")) || uuid.startsWith("03000200-0400-0500");
  return {
    check: "host UUID",
    verdict: suspicious ? "fail" : "ok",
    says: uuid === "" ? "libvirt names none" : `${uuid}${suspicious ? ", which other boards have as well" : ""}`,
    action: suspicious ? "Set host_uuid in libvirtd.conf (uuidgen makes one) and restart the daemon." : "",
  };
}

/** Target paths of the active pools that are folders. */
async function poolDirs(connection: LibvirtConnection): Promise<string[]> {
  const { pools } = await connection.call(procedures.connectListAllStoragePools, {
    needResults: true,
    flags: activePools,
  });
  const dirs: string[] = [];
  for (const pool of pools) {
    const { xml } = await connection.call(procedures.storagePoolGetXmlDesc, { pool, flags: 0 });
    const path = elementAt(readXml(xml), "target", "path")?.text;
    if (path !== undefined && existsSync(path)) dirs.push(path);
  }
  return dirs;
}
