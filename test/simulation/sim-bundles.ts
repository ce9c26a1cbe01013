/**
 * Bundles and the bucket: the same facts and checks as bundle-writer.ts and bundle-reader.ts, without files and gzip. A
 * bundle on a host's disk appears whole or not at all; the bucket keeps what it was given and may be away.
 */
import { createHash } from "node:crypto";
import type { BundleStore } from "#functions/ports";
import type { Blob, BundleRef } from "#protocol/blob";
import { alteredBundle, type BundleEntry, EntryOrder } from "#protocol/bundle";
import type { BundleFacts } from "#protocol/bundle-writer";
import { Fault } from "#protocol/fault";
import { TreeDigest } from "#protocol/tree";
import type { Clock } from "#shim/clock";
import type { BundleAccess, Payloads } from "#shim/ports";
import type { SideName } from "./fault-plan.ts";
import type { SimDisk } from "./sim-disk.ts";
import { type Life, never, type World } from "./world.ts";

export interface StoredBundle {
  facts: BundleFacts;
  entries: readonly BundleEntry[];
}

const sha256 = (data: string | Uint8Array) => createHash("sha256").update(data).digest("hex");

/** As the real ones give up (payloads.ts, transferTryMs). */
const transferTryMs = 20_000;
const transferPauseMs = 1_000;

export class SimBucket {
  readonly #world: World;
  readonly objects = new Map<string, StoredBundle>();
  isAway = false;

  constructor(world: World) {
    this.#world = world;
    world.onHeal(() => {
      this.isAway = false;
    });
  }

  awayFor(ms: number): void {
    this.isAway = true;
    this.#world.time.after(ms, () => {
      this.isAway = false;
    });
  }

  /** What the functions see of it. Grants are not simulated: a shim's transfer asks the bucket itself. */
  asPort(): BundleStore {
    const unused = async (): Promise<never> => {
      throw new Fault({ code: "internal", cause: "No grants here.", action: "None.", retry: "never" });
    };
    return {
      grantPut: unused,
      grantGet: unused,
      head: async (key) => {
        if (this.isAway) throw unreachable();
        const stored = this.objects.get(key);
        return stored === undefined ? null : { bytes: stored.facts.bytes };
      },
      remove: async (key) => {
        this.objects.delete(key);
      },
    };
  }
}

const unreachable = () =>
  new Fault({ code: "bundle.unreachable", cause: "The bucket is away.", action: "Wait.", retry: "safe" });

/** The bundle files of one host. */
export class SimBundleFiles {
  readonly #world: World;
  readonly #disk: SimDisk;
  readonly side: SideName;
  readonly files = new Map<string, StoredBundle>();

  constructor(world: World, disk: SimDisk) {
    this.#world = world;
    this.#disk = disk;
    this.side = disk.side;
  }

  /** What a start of the shim does: leavings of a crash go. */
  sweep(known: readonly string[]): void {
    const kept = new Set(known.map(pathOf));
    for (const path of this.files.keys()) if (!kept.has(path)) this.files.delete(path);
  }

  seenBy(life: Life): BundleAccess & { path(migrationId: string): string; remove(migrationId: string): Promise<void> } {
    return {
      path: pathOf,
      remove: async (migrationId) => {
        if (!life.isAlive) return never();
        this.files.delete(pathOf(migrationId));
      },
      read: (path) => this.#read(life, path),
      verify: async (path, expected) => {
        const stored = this.files.get(path);
        if (!life.isAlive) return never();
        if (stored === undefined) throw new Error(`ENOENT: no bundle ${path}`);
        const { facts } = stored;
        for (const key of ["bytes", "sha256", "plainSha256", "treeSha256", "snapshots", "checkpoints"] as const)
          if (expected[key] !== undefined && expected[key] !== facts[key]) throw alteredBundle(`${key} differs`);
        return facts;
      },
      write: async ({ path, counts, entries }) => {
        const written: BundleEntry[] = [];
        const order = new EntryOrder(counts);
        const tree = new TreeDigest();
        for await (const entry of entries) {
          const { kind } = entry;
          order.add(entry);
          if (kind !== "domain") tree.add({ ...entry, kind });
          written.push(entry);
        }
        order.end();
        const plain = JSON.stringify(written);
        const digest = sha256(plain);
        const facts = {
          sha256: digest,
          bytes: plain.length,
          plainSha256: digest,
          plainBytes: plain.length,
          snapshots: counts.snapshots,
          checkpoints: counts.checkpoints,
          treeSha256: tree.sha256(),
        };
        await this.keep(life, path, { facts, entries: written });
        return facts;
      },
    };
  }

  /** Puts a whole bundle on the disk. */
  keep(life: Life, path: string, bundle: StoredBundle): Promise<void> {
    return this.#world.cross<void>({
      life,
      point: { class: "bundle", actor: this.side, what: "write" },
      takesMs: [1, 20],
      outlives: false,
      faulted: (kinds) => {
        if (kinds.has("diskFull")) this.#disk.fillFor(30_000);
        return null;
      },
      act: () => {
        if (this.#disk.isFull) throw new Error("ENOSPC: no space left on device");
        this.files.set(path, bundle);
      },
    });
  }

  async *#read(life: Life, path: string): AsyncGenerator<BundleEntry> {
    const stored = this.files.get(path);
    if (!life.isAlive) await never();
    if (stored === undefined) throw new Error(`ENOENT: no bundle ${path}`);
    yield* stored.entries;
  }
}

const pathOf = (migrationId: string) => `/bundles/${migrationId}.bundle`;

export function simPayloads(parts: {
  world: World;
  life: Life;
  side: SideName;
  bucket: SimBucket;
  files: SimBundleFiles;
  clock: Clock;
  migrationId: string;
}): Payloads {
  const { world, life, side, bucket, files, clock, migrationId } = parts;
  /** One transfer, tried again for a while as the real ones are. */
  const transfer = async <T>(what: string, act: () => T): Promise<T> => {
    const untilMs = world.time.nowMs + transferTryMs;
    for (;;) {
      try {
        return await world.cross<T>({
          life,
          point: { class: "bucket", actor: side, what },
          takesMs: [2, 40],
          faulted: (kinds) => {
            if (kinds.has("away")) bucket.awayFor(60_000);
            return null;
          },
          act: () => {
            if (bucket.isAway) throw unreachable();
            return act();
          },
        });
      } catch (error) {
        if (!(error instanceof Fault) || error.code !== "bundle.unreachable" || world.time.nowMs >= untilMs)
          throw error;
        await clock.sleep(transferPauseMs);
      }
    }
  };
  return {
    // Cookies stay below what travels inline, so none of them goes through the bucket here.
    read: async (blob) => {
      const bytes = Buffer.from(blob.in === "bucket" ? "" : blob.base64, "base64");
      if (sha256(bytes) === blob.sha256) return bytes;
      throw new Fault({ code: "cookie.altered", cause: "Altered.", action: "Look.", retry: "person" });
    },
    write: async (bytes): Promise<Blob> => ({
      in: "inline",
      base64: Buffer.from(bytes).toString("base64"),
      sha256: sha256(bytes),
      bytes: bytes.byteLength,
    }),
    uploadBundle: ({ path, sha256: digest }) =>
      transfer("put", () => {
        const key = `bundles/${digest}`;
        const stored = files.files.get(path);
        if (stored === undefined) throw new Error(`ENOENT: no bundle ${path}`);
        if (!bucket.objects.has(key)) bucket.objects.set(key, stored);
        return { key };
      }),
    downloadBundle: async (ref: BundleRef) => {
      const path = pathOf(migrationId);
      if (files.files.get(path)?.facts.sha256 === ref.sha256) return path;
      const stored = await transfer("get", () => {
        const found = bucket.objects.get(ref.key);
        if (found === undefined) throw unreachable();
        return found;
      });
      await files.keep(life, path, stored);
      return path;
    },
  };
}
