/** Payloads through real HTTP and invented grants: sizes, digests, outages, redirects, and what never appears in a log. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import type { BundleRef } from "#protocol/blob";
import { Fault } from "#protocol/fault";
import { cookieBytesMax, inlineBytesMax } from "#protocol/limits";
import type { UpMessage } from "#protocol/message";
import { Grants } from "#shim/grants";
import { payloadsOf, transferTryMs } from "#shim/payloads";
import type { Payloads } from "#shim/ports";
import { FakeControlPlane } from "#test/fake/control-plane";

const command = { id: "m_01JD0000000000000000000000:export:1", migrationId: "m_01JD0000000000000000000000" };
const digest = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

let root: string;
let plane: FakeControlPlane;
let bundlePath: string;
let logs: string[];
let slept: number;
before(async () => {
  root = await mkdtemp(join(tmpdir(), "vmferry-payloads-"));
});
after(() => rm(root, { recursive: true, force: true }));
beforeEach(async () => {
  plane = await FakeControlPlane.start();
  bundlePath = join(await mkdtemp(join(root, "host-")), "bundle");
  logs = [];
  slept = 0;
});
afterEach(() => plane.stop());

type Answerer = (grant: Extract<UpMessage, { type: "grant" }>, grants: Grants) => void;

/** Grants as the functions give them, to the fake's bucket. */
const grantAll: Answerer = ({ request, want }, grants) => {
  const key = want.op === "get" ? want.key : `${want.purpose}s/${want.sha256}`;
  grants.granted({
    type: "granted",
    request,
    method: want.op === "get" ? "GET" : "PUT",
    url: `${plane.url}/bucket/${key}?secret=hunter2`,
    headers: want.op === "put" ? { "x-signed": want.sha256 } : {},
    key,
    present: want.op === "put" && plane.bucket.has(key),
  });
};

function payloads(
  answer: Answerer = grantAll,
  waitMs = 10_000,
): { payloads: Payloads; grants: Grants; asked: UpMessage[] } {
  const asked: UpMessage[] = [];
  const grants = new Grants((message) => {
    asked.push(message);
    if (message.type === "grant") queueMicrotask(() => answer(message, grants));
    return true;
  }, waitMs);
  return {
    grants,
    asked,
    payloads: payloadsOf({
      grants,
      command,
      bundlePath,
      clock: {
        now: () => "",
        monotonicMs: () => slept,
        random: () => 0.5,
        sleep: async (ms) => {
          slept += ms;
        },
      },
      log: { write: (_level, message, fields) => logs.push(`${message} ${JSON.stringify(fields)}`) },
    }),
  };
}

const withCode = (code: string) => (error: unknown) => {
  assert.ok(error instanceof Fault, String(error));
  assert.equal(error.code, code, error.cause_);
  assert.doesNotMatch(`${error.message} ${error.action} ${logs.join()}`, /hunter2|secret=/);
  return true;
};

describe("blobs", () => {
  test("inline up to 24 KiB, by reference above, and the same bytes come back", async () => {
    const { payloads: at } = payloads();
    for (const size of [0, 1, inlineBytesMax, inlineBytesMax + 1, cookieBytesMax]) {
      const bytes = randomBytes(size);
      const blob = await at.write(bytes);
      assert.equal(blob.in, size <= inlineBytesMax ? "inline" : "bucket");
      assert.equal(blob.bytes, size);
      assert.equal(blob.sha256, digest(bytes));
      assert.deepEqual(Buffer.from(await at.read(blob)), bytes);
    }
  });

  test("over libvirt's limit: cookie.tooLarge, nothing is asked or sent", async () => {
    const { payloads: at, asked } = payloads();
    await assert.rejects(at.write(new Uint8Array(cookieBytesMax + 1)), withCode("cookie.tooLarge"));
    assert.deepEqual(asked, []);
  });

  test("exactly the granted headers are sent, with the length", async () => {
    const bytes = randomBytes(30_000);
    await payloads().payloads.write(bytes);
    const [request] = plane.bucketRequests;
    const { host, connection, ...headers } = request?.headers ?? {};
    assert.deepEqual(headers, { "x-signed": digest(bytes), "content-length": "30000" });
  });

  test("what is there already is not uploaded", async () => {
    const bytes = randomBytes(30_000);
    const { payloads: at } = payloads();
    await at.write(bytes);
    await at.write(bytes);
    assert.equal(plane.bucketRequests.length, 1);
  });

  test("412 is as good as stored", async () => {
    plane.decide.onBucket = () => 412;
    assert.equal((await payloads().payloads.write(randomBytes(30_000))).in, "bucket");
  });

  test("altered in the message or in the bucket: cookie.altered, at once", async () => {
    const { payloads: at } = payloads();
    const inline = await at.write(Buffer.from("cookie"));
    assert.ok(inline.in === "inline");
    await assert.rejects(
      at.read({ ...inline, base64: Buffer.from("cookle").toString("base64") }),
      withCode("cookie.altered"),
    );
    const blob = await at.write(randomBytes(30_000));
    assert.ok(blob.in === "bucket");
    for (const altered of [randomBytes(30_000), randomBytes(29_999), randomBytes(300_000)]) {
      plane.bucket.set(blob.key, altered);
      const before = plane.bucketRequests.length;
      await assert.rejects(at.read(blob), withCode("cookie.altered"));
      assert.equal(plane.bucketRequests.length, before + 1);
    }
  });
});

describe("outages", () => {
  test("a store that comes back within the bound: nothing is noticed", async () => {
    let failures = 3;
    plane.decide.onBucket = () => (failures-- > 0 ? 503 : null);
    const { payloads: at, asked } = payloads();
    await at.write(randomBytes(30_000));
    assert.equal(asked.length, 4, "each attempt takes a fresh grant: an old one may have expired");
    assert.equal(logs.length, 3);
  });

  test("a store that stays away: bundle.unreachable after the bound", async () => {
    plane.decide.onBucket = () => 503;
    await assert.rejects(payloads().payloads.write(randomBytes(30_000)), withCode("bundle.unreachable"));
    assert.ok(slept >= transferTryMs && slept < transferTryMs + 10_000, `${slept}`);
  });

  test("a connection that breaks in the middle of a body", async () => {
    const { payloads: at } = payloads();
    const bytes = randomBytes(100_000);
    const blob = await at.write(bytes);
    let breaks = 2;
    plane.decide.onBucket = (request) => {
      if (breaks-- > 0) request.socket.destroy();
      return null;
    };
    assert.deepEqual(Buffer.from(await at.read(blob)), bytes);
  });

  test("nobody listens there", async () => {
    const gone = await FakeControlPlane.start();
    const { url } = gone;
    await gone.stop();
    const { payloads: at } = payloads(({ request }, grants) =>
      grants.granted({
        type: "granted",
        request,
        method: "PUT",
        url: `${url}/bucket/x?secret=hunter2`,
        headers: {},
        key: "x",
        present: false,
      }),
    );
    await assert.rejects(at.write(randomBytes(30_000)), withCode("bundle.unreachable"));
  });

  test("a redirect is not followed: the signature was for one address", async () => {
    plane.decide.onBucket = () => 302;
    await assert.rejects(payloads().payloads.write(randomBytes(30_000)), withCode("bundle.unreachable"));
    assert.equal(plane.bucketRequests.filter(({ key }) => key === "elsewhere").length, 0);
  });

  test("a grant that never comes: bundle.unreachable after its own bound, not asked for all over again", async () => {
    const { payloads: at, asked } = payloads(() => {}, 30);
    await assert.rejects(at.write(randomBytes(30_000)), withCode("bundle.unreachable"));
    assert.equal(asked.length, 1);
  });

  test("a grant refused for good is told as it is; one refused for now is asked for again", async () => {
    const fault = { code: "request.forbidden", cause: "not yours", action: "none", retry: "never" } as const;
    const refusing = payloads(({ request }, grants) => grants.refused({ type: "grantRefused", request, fault }));
    await assert.rejects(refusing.payloads.write(randomBytes(30_000)), withCode("request.forbidden"));
    let refusals = 2;
    const passing = payloads((grant, grants) => {
      if (refusals-- > 0)
        grants.refused({
          type: "grantRefused",
          request: grant.request,
          fault: { ...fault, code: "bundle.unreachable", retry: "safe" },
        });
      else grantAll(grant, grants);
    });
    assert.equal((await passing.payloads.write(randomBytes(30_000))).in, "bucket");
  });

  test("a grant asked for while no session was open is asked for again when one is", async () => {
    let online = false;
    const { payloads: at, grants } = payloads((grant, each) => {
      if (online) grantAll(grant, each);
    });
    const written = at.write(randomBytes(30_000));
    await new Promise((resolve) => setImmediate(resolve));
    online = true;
    grants.resend();
    assert.equal((await written).in, "bucket");
  });
});

describe("bundles", () => {
  const make = async (bytes: Buffer): Promise<BundleRef> => {
    const path = join(root, "exported");
    await writeFile(path, bytes);
    const sha256 = digest(bytes);
    const { key } = await payloads().payloads.uploadBundle({ path, sha256, bytes: bytes.byteLength });
    return {
      key,
      sha256,
      bytes: bytes.byteLength,
      plainSha256: sha256,
      plainBytes: 1,
      snapshots: 0,
      checkpoints: 0,
      treeSha256: sha256,
    };
  };
  const left = async () => readdir(join(bundlePath, ".."));

  test("uploaded, downloaded to the migration's own file, only for its owner; not fetched twice", async () => {
    const bytes = randomBytes(300_000);
    const ref = await make(bytes);
    const { payloads: at } = payloads();
    assert.equal(await at.downloadBundle(ref), bundlePath);
    assert.deepEqual(await readFile(bundlePath), bytes);
    assert.equal((await stat(bundlePath)).mode & 0o777, 0o600);
    const requests = plane.bucketRequests.length;
    await at.downloadBundle(ref);
    assert.equal(plane.bucketRequests.length, requests);
    await writeFile(bundlePath, "damaged on this disk");
    await at.downloadBundle(ref);
    assert.deepEqual(await readFile(bundlePath), bytes);
    assert.deepEqual(await left(), ["bundle"]);
  });

  test("altered, shortened or lengthened in the bucket: bundle.altered at once, nothing is left on disk", async () => {
    const ref = await make(randomBytes(300_000));
    for (const altered of [randomBytes(300_000), randomBytes(299_999), randomBytes(900_000)]) {
      plane.bucket.set(ref.key, altered);
      const before = plane.bucketRequests.length;
      await assert.rejects(payloads().payloads.downloadBundle(ref), withCode("bundle.altered"));
      assert.equal(plane.bucketRequests.length, before + 1);
      assert.deepEqual(await left(), []);
    }
  });

  test("gone from the bucket: bundle.unreachable", async () => {
    const ref = await make(randomBytes(300_000));
    plane.bucket.clear();
    await assert.rejects(payloads().payloads.downloadBundle(ref), withCode("bundle.unreachable"));
    assert.deepEqual(await left(), []);
  });

  test("a download that breaks is begun anew", async () => {
    const bytes = randomBytes(3_000_000);
    const ref = await make(bytes);
    let breaks = 2;
    plane.decide.onBucket = (request) => {
      if (breaks-- > 0) setImmediate(() => request.socket.destroy());
      return null;
    };
    await payloads().payloads.downloadBundle(ref);
    assert.deepEqual(await readFile(bundlePath), bytes);
  });
});
