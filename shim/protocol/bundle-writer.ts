/**
 * Writes a bundle (bundle.ts) as a stream, in constant memory: one entry at a time is held, beside the names. The file
 * appears under its name only when it is complete and on disk, so a crash leaves no half bundle that looks whole (I3).
 */
import { createHash } from "node:crypto";
import { createWriteStream } from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { pipeline } from "node:stream/promises";
import { createGzip } from "node:zlib";
import type { BundleRef } from "./blob.ts";
import { type BundleCounts, type BundleEntry, EntryOrder, encodeEntry, encodeHeader } from "./bundle.ts";
import { Fault } from "./fault.ts";
import { bundleBytesMax, bundlePlainBytesMax } from "./limits.ts";
import { TreeDigest, type XmlNormaliser } from "./tree.ts";

/** What is known of a written bundle: everything of a `BundleRef` but the key, which the bucket gives. */
export type BundleFacts = Omit<BundleRef, "key">;

export interface WriteBundle {
  path: string;
  /** Stated in the header before the first entry comes; entries that do not match them are refused. */
  counts: BundleCounts;
  /** The domain first, then snapshots, then checkpoints, parents before children. */
  entries: AsyncIterable<BundleEntry> | Iterable<BundleEntry>;
  /** For the tree digest only; the XML is written as given. */
  normalise?: XmlNormaliser;
}

/**
 * Writes the file (0600, fsynced, renamed into place). Throws `Fault` `bundle.malformed` when the entries do not fit the
 * counts or a limit, `bundle.tooLarge`, and whatever the entries or the disk throw; nothing stays at `path` then.
 */
export async function writeBundle({ path, counts, entries, normalise }: WriteBundle): Promise<BundleFacts> {
  const partial = `${path}.partial`;
  const plain = createHash("sha256");
  const stored = createHash("sha256");
  const tree = new TreeDigest(normalise);
  let plainBytes = 0;
  let bytes = 0;
  let plainSha256 = "";

  async function* plainChunks(): AsyncGenerator<Buffer> {
    const count = (chunk: Buffer): Buffer => {
      plainBytes += chunk.byteLength;
      if (plainBytes > bundlePlainBytesMax) throw tooLarge(plainBytes, bundlePlainBytesMax, "before compression");
      plain.update(chunk);
      return chunk;
    };
    const order = new EntryOrder(counts);
    yield count(encodeHeader(counts));
    for await (const entry of entries) {
      const { kind } = entry;
      order.add(entry);
      if (kind !== "domain") tree.add({ ...entry, kind });
      yield count(encodeEntry(entry));
    }
    order.end();
    const digest = plain.digest();
    plainSha256 = digest.toString("hex");
    yield digest;
  }

  async function* counted(chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of chunks) {
      bytes += chunk.byteLength;
      if (bytes > bundleBytesMax) throw tooLarge(bytes, bundleBytesMax, "compressed");
      stored.update(chunk);
      yield chunk;
    }
  }

  try {
    // `flush` fsyncs before the file is closed.
    await pipeline(plainChunks, createGzip(), counted, createWriteStream(partial, { mode: 0o600, flush: true }));
    await rename(partial, path);
    await syncDirectory(dirname(path));
  } catch (error) {
    await rm(partial, { force: true });
    throw error;
  }
  return {
    sha256: stored.digest("hex"),
    bytes,
    plainSha256,
    plainBytes,
    snapshots: counts.snapshots,
    checkpoints: counts.checkpoints,
    treeSha256: tree.sha256(),
  };
}

/** Makes a new name in a directory survive a power cut. */
async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

const tooLarge = (bytes: number, bytesMax: number, what: string) =>
  new Fault({
    code: "bundle.tooLarge",
    cause: `The bundle has ${bytes} bytes or more ${what}; the limit is ${bytesMax}.`,
    action: "Delete snapshots that are no longer needed (`virsh snapshot-list`), then migrate again.",
    retry: "never",
  });
