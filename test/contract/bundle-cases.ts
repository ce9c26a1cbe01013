/**
 * What every bucket must do, as one list of cases; bundles.test.ts runs it in memory, on the S3 face in Node and in workerd, and
 * on Ceph.
 */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import type { BundleStore, Grant } from "#functions/ports";
import { bundleBytesMax, cookieBytesMax } from "#protocol/limits";
import { throwsFault } from "./store-cases.ts";

export interface Bucket {
  bundles: BundleStore;
  publicUrl: string;
  /** Sends a request as a shim does. The length is the body's. */
  send(request: {
    method: string;
    url: string;
    headers: Record<string, string>;
    body?: Uint8Array;
  }): Promise<{ status: number; body: Uint8Array }>;
}

export const digest = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
/** Above every buffer on the way: a server's parts (Ceph's are 4 MiB), a stream's, a socket's. */
const largeBytes = 24 * 1024 * 1024;
const some = (bytes: number) => Uint8Array.from(randomBytes(bytes));
const absentKey = () => `bundles/${digest(some(8))}`;

async function granted({ bundles, publicUrl }: Bucket, body: Uint8Array, purpose: "bundle" | "cookie" = "bundle") {
  return bundles.grantPut({ purpose, sha256: digest(body), bytes: body.byteLength, publicUrl });
}

async function stored(bucket: Bucket, body: Uint8Array): Promise<Grant> {
  const grant = await granted(bucket, body);
  assert.equal((await bucket.send({ ...grant, body })).status, 200);
  return grant;
}

export const bundleCases: Record<string, (bucket: Bucket) => Promise<void>> = {
  "an object is written and read by grants": async (bucket) => {
    const body = some(300_000);
    const put = await granted(bucket, body);
    assert.equal(put.method, "PUT");
    assert.equal(put.present, false);
    assert.equal(put.key, `bundles/${digest(body)}`);
    assert.equal(await bucket.bundles.head(put.key), null);
    assert.equal((await bucket.send({ ...put, body })).status, 200);
    assert.deepEqual(await bucket.bundles.head(put.key), { bytes: body.byteLength });
    const get = await bucket.bundles.grantGet({ key: put.key, publicUrl: bucket.publicUrl });
    assert.equal(get.method, "GET");
    const answer = await bucket.send(get);
    assert.equal(answer.status, 200);
    assert.equal(digest(answer.body), digest(body));
  },
  "a large object is written and read whole": async (bucket) => {
    const body = new Uint8Array(largeBytes).map((_, at) => (at * 31) % 251);
    const grant = await stored(bucket, body);
    assert.deepEqual(await bucket.bundles.head(grant.key), { bytes: body.byteLength });
    const get = await bucket.bundles.grantGet({ key: grant.key, publicUrl: bucket.publicUrl });
    assert.equal(digest((await bucket.send(get)).body), digest(body));
  },
  "cookies lie beside bundles": async (bucket) => {
    const body = some(30_000);
    const grant = await granted(bucket, body, "cookie");
    assert.equal(grant.key, `cookies/${digest(body)}`);
    assert.equal((await bucket.send({ ...grant, body })).status, 200);
    assert.equal((await granted(bucket, body, "bundle")).present, false);
  },
  "what is there needs no upload, and an upload changes nothing": async (bucket) => {
    const body = some(1_000);
    const first = await stored(bucket, body);
    const again = await granted(bucket, body);
    assert.equal(again.present, true);
    assert.equal(again.key, first.key);
    assert.equal((await bucket.send({ ...again, body })).status, 412);
    assert.equal((await bucket.send({ ...first, body })).status, 412);
  },
  "of eight writers of one object one wins": async (bucket) => {
    const body = some(200_000);
    const grants = await Promise.all(Array.from({ length: 8 }, () => granted(bucket, body)));
    const answers = await Promise.all(grants.map((grant) => bucket.send({ ...grant, body })));
    assert.deepEqual(answers.map(({ status }) => status).sort(), [200, 412, 412, 412, 412, 412, 412, 412]);
    assert.deepEqual(await bucket.bundles.head(grants[0]?.key ?? ""), { bytes: body.byteLength });
  },
  "other bytes of the same length are refused and nothing is kept": async (bucket) => {
    const body = some(1_000);
    const grant = await granted(bucket, body);
    assert.equal((await bucket.send({ ...grant, body: some(1_000) })).status, 400);
    assert.equal(await bucket.bundles.head(grant.key), null);
    assert.equal((await bucket.send({ ...grant, body })).status, 200, "the right bytes still go in");
  },
  "another length than was granted is refused": async (bucket) => {
    const body = some(1_000);
    const grant = await granted(bucket, body);
    for (const other of [some(999), some(1_001), some(0)])
      assert.equal((await bucket.send({ ...grant, body: other })).status, 403);
    assert.equal(await bucket.bundles.head(grant.key), null);
  },
  "a header that was signed cannot be left out or changed": async (bucket) => {
    const body = some(100);
    const grant = await granted(bucket, body);
    for (const name of ["if-none-match", "x-amz-checksum-sha256"]) {
      const { [name]: _, ...less } = grant.headers;
      assert.equal((await bucket.send({ ...grant, headers: less, body })).status, 403, `without ${name}`);
    }
    const other = Buffer.from(digest(some(1)), "hex").toString("base64");
    const headers = { ...grant.headers, "x-amz-checksum-sha256": other };
    assert.equal((await bucket.send({ ...grant, headers, body })).status, 403);
    assert.equal(await bucket.bundles.head(grant.key), null);
  },
  "a grant opens nothing else": async (bucket) => {
    const body = some(100);
    const grant = await stored(bucket, body);
    const other = await granted(bucket, some(100));
    const get = await bucket.bundles.grantGet({ key: grant.key, publicUrl: bucket.publicUrl });
    const altered = [
      { ...other, url: other.url.replace(other.key, absentKey()), body },
      {
        ...other,
        url: other.url.replace(/X-Amz-Signature=./, (text) =>
          text.endsWith("0") ? "X-Amz-Signature=1" : "X-Amz-Signature=0",
        ),
        body,
      },
      { ...get, url: get.url.replace("X-Amz-Expires=300", "X-Amz-Expires=301") },
      { ...get, method: "DELETE" },
      { ...get, method: "PUT", body },
      { ...get, url: get.url.split("?")[0] ?? "" },
    ].filter(({ url }) => url.includes("?") || !get.url.startsWith("memory:"));
    for (const request of altered)
      if (request.url !== get.url || request.method !== "GET")
        assert.equal((await bucket.send(request)).status, 403, `${request.method} ${request.url}`);
    assert.deepEqual(await bucket.bundles.head(grant.key), { bytes: 100 });
  },
  "an absent object is said to be absent": async (bucket) => {
    const get = await bucket.bundles.grantGet({ key: absentKey(), publicUrl: bucket.publicUrl });
    assert.equal((await bucket.send(get)).status, 404);
  },
  "a removed object is gone, and removing it again is no error": async (bucket) => {
    const { key } = await stored(bucket, some(100));
    await bucket.bundles.remove(key);
    await bucket.bundles.remove(key);
    assert.equal(await bucket.bundles.head(key), null);
  },
  "what is too large gets no grant": async ({ bundles, publicUrl }) => {
    const want = { sha256: digest(some(1)), publicUrl };
    const bundle = bundles.grantPut({ ...want, purpose: "bundle", bytes: bundleBytesMax + 1 });
    await assert.rejects(bundle, throwsFault("bundle.tooLarge"));
    const cookie = bundles.grantPut({ ...want, purpose: "cookie", bytes: cookieBytesMax + 1 });
    await assert.rejects(cookie, throwsFault("cookie.tooLarge"));
  },
  "a key that no grant has made leads nowhere": async ({ bundles, publicUrl }) => {
    for (const key of ["", "../secret", "bundles/x", `bundles/${"0".repeat(64)}/more`, `other/${"0".repeat(64)}`]) {
      await assert.rejects(bundles.head(key), throwsFault("request.malformed"));
      await assert.rejects(bundles.remove(key), throwsFault("request.malformed"));
      await assert.rejects(bundles.grantGet({ key, publicUrl }), throwsFault("request.malformed"));
    }
  },
};
