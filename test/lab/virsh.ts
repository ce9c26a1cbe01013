/**
 * virsh against one libvirt socket: the independent witness.
 *
 * Nothing here shares code with the RPC client that vmferry uses, so a fault there cannot hide itself in a test's
 * expectation. Each failure throws with libvirt's own words.
 */
import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** 1,000 snapshot records of 20 KiB each fit well; a runaway output does not. */
const outputBytesMax = 512 * 1024 * 1024;
/** One argument may hold 128 KiB on Linux (MAX_ARG_STRLEN); stay clear of it. */
const batchBytesMax = 96 * 1024;
/** Longer than libvirt's own 30 s wait for a busy domain, so its cause is seen and not ours. */
const defaultTimeoutMs = 120_000;
/** 1,000 records in one process take seconds; a stuck daemon must not hold a test for ever. */
const batchTimeoutMs = 300_000;

export interface SnapshotRecord {
  readonly name: string;
  readonly parent: string | undefined;
  readonly current: boolean;
  /** `snapshot-dumpxml --security-info`. */
  readonly xml: string;
}

export interface MigrateOptions {
  readonly live?: boolean;
  readonly unsafe?: boolean;
  readonly persistent?: boolean;
  readonly undefineSource?: boolean;
  readonly migrateUri?: string;
  readonly extra?: readonly string[];
  readonly timeoutMs?: number;
}

/** virsh ended with an error; `stderr` is what libvirt said. */
export class VirshError extends Error {
  override readonly name = "VirshError";
  readonly stderr: string;
  readonly exitCode: number | undefined;
  constructor(what: string, stderr: string, exitCode: number | undefined) {
    super(`virsh ${what}: ${stderr.trim() || `ended with ${exitCode ?? "a signal"}`}`);
    this.stderr = stderr;
    this.exitCode = exitCode;
  }
}

/** The connection URI of a libvirt socket given by absolute path. */
export function socketUri(socket: string): string {
  return `qemu:///system?socket=${encodeURIComponent(socket).replaceAll("%2F", "/")}`;
}

/** Quotes one word for virsh's own command parser. */
export function quoted(word: string): string {
  return `'${word.replaceAll("'", `'"'"'`)}'`;
}

export class Virsh {
  readonly socket: string;
  readonly uri: string;

  constructor(socket: string) {
    this.socket = socket;
    this.uri = socketUri(socket);
  }

  /** Runs one command and returns its stdout. Throws VirshError, also on a timeout. */
  run(words: readonly string[], timeoutMs: number = defaultTimeoutMs): Promise<string> {
    return new Promise((resolve, reject) => {
      execFile(
        "virsh",
        ["-q", "-c", this.uri, ...words],
        { maxBuffer: outputBytesMax, timeout: timeoutMs, killSignal: "SIGKILL", env: { ...process.env, LC_ALL: "C" } },
        (error, stdout, stderr) => {
          if (error === null) return resolve(stdout);
          const code = typeof error.code === "number" ? error.code : undefined;
          const cause = error.killed === true ? `no answer within ${timeoutMs} ms\n${stderr}` : stderr || error.message;
          reject(new VirshError(words.join(" ").slice(0, 200), cause, code));
        },
      );
    });
  }

  /**
   * Runs many commands in a few virsh processes, one connection each, and returns the output of each. A process costs
   * about 20 ms, a command in it about 1 ms. Every failed command is reported, not only the last as virsh's exit code.
   */
  async batch(commands: readonly (readonly string[])[]): Promise<string[]> {
    const outputs: string[] = [];
    // Between the outputs; `virsh -q echo` prints it without a newline. No XML holds a fresh UUID by chance.
    const mark = randomUUID();
    let group: string[] = [];
    let groupBytes = 0;
    const flush = async () => {
      if (group.length > 0) outputs.push(...(await this.#runGroup(group, mark)));
      group = [];
      groupBytes = 0;
    };
    for (const words of commands) {
      const line = `${words.map(quoted).join(" ")}; echo ${mark}`;
      if (groupBytes + Buffer.byteLength(line) > batchBytesMax) await flush();
      group.push(line);
      groupBytes += Buffer.byteLength(line) + 2;
    }
    await flush();
    return outputs;
  }

  #runGroup(lines: readonly string[], mark: string): Promise<string[]> {
    return new Promise((resolve, reject) => {
      execFile(
        "virsh",
        ["-q", "-c", this.uri, lines.join("; ")],
        { maxBuffer: outputBytesMax, timeout: batchTimeoutMs, env: { ...process.env, LC_ALL: "C" } },
        (error, stdout, stderr) => {
          const parts = stdout.split(mark);
          if (error === null && !/^error:/m.test(stderr) && parts.length === lines.length + 1) {
            return resolve(parts.slice(0, -1));
          }
          reject(
            new VirshError(`batch of ${lines.length}`, stderr || (error?.message ?? "output cut short"), undefined),
          );
        },
      );
    });
  }

  /** "running", "paused", "shut off", ...; undefined when this host does not know the domain. */
  async domstate(domain: string): Promise<string | undefined> {
    try {
      return (await this.run(["domstate", domain])).trim();
    } catch (error) {
      if (error instanceof VirshError && /failed to get domain/.test(error.stderr)) return undefined;
      throw error;
    }
  }

  /** State and reason, e.g. "paused (migrating)"; undefined when this host does not know the domain. */
  async domstateWithReason(domain: string): Promise<string | undefined> {
    if ((await this.domstate(domain)) === undefined) return undefined;
    return (await this.run(["domstate", domain, "--reason"])).trim();
  }

  /** Names of all domains, running or not. */
  async domains(): Promise<string[]> {
    return (await this.run(["list", "--all", "--name"])).split("\n").filter((name) => name !== "");
  }

  /** The live XML, or the persistent one with `inactive`; always with security information. */
  domainXml(domain: string, options: { inactive?: boolean } = {}): Promise<string> {
    return this.run(["dumpxml", domain, "--security-info", ...(options.inactive === true ? ["--inactive"] : [])]);
  }

  /** Defines a domain from XML. */
  async define(xml: string): Promise<void> {
    await withFile(xml, (path) => this.run(["define", path]));
  }

  async start(domain: string): Promise<void> {
    await this.run(["start", domain]);
  }

  /** Ends the domain's QEMU; no error when it does not run. */
  async destroy(domain: string): Promise<void> {
    const state = await this.domstate(domain);
    if (state !== undefined && state !== "shut off") await this.run(["destroy", domain]);
  }

  /** Removes the definition with the metadata of its snapshots and checkpoints; the disk stays. No error when absent. */
  async undefine(domain: string): Promise<void> {
    if ((await this.domstate(domain)) === undefined) return;
    await this.run(["undefine", domain, "--snapshots-metadata", "--checkpoints-metadata", "--managed-save"]);
  }

  async snapshotCreate(domain: string, name: string): Promise<void> {
    await this.run(["snapshot-create-as", domain, name]);
  }

  async snapshotRevert(domain: string, name: string, extra: readonly string[] = []): Promise<void> {
    await this.run(["snapshot-revert", domain, name, ...extra]);
  }

  /** Recreates one snapshot's metadata from XML. */
  async snapshotRedefine(domain: string, xml: string, options: { current?: boolean } = {}): Promise<void> {
    const flags = ["--redefine", ...(options.current === true ? ["--current"] : [])];
    await withFile(xml, (path) => this.run(["snapshot-create", domain, path, ...flags]));
  }

  /** Snapshot names, parents before children. */
  async snapshotNames(domain: string): Promise<string[]> {
    const text = await this.run(["snapshot-list", domain, "--name", "--topological"]);
    return text.split("\n").filter((name) => name !== "");
  }

  /** Name of the current snapshot; undefined when the domain has none. */
  async snapshotCurrent(domain: string): Promise<string | undefined> {
    try {
      return (await this.run(["snapshot-current", domain, "--name"])).trim();
    } catch (error) {
      if (error instanceof VirshError && /has no current snapshot/.test(error.stderr)) return undefined;
      throw error;
    }
  }

  /** The whole tree, parents before children, each with its full XML. */
  async snapshotTree(domain: string): Promise<SnapshotRecord[]> {
    const names = await this.snapshotNames(domain);
    const current = await this.snapshotCurrent(domain);
    const dumps = await this.batch(names.map((name) => ["snapshot-dumpxml", domain, name, "--security-info"]));
    return names.map((name, index) => {
      const xml = (dumps[index] ?? "").trim();
      return { name, parent: parentName(xml), current: name === current, xml };
    });
  }

  /** `virsh migrate` to another host's connection URI. */
  migrate(domain: string, destinationUri: string, options: MigrateOptions = {}): Promise<string> {
    const flags = [
      ...(options.live === false ? [] : ["--live"]),
      ...(options.unsafe === false ? [] : ["--unsafe"]),
      ...(options.persistent === true ? ["--persistent"] : []),
      ...(options.undefineSource === true ? ["--undefinesource"] : []),
      ...(options.extra ?? []),
    ];
    const uri = options.migrateUri === undefined ? [] : ["--migrateuri", options.migrateUri];
    return this.run(["migrate", domain, destinationUri, ...flags, ...uri], options.timeoutMs ?? 300_000);
  }

  /** Bandwidth limit of the next memory transfer, in MiB/s: stretches Perform for as long as a test needs. */
  async migrateSetspeed(domain: string, mibPerSecond: number): Promise<void> {
    await this.run(["migrate-setspeed", domain, String(mibPerSecond)]);
  }
}

/** The parent's name in a snapshot XML. Only the head is read: the embedded domain XML may say `<parent>` as well. */
function parentName(xml: string): string | undefined {
  const head = xml.split(/<domain[\s>]/, 1)[0] ?? "";
  const found = /<parent>\s*<name>([^<]*)<\/name>/.exec(head)?.[1];
  return found === undefined ? undefined : unescapeXml(found);
}

const xmlEntities: Readonly<Record<string, string>> = {
  "&lt;": "<",
  "&gt;": ">",
  "&quot;": '"',
  "&apos;": "'",
  "&amp;": "&",
};

function unescapeXml(text: string): string {
  return text.replace(/&(lt|gt|quot|apos|amp);/g, (entity) => xmlEntities[entity] ?? entity);
}

/** Text for an XML element or attribute. */
export function escapeXml(text: string): string {
  return text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
}

async function withFile<T>(text: string, use: (path: string) => Promise<T>): Promise<T> {
  const dir = await mkdtemp(join(tmpdir(), "vmferry-virsh-"));
  try {
    const path = join(dir, "input.xml");
    await writeFile(path, text, { mode: 0o600 });
    return await use(path);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}
