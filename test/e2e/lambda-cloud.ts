/**
 * The control plane as it is deployed to AWS, on this machine, as a program: the bundles for Lambda, each function in processes of its own, between
 * emulations of API Gateway's two kinds, over an embedded DynamoDB and the S3 face. Nothing survives an invocation but what a warm process keeps; with
 * --cold not even that.
 *
 * node test/e2e/lambda-cloud.ts --listen PORT --data DIR [--cold] [--life MS] [--heartbeat MS] [--timer MS]
 *
 * Its data folder is laid out like that of `vmferry up`, with the address of the bucket in `s3-endpoint` and what happened in `counts.json`.
 */

import { mkdir, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { build } from "esbuild";
import { createFace } from "#functions/bundle/s3-face";
import { openDynalite } from "#functions/cli/up-dynalite";
import { openSecrets, writeClientConfig } from "#functions/cli/up-secrets";
import { createDynamoClient, createTable } from "#functions/store/dynamo-table";
import { ApiGateway } from "#lab/api-gateway";
import { LambdaHttpServer } from "#lab/lambda-http-server";
import { LambdaFunction } from "#lab/lambda-process";
import { MemoryObjects } from "#test/fake/memory-objects";
import { MemoryServer } from "#test/fake/memory-server";
import { lambdaBuild, lambdaNames } from "../../infra/lambda-build.ts";
import { MeteredDynamo } from "./metered-dynamo.ts";

const { values } = parseArgs({
  options: {
    listen: { type: "string" },
    data: { type: "string" },
    cold: { type: "boolean" },
    life: { type: "string" },
    heartbeat: { type: "string" },
    timer: { type: "string" },
  },
});
const port = Number(values.listen);
const folder = values.data ?? "";
const lifeMs = Number(values.life ?? 2 * 60 * 60_000);
/** EventBridge Scheduler's finest. */
const timerMs = Number(values.timer ?? 60_000);
/** A clock that a test drives (test/lab/shifted-clock.ts) is the functions' clock as well. */
const clockFile = process.env.VMFERRY_LAB_CLOCK;
const clockEnv: Record<string, string> =
  clockFile === undefined
    ? {}
    : {
        VMFERRY_LAB_CLOCK: clockFile,
        NODE_OPTIONS: `--import=${join(import.meta.dirname, "../lab/shifted-clock.ts")}`,
      };
const bucket = "vmferry";
const region = "us-east-1";

const secrets = await openSecrets(folder);
await mkdir(join(folder, "dynamodb"), { recursive: true });
const dynalite = await openDynalite(join(folder, "dynamodb"));
const metered = await MeteredDynamo.start(dynalite.endpoint);
const credentials = { accessKeyId: "local", secretAccessKey: "local" };
await createTable(createDynamoClient({ region, endpoint: dynalite.endpoint, credentials }), "vmferry");

const s3Requests: Record<string, number> = {};
const face = createFace({
  objects: new MemoryObjects(),
  bucket,
  region,
  keys: secrets.s3,
  nowMs: () => Date.now(),
  counter: {
    add: (_store, operation) => {
      s3Requests[operation] = (s3Requests[operation] ?? 0) + 1;
    },
  },
});
const bucketServer = new MemoryServer(face);
await bucketServer.start();
const s3Endpoint = `${bucketServer.url}/s3`;
await writeFile(join(folder, "s3-endpoint"), s3Endpoint);

const outdir = join(folder, "lambdas");
await build({ ...lambdaBuild(join(import.meta.dirname, "../..")), outdir });

const functions = new Map<string, LambdaFunction>();
const invoked = (name: (typeof lambdaNames)[number]) => {
  const found = functions.get(name);
  if (found === undefined) throw new Error(`${name} is not deployed yet`);
  return found;
};
const gateway = await ApiGateway.start({ invoke: (event) => invoked("lambda-socket").invoke(event), lifeMs });
for (const name of lambdaNames)
  functions.set(
    name,
    new LambdaFunction({
      file: join(outdir, `${name}.mjs`),
      mode: values.cold === true ? "cold" : "warm",
      env: {
        TABLE: "vmferry",
        BUCKET: bucket,
        AWS_REGION: region,
        // One pair of keys for all, as a role's are; the table takes any.
        AWS_ACCESS_KEY_ID: secrets.s3.accessKeyId,
        AWS_SECRET_ACCESS_KEY: secrets.s3.secretAccessKey,
        DYNAMODB_ENDPOINT: metered.endpoint,
        S3_ENDPOINT: s3Endpoint,
        SOCKET_URL: gateway.url,
        SOCKET_CALLBACK_URL: gateway.callbackUrl,
        ADMIN_TOKEN_SHA256: secrets.adminTokenSha256,
        TICKET_KEY: secrets.ticketKey,
        CONNECTION_LIFE_MS: String(lifeMs),
        ...(values.heartbeat === undefined ? {} : { HEARTBEAT_MS: values.heartbeat }),
        ...clockEnv,
      },
      onLine: (line) => console.error(`${name}: ${line}`),
    }),
  );
const http = new LambdaHttpServer({ lambda: invoked("lambda-http"), port });
await http.start();
const timer = setInterval(() => {
  invoked("lambda-timer")
    .invoke({})
    .catch((error: unknown) => console.error(`lambda-timer: ${String(error)}`));
}, timerMs);

/** What a bill would be made of, at any time: GET / on a port of its own. */
const counts = () => ({
  dynamodb: metered.counts,
  s3: s3Requests,
  sockets: gateway.counts,
  functions: Object.fromEntries(
    [...functions].map(([name, { invocations, starts, busyMs }]) => [name, { invocations, starts, busyMs }]),
  ),
});
const meter = createServer((_request: IncomingMessage, reply: ServerResponse) => {
  reply.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(counts()));
});
await new Promise<void>((resolve) => meter.listen(0, "127.0.0.1", resolve));
const meterAddress = meter.address();
if (meterAddress !== null && typeof meterAddress !== "string")
  await writeFile(join(folder, "meter"), `http://127.0.0.1:${meterAddress.port}/`);

await writeClientConfig(process.env.VMFERRY_CONFIG ?? join(folder, "config.json"), {
  url: http.url,
  token: secrets.adminToken,
});

const ended = Promise.withResolvers<void>();
for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => ended.resolve());
console.log(`vmferry: ready on ${http.url}`);
await ended.promise;
clearInterval(timer);
meter.close();
await http.close();
await gateway.stop();
await Promise.all([...functions.values()].map((each) => each.close()));
await bucketServer.stop();
await metered.stop();
await dynalite.close();
process.exit(0);
