/**
 * AWS Signature Version 4, the verifying side, for the local face of S3: header and query form, single chunk. What is signed
 * is rebuilt from the request as it arrived (AWS: "Create a signed AWS API request"); dates and expiry are checked, the
 * comparison does not stop at the first difference.
 */
import { createHash, createHmac, timingSafeEqual } from "node:crypto";

export interface Keys {
  accessKeyId: string;
  secretAccessKey: string;
}

export type Verdict =
  | { ok: true; signedHeaders: ReadonlySet<string>; payloadSha256: string | null }
  | { ok: false; status: number; code: string; message: string };

/** How far a header-signed request's date may be off (S3's own 15 minutes). */
const skewMsMax = 15 * 60_000;
/** S3's own bound of a presigned URL's life. */
const expiresSecondsMax = 7 * 24 * 60 * 60;

const refuse = (status: number, code: string, message: string): Verdict => ({ ok: false, status, code, message });

interface Claim {
  credential: string;
  date: string;
  signedHeaders: string[];
  signature: string;
  payload: string;
  /** Null: header-signed, fresh by its date alone. */
  expiresSeconds: number | null;
}

/** Who signed this request, if anybody did, and whether it still holds at `nowMs`. */
export function verify(request: Request, url: URL, keys: Keys, region: string, nowMs: number): Verdict {
  const claim = url.searchParams.has("X-Amz-Signature") ? queryClaim(url) : headerClaim(request);
  if (claim === null) return refuse(403, "AccessDenied", "The request is not signed.");
  const [accessKeyId, day, scopeRegion, service, terminator, ...rest] = claim.credential.split("/");
  if (accessKeyId !== keys.accessKeyId) return refuse(403, "InvalidAccessKeyId", "The access key is not known here.");
  if (scopeRegion !== region || service !== "s3" || terminator !== "aws4_request" || rest.length > 0)
    return refuse(403, "AuthorizationHeaderMalformed", "The credential's scope is not of this bucket.");
  const signedMs = dateMs(claim.date);
  if (signedMs === null || claim.date.slice(0, 8) !== day)
    return refuse(403, "AuthorizationHeaderMalformed", "The date is malformed or not the scope's.");
  if (signedMs - nowMs > skewMsMax) return refuse(403, "RequestTimeTooSkewed", "The request comes from the future.");
  if (claim.expiresSeconds === null) {
    if (nowMs - signedMs > skewMsMax) return refuse(403, "RequestTimeTooSkewed", "The request's date is too old.");
  } else {
    if (!(claim.expiresSeconds > 0 && claim.expiresSeconds <= expiresSecondsMax))
      return refuse(400, "AuthorizationQueryParametersError", "X-Amz-Expires is out of bounds.");
    if (nowMs > signedMs + claim.expiresSeconds * 1000) return refuse(403, "AccessDenied", "Request has expired.");
  }
  if (!claim.signedHeaders.includes("host")) return refuse(403, "AccessDenied", "The host must be signed.");
  const unsigned = [...request.headers.keys()].find(
    (name) => name.startsWith("x-amz-") && !claim.signedHeaders.includes(name),
  );
  if (unsigned !== undefined) return refuse(403, "AccessDenied", `The header ${unsigned} is not signed.`);
  const scope = `${day}/${region}/s3/aws4_request`;
  const canonical = [
    request.method,
    url.pathname,
    canonicalQuery(url),
    ...claim.signedHeaders.map((name) => `${name}:${headerValue(request, url, name)}`),
    "",
    claim.signedHeaders.join(";"),
    claim.payload,
  ].join("\n");
  const text = ["AWS4-HMAC-SHA256", claim.date, scope, createHash("sha256").update(canonical).digest("hex")].join("\n");
  let key: string | Buffer = `AWS4${keys.secretAccessKey}`;
  for (const part of [day, region, "s3", "aws4_request"]) key = hmac(key, part ?? "");
  if (!equal(hmac(key, text), Buffer.from(claim.signature, "hex")))
    return refuse(403, "SignatureDoesNotMatch", "The signature does not match the request.");
  return {
    ok: true,
    signedHeaders: new Set(claim.signedHeaders),
    payloadSha256: /^[0-9a-f]{64}$/.test(claim.payload) ? claim.payload : null,
  };
}

function queryClaim(url: URL): Claim | null {
  const query = (name: string) => url.searchParams.get(name) ?? "";
  if (query("X-Amz-Algorithm") !== "AWS4-HMAC-SHA256") return null;
  return {
    credential: query("X-Amz-Credential"),
    date: query("X-Amz-Date"),
    signedHeaders: query("X-Amz-SignedHeaders").split(";"),
    signature: query("X-Amz-Signature"),
    payload: url.searchParams.get("X-Amz-Content-Sha256") ?? "UNSIGNED-PAYLOAD",
    expiresSeconds: Number(query("X-Amz-Expires")),
  };
}

function headerClaim(request: Request): Claim | null {
  const match = /^AWS4-HMAC-SHA256 Credential=([^,\s]+),\s*SignedHeaders=([^,\s]+),\s*Signature=([0-9a-f]{64})$/.exec(
    request.headers.get("authorization") ?? "",
  );
  if (match === null) return null;
  const [, credential = "", signedHeaders = "", signature = ""] = match;
  return {
    credential,
    date: request.headers.get("x-amz-date") ?? "",
    signedHeaders: signedHeaders.split(";"),
    signature,
    payload: request.headers.get("x-amz-content-sha256") ?? "",
    expiresSeconds: null,
  };
}

function dateMs(date: string): number | null {
  const match = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(date);
  if (match === null) return null;
  const [, year, month, day, hour, minute, second] = match;
  const ms = Date.parse(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
  return Number.isNaN(ms) ? null : ms;
}

const encode = (text: string) =>
  encodeURIComponent(text).replace(/[!'()*]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`);

const canonicalQuery = (url: URL) =>
  [...url.searchParams]
    .filter(([name]) => name !== "X-Amz-Signature")
    .map(([name, value]) => [encode(name), encode(value)] as const)
    .sort(([left, leftValue], [right, rightValue]) =>
      left === right ? (leftValue < rightValue ? -1 : 1) : left < right ? -1 : 1,
    )
    .map(([name, value]) => `${name}=${value}`)
    .join("&");

const headerValue = (request: Request, url: URL, name: string) =>
  (name === "host" ? url.host : (request.headers.get(name) ?? "")).trim().replace(/\s+/g, " ");

const hmac = (key: string | Buffer, text: string): Buffer => createHmac("sha256", key).update(text).digest();

const equal = (left: Buffer, right: Buffer): boolean =>
  left.byteLength === right.byteLength && timingSafeEqual(left, right);
