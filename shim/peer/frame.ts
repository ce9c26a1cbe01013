/**
 * Frames of the peer channel: a length (32 bits, big endian, of what follows) and that many bytes of JSON in UTF-8. The
 * reader gives the same values under any cut of the stream, holds at most one unfinished frame, and grows for it only as
 * bytes arrive: a peer that announces the largest frame and sends ten bytes costs 64 KiB.
 */
import * as z from "zod/mini";
import { peerReplySchema } from "#protocol/ticket";

/** One frame. A cookie of libvirt's 4 MiB is 5.4 MiB in base64; the rest is room for ticket, result and envelope. */
export const frameBytesMax = 6 * 1024 * 1024;

/** First allocation for a frame that arrives in pieces: enough for nearly every one. */
const bodyBytesInitial = 64 * 1024;
const lengthBytes = 4;

/** From the side that dialled. `request` is decoded apart, so that the answer to an unreadable one can still carry its id. */
export const askerFrameSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("ping") }),
  z.object({ type: z.literal("request"), id: z.int().check(z.minimum(1)), request: z.unknown() }),
]);
export type AskerFrame = z.infer<typeof askerFrameSchema>;

/** Id of a refusal that belongs to the connection and to no request. */
export const connectionReplyId = 0;

/** From the side that listens. */
export const answererFrameSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("pong") }),
  z.object({ type: z.literal("reply"), id: z.int().check(z.minimum(connectionReplyId)), reply: peerReplySchema }),
]);
export type AnswererFrame = z.infer<typeof answererFrameSchema>;

export type PeerFrameCode = "frame.empty" | "frame.tooLong" | "frame.notJson" | "frame.afterFailure";

/** The bytes are not this channel's: nothing after this point can be trusted. */
export class PeerFrameError extends Error {
  override readonly name = "PeerFrameError";
  readonly code: PeerFrameCode;

  constructor(code: PeerFrameCode, detail: string) {
    super(detail);
    this.code = code;
  }
}

/** Throws PeerFrameError `frame.tooLong`. */
export function encodeFrame(frame: AskerFrame | AnswererFrame): Buffer {
  const text = JSON.stringify(frame);
  const bodyBytes = Buffer.byteLength(text, "utf8");
  if (bodyBytes > frameBytesMax) throw tooLong(bodyBytes);
  const bytes = Buffer.allocUnsafe(lengthBytes + bodyBytes);
  bytes.writeUInt32BE(bodyBytes);
  bytes.write(text, lengthBytes, "utf8");
  return bytes;
}

export class PeerFrameReader {
  readonly #word = new Uint8Array(lengthBytes);
  #wordHeld = 0;
  /** Of the frame being read; null while its length is. */
  #bodyBytes: number | null = null;
  #body = new Uint8Array(0);
  #bodyHeld = 0;
  #failed = false;

  /** Takes the next bytes and calls `deliver` for each frame they complete, in order. Throws PeerFrameError after delivering
   *  every frame in front of the broken one; from then on every push throws. */
  push(chunk: Uint8Array, deliver: (value: unknown) => void): void {
    if (this.#failed) throw new PeerFrameError("frame.afterFailure", "the stream was broken before");
    let rest = chunk;
    while (rest.byteLength > 0) rest = this.#bodyBytes === null ? this.#length(rest) : this.#frame(rest, deliver);
  }

  #length(rest: Uint8Array): Uint8Array {
    const taken = Math.min(lengthBytes - this.#wordHeld, rest.byteLength);
    this.#word.set(rest.subarray(0, taken), this.#wordHeld);
    this.#wordHeld += taken;
    if (this.#wordHeld === lengthBytes) {
      const bodyBytes = new DataView(this.#word.buffer).getUint32(0);
      if (bodyBytes === 0) throw this.#fail(new PeerFrameError("frame.empty", "a frame of no bytes"));
      if (bodyBytes > frameBytesMax) throw this.#fail(tooLong(bodyBytes));
      this.#wordHeld = 0;
      this.#bodyBytes = bodyBytes;
    }
    return rest.subarray(taken);
  }

  #frame(rest: Uint8Array, deliver: (value: unknown) => void): Uint8Array {
    const bodyBytes = this.#bodyBytes ?? 0;
    const taken = Math.min(bodyBytes - this.#bodyHeld, rest.byteLength);
    const piece = rest.subarray(0, taken);
    let whole = piece;
    if (taken < bodyBytes) {
      this.#hold(piece, bodyBytes);
      if (this.#bodyHeld < bodyBytes) return rest.subarray(taken);
      whole = this.#body.subarray(0, bodyBytes);
    }
    this.#bodyBytes = null;
    this.#body = new Uint8Array(0);
    this.#bodyHeld = 0;
    deliver(this.#decode(whole));
    return rest.subarray(taken);
  }

  #hold(piece: Uint8Array, bodyBytes: number): void {
    const needed = this.#bodyHeld + piece.byteLength;
    if (needed > this.#body.byteLength) {
      const capacity = Math.max(needed, this.#body.byteLength * 2, bodyBytesInitial);
      const grown = new Uint8Array(Math.min(capacity, bodyBytes));
      grown.set(this.#body.subarray(0, this.#bodyHeld));
      this.#body = grown;
    }
    this.#body.set(piece, this.#bodyHeld);
    this.#bodyHeld = needed;
  }

  #decode(body: Uint8Array): unknown {
    try {
      return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
    } catch {
      // The parser's own text may quote a cookie (I9).
      throw this.#fail(new PeerFrameError("frame.notJson", "a frame that is not JSON in UTF-8"));
    }
  }

  #fail(error: PeerFrameError): PeerFrameError {
    this.#failed = true;
    return error;
  }
}

const tooLong = (bodyBytes: number) =>
  new PeerFrameError("frame.tooLong", `a frame of ${bodyBytes} bytes is over the limit of ${frameBytesMax}`);
