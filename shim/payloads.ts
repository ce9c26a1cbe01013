/**
 * Payloads of commands and reports: inline up to 24 KiB, otherwise in the bucket by grant. Every byte that comes in is
 * checked against the digest and the size that came beside it before anybody sees it; what goes out is named by its digest.
 * A transfer that breaks is tried again with a new grant for a while; one that was altered is not.
 */
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { Blob, BundleRef, HandedBlob } from "#protocol/blob";
import { alteredBundle } from "#protocol/bundle";
import { Fault, type FaultCode } from "#protocol/fault";
import { bundleBytesMax, cookieBytesMax, inlineBytesMax } from "#protocol/limits";
import { type Clock, jitteredMs } from "./clock.ts";
import { syncDirectory } from "./durable-file.ts";
import { type Granted, GrantOverdue, type Grants, type GrantWant } from "./grants.ts";
import { HttpBrokenError, httpCall } from "./http-request.ts";
import type { Log } from "./log.ts";
import type { Payloads } from "./ports.ts";

/** How long a failing transfer is tried again, from its first failure: a short cut of the line or a restart of the store is
 *  over by then, and before Perform nothing is lost by giving up. */
export const transferTryMs = 20_000;
const transferBackoff = { baseMs: 250, capMs: 4_000 } as const;

/** No byte for this long: the bucket or the line is gone. */
const silenceMs = 15_000;

export interface PayloadParts {
  grants: Grants;
  /** The command on whose behalf grants are asked for. */
  command: { id: string; migrationId: string };
  /** Where this migration's bundle lies on this host. */
  bundlePath: string;
  clock: Clock;
  log: Log;
}

export function payloadsOf(parts: PayloadParts): Payloads {
  return {
    read: (blob) => readBlob(parts, blob),
    write: (bytes) => writeBlob(parts, bytes),
    uploadBundle: async ({ path, sha256, bytes }) => {
      if (bytes > bundleBytesMax) throw tooLarge("bundle.tooLarge", "bundle", bytes, bundleBytesMax);
      const key = await put(parts, { op: "put", purpose: "bundle", sha256, bytes }, () => createReadStream(path));
      return { key };
    },
    downloadBundle: (ref) => downloadBundle(parts, ref),
  };
}

async function readBlob(parts: PayloadParts, blob: Blob | HandedBlob): Promise<Uint8Array> {
  const bytes = blob.in === "bucket" ? await download(parts, blob) : Buffer.from(blob.base64, "base64");
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  if (bytes.byteLength !== blob.bytes || sha256 !== blob.sha256)
    throw new Fault({
      code: "cookie.altered",
      cause: `A payload has ${bytes.byteLength} bytes with digest ${sha256}; ${blob.bytes} bytes with ${blob.sha256} were announced.`,
      action: "Nothing of it was used. Find out who can write to the bucket, then migrate again.",
      retry: "person",
    });
  return bytes;
}

/** Into memory: a cookie has at most 4 MiB. More than was announced is not taken in. */
function download(parts: PayloadParts, blob: Extract<Blob, { in: "bucket" }>): Promise<Buffer> {
  return persistently(parts, `the payload ${blob.key}`, async () => {
    const granted = await parts.grants.ask(parts.command, { op: "get", key: blob.key });
    const chunks: Buffer[] = [];
    let bytes = 0;
    for await (const chunk of await getStream(granted)) {
      bytes += chunk.byteLength;
      chunks.push(chunk);
      if (bytes > blob.bytes) break;
    }
    return Buffer.concat(chunks);
  });
}

async function writeBlob(parts: PayloadParts, given: Uint8Array): Promise<Blob> {
  const bytes = Buffer.from(given.buffer, given.byteOffset, given.byteLength);
  const size = bytes.byteLength;
  if (size > cookieBytesMax) throw tooLarge("cookie.tooLarge", "payload", size, cookieBytesMax);
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  if (size <= inlineBytesMax) return { in: "inline", base64: bytes.toString("base64"), sha256, bytes: size };
  const key = await put(parts, { op: "put", purpose: "cookie", sha256, bytes: size }, () =>
    Readable.from([bytes], { objectMode: false }),
  );
  return { in: "bucket", key, sha256, bytes: size };
}

/** Uploads under a grant unless the object is there already; gives its key. */
function put(parts: PayloadParts, want: Extract<GrantWant, { op: "put" }>, open: () => Readable): Promise<string> {
  return persistently(parts, `the ${want.purpose}`, async () => {
    const granted = await parts.grants.ask(parts.command, want);
    if (granted.present) return granted.key;
    const { status, body } = await httpCall({
      method: "PUT",
      url: new URL(granted.url),
      headers: granted.headers,
      body: { bytes: want.bytes, stream: open() },
      silenceMs,
    });
    body.resume();
    // 412: If-None-Match found it there, which for an object named by its digest is as good.
    if (status === 412 || (status >= 200 && status < 300)) return granted.key;
    throw new HttpBrokenError(`the bucket answered ${status}`);
  });
}

async function getStream(granted: Granted): Promise<Readable> {
  const { status, body } = await httpCall({
    method: "GET",
    url: new URL(granted.url),
    headers: granted.headers,
    silenceMs,
  });
  if (status === 200) return body;
  body.resume();
  throw new HttpBrokenError(`the bucket answered ${status}`);
}

async function downloadBundle(parts: PayloadParts, ref: BundleRef): Promise<string> {
  const { bundlePath: path } = parts;
  if (ref.bytes > bundleBytesMax) throw tooLarge("bundle.tooLarge", "bundle", ref.bytes, bundleBytesMax);
  if (await holds(path, ref)) return path;
  const partial = `${path}.partial`;
  try {
    await persistently(parts, "the bundle", async () => {
      const granted = await parts.grants.ask(parts.command, { op: "get", key: ref.key });
      const hash = createHash("sha256");
      let bytes = 0;
      await pipeline(
        await getStream(granted),
        async function* (chunks: AsyncIterable<Buffer>) {
          for await (const chunk of chunks) {
            bytes += chunk.byteLength;
            if (bytes > ref.bytes) throw alteredBundle(`The bundle has more than the ${ref.bytes} bytes announced.`);
            hash.update(chunk);
            yield chunk;
          }
        },
        createWriteStream(partial, { mode: 0o600, flush: true }),
      );
      const sha256 = hash.digest("hex");
      if (bytes !== ref.bytes || sha256 !== ref.sha256)
        throw alteredBundle(
          `The bundle has ${bytes} bytes with digest ${sha256}; ${ref.bytes} bytes with ${ref.sha256} were announced.`,
        );
    });
    await rename(partial, path);
    await syncDirectory(dirname(path));
    return path;
  } catch (error) {
    await rm(partial, { force: true });
    throw error;
  }
}

/** True when the file is there with exactly those bytes: left by an earlier command of this migration. */
async function holds(path: string, ref: BundleRef): Promise<boolean> {
  const hash = createHash("sha256");
  try {
    for await (const chunk of createReadStream(path)) hash.update(chunk);
  } catch {
    // Absent or unreadable: it is fetched again, and what cannot be written is said then.
    return false;
  }
  return hash.digest("hex") === ref.sha256;
}

/**
 * Tries until it succeeds, until what failed is not the transfer's (a disk, an altered object, a final refusal), or until
 * `transferTryMs` after the first failure. Throws `Fault` `bundle.unreachable` then.
 */
async function persistently<T>(parts: PayloadParts, what: string, attempt: () => Promise<T>): Promise<T> {
  const { clock, log } = parts;
  let giveUpAtMs: number | null = null;
  for (let failures = 0; ; failures += 1) {
    try {
      return await attempt();
    } catch (error) {
      if (!isPassing(error)) throw error;
      const cause = error instanceof Fault ? error.cause_ : error instanceof Error ? error.message : "unknown";
      const nowMs = clock.monotonicMs();
      giveUpAtMs ??= nowMs + transferTryMs;
      if (nowMs >= giveUpAtMs) throw unreachable(what, cause, error);
      log.write("warn", "a transfer failed and is tried again", { command: parts.command.id, cause });
      await clock.sleep(jitteredMs(failures, transferBackoff, clock.random));
    }
  }
}

const passingCodes: ReadonlySet<FaultCode> = new Set(["bundle.unreachable", "store.unreachable", "internal"]);

function isPassing(error: unknown): boolean {
  // No grant came for minutes: the waiting has been done.
  if (error instanceof GrantOverdue) return false;
  if (error instanceof Fault) return error.retry === "safe" && passingCodes.has(error.code);
  // What breaks while a body is read comes as the socket's own error.
  return error instanceof HttpBrokenError || (error instanceof Error && "code" in error && isSocketCode(error.code));
}

const isSocketCode = (code: unknown) =>
  code === "ECONNRESET" || code === "ERR_STREAM_PREMATURE_CLOSE" || code === "ETIMEDOUT" || code === "EPIPE";

const unreachable = (what: string, cause: string, error: unknown) =>
  new Fault(
    {
      code: "bundle.unreachable",
      cause: `The bucket could not be reached for ${what} within ${transferTryMs / 1000} s: ${cause}.`,
      action: "Look at the object store and at this host's way to it, then migrate again. Nothing was moved.",
      retry: "safe",
    },
    { cause: error },
  );

const tooLarge = (code: "bundle.tooLarge" | "cookie.tooLarge", what: string, bytes: number, bytesMax: number) =>
  new Fault({
    code,
    cause: `A ${what} of ${bytes} bytes is over the limit of ${bytesMax}.`,
    action: "Look at what makes the domain's XML or its snapshots this large (virsh dumpxml, virsh snapshot-list).",
    retry: "never",
  });
