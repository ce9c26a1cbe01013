/**
 * A shim's journal as it grows, seen from outside within a millisecond or so: the finest clock by which a fault can be told when
 * to fall. Each line is read as it is written, before the shim's own fsync has ended.
 */
import { closeSync, type FSWatcher, openSync, readSync, watch } from "node:fs";
import { join } from "node:path";
import * as z from "zod/mini";

/** What the moments look at; the rest of a line is the shim's own business. */
const entrySchema = z.union([
  z.object({ type: z.literal("intent"), command: z.object({ kind: z.string(), id: z.string() }) }),
  z.object({ type: z.literal("milestone"), name: z.string(), commandId: z.string() }),
  z.object({ type: z.literal("report"), report: z.object({ commandId: z.string() }) }),
  z.object({ type: z.literal("acknowledged"), commandId: z.string() }),
]);
export type SeenEntry = z.infer<typeof entrySchema>;

/** `LENGTH CRC32 ` before each line's JSON. */
const guardChars = 18;
const readBytesMax = 256 * 1024;

export class JournalWatch {
  readonly #folder: string;
  readonly #onEntry: (migrationId: string, entry: SeenEntry) => void;
  readonly #watcher: FSWatcher;
  /** Bytes of each file that were read as whole lines. */
  readonly #offsets = new Map<string, number>();

  /** The folder must be there: the shim makes it at its start. */
  constructor(stateDirectory: string, onEntry: (migrationId: string, entry: SeenEntry) => void) {
    this.#folder = join(stateDirectory, "journal");
    this.#onEntry = onEntry;
    this.#watcher = watch(this.#folder, (_, name) => {
      if (name?.endsWith(".jsonl") === true) this.#read(name);
    });
  }

  close(): void {
    this.#watcher.close();
  }

  #read(name: string): void {
    let file: number;
    try {
      file = openSync(join(this.#folder, name), "r");
    } catch {
      // Forgotten already.
      return;
    }
    try {
      const from = this.#offsets.get(name) ?? 0;
      const buffer = Buffer.allocUnsafe(readBytesMax);
      const text = buffer.subarray(0, readSync(file, buffer, 0, readBytesMax, from)).toString("latin1");
      const whole = text.slice(0, text.lastIndexOf("\n") + 1);
      this.#offsets.set(name, from + whole.length);
      for (const line of whole.split("\n")) {
        const entry = entrySchema.safeParse(jsonOf(line.slice(guardChars)));
        if (entry.success) this.#onEntry(name.slice(0, -".jsonl".length), entry.data);
      }
    } finally {
      closeSync(file);
    }
  }
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
