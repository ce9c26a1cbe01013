/**
 * A paused domain that its QEMU has received and never run since. QEMU before 10.0 dies of an assertion when it is to send
 * such a domain on (bdrv_inactivate_recurse: its images are still inactive, seen with 7.2), and libvirt does not guard against
 * it: the domain would be stopped by us (I8), so it is found before anything is touched.
 *
 * No API of libvirt tells; the process does: it was started to receive (`-incoming`), and its CPUs have used no time.
 */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";

/** QEMU as libvirt numbers it: the first release that inactivates what is inactive already. */
export const sendsInactiveSince = 10_000_000;

/** Ticks of 10 ms (USER_HZ). A CPU that never ran has a few from its setup; a guest that ran for a moment has more. */
const ranTicksMin = 100;

/** Whether a process that holds this domain has received it and not run it. Unreadable processes say nothing. */
export async function hasNotRunSinceArrival(uuid: string, proc = "/proc"): Promise<boolean> {
  for (const pid of await readdir(proc).catch(() => [])) {
    if (!/^\d+$/.test(pid)) continue;
    const words = (await readFile(join(proc, pid, "cmdline"), "utf8").catch(() => "")).split("\0");
    const at = words.indexOf("-uuid");
    if (at < 0 || words[at + 1] !== uuid || !words.includes("-incoming")) continue;
    if ((await cpuTicks(join(proc, pid, "task"))) < ranTicksMin) return true;
  }
  return false;
}

/** Time that the threads of the guest's CPUs (`CPU 0/KVM`) have used, in ticks; fields 14 and 15 of proc(5)'s stat. */
async function cpuTicks(tasks: string): Promise<number> {
  let ticks = 0;
  for (const task of await readdir(tasks).catch(() => [])) {
    const stat = await readFile(join(tasks, task, "stat"), "utf8").catch(() => "");
    if (!/^\d+ \(CPU \d/.test(stat)) continue;
    // The name may hold spaces and brackets, so fields are counted from its end; the third one follows it.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    ticks += Number(fields[11]) + Number(fields[12]);
  }
  return ticks;
}
