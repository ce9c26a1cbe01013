/**
 * A small fleet in memory behind the real app and the real runner: stores, a bucket, sockets whose shims are scripted, a
 * feed, a clock that only tests move. Every answer that passes through `ask` is held against the OpenAPI's own source:
 * undocumented statuses, codes or keys fail the test that saw them.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createRunners } from "#functions/evacuation-runner";
import { createApp } from "#functions/http/app";
import { createMetricCounter } from "#functions/metric-counter";
import { type FeedEvent, type HostRecord, type Ports, paceOf } from "#functions/ports";
import { preflightMemory } from "#functions/preflights";
import { createRules } from "#functions/rule-fleet";
import { createWebhooks } from "#functions/webhook-face";
import type { WebhookPost } from "#functions/webhook-post";
import type { Command, ReportBody } from "#protocol/command";
import type { FaultBody, Finding } from "#protocol/fault";
import { heartbeatMs } from "#protocol/limits";
import {
  type Answer,
  type DownMessage,
  type HostFacts,
  type InventoryDomain,
  type Progress,
  protocolFeatures,
  type Query,
} from "#protocol/message";
import { controlSigner } from "#test/fake/control-key";
import { MemoryChronicle, positionsBy } from "#test/fake/memory-chronicle";
import { documented } from "#test/fake/memory-document";
import { MemoryMetrics } from "#test/fake/memory-metrics";
import { MemoryDedup, MemoryRules } from "#test/fake/memory-rules";
import { MemoryShutdowns } from "#test/fake/memory-shutdowns";
import {
  MemoryBundleTasks,
  MemoryEvacuations,
  MemoryHosts,
  MemoryMigrations,
  MemoryTokens,
} from "#test/fake/memory-store";
import { MemoryWebhooks } from "#test/fake/memory-webhooks";
import { bundleRef, successes } from "#test/fake/migration";

export const adminToken = "test-admin-token";
export const webUuid = "11111111-2222-4333-8444-555555555555";
const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");

export const cookieBlob = {
  in: "inline" as const,
  base64: Buffer.from("cookie").toString("base64"),
  sha256: sha256("cookie"),
  bytes: 6,
};

export const hostId = (index: number) => `h_01JD00000000000000000000${String(index).padStart(2, "0")}`;

export const factsOf = (index: number): HostFacts => ({
  shimVersion: "0.1.0",
  nodeVersion: "24.21.0",
  migrationAddress: null,
  libvirt: {
    reachable: true,
    hostUuid: `00000000-0000-4000-8000-0000000000${String(index).padStart(2, "0")}`,
    hostname: `host${index}`,
    uri: "qemu:///system",
    libvirtVersion: "9.0.0",
    hypervisorVersion: "7.2.22",
    arch: "x86_64",
    cpus: 8,
    memoryKiB: 16_000_000,
    freeMemoryKiB: 8_000_000,
    features: [],
  },
});

export const domainNamed = (name: string, fields: Partial<InventoryDomain> = {}): InventoryDomain => ({
  uuid: webUuid,
  name,
  state: "running",
  persistent: true,
  autostart: false,
  memoryKiB: 1_048_576,
  vcpus: 2,
  snapshots: 5,
  checkpoints: 0,
  labels: {},
  ...fields,
});

/** The first success of a kind, with payloads whose digests are true. `relayed`: Perform returned and the shims did not reach each other. */
export function reportBody(kind: Command["kind"], relayed = false): ReportBody {
  const body = Object.values(successes(kind))[0];
  assert.ok(body);
  if (body.kind === "inspectSource") return { ...body, facts: cookieBlob };
  if (body.kind === "begin") return { ...body, cookie: cookieBlob, xml: cookieBlob };
  if (body.kind === "perform" && relayed) return { ...body, cookie: cookieBlob, ended: null };
  if (body.kind === "prepare" || body.kind === "perform" || body.kind === "finish")
    return { ...body, cookie: cookieBlob };
  return body;
}

/** A destination that is asked to abort has started nothing; a source confirms by the receipt that it was given. */
function answerTo(command: Command, relayed: boolean): ReportBody {
  const body = reportBody(command.kind, relayed);
  if (command.kind === "finish" && command.cancelled) return successes("finish").destroyed ?? body;
  return command.kind === "confirm" && body.kind === "confirm" ? { ...body, receipt: command.receipt } : body;
}

class MemoryFeed {
  readonly #listeners = new Map<string, Set<(event: FeedEvent) => void>>();

  async publish(topic: string, event: FeedEvent): Promise<void> {
    for (const listener of this.#listeners.get(topic) ?? []) listener(event);
  }

  async *subscribe(topic: string, signal: AbortSignal): AsyncGenerator<FeedEvent> {
    const queue: FeedEvent[] = [];
    let wake = () => {};
    const listener = (event: FeedEvent) => {
      queue.push(event);
      wake();
    };
    const listeners = this.#listeners.get(topic) ?? new Set();
    this.#listeners.set(topic, listeners.add(listener));
    signal.addEventListener("abort", () => wake(), { once: true });
    try {
      while (!signal.aborted) {
        const event = queue.shift();
        if (event !== undefined) yield event;
        else await new Promise<void>((resolve) => (wake = resolve));
      }
    } finally {
      listeners.delete(listener);
    }
  }

  /** How many listen to a topic now. */
  listeners(topic: string): number {
    return this.#listeners.get(topic)?.size ?? 0;
  }
}

export interface Asked {
  method?: string;
  body?: unknown;
  /** Sent as it is instead of `body`. */
  raw?: string;
  headers?: Record<string, string>;
  /** Null: none is sent. */
  token?: string | null;
}

export async function memoryFleet(options: { eventsIdleMs?: number } = {}) {
  let nowMs = Date.parse("2026-11-22T10:00:00.000Z");
  let serial = 0;
  const clock = { now: () => new Date(nowMs).toISOString() };
  const feed = new MemoryFeed();
  const script = {
    pushed: [] as { hostId: string; message: DownMessage }[],
    dropped: [] as string[],
    answers: new Map<string, Answer | null>(),
    queries: [] as { hostId: string; query: Query }[],
    progress: null as Progress | null,
    bucket: new Map<string, number>([[bundleRef.key, bundleRef.bytes]]),
    logged: [] as string[],
    storeMetrics: "",
    /** What webhooks' receivers were sent, and the status that they answer. */
    posted: [] as WebhookPost[],
    receiverStatus: 204,
    /** The shims do not reach each other: Finish and Confirm are relayed as commands. */
    relayed: false,
  };
  const answers: Ports["sockets"] = {
    async push(id, message) {
      script.pushed.push({ hostId: id, message });
      return true;
    },
    async query(id, query) {
      script.queries.push({ hostId: id, query });
      return script.answers.get(`${id} ${query.kind}`) ?? null;
    },
    progress: async () => script.progress,
    async drop(id) {
      script.dropped.push(id);
    },
  };
  const ports: Ports = {
    clock,
    ids: {
      ulid: () => `01JE0000000000000000${String(++serial).padStart(6, "0")}`,
      secret: (bytes) =>
        createHash("sha512").update(`secret ${++serial}`).digest().subarray(0, bytes).toString("base64url"),
    },
    migrations: new MemoryMigrations(clock),
    tasks: new MemoryBundleTasks(),
    evacuations: new MemoryEvacuations(clock),
    chronicle: new MemoryChronicle(positionsBy(clock)),
    shutdowns: new MemoryShutdowns(),
    hosts: new MemoryHosts(),
    tokens: new MemoryTokens(),
    bundles: {
      async grantPut(want) {
        const key = `bundles/${want.sha256}`;
        const url = `${want.publicUrl}/bucket/${key}?signature=put`;
        return { method: "PUT", url, headers: { "x-signed": "1" }, key, present: script.bucket.has(key) };
      },
      async grantGet({ key, publicUrl }) {
        return { method: "GET", url: `${publicUrl}/bucket/${key}?signature=get`, headers: {}, key, present: true };
      },
      async head(key) {
        const bytes = script.bucket.get(key);
        return bytes === undefined ? null : { bytes };
      },
      async remove(key) {
        script.bucket.delete(key);
      },
    },
    sockets: answers,
    feed,
    tickets: controlSigner(),
    pace: paceOf(heartbeatMs),
    log: { write: (...line) => void script.logged.push(JSON.stringify(line)) },
  };
  const { runner, evacuations } = createRunners(ports, preflightMemory());
  const rules = createRules(ports, { rules: new MemoryRules(), dedup: new MemoryDedup(clock) }, evacuations);
  const metrics = new MemoryMetrics();
  const metricCounter = createMetricCounter({ ...ports, metrics });
  const webhooks = createWebhooks(ports, new MemoryWebhooks(), {
    async post(post) {
      script.posted.push(post);
      return { kind: "answered", status: script.receiverStatus, retryAfter: null };
    },
    targets: "public",
    postsAtOnce: 4,
    random: () => 0.5,
  });
  const app = createApp({
    ports,
    runner,
    evacuations,
    rules,
    webhooks,
    metrics: { counter: metricCounter, version: "0.0.0-test" },
    adminTokenSha256: sha256(adminToken),
    storeMetrics: () => script.storeMetrics,
    eventsIdleMs: options.eventsIdleMs,
  });

  async function addHost(index: number, fields: Partial<HostRecord> = {}, domains: InventoryDomain[] = []) {
    const host: HostRecord = {
      id: hostId(index),
      name: `host${index}`,
      publicKey: "A".repeat(43),
      cordoned: false,
      enrolledAt: clock.now(),
      lastSeenAt: clock.now(),
      protocol: 1,
      features: [...protocolFeatures],
      facts: factsOf(index),
      ...fields,
    };
    assert.equal(await ports.hosts.create(host), "committed");
    await ports.hosts.putInventory(host.id, { full: true, domains, gone: [] });
    return host;
  }

  /** Sends a request and holds its answer against the document. */
  async function ask(path: string, asked: Asked = {}): Promise<Response> {
    const { token = adminToken, body, raw, headers = {} } = asked;
    const method = asked.method ?? (body === undefined && raw === undefined ? "GET" : "POST");
    const text = raw ?? (body === undefined ? undefined : JSON.stringify(body));
    const response = await app.request(`http://api.test${path}`, {
      method,
      headers: {
        ...(text === undefined ? {} : { "content-type": "application/json" }),
        ...(token === null ? {} : { authorization: `Bearer ${token}` }),
        ...headers,
      },
      ...(text === undefined ? {} : { body: text }),
    });
    await documented(method, path, response);
    return response;
  }

  /** Answers every command that was pushed, and those that follow, until nothing more comes. */
  async function serve(
    failing: Partial<Record<Command["kind"], FaultBody>> = {},
    until?: Command["kind"],
    by: Pick<typeof runner, "reported"> = runner,
  ) {
    for (let next = script.pushed.shift(); next !== undefined; next = script.pushed.shift()) {
      if (next.message.type !== "command") continue;
      const { command } = next.message;
      if (command.kind === until) {
        script.pushed.unshift(next);
        return;
      }
      const fault = failing[command.kind];
      await by.reported(next.hostId, {
        commandId: command.id,
        migrationId: command.migrationId,
        epoch: command.epoch,
        ms: 3,
        result: fault === undefined ? { ok: true, body: answerTo(command, script.relayed) } : { ok: false, fault },
      });
    }
  }

  /** What the shims say to a check: findings of each side. */
  function scriptInspections(
    source: number,
    destination: number,
    found: { source?: Finding[]; destination?: Finding[] },
  ) {
    const one = reportBody("inspectSource");
    assert.ok(one.kind === "inspectSource");
    script.answers.set(`${hostId(source)} inspectSource`, {
      ok: true,
      body: { ...one, findings: found.source ?? [] },
    });
    script.answers.set(`${hostId(destination)} inspectDestination`, {
      ok: true,
      body: { kind: "inspectDestination", findings: found.destination ?? [], storageProven: true },
    });
  }

  return {
    app,
    ports,
    runner,
    evacuations,
    rules,
    webhooks,
    metrics,
    metricCounter,
    script,
    feed,
    addHost,
    ask,
    serve,
    scriptInspections,
    pass: (ms: number) => (nowMs += ms),
  };
}

export type MemoryFleet = Awaited<ReturnType<typeof memoryFleet>>;

/** The code of a refusal, with its status. */
export async function refusal(response: Response): Promise<[number, unknown]> {
  const body: unknown = await response.json();
  return [response.status, typeof body === "object" && body !== null && "code" in body ? body.code : body];
}
