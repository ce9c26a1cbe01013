/**
 * libvirt's message framing: `uint32 length` (which includes itself), a 24-byte header, the payload.
 * Source of the layout and limits: src/rpc/virnetprotocol.x (the same in 9.0.0 and 11.3.0).
 *
 * The parser is pushed whatever the socket gives and delivers the same frames under any cut of the bytes. It holds at
 * most one unfinished frame, in one buffer that grows by doubling up to that frame's own length: a peer that announces
 * 32 MiB and sends ten bytes costs 64 KiB, and each byte is copied O(1) times.
 */
import { payloadBytesMax } from "./xdr.ts";

/** Numbers of the programs that share one connection. */
export const Program = { REMOTE: 0x2000_8086, QEMU: 0x2000_8087, KEEPALIVE: 0x6b65_6570 } as const;

/** All three programs are at version 1 since they exist. */
export const programVersion = 1;

/** virNetMessageType. MESSAGE is an event from the daemon (serial 0). */
export const FrameType = {
  CALL: 0,
  REPLY: 1,
  MESSAGE: 2,
  STREAM: 3,
  CALL_WITH_FDS: 4,
  REPLY_WITH_FDS: 5,
  STREAM_HOLE: 6,
} as const;

/** virNetMessageStatus. CONTINUE belongs to streams. */
export const FrameStatus = { OK: 0, ERROR: 1, CONTINUE: 2 } as const;

const lengthBytes = 4;
const headerBytes = 24;
const frameBytesMin = lengthBytes + headerBytes;
/** VIR_NET_MESSAGE_MAX does not count the length word. */
const frameBytesMax = frameBytesMin + payloadBytesMax;
/** First allocation for a frame that arrives in pieces: VIR_NET_MESSAGE_INITIAL, enough for nearly all of them. */
const bodyBytesInitial = 65_536;

export type FrameHeader = {
  readonly program: number;
  readonly version: number;
  readonly procedure: number;
  readonly type: number;
  readonly serial: number;
  readonly status: number;
};

export type Frame = FrameHeader & { readonly payload: Uint8Array };

export type FrameCode = "frame.tooShort" | "frame.tooLong" | "frame.type" | "frame.status" | "frame.afterFailure";

/** The byte stream is not libvirt's: nothing after this point can be trusted. */
export class FrameError extends Error {
  override readonly name = "FrameError";
  readonly code: FrameCode;

  constructor(code: FrameCode, detail: string) {
    super(`${code}: ${detail}`);
    this.code = code;
  }
}

/** Where the parser stands; each state owns what it needs and nothing else. */
type ParserState =
  | { readonly name: "length"; readonly word: Uint8Array; held: number }
  | { readonly name: "body"; readonly bodyBytes: number; buffer: Uint8Array; held: number }
  | { readonly name: "failed"; readonly error: FrameError };

export class FrameParser {
  #state: ParserState = { name: "length", word: new Uint8Array(lengthBytes), held: 0 };

  /**
   * Takes the next bytes and calls `deliver` for each frame they complete, in order. Throws FrameError at the first
   * byte that cannot be libvirt's, after delivering every frame before it; from then on every push throws.
   * A payload may be a view of `chunk`.
   */
  push(chunk: Uint8Array, deliver: (frame: Frame) => void): void {
    let rest = chunk;
    while (rest.byteLength > 0) {
      const state = this.#state;
      switch (state.name) {
        case "failed":
          throw new FrameError("frame.afterFailure", state.error.message);
        case "length":
          rest = this.#length(state, rest);
          break;
        case "body":
          rest = this.#body(state, rest, deliver);
          break;
      }
    }
  }

  /** True when no frame has been begun: an end of stream here loses nothing. */
  get atBoundary(): boolean {
    return this.#state.name === "length" && this.#state.held === 0;
  }

  #length(state: ParserState & { name: "length" }, rest: Uint8Array): Uint8Array {
    const taken = Math.min(lengthBytes - state.held, rest.byteLength);
    state.word.set(rest.subarray(0, taken), state.held);
    state.held += taken;
    if (state.held === lengthBytes) {
      const frameBytes = new DataView(state.word.buffer).getUint32(0);
      if (frameBytes < frameBytesMin) {
        this.#fail("frame.tooShort", `a frame of ${frameBytes} bytes cannot hold its ${frameBytesMin}-byte header`);
      }
      if (frameBytes > frameBytesMax) {
        this.#fail("frame.tooLong", `a frame of ${frameBytes} bytes is over libvirt's limit of ${frameBytesMax}`);
      }
      this.#state = { name: "body", bodyBytes: frameBytes - lengthBytes, buffer: new Uint8Array(0), held: 0 };
    }
    return rest.subarray(taken);
  }

  #body(state: ParserState & { name: "body" }, rest: Uint8Array, deliver: (frame: Frame) => void): Uint8Array {
    const taken = Math.min(state.bodyBytes - state.held, rest.byteLength);
    const piece = rest.subarray(0, taken);
    let body: Uint8Array;
    if (taken === state.bodyBytes) {
      body = piece;
    } else {
      hold(state, piece);
      if (state.held < state.bodyBytes) return rest.subarray(taken);
      body = state.buffer.subarray(0, state.bodyBytes);
    }
    const frame = this.#frame(body);
    this.#state = { name: "length", word: new Uint8Array(lengthBytes), held: 0 };
    deliver(frame);
    return rest.subarray(taken);
  }

  #frame(body: Uint8Array): Frame {
    const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
    const type = view.getUint32(12);
    const status = view.getUint32(20);
    if (type > FrameType.STREAM_HOLE) this.#fail("frame.type", `unknown message type ${type}`);
    if (status > FrameStatus.CONTINUE) this.#fail("frame.status", `unknown message status ${status}`);
    return {
      program: view.getUint32(0),
      version: view.getUint32(4),
      procedure: view.getInt32(8),
      type,
      serial: view.getUint32(16),
      status,
      payload: body.subarray(headerBytes),
    };
  }

  #fail(code: FrameCode, detail: string): never {
    const error = new FrameError(code, detail);
    this.#state = { name: "failed", error };
    throw error;
  }
}

function hold(state: ParserState & { name: "body" }, piece: Uint8Array): void {
  const needed = state.held + piece.byteLength;
  if (needed > state.buffer.byteLength) {
    const capacity = Math.max(needed, state.buffer.byteLength * 2, bodyBytesInitial);
    const grown = new Uint8Array(Math.min(capacity, state.bodyBytes));
    grown.set(state.buffer.subarray(0, state.held));
    state.buffer = grown;
  }
  state.buffer.set(piece, state.held);
  state.held = needed;
}

/** One frame as bytes. Throws FrameError `frame.tooLong` for a payload that libvirt would refuse. */
export function encodeFrame(frame: Frame): Uint8Array {
  const frameBytes = frameBytesMin + frame.payload.byteLength;
  if (frameBytes > frameBytesMax) {
    throw new FrameError("frame.tooLong", `a frame of ${frameBytes} bytes is over libvirt's limit of ${frameBytesMax}`);
  }
  const bytes = new Uint8Array(frameBytes);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, frameBytes);
  view.setUint32(4, frame.program);
  view.setUint32(8, frame.version);
  view.setInt32(12, frame.procedure);
  view.setUint32(16, frame.type);
  view.setUint32(20, frame.serial);
  view.setUint32(24, frame.status);
  bytes.set(frame.payload, frameBytesMin);
  return bytes;
}
