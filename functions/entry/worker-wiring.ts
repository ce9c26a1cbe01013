/** Puts the ports together from a Worker's environment: DynamoDB, S3 (or the local face of it), Durable Objects. */
import { waitUntil } from "cloudflare:workers";
import { createApp } from "#functions/http/app";
import { heartbeatMs } from "#protocol/limits";
import { S3Bundles } from "../bundle/s3-bundles.ts";
import { createFace, type ObjectStore } from "../bundle/s3-face.ts";
import { chronicleSettleMs } from "../core/limits.ts";
import { type Afterwards, createRunners, type EvacuationRunner } from "../evacuation-runner.ts";
import { createMetricCounter, type MetricCounter } from "../metric-counter.ts";
import { type MetricStore, type Ports, paceOf } from "../ports.ts";
import { preflightMemory } from "../preflights.ts";
import { createReconciler, type Reconciler } from "../reconciler.ts";
import { createRules } from "../rule-fleet.ts";
import type { RuleRunner } from "../rule-runner.ts";
import type { Runner } from "../runner.ts";
import { DurableSockets } from "../socket/durable-sockets.ts";
import { DurableFeed, type FeedStub } from "../socket/feed.ts";
import type { HostSocketStub } from "../socket/host-socket.ts";
import { type ObjectNamespace, objectOf } from "../socket/object-namespace.ts";
import type { WebhookBellStub } from "../socket/webhook-bell.ts";
import { DynamoMetrics } from "../store/dynamo-metrics.ts";
import { createDynamoClient, DynamoTable } from "../store/dynamo-table.ts";
import { DynamoWebhooks } from "../store/dynamo-webhooks.ts";
import { RequestCounter } from "../store/request-counter.ts";
import { RequestGate } from "../store/request-gate.ts";
import { createTicketSigner } from "../ticket-signer.ts";
import { version } from "../version.ts";
import { createWebhooks, heard, type WebhookFace } from "../webhook-face.ts";
import { fetchPoster } from "../webhook-post.ts";
import { ruleStoresOf } from "./rule-stores.ts";
import { clock, ids, lineLog, storesOf } from "./runtime-ports.ts";
import { wholeFetch } from "./whole-fetch.ts";

/** The one object that delivers webhooks. */
export const bellName = "webhooks";

export interface WorkerEnv {
  HOST_SOCKET: ObjectNamespace<HostSocketStub>;
  MIGRATION_FEED: ObjectNamespace<FeedStub>;
  WEBHOOK_BELL: ObjectNamespace<WebhookBellStub>;
  /** Present locally: the face of S3 is served over it. */
  OBJECTS?: ObjectStore;
  TABLE: string;
  BUCKET: string;
  REGION: string;
  ACCESS_KEY_ID: string;
  SECRET_ACCESS_KEY: string;
  /** Absent: AWS itself. */
  DYNAMODB_ENDPOINT?: string;
  S3_ENDPOINT?: string;
  /** The keys of the local face; absent: the keys above. */
  S3_ACCESS_KEY_ID?: string;
  S3_SECRET_ACCESS_KEY?: string;
  ADMIN_TOKEN_SHA256?: string;
  /** The control key: an Ed25519 private key, PKCS#8 DER, base64. Hosts pin its public half: it must never change. */
  TICKET_KEY: string;
  /** The address that clients use, where the request does not say it (behind a proxy that ends TLS). */
  PUBLIC_URL?: string;
  /** `private`: webhooks may also be posted into private networks. */
  WEBHOOK_TARGETS?: string;
}

export interface Wiring {
  ports: Ports;
  runner: Runner;
  evacuations: EvacuationRunner;
  ruleRunner: RuleRunner;
  webhooks: WebhookFace;
  reconciler: Reconciler;
  metrics: MetricStore;
  metricCounter: MetricCounter;
  app: { fetch(request: Request): Response | Promise<Response> };
  face: ((request: Request) => Promise<Response>) | null;
}

/** Of this isolate: the objects and the entry count together. */
const counter = new RequestCounter();

/** As well: they stand in one line. */
const gate = new RequestGate({
  nowMs: () => Date.now(),
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
});

/** Of this isolate as well: what the timer asked, an object that hears of a migration's end need not ask again. */
const memory = preflightMemory();

/** The runtime keeps a request, a timer's call or an object alive for it after the answer. */
const afterAnswer: Afterwards = async (work) => waitUntil(work());

/** Of the six connections that a Worker's call has (Cloudflare: Workers' limits), two are left to the store. */
const postsAtOnce = 4;

const log = lineLog((line) => console.log(line));

const wirings = new WeakMap<WorkerEnv, Wiring>();

/** Once per environment. */
export function wire(env: WorkerEnv): Wiring {
  const known = wirings.get(env);
  if (known !== undefined) return known;
  const credentials = { accessKeyId: env.ACCESS_KEY_ID, secretAccessKey: env.SECRET_ACCESS_KEY };
  const s3Keys = {
    accessKeyId: env.S3_ACCESS_KEY_ID ?? env.ACCESS_KEY_ID,
    secretAccessKey: env.S3_SECRET_ACCESS_KEY ?? env.SECRET_ACCESS_KEY,
  };
  const client = createDynamoClient({
    region: env.REGION,
    endpoint: env.DYNAMODB_ENDPOINT,
    credentials,
    counter,
    // The embedded store is one process; AWS's own is not.
    gate: env.DYNAMODB_ENDPOINT === undefined ? undefined : gate,
    // The SDK does not know workerd's words for a connection that was lost either ("Network connection lost.") and would not try again.
    fetch: wholeFetch,
  });
  const table = new DynamoTable(client, env.TABLE);
  const face =
    env.OBJECTS === undefined
      ? null
      : createFace({
          objects: env.OBJECTS,
          bucket: env.BUCKET,
          region: env.REGION,
          keys: s3Keys,
          nowMs: () => Date.now(),
          counter,
        });
  const bundles = new S3Bundles({
    bucket: env.BUCKET,
    region: env.REGION,
    credentials: s3Keys,
    at:
      env.S3_ENDPOINT !== undefined
        ? { kind: "endpoint", url: env.S3_ENDPOINT }
        : face !== null
          ? { kind: "face", fetch: face }
          : { kind: "aws" },
    // The face counts for itself, and sees what the shims send as well.
    counter: face === null ? counter : undefined,
  });
  /** Asks for a look at the webhooks; nobody waits for it, and one that is not heard is made up for by the timer. */
  const rung = async (delayMs: number) => {
    try {
      await objectOf(env.WEBHOOK_BELL, bellName).ring(delayMs);
    } catch (error) {
      log.write("debug", "webhooks wait for the minute's timer", { error: String(error).slice(0, 200) });
    }
  };
  const ring = (delayMs: number) => waitUntil(rung(delayMs));
  const stores = storesOf(table);
  const ports: Ports = {
    clock,
    ids,
    log,
    bundles,
    ...stores,
    chronicle: heard(stores.chronicle, () => ring(chronicleSettleMs)),
    sockets: new DurableSockets(env.HOST_SOCKET, log),
    feed: new DurableFeed(env.MIGRATION_FEED),
    tickets: createTicketSigner(env.TICKET_KEY ?? ""),
    pace: paceOf(heartbeatMs),
  };
  const { runner, evacuations } = createRunners(ports, memory, afterAnswer);
  const rules = createRules(ports, ruleStoresOf(table), evacuations);
  const metrics = new DynamoMetrics(table);
  const metricCounter = createMetricCounter({ ...ports, metrics });
  const webhooks = createWebhooks(ports, new DynamoWebhooks(table), {
    post: fetchPoster(),
    targets: env.WEBHOOK_TARGETS === "private" ? "private" : "public",
    postsAtOnce,
    random: Math.random,
    soon: () => ring(0),
  });
  const app = createApp({
    ports,
    runner,
    evacuations,
    rules,
    webhooks,
    adminTokenSha256: env.ADMIN_TOKEN_SHA256 ?? null,
    publicUrl: env.PUBLIC_URL,
    metrics: { counter: metricCounter, version },
    storeMetrics: (isolate) => counter.text(isolate),
  });
  const wiring = {
    ports,
    runner,
    evacuations,
    ruleRunner: rules.runner,
    webhooks,
    reconciler: createReconciler(ports, metrics),
    metrics,
    metricCounter,
    face,
    app: { fetch: (request: Request) => app.fetch(request) },
  };
  wirings.set(env, wiring);
  return wiring;
}
