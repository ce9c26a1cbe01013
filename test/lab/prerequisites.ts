/**
 * What the lab needs of the machine, and how to get it on Debian.
 *
 * Only effects are looked at (a program, a kernel image), so other ways of installing them count too. The machine's own
 * libvirtd is neither needed nor touched.
 */
import { spawn } from "node:child_process";
import { access, constants, readdir } from "node:fs/promises";
import { delimiter, join } from "node:path";

/** Everything the lab uses; without --no-install-recommends it would be several hundred MB more. */
export const debianPackages: readonly string[] = [
  "qemu-system-x86",
  "qemu-utils",
  "libvirt-daemon-system",
  "libvirt-daemon-driver-qemu",
  "libvirt-clients",
  "linux-image-cloud-amd64",
  "busybox-static",
  "cpio",
  "iproute2",
  "util-linux",
];

const installWords = ["apt-get", "install", "-y", "--no-install-recommends", ...debianPackages];

/** The line a person without root is given. */
export const installCommand = `sudo sh -c 'apt-get update && DEBIAN_FRONTEND=noninteractive ${installWords.join(" ")}'`;

const programs: readonly { name: string; debianPackage: string }[] = [
  { name: "qemu-system-x86_64", debianPackage: "qemu-system-x86" },
  { name: "qemu-img", debianPackage: "qemu-utils" },
  { name: "libvirtd", debianPackage: "libvirt-daemon-system" },
  { name: "virsh", debianPackage: "libvirt-clients" },
  { name: "unshare", debianPackage: "util-linux" },
  { name: "ip", debianPackage: "iproute2" },
  { name: "busybox", debianPackage: "busybox-static" },
  { name: "cpio", debianPackage: "cpio" },
];

/** libvirt's QEMU driver is a plug-in: without it libvirtd runs and knows no qemu:///system. */
const qemuDriverPaths = [
  "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
  "/usr/lib64/libvirt/connection-driver/libvirt_driver_qemu.so",
  "/usr/lib/libvirt/connection-driver/libvirt_driver_qemu.so",
];

/** The machine cannot hold a lab now. `action` is the exact next command. */
export class LabRefusal extends Error {
  override readonly name = "LabRefusal";
  readonly action: string;
  constructor(cause: string, action: string) {
    super(`${cause}\nNext: ${action}`);
    this.action = action;
  }
}

async function readable(path: string, mode: number = constants.R_OK): Promise<boolean> {
  return access(path, mode).then(
    () => true,
    () => false,
  );
}

/** Absolute path of a program; Debian keeps daemons in sbin, which a plain user's PATH lacks. */
export async function findProgram(name: string): Promise<string | undefined> {
  const dirs = [
    ...(process.env.PATH ?? "").split(delimiter),
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
    "/usr/bin",
    "/bin",
  ];
  for (const dir of dirs) {
    const path = join(dir || ".", name);
    if (await readable(path, constants.X_OK)) return path;
  }
  return undefined;
}

export interface GuestKernel {
  readonly path: string;
  /** e.g. 6.1.0-56-cloud-amd64 */
  readonly release: string;
}

/** The newest readable cloud kernel that has its modules. */
export async function findKernel(): Promise<GuestKernel | undefined> {
  const releases = (await readdir("/boot").catch(() => []))
    .map((name) => /^vmlinuz-(.*-cloud-amd64)$/.exec(name)?.[1])
    .filter((release) => release !== undefined)
    .sort((left, right) => right.localeCompare(left, "en", { numeric: true }));
  for (const release of releases) {
    const path = `/boot/vmlinuz-${release}`;
    if ((await readable(path)) && (await readable(`/lib/modules/${release}/modules.dep`))) return { path, release };
  }
  return undefined;
}

/** Debian packages whose effect is not there; empty when the lab can start. */
export async function missingPackages(): Promise<string[]> {
  const missing = new Set<string>();
  for (const program of programs) {
    if ((await findProgram(program.name)) === undefined) missing.add(program.debianPackage);
  }
  const drivers = await Promise.all(qemuDriverPaths.map((path) => readable(path)));
  if (!drivers.includes(true)) missing.add("libvirt-daemon-driver-qemu");
  if ((await findKernel()) === undefined) missing.add("linux-image-cloud-amd64");
  return [...missing];
}

/** True when this process may build namespaces and install packages. */
export function isRoot(): boolean {
  return process.getuid?.() === 0;
}

/**
 * Throws a LabRefusal that names the cause and the exact next command unless a lab can start here and now.
 * `command` is how the caller was started, for the sentence about root.
 */
export async function requirePrerequisites(command: string): Promise<void> {
  if (process.platform !== "linux" || process.arch !== "x64") {
    throw new LabRefusal(
      `the lab runs libvirt hosts on Linux x86-64, and this is ${process.platform} ${process.arch}`,
      "run it on a Debian 12 machine or VM",
    );
  }
  const missing = await missingPackages();
  if (missing.length > 0) {
    throw new LabRefusal(`the lab needs these Debian packages: ${missing.join(" ")}`, installCommand);
  }
  if (!isRoot())
    throw new LabRefusal("the lab builds mount namespaces and runs libvirtd, which needs root", `sudo ${command}`);
}

/**
 * Installs what is missing. Does nothing, and says nothing, when nothing is. Says what it does before it does it.
 * Throws LabRefusal without root, without apt, or when apt fails.
 */
export async function installPrerequisites({ log }: { log: (line: string) => void }): Promise<void> {
  const missing = await missingPackages();
  if (missing.length === 0) return;
  if ((await findProgram("apt-get")) === undefined) {
    throw new LabRefusal(
      `missing: ${missing.join(" ")} (Debian names), and there is no apt-get here`,
      "install their equivalents, then run this again",
    );
  }
  if (!isRoot())
    throw new LabRefusal(`missing Debian packages: ${missing.join(" ")}; installing needs root`, installCommand);
  log(`installing Debian packages, missing: ${missing.join(" ")}`);
  log("+ apt-get update");
  await apt(["apt-get", "update"], log, installCommand);
  log(`+ ${installWords.join(" ")}`);
  await apt(installWords, log, installCommand);
  const still = await missingPackages();
  if (still.length > 0)
    throw new LabRefusal(`apt-get succeeded, yet these are missing: ${still.join(" ")}`, installCommand);
}

/** Only the last lines are kept: apt says its cause at the end. */
const aptTailLines = 20;

function apt(words: readonly string[], log: (line: string) => void, action: string): Promise<void> {
  const [program = "apt-get", ...rest] = words;
  return new Promise((resolve, reject) => {
    const child = spawn(program, rest, {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C" },
    });
    const tail: string[] = [];
    const take = (chunk: string) => {
      for (const line of chunk.split("\n")) {
        if (line.trim() === "") continue;
        tail.push(line);
        if (tail.length > aptTailLines) tail.shift();
        if (/^(Setting up|E:|W:)/.test(line)) log(`  ${line}`);
      }
    };
    child.stdout.setEncoding("utf8").on("data", take);
    child.stderr.setEncoding("utf8").on("data", take);
    child.once("error", reject);
    child.once("close", (code) => {
      if (code === 0) return resolve();
      reject(new LabRefusal(`${words.slice(0, 2).join(" ")} ended with ${code}:\n${tail.join("\n")}`, action));
    });
  });
}

/**
 * For `node:test`: false when a lab can start here, else why not, as the `skip` of a test. A skipped test is shown with
 * the reason; with VMFERRY_LAB=required (continuous integration) it is false, so the test runs and fails.
 */
export async function labSkipReason(): Promise<string | false> {
  if (process.env.VMFERRY_LAB === "required") return false;
  try {
    await requirePrerequisites("npm test");
    return false;
  } catch (error) {
    if (error instanceof LabRefusal) return `NO LAB: ${error.message}`;
    throw error;
  }
}

/** A program that is found by its name; or, where it lies outside every PATH or is none, a file. */
export interface Tool {
  name: string;
  path?: string;
  debianPackage: string;
}

/** What the tests of a host's own shutdown need: a bus of their own, systemd's own logind on it, and something that answers as PID 1. */
const logindTools: readonly Tool[] = [
  { name: "dbus-daemon", debianPackage: "dbus" },
  { name: "systemd-logind", path: "/lib/systemd/systemd-logind", debianPackage: "systemd" },
  { name: "systemd-inhibit", debianPackage: "systemd" },
  { name: "busctl", debianPackage: "systemd" },
  { name: "setpriv", debianPackage: "util-linux" },
  { name: "dbusmock", path: "/usr/lib/python3/dist-packages/dbusmock/__init__.py", debianPackage: "python3-dbusmock" },
];

/**
 * For a test that needs programs of its own, which the lab does not: false when they are there, or could be installed now
 * (root on Debian), else why not and what to do, as the `skip` of a test. With VMFERRY_LAB=required it is always false, so
 * the test runs and fails. `what` names the thing in the reason.
 */
export async function toolsSkipReason(what: string, tools: readonly Tool[]): Promise<string | false> {
  const missing = async () => {
    const packages = new Set<string>();
    for (const { name, path, debianPackage } of tools)
      if (path === undefined ? (await findProgram(name)) === undefined : !(await readable(path)))
        packages.add(debianPackage);
    return [...packages];
  };
  const lacking = await missing();
  if (lacking.length === 0) return false;
  const words = ["apt-get", "install", "-y", "--no-install-recommends", ...lacking];
  const action = `sudo sh -c 'apt-get update && DEBIAN_FRONTEND=noninteractive ${words.join(" ")}'`;
  try {
    if ((await findProgram("apt-get")) === undefined || !isRoot())
      throw new LabRefusal(`missing Debian packages: ${lacking.join(" ")}; installing needs root on Debian`, action);
    console.log(`installing Debian packages, missing: ${lacking.join(" ")}`);
    await apt(["apt-get", "update"], console.log, action);
    await apt(words, console.log, action);
    const still = await missing();
    if (still.length > 0) throw new LabRefusal(`apt-get succeeded, yet these are missing: ${still.join(" ")}`, action);
    return false;
  } catch (error) {
    if (!(error instanceof LabRefusal)) throw error;
    return process.env.VMFERRY_LAB === "required" ? false : `NO ${what}: ${error.message}`;
  }
}

/** Why the tests of a host's own shutdown cannot run here; false: they can. */
export const logindSkipReason = async (): Promise<string | false> =>
  isRoot()
    ? toolsSkipReason("LOGIND", logindTools)
    : "NO LOGIND: a mount namespace of its own needs root; run it as root, in a container if you like";
