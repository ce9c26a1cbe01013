/**
 * Which process is which: a pid alone may have been given to another process since, so a process is named by its pid and
 * its start time (field 22 of /proc/PID/stat, in clock ticks since boot). Used to hold a data folder by one `vmferry up`
 * only, and to end the workerd of a killed one and nothing else.
 */
import { chmod, link, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import * as z from "zod/mini";
import { CliError } from "./cli-error.ts";
import { exitCodes } from "./exit-code.ts";

const processSchema = z.object({ pid: z.int().check(z.minimum(2)), startTicks: z.string() });
type Process = z.infer<typeof processSchema>;

/** Pid and start time out of a line of /proc/PID/stat; the name in brackets may hold anything, so it is cut off first. */
export function processOf(stat: string): Process | null {
  const pid = Number(/^(\d+) \(/.exec(stat)?.[1]);
  const startTicks = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
  const found = processSchema.safeParse({ pid, startTicks });
  return found.success ? found.data : null;
}

async function standing(pid: number): Promise<Process | null> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, "utf8");
    // A zombie holds nothing any more.
    return /^Z/.test(stat.slice(stat.lastIndexOf(")") + 2)) ? null : processOf(stat);
  } catch {
    return null;
  }
}

const runs = async (one: Process): Promise<boolean> => (await standing(one.pid))?.startTicks === one.startTicks;

const textOf = async (path: string): Promise<string | null> => readFile(path, "utf8").catch(() => null);

function lockOf(text: string | null): Process | null {
  try {
    const found = processSchema.safeParse(JSON.parse(text ?? ""));
    return found.success ? found.data : null;
  } catch {
    return null;
  }
}

const inUse = (folder: string, holder: Process | null) =>
  new CliError({
    code: "up.dataInUse",
    cause: `Another \`vmferry up\`${holder === null ? "" : ` (process ${holder.pid})`} uses ${folder}.`,
    action: "Stop it first, or give this one another folder with --data DIR.",
    exit: exitCodes.unavailable,
  });

/** Holds the data folder for this process until the returned function is called. Throws `CliError` `up.dataInUse`. */
export async function holdFolder(folder: string): Promise<() => Promise<void>> {
  const path = join(folder, "up.lock");
  const self = await standing(process.pid);
  if (self === null)
    throw new CliError({
      code: "up.noProc",
      cause: "/proc is not readable, so running processes cannot be told apart.",
      action: "Run `vmferry up` on Linux with /proc mounted.",
      exit: exitCodes.unavailable,
    });
  const own = `${path}.${process.pid}`;
  await writeFile(own, JSON.stringify(self), { mode: 0o600 });
  try {
    // Two rounds: once to find a stale lock and move it away, once to take the free name.
    for (let round = 0; round < 2; round += 1) {
      try {
        // A hard link appears whole and fails when the name is taken: of two processes one gets it.
        await link(own, path);
        return () => rm(path, { force: true });
      } catch (error) {
        if (!(error instanceof Error && "code" in error && error.code === "EEXIST")) throw error;
      }
      const text = await textOf(path);
      const holder = lockOf(text);
      if (holder !== null && (await runs(holder))) throw inUse(folder, holder);
      // Moved, not removed: what we moved must be what we read, else another process took it meanwhile.
      const stale = `${own}.stale`;
      await rename(path, stale).catch(() => {});
      const moved = await textOf(stale);
      if (moved !== null && moved !== text) {
        await link(stale, path).catch(() => {});
        throw inUse(folder, lockOf(moved));
      }
      await rm(stale, { force: true });
    }
    throw inUse(folder, lockOf(await textOf(path)));
  } finally {
    await rm(own, { force: true });
  }
}

const runtimePidFile = (folder: string) => join(folder, "workerd.stat");
const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;

/**
 * Writes the script that starts workerd so that it dies with us (prctl PR_SET_PDEATHSIG by setpriv, util-linux) and leaves
 * its own line of /proc behind for `endOrphan`, which stands in where setpriv is missing. exec keeps pid and start time.
 */
export async function writeRuntimeLauncher(folder: string, workerd: string): Promise<string> {
  const path = join(folder, "workerd.sh");
  // Asked after the signal is set: a parent that was gone before is noticed here, one that goes later by the signal.
  const orphanCheck = `[ "$PPID" = ${process.pid} ] || exit 1; exec "$@"`;
  const script = [
    "#!/bin/sh",
    `cat /proc/$$/stat > ${quoted(runtimePidFile(folder))}`,
    "if command -v setpriv >/dev/null 2>&1; then",
    `  exec setpriv --pdeathsig KILL -- /bin/sh -c ${quoted(orphanCheck)} sh ${quoted(workerd)} "$@"`,
    "fi",
    `exec ${quoted(workerd)} "$@"`,
    "",
  ].join("\n");
  await writeFile(path, script, { mode: 0o700 });
  await chmod(path, 0o700);
  return path;
}

/** Ends the workerd of an earlier `vmferry up` on this folder that was killed; true when there was one. It keeps port and files. */
export async function endOrphan(folder: string): Promise<boolean> {
  const orphan = processOf((await textOf(runtimePidFile(folder))) ?? "");
  const found = orphan !== null && (await runs(orphan));
  if (found) {
    process.kill(orphan.pid, "SIGKILL");
    while (await runs(orphan)) await new Promise((resolve) => setTimeout(resolve, 10));
  }
  await rm(runtimePidFile(folder), { force: true });
  return found;
}
