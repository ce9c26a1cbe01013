/**
 * The bucket in memory, for the simulation: grants are opaque addresses that `send` honours as S3 does (signed headers,
 * If-None-Match, checksum, expiry). It passes the same contract cases as S3.
 */
import { createHash, randomUUID } from "node:crypto";
import type { BundleStore, Grant } from "#functions/ports";
import { Fault } from "#protocol/fault";
import { bundleBytesMax, cookieBytesMax, grantMsMax } from "#protocol/limits";

export class MemoryBundles implements BundleStore {
  readonly #objects = new Map<string, Uint8Array>();
  readonly #grants = new Map<string, { grant: Grant; expiresAtMs: number }>();
  readonly #nowMs: () => number;

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs;
  }

  async grantPut(want: { purpose: "bundle" | "cookie"; sha256: string; bytes: number }): Promise<Grant> {
    if (want.bytes > (want.purpose === "bundle" ? bundleBytesMax : cookieBytesMax))
      throw new Fault({
        code: want.purpose === "bundle" ? "bundle.tooLarge" : "cookie.tooLarge",
        cause: `${want.bytes} bytes are too many.`,
        action: "Remove snapshots.",
        retry: "never",
      });
    const key = `${want.purpose}s/${want.sha256}`;
    const headers = {
      "content-length": String(want.bytes),
      "if-none-match": "*",
      "x-amz-checksum-sha256": Buffer.from(want.sha256, "hex").toString("base64"),
    };
    return this.#grant({ method: "PUT", headers, key, present: this.#objects.has(key) });
  }

  async grantGet(want: { key: string }): Promise<Grant> {
    check(want.key);
    return this.#grant({ method: "GET", headers: {}, key: want.key, present: true });
  }

  async head(key: string): Promise<{ bytes: number } | null> {
    check(key);
    const bytes = this.#objects.get(key)?.byteLength;
    return bytes === undefined ? null : { bytes };
  }

  async remove(key: string): Promise<void> {
    check(key);
    this.#objects.delete(key);
  }

  /** Puts other bytes under a key, as somebody with access to the bucket could. */
  alter(key: string, bytes: Uint8Array): void {
    this.#objects.set(key, Uint8Array.from(bytes));
  }

  /** What S3 would answer to a request with a grant's address. */
  async send(request: {
    method: string;
    url: string;
    headers: Record<string, string>;
    body?: Uint8Array;
  }): Promise<{ status: number; body: Uint8Array }> {
    const known = this.#grants.get(request.url);
    const answer = (status: number, body = new Uint8Array()) => ({ status, body });
    if (known === undefined || known.grant.method !== request.method || this.#nowMs() > known.expiresAtMs)
      return answer(403);
    const { grant } = known;
    const sent = { ...request.headers, "content-length": String(request.body?.byteLength ?? 0) };
    for (const [name, value] of Object.entries(grant.headers))
      if (Object.entries(sent).find(([header]) => header === name)?.[1] !== value) return answer(403);
    const standing = this.#objects.get(grant.key);
    if (grant.method === "GET") return standing === undefined ? answer(404) : answer(200, Uint8Array.from(standing));
    const body = request.body ?? new Uint8Array();
    const checksum = createHash("sha256").update(body).digest("base64");
    if (checksum !== grant.headers["x-amz-checksum-sha256"]) return answer(400);
    if (standing !== undefined) return answer(412);
    this.#objects.set(grant.key, Uint8Array.from(body));
    return answer(200);
  }

  #grant(grant: Omit<Grant, "url">): Grant {
    const made = { ...grant, url: `memory:${randomUUID()}` };
    this.#grants.set(made.url, { grant: made, expiresAtMs: this.#nowMs() + grantMsMax });
    return made;
  }
}

function check(key: string): void {
  if (/^(?:bundles|cookies)\/[0-9a-f]{64}$/.test(key)) return;
  throw new Fault({ code: "request.malformed", cause: "No key.", action: "Use a grant's key.", retry: "never" });
}
