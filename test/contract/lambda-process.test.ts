/** The runner of Lambdas is itself as strict as Lambda: processes, memory, failures, time. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { LambdaError, LambdaFunction, type LambdaOptions } from "#lab/lambda-process";

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "vmferry-lambda-process-"));
});
after(() => rm(folder, { recursive: true }));

describe("the runner of Lambdas", () => {
  async function run(body: string, more: Partial<LambdaOptions>, use: (lambda: LambdaFunction) => Promise<void>) {
    const file = join(folder, `own-${createHash("sha256").update(body).digest("hex").slice(0, 8)}.mjs`);
    await writeFile(file, body);
    const lambda = new LambdaFunction({ file, env: {}, mode: "warm", ...more });
    try {
      await use(lambda);
    } finally {
      await lambda.close();
    }
    assert.deepEqual(lambda.pids, []);
  }
  const failsAs = (errorType: string) => (error: unknown) =>
    error instanceof LambdaError && error.errorType === errorType;

  test("keeps memory in a warm process, and none in cold ones", async () => {
    const counting = "let count = 0; export const handler = async () => (count += 1);";
    await run(counting, {}, async (lambda) => {
      assert.deepEqual([await lambda.invoke({}), await lambda.invoke({})], [1, 2]);
    });
    await run(counting, { mode: "cold" }, async (lambda) => {
      assert.deepEqual([await lambda.invoke({}), await lambda.invoke({})], [1, 1]);
      assert.equal(lambda.starts, 2);
    });
  });

  test("tells what was thrown, a crash, a handler that is missing, and a function that takes too long", async () => {
    await run("export const handler = async () => { throw new TypeError('no'); };", {}, async (lambda) => {
      await assert.rejects(lambda.invoke({}), failsAs("TypeError"));
      await assert.rejects(lambda.invoke({}), failsAs("TypeError"));
      assert.equal(lambda.starts, 1);
    });
    await run("export const handler = async () => process.exit(3);", {}, (lambda) =>
      assert.rejects(lambda.invoke({}), failsAs("Runtime.ExitError")),
    );
    await run("export const other = 1;", {}, (lambda) => assert.rejects(lambda.invoke({}), /exports no function/));
    await run("export const handler = () => new Promise((r) => setTimeout(r, 60_000));", { timeoutMs: 300 }, (lambda) =>
      assert.rejects(lambda.invoke({}), failsAs("Sandbox.Timedout")),
    );
  });
});
