/**
 * Host sockets on API Gateway as they are deployed, around the emulation: every invocation is wired anew from an environment, as in a process of its
 * own, and speaks to a real DynamoDB API and to the callbacks through the real SDK. Shims are raw websocket clients that do what a test says.
 */
import assert from "node:assert/strict";
import { generateKeyPairSync, type KeyObject, randomBytes, sign } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mock } from "node:test";
import { WebSocket } from "ws";
import { openDynalite } from "#functions/cli/up-dynalite";
import { type AwsWiring, wireAws } from "#functions/entry/aws-wiring";
import { decodeSocketEvent } from "#functions/entry/lambda-event";
import { createSocketHandler } from "#functions/socket/api-gateway-handler";
import { createDynamoClient, createTable } from "#functions/store/dynamo-table";
import { ApiGateway } from "#lab/api-gateway";
import { FrameSizes } from "#lab/frame-sizes";
import { decodeDown } from "#protocol/codec";
import { connectSignedText, formatConnectProof, helloSignedText } from "#protocol/identity";
import { frameBytesMax } from "#protocol/limits";
import { protocolFeatures, protocolVersions, type UpMessage } from "#protocol/message";
import { controlKeyPkcs8 } from "#test/fake/control-key";
import { inbox } from "./inbox.ts";
import type { Shim } from "./socket-cases.ts";
import { ulid } from "./store-cases.ts";

/** What of a connect a test makes wrong; what it leaves out is right. */
export interface Proofs {
  key?: KeyObject;
  atMs?: number;
  nonce?: string;
  /** The address that it is made for. */
  socket?: string;
  /** The header as it is; null: none. */
  header?: string | null;
}

export interface GatewayShim extends Shim {
  connectionId: string;
  session: string;
  renewAfterMs: number | undefined;
  /** Of the frames that came down, the largest. */
  largestFrame(): number;
  say(message: UpMessage | string | Uint8Array): void;
  /** In one frame, however long. */
  sayWhole(text: string): void;
  pong: Promise<void>;
  /** The first text that is no message of the treaty. */
  raw: Promise<string>;
}

export async function openGatewayLab() {
  // The functions log as they do in a Lambda; what is not theirs goes where it goes.
  const lines: string[] = [];
  const write = process.stdout.write.bind(process.stdout);
  const spy = mock.method(process.stdout, "write", (chunk: string | Uint8Array) => {
    if (typeof chunk !== "string" || !chunk.startsWith('{"at":')) return write(chunk);
    lines.push(chunk);
    return true;
  });
  const folder = await mkdtemp(join(tmpdir(), "vmferry-gateway-"));
  const dynalite = await openDynalite(join(folder, "dynamodb"));
  const credentials = { accessKeyId: "local", secretAccessKey: "local" };
  await createTable(createDynamoClient({ region: "local", endpoint: dynalite.endpoint, credentials }), "vmferry");
  const keys = new Map<string, KeyObject>();
  const faults = { storeIsAway: false };
  const sockets = new Set<WebSocket>();

  const gateway = await ApiGateway.start({
    invoke: async (event) =>
      createSocketHandler(wire(faults.storeIsAway ? { DYNAMODB_ENDPOINT: "http://127.0.0.1:9" } : {}))(
        decodeSocketEvent(event),
      ),
  });

  /** A process of its own: nothing is kept from another. */
  function wire(changes: Record<string, string> = {}): AwsWiring {
    return wireAws({
      TABLE: "vmferry",
      BUCKET: "vmferry",
      REGION: "us-east-1",
      AWS_ACCESS_KEY_ID: "local",
      AWS_SECRET_ACCESS_KEY: "local",
      DYNAMODB_ENDPOINT: dynalite.endpoint,
      SOCKET_URL: gateway.url,
      SOCKET_CALLBACK_URL: gateway.callbackUrl,
      TICKET_KEY: controlKeyPkcs8(),
      ...changes,
    });
  }

  async function enrol(hostId: string): Promise<void> {
    const { publicKey, privateKey } = generateKeyPairSync("ed25519");
    const created = await wire().ports.hosts.create({
      id: hostId,
      name: hostId.toLowerCase(),
      publicKey: publicKey.export({ format: "jwk" }).x ?? "",
      cordoned: false,
      enrolledAt: new Date().toISOString(),
      lastSeenAt: null,
      protocol: null,
      features: [],
      facts: null,
    });
    assert.equal(created, "committed");
    keys.set(hostId, privateKey);
  }

  async function newHost(): Promise<string> {
    const hostId = `h_${ulid()}`;
    await enrol(hostId);
    return hostId;
  }

  const keyOf = (hostId: string): KeyObject => {
    const key = keys.get(hostId);
    assert.ok(key);
    return key;
  };

  function headerOf(hostId: string, proofs: Proofs = {}): string {
    const proof = {
      hostId,
      atMs: proofs.atMs ?? Date.now(),
      nonce: proofs.nonce ?? randomBytes(32).toString("base64url"),
    };
    const text = Buffer.from(connectSignedText({ ...proof, socket: proofs.socket ?? gateway.url }));
    const signature = sign(null, text, proofs.key ?? keyOf(hostId)).toString("base64url");
    return formatConnectProof({ ...proof, signature });
  }

  /** Opens a socket; the status where it was refused. */
  async function dial(hostId: string, proofs: Proofs = {}) {
    const header = proofs.header === undefined ? headerOf(hostId, proofs) : proofs.header;
    const before = new Set(gateway.open);
    const options = {
      closeTimeout: 500,
      perMessageDeflate: false,
      // Names of headers travel as they are written.
      headers: header === null ? {} : { "X-Vmferry-Connect": header },
    };
    const socket = new WebSocket(`${gateway.url}?host=${hostId}`, options);
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    const { deliver, next } = inbox();
    const gone = Promise.withResolvers<{ code: number; reason: string }>();
    const pong = Promise.withResolvers<void>();
    const raw = Promise.withResolvers<string>();
    const sizes = new FrameSizes();
    let largest = 0;
    socket.on("upgrade", (response) =>
      response.socket.prependListener("data", (chunk: Buffer) => {
        largest = Math.max(largest, sizes.read(chunk));
      }),
    );
    socket.on("message", (data) => {
      const text = String(data);
      if (text === "pong") pong.resolve();
      else if (text.includes('"type"')) deliver(decodeDown(text));
      else raw.resolve(text);
    });
    socket.on("close", (code, reason) => gone.resolve({ code, reason: reason.toString() }));
    const status = await new Promise<number>((resolve) => {
      socket.on("open", () => resolve(101));
      socket.on("unexpected-response", (_request, response) => {
        response.resume();
        resolve(response.statusCode ?? 0);
      });
      socket.on("error", () => resolve(0));
    });
    const connectionId = gateway.open.find((id) => !before.has(id)) ?? "";
    /** As a shim sends: in frames that API Gateway takes. */
    const say = (message: UpMessage | string | Uint8Array) => {
      const isBinary = message instanceof Uint8Array;
      const bytes = Buffer.from(isBinary || typeof message === "string" ? message : JSON.stringify(message));
      for (let at = 0; at < Math.max(1, bytes.byteLength); at += frameBytesMax)
        socket.send(bytes.subarray(at, at + frameBytesMax), {
          binary: isBinary,
          fin: at + frameBytesMax >= bytes.byteLength,
        });
    };
    const nonce = header?.split(" ")[3] ?? "";
    const hello = (changes: { key?: KeyObject; nonce?: string; renews?: string } = {}): void =>
      say({
        type: "hello",
        protocols: protocolVersions,
        features: [...protocolFeatures],
        hostId,
        signature: sign(
          null,
          Buffer.from(helloSignedText({ hostId, nonce: changes.nonce ?? nonce })),
          changes.key ?? keyOf(hostId),
        ).toString("base64url"),
        facts: {
          shimVersion: "0.1.0",
          nodeVersion: "24.0.0",
          migrationAddress: null,
          libvirt: { reachable: false, cause: "a test" },
        },
        ...(changes.renews === undefined ? {} : { renews: changes.renews }),
      });
    return {
      socket,
      status,
      connectionId,
      next,
      say,
      hello,
      sayWhole: (text: string) => socket.send(text),
      closed: gone.promise,
      pong: pong.promise,
      raw: raw.promise,
      largestFrame: () => largest,
    };
  }

  /** Resolves when the gateway has all that was said, and no function runs for it any more. */
  async function settled(): Promise<void> {
    await Promise.all(
      [...sockets].map(async (socket) => {
        if (socket.readyState !== socket.OPEN) return;
        // It comes back after everything before it was read.
        socket.ping();
        await new Promise<void>((resolve) => {
          socket.once("pong", () => resolve());
          socket.once("close", () => resolve());
        });
      }),
    );
    // A client sees the end of its socket before the gateway does.
    const isOpen = (socket: WebSocket) => socket.readyState === socket.OPEN;
    while (gateway.open.length > [...sockets].filter(isOpen).length)
      await new Promise((resolve) => setTimeout(resolve, 5));
    await gateway.settled();
  }

  async function connect(hostId: string, changes: { renews?: string } = {}): Promise<GatewayShim> {
    const line = await dial(hostId);
    assert.equal(line.status, 101);
    line.hello(changes);
    const welcome = await line.next("welcome");
    assert.ok(welcome.type === "welcome");
    // The hello is through when its function is: then the host is reached by this connection.
    await settled();
    return {
      ...line,
      hostId,
      session: welcome.session,
      renewAfterMs: welcome.renewAfterMs,
      answer: async (queryId, answer) => line.say({ type: "answered", queryId, answer }),
      progress: async (migrationId, progress) =>
        line.say({ type: "progress", migrationId, commandId: `${migrationId}:perform:1`, progress }),
      async leave() {
        line.socket.close(1000);
        await line.closed;
      },
    };
  }

  return {
    gateway,
    faults,
    /** What the functions logged, a JSON object each. */
    lines,
    wire,
    enrol,
    newHost,
    headerOf,
    dial,
    connect,
    settled,
    async close() {
      await gateway.stop();
      await dynalite.close();
      await rm(folder, { recursive: true });
      spy.mock.restore();
    },
  };
}
