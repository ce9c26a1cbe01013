/**
 * Guests: a domain XML for the counting guest, booting it on a lab host, and clearing it from all hosts.
 */
import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { guestImage } from "./guest-image.ts";
import type { Host } from "./host.ts";
import { SerialWitness, type SerialWitnessOptions } from "./serial-witness.ts";
import { escapeXml } from "./virsh.ts";

const run = promisify(execFile);

/** Boots in 75 MiB under load; room to spare without making each migration and snapshot slower. */
export const defaultMemoryMiB = 192;
/** Room for snapshots: each live one stores the guest's used memory, 60-80 MiB, in the image. The image is sparse. */
const diskMiB = 64;
/** 8 s on an idle machine under emulation; other guests may share its two cores. */
const bootTimeoutMs = 120_000;

/**
 * Over a round size: QEMU before 9.0, emulating, forgets its TLB when it reads its dirty bitmap by whole words, and a write by an old
 * entry stays behind on the source (fixed by its commit 03bfc2188f06; Debian 12 has 7.2). A RAM block of pages that do not fill the
 * last word is read page by page, which does it right. libvirt rounds `<memory>` up, so QEMU is told behind its back.
 */
const oddMemoryKiB = 8;

function exactDirtyPages(memoryMiB: number): string {
  const memoryKiB = memoryMiB * 1024 + oddMemoryKiB;
  const object = `memory-backend-ram,id=odd.ram,size=${memoryKiB * 1024}`;
  const words = ["-object", object, "-machine", "memory-backend=odd.ram", "-m", `${memoryKiB}k`];
  const args = words.map((word) => `<qemu:arg value='${word}'/>`).join("");
  return `<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>${args}</qemu:commandline>`;
}

export interface DomainXmlOptions {
  readonly name: string;
  readonly uuid: string;
  readonly disk: string;
  readonly serialLog: string;
  readonly kernel: string;
  readonly initramfs: string;
  readonly cmdline: string;
  /** QEMU writes all of the serial output to this file as well; a path that is another file on each host tells who wrote it. */
  readonly serialCopy?: string;
  readonly memoryMiB?: number;
  /** Inner XML of `<metadata>`: elements with a namespace of their own. */
  readonly metadata?: string;
  /** A whole `<cpu>` element; left out, QEMU's default runs anywhere. */
  readonly cpuXml?: string;
  /** More elements of `<domain>`, and of `<devices>`. */
  readonly extra?: string;
  readonly extraDevices?: string;
  /** cache attribute of the disk; libvirt calls only none and directsync safe to migrate. */
  readonly diskCache?: string;
  /** Default true: a migration of an emulated guest loses no write by QEMU's own fault. */
  readonly exactDirtyPages?: boolean;
}

/** XML of the counting guest. Plain emulation (`type='qemu'`): KVM is not everywhere. */
export function domainXml(options: DomainXmlOptions): string {
  const copy = options.serialCopy === undefined ? "" : `<log file='${escapeXml(options.serialCopy)}' append='on'/>`;
  return `<domain type='qemu'>
  <name>${escapeXml(options.name)}</name>
  <uuid>${options.uuid}</uuid>
  ${options.metadata === undefined ? "" : `<metadata>${options.metadata}</metadata>`}
  <memory unit='MiB'>${options.memoryMiB ?? defaultMemoryMiB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>${escapeXml(options.kernel)}</kernel>
    <initrd>${escapeXml(options.initramfs)}</initrd>
    <cmdline>${escapeXml(options.cmdline)}</cmdline>
  </os>
  <features><acpi/></features>
  ${options.cpuXml ?? ""}
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  ${options.exactDirtyPages === false ? "" : exactDirtyPages(options.memoryMiB ?? defaultMemoryMiB)}
  ${options.extra ?? ""}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='${options.diskCache ?? "none"}' io='threads'/>
      <source file='${escapeXml(options.disk)}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'>
      <source path='${escapeXml(options.serialLog)}' append='on'/>
      ${copy}
      <target port='0'/>
    </serial>
    <console type='file'>
      <source path='${escapeXml(options.serialLog)}' append='on'/>
      ${copy}
      <target type='serial' port='0'/>
    </console>
    ${options.extraDevices ?? ""}
  </devices>
</domain>
`;
}

export interface GuestOptions {
  /** Default `guest`. */
  readonly name?: string;
  /** Default fresh. */
  readonly uuid?: string;
  readonly memoryMiB?: number;
  readonly metadata?: string;
  readonly cpuXml?: string;
  readonly extra?: string;
  readonly extraDevices?: string;
  readonly diskCache?: string;
  readonly exactDirtyPages?: boolean;
  /**
   * "shared" (default): all hosts append to one file, an outside reader sees one stream. "perHost": the same path is a
   * different file on each host (`serialLogOn`), so two running copies show as two files that grow.
   */
  readonly serial?: "shared" | "perHost";
  /** Besides the shared log each host keeps a copy of what its own QEMU wrote (`serialCopyOn`). */
  readonly serialCopies?: boolean;
  /** Pause between two ticks in ms, default 10; and ticks between two lines on the disk, default 100. */
  readonly tickPauseMs?: number;
  readonly diskTicks?: number;
  /** How its serial log is read. */
  readonly witness?: SerialWitnessOptions;
  /** Define only; do not start. */
  readonly inactive?: boolean;
}

export interface Guest {
  readonly name: string;
  readonly uuid: string;
  /** The XML it was defined from. */
  readonly xml: string;
  /** qcow2 image in the shared folder. */
  readonly disk: string;
  /** Reads the serial log: of all hosts when shared, else of the host it was booted on. */
  readonly witness: SerialWitness;
  /** Path, from outside, of the serial log as written by QEMU on that host. */
  serialLogOn(host: Host): string;
  /** Path, from outside, of that host's own copy (`serialCopies`). */
  serialCopyOn(host: Host): string;
}

/** A fresh qcow2 image. */
export async function createDisk(path: string, sizeMiB: number = diskMiB): Promise<void> {
  await run("qemu-img", ["create", "-q", "-f", "qcow2", path, `${sizeMiB}M`]);
}

/** Names of the internal snapshots in a qcow2 image; works while QEMU has it open. */
export async function imageSnapshots(path: string): Promise<string[]> {
  const { stdout } = await run("qemu-img", ["snapshot", "-U", "-l", path], { env: { ...process.env, LC_ALL: "C" } });
  return stdout
    .split("\n")
    .map((line) => /^\d+\s+(\S+)/.exec(line)?.[1])
    .filter((name) => name !== undefined);
}

/** Defines and starts a guest on the host with a fresh disk, and waits until it ticks (unless `inactive`). */
export async function bootGuest(host: Host, options: GuestOptions = {}): Promise<Guest> {
  const name = options.name ?? "guest";
  const uuid = options.uuid ?? randomUUID();
  const image = await guestImage();
  const disk = join(host.storageDir, `${name}.qcow2`);
  const perHost = options.serial === "perHost";
  // libvirt's log folder is a private mount of each host, so one path in the XML is one file per host.
  const serialLog = perHost ? `/var/log/libvirt/serial-${name}.log` : join(host.storageDir, `${name}.serial`);
  const serialLogOn = (on: Host) => (perHost ? join(on.dir, "log", `serial-${name}.log`) : serialLog);
  const copyName = `serial-copy-${name}.log`;
  const serialCopyOn = (on: Host) => join(on.dir, "log", copyName);
  const copy = options.serialCopies === true ? { serialCopy: `/var/log/libvirt/${copyName}` } : {};
  const pace = [
    ...(options.tickPauseMs === undefined ? [] : [`tick_s=${options.tickPauseMs / 1000}`]),
    ...(options.diskTicks === undefined ? [] : [`disk_ticks=${options.diskTicks}`]),
  ];
  const cmdline = [image.cmdline, ...pace].join(" ");
  await mkdir(host.storageDir, { recursive: true });
  for (const log of [serialLogOn(host), serialCopyOn(host)]) await rm(log, { force: true });
  await createDisk(disk);
  const xml = domainXml({ ...options, ...image, ...copy, cmdline, name, uuid, disk, serialLog });
  await host.virsh.define(xml);
  const witness = new SerialWitness(serialLogOn(host), options.witness ?? {}).start();
  const guest: Guest = { name, uuid, xml, disk, witness, serialLogOn, serialCopyOn };
  if (options.inactive === true) return guest;
  try {
    await host.virsh.start(name);
    // The second tick: the first one may be cut in half by firmware output.
    await witness.waitForTickAfter(1, bootTimeoutMs);
    return guest;
  } catch (error) {
    await destroyGuest(guest, [host]);
    throw error;
  }
}

/** Removes the guest from these hosts, running or not, with its snapshot metadata, disk and serial logs. */
export async function destroyGuest(guest: Guest, hosts: readonly Host[]): Promise<void> {
  await guest.witness.stop();
  for (const host of hosts) {
    await host.virsh.destroy(guest.name);
    await host.virsh.undefine(guest.name);
    for (const log of [guest.serialLogOn(host), guest.serialCopyOn(host)]) await rm(log, { force: true });
  }
  await rm(guest.disk, { force: true });
}
