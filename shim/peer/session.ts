/**
 * One peer's connection at the side that listens: reads frames, has one request at a time answered, answers pings at once
 * whatever else is going on. What cannot be read is refused by name and ends the connection; an answer goes out under the
 * id of its request or not at all.
 */
import type { TLSSocket } from "node:tls";
import { Fault, type FaultBody } from "#protocol/fault";
import { type PeerReply, type PeerRequest, peerRequestSchema } from "#protocol/ticket";
import type { Log } from "../log.ts";
import {
  type AnswererFrame,
  askerFrameSchema,
  connectionReplyId,
  encodeFrame,
  frameBytesMax,
  PeerFrameError,
  PeerFrameReader,
} from "./frame.ts";
import type { Seat, Seats } from "./seats.ts";

export interface SessionParts {
  /** After its handshake. */
  socket: TLSSocket;
  /** The key that the peer has proven. */
  publicKey: string;
  seats: Seats;
  seat: Seat;
  answer(peerPublicKey: string, request: PeerRequest): Promise<PeerReply>;
  log: Log;
  /** Without a byte in either direction: three missed pings and a bit. */
  idleMs: number;
  /** From the last frame to the end, so that a refusal is read before the connection breaks under it. */
  lingerMs: number;
}

export class PeerSession {
  readonly #parts: SessionParts;
  readonly #reader = new PeerFrameReader();
  #ending = false;

  constructor(parts: SessionParts) {
    this.#parts = parts;
    const { socket } = parts;
    socket.setTimeout(parts.idleMs, () => this.#drop("it was silent for too long"));
    socket.on("data", (chunk: Buffer) => this.#read(chunk));
  }

  /** Sends what is written and ends; after `lingerMs` whatever is left is dropped. */
  end(): void {
    const { socket, lingerMs } = this.#parts;
    if (this.#ending) return;
    this.#ending = true;
    socket.end();
    const timer = setTimeout(() => socket.destroy(), lingerMs);
    timer.unref();
    socket.once("close", () => clearTimeout(timer));
  }

  #drop(cause: string): void {
    const { socket, publicKey, log } = this.#parts;
    log.write("debug", "a peer's connection was dropped", { peer: publicKey, cause });
    socket.destroy();
  }

  #read(chunk: Buffer): void {
    // What comes after the end is read and thrown away: unread bytes would turn the end into a reset, and lose the refusal.
    if (this.#ending) return;
    try {
      this.#reader.push(chunk, (value) => this.#frame(value));
    } catch (error) {
      if (!(error instanceof PeerFrameError)) throw error;
      const code = error.code === "frame.tooLong" ? "message.tooLarge" : "message.malformed";
      this.#refuse(connectionReplyId, unreadable(code, error.message));
    }
  }

  #frame(value: unknown): void {
    if (this.#ending) return;
    const frame = askerFrameSchema.safeParse(value);
    if (!frame.success) {
      this.#refuse(connectionReplyId, unreadable("message.malformed", "a frame of no known shape"));
      return;
    }
    if (frame.data.type === "ping") {
      this.#write({ type: "pong" });
      return;
    }
    const { id } = frame.data;
    const request = peerRequestSchema.safeParse(frame.data.request);
    if (!request.success) {
      const where = request.error.issues[0]?.path.join(".") ?? "";
      this.#refuse(id, unreadable("message.malformed", `the request does not fit its schema at "${where}"`));
      return;
    }
    if (this.#parts.seat.working) {
      this.#refuse(id, unreadable("message.malformed", "a second request before the answer to the first"));
      return;
    }
    void this.#work(id, request.data);
  }

  /** Never rejects. */
  async #work(id: number, request: PeerRequest): Promise<void> {
    const { seats, seat, answer, publicKey } = this.#parts;
    seat.working = true;
    const reply = await answer(publicKey, request).catch((error: unknown) => this.#failed(error));
    seat.working = false;
    if (reply.type !== "refused") seats.trust(seat);
    if (!this.#ending) this.#write({ type: "reply", id, reply });
  }

  #failed(error: unknown): PeerReply {
    if (error instanceof Fault) return { type: "refused", fault: error.toBody() };
    this.#parts.log.write("error", "a peer's request ended in an error of our own", {
      peer: this.#parts.publicKey,
      error: error instanceof Error ? (error.stack ?? error.message) : String(error),
    });
    return {
      type: "refused",
      fault: {
        code: "internal",
        cause: "The other host's shim failed by an error of its own; its log has the text.",
        action: "Look at the shim's log on that host (journalctl -u vmferry-shim) and report it as a defect.",
        retry: "safe",
      },
    };
  }

  #refuse(id: number, fault: FaultBody): void {
    this.#parts.log.write("debug", "a peer's frame was refused", { peer: this.#parts.publicKey, cause: fault.cause });
    this.#write({ type: "reply", id, reply: { type: "refused", fault } });
    this.end();
  }

  #write(frame: AnswererFrame): void {
    const { socket } = this.#parts;
    if (socket.destroyed) return;
    // One answer may be under way, and small things behind it; more is a peer that asks and does not read.
    if (socket.writableLength > frameBytesMax) this.#drop("it does not read what it asked for");
    else socket.write(encodeFrame(frame));
  }
}

const unreadable = (code: "message.malformed" | "message.tooLarge", why: string): FaultBody => ({
  code,
  cause: `The shim of the other host cannot read what it was sent: ${why}.`,
  action: "Look whether both hosts run the same version of vmferry; otherwise report it as a defect.",
  retry: "person",
});
