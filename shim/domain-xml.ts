/**
 * The few facts that vmferry reads out of libvirt's domain XML. Nothing is ever written back: what a host is given is, byte
 * for byte, what another host's libvirt wrote. Layouts: libvirt's formatdomain documentation, read from 9.0.0 and 11.3.0.
 */
import { attributeOf, childrenOf, elementAt, readXml, type XmlElement } from "./xml-reader.ts";

/** An image or device that holds a disk's data, as far as this host names it. */
export interface DiskImage {
  /** `file`, `block`, `network`, `dir`, `volume`, `nvme`, `vhostuser`, ... */
  type: string;
  /** Absolute path of a file or block device; null for what has none. */
  path: string | null;
  /** What to call it in a sentence: the path, or protocol and name. */
  label: string;
  format: string | null;
}

export interface DiskFacts {
  /** `vda`; unique in the domain. */
  target: string;
  device: string;
  /** Null for an empty drive. */
  image: DiskImage | null;
  /** Images below, nearest first, as the running QEMU knows them; empty when the XML does not say. */
  backing: DiskImage[];
  cache: string | null;
  readonly: boolean;
  shareable: boolean;
  transient: boolean;
  /** A block job (copy, active commit) is attached to this disk. */
  mirror: boolean;
}

export interface DomainFacts {
  uuid: string;
  name: string;
  /** `kvm`, `qemu`. */
  virtType: string;
  arch: string | null;
  machine: string | null;
  emulator: string | null;
  memoryKiB: number;
  vcpus: number;
  /** The `<cpu>` element as it stands, for compare_hypervisor_cpu; null when there is none. */
  cpuXml: string | null;
  cpuMode: string | null;
  disks: DiskFacts[];
  /** Files that must exist on the destination besides the disks: kernel, initrd, loader, nvram template. */
  bootFiles: string[];
  nvram: string | null;
  tpm: boolean;
  /** What libvirt cannot take along, in words. */
  hostDevices: string[];
  notMigratable: string[];
  /** UUIDs of secrets that disks and the TPM use. */
  secrets: string[];
}

const metadata: ReadonlySet<string> = new Set(["metadata", "description"]);

/** Reads a `<domain>` document. Throws `XmlError`; a missing uuid or name is one too. */
export function readDomain(xml: string): DomainFacts {
  return domainFacts(readXml(xml, { skip: metadata }));
}

export function domainFacts(root: XmlElement): DomainFacts {
  const devices = elementAt(root, "devices");
  const os = elementAt(root, "os");
  const type = elementAt(os ?? root, "type");
  const cpu = elementAt(root, "cpu");
  const nvram = elementAt(root, "os", "nvram");
  return {
    uuid: elementAt(root, "uuid")?.text ?? "",
    name: elementAt(root, "name")?.text ?? "",
    virtType: attributeOf(root, "type") ?? "",
    arch: attributeOf(type, "arch") ?? null,
    machine: attributeOf(type, "machine") ?? null,
    emulator: elementAt(root, "devices", "emulator")?.text ?? null,
    memoryKiB: memoryKiB(elementAt(root, "memory")),
    vcpus: Number(elementAt(root, "vcpu")?.text ?? "1"),
    cpuXml: cpu?.raw ?? null,
    cpuMode: cpu === undefined ? null : (attributeOf(cpu, "mode") ?? "custom"),
    disks: childrenOf(devices, "disk").map(diskFacts),
    bootFiles: bootFilesOf(os),
    nvram: nvram === undefined ? null : (attributeOf(elementAt(nvram, "source"), "file") ?? (nvram.text || null)),
    tpm: childrenOf(devices, "tpm").length > 0,
    hostDevices: hostDevicesOf(devices),
    notMigratable: notMigratableOf(root, devices),
    secrets: secretsOf(devices),
  };
}

const unitKiB: ReadonlyMap<string, number> = new Map([
  ["b", 1 / 1024],
  ["bytes", 1 / 1024],
  ["KB", 1000 / 1024],
  ["k", 1],
  ["KiB", 1],
  ["MB", 1e6 / 1024],
  ["M", 1024],
  ["MiB", 1024],
  ["GB", 1e9 / 1024],
  ["G", 1024 ** 2],
  ["GiB", 1024 ** 2],
  ["TB", 1e12 / 1024],
  ["T", 1024 ** 3],
  ["TiB", 1024 ** 3],
]);

function memoryKiB(element: XmlElement | undefined): number {
  const unit = unitKiB.get(attributeOf(element, "unit") ?? "KiB") ?? 1;
  return Math.ceil(Number(element?.text ?? "0") * unit);
}

function diskFacts(disk: XmlElement): DiskFacts {
  const driver = elementAt(disk, "driver");
  const backing: DiskImage[] = [];
  let store = elementAt(disk, "backingStore");
  while (store !== undefined) {
    const image = imageOf(store, attributeOf(elementAt(store, "format"), "type") ?? null);
    if (image !== null) backing.push(image);
    store = elementAt(store, "backingStore");
  }
  return {
    target: attributeOf(elementAt(disk, "target"), "dev") ?? "",
    device: attributeOf(disk, "device") ?? "disk",
    image: imageOf(disk, attributeOf(driver, "type") ?? null),
    backing,
    cache: attributeOf(driver, "cache") ?? null,
    readonly: elementAt(disk, "readonly") !== undefined,
    shareable: elementAt(disk, "shareable") !== undefined,
    transient: elementAt(disk, "transient") !== undefined,
    mirror: elementAt(disk, "mirror") !== undefined,
  };
}

/** The image of a `<disk>`, `<backingStore>` or snapshot `<disk>`: all carry `type` and `<source>`. */
export function imageOf(holder: XmlElement, format: string | null): DiskImage | null {
  const source = elementAt(holder, "source");
  if (source === undefined) return null;
  const type = attributeOf(holder, "type") ?? attributeOf(source, "type") ?? "file";
  const path = attributeOf(source, "file") ?? attributeOf(source, "dev") ?? null;
  if (path !== null) return { type, path, label: path, format };
  const named = [attributeOf(source, "protocol"), attributeOf(source, "pool"), attributeOf(source, "dir")]
    .concat(attributeOf(source, "name"), attributeOf(source, "volume"), attributeOf(source, "path"))
    .filter((part) => part !== undefined);
  // An empty CD drive of a running domain has a source with an index only.
  return named.length === 0 ? null : { type, path: null, label: `${type} ${named.join(":")}`, format };
}

function bootFilesOf(os: XmlElement | undefined): string[] {
  if (os === undefined) return [];
  const paths = ["kernel", "initrd", "dtb", "loader"].map((name) => elementAt(os, name)?.text ?? "");
  paths.push(attributeOf(elementAt(os, "nvram"), "template") ?? "");
  return paths.filter((path) => path.startsWith("/"));
}

/** Host devices that QEMU cannot migrate (qemu_migration.c, qemuMigrationSrcIsAllowedHostdev): USB is allowed, PCI only
 *  behind a transient teaming. */
function hostDevicesOf(devices: XmlElement | undefined): string[] {
  const found: string[] = [];
  for (const device of childrenOf(devices, "hostdev")) {
    const type = attributeOf(device, "type") ?? attributeOf(device, "mode") ?? "unknown";
    const teamed = attributeOf(elementAt(device, "teaming"), "type") === "transient";
    if (attributeOf(device, "mode") !== "subsystem") found.push(`a host device of mode ${attributeOf(device, "mode")}`);
    else if (type === "usb" || (type === "pci" && teamed)) continue;
    else found.push(`a ${type} host device`);
  }
  for (const net of childrenOf(devices, "interface")) {
    const type = attributeOf(net, "type");
    const teamed = attributeOf(elementAt(net, "teaming"), "type") === "transient";
    if (type === "vdpa" || (type === "hostdev" && !teamed)) found.push(`a network interface of type ${type}`);
  }
  return found;
}

function notMigratableOf(root: XmlElement, devices: XmlElement | undefined): string[] {
  const found: string[] = [];
  for (const filesystem of childrenOf(devices, "filesystem")) {
    const driver = attributeOf(elementAt(filesystem, "driver"), "type");
    const external = attributeOf(elementAt(filesystem, "source"), "socket") !== undefined;
    if (driver === "virtiofs" && external) continue;
    found.push(`a shared folder (${driver === "virtiofs" ? "virtiofs" : "9p"})`);
  }
  for (const shmem of childrenOf(devices, "shmem")) {
    if (attributeOf(shmem, "role") !== "master") found.push("shared memory whose role is not master");
  }
  const cpu = elementAt(root, "cpu");
  const invariant = childrenOf(cpu, "feature").some(
    (feature) => attributeOf(feature, "name") === "invtsc" && attributeOf(feature, "policy") !== "disable",
  );
  const frequency = childrenOf(elementAt(root, "clock"), "timer").some(
    (timer) => attributeOf(timer, "name") === "tsc" && attributeOf(timer, "frequency") !== undefined,
  );
  if (invariant && !frequency) found.push("the CPU feature invtsc without a fixed TSC frequency");
  return found;
}

function secretsOf(devices: XmlElement | undefined): string[] {
  const uuids = new Set<string>();
  const visit = (element: XmlElement): void => {
    const uuid = attributeOf(element, "uuid");
    if (element.name === "secret" && uuid !== undefined) uuids.add(uuid.toLowerCase());
    // <encryption secret='UUID'> of a TPM.
    const named = attributeOf(element, "secret");
    if (element.name === "encryption" && named !== undefined) uuids.add(named.toLowerCase());
    for (const child of element.children) visit(child);
  };
  for (const name of ["disk", "tpm"]) for (const device of childrenOf(devices, name)) visit(device);
  return [...uuids];
}
