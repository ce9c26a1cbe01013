/**
 * The door before an HTTP Lambda: requests become events of API Gateway's HTTP API (payload 2.0) or of a function URL with response streaming,
 * and what the function gives becomes the answer, with the carrier's own bounds.
 */
import { randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { buffer } from "node:stream/consumers";
import { LambdaError, type LambdaFunction } from "#lab/lambda-process";

/** An event and an answer of Lambda may have 6 MB (AWS: Lambda quotas). */
const payloadBytesMax = 6 * 1024 * 1024;
/** API Gateway waits no longer for an integration (AWS: API Gateway quotas). */
const integrationMsMaxDefault = 29_000;

/** As API Gateway knows text; everything else travels in base64. */
const isText = (type: string) => /^text\/|^application\/(.*\+)?(json|xml|javascript)\b/i.test(type);

export interface LambdaHttpOptions {
  lambda: LambdaFunction;
  port?: number;
  integrationMsMax?: number;
}

interface Answer {
  statusCode: number;
  headers: Record<string, string>;
  cookies: string[];
  body: Uint8Array;
}

export class LambdaHttpServer {
  readonly #options: LambdaHttpOptions;
  readonly #server: Server;

  constructor(options: LambdaHttpOptions) {
    this.#options = options;
    this.#server = createServer((request, reply) => {
      this.#serve(request, reply).catch((error: unknown) => {
        if (reply.headersSent) return reply.destroy();
        const status = error instanceof LambdaError && error.errorType === "Gateway.Timeout" ? 504 : 500;
        refuse(reply, status, status === 504 ? "Endpoint request timed out" : "Internal Server Error");
      });
    });
  }

  async start(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(this.#options.port ?? 0, "127.0.0.1", resolve));
  }

  get url(): string {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("the server does not listen");
    return `http://127.0.0.1:${address.port}`;
  }

  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
  }

  async #serve(request: IncomingMessage, reply: ServerResponse): Promise<void> {
    const body = await buffer(request);
    const event = eventOf(request, body);
    if (JSON.stringify(event).length > payloadBytesMax) return refuse(reply, 413, "Request Entity Too Large");
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      const waitMs = this.#options.integrationMsMax ?? integrationMsMaxDefault;
      timer = setTimeout(() => reject(new LambdaError("Gateway.Timeout", "the integration took too long")), waitMs);
    });
    const result = await Promise.race([this.#options.lambda.run(event), late]).finally(() => clearTimeout(timer));
    if (result.kind === "stream") return stream(result.body, reply);
    const answer = answerOf(result.value);
    if (answer.body.byteLength > payloadBytesMax) return refuse(reply, 500, "Internal Server Error");
    reply.writeHead(answer.statusCode, {
      ...answer.headers,
      ...(answer.cookies.length > 0 ? { "set-cookie": answer.cookies } : {}),
    });
    reply.end(answer.body);
  }
}

function refuse(reply: ServerResponse, status: number, message: string): void {
  reply.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify({ message }));
}

function eventOf(request: IncomingMessage, body: Buffer): object {
  const [rawPath = "/", rawQueryString = ""] = (request.url ?? "/").split(/\?(.*)/s);
  const headers: Record<string, string> = {};
  for (const [name, value] of Object.entries(request.headers))
    if (name !== "cookie" && value !== undefined) headers[name] = Array.isArray(value) ? value.join(",") : value;
  const isBase64Encoded = body.byteLength > 0 && !isText(headers["content-type"] ?? "");
  const cookies = (request.headers.cookie ?? "").split(/;\s*/).filter((cookie) => cookie !== "");
  const domainName = headers.host ?? "localhost";
  return {
    version: "2.0",
    routeKey: "$default",
    rawPath,
    rawQueryString,
    headers,
    ...(cookies.length > 0 ? { cookies } : {}),
    ...(rawQueryString === ""
      ? {}
      : { queryStringParameters: Object.fromEntries(new URLSearchParams(rawQueryString)) }),
    requestContext: {
      accountId: "000000000000",
      apiId: "lab",
      domainName,
      domainPrefix: "lab",
      http: {
        method: request.method ?? "GET",
        path: rawPath,
        protocol: "HTTP/1.1",
        sourceIp: request.socket.remoteAddress ?? "",
        userAgent: headers["user-agent"] ?? "",
      },
      requestId: randomUUID(),
      routeKey: "$default",
      stage: "$default",
      time: new Date().toUTCString(),
      timeEpoch: Date.now(),
    },
    ...(body.byteLength === 0 ? {} : { body: body.toString(isBase64Encoded ? "base64" : "utf8") }),
    isBase64Encoded,
  };
}

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;
const texts = (value: unknown): Record<string, string> =>
  isRecord(value) ? Object.fromEntries(Object.entries(value).map(([name, text]) => [name, String(text)])) : {};

/** A value that is no proxy response is a broken function to API Gateway. */
function answerOf(value: unknown): Answer {
  if (!isRecord(value) || typeof value.statusCode !== "number")
    throw new LambdaError("Gateway.Malformed", "the function gave no proxy response");
  const body = typeof value.body === "string" ? value.body : "";
  return {
    statusCode: value.statusCode,
    headers: texts(value.headers),
    cookies: Array.isArray(value.cookies) ? value.cookies.map(String) : [],
    body: Buffer.from(body, value.isBase64Encoded === true ? "base64" : "utf8"),
  };
}

/** The head of a streamed answer ends with eight zero bytes; what follows goes out as it comes. */
async function stream(body: IncomingMessage, reply: ServerResponse): Promise<void> {
  const mark = Buffer.alloc(8);
  let head: Buffer | null = Buffer.alloc(0);
  reply.once("close", () => body.resume());
  for await (const chunk of body) {
    if (head === null) {
      if (!reply.destroyed) reply.write(chunk);
      continue;
    }
    head = Buffer.concat([head, chunk]);
    const end = head.indexOf(mark);
    if (end === -1) continue;
    const { statusCode, headers, cookies } = answerOf(JSON.parse(head.subarray(0, end).toString("utf8")));
    reply.writeHead(statusCode, { ...headers, ...(cookies.length > 0 ? { "set-cookie": cookies } : {}) });
    reply.flushHeaders();
    const rest = head.subarray(end + mark.byteLength);
    if (rest.byteLength > 0) reply.write(rest);
    head = null;
  }
  reply.end();
}
