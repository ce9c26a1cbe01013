/**
 * Reads a bundle (bundle.ts) as a stream, in constant memory, and trusts nothing in it: lengths are refused before
 * anything is allocated, inflating stops at a bound, and what is left over is an error like what is missing.
 *
 * The digest stands at the end, so entries come out before it is known to match. Whoever acts on entries calls
 * `verifyBundle` first, which is one full pass.
 */
import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";
import { pipeline, Readable } from "node:stream";
import { createGunzip, type Gunzip } from "node:zlib";
import {
  alteredBundle,
  type BundleCounts,
  type BundleEntry,
  decodeEntryHead,
  decodeHeader,
  EntryOrder,
  entryHeadBytes,
  headerBytes,
  malformedBundle,
  trailerBytes,
} from "./bundle.ts";
import type { BundleFacts } from "./bundle-writer.ts";
import { Fault } from "./fault.ts";
import { bundleBytesMax, bundlePlainBytesMax } from "./limits.ts";
import { TreeDigest, type XmlNormaliser } from "./tree.ts";

/** A path, or the stored (compressed) bytes from elsewhere. */
export type BundleSource = string | AsyncIterable<Uint8Array>;

/**
 * The entries in order, then a check of the digest and of the end. Throws `Fault` `bundle.malformed`, `bundle.altered`,
 * `bundle.tooLarge`; an error of the source is thrown as it came.
 */
export async function* readBundle(source: BundleSource): AsyncGenerator<BundleEntry, void, undefined> {
  const bundle = new OpenBundle(source);
  try {
    yield* bundle.entries(await bundle.header());
  } finally {
    bundle.close();
  }
}

/** Only the counts; nothing behind the header is looked at. Throws as `readBundle`. */
export async function readBundleHeader(source: BundleSource): Promise<BundleCounts> {
  const bundle = new OpenBundle(source);
  try {
    return await bundle.header();
  } finally {
    bundle.close();
  }
}

/**
 * Reads all of it and states what it is. With `expected`, every fact that it names must be equal, else `bundle.altered`.
 * Throws as `readBundle`.
 */
export async function verifyBundle(
  source: BundleSource,
  expected: Partial<BundleFacts> = {},
  normalise?: XmlNormaliser,
): Promise<BundleFacts> {
  const bundle = new OpenBundle(source);
  try {
    const counts = await bundle.header();
    const tree = new TreeDigest(normalise);
    for await (const { kind, ...rest } of bundle.entries(counts)) if (kind !== "domain") tree.add({ ...rest, kind });
    const facts = { ...bundle.facts(counts), treeSha256: tree.sha256() };
    for (const key of factKeys) {
      const wanted = expected[key];
      if (wanted !== undefined && wanted !== facts[key])
        throw alteredBundle(`The bundle's ${key} is ${facts[key]}, but ${wanted} was announced.`);
    }
    return facts;
  } finally {
    bundle.close();
  }
}

const factKeys = [
  "bytes",
  "sha256",
  "plainBytes",
  "plainSha256",
  "snapshots",
  "checkpoints",
  "treeSha256",
] as const satisfies readonly (keyof BundleFacts)[];

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** A second gzip member is not padding; where a runtime does not know the option, its plain bytes are refused all the same. */
const gunzipOptions = { chunkSize: 64 * 1024, rejectGarbageAfterEnd: true };

class OpenBundle {
  readonly #input: Readable;
  readonly #gunzip: Gunzip;
  readonly #chunks: AsyncIterator<Buffer>;
  readonly #stored = createHash("sha256");
  readonly #plain = createHash("sha256");
  #storedBytes = 0;
  /** Inflated and not yet taken. */
  #rest: Buffer = Buffer.alloc(0);
  #plainBytes = 0;
  #plainSha256 = "";
  #inputEnded = false;
  #sourceError: unknown;

  constructor(source: BundleSource) {
    this.#input = typeof source === "string" ? createReadStream(source) : Readable.from(source, { objectMode: false });
    this.#input.on("error", (error) => {
      this.#sourceError = error;
    });
    this.#gunzip = createGunzip(gunzipOptions);
    // An error on either side destroys both and comes out of the iteration below; here is nothing to add.
    pipeline(
      this.#input,
      (chunks: AsyncIterable<Buffer>) => this.#counted(chunks),
      this.#gunzip,
      () => {},
    );
    this.#chunks = this.#gunzip[Symbol.asyncIterator]();
  }

  async *#counted(chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of chunks) {
      this.#storedBytes += chunk.byteLength;
      if (this.#storedBytes > bundleBytesMax) {
        this.#sourceError = tooLarge(bundleBytesMax, "compressed");
        throw this.#sourceError;
      }
      this.#stored.update(chunk);
      yield chunk;
    }
    this.#inputEnded = true;
  }

  async header(): Promise<BundleCounts> {
    return decodeHeader(await this.#take(headerBytes, "its header", this.#plain));
  }

  async *entries(counts: BundleCounts): AsyncGenerator<BundleEntry, void, undefined> {
    const order = new EntryOrder(counts);
    while (!order.complete) {
      const head = decodeEntryHead(await this.#take(entryHeadBytes, "an entry", this.#plain));
      const name = await this.#text(head.nameBytes, `a ${head.kind}'s name`);
      const parent = head.hasParent ? await this.#text(head.parentBytes, `the parent of "${name}"`) : null;
      const entry = { kind: head.kind, name, parent, current: head.current };
      order.add(entry);
      yield { ...entry, xml: await this.#text(head.xmlBytes, `the XML of "${name}"`) };
    }
    order.end();
    const digest = this.#plain.digest();
    this.#plainSha256 = digest.toString("hex");
    const stated = await this.#take(trailerBytes, "its digest", null);
    if (!stated.equals(digest))
      throw alteredBundle("The bundle's bytes do not have the digest that stands at its end.");
    if (this.#rest.byteLength > 0 || (await this.#next()) !== null)
      throw malformedBundle("There are bytes behind the bundle's digest.");
    // Zeros behind a member count as padding for zlib, which passes over them.
    if (!this.#inputEnded || this.#gunzip.bytesWritten !== this.#storedBytes)
      throw malformedBundle("There are bytes behind the compressed bundle.");
  }

  /** To be called after `entries` has ended. */
  facts(counts: BundleCounts): Omit<BundleFacts, "treeSha256"> {
    return {
      sha256: this.#stored.digest("hex"),
      bytes: this.#storedBytes,
      plainSha256: this.#plainSha256,
      plainBytes: this.#plainBytes - trailerBytes,
      snapshots: counts.snapshots,
      checkpoints: counts.checkpoints,
    };
  }

  close(): void {
    this.#gunzip.destroy();
    this.#input.destroy();
  }

  async #text(length: number, what: string): Promise<string> {
    const bytes = await this.#take(length, what, this.#plain);
    try {
      return utf8.decode(bytes);
    } catch (error) {
      throw malformedBundle(`In the bundle, ${what} is not UTF-8.`, { cause: error });
    }
  }

  /** Exactly `length` plain bytes. `length` has been checked against its limit. */
  async #take(length: number, what: string, hash: Hash | null): Promise<Buffer> {
    while (this.#rest.byteLength < length) {
      const parts = [this.#rest];
      let have = this.#rest.byteLength;
      while (have < length) {
        const chunk = await this.#next();
        if (chunk === null) throw malformedBundle(`The bundle ends in the middle of ${what}.`);
        parts.push(chunk);
        have += chunk.byteLength;
      }
      this.#rest = Buffer.concat(parts, have);
    }
    const taken = this.#rest.subarray(0, length);
    this.#rest = this.#rest.subarray(length);
    hash?.update(taken);
    return taken;
  }

  /** The next inflated chunk; null at the end. */
  async #next(): Promise<Buffer | null> {
    let result: IteratorResult<Buffer>;
    try {
      result = await this.#chunks.next();
    } catch (error) {
      if (this.#sourceError !== undefined) throw this.#sourceError;
      throw malformedBundle(`The bundle cannot be inflated: ${error instanceof Error ? error.message : "unknown"}.`, {
        cause: error,
      });
    }
    if (result.done === true) return null;
    this.#plainBytes += result.value.byteLength;
    if (this.#plainBytes > bundlePlainBytesMax) throw tooLarge(bundlePlainBytesMax, "when inflated");
    return result.value;
  }
}

const tooLarge = (bytesMax: number, what: string) =>
  new Fault({
    code: "bundle.tooLarge",
    cause: `The bundle has more than ${bytesMax} bytes ${what}.`,
    action: "Nothing of it was used. A bundle of this size was not written by vmferry: find out where it comes from.",
    retry: "never",
  });
