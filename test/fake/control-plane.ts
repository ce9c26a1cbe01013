/**
 * A control plane of invented decisions over a real HTTP and websocket server, for tests of the shim: it enrols hosts,
 * checks hellos with real signatures, and does in every other respect what the test decides: refuse, cut, fall silent,
 * repeat, send nonsense. Grants lead to a small bucket in memory behind the same port.
 */
import { createHash, createPublicKey, randomBytes, verify } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { type WebSocket, WebSocketServer } from "ws";
import { decodeUp } from "#protocol/codec";
import {
  type ConnectProof,
  connectHeader,
  connectSignedText,
  type Door,
  doorPath,
  enrolmentPath,
  helloSignedText,
  parseConnectProof,
  shimSocketPath,
} from "#protocol/identity";
import { type DownMessage, protocolVersions, type UpMessage } from "#protocol/message";

/** What the test decides; whatever it leaves out goes well. */
export interface Decisions {
  /** Before a challenge is sent; false: the socket is left without a word. */
  onSocket?(socket: FakeSocket): boolean;
  /** Text sent instead of the challenge. */
  challenge?(nonce: string): string;
  /** After the hello proved its key: `null` welcomes, anything else is sent instead. */
  onHello?(socket: FakeSocket): DownMessage | null;
  /** Every message after welcome; the default acknowledges reports and answers grants. True: handled. */
  onMessage?(message: UpMessage, socket: FakeSocket): boolean;
  enrol?(body: unknown): { status: number; body: unknown };
  /** Every request to the bucket; a status answers it instead. */
  onBucket?(request: IncomingMessage, key: string): number | null;
  /** What the door says; absent: there is none (404), as before doors. A status and body answer instead. */
  door?(proof: ConnectProof | null): Omit<Door, "atMs"> | { status: number; body: unknown };
  /** A request for a websocket whose proof holds, where the door wants proofs; a status refuses it. */
  onConnect?(proof: ConnectProof): number | null;
  /** More of the welcome. */
  welcome?: { renewAfterMs?: number; progressMs?: number; features?: string[] };
  /** "ping" as a text is answered "pong", as the real ones do. */
  answersSpokenPings?: boolean;
  heartbeatMs?: number;
  /** Told at enrolment and in every welcome. */
  controlKey?: string;
}

export class FakeSocket {
  readonly socket: WebSocket;
  readonly nonce: string;
  readonly messages: UpMessage[] = [];
  welcomed = false;

  constructor(socket: WebSocket, nonce = randomBytes(32).toString("base64url")) {
    this.socket = socket;
    this.nonce = nonce;
  }
  send(message: DownMessage): void {
    this.socket.send(JSON.stringify(message));
  }
  raw(data: string | Buffer): void {
    this.socket.send(data);
  }
  /** Ends it as a broken line does. */
  cut(): void {
    this.socket.terminate();
  }
  /** Stops reading and answering, pongs included, and keeps the line open. */
  freeze(): void {
    this.socket.pause();
  }
}

export class FakeControlPlane {
  readonly sockets: FakeSocket[] = [];
  readonly messages: UpMessage[] = [];
  readonly bucket = new Map<string, Buffer>();
  readonly bucketRequests: { method: string; key: string; headers: IncomingMessage["headers"] }[] = [];
  readonly hosts = new Map<string, { name: string; publicKey: string }>();
  doorRequests = 0;
  spokenPings = 0;
  decide: Decisions;
  readonly #server: Server;
  readonly #sockets = new WebSocketServer({ noServer: true });
  readonly #waiters = new Set<() => void>();

  private constructor(server: Server, decide: Decisions) {
    this.#server = server;
    this.decide = decide;
    server.on("request", (request, response) => {
      void this.#request(request, response);
    });
    server.on("upgrade", (request, socket, head) => {
      const url = new URL(request.url ?? "/", "http://fake");
      if (url.pathname !== shimSocketPath) {
        socket.end("HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n");
        return;
      }
      const hostId = url.searchParams.get("host") ?? "";
      const proof = this.#proofOf(request, hostId);
      const status = this.#wantsProofs() ? (proof === null ? 401 : (this.decide.onConnect?.(proof) ?? null)) : null;
      if (status !== null) {
        socket.end(`HTTP/1.1 ${status} No\r\nConnection: close\r\n\r\n`);
        return;
      }
      this.#sockets.handleUpgrade(request, socket, head, (accepted) =>
        this.#accept(accepted, hostId, this.#wantsProofs() ? (proof?.nonce ?? null) : null),
      );
    });
  }

  static async start(decide: Decisions = {}): Promise<FakeControlPlane> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return new FakeControlPlane(server, decide);
  }

  get url(): string {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("not listening");
    return `http://127.0.0.1:${address.port}`;
  }

  async stop(): Promise<void> {
    for (const { socket } of this.sockets) socket.terminate();
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  /** The newest socket. */
  get socket(): FakeSocket {
    const socket = this.sockets.at(-1);
    if (socket === undefined) throw new Error("no socket yet");
    return socket;
  }

  /** Waits until `found` gives something; asked again at every event here. */
  async until<T>(found: () => T | undefined | false): Promise<T> {
    for (;;) {
      const value = found();
      if (value !== undefined && value !== false) return value;
      await new Promise<void>((resolve) => this.#waiters.add(resolve));
    }
  }

  /** Waits for the message number `nth` (from 1) of that type, over all sockets. */
  message<K extends UpMessage["type"]>(type: K, nth = 1): Promise<Extract<UpMessage, { type: K }>> {
    return this.until(
      () => this.messages.filter((each): each is Extract<UpMessage, { type: K }> => each.type === type)[nth - 1],
    );
  }

  #changed(): void {
    const waiters = [...this.#waiters];
    this.#waiters.clear();
    for (const wake of waiters) wake();
  }

  #wantsProofs(): boolean {
    const said = this.decide.door?.(null);
    return said !== undefined && "hello" in said && said.hello === "connect";
  }

  #socketAddress(): string {
    const said = this.decide.door?.(null);
    return said !== undefined && "socket" in said ? (said.socket ?? "") : "";
  }

  #proofOf(request: IncomingMessage, hostId: string): ConnectProof | null {
    const proof = parseConnectProof(String(request.headers[connectHeader] ?? ""));
    const host = this.hosts.get(hostId);
    if (proof === null || host === undefined || proof.hostId !== hostId) return null;
    const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: host.publicKey }, format: "jwk" });
    const text = Buffer.from(connectSignedText({ ...proof, socket: this.#socketAddress() }));
    return verify(null, text, key, Buffer.from(proof.signature, "base64url")) ? proof : null;
  }

  #accept(accepted: WebSocket, hostId: string, nonce: string | null): void {
    const socket = new FakeSocket(accepted, nonce ?? undefined);
    this.sockets.push(socket);
    accepted.on("error", () => {});
    accepted.on("close", () => this.#changed());
    accepted.on("message", (data) => {
      if (data.toString() === "ping") {
        this.spokenPings += 1;
        if (this.decide.answersSpokenPings === true) socket.raw("pong");
        this.#changed();
        return;
      }
      const message = decodeUp(data.toString());
      socket.messages.push(message);
      this.messages.push(message);
      if (message.type === "hello") this.#hello(socket, hostId, message);
      else if (this.decide.onMessage?.(message, socket) !== true) this.#answer(message, socket);
      this.#changed();
    });
    if (this.decide.onSocket?.(socket) !== false && nonce === null)
      socket.raw(
        this.decide.challenge?.(socket.nonce) ??
          JSON.stringify({ type: "challenge", nonce: socket.nonce, protocols: protocolVersions }),
      );
    this.#changed();
  }

  #hello(socket: FakeSocket, hostId: string, hello: Extract<UpMessage, { type: "hello" }>): void {
    const host = this.hosts.get(hostId);
    const raw = Buffer.from(host?.publicKey ?? "", "base64url");
    const text = Buffer.from(helloSignedText({ hostId, nonce: socket.nonce }));
    const proved =
      host !== undefined &&
      verify(
        null,
        text,
        createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: raw.toString("base64url") }, format: "jwk" }),
        Buffer.from(hello.signature, "base64url"),
      );
    if (!proved) {
      socket.send({
        type: "refused",
        fault: { code: "shim.unauthorised", cause: "The key is not known.", action: "Enrol again.", retry: "person" },
      });
      return;
    }
    const instead = this.decide.onHello?.(socket) ?? null;
    if (instead !== null) {
      socket.send(instead);
      return;
    }
    socket.welcomed = true;
    socket.send({
      type: "welcome",
      session: `session-${this.sockets.length}`,
      protocol: 1,
      features: [],
      name: host.name,
      heartbeatMs: this.decide.heartbeatMs ?? 1_000,
      ...this.#controlKey,
      ...this.decide.welcome,
    });
  }

  #answer(message: UpMessage, socket: FakeSocket): void {
    if (message.type === "report") socket.send({ type: "acknowledged", commandId: message.report.commandId });
    if (message.type !== "grant") return;
    const { want, request } = message;
    const key = want.op === "get" ? want.key : `${want.purpose}s/${want.sha256}`;
    socket.send({
      type: "granted",
      request,
      method: want.op === "get" ? "GET" : "PUT",
      url: `${this.url}/bucket/${key}?secret=${randomBytes(8).toString("hex")}`,
      headers: want.op === "get" ? {} : { "x-signed": want.sha256 },
      key,
      present: want.op === "put" && this.bucket.has(key),
    });
  }

  async #request(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? "/", "http://fake");
    const chunks: Buffer[] = [];
    try {
      for await (const chunk of request) chunks.push(chunk);
    } catch {
      return; // The client went away in the middle; there is nobody to answer.
    }
    const body = Buffer.concat(chunks);
    if (url.pathname === doorPath) this.#door(request, url.searchParams.get("host") ?? "", response);
    else if (request.method === "POST" && url.pathname === enrolmentPath) this.#enrol(body, response);
    else if (url.pathname.startsWith("/bucket/")) this.#serve(request, response, url.pathname.slice(8), body);
    else response.writeHead(404).end();
    this.#changed();
  }

  #door(request: IncomingMessage, hostId: string, response: ServerResponse): void {
    this.doorRequests += 1;
    const said = this.decide.door?.(this.#proofOf(request, hostId));
    if (said === undefined) response.writeHead(404).end();
    else if ("status" in said)
      response.writeHead(said.status, { "content-type": "application/json" }).end(JSON.stringify(said.body));
    else
      response
        .writeHead(200, { "content-type": "application/json" })
        .end(JSON.stringify({ ...said, atMs: Date.now() }));
  }

  #enrol(body: Buffer, response: ServerResponse): void {
    const value: unknown = JSON.parse(body.toString());
    const decided = this.decide.enrol?.(value);
    if (decided !== undefined) {
      response.writeHead(decided.status, { "content-type": "application/json" }).end(JSON.stringify(decided.body));
      return;
    }
    const { name, publicKey } = value as { name: string; publicKey: string };
    const hostId = `h_${createHash("sha256")
      .update(publicKey)
      .digest("hex")
      .toUpperCase()
      .replaceAll(/[^0-9A-F]/g, "")
      .slice(0, 26)}`;
    this.hosts.set(hostId, { name, publicKey });
    response
      .writeHead(201, { "content-type": "application/json" })
      .end(JSON.stringify({ hostId, name, ...this.#controlKey }));
  }

  get #controlKey() {
    const { controlKey } = this.decide;
    return controlKey === undefined ? {} : { controlKey };
  }

  #serve(request: IncomingMessage, response: ServerResponse, key: string, body: Buffer): void {
    this.bucketRequests.push({ method: request.method ?? "", key, headers: request.headers });
    const decided = this.decide.onBucket?.(request, key) ?? null;
    if (decided !== null) {
      response.writeHead(decided, decided === 302 ? { location: `${this.url}/bucket/elsewhere` } : {}).end();
      return;
    }
    if (request.method === "PUT") {
      if (request.headers["content-length"] === undefined) {
        response.writeHead(411).end();
        return;
      }
      this.bucket.set(key, body);
      response.writeHead(200).end();
      return;
    }
    const stored = this.bucket.get(key);
    if (stored === undefined) response.writeHead(404).end();
    else response.writeHead(200, { "content-length": stored.byteLength }).end(stored);
  }
}
