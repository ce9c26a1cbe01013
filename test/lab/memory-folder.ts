/**
 * A host's /run in memory, as on every real host: libvirt writes and syncs the status of a running domain there at each
 * change, so on a disk a lab would measure that disk. The folder lies in /dev/shm under a name made of the folder it stands
 * for, so whoever removes that folder, after a kill too, finds it again.
 */
import { createHash } from "node:crypto";
import { lstat, mkdir, rm, statfs, symlink } from "node:fs/promises";

const memoryRoot = "/dev/shm";
/** statfs f_type of tmpfs (linux/magic.h, TMPFS_MAGIC). */
const tmpfsMagic = 0x01021994;

const twinOf = (path: string) =>
  `${memoryRoot}/vmferry-lab-${createHash("sha256").update(path).digest("hex").slice(0, 16)}`;

/** Makes `path` a folder in memory, or a plain one where the machine has no tmpfs at /dev/shm. Harmless when it is there. */
export async function makeMemoryFolder(path: string): Promise<void> {
  if ((await lstat(path).catch(() => undefined)) !== undefined) return;
  const kind = await statfs(memoryRoot).catch(() => undefined);
  if (kind?.type !== tmpfsMagic) {
    await mkdir(path, { recursive: true });
    return;
  }
  const twin = twinOf(path);
  await mkdir(twin, { recursive: true, mode: 0o755 });
  await symlink(twin, path);
}

/** Removes the folder and its contents, wherever they are. */
export async function removeMemoryFolder(path: string): Promise<void> {
  await rm(twinOf(path), { recursive: true, force: true });
  await rm(path, { recursive: true, force: true });
}
