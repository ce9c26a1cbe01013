/**
 * A lab: several libvirt hosts on this machine that share a storage folder.
 *
 * Each lab lives in one folder with a state file. The file is written before the first process starts and names the
 * starter, so that a lab whose starter was killed is recognised and cleared by the next start or by `lab down`.
 * A folder without a readable state file is never deleted.
 */
import { createHash, randomUUID } from "node:crypto";
import { lstat, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import * as z from "zod/mini";
import { Host, migrationPortsPerHost } from "./host.ts";
import { LabRefusal, requirePrerequisites } from "./prerequisites.ts";
import { identify, isAlive, processIdentitySchema } from "./process-table.ts";

/** Where labs without a folder of their own live. Disk-backed on Debian, unlike /tmp on newer ones; and short. */
const temporaryRoot = "/var/tmp";
const temporaryPrefix = "vmferry-lab-";
/** One lab per machine for `vmferry lab up`, so that `lab down` finds it from any folder. */
export const defaultLabDir = "/var/lib/vmferry-lab";
const stateFile = "lab.json";
/** 2 cores and 24 GiB carry about this many; the port slots of a lab are cut for it. */
export const hostsMax = 8;
/** Below the ephemeral range of Linux (32768), so that no outgoing connection of the machine takes one. */
const portBase = 12_000;
const portSlots = 150;

const stateSchema = z.object({
  vmferryLab: z.literal(1),
  /** The process that started it. */
  owner: processIdentitySchema,
  /** True when it is meant to outlive its starter (`vmferry lab up`, `npm run demo -- --keep`). */
  detached: z.boolean(),
  /** False until every host answers. */
  ready: z.boolean(),
  hosts: z.array(
    z.object({
      name: z.string(),
      uuid: z.string(),
      migrationAddress: z.string(),
      migrationPortMin: z.int(),
      qemuConf: z.array(z.string()),
      libvirtdConf: z.array(z.string()),
      daemon: z.optional(processIdentitySchema),
    }),
  ),
});
type LabState = z.infer<typeof stateSchema>;

export interface HostSpec {
  /** Default h1, h2, ... */
  readonly name?: string;
  /** Default fresh; give two hosts the same one to see a duplicate refused. */
  readonly uuid?: string;
  readonly qemuConf?: readonly string[];
  readonly libvirtdConf?: readonly string[];
}

export interface LabOptions {
  /** How many, or what each is to be like. */
  readonly hosts: number | readonly HostSpec[];
  /** Default: a fresh folder under /var/tmp, removed by `stop()`. */
  readonly dir?: string;
  /** Lives on when this process ends. */
  readonly detached?: boolean;
  readonly log?: (line: string) => void;
}

export class Lab {
  readonly dir: string;
  readonly hosts: readonly Host[];
  /** Shared by all hosts: disks, serial logs. */
  readonly storageDir: string;

  constructor(dir: string, hosts: readonly Host[]) {
    this.dir = dir;
    this.hosts = hosts;
    this.storageDir = storageDirOf(dir);
  }

  /** The host of that name, or at that position. Throws when there is none. */
  host(which: string | number): Host {
    const found = typeof which === "number" ? this.hosts[which] : this.hosts.find((host) => host.name === which);
    if (found === undefined) throw new Error(`the lab in ${this.dir} has no host ${which}`);
    return found;
  }

  /** Ends every process of every host and removes the lab's folder. May be called twice. */
  async stop(): Promise<void> {
    await removeLab(this.dir);
  }
}

/**
 * Starts a lab. What a killed starter left in the same folder, and in abandoned temporary labs, is cleared first.
 * Throws LabRefusal when the machine is not fit or the folder is in use or not a lab's.
 */
export async function startLab(options: LabOptions): Promise<Lab> {
  const specs: readonly HostSpec[] =
    typeof options.hosts === "number" ? Array.from({ length: options.hosts }, () => ({})) : options.hosts;
  if (specs.length < 1 || specs.length > hostsMax) {
    throw new LabRefusal(`a lab has 1 to ${hostsMax} hosts, not ${specs.length}`, "choose another number with --hosts");
  }
  await requirePrerequisites("vmferry lab up");
  await sweepAbandonedLabs();
  const dir = options.dir === undefined ? await mkdtemp(join(temporaryRoot, temporaryPrefix)) : resolve(options.dir);
  await refuseForeignUse(dir);
  await removeLab(dir);
  await mkdir(dir, { recursive: true, mode: 0o700 });

  const owner = await identify(process.pid);
  if (owner === undefined) throw new Error("this process is not in /proc; is it mounted?");
  const state: LabState = {
    vmferryLab: 1,
    owner,
    detached: options.detached ?? false,
    ready: false,
    hosts: slots(dir, specs),
  };
  await writeState(dir, state);
  await mkdir(storageDirOf(dir), { recursive: true });
  const lab = new Lab(dir, hostsOf(dir, state));
  try {
    const start = async (host: Host) => {
      await host.start();
      options.log?.(`${host.name}: libvirtd answers on ${host.socket}`);
    };
    // The first alone: what it learns of the emulators, slowly on a new machine, the others take from the cache.
    const [first, ...others] = lab.hosts;
    if (first !== undefined) {
      await start(first);
      await first.learnEmulators();
    }
    await Promise.all(others.map(start));
    const hosts = await Promise.all(
      state.hosts.map(async (slot, index) => ({ ...slot, daemon: await lab.hosts[index]?.identity() })),
    );
    await writeState(dir, {
      ...state,
      ready: true,
      hosts: hosts.map(({ daemon, ...slot }) => (daemon === undefined ? slot : { ...slot, daemon })),
    });
    return lab;
  } catch (error) {
    await lab.stop();
    throw error;
  }
}

/** A lab that is up in this folder, started by whomever; undefined when there is none that is complete. */
export async function openLab(dir: string): Promise<Lab | undefined> {
  const state = await readState(resolve(dir));
  if (state?.ready !== true) return undefined;
  const lab = new Lab(resolve(dir), hostsOf(resolve(dir), state));
  for (const host of lab.hosts) if ((await host.daemon()) === undefined) return undefined;
  return lab;
}

/** Ends and removes the lab in this folder, whatever state it is in; false when there is no lab in it. */
export async function removeLab(dir: string): Promise<boolean> {
  const state = await readState(dir);
  if (state === undefined) return false;
  await Promise.all(hostsOf(dir, state).map((host) => host.stop()));
  // The state file goes last: a removal that is cut short can be repeated.
  for (const entry of await readdir(dir)) {
    if (entry !== stateFile) await rm(join(dir, entry), { recursive: true, force: true });
  }
  await rm(dir, { recursive: true, force: true });
  return true;
}

/** Clears temporary labs whose starter is gone. Returns their folders. */
export async function sweepAbandonedLabs(): Promise<string[]> {
  const swept: string[] = [];
  for (const entry of await readdir(temporaryRoot)) {
    if (!entry.startsWith(temporaryPrefix)) continue;
    const dir = join(temporaryRoot, entry);
    const state = await readState(dir).catch(() => undefined);
    if (state === undefined || state.detached || (await isAlive(state.owner))) continue;
    if (await removeLab(dir)) swept.push(dir);
  }
  return swept;
}

/** A folder that holds something else, belongs to somebody else, or whose lab is in use, is left alone. */
async function refuseForeignUse(dir: string): Promise<void> {
  const found = await lstat(dir).catch(() => undefined);
  if (found === undefined) return;
  if (!found.isDirectory() || found.uid !== process.getuid?.()) {
    throw new LabRefusal(`${dir} is not a folder of ours`, "choose another folder with --dir");
  }
  const state = await readState(dir);
  if (state === undefined) {
    if ((await readdir(dir)).length === 0) return;
    throw new LabRefusal(`${dir} holds something that is no lab`, "choose another folder with --dir");
  }
  if (!state.detached && (await isAlive(state.owner))) {
    throw new LabRefusal(
      `the lab in ${dir} is in use by process ${state.owner.pid}`,
      `end that process, or choose another folder`,
    );
  }
}

function storageDirOf(dir: string): string {
  return join(dir, "shared");
}

/** Addresses and ports of each host: derived from the folder, so labs side by side do not meet. */
function slots(dir: string, specs: readonly HostSpec[]): LabState["hosts"] {
  const digest = createHash("sha256").update(dir).digest();
  const portsOfLab = portBase + (digest.readUInt32BE(0) % portSlots) * hostsMax * migrationPortsPerHost;
  const names = new Set<string>();
  return specs.map((spec, index) => {
    const name = spec.name ?? `h${index + 1}`;
    if (!/^[a-z][a-z0-9-]{0,30}$/.test(name) || names.has(name)) {
      throw new LabRefusal(
        `host name ${JSON.stringify(name)} is not usable or given twice`,
        "use letters, digits and dashes",
      );
    }
    names.add(name);
    return {
      name,
      uuid: spec.uuid ?? randomUUID(),
      migrationAddress: `127.${64 + ((digest[4] ?? 0) >> 2)}.${digest[5] ?? 0}.${index + 1}`,
      migrationPortMin: portsOfLab + index * migrationPortsPerHost,
      qemuConf: [...(spec.qemuConf ?? [])],
      libvirtdConf: [...(spec.libvirtdConf ?? [])],
    };
  });
}

function hostsOf(dir: string, state: LabState): Host[] {
  const addresses = Object.fromEntries(state.hosts.map((slot) => [slot.name, slot.migrationAddress]));
  return state.hosts.map(
    ({ daemon: _, ...slot }) =>
      new Host({ ...slot, dir: join(dir, slot.name), storageDir: storageDirOf(dir), addresses }),
  );
}

/** undefined when there is no state file; throws when there is one that cannot be read as such. */
async function readState(dir: string): Promise<LabState | undefined> {
  const path = join(dir, stateFile);
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch {
    return undefined;
  }
  try {
    return stateSchema.parse(JSON.parse(text));
  } catch (error) {
    const cause = error instanceof Error ? error.message : String(error);
    throw new LabRefusal(
      `${path} is not a lab's state file of this version: ${cause}`,
      `look into ${dir} and remove it by hand`,
    );
  }
}

/** Whole or not at all, also when we are killed while writing. */
async function writeState(dir: string, state: LabState): Promise<void> {
  const path = join(dir, stateFile);
  await writeFile(`${path}.new`, `${JSON.stringify(state, null, 2)}\n`, { mode: 0o600 });
  await rename(`${path}.new`, path);
}
