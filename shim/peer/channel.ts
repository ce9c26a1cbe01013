/**
 * One proven connection at the side that dialled: one request at a time, pings in between and meanwhile. Whoever waits for
 * an answer always ends: with that answer, or with the reason why there is none. An answer to nothing ends the connection.
 */
import type { TLSSocket } from "node:tls";
import type { PeerReply, PeerRequest } from "#protocol/ticket";
import { type AnswererFrame, answererFrameSchema, connectionReplyId, encodeFrame, PeerFrameReader } from "./frame.ts";

export interface ChannelBounds {
  /** Between two pings: a dead peer is noticed after three, and the other side's patience (30 s) is not tried. */
  pingMs: number;
}

/** Pings without a byte from the other side until it is given up. */
const unansweredPingsMax = 3;

/** There will be no answer on this connection. */
export class ChannelError extends Error {
  override readonly name = "ChannelError";
  /** False: the other side cannot have read the request wholly, so it has done nothing by it. */
  readonly written: boolean;

  constructor(detail: string, written: boolean) {
    super(detail);
    this.written = written;
  }
}

interface Waiting {
  id: number;
  written: boolean;
  settle(outcome: PeerReply | ChannelError): void;
}

export class Channel {
  readonly #socket: TLSSocket;
  readonly #reader = new PeerFrameReader();
  readonly #onAlive: () => void;
  readonly #onEnd: (detail: string) => void;
  readonly #pinging: NodeJS.Timeout;
  #unansweredPings = 0;
  #lastId = connectionReplyId;
  #waiting: Waiting | null = null;
  #ended: string | null = null;

  /** `onAlive`: something was heard, so the other side did not only accept. `onEnd`: once, however it ended. */
  constructor(socket: TLSSocket, bounds: ChannelBounds, on: { alive: () => void; end: (detail: string) => void }) {
    this.#socket = socket;
    this.#onAlive = on.alive;
    this.#onEnd = on.end;
    this.#pinging = setInterval(() => this.#ping(), bounds.pingMs);
    this.#pinging.unref();
    // Kept connections are no reason for a process to stay.
    socket.unref();
    socket.on("data", (chunk: Buffer) => this.#read(chunk));
    socket.on("error", (error) => this.#end(`the connection broke: ${error.message}`));
    socket.on("end", () => this.#end("the other side closed the connection"));
    socket.on("close", () => this.#end("the connection broke"));
    if (!socket.destroyed) this.#ping();
  }

  get isOpen(): boolean {
    return this.#ended === null && !this.#socket.destroyed;
  }

  /** Rejects with ChannelError. When `signal` aborts the channel ends: its answer, should it come, belongs to nobody. */
  ask(request: PeerRequest, signal: AbortSignal): Promise<PeerReply> {
    return new Promise((resolve, reject) => {
      if (this.#ended !== null || this.#waiting !== null) {
        reject(new ChannelError(this.#ended ?? "another request waits on this connection", false));
        return;
      }
      this.#lastId += 1;
      const giveUp = (): void => this.#end("no answer came in time");
      const waiting: Waiting = {
        id: this.#lastId,
        written: false,
        settle: (outcome) => {
          signal.removeEventListener("abort", giveUp);
          this.#waiting = null;
          this.#socket.unref();
          if (outcome instanceof ChannelError) reject(outcome);
          else resolve(outcome);
        },
      };
      const bytes = encodeFrame({ type: "request", id: waiting.id, request });
      this.#waiting = waiting;
      this.#socket.ref();
      signal.addEventListener("abort", giveUp, { once: true });
      if (signal.aborted) {
        giveUp();
        return;
      }
      this.#socket.write(bytes, (error) => {
        // The kernel has all of it: from now on nobody here knows what the other side has read.
        if (error === null || error === undefined) waiting.written = true;
      });
    });
  }

  close(): void {
    this.#end("the connection was closed here");
  }

  #ping(): void {
    // Behind a long frame on a slow line a ping proves nothing; TCP's own timeout and the asker's patience hold there.
    if (this.#socket.writableLength > 0) return;
    if (this.#unansweredPings >= unansweredPingsMax) {
      this.#end(`the other side was silent over ${unansweredPingsMax} pings`);
      return;
    }
    this.#unansweredPings += 1;
    this.#socket.write(encodeFrame({ type: "ping" }));
  }

  #read(chunk: Buffer): void {
    this.#unansweredPings = 0;
    try {
      this.#reader.push(chunk, (value) => this.#decode(value));
    } catch (error) {
      this.#end(`the answer cannot be read: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  #decode(value: unknown): void {
    if (this.#ended !== null) return;
    const frame = answererFrameSchema.safeParse(value);
    if (frame.success) {
      this.#onAlive();
      this.#frame(frame.data);
      return;
    }
    const where = frame.error.issues[0]?.path.join(".") ?? "";
    this.#end(`the answer does not fit its schema at "${where}"`);
  }

  #frame(frame: AnswererFrame): void {
    if (frame.type === "pong") return;
    if (frame.id === this.#waiting?.id) {
      this.#waiting.settle(frame.reply);
      return;
    }
    if (frame.id === connectionReplyId && frame.reply.type === "refused")
      this.#end(`the other side refused the connection: ${frame.reply.fault.cause}`);
    else this.#end(`an answer came to request ${frame.id}, which nobody asks`);
  }

  /** The one way a channel ends; only the first reason counts. */
  #end(detail: string): void {
    if (this.#ended !== null) return;
    this.#ended = detail;
    clearInterval(this.#pinging);
    const waiting = this.#waiting;
    this.#socket.destroy();
    waiting?.settle(new ChannelError(detail, waiting.written));
    this.#onEnd(detail);
  }
}
