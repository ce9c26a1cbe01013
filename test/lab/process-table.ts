/**
 * The machine's process table as the lab needs it: who belongs to a lab host, and ends without mistakes.
 *
 * A pid alone names nothing after a crash, because the kernel gives it out again. So a process is held as pid plus
 * start time, and the processes of a lab host are found by what only they have: the host's own folder mounted over
 * /run/libvirt. That works after the starter was killed, and never hits a libvirtd or QEMU of the machine itself.
 */
import { readdir, readFile, stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import * as z from "zod/mini";

/** startTime is in clock ticks since boot, field 22 of /proc/PID/stat; with the pid it is unique until a reboot. */
export const processIdentitySchema = z.object({ pid: z.int(), startTime: z.string(), bootId: z.string() });
export type ProcessIdentity = z.infer<typeof processIdentitySchema>;

/** How long a process may take to vanish after SIGKILL: only uninterruptible disk waits come near it. */
const killWaitMs = 15_000;
const pollMs = 20;

async function bootId(): Promise<string> {
  return (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
}

/** State letter and start time of a process, or undefined when there is none. The name may hold spaces and brackets. */
async function processStat(pid: number): Promise<{ state: string; startTime: string } | undefined> {
  let text: string;
  try {
    text = await readFile(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined;
  }
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return { state: fields[0] ?? "?", startTime: fields[19] ?? "" };
}

/**
 * The identity of a running process, or undefined when no such process lives. A zombie does not, unless threads of it
 * still end: a killed QEMU's first thread is gone seconds before its memory and files are.
 */
export async function identify(pid: number): Promise<ProcessIdentity | undefined> {
  const found = await processStat(pid);
  if (found === undefined || found.state === "X") return undefined;
  if (found.state === "Z" && (await readdir(`/proc/${pid}/task`).catch(() => [])).length <= 1) return undefined;
  return { pid, startTime: found.startTime, bootId: await bootId() };
}

/** True while exactly this process lives; a reused pid or a reboot makes it false. */
export async function isAlive(identity: ProcessIdentity): Promise<boolean> {
  const now = await identify(identity.pid);
  return now !== undefined && now.startTime === identity.startTime && now.bootId === identity.bootId;
}

/**
 * Processes in whose mount namespace `/run/libvirt` is `runDir`: the libvirtd of that lab host and everything it has
 * started. Needs root.
 */
export async function processesOf(runDir: string): Promise<(ProcessIdentity & { command: string })[]> {
  let wanted: { dev: number; ino: number };
  try {
    wanted = await stat(runDir);
  } catch {
    return [];
  }
  const found: (ProcessIdentity & { command: string })[] = [];
  for (const entry of await readdir("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      const seen = await stat(`/proc/${entry}/root/run/libvirt`);
      if (seen.dev !== wanted.dev || seen.ino !== wanted.ino) continue;
      const command = (await readFile(`/proc/${entry}/cmdline`, "utf8")).replaceAll("\0", " ").trim();
      const identity = await identify(Number(entry));
      if (identity !== undefined) found.push({ ...identity, command });
    } catch {
      // Kernel threads, and processes that ended while we looked.
    }
  }
  return found;
}

/** Sends a signal to exactly this process; true when it was there to get it. */
export async function signal(identity: ProcessIdentity, name: NodeJS.Signals): Promise<boolean> {
  if (!(await isAlive(identity))) return false;
  try {
    process.kill(identity.pid, name);
    return true;
  } catch {
    return false;
  }
}

/** Waits until the process is gone; false when it still lives after `timeoutMs`. */
export async function waitForExit(identity: ProcessIdentity, timeoutMs: number): Promise<boolean> {
  for (let waitedMs = 0; waitedMs < timeoutMs; waitedMs += pollMs) {
    if (!(await isAlive(identity))) return true;
    await delay(pollMs);
  }
  return !(await isAlive(identity));
}

/** SIGKILLs the process and waits until it is gone. Throws when it will not go. */
export async function killHard(identity: ProcessIdentity): Promise<void> {
  await signal(identity, "SIGKILL");
  if (!(await waitForExit(identity, killWaitMs))) {
    throw new Error(
      `process ${identity.pid} did not end within ${killWaitMs} ms of SIGKILL; see /proc/${identity.pid}/stack`,
    );
  }
}
