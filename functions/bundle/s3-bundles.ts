/**
 * Bundles and large cookies in a bucket over the S3 API: the real one, or the local face behind our own port. Objects are
 * named by their own SHA-256 and written with If-None-Match, so they are immutable and a repeated upload is no upload.
 * What a shim may send is fixed by the signature: key, length and checksum; a leaked URL is worthless after five minutes.
 *
 * Where S3 servers differ (test/contract/bundles.test.ts runs the same cases on the local face and on Ceph's gateway):
 * - Ceph before 19 does not look at x-amz-checksum-sha256, so other bytes of the granted length are taken. The key is the
 *   digest and every reader compares it, so they are refused when read, not when written.
 * - Swift's S3 face (2.30) answers 501 to If-None-Match on PUT: it cannot be used, since what can be overwritten is not
 *   immutable.
 * - Default checksums of the SDK are off, see below: not every server undoes the chunks in which they come.
 */
import {
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  PutObjectCommand,
  S3Client,
  S3ServiceException,
} from "@aws-sdk/client-s3";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import { Fault } from "#protocol/fault";
import { bundleBytesMax, cookieBytesMax, grantMsMax } from "#protocol/limits";
import type { BundleStore, Grant } from "../ports.ts";
import { handlerOver } from "./face-handler.ts";

const attemptsMax = 3;
/** HEAD and DELETE answer in tens of ms; after this the bucket is taken for unreachable. */
const requestMsMax = 5_000;
const connectMsMax = 2_000;
/**
 * What stands there for longer is uploaded again: the bucket's lifecycle counts from the upload (infra/storage.ts, 60 days), and an object that is
 * named anew must outlast this migration and its safety copy (I3). The same bytes, by their digest, so nothing that is there is lost.
 */
export const objectMsFresh = 40 * 24 * 60 * 60_000;
/** Addresses under which shims reach us; more than this many is a forged Host header at play. */
const addressesMax = 64;

/** Told of every request; the stores' counter fits. */
export interface S3Counter {
  add(store: "s3", operation: string, size: { sentBytes: number; receivedBytes: number }): void;
}

export interface S3Options {
  bucket: string;
  region: string;
  credentials?: { accessKeyId: string; secretAccessKey: string; sessionToken?: string } | undefined;
  /** Where the bucket is: AWS itself, another S3 server, or the face behind our own port (`s3-face.ts`). */
  at:
    | { kind: "aws" }
    | { kind: "endpoint"; url: string }
    | { kind: "face"; fetch: (request: Request) => Promise<Response> };
  counter?: S3Counter | undefined;
  /** Sends the requests in place of the runtime's own fetch, where the SDK uses one. */
  fetch?: ((request: Request) => Promise<Response>) | undefined;
  /** The time by which an object is old; absent: the process's. */
  nowMs?: (() => number) | undefined;
}

/** The path under which the face answers, below the address that a client used. */
export const facePath = "/s3";

const digestOf = (key: string) => /^(?:bundles|cookies)\/([0-9a-f]{64})$/.exec(key)?.[1];
const base64Of = (hex: string) => Buffer.from(hex, "hex").toString("base64");

const unreachable = (what: string, error: unknown) =>
  new Fault(
    {
      code: "bundle.unreachable",
      cause: `The bucket could not be reached for ${what}: ${error instanceof Error ? error.message || error.name : String(error)}.`,
      action: "It is tried again by itself; check the network to the bucket and its permissions if this stays.",
      retry: "safe",
    },
    { cause: error },
  );

export class S3Bundles implements BundleStore {
  readonly #options: S3Options;
  readonly #own: S3Client;
  /** One client per address that shims use: what is signed contains the host they will send. */
  readonly #signers = new Map<string, S3Client>();

  constructor(options: S3Options) {
    this.#options = options;
    const { at } = options;
    // Our own requests to the face stay in the process: its public address need not lead back to us from here.
    this.#own = at.kind === "face" ? this.#client(`http://face.internal${facePath}`) : this.#client(endpointOf(at));
  }

  #client(endpoint: string | undefined): S3Client {
    const { region, credentials, at, counter, fetch } = this.#options;
    const client = new S3Client({
      region,
      maxAttempts: attemptsMax,
      // Default checksums break uploads in workerd and put an empty CRC into presigned URLs; ours is SHA-256, given by hand.
      requestChecksumCalculation: "WHEN_REQUIRED",
      responseChecksumValidation: "WHEN_REQUIRED",
      ...(endpoint === undefined ? {} : { endpoint, forcePathStyle: true }),
      ...(credentials === undefined ? {} : { credentials }),
      ...(at.kind === "face"
        ? { requestHandler: handlerOver(at.fetch) }
        : {
            requestHandler: {
              requestTimeout: requestMsMax,
              connectionTimeout: connectMsMax,
              ...(fetch === undefined ? {} : { customFetch: fetch }),
            },
          }),
    });
    if (counter !== undefined && at.kind !== "face")
      client.middlewareStack.add(
        (next, context) => async (args) => {
          counter.add("s3", (context.commandName ?? "Unknown").replace(/Command$/, ""), {
            sentBytes: 0,
            receivedBytes: 0,
          });
          return next(args);
        },
        { step: "deserialize", priority: "low", name: "vmferryCount" },
      );
    return client;
  }

  #signer(publicUrl: string): S3Client {
    if (this.#options.at.kind !== "face") return this.#own;
    const known = this.#signers.get(publicUrl);
    if (known !== undefined) return known;
    if (this.#signers.size >= addressesMax) this.#signers.clear();
    const signer = this.#client(`${publicUrl.replace(/\/+$/, "")}${facePath}`);
    this.#signers.set(publicUrl, signer);
    return signer;
  }

  async grantPut(want: {
    purpose: "bundle" | "cookie";
    sha256: string;
    bytes: number;
    publicUrl: string;
  }): Promise<Grant> {
    const bytesMax = want.purpose === "bundle" ? bundleBytesMax : cookieBytesMax;
    if (want.bytes > bytesMax)
      throw new Fault({
        code: want.purpose === "bundle" ? "bundle.tooLarge" : "cookie.tooLarge",
        cause: `A ${want.purpose} of ${want.bytes} bytes is over the limit of ${bytesMax}.`,
        action: "Remove snapshots that are not needed any more.",
        retry: "never",
      });
    const key = `${want.purpose}s/${want.sha256}`;
    const standing = await this.#look(key);
    const ageMs = standing === null ? 0 : (this.#options.nowMs ?? Date.now)() - standing.uploadedAtMs;
    const isOld = ageMs > objectMsFresh;
    // One of another length cannot have this digest: it was altered in the bucket, and the reader must find out by itself.
    const present = standing !== null && !isOld;
    const checksum = base64Of(want.sha256);
    const command = new PutObjectCommand({
      Bucket: this.#options.bucket,
      Key: key,
      ContentLength: want.bytes,
      ChecksumSHA256: checksum,
      ...(isOld ? {} : { IfNoneMatch: "*" }),
    });
    const url = await getSignedUrl(this.#signer(want.publicUrl), command, {
      expiresIn: grantMsMax / 1000,
      // Kept as headers, and signed: otherwise they become parameters that a server may ignore.
      unhoistableHeaders: new Set(["x-amz-checksum-sha256", "if-none-match"]),
      signableHeaders: new Set(["host", "content-length", "if-none-match", "x-amz-checksum-sha256"]),
    });
    const headers = {
      "content-length": String(want.bytes),
      ...(isOld ? {} : { "if-none-match": "*" }),
      "x-amz-checksum-sha256": checksum,
    };
    return { method: "PUT", url, headers, key, present };
  }

  async grantGet(want: { key: string; publicUrl: string }): Promise<Grant> {
    this.#check(want.key);
    const command = new GetObjectCommand({ Bucket: this.#options.bucket, Key: want.key });
    const url = await getSignedUrl(this.#signer(want.publicUrl), command, { expiresIn: grantMsMax / 1000 });
    return { method: "GET", url, headers: {}, key: want.key, present: true };
  }

  async head(key: string): Promise<{ bytes: number } | null> {
    const standing = await this.#look(key);
    return standing === null ? null : { bytes: standing.bytes };
  }

  /** `uploadedAtMs`: Unix time by the bucket; where it does not say, it counts as new. */
  async #look(key: string): Promise<{ bytes: number; uploadedAtMs: number } | null> {
    this.#check(key);
    try {
      const answer = await this.#own.send(new HeadObjectCommand({ Bucket: this.#options.bucket, Key: key }));
      return {
        bytes: answer.ContentLength ?? 0,
        uploadedAtMs: answer.LastModified?.getTime() ?? Number.POSITIVE_INFINITY,
      };
    } catch (error) {
      if (error instanceof S3ServiceException && error.$metadata.httpStatusCode === 404) return null;
      throw unreachable(`looking at ${key}`, error);
    }
  }

  async remove(key: string): Promise<void> {
    this.#check(key);
    try {
      await this.#own.send(new DeleteObjectCommand({ Bucket: this.#options.bucket, Key: key }));
    } catch (error) {
      throw unreachable(`removing ${key}`, error);
    }
  }

  /** Only keys that a grant has made lead into the bucket. */
  #check(key: string): void {
    if (digestOf(key) !== undefined) return;
    throw new Fault({
      code: "request.malformed",
      cause: `${JSON.stringify(key.slice(0, 100))} is no key of a bundle or cookie.`,
      action: "Use the key that a grant or a migration names.",
      retry: "never",
    });
  }
}

const endpointOf = (at: S3Options["at"]) => (at.kind === "endpoint" ? at.url : undefined);
