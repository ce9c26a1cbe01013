/**
 * A thin face of S3 over an R2 bucket, so that local storage is reached by the same adapter, the same presigned URLs and
 * through the same port as the control plane: PUT, GET, HEAD, DELETE, ListObjectsV2. It is strict where S3 is strict
 * (signature, expiry, If-None-Match, checksum, length), because a lenient store hides what fails in the cloud. Bodies stream;
 * nothing of an object's size is held in memory. It answers at /s3/<bucket>/<key>.
 */
import { bundleBytesMax } from "#protocol/limits";
import { facePath, type S3Counter } from "./s3-bundles.ts";
import { type Keys, verify } from "./signature.ts";

/** S3's own bound of a key is 1,024 bytes. */
const keyBytesMax = 1024;
/** Read of the body of a refused request and thrown away. Unread, the connection ends with it, and the client's next
 *  request on that connection fails for no reason of its own; beyond this, ending it is cheaper than reading on. */
const drainedBytesMax = 1024 * 1024;
/** S3's own bound of a page of a list. */
const listRowsMax = 1000;

interface StoredObject {
  key: string;
  size: number;
  httpEtag: string;
  uploaded: Date;
}

/** What the face needs of an R2 bucket, in the web's own types (a structural part of Cloudflare's `R2Bucket`). */
export interface ObjectStore {
  /** Null: the condition did not hold; the check and the write are one. Rejects when the digest does not match. */
  put(
    key: string,
    body: ReadableStream<Uint8Array<ArrayBuffer>> | Uint8Array<ArrayBuffer>,
    options: { sha256?: string; onlyIf?: { etagDoesNotMatch: string } },
  ): Promise<StoredObject | null>;
  get(key: string): Promise<(StoredObject & { body: ReadableStream<Uint8Array<ArrayBuffer>> }) | null>;
  head(key: string): Promise<StoredObject | null>;
  delete(key: string): Promise<void>;
  list(page: {
    prefix: string;
    limit: number;
    cursor?: string;
  }): Promise<{ objects: StoredObject[]; truncated: boolean; cursor?: string }>;
}

export interface FaceOptions {
  objects: ObjectStore;
  bucket: string;
  region: string;
  keys: Keys;
  nowMs: () => number;
  counter?: S3Counter | undefined;
}

/** Control characters have no place in XML 1.0, not even as references. */
const xml = (text: string) =>
  Array.from(text, (char) => (char < " " ? "" : /[&<>"']/.test(char) ? `&#${char.charCodeAt(0)};` : char)).join("");

const xmlResponse = (status: number, body: string) =>
  new Response(`<?xml version="1.0" encoding="UTF-8"?>\n${body}`, {
    status,
    headers: { "content-type": "application/xml" },
  });

const problem = (status: number, code: string, message: string) =>
  xmlResponse(status, `<Error><Code>${code}</Code><Message>${xml(message)}</Message></Error>`);

const absent = (key: string) => problem(404, "NoSuchKey", `There is no object ${key}.`);

/** Makes the face. Its result answers every request whose path begins with `/s3/`. */
export function createFace(options: FaceOptions): (request: Request) => Promise<Response> {
  const { objects, bucket, region, keys, nowMs, counter } = options;

  async function answer(request: Request): Promise<{ operation: string; response: Response; sentBytes: number }> {
    const url = new URL(request.url);
    const verdict = verify(request, url, keys, region, nowMs());
    const only = (operation: string, response: Response, sentBytes = 0) => ({ operation, response, sentBytes });
    if (!verdict.ok) return only("Refused", problem(verdict.status, verdict.code, verdict.message));
    const match = /^\/([^/]+)(?:\/(.*))?$/.exec(url.pathname.slice(facePath.length));
    if (match?.[1] !== bucket) return only("Refused", problem(404, "NoSuchBucket", "There is no such bucket."));
    const key = decodedKey(match[2] ?? "");
    if (key === null) return only("Refused", problem(400, "InvalidURI", "The key is not well encoded or too long."));
    if (key === "")
      return request.method === "GET"
        ? only("ListObjectsV2", await list(objects, bucket, url))
        : only("Refused", problem(405, "MethodNotAllowed", "A bucket can only be listed."));
    switch (request.method) {
      case "PUT": {
        const response = await put(objects, key, request, verdict.payloadSha256);
        return only("PutObject", response, response.ok ? Number(request.headers.get("content-length")) : 0);
      }
      case "GET":
        return only("GetObject", await get(objects, key));
      case "HEAD":
        return only("HeadObject", await head(objects, key));
      case "DELETE":
        await objects.delete(key);
        return only("DeleteObject", new Response(null, { status: 204 }));
      default:
        return only("Refused", problem(405, "MethodNotAllowed", "Only PUT, GET, HEAD and DELETE are served."));
    }
  }

  return async (request) => {
    const { operation, response, sentBytes } = await answer(request);
    if (!response.ok) await drain(request);
    const receivedBytes = operation === "GetObject" ? Number(response.headers.get("content-length") ?? 0) : 0;
    counter?.add("s3", operation, { sentBytes, receivedBytes });
    // S3 says nothing in the body of a HEAD; the SDK names the error by the status.
    return request.method === "HEAD" && !response.ok ? new Response(null, { status: response.status }) : response;
  };
}

async function drain(request: Request): Promise<void> {
  if (request.body === null || request.bodyUsed) return;
  const reader = request.body.getReader();
  try {
    for (let left = drainedBytesMax; left > 0; ) {
      const { done, value } = await reader.read();
      if (done) return;
      left -= value.byteLength;
    }
  } catch {
    // The client has gone; so has its connection.
  }
}

function decodedKey(path: string): string | null {
  try {
    const key = decodeURIComponent(path);
    return new TextEncoder().encode(key).byteLength > keyBytesMax ? null : key;
  } catch {
    return null;
  }
}

async function put(
  objects: ObjectStore,
  key: string,
  request: Request,
  payloadSha256: string | null,
): Promise<Response> {
  const { headers } = request;
  if (/^STREAMING-/.test(headers.get("x-amz-content-sha256") ?? ""))
    return problem(501, "NotImplemented", "Chunked signatures are not served here; send the body as it is.");
  const lengthText = headers.get("content-length");
  if (lengthText === null || !/^\d+$/.test(lengthText))
    return problem(411, "MissingContentLength", "The length of the body must be said.");
  const bytes = Number(lengthText);
  if (bytes > bundleBytesMax)
    return problem(400, "EntityTooLarge", `An object here has at most ${bundleBytesMax} bytes.`);
  const checksumText = headers.get("x-amz-checksum-sha256");
  const checksum = checksumText === null ? null : checksumHex(checksumText);
  if (checksumText !== null && checksum === null)
    return problem(400, "InvalidRequest", "x-amz-checksum-sha256 is not a SHA-256 in base64.");
  if (checksum !== null && payloadSha256 !== null && checksum !== payloadSha256)
    return problem(400, "BadDigest", "The two digests of the request differ.");
  const condition = headers.get("if-none-match");
  if (condition !== null && condition !== "*")
    return problem(501, "NotImplemented", "If-None-Match takes only * here.");
  const sha256 = checksum ?? payloadSha256;
  // A stream of known length: the runtime fails the write when the client sends less, and takes no more.
  const body = request.body ?? new Uint8Array();
  try {
    const written = await objects.put(key, body, {
      ...(sha256 === null ? {} : { sha256 }),
      ...(condition === null ? {} : { onlyIf: { etagDoesNotMatch: "*" } }),
    });
    if (written === null)
      return problem(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold");
    return new Response(null, { status: 200, headers: { etag: written.httpEtag } });
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    if (/checksum|SHA-256/i.test(message)) return problem(400, "BadDigest", "The body does not have its digest.");
    return problem(400, "IncompleteBody", `The body did not arrive whole: ${message}`);
  }
}

function checksumHex(base64: string): string | null {
  if (!/^[A-Za-z0-9+/]{43}=$/.test(base64)) return null;
  return Buffer.from(base64, "base64").toString("hex");
}

async function get(objects: ObjectStore, key: string): Promise<Response> {
  const object = await objects.get(key);
  if (object === null) return absent(key);
  return new Response(object.body, { headers: objectHeaders(object) });
}

async function head(objects: ObjectStore, key: string): Promise<Response> {
  const object = await objects.head(key);
  return object === null ? absent(key) : new Response(null, { headers: objectHeaders(object) });
}

function objectHeaders(object: { size: number; httpEtag: string; uploaded: Date }): Record<string, string> {
  return {
    "content-length": String(object.size),
    "content-type": "application/octet-stream",
    etag: object.httpEtag,
    "last-modified": object.uploaded.toUTCString(),
  };
}

async function list(objects: ObjectStore, bucket: string, url: URL): Promise<Response> {
  if (url.searchParams.get("list-type") !== "2")
    return problem(501, "NotImplemented", "Only the second version of the list is served.");
  const rows = Number(url.searchParams.get("max-keys") ?? listRowsMax);
  const prefix = url.searchParams.get("prefix") ?? "";
  const cursor = url.searchParams.get("continuation-token");
  const page = await objects.list({
    prefix,
    limit: Math.min(Math.max(1, Math.trunc(rows) || 1), listRowsMax),
    ...(cursor === null ? {} : { cursor }),
  });
  const contents = page.objects.map(
    ({ key, size, httpEtag, uploaded }) =>
      `<Contents><Key>${xml(key)}</Key><LastModified>${uploaded.toISOString()}</LastModified><ETag>${xml(httpEtag)}</ETag><Size>${size}</Size><StorageClass>STANDARD</StorageClass></Contents>`,
  );
  const next = page.truncated ? `<NextContinuationToken>${xml(page.cursor ?? "")}</NextContinuationToken>` : "";
  return xmlResponse(
    200,
    `<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>${xml(bucket)}</Name><Prefix>${xml(prefix)}</Prefix><KeyCount>${contents.length}</KeyCount><IsTruncated>${page.truncated}</IsTruncated>${next}${contents.join("")}</ListBucketResult>`,
  );
}
