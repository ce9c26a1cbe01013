/** Writing so that it survives a power cut: data before names, names before anything is said about them. */
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";

/** Makes created, renamed and removed names of a directory durable. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/** Replaces a file as a whole (0600): a reader sees the old bytes or the new ones, never a part. */
export async function replaceFile(path: string, text: string): Promise<void> {
  const partial = `${path}.partial`;
  let file: FileHandle | undefined;
  try {
    file = await open(partial, "w", 0o600);
    await file.writeFile(text);
    await file.sync();
    await file.close();
    file = undefined;
    await rename(partial, path);
    await syncDirectory(dirname(path));
  } catch (error) {
    await file?.close().catch(() => {
      // The first error says what went wrong.
    });
    await rm(partial, { force: true });
    throw error;
  }
}

/** Removes a file durably; one that is not there is as good as removed. */
export async function removeFile(path: string): Promise<void> {
  await rm(path, { force: true });
  await syncDirectory(dirname(path));
}
