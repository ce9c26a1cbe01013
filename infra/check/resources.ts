/**
 * What a deployment would ask the clouds for: `node infra/check/resources.ts STAGE` runs sst.config.ts against SST's own
 * components with Pulumi's mocks in place of the clouds, and prints every resource as JSON. Options come from the
 * environment as in a real deployment. No account, no network, nothing is created.
 *
 * It is a process of its own: Pulumi's runtime and SST's components keep what they were told for as long as they live.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { build } from "esbuild";
import * as z from "zod/mini";
import { platform, root } from "./platform.ts";

export const resourceSchema = z.object({
  type: z.string(),
  name: z.string(),
  inputs: z.record(z.string(), z.unknown()),
  /** It stays where it is when the stack is removed. */
  retainOnDelete: z.boolean(),
  /** It is there already and was only looked at. */
  isRead: z.boolean(),
});
export type Resource = z.infer<typeof resourceSchema>;
/** `app`: what the stage's name decided; `outputs`: what the user is told. */
export const planSchema = z.object({
  app: z.record(z.string(), z.unknown()),
  outputs: z.record(z.string(), z.unknown()),
  resources: z.array(resourceSchema),
});
export type Plan = z.infer<typeof planSchema>;

/** The only key of an object whose inner value Pulumi keeps encrypted. */
export const secretKey = "[secret]";

/** Pulumi's signature of a secret on its wire (sdk/nodejs/runtime/rpc.ts: specialSigKey, specialSecretSig). */
const signatureKey = "4dabf18193072939515e22adb298388d";
const secretSignature = "1b47061264138c4ac30d75fd1eb44270";

const record = z.record(z.string(), z.unknown());
const asRecord = (value: unknown) => record.parse(value ?? {});

/** As JSON can hold it: secrets under their key, the files of an archive by their paths. */
async function shown(given: unknown): Promise<unknown> {
  const value = await given;
  if (Array.isArray(value)) return Promise.all(value.map(shown));
  if (typeof value !== "object" || value === null) return value;
  const entries = asRecord({ ...value });
  if (entries[signatureKey] === secretSignature) return { [secretKey]: await shown(entries.value) };
  const pairs = Object.entries(entries).map(async ([key, inner]) => [key, await shown(inner)] as const);
  return Object.fromEntries(await Promise.all(pairs));
}

/** What a cloud adds to a resource once it is made, as far as our code reads it. */
export function made(type: string, name: string, inputs: Record<string, unknown>): Record<string, unknown> {
  const physical = String(inputs.name ?? inputs.bucket ?? inputs.scriptName ?? name);
  const state: Record<string, unknown> = { ...inputs };
  const service = type.split(":")[1]?.split("/")[0] ?? type;
  state.arn = `arn:aws:${service}:eu-test-1:123456789012:${physical}`;
  if (type === "aws:s3/bucket:Bucket") Object.assign(state, { bucket: physical, arn: `arn:aws:s3:::${physical}` });
  if (type === "aws:apigatewayv2/api:Api") {
    const scheme = inputs.protocolType === "WEBSOCKET" ? "wss" : "https";
    state.apiEndpoint = `${scheme}://${name.toLowerCase()}.execute-api.eu-test-1.amazonaws.com`;
    state.executionArn = `arn:aws:execute-api:eu-test-1:123456789012:${name.toLowerCase()}`;
  }
  if (type === "aws:apigatewayv2/domainName:DomainName")
    state.domainNameConfiguration = {
      ...asRecord(inputs.domainNameConfiguration),
      targetDomainName: "d-1.execute-api.eu-test-1.amazonaws.com",
      hostedZoneId: "ZAWS",
    };
  if (type === "aws:acm/certificate:Certificate")
    state.domainValidationOptions = [
      { resourceRecordName: `_proof.${inputs.domainName}`, resourceRecordType: "CNAME", resourceRecordValue: "proof" },
    ];
  if (type === "aws:lambda/function:Function")
    state.invokeArn = `arn:aws:apigateway:eu-test-1:lambda:path/2015-03-31/functions/${state.arn}/invocations`;
  if (type === "aws:lambda/functionUrl:FunctionUrl") state.functionUrl = "https://url.lambda-url.eu-test-1.on.aws/";
  if (type === "aws:iam/accessKey:AccessKey") state.secret = "the-secret-of-the-key";
  if (type === "pulumi-nodejs:dynamic:Resource") Object.assign(state, { url: "edge.example.workers.dev", id: "zone" });
  return state;
}

/** Questions to a cloud while planning. */
export function answered(token: string, inputs: Record<string, unknown>): Record<string, unknown> {
  if (token === "aws:index/getCallerIdentity:getCallerIdentity") return { accountId: "123456789012" };
  if (token === "aws:index/getRegion:getRegion") return { region: "eu-test-1" };
  if (token === "aws:index/getPartition:getPartition") return { partition: "aws" };
  if (token === "aws:iam/getPolicyDocument:getPolicyDocument") return { json: policyDocument(inputs) };
  throw new Error(`the mocks know no answer to ${token}`);
}

const statements = z.array(
  z.object({
    effect: z.optional(z.string()),
    actions: z.optional(z.array(z.string())),
    resources: z.optional(z.array(z.string())),
    principals: z.optional(z.array(z.object({ type: z.string(), identifiers: z.array(z.string()) }))),
    conditions: z.optional(z.array(z.object({ test: z.string(), variable: z.string(), values: z.array(z.string()) }))),
  }),
);

/** As AWS's provider renders it. */
function policyDocument(inputs: Record<string, unknown>): string {
  return JSON.stringify({
    Version: "2012-10-17",
    Statement: statements.parse(inputs.statements).map(({ effect, actions, resources, principals, conditions }) => ({
      Effect: effect ?? "Allow",
      Action: actions,
      Resource: resources,
      Principal: principals && Object.fromEntries(principals.map(({ type, identifiers }) => [type, identifiers])),
      Condition:
        conditions &&
        Object.fromEntries(conditions.map(({ test, variable, values }) => [test, { [variable]: values }])),
    })),
  });
}

/**
 * The program `sst` and Cloudflare, as far as SST's components talk to them while planning: one bundles, and what it
 * bundled is put aside (infra/edge.ts); the other knows no script of ours yet.
 */
async function openPeers(): Promise<void> {
  const out = mkdtempSync(join(tmpdir(), "vmferry-infra-"));
  writeFileSync(join(out, "aside.mjs"), "throw new Error('this bundle is not deployed');");
  const server = createServer((request, response) => {
    request.resume().on("end", () => {
      response.setHeader("content-type", "application/json");
      const built = { result: { out, handler: "aside.mjs", errors: [], sourcemaps: [] } };
      response.end(JSON.stringify(request.url === "/rpc" ? built : { success: true, result: [], errors: [] }));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (typeof address !== "object" || address === null) throw new Error("the stand-in has no port");
  process.env.SST_SERVER = `http://127.0.0.1:${address.port}`;
  process.env.CLOUDFLARE_API_BASE_URL = `http://127.0.0.1:${address.port}/cloudflare`;
  process.env.CLOUDFLARE_DEFAULT_ACCOUNT_ID = "account-of-cloudflare";
  // They serve as long as anything else is going on.
  server.unref();
  process.once("exit", () => rmSync(out, { recursive: true }));
}

/** SST's components and Pulumi in one module, as SST itself would load them. */
async function loadSst() {
  // Beside SST's own packages, which it imports.
  const outfile = join(platform, `vmferry-check-${process.pid}.mjs`);
  await build({
    stdin: {
      contents: `
        export * as pulumi from "@pulumi/pulumi";
        export * as aws from "@pulumi/aws";
        export * as cloudflare from "@pulumi/cloudflare";
        export * as sst from "./src/components/index";
        export * as globals from "./src/shim/run.js";
        export { run } from "./src/auto/run";
      `,
      resolveDir: platform,
      loader: "ts",
    },
    outfile,
    bundle: true,
    platform: "node",
    format: "esm",
    packages: "external",
    define: { $util: "globalThis.$util" },
    logLevel: "error",
  });
  process.once("exit", () => rmSync(outfile));
  return asRecord({ ...(await import(pathToFileURL(outfile).href)) });
}

/** What SST tells its components about the app, before any of them is loaded. */
function introduce(stage: string): void {
  const paths = { root, work: join(root, ".sst"), platform, home: join(root, ".sst") };
  Object.assign(globalThis, {
    $app: { name: "vmferry", stage, removal: "remove", protect: false, providers: {} },
    $dev: false,
    $cli: { command: "deploy", rpc: "", paths, state: { version: {} } },
    $config: (config: unknown) => config,
  });
}

export const pulumiRuntime = z.object({
  setMocks: z.custom<Call>(isCall),
  runInPulumiStack: z.custom<Call>(isCall),
  registerStackTransformation: z.custom<Call>(isCall),
});
const functionsOf = z.object({ app: z.custom<Call>(isCall), run: z.custom<Call>(isCall) });
type Call = (...args: unknown[]) => unknown;
function isCall(value: unknown): boolean {
  return typeof value === "function";
}

/** Runs sst.config.ts for one stage. */
async function plan(stage: string): Promise<Plan> {
  introduce(stage);
  const { pulumi, aws, cloudflare, sst, globals, run } = await loadSst();
  Object.assign(globalThis, asRecord(globals), { aws, cloudflare, sst, $util: pulumi });
  const { runtime } = z.object({ runtime: pulumiRuntime }).parse(pulumi);
  const resources: Resource[] = [];
  const retained = new Set<string>();
  const mocks = {
    async newResource(args: { type: string; name: string; inputs: unknown; id?: string | undefined }) {
      // With an id it is one that is there already, and is only looked at.
      const isRead = args.id !== undefined && args.id !== "";
      const inputs = { ...asRecord(args.inputs), ...(isRead ? { name: args.id } : {}) };
      resources.push({
        type: args.type,
        name: args.name,
        inputs: asRecord(await shown(inputs)),
        retainOnDelete: retained.has(`${args.type} ${args.name}`),
        isRead,
      });
      return { id: isRead ? args.id : `${args.name}-id`, state: made(args.type, args.name, inputs) };
    },
    call: ({ token, inputs }: { token: string; inputs: unknown }) => answered(token, asRecord(inputs)),
  };
  await runtime.setMocks(mocks, "vmferry", stage, false);
  const config = functionsOf.parse((await import(pathToFileURL(join(root, "sst.config.ts")).href)).default);
  const app = asRecord(await config.app({ stage }));
  Object.assign(globalThis, { $app: { stage, ...app } });
  const program = z.custom<Call>(isCall).parse(run);
  const outputs = asRecord(
    await settled(
      await runtime.runInPulumiStack(() =>
        program(() => {
          // After SST's own, so that it sees what they have made of the options.
          runtime.registerStackTransformation(
            (args: { type: string; name: string; opts: { retainOnDelete?: boolean } }) => {
              if (args.opts.retainOnDelete === true) retained.add(`${args.type} ${args.name}`);
            },
          );
          return config.run();
        }),
      ),
    ),
  );
  const told: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(outputs)) told[name] = await settled(value);
  return { app, outputs: told, resources };
}

/** The value of an output of Pulumi; anything else is its own. */
export async function settled(value: unknown): Promise<unknown> {
  const isOutput = typeof value === "object" && value !== null && "promise" in value && isCall(value.promise);
  return isOutput
    ? z
        .object({ promise: z.custom<() => unknown>(isCall) })
        .parse(value)
        .promise()
    : value;
}

if (import.meta.main) {
  const [stage] = process.argv.slice(2);
  if (stage === undefined) throw new Error("usage: node infra/check/resources.ts STAGE");
  await openPeers();
  const planned = await plan(stage);
  // Resources are asked for as the values they wait for arrive: the plan is whole when nothing is left to happen.
  process.once("beforeExit", () => process.stdout.write(`${JSON.stringify(planned, null, 2)}\n`));
}
