/**
 * The bucket: the contract cases in memory, on the S3 face in Node, on the face as `vmferry up` serves it from workerd, and on
 * an S3 server that is none of ours (Ceph's gateway, where Debian's packages are to be had).
 */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { request as httpRequest } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { CreateBucketCommand } from "@aws-sdk/client-s3";
import { objectMsFresh, S3Bundles } from "#functions/bundle/s3-bundles";
import { createFace } from "#functions/bundle/s3-face";
import { startUp, type Up } from "#functions/cli/up";
import { RequestCounter } from "#functions/store/request-counter";
import { type S3Server, s3ServerSkipReason, startS3Server } from "#lab/s3-server";
import { grantMsMax } from "#protocol/limits";
import { MemoryBundles } from "#test/fake/memory-bundles";
import { MemoryObjects } from "#test/fake/memory-objects";
import { type Bucket, bundleCases, digest } from "./bundle-cases.ts";
import { clientOf, s3Cases } from "./bundles-s3.ts";
import { throwsFault } from "./store-cases.ts";

const keys = { accessKeyId: "vmferry", secretAccessKey: "not a secret" };
const options = { bucket: "vmferry", region: "us-east-1", credentials: keys };

function faceInNode() {
  const clock = { nowMs: Date.now() };
  const counter = new RequestCounter();
  const face = createFace({ ...options, keys, objects: new MemoryObjects(), nowMs: () => clock.nowMs, counter });
  const bucket: Bucket = {
    bundles: new S3Bundles({ ...options, at: { kind: "face", fetch: face } }),
    publicUrl: "http://ferry.example:8787",
    async send({ method, url, headers, body }) {
      // fetch's own Request drops content-length, which a server sees; it is put back as the wire has it.
      const sent = new Headers({
        ...headers,
        ...(body === undefined ? {} : { "content-length": `${body.byteLength}` }),
      });
      const request = new Request(url, {
        method,
        headers: sent,
        ...(body === undefined ? {} : { body: Uint8Array.from(body) }),
      });
      const response = await face(request);
      return { status: response.status, body: new Uint8Array(await response.arrayBuffer()) };
    },
  };
  return { bucket, clock, counter, face };
}

describe("bucket in memory", () => {
  const bundles = new MemoryBundles(() => Date.now());
  const bucket: Bucket = { bundles, publicUrl: "memory:", send: (request) => bundles.send(request) };
  for (const [name, run] of Object.entries(bundleCases)) test(name, () => run(bucket));

  test("a grant expires", async () => {
    const clock = { nowMs: 0 };
    const store = new MemoryBundles(() => clock.nowMs);
    const body = Uint8Array.of(1);
    const grant = await store.grantPut({ purpose: "bundle", sha256: digest(body), bytes: 1 });
    clock.nowMs = grantMsMax + 1;
    assert.equal((await store.send({ ...grant, body })).status, 403);
  });
});

describe("S3 face in Node", () => {
  for (const [name, run] of Object.entries(bundleCases)) test(name, () => run(faceInNode().bucket));

  test("a grant lives five minutes, and none comes from the future", async () => {
    const { bucket, clock } = faceInNode();
    const body = Uint8Array.of(1, 2, 3);
    const want = { purpose: "bundle" as const, sha256: digest(body), bytes: 3, publicUrl: bucket.publicUrl };
    const grant = await bucket.bundles.grantPut(want);
    const signedMs = clock.nowMs;
    clock.nowMs = signedMs + grantMsMax + 1_000;
    assert.equal((await bucket.send({ ...grant, body })).status, 403, "expired");
    clock.nowMs = signedMs - 16 * 60_000;
    assert.equal((await bucket.send({ ...grant, body })).status, 403, "from the future");
    clock.nowMs = signedMs + grantMsMax - 5_000;
    assert.equal((await bucket.send({ ...grant, body })).status, 200, "still good");
  });

  test("a grant is for the door through which the shim came", async () => {
    const { bucket } = faceInNode();
    const body = Uint8Array.of(1);
    const grant = await bucket.bundles.grantPut({
      purpose: "bundle",
      sha256: digest(body),
      bytes: 1,
      publicUrl: "https://ferry.example/",
    });
    assert.match(grant.url, /^https:\/\/ferry\.example\/s3\/vmferry\/bundles\//);
    const elsewhere = grant.url.replace("https://ferry.example", "http://other.example");
    assert.equal((await bucket.send({ ...grant, url: elsewhere, body })).status, 403);
    assert.equal((await bucket.send({ ...grant, body })).status, 200);
  });

  test("unsigned, wrongly signed and wrongly scoped requests are refused with S3's codes", async () => {
    const { bucket, face } = faceInNode();
    const get = await bucket.bundles.grantGet({ key: `bundles/${"0".repeat(64)}`, publicUrl: bucket.publicUrl });
    const refusals: [string, string][] = [
      [get.url.split("?")[0] ?? "", "AccessDenied"],
      [get.url.replace("vmferry%2F", "somebody%2F"), "InvalidAccessKeyId"],
      [get.url.replace("us-east-1", "eu-west-1"), "AuthorizationHeaderMalformed"],
      [get.url.replace(/X-Amz-Signature=./, "X-Amz-Signature=z"), "SignatureDoesNotMatch"],
      [get.url.replace("X-Amz-Expires=300", "X-Amz-Expires=9999999"), "AuthorizationQueryParametersError"],
      [get.url.replace(/X-Amz-Date=\w+/, "X-Amz-Date=yesterday"), "AuthorizationHeaderMalformed"],
    ];
    for (const [url, code] of refusals) {
      const text = await (await face(new Request(url))).text();
      assert.ok(text.includes(`<Code>${code}</Code>`), `${code} is expected in ${text}`);
    }
    const unsigned = await face(new Request(get.url, { headers: { "x-amz-acl": "public-read" } }));
    assert.equal(unsigned.status, 403, "a header of S3's that is not signed is refused");
  });

  test("another bucket's signed requests find nothing", async () => {
    const { face } = faceInNode();
    const bundles = new S3Bundles({ ...options, bucket: "other", at: { kind: "face", fetch: face } });
    assert.equal(await bundles.head(`bundles/${"0".repeat(64)}`), null);
  });

  test("an object that the bucket's lifecycle will take soon is uploaded again", async () => {
    const { bucket, face } = faceInNode();
    const body = new Uint8Array(100);
    const want = { purpose: "bundle" as const, sha256: digest(body), bytes: 100, publicUrl: bucket.publicUrl };
    assert.equal((await bucket.send({ ...(await bucket.bundles.grantPut(want)), body })).status, 200);
    assert.equal((await bucket.bundles.grantPut(want)).present, true);
    const nowMs = () => Date.now() + objectMsFresh + 1_000;
    const later = new S3Bundles({ ...options, at: { kind: "face", fetch: face }, nowMs });
    const grant = await later.grantPut(want);
    assert.equal(grant.present, false);
    assert.equal(
      (await bucket.send({ ...grant, body: new Uint8Array(100).fill(1) })).status,
      400,
      "the same bytes only",
    );
    assert.equal((await bucket.send({ ...grant, body })).status, 200);
  });

  test("requests and bytes are counted, the shims' as well", async () => {
    const { bucket, counter } = faceInNode();
    const body = new Uint8Array(5_000);
    const want = { purpose: "bundle" as const, sha256: digest(body), bytes: 5_000, publicUrl: bucket.publicUrl };
    const grant = await bucket.bundles.grantPut(want);
    await bucket.send({ ...grant, body });
    await bucket.send(await bucket.bundles.grantGet({ key: grant.key, publicUrl: bucket.publicUrl }));
    assert.deepEqual(counter.total("s3"), { requests: 3, sentBytes: 5_000, receivedBytes: 5_000 });
  });

  test("a bucket that cannot be reached is a fault that may be repeated", async () => {
    const bundles = new S3Bundles({ ...options, at: { kind: "endpoint", url: "http://127.0.0.1:1" } });
    await assert.rejects(bundles.head(`bundles/${"0".repeat(64)}`), throwsFault("bundle.unreachable"));
  });
});

describe("S3 face in workerd", () => {
  let folder: string;
  let up: Up;
  const quiet = { out() {}, err() {} };
  const start = () =>
    startUp({
      listen: "127.0.0.1:0",
      dataDir: join(folder, "data"),
      env: { VMFERRY_CONFIG: join(folder, "c") },
      ...quiet,
    });
  const bucket = async (): Promise<Bucket> => {
    const secretAccessKey = (await readFile(join(folder, "data", "s3-key"), "utf8")).trim();
    const credentials = { accessKeyId: "vmferry", secretAccessKey };
    const at = { kind: "endpoint" as const, url: `${up.url}/s3` };
    return { bundles: new S3Bundles({ ...options, credentials, at }), publicUrl: up.url, send: sendOverHttp };
  };
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "vmferry-bundles-"));
    up = await start();
  });
  after(async () => {
    await up.close();
    await rm(folder, { recursive: true });
  });

  for (const [name, run] of Object.entries(bundleCases)) test(name, async () => run(await bucket()));

  for (const [name, run] of Object.entries(s3Cases))
    test(name, async () => {
      const secretAccessKey = (await readFile(join(folder, "data", "s3-key"), "utf8")).trim();
      const place = { endpoint: `${up.url}/s3`, bucket: "vmferry", keys: { accessKeyId: "vmferry", secretAccessKey } };
      await run(place);
    });

  test("an upload that breaks off leaves nothing, and can be made again", async () => breaksOff(await bucket()));

  test("objects survive a restart", async () => {
    const earlier = await bucket();
    const body = new Uint8Array(70_000).fill(3);
    const want = { purpose: "bundle" as const, sha256: digest(body), bytes: body.byteLength, publicUrl: up.url };
    const grant = await earlier.bundles.grantPut(want);
    assert.equal((await earlier.send({ ...grant, body })).status, 200);
    await up.close();
    up = await start();
    const later = await bucket();
    const get = await later.bundles.grantGet({ key: grant.key, publicUrl: up.url });
    assert.equal(digest((await later.send(get)).body), digest(body));
  });
});

/**
 * What Ceph's gateway (16.2, Debian 12) does not know, so that it is not asked of it: listed, not weakened, for the others.
 * S3 checksums came to it with version 19.
 */
const unknownToCeph: Record<string, string> = {
  "other bytes of the same length are refused and nothing is kept":
    "it does not check x-amz-checksum-sha256; the reader's own digest refuses what was altered",
};

const skip = await s3ServerSkipReason();
if (skip !== false) test("bucket on Ceph's gateway", { skip }, () => {});
else
  describe("bucket on Ceph's gateway", () => {
    let server: S3Server;
    before(async () => {
      server = await startS3Server(keys);
      const client = clientOf({ ...server, endpoint: server.url, bucket: options.bucket });
      await client.send(new CreateBucketCommand({ Bucket: options.bucket }));
      client.destroy();
    });
    after(() => server?.end());
    const bucket = (): Bucket => ({
      bundles: new S3Bundles({ ...options, at: { kind: "endpoint", url: server.url } }),
      publicUrl: server.url,
      send: sendOverHttp,
    });

    for (const [name, run] of Object.entries(bundleCases))
      if (unknownToCeph[name] === undefined) test(name, () => run(bucket()));
    for (const [name, run] of Object.entries(s3Cases))
      test(name, () => run({ endpoint: server.url, bucket: options.bucket, keys }));
    test("an upload that breaks off leaves nothing, and can be made again", () => breaksOff(bucket()));

    test("every case that it is not asked is one that there is", () => {
      for (const name of Object.keys(unknownToCeph)) assert.ok(name in bundleCases, name);
    });
  });

async function breaksOff({ bundles, publicUrl, send }: Bucket): Promise<void> {
  const body = new Uint8Array(500_000).fill(7);
  const grant = await bundles.grantPut({
    purpose: "bundle",
    sha256: digest(body),
    bytes: body.byteLength,
    publicUrl,
  });
  await new Promise<void>((resolve) => {
    const request = httpRequest(grant.url, { method: "PUT", headers: grant.headers });
    request.on("error", () => resolve()).on("close", () => resolve());
    request.write(body.subarray(0, 100_000), () => request.destroy());
  });
  assert.equal(await bundles.head(grant.key), null);
  assert.equal((await send({ ...grant, body })).status, 200);
  assert.deepEqual(await bundles.head(grant.key), { bytes: body.byteLength });
}

/** Over node:http, as the shim does: fetch would not send a content-length of our choice. */
function sendOverHttp(want: { method: string; url: string; headers: Record<string, string>; body?: Uint8Array }) {
  return new Promise<{ status: number; body: Uint8Array }>((resolve, reject) => {
    const { body } = want;
    const headers = body === undefined ? want.headers : { ...want.headers, "content-length": String(body.byteLength) };
    const request = httpRequest(want.url, { method: want.method, headers }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk)).on("error", reject);
      response.on("end", () =>
        resolve({ status: response.statusCode ?? 0, body: Uint8Array.from(Buffer.concat(chunks)) }),
      );
    });
    request.on("error", reject).end(body);
  });
}
