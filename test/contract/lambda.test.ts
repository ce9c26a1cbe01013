/** The bundles as Lambda runs them, each in processes of its own, over the embedded DynamoDB and the S3 face: warm, and cold each time. */
import assert from "node:assert/strict";
import { createHash, generateKeyPairSync, sign } from "node:crypto";
import { readFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { after, before, describe, test } from "node:test";
import * as z from "zod/mini";
import { createFace } from "#functions/bundle/s3-face";
import { problemSchema } from "#functions/http/problem";
import { DynamoMigrations } from "#functions/store/dynamo-migrations";
import { LambdaHttpServer } from "#lab/lambda-http-server";
import { LambdaError, LambdaFunction, type LambdaOptions } from "#lab/lambda-process";
import { startTcpProxy, type TcpProxy } from "#lab/tcp-proxy";
import { connectHeader, connectSignedText, doorSchema, formatConnectProof } from "#protocol/identity";
import { MemoryObjects } from "#test/fake/memory-objects";
import { MemoryServer } from "#test/fake/memory-server";
import { weigh } from "../../infra/bundle-contents.ts";
import { lambdaBytesMax, lambdaNames } from "../../infra/lambda-build.ts";
import { type LambdaStage, openLambdaStage, stageCredentials, stageRegion, stageSocketUrl } from "./lambda-stage.ts";
import { migration } from "./store-cases.ts";

const adminToken = "lambda-admin-token";
let stage: LambdaStage;
let proxy: TcpProxy;
let bucket: MemoryServer;
let env: Record<string, string>;
let migrations: DynamoMigrations;

before(async () => {
  stage = await openLambdaStage(adminToken);
  migrations = new DynamoMigrations(stage.table, { now: () => new Date().toISOString() });
  proxy = await startTcpProxy({ targetPort: Number(new URL(stage.endpoint).port) });
  const face = createFace({
    objects: new MemoryObjects(),
    bucket: "bundles",
    region: stageRegion,
    keys: stageCredentials,
    nowMs: () => Date.now(),
  });
  bucket = new MemoryServer(face);
  await bucket.start();
  env = { ...stage.env, DYNAMODB_ENDPOINT: `http://127.0.0.1:${proxy.port}`, S3_ENDPOINT: `${bucket.url}/s3` };
});

after(async () => {
  await proxy?.close();
  await bucket?.stop();
  await stage?.close();
});

/** A function and its door, closed after `use`. */
async function served<T>(
  options: Pick<LambdaOptions, "mode"> & Partial<LambdaOptions> & { integrationMsMax?: number },
  use: (door: { url: string; lambda: LambdaFunction; lines: string[]; ask: ReturnType<typeof asker> }) => Promise<T>,
): Promise<T> {
  const lines: string[] = [];
  const lambda = new LambdaFunction({
    file: stage.fileOf("lambda-http"),
    env,
    onLine: (line) => lines.push(line),
    ...options,
  });
  const server = new LambdaHttpServer({
    lambda,
    ...(options.integrationMsMax === undefined ? {} : { integrationMsMax: options.integrationMsMax }),
  });
  await server.start();
  try {
    return await use({ url: server.url, lambda, lines, ask: asker(server.url) });
  } finally {
    await server.close();
    await lambda.close();
    assert.deepEqual(lambda.pids, []);
  }
}

interface Asked {
  body?: unknown;
  headers?: Record<string, string>;
  token?: string | null;
}

const asker =
  (url: string) =>
  (path: string, { body, headers = {}, token = adminToken }: Asked = {}): Promise<Response> =>
    fetch(`${url}${path}`, {
      method: body === undefined ? "GET" : "POST",
      headers: {
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(token === null ? {} : { authorization: `Bearer ${token}` }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
    });

async function problem(response: Response): Promise<[number, string]> {
  const { status, code } = problemSchema.parse(await response.json());
  assert.equal(response.status, status);
  return [status, code];
}

const tokenSchema = z.object({ token: z.string() });
const enrolledSchema = z.object({ hostId: z.string(), name: z.string() });

test("no bundle outgrows its bound, and none holds what its function does not need", async () => {
  for (const name of lambdaNames) {
    const { rawBytes } = await weigh(stage.fileOf(name));
    assert.ok(rawBytes < lambdaBytesMax[name], `${name} has ${rawBytes} bytes`);
  }
  assert.doesNotMatch(await readFile(stage.fileOf("lambda-timer"), "utf8"), /openapi|application\/problem\+json/);
});

for (const mode of ["warm", "cold"] as const)
  describe(`the API, ${mode}`, () => {
    test("lives, and refuses with problems", () =>
      served({ mode }, async ({ ask, lambda }) => {
        assert.equal((await ask("/healthz", { token: null })).status, 200);
        assert.deepEqual(await problem(await ask("/v1/hosts", { token: null })), [401, "request.unauthorised"]);
        assert.deepEqual(await problem(await ask("/v1/nothing")), [404, "request.notFound"]);
        assert.equal(lambda.starts, mode === "warm" ? 1 : lambda.invocations);
      }));

    test("enrols a host once for each use of a token, and its door knows the host", () =>
      served({ mode }, async ({ ask }) => {
        const { publicKey, privateKey } = generateKeyPairSync("ed25519");
        const { token } = tokenSchema.parse(await (await ask("/v1/join-tokens", { body: { uses: 1 } })).json());
        const enrol = (name: string) =>
          ask("/v1/enrolments", {
            body: { token, name, publicKey: publicKey.export({ format: "jwk" }).x },
            token: null,
          });
        const response = await enrol(`alpha-${mode}`);
        assert.equal(response.status, 201);
        const { hostId } = enrolledSchema.parse(await response.json());
        // The condition of the store's write does not hold any more: an error that the SDK must decode.
        assert.deepEqual(await problem(await enrol(`beta-${mode}`)), [401, "token.invalid"]);
        assert.match(await (await ask("/v1/hosts")).text(), new RegExp(hostId));

        const door = doorSchema.parse(await (await ask("/v1/shim-door", { token: null })).json());
        assert.deepEqual([door.socket, door.hello], [stageSocketUrl, "connect"]);
        const proofAt = (atMs: number) => {
          const proof = { hostId, atMs, nonce: "n".repeat(43) };
          const signature = sign(
            null,
            Buffer.from(connectSignedText({ ...proof, socket: stageSocketUrl })),
            privateKey,
          ).toString("base64url");
          return { [connectHeader]: formatConnectProof({ ...proof, signature }) };
        };
        const path = `/v1/shim-door?host=${hostId}`;
        assert.equal((await ask(path, { token: null, headers: proofAt(door.atMs) })).status, 200);
        const late = await ask(path, { token: null, headers: proofAt(door.atMs - 3_600_000) });
        assert.deepEqual(await problem(late), [401, "shim.unauthorised"]);
      }));

    test("takes what has no letters in ASCII, and refuses what is no JSON", () =>
      served({ mode }, async ({ ask }) => {
        const made = await ask("/v1/api-tokens", { body: { name: "Fähre ⛴" } });
        assert.equal(made.status, 201);
        assert.match(await (await ask("/v1/api-tokens")).text(), /Fähre ⛴/);
        const binary = await ask("/v1/api-tokens", {
          body: "\u0000\u0001",
          headers: { "content-type": "application/octet-stream" },
        });
        assert.deepEqual(await problem(binary), [400, "request.malformed"]);
      }));

    test("bounds bodies: our own bound with a problem, the carrier's before the function is asked", () =>
      served({ mode }, async ({ ask, lambda }) => {
        const large = await ask("/v1/api-tokens", { body: { name: "x".repeat(100_000) } });
        assert.deepEqual(await problem(large), [413, "request.tooLarge"]);
        const asked = lambda.invocations;
        const huge = await ask("/v1/api-tokens", { body: { name: "x".repeat(6 * 1024 * 1024) } });
        assert.equal(huge.status, 413);
        assert.equal(lambda.invocations, asked);
      }));

    test("looks into the bucket and signs what goes there", () =>
      served({ mode }, async ({ ask }) => {
        const bytes = Buffer.from(`a bundle for ${mode}`);
        const sha256 = createHash("sha256").update(bytes).digest("hex");
        const grant = async () => {
          const response = await ask("/v1/bundle-uploads", { body: { sha256, bytes: bytes.byteLength } });
          assert.equal(response.status, 200, await response.clone().text());
          return z
            .object({ url: z.string(), headers: z.record(z.string(), z.string()), present: z.boolean() })
            .parse(await response.json());
        };
        const { url, headers, present } = await grant();
        assert.equal(present, false);
        const put = await fetch(url, { method: "PUT", headers, body: bytes });
        assert.equal(put.status, 200, await put.text());
        assert.equal((await grant()).present, true);
      }));

    test("tells events as a long poll", () =>
      served({ mode }, async ({ ask }) => {
        const state = migration();
        await migrations.create(state);
        const events = async (lastEventId?: string) => {
          const headers = lastEventId === undefined ? {} : { "last-event-id": lastEventId };
          const response = await ask(`/v1/migrations/${state.id}/events`, { headers });
          assert.equal(response.headers.get("content-type"), "text/event-stream; charset=utf-8");
          return response.text();
        };
        assert.match(await events(), /^retry: \d+\n\nid: 1\nevent: migration\ndata: \{.*\}\n\n$/);
        const waiting = events("1");
        await migrations.commit({ ...state, version: 2 });
        assert.match(await waiting, /id: 2\nevent: migration\n/);
      }));
  });

describe("a function URL that streams", () => {
  test("tells each event when it happens", () =>
    served({ mode: "warm", handler: "streamed" }, async ({ ask, lambda }) => {
      const state = migration();
      await migrations.create(state);
      const response = await ask(`/v1/migrations/${state.id}/events`);
      assert.equal(response.status, 200);
      assert.ok(response.body);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let told = "";
      const until = async (mark: string) => {
        while (!told.includes(mark)) {
          const { done, value } = await reader.read();
          assert.ok(!done, `ended before ${mark}: ${told}`);
          told += value;
        }
      };
      await until("id: 1\n");
      await migrations.commit({ ...state, version: 2 });
      await until("id: 2\n");
      assert.equal(lambda.pids.length, 1);
      await reader.cancel();
    }));

  test("answers other requests with their status and headers", () =>
    served({ mode: "warm", handler: "streamed" }, async ({ ask }) => {
      const refused = await ask("/v1/hosts", { token: null });
      assert.equal(refused.headers.get("www-authenticate"), "Bearer");
      assert.deepEqual(await problem(refused), [401, "request.unauthorised"]);
    }));
});

describe("a store whose connections break", () => {
  test("between two requests, as they do while a function is frozen: nobody notices", () =>
    served({ mode: "warm" }, async ({ ask, lambda }) => {
      for (let round = 0; round < 3; round += 1) {
        assert.equal((await ask("/v1/hosts")).status, 200);
        proxy.resetOnce();
      }
      assert.equal((await ask("/v1/hosts")).status, 200);
      assert.equal(lambda.starts, 1);
    }));

  test("while an answer is on its way: asked again", () =>
    served({ mode: "warm" }, async ({ ask }) => {
      assert.equal((await ask("/v1/hosts")).status, 200);
      const broken = proxy.cutWhen("HTTP/1.1 200", { direction: "down", when: "before" });
      const asking = ask("/v1/hosts");
      await broken;
      proxy.heal();
      assert.equal((await asking).status, 200);
    }));

  test("by a server that closes in good order instead of answering: asked again", async () => {
    let refusals = 0;
    const relay = createServer((near) => {
      const far = connect(Number(new URL(stage.endpoint).port), "127.0.0.1");
      near.on("data", (chunk) => {
        if (refusals === 0) return far.write(chunk);
        refusals -= 1;
        return near.end();
      });
      far.on("data", (chunk) => near.write(chunk));
      for (const socket of [near, far])
        socket
          .on("error", () => {})
          .on("close", () => {
            near.destroy();
            far.destroy();
          });
    });
    await new Promise<void>((resolve) => relay.listen(0, "127.0.0.1", resolve));
    const address = relay.address();
    assert.ok(typeof address === "object" && address !== null);
    try {
      const throughRelay = { ...env, DYNAMODB_ENDPOINT: `http://127.0.0.1:${address.port}` };
      await served({ mode: "warm", env: throughRelay }, async ({ ask }) => {
        assert.equal((await ask("/v1/hosts")).status, 200);
        refusals = 1;
        assert.equal((await ask("/v1/hosts")).status, 200);
        assert.equal(refusals, 0);
      });
    } finally {
      relay.close();
    }
  });

  test("for good: 503 and a cause, not the words of a library alone", () =>
    served({ mode: "warm" }, async ({ ask }) => {
      proxy.cut();
      try {
        const response = await ask("/v1/hosts");
        const body = problemSchema.parse(await response.json());
        assert.deepEqual([response.status, body.code], [503, "store.unreachable"]);
        assert.match(body.cause, /ECONNREFUSED|ECONNRESET|closed/);
      } finally {
        proxy.heal();
      }
    }));
});

describe("the timer", () => {
  const timer = (more: Partial<LambdaOptions> = {}) =>
    new LambdaFunction({ file: stage.fileOf("lambda-timer"), env, mode: "warm", ...more });

  test("looks after what is active; twice at once does no harm", async () => {
    const state = migration();
    await migrations.create(state);
    await migrations.lockDomain({
      domainUuid: state.domain.uuid,
      migrationId: state.id,
      source: "a",
      destination: "b",
    });
    const lines: string[] = [];
    const lambda = timer({ onLine: (line) => lines.push(line) });
    try {
      const looks = await Promise.all([lambda.invoke({}), lambda.invoke({})]);
      for (const look of looks) assert.ok(z.object({ looked: z.number() }).parse(look).looked >= 1);
      assert.equal(lambda.starts, 2, "one process serves one invocation at a time");
      for (const line of lines) assert.equal(typeof JSON.parse(line).invocation, "string", line);
    } finally {
      await lambda.close();
      await migrations.unlockDomain(state.domain.uuid, state.id);
    }
  });

  test("with an environment that lacks something names it, and quotes nothing", async () => {
    const lambda = timer({ env: { ...env, TABLE: "", SOCKET_URL: "secret-in-the-wrong-place" } });
    try {
      await assert.rejects(lambda.invoke({}), (error) => {
        assert.ok(error instanceof LambdaError);
        assert.match(error.message, /TABLE is missing, SOCKET_URL is not of the form/);
        assert.doesNotMatch(error.message, /secret-in/);
        return true;
      });
    } finally {
      await lambda.close();
    }
  });
});

test("the door's own end of patience is a 504", () =>
  served({ mode: "warm", integrationMsMax: 1 }, async ({ ask }) => {
    assert.equal((await ask("/healthz")).status, 504);
  }));
