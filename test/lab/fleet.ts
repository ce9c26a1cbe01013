/**
 * A whole vmferry on top of a lab, as a user would start it: `vmferry up`, a join token, one `vmferry shim` per host, each a
 * process of its own, spoken to through the command line only. Used by the demo, the bench and the end-to-end tests.
 *
 * Every process is ended by the pid it was started with; nothing here finds processes by name.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Host } from "./host.ts";

const main = join(import.meta.dirname, "../../functions/cli/main.ts");
/** Starting workerd and the stores takes 2 s on an idle machine; a loaded one gets a lot more before it counts as hung. */
const startTimeoutMs = 60_000;
/** A process that does not follow SIGTERM is killed. */
const stopTimeoutMs = 10_000;
/** What is kept of a process's output for an error's sake. */
const outputCharsMax = 64 * 1024;

export interface Finished {
  code: number;
  stdout: string;
  stderr: string;
}

/** A child process with its output. */
export class Running {
  readonly child: ChildProcess;
  readonly label: string;
  output = "";
  #exited: Promise<number>;

  constructor(label: string, command: string[], env: Record<string, string>) {
    this.label = label;
    const [file = process.execPath, ...words] = command;
    this.child = spawn(file, words, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [this.child.stdout, this.child.stderr])
      stream?.on("data", (chunk: Buffer) => {
        this.output = (this.output + chunk.toString()).slice(-outputCharsMax);
      });
    this.#exited = new Promise((resolve) =>
      this.child.once("exit", (code, signal) => resolve(code ?? (signal === null ? 1 : 128))),
    );
  }

  /** Resolves with the exit code when it has ended by itself or by a signal (128). */
  get exited(): Promise<number> {
    return this.#exited;
  }

  get alive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Waits until the output holds the text; throws with the output when the process ends first. */
  async says(text: string | RegExp): Promise<void> {
    const until = Date.now() + startTimeoutMs;
    const said = () => (typeof text === "string" ? this.output.includes(text) : text.test(this.output));
    while (!said()) {
      if (!this.alive) throw new Error(`${this.label} ended before it said ${text}:\n${this.output}`);
      if (Date.now() > until)
        throw new Error(`${this.label} did not say ${text} in ${startTimeoutMs} ms:\n${this.output}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<number> {
    if (this.alive) this.child.kill(signal);
    return this.#exited;
  }

  /** SIGTERM, then SIGKILL. */
  async stop(): Promise<number> {
    if (!this.alive) return this.#exited;
    this.child.kill("SIGTERM");
    const timer = setTimeout(() => this.child.kill("SIGKILL"), stopTimeoutMs);
    try {
      return await this.#exited;
    } finally {
      clearTimeout(timer);
    }
  }
}

export interface FleetOptions {
  hosts: readonly Host[];
  /** More words for `vmferry up`, such as `--s3 URL`; a function of the port that it will listen on. */
  up?: readonly string[] | ((port: number) => Promise<readonly string[]>);
  /** The address that shims connect to, when a proxy stands in between; a function of the control plane's port and the host. */
  shimUrl?: (port: number, host: Host) => Promise<string>;
  /**
   * These hosts' shims run inside their host's mount and UTS namespace, as on a machine of its own: they see the host's
   * configuration, hostname and mounts. The others see the machine's.
   */
  inside?: (host: Host) => boolean;
  /** More words and variables for a host's shim, such as `--peer-listen ADDR:PORT`. Asked at each of its starts. */
  shim?: (host: Host) => Promise<{ words: readonly string[]; env: Readonly<Record<string, string>> }>;
  /**
   * Another program as the control plane, with its arguments: it listens on that port, keeps its data there (with its `admin-token`) and says
   * `vmferry: ready on`. Asked at each start; null: `vmferry up` as usual.
   */
  controlPlane?: (want: { port: number; data: string }) => readonly string[] | null;
  /** Another program as a host's shim: the words before the shim's own. Asked at each start; null: the usual one. */
  shimProgram?: (host: Host) => readonly string[] | null;
  /** Run the built bundles in dist/ instead of the sources. */
  built?: boolean;
  log?: (line: string) => void;
}

export class Fleet {
  readonly dir: string;
  readonly port: number;
  readonly url: string;
  readonly env: Record<string, string>;
  readonly shims = new Map<string, Running>();
  controlPlane: Running | undefined;
  readonly #options: FleetOptions;

  constructor(dir: string, port: number, options: FleetOptions) {
    this.dir = dir;
    this.port = port;
    this.url = `http://127.0.0.1:${port}`;
    this.env = {
      VMFERRY_CONFIG: join(dir, "config.json"),
      // The lab's hosts share the machine's logind, and are not what its shutdown should wait for.
      DBUS_SYSTEM_BUS_ADDRESS: "unix:path=/nonexistent/vmferry-lab",
    };
    this.#options = options;
  }

  #command(built: string, source: string[]): string[] {
    const dist = join(import.meta.dirname, "../../dist");
    return this.#options.built === true
      ? [process.execPath, join(dist, built), ...source]
      : [process.execPath, main, ...source];
  }

  /** Starts, or starts again on the same data. */
  async startControlPlane(): Promise<Running> {
    const { up = [] } = this.#options;
    const words = [
      "up",
      "--listen",
      `127.0.0.1:${this.port}`,
      "--data",
      join(this.dir, "data"),
      ...(typeof up === "function" ? await up(this.port) : up),
    ];
    const own = this.#options.controlPlane?.({ port: this.port, data: join(this.dir, "data") }) ?? null;
    const command = own === null ? this.#command("vmferry.mjs", words) : [process.execPath, ...own];
    const running = new Running("control plane", command, this.env);
    this.controlPlane = running;
    await running.says("vmferry: ready on");
    return running;
  }

  /** Starts a host's shim; the first time with a fresh join token. */
  async startShim(host: Host): Promise<Running> {
    const state = join(this.dir, `shim-${host.name}`);
    const enrolled = await readFile(join(state, "host.json")).then(
      () => true,
      () => false,
    );
    const join_ = enrolled
      ? []
      : ["--join", (await this.mustRun(["join-token", "create"])).stdout.trim().split(/\s+/).at(-1) ?? ""];
    const url = (await this.#options.shimUrl?.(this.port, host)) ?? this.url;
    const more = await this.#options.shim?.(host);
    const words = [
      "--url",
      url,
      "--name",
      host.name,
      "--state",
      state,
      "--libvirt",
      host.socket,
      "--migration-address",
      host.migrationAddress,
      ...join_,
      ...(more?.words ?? []),
    ];
    const own = this.#options.shimProgram?.(host) ?? null;
    const usual = () =>
      this.#options.built === true ? this.#command("shim.mjs", words) : this.#command("", ["shim", ...words]);
    const plain = own === null ? usual() : [process.execPath, ...own, ...words];
    const command = this.#options.inside?.(host) === true ? await insideOf(host, plain) : plain;
    const running = new Running(`vmferry shim ${host.name}`, command, { ...this.env, ...more?.env });
    this.shims.set(host.name, running);
    await running.says(`vmferry shim: connected as ${host.name}`);
    return running;
  }

  shim(host: Host): Running {
    const found = this.shims.get(host.name);
    if (found === undefined) throw new Error(`no shim was started for ${host.name}`);
    return found;
  }

  /** Runs the command line to its end. */
  async run(words: readonly string[]): Promise<Finished> {
    const [file = "", ...rest] = this.#command("vmferry.mjs", [...words]);
    const child = spawn(file, rest, { env: { ...process.env, ...this.env }, stdio: ["ignore", "pipe", "pipe"] });
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => {
      stdout += chunk.toString();
    });
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    const code = await new Promise<number>((resolve, reject) => {
      child.once("error", reject);
      child.once("close", (exit) => resolve(exit ?? 128));
    });
    return { code, stdout, stderr };
  }

  /** Runs the command line and throws with all it said when it does not exit 0. */
  async mustRun(words: readonly string[]): Promise<Finished> {
    const finished = await this.run(words);
    if (finished.code !== 0)
      throw new Error(`vmferry ${words.join(" ")} exited ${finished.code}\n${finished.stdout}\n${finished.stderr}`);
    return finished;
  }

  /** Runs the command line in the background. */
  start(words: readonly string[]): Running {
    return new Running(`vmferry ${words.join(" ")}`, this.#command("vmferry.mjs", [...words]), this.env);
  }

  async token(): Promise<string> {
    return (await readFile(join(this.dir, "data", "admin-token"), "utf8")).trim();
  }

  /** Ends every process of the fleet and removes its folder. */
  async stop(): Promise<void> {
    await Promise.all([...this.shims.values()].map((shim) => shim.stop()));
    await this.controlPlane?.stop();
    await rm(this.dir, { recursive: true, force: true });
  }
}

/** The command in the namespaces of a host's libvirtd. nsenter becomes the command, so its pid is the command's. */
async function insideOf(host: Host, command: string[]): Promise<string[]> {
  const daemon = await host.daemon();
  if (daemon === undefined) throw new Error(`libvirtd of ${host.name} is down`);
  return ["nsenter", "--target", String(daemon.pid), "--mount", "--uts", "--root", "--wd", "--", ...command];
}

/**
 * Below Linux's range for outgoing connections (32768) and above the lab's migration ports: a process that is killed and started again
 * on its port must not find it taken by somebody's outgoing connection, such as one that was dialling this very port.
 */
const portMin = 31_300;
const portMax = 32_700;
const portTriesMax = 50;

/** A port that is free now. */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < portTriesMax; tries += 1) {
    const port = randomInt(portMin, portMax);
    const server = createServer();
    const free = await new Promise<boolean>((resolve) => {
      server.once("error", () => resolve(false));
      server.listen({ port, host: "127.0.0.1", exclusive: true }, () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
  throw new Error(`no free port between ${portMin} and ${portMax}`);
}

/** Starts the control plane and a shim on every host, and waits until each has said that it is connected. */
export async function startFleet(options: FleetOptions): Promise<Fleet> {
  const fleet = new Fleet(await mkdtemp(join(tmpdir(), "vmferry-fleet-")), await freePort(), options);
  try {
    await fleet.startControlPlane();
    options.log?.(`control plane on ${fleet.url}`);
    for (const host of options.hosts) {
      await fleet.startShim(host);
      options.log?.(`shim on ${host.name} connected`);
    }
    return fleet;
  } catch (error) {
    await fleet.stop();
    throw error;
  }
}
