/**
 * A host's disk. What was written and not synced survives the death of a process and not the loss of power, which leaves
 * any part of it. It can be full for a while.
 */
import type { Disk, DiskFile } from "#shim/disk";
import type { SideName } from "./fault-plan.ts";
import { type Life, never, type World } from "./world.ts";

interface StoredFile {
  bytes: Buffer;
  /** So much of it survives everything. */
  syncedBytes: number;
}

export class SimDisk {
  readonly #world: World;
  readonly side: SideName;
  readonly #files = new Map<string, StoredFile>();
  isFull = false;
  /** Told of each entry that is on disk for good, and of each file that goes. */
  onEntry: (path: string, line: Buffer) => void = () => {};
  onRemoved: (path: string) => void = () => {};

  constructor(world: World, side: SideName) {
    this.#world = world;
    this.side = side;
    world.onHeal(() => {
      this.isFull = false;
    });
  }

  fillFor(ms: number): void {
    this.isFull = true;
    this.#world.time.after(ms, () => {
      this.isFull = false;
    });
  }

  /** What was not synced is lost from some byte on, or stands there as zeros. */
  losePower(): void {
    for (const file of this.#files.values()) {
      const loose = file.bytes.byteLength - file.syncedBytes;
      if (loose === 0) continue;
      const kept = this.#world.chance.between(0, loose);
      file.bytes = file.bytes.subarray(0, file.syncedBytes + kept);
      if (kept > 0 && this.#world.chance.is(0.3)) file.bytes = Buffer.from(file.bytes).fill(0, file.syncedBytes);
      file.syncedBytes = file.bytes.byteLength;
    }
  }

  names(prefix: string): string[] {
    return [...this.#files.keys()].filter((path) => path.startsWith(prefix));
  }

  contents(path: string): Buffer | null {
    return this.#files.get(path)?.bytes ?? null;
  }

  /** The disk as one process sees it. */
  seenBy(life: Life): Disk {
    return {
      makeDirectory: () => this.#cross(life, "directory", () => {}),
      list: (path) =>
        this.#cross(life, "list", () => this.names(`${path}/`).map((name) => name.slice(path.length + 1))),
      read: (path) => this.#cross(life, "read", () => copied(this.#files.get(path)?.bytes ?? null)),
      open: (path) =>
        this.#cross(life, "open", () => {
          const known = this.#files.get(path);
          const file = known ?? { bytes: Buffer.alloc(0), syncedBytes: 0 };
          if (known === undefined) this.#files.set(path, file);
          return this.#handle(life, path, file);
        }),
      replace: (path, text) =>
        this.#change(life, `replace ${baseOf(path)}`, () => {
          const bytes = Buffer.from(text);
          this.#files.set(path, { bytes, syncedBytes: bytes.byteLength });
        }),
      remove: (path) =>
        this.#change(life, `remove ${baseOf(path)}`, () => {
          if (this.#files.delete(path)) this.onRemoved(path);
        }),
    };
  }

  #handle(life: Life, path: string, file: StoredFile): DiskFile {
    let line: Buffer = Buffer.alloc(0);
    return {
      read: async () => (life.isAlive ? Buffer.from(file.bytes) : never()),
      truncate: async (bytes) => {
        if (!life.isAlive) return never();
        file.bytes = file.bytes.subarray(0, bytes);
        file.syncedBytes = Math.min(file.syncedBytes, bytes);
      },
      // The bytes are given to the system at once; the crossing is the sync that follows.
      write: async (bytes, position) => {
        if (!life.isAlive) return never();
        line = bytes;
        file.bytes = Buffer.concat([file.bytes.subarray(0, position), bytes]);
        return bytes.byteLength;
      },
      sync: () => {
        const before = file.bytes.byteLength - line.byteLength;
        return this.#world.cross<void>({
          life,
          point: { class: "disk", actor: this.side, what: whatOf(line) },
          takesMs: [0, 2],
          outlives: false,
          faulted: (kinds) => {
            if (kinds.has("crashBefore")) file.bytes = file.bytes.subarray(0, before);
            if (kinds.has("crashTorn")) {
              file.bytes = file.bytes.subarray(0, before + this.#world.chance.between(0, line.byteLength));
              life.end();
              return never();
            }
            if (!kinds.has("diskFull")) return null;
            this.fillFor(30_000);
            return this.#full(file, before);
          },
          act: () => {
            if (this.isFull) {
              file.bytes = file.bytes.subarray(0, before);
              throw new Error("ENOSPC: no space left on device");
            }
            file.syncedBytes = file.bytes.byteLength;
            this.onEntry(path, line);
          },
        });
      },
      close: async () => {},
    };
  }

  async #full(file: StoredFile, before: number): Promise<never> {
    file.bytes = file.bytes.subarray(0, before + this.#world.chance.between(0, file.bytes.byteLength - before));
    throw new Error("ENOSPC: no space left on device");
  }

  /** What reads or makes names: no fault of its own. */
  async #cross<T>(life: Life, _what: string, act: () => T): Promise<T> {
    return life.isAlive ? act() : never<T>();
  }

  #change(life: Life, what: string, act: () => void): Promise<void> {
    return this.#world.cross<void>({
      life,
      point: { class: "disk", actor: this.side, what },
      takesMs: [0, 2],
      outlives: false,
      act: () => {
        if (this.isFull && what.startsWith("replace")) throw new Error("ENOSPC: no space left on device");
        act();
      },
    });
  }
}

const copied = (bytes: Buffer | null) => (bytes === null ? null : Buffer.from(bytes));

const baseOf = (path: string) => (path.endsWith("tombstones.json") ? "tombstones" : "journal");

/** What a journal line announces, for the name of its point. Read by its text: this is asked for every line of every run. */
function whatOf(line: Buffer): string {
  const text = line.toString("latin1", 18, 400);
  const of = (pattern: RegExp) => pattern.exec(text)?.[1] ?? "?";
  const type = of(/"type":"([a-z]+)"/);
  if (type === "intent") return `intent ${of(/"id":"[^:"]*:([a-zA-Z]+:[0-9]+)"/)}`;
  if (type === "milestone") return `milestone ${of(/"name":"([a-zA-Z]+)"/)}`;
  return `${type} ${of(/"commandId":"[^:"]*:([a-zA-Z]+:[0-9]+)"/)}`;
}
