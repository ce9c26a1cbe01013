/** `/v1/events` by the bundle as Lambda runs it behind API Gateway, which hands an answer over only when it is whole: long polls in processes that keep nothing. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { chronicleEventSchema } from "#core/chronicle-event";
import { LambdaHttpServer } from "#lab/lambda-http-server";
import { LambdaFunction } from "#lab/lambda-process";
import { run } from "#test/fake/memory-terminal";
import { type LambdaStage, openLambdaStage } from "./lambda-stage.ts";

const adminToken = "events-admin-token";
const _credentials = { accessKeyId: "local", secretAccessKey: "local" };
const _region = "eu-central-1";

let stage: LambdaStage;
let lambda: LambdaFunction;
let server: LambdaHttpServer;

before(async () => {
  stage = await openLambdaStage(adminToken);
  lambda = new LambdaFunction({
    file: stage.fileOf("lambda-http"),
    env: stage.env,
    mode: "warm",
    onLine: () => undefined,
  });
  server = new LambdaHttpServer({ lambda });
  await server.start();
});
after(async () => {
  await server?.close();
  await lambda?.close();
  await stage?.close();
});

test("a follower hears what is asked for while it waits and between two polls, each line once", async () => {
  const stop = new AbortController();
  let out = "";
  const following = run(["events", "--follow", "--json"], {
    env: { VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken },
    signal: stop.signal,
    pace: { retryMsMax: 200 },
    onOut: (text) => {
      out = text;
    },
  });
  const told = () =>
    out
      .split("\n")
      .filter(Boolean)
      .map((line) => chronicleEventSchema.parse(JSON.parse(line)));
  const ask = (path: string) =>
    fetch(`${server.url}${path}`, {
      method: "POST",
      headers: { authorization: `Bearer ${adminToken}`, "content-type": "application/json" },
      body: "{}",
    });
  // Which of them the first poll hears is a matter of when it began: one is asked for until it has.
  for (let tries = 0; told().length === 0; tries += 1) {
    assert.ok(tries < 60);
    await ask("/v1/join-tokens");
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  const already = told().length;
  const first = await fetch(`${server.url}/v1/events?limit=1`, { headers: { authorization: `Bearer ${adminToken}` } });
  assert.equal(first.status, 200);
  for (const _ of [1, 2, 3]) await ask("/v1/join-tokens");
  for (let tries = 0; told().length < already + 3; tries += 1) {
    assert.ok(tries < 300, out);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  stop.abort();
  await following;
  const ids = told().map(({ id }) => id);
  assert.equal(new Set(ids).size, ids.length);
});
