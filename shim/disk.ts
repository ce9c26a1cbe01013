/**
 * The disk as the journal needs it, and no more: what resolved has reached it, what did not may or may not have. The real
 * one is `hostDisk`; the simulation has one that loses and tears what was not synced (test/simulation).
 */
import { type FileHandle, mkdir, open, readdir, readFile } from "node:fs/promises";
import { dirname } from "node:path";
import { removeFile, replaceFile, syncDirectory } from "./durable-file.ts";

/** A file that grows at its end. */
export interface DiskFile {
  /** All of it, as it was when it was opened. */
  read(): Promise<Buffer>;
  truncate(bytes: number): Promise<void>;
  /** Writes at `position`; gives how many bytes the disk took. Not durable before `sync`. */
  write(bytes: Buffer, position: number): Promise<number>;
  sync(): Promise<void>;
  close(): Promise<void>;
}

export interface Disk {
  /** Makes a directory (0700) with its parents; one that is there is as good as made. */
  makeDirectory(path: string): Promise<void>;
  /** The names in a directory. */
  list(path: string): Promise<string[]>;
  /** The whole file; null when there is none. */
  read(path: string): Promise<Buffer | null>;
  /** Opens a file to append to; makes it (0600) and its name durable when there is none. */
  open(path: string): Promise<DiskFile>;
  /** Replaces a file as a whole: after a crash there are the old bytes or the new ones. Durable when it resolves. */
  replace(path: string, text: string): Promise<void>;
  /** Durably; one that is not there is as good as removed. */
  remove(path: string): Promise<void>;
}

export const hostDisk: Disk = {
  makeDirectory: async (path) => {
    await mkdir(path, { recursive: true, mode: 0o700 });
  },
  list: (path) => readdir(path),
  read: async (path) => {
    try {
      return await readFile(path);
    } catch (error) {
      if (isAbsent(error)) return null;
      throw error;
    }
  },
  open: async (path) => {
    const { handle, created } = await openOrCreate(path);
    try {
      if (created) await syncDirectory(dirname(path));
    } catch (error) {
      await handle.close();
      throw error;
    }
    return {
      read: () => handle.readFile(),
      truncate: (bytes) => handle.truncate(bytes),
      write: async (bytes, position) => (await handle.write(bytes, 0, bytes.byteLength, position)).bytesWritten,
      sync: () => handle.datasync(),
      close: () => handle.close(),
    };
  },
  replace: replaceFile,
  remove: removeFile,
};

async function openOrCreate(path: string): Promise<{ handle: FileHandle; created: boolean }> {
  try {
    return { handle: await open(path, "r+"), created: false };
  } catch (error) {
    if (!isAbsent(error)) throw error;
    return { handle: await open(path, "wx+", 0o600), created: true };
  }
}

const isAbsent = (error: unknown) => error instanceof Error && "code" in error && error.code === "ENOENT";
