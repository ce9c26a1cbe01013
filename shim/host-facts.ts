/** Facts of a libvirt host that both inspections need. */
import { readFile } from "node:fs/promises";
import type { LibvirtConnection } from "#libvirt/client";
import { procedures } from "#libvirt/procedures";
import type { Findings } from "./finding.ts";
import { read } from "./probe.ts";
import { elementAt, readXml } from "./xml-reader.ts";

export interface LibvirtHost {
  uuid: string;
  /** Numbers as libvirt gives them: major * 1,000,000 + minor * 1,000 + release. */
  libvirtVersion: number;
  hypervisorVersion: number;
}

export async function readLibvirtHost(libvirt: LibvirtConnection): Promise<LibvirtHost> {
  const [{ capabilities }, { libVer }, { hvVer }] = await Promise.all([
    read(libvirt, procedures.connectGetCapabilities, {}),
    read(libvirt, procedures.connectGetLibVersion, {}),
    read(libvirt, procedures.connectGetVersion, {}),
  ]);
  const uuid = elementAt(readXml(capabilities), "host", "uuid")?.text.toLowerCase() ?? "";
  return { uuid, libvirtVersion: libVer, hypervisorVersion: hvVer };
}

const qemuConf = "/etc/libvirt/qemu.conf";

/** Says when no lock manager guards the images. A note: vmferry's own rules hold without one, another tool's may not. */
export async function noteLockManager(findings: Findings, side: string, path = qemuConf): Promise<void> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch {
    return;
  }
  if (/^\s*lock_manager\s*=\s*"(?!nop")[^"]+"/m.test(text)) return;
  findings.note(
    "lock.none",
    `No lock manager is set on the ${side} (${path}), so libvirt itself would not stop a second copy started by hand.`,
    "Set lock_manager to lockd or sanlock on all hosts of the fleet.",
  );
}
