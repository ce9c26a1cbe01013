/**
 * The shim's memory (I3, I6): one append-only file for each migration below STATE/journal, fsynced at every entry, and a
 * bounded list of the migrations that are over. An entry that `append` resolved for is on disk. One that it rejected for is
 * not there for readers of this process; after a crash it may be, as with any disk that failed to say.
 */
import { join } from "node:path";
import * as z from "zod/mini";
import { migrationIdSchema } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { type Disk, type DiskFile, hostDisk } from "./disk.ts";
import { decodeLines, encodeLine } from "./journal-line.ts";
import type { Journal, JournalEntry } from "./ports.ts";

/**
 * Tombstones kept: a late duplicate is at most as old as the functions' own redelivery, which ends with the migration;
 * 4,096 later migrations of one host are weeks, and the file stays below 200 KB, so it can be replaced as a whole.
 */
export const tombstonesMax = 4_096;

const suffix = ".jsonl";
const tombstonesSchema = z.object({
  version: z.literal(1),
  forgotten: z.array(z.tuple([migrationIdSchema, z.int()])),
});

/** Opens (and makes, 0700) STATE/journal. Removes what a crash left of migrations that are over. Throws `Fault` `internal` for damage. */
export async function openJournal(stateDirectory: string, disk: Disk = hostDisk): Promise<FileJournal> {
  const directory = join(stateDirectory, "journal");
  await disk.makeDirectory(directory);
  const tombstonesPath = join(stateDirectory, "tombstones.json");
  const tombstones = await readTombstones(disk, tombstonesPath);
  const journal = new FileJournal(disk, directory, tombstonesPath, tombstones);
  for (const id of await journal.list()) if (tombstones.has(id)) await disk.remove(join(directory, id + suffix));
  return journal;
}

async function readTombstones(disk: Disk, path: string): Promise<Map<string, number>> {
  const bytes = await disk.read(path);
  if (bytes === null) return new Map();
  try {
    return new Map(tombstonesSchema.parse(JSON.parse(bytes.toString("utf8"))).forgotten);
  } catch (error) {
    throw new Fault(
      {
        code: "internal",
        cause: `The shim's list of ended migrations ${path} is damaged: a late command could be executed twice.`,
        action:
          "Make sure that no migration of this host is active (`vmferry migrations --active`), move the file away and restart the shim.",
        retry: "person",
      },
      { cause: error },
    );
  }
}

interface OpenFile {
  handle: DiskFile;
  /** Everything up to here is sound and on disk; the next line begins here. */
  soundBytes: number;
  /** Behind `soundBytes` may stand what a failed or torn write left: it is cut off before the next line. */
  dirty: boolean;
}

export class FileJournal implements Journal {
  readonly #disk: Disk;
  readonly #directory: string;
  readonly #tombstonesPath: string;
  readonly #tombstones: Map<string, number>;
  readonly #files = new Map<string, OpenFile>();
  /** One writer for each migration at a time. */
  readonly #turns = new Map<string, Promise<unknown>>();
  #forgetting: Promise<unknown> = Promise.resolve();

  /** Use `openJournal`. */
  constructor(disk: Disk, directory: string, tombstonesPath: string, tombstones: Map<string, number>) {
    this.#disk = disk;
    this.#directory = directory;
    this.#tombstonesPath = tombstonesPath;
    this.#tombstones = tombstones;
  }

  append(migrationId: string, entry: JournalEntry): Promise<void> {
    return this.#inTurn(migrationId, async () => {
      const file = await this.#open(migrationId);
      const line = encodeLine(entry);
      try {
        if (file.dirty) await file.handle.truncate(file.soundBytes);
        file.dirty = true;
        const taken = await file.handle.write(line, file.soundBytes);
        if (taken !== line.byteLength) throw new Error(`the disk took ${taken} of ${line.byteLength} bytes`);
        await file.handle.sync();
        file.dirty = false;
        file.soundBytes += line.byteLength;
      } catch (error) {
        throw unwritable(this.#path(migrationId), error);
      }
    });
  }

  read(migrationId: string): Promise<JournalEntry[]> {
    return this.#inTurn(migrationId, async () => {
      const path = this.#path(migrationId);
      if (!this.#files.has(migrationId) && !(await this.#settle(migrationId))) return [];
      const bytes = await this.#disk.read(path);
      if (bytes === null) return [];
      const open = this.#files.get(migrationId);
      return decodeLines(open === undefined ? bytes : bytes.subarray(0, open.soundBytes), path).entries;
    });
  }

  async list(): Promise<string[]> {
    const names = await this.#disk.list(this.#directory);
    return names
      .filter((name) => name.endsWith(suffix))
      .map((name) => name.slice(0, -suffix.length))
      .filter((id) => migrationIdSchema.safeParse(id).success)
      .sort();
  }

  /** The tombstone is on disk before the journal goes, so no instant knows neither. */
  forget(migrationId: string, epoch: number): Promise<void> {
    const forgotten = this.#forgetting.then(async () => {
      const known = this.#tombstones.get(migrationId) ?? 0;
      this.#tombstones.delete(migrationId);
      this.#tombstones.set(migrationId, Math.max(known, epoch));
      for (const oldest of this.#tombstones.keys()) {
        if (this.#tombstones.size <= tombstonesMax) break;
        this.#tombstones.delete(oldest);
      }
      await this.#disk.replace(this.#tombstonesPath, JSON.stringify({ version: 1, forgotten: [...this.#tombstones] }));
      await this.#inTurn(migrationId, async () => {
        await this.#files.get(migrationId)?.handle.close();
        this.#files.delete(migrationId);
        await this.#disk.remove(this.#path(migrationId));
      });
      this.#turns.delete(migrationId);
    });
    this.#forgetting = forgotten.catch(() => {
      // The caller of this one is told; the next one is tried on its own.
    });
    return forgotten;
  }

  forgottenEpoch(migrationId: string): number | null {
    return this.#tombstones.get(migrationId) ?? null;
  }

  /** Waits for what is being written and closes the files. */
  async close(): Promise<void> {
    await this.#forgetting;
    await Promise.allSettled(this.#turns.values());
    for (const { handle } of this.#files.values()) await handle.close();
    this.#files.clear();
  }

  /**
   * What a process that died has written and not synced is still in the system's memory: it is brought to the disk before it is
   * believed, or a loss of power would take back what was answered by it (I7). False when there is no file.
   */
  async #settle(migrationId: string): Promise<boolean> {
    const path = this.#path(migrationId);
    if ((await this.#disk.read(path)) === null) return false;
    const { handle } = await this.#open(migrationId);
    try {
      await handle.sync();
    } catch (error) {
      throw unwritable(path, error);
    }
    return true;
  }

  async #open(migrationId: string): Promise<OpenFile> {
    const open_ = this.#files.get(migrationId);
    if (open_ !== undefined) return open_;
    if (this.#tombstones.has(migrationId)) throw new Error(`migration ${migrationId} was forgotten`);
    const path = this.#path(migrationId);
    const handle = await this.#disk.open(path);
    try {
      const bytes = await handle.read();
      const { soundBytes } = decodeLines(bytes, path);
      const file = { handle, soundBytes, dirty: soundBytes < bytes.byteLength };
      this.#files.set(migrationId, file);
      return file;
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  #path(migrationId: string): string {
    return join(this.#directory, migrationIdSchema.parse(migrationId) + suffix);
  }

  #inTurn<T>(migrationId: string, work: () => Promise<T>): Promise<T> {
    const turn = (this.#turns.get(migrationId) ?? Promise.resolve()).then(work);
    this.#turns.set(
      migrationId,
      turn.catch(() => {
        // The caller is told; the next in turn is tried on its own.
      }),
    );
    return turn;
  }
}

const unwritable = (path: string, error: unknown) =>
  new Fault(
    {
      code: "internal",
      cause: `The shim's journal ${path} cannot be written: ${error instanceof Error ? error.message : "unknown"}. Nothing is done that is not journalled first.`,
      action:
        "Look at the disk of the shim's state directory (df, dmesg). The command is tried again when it comes again.",
      retry: "safe",
    },
    { cause: error },
  );
