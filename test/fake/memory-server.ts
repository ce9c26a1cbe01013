/** The app of a memory fleet behind a real port, for clients that speak HTTP. Can be taken away and given back, as a control plane that restarts. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { pipeline } from "node:stream/promises";

type Fetch = (request: Request) => Response | Promise<Response>;

async function requestOf(message: IncomingMessage, origin: string): Promise<Request> {
  const headers = new Headers();
  for (const [name, value] of Object.entries(message.headers))
    if (value !== undefined) headers.set(name, Array.isArray(value) ? value.join(", ") : value);
  const parts: Buffer[] = [];
  for await (const part of message) parts.push(part);
  const body = Buffer.concat(parts);
  return new Request(new URL(message.url ?? "/", origin), {
    method: message.method ?? "GET",
    headers,
    ...(body.byteLength === 0 ? {} : { body }),
  });
}

async function answer(fetch: Fetch, origin: string, message: IncomingMessage, reply: ServerResponse): Promise<void> {
  const response = await fetch(await requestOf(message, origin));
  // Node's own header keeps Node's own clock, whatever clock a test drives; S3's clients go by it.
  reply.setHeader("date", new Date().toUTCString());
  reply.writeHead(response.status, Object.fromEntries(response.headers));
  reply.flushHeaders();
  if (response.body === null) reply.end();
  // A client that leaves ends the pipeline, which cancels the stream.
  else await pipeline(chunks(response.body), reply).catch(() => undefined);
}

async function* chunks(stream: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  yield* stream;
}

export class MemoryServer {
  #server: Server | null = null;
  #port = 0;
  fetch: Fetch;

  constructor(fetch: Fetch) {
    this.fetch = fetch;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  /** Listens; the second time on the same port as the first. */
  async start(): Promise<void> {
    const server = createServer((message, reply) => {
      void answer((request) => this.fetch(request), this.url, message, reply).catch(() => reply.destroy());
    });
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(this.#port, "127.0.0.1", resolve);
    });
    const address = server.address();
    if (typeof address === "object" && address !== null) this.#port = address.port;
    this.#server = server;
  }

  /** Gone, as by kill -9: every connection is cut. */
  async stop(): Promise<void> {
    const server = this.#server;
    this.#server = null;
    if (server === null) return;
    const closed = new Promise((resolve) => server.close(resolve));
    server.closeAllConnections();
    await closed;
  }
}
