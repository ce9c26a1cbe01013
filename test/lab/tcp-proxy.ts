/**
 * A TCP proxy that tests put in front of a control plane or a store, to cut, stall and heal it as a network would.
 *
 * `cut` is what a client notices at once (reset, refused); `stall` is what it notices only by its own timer: the
 * connection stands and says nothing, which is where lost answers come from. Both can be armed to happen as certain bytes
 * pass, so that a test hits the very message it means: what a server says on a websocket, and HTTP both ways, is plain text.
 */
import { connect, createServer, type Server, type Socket } from "node:net";

type Mode = "open" | "cut" | "stalled";

/** A watched text may be this long when it comes in two pieces; the marks that tests look for are far shorter. */
const watchedBytesMax = 256;

export interface TcpProxyOptions {
  readonly targetHost?: string;
  readonly targetPort: number;
  /** Default: any free one. */
  readonly listenPort?: number;
  /** One-way delay in each direction, in ms: 25 makes a 50 ms round trip. */
  readonly delayMs?: number;
}

/** Which way bytes go: from the clients, or to them. */
export type Direction = "up" | "down";

interface Watch {
  readonly text: Buffer;
  readonly direction: Direction;
  /** True when it has taken the chunk into its own hands. */
  readonly found: (passing: Passing) => boolean;
}

interface Passing {
  readonly from: Socket;
  readonly to: Socket;
  readonly chunk: Buffer;
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
  readonly #watches = new Set<Watch>();
  /** What a stall caught on its way; delivered by `heal`. */
  #withheld: Passing[] = [];
  #mode: Mode = "open";
  #delayMs: number;

  constructor(server: Server, port: number, options: TcpProxyOptions) {
    this.#server = server;
    this.#options = options;
    this.#delayMs = options.delayMs ?? 0;
    this.port = port;
    server.on("connection", (client) => this.#accept(client));
  }

  get mode(): Mode {
    return this.#mode;
  }

  /** From now on each direction takes this long, in ms, also on connections that stand; nothing overtakes what is on its way. */
  delay(delayMs: number): void {
    this.#delayMs = delayMs;
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

  /**
   * Cuts, once, when the text passes: `before` it arrives, so that nobody behind has seen it, or `after` it was handed on,
   * so that nothing that is said in answer comes back. Resolves when it has been cut; it stays cut until `heal`.
   */
  cutWhen(text: string, options: { direction: Direction; when: "before" | "after" }): Promise<void> {
    return new Promise((resolve) => {
      const cut = () => {
        this.cut();
        resolve();
      };
      this.#once(text, options.direction, ({ to, chunk }) => {
        if (options.when === "before") cut();
        else {
          this.stall();
          to.write(chunk, cut);
        }
      });
    });
  }

  /** Stalls, once, when the text comes: it is held back with all that follows, and arrives after `heal`. Resolves when it is held. */
  stallWhen(text: string, options: { direction: Direction }): Promise<void> {
    return new Promise((resolve) => {
      this.#once(text, options.direction, (passing) => {
        this.#withheld.push(passing);
        this.stall();
        resolve();
      });
    });
  }

  /** Resets each connection by which a client sends the text, and leaves the others alone; until the returned function is called. */
  refuse(text: string): { count: () => number; end: () => void } {
    let refused = 0;
    const watch: Watch = {
      text: Buffer.from(text),
      direction: "up",
      found: ({ from, to }) => {
        refused += 1;
        from.resetAndDestroy();
        to.resetAndDestroy();
        return true;
      },
    };
    this.#watches.add(watch);
    return { count: () => refused, end: () => void this.#watches.delete(watch) };
  }

  /** Disarms whatever waits for a text. */
  disarm(): void {
    this.#watches.clear();
  }

  #once(text: string, direction: Direction, found: (passing: Passing) => void): void {
    const watch: Watch = {
      text: Buffer.from(text),
      direction,
      found: (passing) => {
        this.#watches.delete(watch);
        found(passing);
        return true;
      },
    };
    this.#watches.add(watch);
  }

  /** Works again: stalled connections go on with what was held back, cut ones must be made anew. */
  heal(): void {
    this.#mode = "open";
    for (const { to, chunk } of this.#withheld.splice(0)) if (!to.destroyed) to.write(chunk);
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
    this.#withheld = [];
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
    this.#carry(client, target, "up", (bytes) => {
      this.bytesUp += bytes;
    });
    this.#carry(target, client, "down", (bytes) => {
      this.bytesDown += bytes;
    });
    // One accepted while stalled was paused by hand, and listening for data alone does not undo that.
    client.resume();
    client.once("close", over);
    target.once("close", over);
  }

  /** Data in order, each chunk after the delay that holds when it comes; a full receiver stops the sender. */
  #carry(from: Socket, to: Socket, direction: Direction, count: (bytes: number) => void): void {
    const onTheWay: { act: () => void; dueAt: number }[] = [];
    const arrive = () => {
      for (let first = onTheWay[0]; first !== undefined && first.dueAt <= performance.now(); first = onTheWay[0]) {
        onTheWay.shift();
        first.act();
      }
      const next = onTheWay[0];
      // Timers count whole ms and may come a fraction early.
      if (next !== undefined) setTimeout(arrive, Math.max(1, Math.ceil(next.dueAt - performance.now())));
    };
    const later = (act: () => void) => {
      if (this.#delayMs === 0 && onTheWay.length === 0) return act();
      onTheWay.push({ act, dueAt: Math.max(performance.now() + this.#delayMs, onTheWay.at(-1)?.dueAt ?? 0) });
      if (onTheWay.length === 1) setTimeout(arrive, this.#delayMs);
    };
    let tail: Buffer = Buffer.alloc(0);
    from.on("data", (chunk: Buffer) => {
      count(chunk.length);
      const before = tail;
      tail = (chunk.length >= watchedBytesMax ? chunk : Buffer.concat([before, chunk])).subarray(-watchedBytesMax);
      if (this.#caught(direction, before, { from, to, chunk })) return;
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

  /** Whether a watch has taken the chunk. A text may begin in the bytes before, but must end in this chunk. */
  #caught(direction: Direction, before: Buffer, passing: Passing): boolean {
    for (const watch of this.#watches) {
      if (watch.direction !== direction) continue;
      const begun = watch.text.length > 1 ? before.subarray(-(watch.text.length - 1)) : Buffer.alloc(0);
      if (Buffer.concat([begun, passing.chunk]).includes(watch.text) && watch.found(passing)) return true;
    }
    return false;
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
