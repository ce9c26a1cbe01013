/**
 * Puts the ports together from a Lambda's environment: DynamoDB, S3, API Gateway's callbacks. Once per process, so a warm function begins at
 * once; a cold one reads nothing first. What the functions know lies in the store, so it does not matter which process is asked.
 *
 * The credentials are those that Lambda puts into the environment, given by hand: they are fixed for the life of the process, and the SDK's
 * search for them is not in the bundle. What they presign ends with their session; grants live for five minutes, and Lambda renews a process
 * long before its session ends.
 */
import * as z from "zod/mini";
import type { AppDeps } from "#functions/http/deps";
import { S3Bundles } from "../bundle/s3-bundles.ts";
import type { WebhookTargets } from "../core/webhook-address.ts";
import { createRunners, type EvacuationRunner } from "../evacuation-runner.ts";
import { type LinkStore, type Ports, paceOf } from "../ports.ts";
import { preflightMemory } from "../preflights.ts";
import type { Runner } from "../runner.ts";
import { ApiGatewaySockets } from "../socket/api-gateway.ts";
import type { ApiGatewayCallbacks } from "../socket/api-gateway-callbacks.ts";
import { PolledFeed } from "../socket/polled-feed.ts";
import { DynamoLinks } from "../store/dynamo-links.ts";
import { createDynamoClient, DynamoTable } from "../store/dynamo-table.ts";
import { RequestCounter } from "../store/request-counter.ts";
import { createTicketSigner } from "../ticket-signer.ts";
import { clock, ids, lineLog, storesOf } from "./runtime-ports.ts";
import { wholeFetch } from "./whole-fetch.ts";

/** A heartbeat is an invocation and a write; the timer looks once a minute, so a host is missed within two. */
const heartbeatMsDefault = 30_000;
/** API Gateway cuts a websocket after two hours (AWS: websocket quotas). */
const connectionLifeMsDefault = 2 * 60 * 60_000;
/** A progress is a message, an invocation and a write; people look at a bar every few seconds. */
const progressMsDefault = 5_000;
/** A watcher looks into the store so often: two reads each time, which a person's second is worth. */
const feedMs = 1_000;

const text = z.string().check(z.minLength(1));
const address = (protocol: string) => z.string().check(z.regex(new RegExp(`^${protocol}://[^\\s?#]+$`)));
const milliseconds = (standard: number) =>
  z._default(
    z.pipe(
      z.string().check(z.regex(/^[1-9]\d{0,8}$/)),
      z.transform((value: string) => Number(value)),
    ),
    standard,
  );

const envSchema = z.object({
  TABLE: text,
  BUCKET: text,
  REGION: text,
  AWS_ACCESS_KEY_ID: text,
  AWS_SECRET_ACCESS_KEY: text,
  AWS_SESSION_TOKEN: z.optional(text),
  /** Absent: AWS itself. */
  DYNAMODB_ENDPOINT: z.optional(address("https?")),
  S3_ENDPOINT: z.optional(address("https?")),
  /** Where shims connect. */
  SOCKET_URL: address("wss?"),
  /** Where their sockets are written to: https://{api}.execute-api.{region}.amazonaws.com/{stage}. */
  SOCKET_CALLBACK_URL: address("https?"),
  ADMIN_TOKEN_SHA256: z.optional(z.string().check(z.regex(/^[0-9a-f]{64}$/))),
  /** The control key: an Ed25519 private key, PKCS#8 DER, base64. Hosts pin its public half: it must never change. */
  TICKET_KEY: text,
  /** The address that clients use, where the request does not say it. */
  PUBLIC_URL: z.optional(address("https?")),
  /** `private`: webhooks may also be posted into private networks, by plain http to their literal addresses. */
  WEBHOOK_TARGETS: z._default(z.enum(["public", "private"]), "public"),
  HEARTBEAT_MS: milliseconds(heartbeatMsDefault),
  CONNECTION_LIFE_MS: milliseconds(connectionLifeMsDefault),
  PROGRESS_MS: milliseconds(progressMsDefault),
});
export type AwsEnv = z.infer<typeof envSchema>;
type Environment = Readonly<Record<string, string | undefined>>;

/** Reads the environment; an empty value counts as none. Throws an error that names every variable that is missing or unusable, and quotes none (I9). */
export function awsEnvOf(environment: Environment): AwsEnv {
  const given = Object.fromEntries(
    Object.entries(environment).filter(([, value]) => value !== undefined && value !== ""),
  );
  const result = envSchema.safeParse({ ...given, REGION: given.REGION ?? given.AWS_REGION });
  if (result.success) return result.data;
  const names = [...new Set(result.error.issues.map(({ path }) => String(path[0])))];
  const known = new Set(Object.keys(given));
  const words = names.map((name) => `${name} is ${known.has(name) ? "not of the form it must have" : "missing"}`);
  throw new Error(
    `The function's environment cannot be used: ${words.join(", ")}. Deploy it by sst.config.ts, which sets them all.`,
  );
}

export interface AwsWiring {
  ports: Ports;
  runner: Runner;
  evacuations: EvacuationRunner;
  /** The one table, for what only some of the functions have in their bundles (aws-rules.ts). */
  table: DynamoTable;
  links: LinkStore;
  callbacks: ApiGatewayCallbacks;
  /** Where shims connect. */
  socketUrl: string;
  /** How long the carrier lets a connection live. */
  lifeMs: number;
  progressMs: number;
  /** Where webhooks may lead. */
  webhookTargets: WebhookTargets;
  /** For the HTTP face, which only one of the functions has in its bundle; it adds the rules and the metrics. */
  deps: Omit<AppDeps, "rules" | "metrics">;
}

/** Lambda gives a process one invocation at a time, so the log can say which without being told. */
let invocation: string | undefined;

/** Names the invocation that begins, by the id that Lambda's own lines in the log carry. */
export function invoked(awsRequestId: string | undefined): void {
  invocation = awsRequestId;
}

/** Not by the console: Lambda puts a head of its own before what that prints, and the line is JSON no more. */
const log = lineLog(
  (line) => process.stdout.write(`${line}\n`),
  () => (invocation === undefined ? {} : { invocation }),
);

const wirings = new WeakMap<Environment, AwsWiring>();

/** Once per environment. Throws as `awsEnvOf` does. */
export function wireAws(environment: Environment): AwsWiring {
  const known = wirings.get(environment);
  if (known !== undefined) return known;
  const wiring = wired(awsEnvOf(environment));
  wirings.set(environment, wiring);
  return wiring;
}

function wired(env: AwsEnv): AwsWiring {
  const { REGION: region } = env;
  const counter = new RequestCounter();
  const credentials = {
    accessKeyId: env.AWS_ACCESS_KEY_ID,
    secretAccessKey: env.AWS_SECRET_ACCESS_KEY,
    ...(env.AWS_SESSION_TOKEN === undefined ? {} : { sessionToken: env.AWS_SESSION_TOKEN }),
  };
  const client = createDynamoClient({
    region,
    endpoint: env.DYNAMODB_ENDPOINT,
    credentials,
    counter,
    fetch: wholeFetch,
  });
  const table = new DynamoTable(client, env.TABLE);
  const stores = storesOf(table);
  const links = new DynamoLinks(table, clock);
  const sockets = new ApiGatewaySockets({
    links,
    ids,
    clock,
    log,
    region,
    credentials,
    callbackUrl: env.SOCKET_CALLBACK_URL,
  });
  const ports: Ports = {
    clock,
    ids,
    log,
    ...stores,
    bundles: new S3Bundles({
      bucket: env.BUCKET,
      region,
      credentials,
      at: env.S3_ENDPOINT === undefined ? { kind: "aws" } : { kind: "endpoint", url: env.S3_ENDPOINT },
      counter,
      fetch: wholeFetch,
    }),
    sockets,
    feed: new PolledFeed({ ...stores, sockets, everyMs: feedMs }),
    tickets: createTicketSigner(env.TICKET_KEY),
    pace: paceOf(env.HEARTBEAT_MS),
  };
  const { runner, evacuations } = createRunners(ports, preflightMemory());
  return {
    ports,
    runner,
    evacuations,
    table,
    links,
    callbacks: sockets.callbacks,
    socketUrl: env.SOCKET_URL,
    lifeMs: env.CONNECTION_LIFE_MS,
    progressMs: env.PROGRESS_MS,
    webhookTargets: env.WEBHOOK_TARGETS,
    deps: {
      ports,
      runner,
      evacuations,
      adminTokenSha256: env.ADMIN_TOKEN_SHA256 ?? null,
      publicUrl: env.PUBLIC_URL,
      storeMetrics: (isolate) => counter.text(isolate),
      door: { socket: env.SOCKET_URL, hello: "connect" },
    },
  };
}
