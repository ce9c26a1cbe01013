/**
 * API Gateway's websocket API in one process, as far as its documentation and its observed behaviour say how it acts. It holds sockets, calls a
 * function for $connect, $disconnect and $default, and takes callbacks at POST, GET and DELETE /{stage}/@connections/{id}.
 *
 * Kept as AWS does it, because code relies on it or breaks on it:
 * - Events of one connection are invoked at once and wait for none before them. $connect alone is waited for, and until it is answered its connection
 *   is gone (410) for callbacks.
 * - A frame over 32 KB or a message over 128 KB closes the socket with 1009, and no event tells of it but $disconnect.
 * - What goes down is split into frames of 32 KB; over 128 KB it is 413.
 * - A refused $connect is an HTTP status with AWS's own body. A function that fails on a message makes AWS send an error text of its own down the socket.
 * - DeleteConnection closes with 1000, the end of a life or of patience with 1001.
 * - Connection ids end with "=", and come percent-encoded in a callback's path.
 *
 * Not kept: throttles by rate (they are ordered by a test instead), TLS, IAM beyond the form of a signature.
 */
import { randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse, STATUS_CODES } from "node:http";
import type { Duplex } from "node:stream";
import { type RawData, type WebSocket, WebSocketServer } from "ws";
import { FrameSizes } from "./frame-sizes.ts";

const frameBytesMax = 32 * 1024;
const messageBytesMax = 128 * 1024;
/** AWS: life of a connection, and how long it may be silent. */
const lifeMsDefault = 2 * 60 * 60_000;
const idleMsDefault = 10 * 60_000;

type EventType = "CONNECT" | "MESSAGE" | "DISCONNECT";

/** As a Lambda gets it (proxy integration). */
export interface GatewayEvent {
  headers?: Record<string, string>;
  multiValueHeaders?: Record<string, string[]>;
  queryStringParameters?: Record<string, string>;
  multiValueQueryStringParameters?: Record<string, string[]>;
  requestContext: {
    routeKey: "$connect" | "$default" | "$disconnect";
    eventType: EventType;
    connectionId: string;
    connectedAt: number;
    requestTimeEpoch: number;
    requestId: string;
    extendedRequestId: string;
    messageId?: string;
    messageDirection: "IN";
    domainName: string;
    stage: string;
    apiId: string;
    identity: { sourceIp: string; userAgent?: string };
    disconnectStatusCode?: number;
    disconnectReason?: string;
  };
  body?: string;
  isBase64Encoded: boolean;
}

export interface ApiGatewayOptions {
  /** The function behind all three routes; what it answers is `{statusCode}`, what it throws is its failure. */
  invoke(event: GatewayEvent): Promise<unknown>;
  stage?: string;
  lifeMs?: number;
  idleMs?: number;
  /** AWS does not say whether it answers pings of a client. */
  answersPings?: boolean;
}

interface Connection {
  id: string;
  connectedAt: number;
  lastActiveAt: number;
  userAgent: string | undefined;
  /** Null until $connect was answered. */
  socket: WebSocket | null;
  idle: NodeJS.Timeout | undefined;
}

/** What AWS would bill or show in its metrics. */
export interface GatewayCounts {
  connects: number;
  messagesIn: number;
  messagesOut: number;
  bytesIn: number;
  bytesOut: number;
  /** Messages as they are billed: by each 32 KB begun. */
  billed: number;
  callbacks: number;
  invocations: number;
}

export class ApiGateway {
  readonly counts: GatewayCounts = {
    connects: 0,
    messagesIn: 0,
    messagesOut: 0,
    bytesIn: 0,
    bytesOut: 0,
    billed: 0,
    callbacks: 0,
    invocations: 0,
  };
  /** How often each $disconnect is delivered: AWS promises no number. */
  disconnectTimes = 1;
  /** Awaited before an event is invoked; lets a test reorder what is in flight. */
  before: ((event: GatewayEvent) => Promise<void> | void) | null = null;
  /** Of connections that open from now on. */
  lifeMs: number;
  /** From each connection's next message on. */
  idleMs: number;
  readonly #options: ApiGatewayOptions;
  readonly #stage: string;
  readonly #server: Server;
  readonly #upgrades: WebSocketServer;
  readonly #connections = new Map<string, Connection>();
  readonly #running = new Set<Promise<void>>();
  #throttled = 0;

  private constructor(server: Server, options: ApiGatewayOptions) {
    this.#server = server;
    this.#options = options;
    this.#stage = options.stage ?? "lab";
    this.lifeMs = options.lifeMs ?? lifeMsDefault;
    this.idleMs = options.idleMs ?? idleMsDefault;
    this.#upgrades = new WebSocketServer({
      noServer: true,
      perMessageDeflate: false,
      maxPayload: messageBytesMax,
      autoPong: options.answersPings ?? true,
    });
    server.on("upgrade", (request, socket, head) => void this.#upgrade(request, socket, head));
    server.on("request", (request, response) => void this.#callback(request, response));
  }

  /** Listens on loopback. */
  static async start(options: ApiGatewayOptions): Promise<ApiGateway> {
    const server = createServer();
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(0, "127.0.0.1", resolve);
    });
    return new ApiGateway(server, options);
  }

  get #authority(): string {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("the gateway listens on no port");
    return `127.0.0.1:${address.port}`;
  }

  /** Where clients connect. */
  get url(): string {
    return `ws://${this.#authority}/${this.#stage}`;
  }

  /** Where functions send to connections. */
  get callbackUrl(): string {
    return `http://${this.#authority}/${this.#stage}`;
  }

  /** Connections that stand. */
  get open(): string[] {
    return [...this.#connections.values()].filter(({ socket }) => socket !== null).map(({ id }) => id);
  }

  /** Functions that run for an event now. */
  get running(): number {
    return this.#running.size;
  }

  /** Ends a connection as its life's end does, now. */
  endLife(connectionId: string): void {
    this.#connections.get(connectionId)?.socket?.close(1001, "Going away");
  }

  /** The next callbacks are answered 429. */
  throttleNext(callbacks: number): void {
    this.#throttled = callbacks;
  }

  /** Delivers a $disconnect for a connection once more, or late. */
  async disconnectAgain(connectionId: string): Promise<void> {
    const event = this.#event("DISCONNECT", { id: connectionId, connectedAt: Date.now(), userAgent: undefined });
    await this.#invoke(event).catch(() => {});
  }

  /** Resolves when no function runs that an event started. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  async stop(): Promise<void> {
    for (const connection of this.#connections.values()) {
      clearTimeout(connection.idle);
      connection.socket?.terminate();
    }
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
    await this.settled();
  }

  async #upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    socket.on("error", () => socket.destroy());
    const url = new URL(request.url ?? "/", "http://gateway");
    if (url.pathname.replace(/\/$/, "") !== `/${this.#stage}`) return refuse(socket, 403);
    const now = Date.now();
    const id = `${randomBytes(11).toString("base64url")}=`;
    const userAgent = request.headers["user-agent"];
    const connection: Connection = {
      id,
      connectedAt: now,
      lastActiveAt: now,
      userAgent,
      socket: null,
      idle: undefined,
    };
    this.#connections.set(id, connection);
    this.counts.connects += 1;
    const parameters = [...url.searchParams.keys()];
    const event: GatewayEvent = {
      ...this.#event("CONNECT", connection),
      ...headersOf(request),
      ...(parameters.length === 0
        ? {}
        : {
            queryStringParameters: Object.fromEntries(url.searchParams),
            multiValueQueryStringParameters: Object.fromEntries(
              parameters.map((name) => [name, url.searchParams.getAll(name)]),
            ),
          }),
    };
    let status = 502;
    try {
      status = statusOf(await this.#invoke(event));
    } catch {
      // The function failed: that is all AWS says as well.
    }
    if (status < 200 || status >= 300) {
      this.#connections.delete(id);
      refuse(socket, status);
      return;
    }
    if (socket.destroyed) {
      this.#gone(connection, 1006, "");
      return;
    }
    this.#upgrades.handleUpgrade(request, socket, head, (accepted) => this.#opened(connection, accepted, socket));
  }

  #opened(connection: Connection, socket: WebSocket, raw: Duplex): void {
    connection.socket = socket;
    const sizes = new FrameSizes();
    let isCut = false;
    // Before ws's own listener: the size of a frame is known from its head, and nothing of a cut message is delivered.
    raw.prependListener("data", (chunk: Buffer) => {
      if (isCut || sizes.read(chunk) <= frameBytesMax) return;
      isCut = true;
      socket.close(1009, "Message too long");
    });
    socket.on("message", (data, isBinary) => {
      if (!isCut) this.#said(connection, data, isBinary);
    });
    socket.on("error", () => {});
    const life = setTimeout(() => this.endLife(connection.id), this.lifeMs);
    this.#touch(connection);
    socket.on("close", (code, reason) => {
      clearTimeout(life);
      clearTimeout(connection.idle);
      this.#gone(connection, code, reason.toString());
    });
  }

  #touch(connection: Connection): void {
    connection.lastActiveAt = Date.now();
    clearTimeout(connection.idle);
    connection.idle = setTimeout(() => this.endLife(connection.id), this.idleMs);
  }

  #said(connection: Connection, data: RawData, isBinary: boolean): void {
    this.#touch(connection);
    const bytes = bytesOf(data);
    this.counts.messagesIn += 1;
    this.counts.bytesIn += bytes.byteLength;
    this.counts.billed += billedOf(bytes);
    const event = this.#event("MESSAGE", connection);
    event.body = isBinary ? bytes.toString("base64") : bytes.toString("utf8");
    event.isBase64Encoded = isBinary;
    void this.#invoke(event).catch(() => {
      const { connectionId, requestId } = event.requestContext;
      connection.socket?.send(JSON.stringify({ message: "Internal server error", connectionId, requestId }));
    });
  }

  #gone(connection: Connection, code: number, reason: string): void {
    this.#connections.delete(connection.id);
    const event = this.#event("DISCONNECT", connection);
    event.requestContext.disconnectStatusCode = code;
    event.requestContext.disconnectReason = reason;
    for (let time = 0; time < this.disconnectTimes; time += 1) void this.#invoke(event).catch(() => {});
  }

  #invoke(event: GatewayEvent): Promise<unknown> {
    this.counts.invocations += 1;
    const work = (async () => {
      await this.before?.(event);
      return this.#options.invoke(structuredClone(event));
    })();
    const running = work.then(
      () => {},
      () => {},
    );
    this.#running.add(running);
    void running.then(() => this.#running.delete(running));
    return work;
  }

  #event(
    eventType: EventType,
    { id, connectedAt, userAgent }: Pick<Connection, "id" | "connectedAt" | "userAgent">,
  ): GatewayEvent {
    const requestId = `${randomBytes(11).toString("base64url")}=`;
    const routes = { CONNECT: "$connect", MESSAGE: "$default", DISCONNECT: "$disconnect" } as const;
    return {
      requestContext: {
        routeKey: routes[eventType],
        eventType,
        connectionId: id,
        connectedAt,
        requestTimeEpoch: Date.now(),
        requestId,
        extendedRequestId: requestId,
        ...(eventType === "MESSAGE" ? { messageId: requestId } : {}),
        messageDirection: "IN",
        domainName: this.#authority,
        stage: this.#stage,
        apiId: "lab",
        identity: { sourceIp: "127.0.0.1", ...(userAgent === undefined ? {} : { userAgent }) },
      },
      isBase64Encoded: false,
    };
  }

  async #callback(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    try {
      for await (const chunk of request) chunks.push(chunk);
    } catch {
      return; // The caller went away in the middle.
    }
    this.counts.callbacks += 1;
    const answer = this.#answered(request, Buffer.concat(chunks));
    response.writeHead(answer.status, {
      "content-type": "application/json",
      ...(answer.error === undefined ? {} : { "x-amzn-errortype": answer.error }),
    });
    response.end(answer.body === undefined ? "" : JSON.stringify(answer.body));
  }

  #answered(request: IncomingMessage, body: Buffer): { status: number; error?: string; body?: unknown } {
    const failed = (status: number, error: string, message: string | null = null) => ({
      status,
      error,
      body: { message },
    });
    if (!signedFor.test(request.headers.authorization ?? ""))
      return failed(403, "MissingAuthenticationTokenException", "Missing Authentication Token");
    const [, id] = new RegExp(`^/${this.#stage}/@connections/([^/]+)$`).exec(request.url ?? "") ?? [];
    if (id === undefined) return failed(403, "ForbiddenException", "Forbidden");
    if (this.#throttled > 0) {
      this.#throttled -= 1;
      return failed(429, "LimitExceededException", "Rate exceeded");
    }
    const connection = this.#connections.get(decodeURIComponent(id));
    const { socket } = connection ?? { socket: null };
    if (connection === undefined || socket === null || socket.readyState !== socket.OPEN)
      return failed(410, "GoneException");
    if (request.method === "POST") {
      if (body.byteLength > messageBytesMax) return failed(413, "PayloadTooLargeException", "Message too long");
      this.#send(connection, socket, body);
      return { status: 200 };
    }
    if (request.method === "GET")
      return {
        status: 200,
        body: {
          connectedAt: new Date(connection.connectedAt).toISOString(),
          lastActiveAt: new Date(connection.lastActiveAt).toISOString(),
          identity: { sourceIp: "127.0.0.1", userAgent: connection.userAgent ?? null },
        },
      };
    if (request.method !== "DELETE") return failed(403, "ForbiddenException", "Forbidden");
    // Gone for callbacks at once; the client learns it when the frame arrives.
    this.#connections.delete(connection.id);
    socket.close(1000, "Connection Closed Normally");
    return { status: 204 };
  }

  #send(connection: Connection, socket: WebSocket, body: Buffer): void {
    this.#touch(connection);
    this.counts.messagesOut += 1;
    this.counts.bytesOut += body.byteLength;
    this.counts.billed += billedOf(body);
    for (let at = 0; at < Math.max(1, body.byteLength); at += frameBytesMax)
      socket.send(body.subarray(at, at + frameBytesMax), {
        binary: false,
        fin: at + frameBytesMax >= body.byteLength,
      });
  }
}

/** Of a callback: AWS's Signature 4, for the service that callbacks belong to. */
const signedFor =
  /^AWS4-HMAC-SHA256 Credential=[^/]+\/\d{8}\/[^/]+\/execute-api\/aws4_request, ?SignedHeaders=[^,]+, ?Signature=[0-9a-f]{64}$/;

const bytesOf = (data: RawData): Buffer =>
  Array.isArray(data) ? Buffer.concat(data) : data instanceof ArrayBuffer ? Buffer.from(data) : data;

const billedOf = (bytes: Buffer): number => Math.max(1, Math.ceil(bytes.byteLength / frameBytesMax));

/** Names as the client wrote them. */
function headersOf(request: IncomingMessage): Pick<GatewayEvent, "headers" | "multiValueHeaders"> {
  const many: Record<string, string[]> = {};
  for (let at = 0; at + 1 < request.rawHeaders.length; at += 2) {
    const [name = "", value = ""] = request.rawHeaders.slice(at, at + 2);
    many[name] = [...(many[name] ?? []), value];
  }
  return {
    headers: Object.fromEntries(Object.entries(many).map(([name, values]) => [name, values.at(-1) ?? ""])),
    multiValueHeaders: many,
  };
}

/** A proxy answer that is none is the function's failure. */
function statusOf(answer: unknown): number {
  if (typeof answer !== "object" || answer === null || !("statusCode" in answer)) return 502;
  return typeof answer.statusCode === "number" ? answer.statusCode : 502;
}

function refuse(socket: Duplex, status: number): void {
  const body = JSON.stringify({ message: STATUS_CODES[status] ?? "Forbidden" });
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ""}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
  );
}
