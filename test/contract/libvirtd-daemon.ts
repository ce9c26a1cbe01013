/**
 * One real libvirtd for itself: own mount and UTS namespace, own folders, own host UUID. Root is needed. Ends with
 * everything it started, QEMU included, each by its own pid.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { access, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const libvirtd = "/usr/sbin/libvirtd";
/** libvirtd is up in under 2 s on an idle machine; the rest is for a busy one. */
const readyWaitMs = 30_000;
const pollMs = 50;

export type LibvirtDaemon = {
  readonly name: string;
  readonly socketPath: string;
  readonly pid: number;
  stop(): Promise<void>;
};

/** Why no real daemon can be started here, or undefined when one can. */
export async function libvirtdMissing(): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return "not root";
  for (const path of [libvirtd, "/usr/bin/qemu-system-x86_64", "/usr/bin/unshare"]) {
    try {
      await access(path);
    } catch {
      return `${path} is not installed`;
    }
  }
  return undefined;
}

export type DaemonOptions = {
  /** Appears as /var/lib/libvirt/images inside, so that two hosts can share disks. */
  readonly imagesDir?: string;
  readonly keepaliveIntervalS?: number;
  readonly keepaliveCount?: number;
};

/** `name` becomes the hostname inside. */
export async function startLibvirtd(name: string, options: DaemonOptions = {}): Promise<LibvirtDaemon> {
  const { imagesDir, keepaliveIntervalS, keepaliveCount } = options;
  const base = await mkdtemp(join(tmpdir(), `vmferry-${name}-`));
  const folders = { run: "/run/libvirt", lib: "/var/lib/libvirt", etc: "/etc/libvirt", log: "/var/log/libvirt" };
  const mounts = { ...folders, cache: "/var/cache/libvirt" };
  for (const folder of Object.keys(mounts)) await mkdir(join(base, folder), { recursive: true });
  await mkdir(join(base, "lib/images"), { recursive: true });
  await mkdir(join(base, "etc/qemu"), { recursive: true });
  await writeFile(
    join(base, "etc/libvirtd.conf"),
    [
      `host_uuid = "${randomUUID()}"`,
      'unix_sock_dir = "/run/libvirt"',
      'auth_unix_rw = "none"',
      'auth_unix_ro = "none"',
      ...(keepaliveIntervalS === undefined ? [] : [`keepalive_interval = ${keepaliveIntervalS}`]),
      ...(keepaliveCount === undefined ? [] : [`keepalive_count = ${keepaliveCount}`]),
      "",
    ].join("\n"),
  );
  await writeFile(
    join(base, "etc/qemu.conf"),
    [
      'user = "root"',
      'group = "root"',
      'security_driver = "none"',
      "cgroup_controllers = []",
      "namespaces = []",
      'stdio_handler = "file"',
      "remember_owner = 0",
      "",
    ].join("\n"),
  );
  const script = [
    "set -e",
    `hostname ${name}`,
    ...Object.entries(mounts).map(([folder, path]) => `mkdir -p ${path}; mount --bind '${base}/${folder}' ${path}`),
    ...(imagesDir === undefined ? [] : [`mount --bind '${imagesDir}' /var/lib/libvirt/images`]),
    // libvirtd takes the pid of the shell and of unshare before it, so that one pid is the whole daemon.
    `exec ${libvirtd} -f /etc/libvirt/libvirtd.conf -p /run/libvirt/libvirtd.pid`,
  ].join("\n");
  let log = "";
  const child = spawn("unshare", ["-m", "-u", "sh", "-c", script], {
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
  });
  child.stdout.on("data", (chunk) => {
    log += chunk;
  });
  child.stderr.on("data", (chunk) => {
    log += chunk;
  });
  const socketPath = join(base, "run/libvirt-sock");
  try {
    await untilReady(child, socketPath);
  } catch (error) {
    await stop(child, base);
    throw new Error(`libvirtd did not come up: ${log}`, { cause: error });
  }
  const pid = child.pid;
  if (pid === undefined) throw new Error("libvirtd has no pid");
  return { name, socketPath, pid, stop: () => stop(child, base) };
}

async function untilReady(child: ChildProcess, socketPath: string): Promise<void> {
  const deadline = performance.now() + readyWaitMs;
  while (performance.now() < deadline) {
    if (child.exitCode !== null) throw new Error(`exit code ${child.exitCode}`);
    if (await accepts(socketPath)) return;
    await sleep(pollMs);
  }
  throw new Error(`no socket after ${readyWaitMs} ms`);
}

function accepts(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection({ path: socketPath });
    socket.on("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });
}

async function stop(child: ChildProcess, base: string): Promise<void> {
  const ended = child.exitCode !== null || child.signalCode !== null;
  const gone = ended ? Promise.resolve() : new Promise<void>((resolve) => child.once("exit", () => resolve()));
  if (!ended) child.kill("SIGTERM");
  if (!(await Promise.race([gone.then(() => true), sleep(5_000, false)]))) child.kill("SIGKILL");
  await gone;
  for (const file of await readdir(join(base, "run/qemu")).catch(() => [])) {
    if (file.endsWith(".pid")) killQemu(Number(await readFile(join(base, "run/qemu", file), "utf8")));
  }
  await rm(base, { recursive: true, force: true, maxRetries: 5 });
}

function killQemu(pid: number): void {
  try {
    if (Number.isSafeInteger(pid) && pid > 1) process.kill(pid, "SIGKILL");
  } catch {
    // Already gone, which is what was wanted.
  }
}
