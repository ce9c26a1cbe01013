/** Doctor's look at the machine itself: Node, CPU, ports, address, storage, lock manager. Reads only. */
import { lookup } from "node:dns/promises";
import { readFile, realpath } from "node:fs/promises";
import { createServer } from "node:net";
import { hostname } from "node:os";
import type { Diagnosis } from "./doctor-command.ts";

const nodeMajorMin = 22;
/** libvirt's default range for incoming migrations (qemu.conf, migration_port_min and _max). */
const migrationPorts = { first: 49_152, last: 49_215 };
const qemuConf = "/etc/libvirt/qemu.conf";
const defaultImageDir = "/var/lib/libvirt/images";

/** File systems that several hosts mount at once. */
const sharedFileSystems =
  /^(nfs4?|cifs|smb3|ceph|fuse\.(ceph|glusterfs|sshfs|s3fs|juicefs)|gfs2|ocfs2|glusterfs|lustre|beegfs|9p|virtiofs|gpfs)$/;

const textOf = (path: string): Promise<string | null> => readFile(path, "utf8").catch(() => null);

export async function checkNode(): Promise<Diagnosis> {
  const fit = Number(process.versions.node.split(".")[0]) >= nodeMajorMin;
  return {
    check: "Node",
    verdict: fit ? "ok" : "fail",
    says: process.versions.node,
    action: fit ? "" : `Run the shim with Node ${nodeMajorMin} or newer.`,
  };
}

export async function checkCpu(): Promise<Diagnosis> {
  const cpu = (await textOf("/proc/cpuinfo")) ?? "";
  const model = /^model name\s*:\s*(.+)$/m.exec(cpu)?.[1] ?? process.arch;
  const kvm = (await textOf("/proc/misc"))?.split("\n").some((line) => line.endsWith(" kvm")) === true;
  return {
    check: "CPU",
    verdict: kvm ? "ok" : "warn",
    says: `${model}${kvm ? ", KVM" : ", no KVM: guests are emulated"}`,
    action: kvm
      ? ""
      : "Switch virtualisation on in the firmware and load kvm_intel or kvm_amd, if guests should be fast.",
  };
}

/** Ports that another program holds. A firewall cannot be seen from here, so it is named. */
export async function checkPorts(): Promise<Diagnosis> {
  const ports = Array.from(
    { length: migrationPorts.last - migrationPorts.first + 1 },
    (_, n) => migrationPorts.first + n,
  );
  const free = (await Promise.all(ports.map(canListen))).filter(Boolean).length;
  const range = `${migrationPorts.first}-${migrationPorts.last}`;
  return {
    check: "ports",
    verdict: free === 0 ? "fail" : free < ports.length ? "warn" : "ok",
    says: `${free} of ${ports.length} ports free in ${range}; the other hosts must reach them through any firewall`,
    action: free === ports.length ? "" : `See who listens there: ss -ltnp 'sport >= ${migrationPorts.first}'.`,
  };
}

const canListen = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen({ port, exclusive: true }, () => server.close(() => resolve(true)));
  });

/** Without --migration-address libvirt tells the source this host's name; a name that means loopback sends the domain nowhere. */
export async function checkAddress(given: string | undefined): Promise<Diagnosis> {
  const check = "address";
  const name = given ?? hostname();
  const found = await lookup(name, { all: true }).catch(() => []);
  const addresses = found.map(({ address }) => address);
  const loopback = (address: string) => address.startsWith("127.") || address === "::1";
  const action = "Give the shim --migration-address ADDR with an address that the other hosts reach.";
  if (addresses.length === 0) return { check, verdict: "warn", says: `${name} does not resolve here`, action };
  const local = addresses.every(loopback);
  return {
    check,
    verdict: local ? "warn" : "ok",
    says: `${given === undefined ? `hostname ${name}` : name} is ${addresses.join(", ")}`,
    action: local ? action : "",
  };
}

interface Mount {
  at: string;
  type: string;
}

/** Mount points, longest first; spaces are written as \\040 there (proc(5)). */
export function parseMounts(text: string): Mount[] {
  return text
    .split("\n")
    .flatMap((line) => {
      const [, at, type] = line.split(" ");
      return at === undefined || type === undefined
        ? []
        : [
            {
              at: at.replaceAll(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))),
              type,
            },
          ];
    })
    .sort((one, other) => other.at.length - one.at.length);
}

/** The file system that a path is on. */
export const mountOf = (mounts: readonly Mount[], path: string): Mount | undefined =>
  mounts.find(({ at }) => path === at || path.startsWith(at.endsWith("/") ? at : `${at}/`));

export async function checkStorage(dirs: readonly string[]): Promise<Diagnosis> {
  const mounts = parseMounts((await textOf("/proc/self/mounts")) ?? "");
  const asked = [...new Set(dirs.length > 0 ? dirs : [defaultImageDir])];
  const places = await Promise.all(
    asked.map(async (dir) => {
      const path = await realpath(dir).catch(() => null);
      const type = path === null ? null : (mountOf(mounts, path)?.type ?? "unknown");
      return { dir, type, shared: type !== null && sharedFileSystems.test(type) };
    }),
  );
  const shared = places.some((place) => place.shared);
  return {
    check: "shared storage",
    verdict: shared ? "ok" : "warn",
    says: places.map(({ dir, type, shared: is }) => `${dir} (${type ?? "absent"}${is ? ", shared" : ""})`).join(", "),
    action: shared
      ? ""
      : "Put disks where all hosts mount the same storage (--dir names other folders). The check before a migration proves each file.",
  };
}

export async function checkLockManager(path = qemuConf): Promise<Diagnosis> {
  const check = "lock manager";
  const text = await textOf(path);
  if (text === null)
    return { check, verdict: "unknown", says: `${path} cannot be read`, action: "Run doctor as root." };
  const name = /^\s*lock_manager\s*=\s*"([^"]+)"/m.exec(text)?.[1];
  const set = name !== undefined && name !== "nop";
  return {
    check,
    verdict: set ? "ok" : "warn",
    says: set ? name : `none in ${path}: libvirt itself would not stop a second copy started by hand`,
    action: set ? "" : "Set lock_manager to lockd or sanlock on all hosts.",
  };
}
