/**
 * One libvirt host on a machine shared with others: libvirtd in its own mount and UTS namespace, with private folders
 * where libvirt keeps its state, a name, a host UUID and a loopback address of its own.
 *
 * All state is in `dir`, so a daemon started again in a fresh namespace finds its running QEMUs and its domains as
 * after a restart on a real host. The namespaces end with their last process: no mount can be left behind.
 */
import { spawn } from "node:child_process";
import { chmod, copyFile, mkdir, open, readdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { makeMemoryFolder, removeMemoryFolder } from "./memory-folder.ts";
import { findProgram, LabRefusal } from "./prerequisites.ts";
import {
  identify,
  isAlive,
  killHard,
  type ProcessIdentity,
  processesOf,
  signal,
  waitForExit,
} from "./process-table.ts";
import { Virsh } from "./virsh.ts";

/** sun_path holds 108 bytes with its closing zero. */
const socketPathBytesMax = 107;
/** Two seconds on an idle machine; a minute where four hosts start while guests run under emulation. */
const startTimeoutMs = 60_000;
/** A daemon that does not answer SIGTERM in this time is killed, as systemd would. */
const terminateTimeoutMs = 10_000;
const pollMs = 50;
/** Ports a host may listen on for incoming memory and disk transfers: several migrations at once, and NBD. */
export const migrationPortsPerHost = 16;

/**
 * What libvirt found out about the QEMU binaries: 4 s per binary and host under emulation, and the same for all. libvirt
 * checks each record against the binary, itself and the kernel before it believes it, so a stale one does no harm.
 */
const capabilitiesCacheDir = "/var/cache/vmferry-lab/capabilities";

/** Folder in `dir` -> where libvirt in the namespace looks. */
const mounts: readonly (readonly [string, string])[] = [
  ["run", "/run/libvirt"],
  ["lib", "/var/lib/libvirt"],
  ["etc", "/etc/libvirt"],
  ["log", "/var/log/libvirt"],
  ["cache", "/var/cache/libvirt"],
];

export interface HostOptions {
  readonly name: string;
  /** Host UUID as other hosts see it; equal UUIDs make libvirt refuse a migration as one to itself. */
  readonly uuid: string;
  /** Private folder of this host; short, because a unix socket lives in it. */
  readonly dir: string;
  /** Folder that all hosts of the lab share, for disks and serial logs. */
  readonly storageDir: string;
  /** Loopback address for incoming migrations. */
  readonly migrationAddress: string;
  readonly migrationPortMin: number;
  /** name -> address of every host of the lab, as /etc/hosts would have it. */
  readonly addresses: Readonly<Record<string, string>>;
  /** More lines for qemu.conf and libvirtd.conf; a later line wins. */
  readonly qemuConf?: readonly string[];
  readonly libvirtdConf?: readonly string[];
}

export class Host {
  readonly name: string;
  readonly uuid: string;
  readonly dir: string;
  readonly storageDir: string;
  /** Absolute path of libvirt's read-write socket, usable from outside the namespace. */
  readonly socket: string;
  /** Connection URI for virsh from outside: `qemu:///system?socket=...`. */
  readonly uri: string;
  /** Where other hosts reach this one for memory transfer; `tcp:ADDRESS` is a valid migrate URI. */
  readonly migrationAddress: string;
  readonly virsh: Virsh;
  readonly #options: HostOptions;

  constructor(options: HostOptions) {
    this.name = options.name;
    this.uuid = options.uuid;
    this.dir = options.dir;
    this.storageDir = options.storageDir;
    this.migrationAddress = options.migrationAddress;
    this.socket = join(options.dir, "run", "libvirt-sock");
    if (Buffer.byteLength(this.socket) > socketPathBytesMax) {
      throw new LabRefusal(
        `${this.socket} is longer than a unix socket path may be (${socketPathBytesMax} bytes)`,
        "choose a shorter folder with --dir",
      );
    }
    this.virsh = new Virsh(this.socket);
    this.uri = this.virsh.uri;
    this.#options = options;
  }

  /** Folder in which this host's libvirt keeps snapshot metadata, `<domain>/<snapshot>.xml`; seen from outside. */
  get snapshotDir(): string {
    return join(this.dir, "lib", "qemu", "snapshot");
  }

  /** libvirtd's own log; the QEMU logs are in `log/qemu/`. */
  get logPath(): string {
    return join(this.dir, "libvirtd.log");
  }

  /** Starts libvirtd and waits until it answers. Throws with the end of its log when it does not. */
  async start(): Promise<void> {
    if ((await this.daemon()) !== undefined) throw new Error(`libvirtd of ${this.name} runs already`);
    await this.#writeConfiguration();
    const libvirtd = await findProgram("libvirtd");
    const unshare = await findProgram("unshare");
    if (libvirtd === undefined || unshare === undefined) throw new Error("libvirtd or unshare is not installed");
    const log = await open(this.logPath, "a", 0o600);
    try {
      const script = [
        "set -e",
        'busybox hostname "$2"',
        ...mounts.map(([from, to]) => `mkdir -p ${to}; mount --bind "$1/${from}" ${to}`),
        'mount --bind "$1/hosts" /etc/hosts',
        'exec "$3" --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirt/libvirtd.pid',
      ].join("\n");
      const words = [
        "-m",
        "-u",
        "--propagation",
        "private",
        "--",
        "/bin/sh",
        "-c",
        script,
        "sh",
        this.dir,
        this.name,
        libvirtd,
      ];
      // A session of its own: a Ctrl-C at the terminal reaches us, and we end the hosts in order.
      const child = spawn(unshare, words, {
        cwd: "/",
        detached: true,
        stdio: ["ignore", log.fd, log.fd],
        env: { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", LC_ALL: "C" },
      });
      const ended = new Promise<string>((resolve) => {
        child.once("error", (error) => resolve(error.message));
        child.once("exit", (code, name) => resolve(`ended with ${code ?? name}`));
      });
      child.unref();
      await this.#waitUntilAnswering(ended);
    } finally {
      await log.close();
    }
  }

  async #waitUntilAnswering(ended: Promise<string>): Promise<void> {
    let failure: string | undefined;
    void ended.then((text) => {
      failure = text;
    });
    let last = "no socket";
    for (let waitedMs = 0; waitedMs < startTimeoutMs && failure === undefined; waitedMs += pollMs) {
      await delay(pollMs);
      if ((await stat(this.socket).catch(() => undefined)) === undefined) continue;
      try {
        await this.virsh.run(["list"], startTimeoutMs);
        return;
      } catch (error) {
        last = error instanceof Error ? error.message : String(error);
      }
    }
    const log = (await readFile(this.logPath, "utf8").catch(() => "")).split("\n").slice(-10).join("\n");
    throw new Error(`libvirtd of ${this.name} ${failure ?? `does not answer (${last})`}; its log ends:\n${log}`);
  }

  async #writeConfiguration(): Promise<void> {
    const { dir, addresses, migrationPortMin } = this.#options;
    await mkdir(dir, { recursive: true, mode: 0o700 });
    await makeMemoryFolder(join(dir, "run"));
    for (const [folder] of mounts) await mkdir(join(dir, folder), { recursive: true });
    await chmod(dir, 0o700);
    await copyMissing(capabilitiesCacheDir, this.#capabilitiesDir);
    await writeFile(
      join(dir, "hosts"),
      ["127.0.0.1 localhost", ...Object.entries(addresses).map(([name, address]) => `${address} ${name}`), ""].join(
        "\n",
      ),
    );
    await writeFile(
      join(dir, "etc", "libvirtd.conf"),
      conf([
        `host_uuid = "${this.uuid}"`,
        'unix_sock_dir = "/run/libvirt"',
        'auth_unix_ro = "none"',
        'auth_unix_rw = "none"',
        'log_outputs = "3:stderr"',
        ...(this.#options.libvirtdConf ?? []),
      ]),
    );
    await writeFile(
      join(dir, "etc", "qemu.conf"),
      conf([
        'user = "root"',
        'group = "root"',
        'security_driver = "none"',
        "cgroup_controllers = []",
        "namespaces = []",
        'stdio_handler = "file"',
        "remember_owner = 0",
        // Not 127.0.0.1 and not a name: libvirt refuses those as an address to announce. Any other loopback one is fine.
        `migration_host = "${this.migrationAddress}"`,
        `migration_address = "${this.migrationAddress}"`,
        `migration_port_min = ${migrationPortMin}`,
        `migration_port_max = ${migrationPortMin + migrationPortsPerHost - 1}`,
        ...(this.#options.qemuConf ?? []),
      ]),
    );
  }

  get #capabilitiesDir(): string {
    return join(this.dir, "cache", "qemu", "capabilities");
  }

  /**
   * Makes libvirt look at every QEMU binary now, and keeps what it found for the hosts started after this one. Without
   * it the first start or the first incoming migration of a host pays for it, which spoils a measurement.
   */
  async learnEmulators(): Promise<void> {
    await this.virsh.run(["capabilities"]);
    await mkdir(capabilitiesCacheDir, { recursive: true, mode: 0o755 });
    await copyAll(this.#capabilitiesDir, capabilitiesCacheDir);
  }

  /** Every process of this host: libvirtd, its QEMUs, whatever they started. */
  processes(): Promise<(ProcessIdentity & { command: string })[]> {
    return processesOf(join(this.dir, "run"));
  }

  /** The running libvirtd; undefined when it is down. */
  async daemon(): Promise<ProcessIdentity | undefined> {
    const text = await readFile(join(this.dir, "run", "libvirtd.pid"), "utf8").catch(() => "");
    const pid = Number.parseInt(text, 10);
    if (!Number.isInteger(pid)) return undefined;
    // The pid file survives a kill; only a process that sees this host's folders is this host's daemon.
    return (await this.processes()).find((found) => found.pid === pid && /libvirtd/.test(found.command));
  }

  /** The running QEMU processes, all or those of one domain. */
  async qemus(domain?: string): Promise<(ProcessIdentity & { command: string })[]> {
    const wanted = domain === undefined ? " -name guest=" : ` -name guest=${domain},`;
    return (await this.processes()).filter(
      (found) => /qemu-system/.test(found.command) && found.command.includes(wanted),
    );
  }

  /** SIGKILLs libvirtd; its QEMUs run on. */
  async kill9(): Promise<void> {
    const daemon = await this.daemon();
    if (daemon !== undefined) await killHard(daemon);
  }

  /** SIGKILLs QEMU processes, all or those of one domain; returns how many there were. */
  async killQemu(domain?: string): Promise<number> {
    const qemus = await this.qemus(domain);
    await Promise.all(qemus.map((qemu) => killHard(qemu)));
    return qemus.length;
  }

  /** Stops libvirtd's execution without ending it: a host that hangs. `thaw` lets it go on. */
  async freeze(): Promise<void> {
    const daemon = await this.daemon();
    if (daemon === undefined || !(await signal(daemon, "SIGSTOP"))) throw new Error(`libvirtd of ${this.name} is down`);
  }

  async thaw(): Promise<void> {
    const daemon = await this.daemon();
    if (daemon === undefined || !(await signal(daemon, "SIGCONT"))) throw new Error(`libvirtd of ${this.name} is down`);
  }

  /** Ends libvirtd by SIGTERM; its QEMUs run on, as with `systemctl stop libvirtd`. */
  async stopDaemon(): Promise<void> {
    const daemon = await this.daemon();
    if (daemon === undefined) return;
    await signal(daemon, "SIGTERM");
    if (!(await waitForExit(daemon, terminateTimeoutMs)) && (await isAlive(daemon))) await killHard(daemon);
  }

  /** Ends libvirtd, when it runs, and starts it again; the QEMUs run on and are found again. */
  async restart(): Promise<void> {
    await this.stopDaemon();
    await this.start();
  }

  /**
   * Power off: libvirtd and every QEMU end, and /run is emptied as by a reboot. Definitions, snapshot metadata and
   * images stay; `start()` boots the host again.
   */
  async stop(): Promise<void> {
    await this.kill9();
    // Twice over: libvirtd may have been starting a QEMU when it was killed.
    for (let left = await this.processes(); left.length > 0; left = await this.processes()) {
      await Promise.all(left.map((found) => killHard(found)));
    }
    await removeMemoryFolder(join(this.dir, "run"));
  }

  /** The identity of libvirtd for a state file. */
  async identity(): Promise<ProcessIdentity | undefined> {
    const daemon = await this.daemon();
    return daemon === undefined ? undefined : identify(daemon.pid);
  }
}

/** Lines of a libvirt configuration file; of two lines for one key only the later is written. */
function conf(lines: readonly string[]): string {
  const byKey = new Map<string, string>();
  for (const line of lines) byKey.set(line.split("=", 1)[0]?.trim() ?? line, line);
  return `${[...byKey.values()].join("\n")}\n`;
}

/** Copies the files of a folder, each whole or not at all: another lab may be reading. */
async function copyAll(from: string, to: string): Promise<void> {
  for (const name of await readdir(from).catch(() => [])) {
    const partial = join(to, `.${name}.${process.pid}`);
    await copyFile(join(from, name), partial);
    await rename(partial, join(to, name));
  }
}

async function copyMissing(from: string, to: string): Promise<void> {
  const names = (await readdir(from).catch(() => [])).filter((name) => !name.startsWith("."));
  if (names.length > 0) await mkdir(to, { recursive: true });
  for (const name of names) {
    if ((await stat(join(to, name)).catch(() => undefined)) === undefined)
      await copyFile(join(from, name), join(to, name));
  }
}
