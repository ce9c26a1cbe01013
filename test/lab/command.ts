/**
 * `vmferry lab up` and `vmferry lab down`: libvirt hosts on this machine, for trying and for testing.
 *
 * The hosts outlive the command. Each function prints what a person or a script does next and returns the exit code.
 */
import { resolve } from "node:path";
import { bootGuest } from "./guest.ts";
import { defaultLabDir, type Lab, openLab, removeLab, startLab } from "./lab.ts";
import { installPrerequisites, isRoot, LabRefusal, requirePrerequisites } from "./prerequisites.ts";

export interface LabOutput {
  /** Results; a line without its newline. */
  readonly out: (line: string) => void;
  /** Progress and refusals. */
  readonly err: (line: string) => void;
}

export interface LabUpOptions extends LabOutput {
  /** Default 2. */
  readonly hosts?: number;
  /** Boot a counting guest on the first host. */
  readonly guest?: boolean;
  /** Print one JSON document instead of text. */
  readonly json?: boolean;
  /** Default /var/lib/vmferry-lab. */
  readonly dir?: string;
  /** Install missing Debian packages first; without it they are named and the command stops. */
  readonly install?: boolean;
}

export interface LabDownOptions extends LabOutput {
  readonly dir?: string;
  readonly json?: boolean;
}

/** sysexits' EX_UNAVAILABLE: the machine lacks something; nothing is wrong with the command line. */
const exitUnavailable = 69;

/** What `lab up --json` prints. */
export interface LabDescription {
  readonly dir: string;
  readonly storageDir: string;
  readonly hosts: readonly {
    readonly name: string;
    readonly uuid: string;
    readonly socket: string;
    readonly uri: string;
    readonly migrationAddress: string;
  }[];
  readonly guest?: { readonly name: string; readonly uuid: string; readonly host: string; readonly serialLog: string };
}

/** Starts the lab, or describes the one that is up. Returns the exit code. */
export async function labUp(options: LabUpOptions): Promise<number> {
  return refusalsAsExit(options, async () => {
    if (options.install === true) await installPrerequisites({ log: options.err });
    await requirePrerequisites(`vmferry lab up${options.dir === undefined ? "" : ` --dir ${options.dir}`}`);
    const dir = resolve(options.dir ?? defaultLabDir);
    const running = await openLab(dir);
    if (running !== undefined) {
      if (options.hosts !== undefined && options.hosts !== running.hosts.length) {
        throw new LabRefusal(
          `a lab with ${running.hosts.length} hosts is up in ${dir}`,
          `${downCommand(dir)}, then lab up again`,
        );
      }
      options.err(`the lab is up already in ${dir}`);
    }
    const lab = running ?? (await startLab({ hosts: options.hosts ?? 2, dir, detached: true, log: options.err }));
    const description = describe(lab, options.guest === true ? await guestOf(lab, options.err) : undefined);
    if (options.json === true) options.out(JSON.stringify(description, null, 2));
    else for (const line of asText(description)) options.out(line);
    return 0;
  });
}

/** Ends the lab's hosts and their QEMUs and removes its folder. Returns the exit code; nothing to end is no failure. */
export async function labDown(options: LabDownOptions): Promise<number> {
  return refusalsAsExit(options, async () => {
    if (!isRoot()) throw new LabRefusal("ending the lab's hosts needs root", "sudo vmferry lab down");
    const dir = resolve(options.dir ?? defaultLabDir);
    const removed = await removeLab(dir);
    if (options.json === true) options.out(JSON.stringify({ dir, removed }));
    else options.out(removed ? `lab in ${dir}: ended and removed` : `no lab in ${dir}`);
    return 0;
  });
}

async function refusalsAsExit(output: LabOutput, act: () => Promise<number>): Promise<number> {
  try {
    return await act();
  } catch (error) {
    if (!(error instanceof LabRefusal)) throw error;
    output.err(error.message);
    return exitUnavailable;
  }
}

async function guestOf(lab: Lab, log: (line: string) => void): Promise<LabDescription["guest"]> {
  const name = "guest";
  for (const host of lab.hosts) {
    if ((await host.virsh.domstate(name)) === undefined) continue;
    const uuid = (await host.virsh.run(["domuuid", name])).trim();
    return { name, uuid, host: host.name, serialLog: `${lab.storageDir}/${name}.serial` };
  }
  const host = lab.host(0);
  log(`booting ${name} on ${host.name} under emulation, some 10 s`);
  const guest = await bootGuest(host, { name });
  await guest.witness.stop();
  return { name, uuid: guest.uuid, host: host.name, serialLog: guest.serialLogOn(host) };
}

function describe(lab: Lab, guest: LabDescription["guest"]): LabDescription {
  return {
    dir: lab.dir,
    storageDir: lab.storageDir,
    hosts: lab.hosts.map(({ name, uuid, socket, uri, migrationAddress }) => ({
      name,
      uuid,
      socket,
      uri,
      migrationAddress,
    })),
    ...(guest === undefined ? {} : { guest }),
  };
}

function downCommand(dir: string): string {
  return `vmferry lab down${dir === defaultLabDir ? "" : ` --dir ${dir}`}`;
}

function* asText({ dir, storageDir, hosts, guest }: LabDescription): Generator<string> {
  yield `lab in ${dir}: ${hosts.length} ${hosts.length === 1 ? "host" : "hosts"}, shared storage ${storageDir}`;
  for (const host of hosts) {
    yield `  ${host.name}  socket ${host.socket}`;
    yield `      virsh -c '${host.uri}' list --all`;
    yield `      vmferry shim --name ${host.name} --libvirt ${host.socket} --migration-address ${host.migrationAddress} --url URL`;
  }
  if (guest !== undefined) yield `  ${guest.name} (${guest.uuid}) on ${guest.host}; it counts in ${guest.serialLog}`;
  yield `end it: ${downCommand(dir)}`;
}
