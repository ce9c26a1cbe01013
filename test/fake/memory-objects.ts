/** An R2 bucket in memory, as far as the S3 face uses one: the condition and the write are one step, a digest is verified. */
import { createHash } from "node:crypto";
import type { ObjectStore } from "#functions/bundle/s3-face";

interface Stored {
  bytes: Uint8Array<ArrayBuffer>;
  uploaded: Date;
}

export class MemoryObjects implements ObjectStore {
  readonly #objects = new Map<string, Stored>();

  async put(
    key: string,
    body: ReadableStream<Uint8Array<ArrayBuffer>> | Uint8Array<ArrayBuffer>,
    options: { sha256?: string; onlyIf?: { etagDoesNotMatch: string } },
  ) {
    const bytes = new Uint8Array(await new Response(body).arrayBuffer());
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    if (options.sha256 !== undefined && options.sha256 !== sha256) throw new Error("the SHA-256 checksum differs");
    if (options.onlyIf?.etagDoesNotMatch === "*" && this.#objects.has(key)) return null;
    this.#objects.set(key, { bytes, uploaded: new Date() });
    return this.head(key);
  }

  async head(key: string) {
    const stored = this.#objects.get(key);
    return stored === undefined ? null : described(key, stored);
  }

  async get(key: string) {
    const stored = this.#objects.get(key);
    if (stored === undefined) return null;
    const body = new Blob([stored.bytes]).stream();
    return { ...described(key, stored), body };
  }

  async delete(key: string): Promise<void> {
    this.#objects.delete(key);
  }

  async list(page: { prefix: string; limit: number; cursor?: string }) {
    const { cursor } = page;
    const keys = [...this.#objects.keys()]
      .filter((key) => key.startsWith(page.prefix) && (cursor === undefined || key > cursor))
      .sort();
    const shown = keys.slice(0, page.limit);
    const last = shown.at(-1);
    const objects = shown.flatMap((key) => {
      const stored = this.#objects.get(key);
      return stored === undefined ? [] : [described(key, stored)];
    });
    const truncated = keys.length > shown.length;
    return truncated && last !== undefined ? { objects, truncated, cursor: last } : { objects, truncated };
  }
}

const described = (key: string, { bytes, uploaded }: Stored) => ({
  key,
  size: bytes.byteLength,
  httpEtag: `"${createHash("md5").update(bytes).digest("hex")}"`,
  uploaded,
});
