/** Host sockets and the feed: the contract cases in memory and on Durable Objects in workerd, and the doorkeeping of the real ones. */
import assert from "node:assert/strict";
import { generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { build } from "esbuild";
import { Miniflare } from "miniflare";
import { WebSocket } from "ws";
import * as z from "zod/mini";
import { openDynalite } from "#functions/cli/up-dynalite";
import { workerBuild } from "#functions/cli/up-worker";
import type { FeedEvent } from "#functions/ports";
import { createDynamoClient, createTable } from "#functions/store/dynamo-table";
import { decodeDown } from "#protocol/codec";
import { helloSignedText, shimSocketPath } from "#protocol/identity";
import {
  answerSchema,
  type DownMessage,
  progressSchema,
  protocolFeatures,
  protocolVersions,
  type UpMessage,
} from "#protocol/message";
import { controlKeyPkcs8 } from "#test/fake/control-key";
import { MemoryFeed, MemorySockets, type Wire } from "#test/fake/memory-sockets";
import { inbox } from "./inbox.ts";
import { progressOf, type Shim, type Switchboard, socketCases } from "./socket-cases.ts";
import { ulid, uuid } from "./store-cases.ts";

describe("sockets in memory", () => {
  const sockets = new MemorySockets((ms) => new Promise((resolve) => setTimeout(resolve, ms).unref()));
  const board: Switchboard = {
    sockets,
    tellsWhy: true,
    settled: async () => {},
    newHost: async () => `h_${ulid()}`,
    async connect(hostId) {
      const { deliver, next } = inbox();
      const gone = Promise.withResolvers<{ code: number; reason: string }>();
      const wire: Wire = { deliver, closed: (reason) => gone.resolve({ code: 4001, reason }) };
      sockets.connect(hostId, wire);
      return {
        hostId,
        next,
        answer: async (queryId, answer) => sockets.answered(queryId, answer),
        progress: async (migrationId, progress) => sockets.progressed(hostId, migrationId, progress),
        closed: gone.promise,
        leave: async () => sockets.disconnect(hostId, wire),
      };
    },
  };
  for (const [name, run] of Object.entries(socketCases)) test(name, () => run(board));

  test("a feed tells those who listen, until they leave", async () => {
    const feed = new MemoryFeed();
    const left = new AbortController();
    const seen: FeedEvent[] = [];
    const watching = (async () => {
      for await (const event of feed.subscribe("m_1", left.signal)) {
        seen.push(event);
        if (seen.length === 2) left.abort();
      }
    })();
    await feed.publish("m_2", { type: "changed", version: 9 });
    await feed.publish("m_1", { type: "changed", version: 1 });
    await feed.publish("m_1", { type: "progress", progress: progressOf(1) });
    await watching;
    assert.deepEqual(seen, [
      { type: "changed", version: 1 },
      { type: "progress", progress: progressOf(1) },
    ]);
  });
});

describe("sockets in Durable Objects", () => {
  let folder: string;
  let dynalite: Awaited<ReturnType<typeof openDynalite>>;
  let miniflare: Miniflare;
  let url: string;
  const keys = new Map<string, KeyObject>();

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "vmferry-sockets-"));
    dynalite = await openDynalite(join(folder, "dynamodb"));
    const credentials = { accessKeyId: "local", secretAccessKey: "local" };
    await createTable(createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials }), "vmferry");
    const root = join(import.meta.dirname, "../..");
    const entryPoints = [join(import.meta.dirname, "sockets-worker.ts")];
    const { outputFiles } = await build({ ...workerBuild(root), entryPoints, write: false });
    miniflare = new Miniflare({
      name: "vmferry",
      cf: false,
      modules: [{ type: "ESModule", path: "worker.mjs", contents: outputFiles[0]?.text ?? "" }],
      compatibilityDate: "2026-08-01",
      compatibilityFlags: ["nodejs_compat"],
      durableObjects: {
        HOST_SOCKET: { className: "HostSocket", useSQLite: true },
        MIGRATION_FEED: { className: "MigrationFeed", useSQLite: true },
        WEBHOOK_BELL: { className: "WebhookBell", useSQLite: true },
      },
      // The same door as `vmferry up` opens.
      unsafeDirectSockets: [{ host: "127.0.0.1", port: 0 }],
      handleRuntimeStdio() {},
      bindings: {
        TABLE: "vmferry",
        BUCKET: "vmferry",
        REGION: "local",
        ACCESS_KEY_ID: "local",
        SECRET_ACCESS_KEY: "local",
        DYNAMODB_ENDPOINT: dynalite.endpoint,
        TICKET_KEY: controlKeyPkcs8(),
      },
    });
    await miniflare.ready;
    url = (await miniflare.unsafeGetDirectURL("vmferry")).origin;
  });
  after(async () => {
    await miniflare.dispose();
    await dynalite.close();
    await rm(folder, { recursive: true });
  });

  async function call(body: Record<string, unknown>): Promise<unknown> {
    const response = await fetch(`${url}/test/call`, { method: "POST", body: JSON.stringify(body) });
    assert.equal(response.status, 200, await response.clone().text());
    return z.object({ value: z.unknown() }).parse(await response.json()).value;
  }

  function dial(hostId: string) {
    // Short: workerd ends the connection of a client that never spoke only when it evicts the object.
    const options = { closeTimeout: 500, perMessageDeflate: false };
    const socket = new WebSocket(`${url.replace(/^http/, "ws")}${shimSocketPath}?host=${hostId}`, options);
    const { deliver, next } = inbox();
    const gone = Promise.withResolvers<{ code: number; reason: string }>();
    const pong = Promise.withResolvers<void>();
    socket.on("message", (data) => {
      const text = String(data);
      if (text === "pong") pong.resolve();
      else deliver(decodeDown(text));
    });
    socket.on("error", () => gone.resolve({ code: 0, reason: "error" }));
    socket.on("close", (code, reason) => gone.resolve({ code, reason: reason.toString() }));
    const say = (message: UpMessage | string | Uint8Array) =>
      socket.send(typeof message === "string" || message instanceof Uint8Array ? message : JSON.stringify(message));
    return { socket, next, say, closed: gone.promise, pong: pong.promise };
  }

  async function hello(hostId: string, changes: { key?: KeyObject; nonce?: string; features?: string[] } = {}) {
    const line = dial(hostId);
    const challenge = await line.next("challenge");
    assert.ok(challenge.type === "challenge");
    const key = changes.key ?? keys.get(hostId);
    assert.ok(key);
    const text = helloSignedText({ hostId, nonce: changes.nonce ?? challenge.nonce });
    line.say({
      type: "hello",
      protocols: protocolVersions,
      features: [...protocolFeatures],
      hostId,
      signature: sign(null, Buffer.from(text), key).toString("base64url"),
      facts: {
        shimVersion: "0.1.0",
        nodeVersion: "24.0.0",
        migrationAddress: null,
        libvirt: { reachable: false, cause: "a test" },
      },
    });
    return { ...line, nonce: challenge.nonce };
  }

  async function newHost(): Promise<string> {
    const id = `h_${ulid()}`;
    const { publicKey, privateKey } = generateKeyPairSync("ed25519");
    const raw = z.object({ x: z.string() }).parse(publicKey.export({ format: "jwk" })).x;
    assert.equal(await call({ call: "host", id, name: id.toLowerCase(), publicKey: raw }), "committed");
    keys.set(id, privateKey);
    return id;
  }

  async function connect(hostId: string): Promise<Shim & { line: Awaited<ReturnType<typeof hello>> }> {
    const line = await hello(hostId);
    await line.next("welcome");
    return {
      hostId,
      line,
      next: line.next,
      answer: async (queryId, answer) => line.say({ type: "answered", queryId, answer }),
      progress: async (migrationId, progress) =>
        line.say({ type: "progress", migrationId, commandId: `${migrationId}:perform:1`, progress }),
      closed: line.closed,
      async leave() {
        line.socket.close(1000);
        await line.closed;
      },
    };
  }

  const board: Switchboard = {
    tellsWhy: true,
    // One object hears everything in order: what was sent before a question was answered has been heard.
    settled: async () => {},
    sockets: {
      push: async (hostId, message) => z.boolean().parse(await call({ call: "push", hostId, message })),
      query: async (hostId, query, waitMs) =>
        z.nullable(answerSchema).parse(await call({ call: "query", hostId, query, waitMs })),
      progress: async (hostId, migrationId) =>
        z.nullable(progressSchema).parse(await call({ call: "progress", hostId, migrationId })),
      async drop(hostId, cause) {
        await call({ call: "drop", hostId, cause });
      },
    },
    connect,
    newHost,
  };
  for (const [name, run] of Object.entries(socketCases)) test(name, () => run(board));

  test("the close codes say what happened", async () => {
    const older = await connect(await newHost());
    const newer = await connect(older.hostId);
    assert.equal((await older.closed).code, 4001);
    await board.sockets.drop(newer.hostId, "removed");
    assert.equal((await newer.closed).code, 4003);
  });

  test("a wrong key, an old nonce and an unknown host are refused", async () => {
    const hostId = await newHost();
    const { privateKey } = generateKeyPairSync("ed25519");
    const earlier = await connect(hostId);
    const stranger = `h_${ulid()}`;
    const attempts = [
      await hello(hostId, { key: privateKey }),
      await hello(hostId, { nonce: earlier.line.nonce }),
      await hello(stranger, { key: privateKey }),
    ];
    for (const attempt of attempts) {
      const refused = await attempt.next("refused");
      assert.ok(refused.type === "refused");
      assert.equal(refused.fault.code, "shim.unauthorised");
      assert.equal((await attempt.closed).code, 4403);
    }
    assert.equal(await board.sockets.push(hostId, { type: "acknowledged", commandId: `m_${ulid()}:export:1` }), true);
    await earlier.leave();
  });

  test("who has not proved himself gets nothing and says nothing", async () => {
    const hostId = await newHost();
    const line = dial(hostId);
    await line.next("challenge");
    assert.equal(await board.sockets.push(hostId, { type: "acknowledged", commandId: `m_${ulid()}:export:1` }), false);
    const migrationId = `m_${ulid()}`;
    line.say({ type: "progress", migrationId, commandId: `${migrationId}:perform:1`, progress: progressOf(1) });
    await line.next("refused");
    assert.equal((await line.closed).code, 4403);
    assert.equal(await board.sockets.progress(hostId, migrationId), null);
  });

  test("what a newer shim may say is passed over in an open session, and ends one that is not open", async () => {
    const shim = await connect(await newHost());
    for (const foreign of ['{"type":"heartbeat","facts":7}', '{"type":"sung","song":"x"}']) shim.line.say(foreign);
    const asked = board.sockets.query(
      shim.hostId,
      { kind: "describeDomain", domain: { uuid: uuid(), name: "w" } },
      20_000,
    );
    const question = await shim.next("query");
    assert.ok(question.type === "query");
    const fault = { code: "domain.absent", cause: "None.", action: "Look elsewhere.", retry: "never" } as const;
    await shim.answer(question.queryId, { ok: false, fault });
    assert.deepEqual(await asked, { ok: false, fault }, "the session lives on");
    await shim.leave();
    const line = dial(shim.hostId);
    await line.next("challenge");
    line.say('{"type":"sung","song":"x"}');
    assert.equal((await line.closed).code, 4400);
  });

  test("malformed, binary and oversized messages end the socket with the cause", async () => {
    const hostId = await newHost();
    const bad: [string | Uint8Array, string][] = [
      ["{", "message.malformed"],
      ["7", "message.malformed"],
      [Uint8Array.of(1, 2, 3), "message.malformed"],
      [JSON.stringify({ type: "heartbeat", padding: "x".repeat(128 * 1024) }), "message.tooLarge"],
      [JSON.stringify({ type: "heartbeat", padding: "ü".repeat(70 * 1024) }), "message.tooLarge"],
    ];
    for (const [message, code] of bad) {
      const shim = await connect(hostId);
      shim.line.say(message);
      const refused = await shim.next("refused");
      assert.ok(refused.type === "refused");
      assert.equal(refused.fault.code, code);
      assert.equal((await shim.closed).code, 4400);
    }
  });

  test("the door asks for a websocket and a host", async () => {
    assert.equal((await fetch(`${url}${shimSocketPath}?host=h_${ulid()}`)).status, 426);
    assert.equal((await dial("nobody").closed).code, 0);
  });

  describe("which take their time", { concurrency: true }, () => {
    test("at most four wait to prove themselves, and not for long", async () => {
      const hostId = await newHost();
      const lines = Array.from({ length: 4 }, () => dial(hostId));
      for (const line of lines) await line.next("challenge");
      assert.deepEqual(await dial(hostId).closed, { code: 0, reason: "error" }, "the fifth is not let in");
      for (const line of lines) assert.equal((await line.closed).code, 4408);
      const shim = await connect(hostId);
      await shim.leave();
    });

    test("a socket and its session survive the object's eviction", async () => {
      const shim = await connect(await newHost());
      const instance = () => call({ call: "instance", hostId: shim.hostId });
      const first = await instance();
      let later = first;
      // workerd evicts an idle object after about ten seconds; a busy machine may take longer, so it is asked again.
      for (let round = 0; round < 5 && later === first; round += 1) {
        shim.line.say("ping");
        await shim.line.pong;
        await new Promise((resolve) => setTimeout(resolve, 12_000));
        later = await instance();
      }
      assert.notEqual(later, first, "the object was evicted while its socket was open");
      const message: DownMessage = { type: "acknowledged", commandId: `m_${ulid()}:export:1` };
      assert.equal(await board.sockets.push(shim.hostId, message), true);
      assert.deepEqual(await shim.next("acknowledged"), message);
      // The session came back as well: what needs one is heard.
      const migrationId = `m_${ulid()}`;
      await shim.progress(migrationId, progressOf(5));
      shim.line.say({
        type: "grant",
        request: "r1",
        migrationId,
        commandId: `${migrationId}:export:1`,
        want: { op: "get", key: "bundles/x" },
      });
      const refused = await shim.next("grantRefused");
      assert.ok(refused.type === "grantRefused");
      assert.equal(refused.fault.code, "request.forbidden");
      assert.deepEqual(await board.sockets.progress(shim.hostId, migrationId), progressOf(5));
      await shim.leave();
    });
  });

  test("a feed tells those who listen, also of progress", async () => {
    const shim = await connect(await newHost());
    const topic = `m_${ulid()}`;
    const left = new AbortController();
    const response = await fetch(`${url}/test/watch?topic=${topic}`, { signal: left.signal });
    const reader = response.body?.getReader();
    assert.ok(reader);
    let text = "";
    const until = async (found: RegExp) => {
      while (!found.test(text)) {
        const { done, value } = await reader.read();
        assert.ok(!done, "the feed ended");
        text += new TextDecoder().decode(value);
      }
    };
    // An event may be lost while the watcher is still on its way in; it is told again until it hears.
    const telling = setInterval(() => void call({ call: "publish", topic, version: 7 }), 100);
    await until(/\{"type":"changed","version":7\}\n/);
    clearInterval(telling);
    await call({ call: "publish", topic: `m_${ulid()}`, version: 8 });
    await shim.progress(topic, progressOf(9));
    await until(/"type":"progress"/);
    assert.ok(!text.includes('"version":8'), "another topic is not heard");
    left.abort();
    await shim.leave();
  });
});
