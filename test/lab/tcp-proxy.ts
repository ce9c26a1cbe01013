/**
 * A TCP proxy that tests put in front of a control plane or a store, to cut, stall and heal it as a network would.
 *
 * `cut` is what a client notices at once (reset, refused); `stall` is what it notices only by its own timer: the
 * connection stands and says nothing, which is where lost answers come from.
 */
import { connect, createServer, type Server, type Socket } from "node:net";

type Mode = "open" | "cut" | "stalled";

export interface TcpProxyOptions {
  readonly targetHost?: string;
  readonly targetPort: number;
  /** Default: any free one. */
  readonly listenPort?: number;
  /** One-way delay in each direction, in ms: 25 makes a 50 ms round trip. */
  readonly delayMs?: number;
}

export class TcpProxy {
  readonly port: number;
  /** Connections accepted since the start, also those that were refused at once. */
  connections = 0;
  /** Bytes from the clients, and to them. */
  bytesUp = 0;
  bytesDown = 0;
  readonly #server: Server;
  readonly #options: TcpProxyOptions;
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  readonly #waiting = new Set<Socket>();
  #mode: Mode = "open";

  constructor(server: Server, port: number, options: TcpProxyOptions) {
    this.#server = server;
    this.#options = options;
    this.port = port;
    server.on("connection", (client) => this.#accept(client));
  }

  get mode(): Mode {
    return this.#mode;
  }

  /** Resets every connection, and each new one. */
  cut(): void {
    this.#mode = "cut";
    this.#resetAll();
  }

  /**
   * Takes no more bytes, from either side, and closes nothing; new connections are accepted and silent. What was taken
   * before still arrives, after its `delayMs`.
   */
  stall(): void {
    this.#mode = "stalled";
    for (const pair of this.#pairs) for (const socket of pair) socket.pause();
  }

  /** Works again: stalled connections go on with what was held back, cut ones must be made anew. */
  heal(): void {
    this.#mode = "open";
    for (const pair of this.#pairs) for (const socket of pair) socket.resume();
    for (const client of [...this.#waiting]) {
      this.#waiting.delete(client);
      this.#join(client);
    }
  }

  /** Resets every connection once and goes on accepting: a restart of whatever is behind. */
  resetOnce(): void {
    this.#resetAll();
  }

  /** Ends the proxy and every connection through it. */
  async close(): Promise<void> {
    this.#resetAll();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #resetAll(): void {
    for (const pair of this.#pairs) for (const socket of pair) socket.resetAndDestroy();
    for (const client of this.#waiting) client.resetAndDestroy();
    this.#pairs.clear();
    this.#waiting.clear();
  }

  #accept(client: Socket): void {
    this.connections += 1;
    client.on("error", () => client.destroy());
    if (this.#mode === "cut") {
      client.resetAndDestroy();
      return;
    }
    if (this.#mode === "stalled") {
      client.pause();
      this.#waiting.add(client);
      client.once("close", () => this.#waiting.delete(client));
      return;
    }
    this.#join(client);
  }

  #join(client: Socket): void {
    const target = connect({ host: this.#options.targetHost ?? "127.0.0.1", port: this.#options.targetPort });
    target.on("error", () => target.destroy());
    client.setNoDelay(true);
    target.setNoDelay(true);
    const pair = [client, target] as const;
    this.#pairs.add(pair);
    const over = () => this.#pairs.delete(pair);
    this.#carry(client, target, (bytes) => {
      this.bytesUp += bytes;
    });
    this.#carry(target, client, (bytes) => {
      this.bytesDown += bytes;
    });
    // One accepted while stalled was paused by hand, and listening for data alone does not undo that.
    client.resume();
    client.once("close", over);
    target.once("close", over);
  }

  /** Data in order, each chunk after `delayMs`; a full receiver stops the sender. */
  #carry(from: Socket, to: Socket, count: (bytes: number) => void): void {
    const delayMs = this.#options.delayMs ?? 0;
    const later = (act: () => void) => (delayMs === 0 ? act() : void setTimeout(act, delayMs));
    from.on("data", (chunk) => {
      count(chunk.length);
      later(() => {
        if (to.destroyed || to.write(chunk)) return;
        from.pause();
        to.once("drain", () => {
          if (this.#mode !== "stalled") from.resume();
        });
      });
    });
    from.on("end", () => later(() => to.end()));
    from.on("close", () => later(() => to.destroy()));
  }
}

/** Starts a proxy on 127.0.0.1. */
export async function startTcpProxy(options: TcpProxyOptions): Promise<TcpProxy> {
  // Half-open, because an HTTP client may end its side and still want the answer.
  const server = createServer({ allowHalfOpen: true });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.listenPort ?? 0, "127.0.0.1", resolve);
  });
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("a TCP server without a port");
  return new TcpProxy(server, address.port, options);
}
