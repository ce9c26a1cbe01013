/** What the bundles' settings leave of the AWS SDK still reads its services' errors, and signs as the whole SDK does. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer as createHttpServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { build } from "esbuild";
import * as z from "zod/mini";
import { S3Bundles } from "#functions/bundle/s3-bundles";
import { LambdaFunction } from "#lab/lambda-process";
import { lambdaBuild } from "../../infra/lambda-build.ts";

const root = join(import.meta.dirname, "../..");
const credentials = { accessKeyId: "local", secretAccessKey: "local" };
const region = "eu-central-1";

/** A file of ours as a probe names it. */
const own = (path: string) => JSON.stringify(join(root, "functions", path));

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "vmferry-lambda-sdk-"));
});
after(() => rm(folder, { recursive: true }));

describe("the SDK as it is bundled", () => {
  /** A function of a few lines, bundled by the settings of the real ones. */
  async function probe<T>(contents: string, schema: z.ZodMiniType<T>, events: readonly object[]): Promise<T[]> {
    const { entryPoints: _, ...settings } = lambdaBuild(root);
    const file = join(folder, `probe-${createHash("sha256").update(contents).digest("hex").slice(0, 8)}.mjs`);
    await build({ ...settings, stdin: { contents, resolveDir: root, loader: "ts" }, outfile: file });
    const lambda = new LambdaFunction({ file, env: {}, mode: "warm" });
    try {
      const results: T[] = [];
      for (const event of events) results.push(schema.parse(await lambda.invoke(event)));
      return results;
    } finally {
      await lambda.close();
    }
  }

  test("tells a socket that is gone from one that is busy, refused or cut", async () => {
    const asked = new Map<string, number>();
    const server = createHttpServer((request, reply) => {
      const id =
        decodeURIComponent(request.url ?? "")
          .split("/")
          .at(-1) ?? "";
      const times = (asked.get(id) ?? 0) + 1;
      asked.set(id, times);
      const refuse = (status: number, errorType: string) =>
        reply.writeHead(status, { "x-amzn-errortype": errorType }).end(JSON.stringify({ message: errorType }));
      if (id === "gone") refuse(410, "GoneException");
      else if (id === "large") refuse(413, "PayloadTooLargeException");
      else if (id === "busy=" && times < 3) refuse(429, "LimitExceededException");
      else if (id === "cut" && times < 2) request.socket.end();
      else reply.writeHead(200).end();
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const address = server.address();
    assert.ok(typeof address === "object" && address !== null);
    try {
      const callbackUrl = `http://127.0.0.1:${address.port}/prod`;
      const contents = `
        import { ApiGatewayCallbacks } from ${own("socket/api-gateway-callbacks.ts")};
        export async function handler({ callbackUrl, id }: { callbackUrl: string; id: string }) {
          const credentials = ${JSON.stringify(credentials)};
          const log = { write() {} };
          const sleep = async () => {};
          const callbacks = new ApiGatewayCallbacks({ callbackUrl, region: "${region}", credentials, log, sleep });
          return callbacks.post(id, "text");
        }`;
      const ids = ["well", "gone", "large", "busy=", "cut"];
      const posted = await probe(
        contents,
        z.string(),
        ids.map((id) => ({ callbackUrl, id })),
      );
      assert.deepEqual(posted, ["sent", "gone", "failed", "sent", "sent"]);
      assert.deepEqual([asked.get("gone"), asked.get("large"), asked.get("busy="), asked.get("cut")], [1, 1, 3, 2]);
    } finally {
      server.close();
      server.closeAllConnections();
    }
  });

  test("signs for the real S3 what the whole SDK signs", async () => {
    const options = {
      bucket: "bundles",
      region,
      credentials: { ...credentials, sessionToken: "session" },
      at: { kind: "aws" as const },
    };
    const want = { key: `bundles/${"a".repeat(64)}`, publicUrl: "" };
    const contents = `
      import { S3Bundles } from ${own("bundle/s3-bundles.ts")};
      export const handler = () => new S3Bundles(${JSON.stringify(options)}).grantGet(${JSON.stringify(want)});`;
    const [bundled] = await probe(contents, z.object({ url: z.string() }), [{}]);
    const whole = await new S3Bundles(options).grantGet(want);
    const shape = (text: string) => {
      const url = new URL(text);
      // What holds the time, and the version of the clients' builds.
      for (const name of ["X-Amz-Date", "X-Amz-Signature", "X-Amz-Credential"]) {
        assert.ok(url.searchParams.has(name), name);
        url.searchParams.delete(name);
      }
      url.searchParams.sort();
      return url.href;
    };
    assert.equal(shape(bundled?.url ?? ""), shape(whole.url));
    assert.match(whole.url, /X-Amz-Security-Token=session/);
  });
});
