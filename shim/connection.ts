/**
 * One websocket session with the control plane, from dialling to its end: challenge -> hello -> welcome, then messages.
 *
 * - C1: `runConnection` resolves with an outcome and never rejects; the supervisor's loop is a switch over it.
 * - C2: every state owns its timers; leaving it ends them. Nothing of one attempt can touch another.
 * - C3: a peer that says nothing, not even a pong, for two heartbeats is dead, whatever its TCP connection looks like. Where nobody promised that
 *   pings are answered (a socket that was proved in its request: API Gateway), it holds from the first pong on, and who gives none is asked in words,
 *   "ping", every few heartbeats: that costs a message each time, and TCP alone would take a quarter of an hour to tell.
 * - C4: nothing is sent before welcome but the hello, and nothing at all once the session has ended.
 * - C5: a message that cannot be decoded ends a session that is not open yet, and is passed over with a log line in one
 *   that is: dropping the socket would only bring it back again.
 */
import WebSocket, { type RawData } from "ws";
import { decodeDown, encode } from "#protocol/codec";
import { Fault, type FaultBody } from "#protocol/fault";
import { frameBytesMax, messageBytesMax } from "#protocol/limits";
import {
  type DownMessage,
  type HostFacts,
  protocolFeatures,
  protocolVersions,
  type UpMessage,
} from "#protocol/message";
import type { Clock } from "./clock.ts";
import type { Dial } from "./door.ts";
import type { Log } from "./log.ts";

export type ConnectionOutcome =
  /** There was a session for `heldMs`, and it ended. */
  | { kind: "served"; heldMs: number; cause: string }
  /** The control plane said no; a person has to do what `fault.action` says. */
  | { kind: "refused"; fault: FaultBody }
  /** No session came about; the next attempt may be luckier. */
  | { kind: "retryable"; cause: string; refusedStatus?: number | undefined }
  /** We cannot make a session at all, and trying again would change nothing. */
  | { kind: "fatal"; fault: FaultBody }
  /** We were asked to end it. */
  | { kind: "stopped" };

export type Welcome = Extract<DownMessage, { type: "welcome" }>;

/** An open session. */
export interface Session {
  welcome: Welcome;
  /** False when the session has ended or its socket does not take more now. Throws `Fault` `message.tooLarge`. */
  send(message: UpMessage): boolean;
}

export interface ConnectionParts {
  dial: Dial;
  hostId: string;
  /** The session that this one takes over from. */
  renews?: string | undefined;
  /** The signature over the challenge, base64url. */
  sign(nonce: string): string;
  /** Facts for the hello; must not take long and never rejects. */
  facts(): Promise<HostFacts>;
  onSession(session: Session): void;
  onMessage(message: DownMessage): void;
  clock: Clock;
  log: Log;
  /** Ends the connection; the outcome is then `stopped`. */
  signal: AbortSignal;
  /** Time for dialling and for the handshake, each. */
  handshakeMs?: number;
}

/** A cold function and a slow line answer within seconds; more is a peer that will not. */
const handshakeMsDefault = 15_000;

/** What may wait in the socket: reports are repeated, so piling them up on a line that takes nothing helps nobody. */
const waitingBytesMax = 1024 * 1024;

type State =
  | { at: "dialling"; timer: NodeJS.Timeout }
  | { at: "greeting"; timer: NodeJS.Timeout }
  | { at: "serving"; heartbeat: NodeJS.Timeout; fromMs: number; heardMs: number }
  | { at: "closed" };

/** Dials, serves and ends one session (C1). */
export function runConnection(parts: ConnectionParts): Promise<ConnectionOutcome> {
  if (parts.signal.aborted) return Promise.resolve({ kind: "stopped" });
  return new Promise((resolve) => new Attempt(parts, resolve).start());
}

class Attempt {
  readonly #parts: ConnectionParts;
  readonly #resolve: (outcome: ConnectionOutcome) => void;
  readonly #socket: WebSocket;
  readonly #handshakeMs: number;
  readonly #stop = () => this.#end({ kind: "stopped" }, 1000);
  #state: State = { at: "closed" };
  #greeted = false;
  #pongs = 0;
  #beats = 0;
  #spokenPongs = 0;

  constructor(parts: ConnectionParts, resolve: (outcome: ConnectionOutcome) => void) {
    this.#parts = parts;
    this.#resolve = resolve;
    this.#handshakeMs = parts.handshakeMs ?? handshakeMsDefault;
    this.#socket = new WebSocket(parts.dial.address, {
      headers: parts.dial.headers,
      maxPayload: messageBytesMax,
      perMessageDeflate: false,
      followRedirects: false,
    });
  }

  start(): void {
    const { signal } = this.#parts;
    signal.addEventListener("abort", this.#stop, { once: true });
    this.#state = { at: "dialling", timer: this.#patience("no answer while dialling") };
    const socket = this.#socket;
    socket.on("open", () => {
      if (this.#state.at !== "dialling") return;
      clearTimeout(this.#state.timer);
      this.#state = { at: "greeting", timer: this.#patience("no challenge or welcome came") };
      const { nonce } = this.#parts.dial;
      if (nonce !== null) void this.#greet(nonce, protocolVersions);
    });
    socket.on("upgrade", (response) => response.socket.setKeepAlive(true, keepAliveMs));
    socket.on("message", (data, binary) => this.#receive(data, binary));
    socket.on("ping", () => this.#heard());
    socket.on("pong", () => {
      this.#pongs += 1;
      this.#heard();
    });
    socket.on("error", (error) => this.#lost(`the socket failed: ${error.message}`));
    socket.on("unexpected-response", (_request, response) => {
      const status = response.statusCode ?? 0;
      response.resume();
      const cause = `the control plane answered HTTP ${status} instead of opening a websocket`;
      this.#end({ kind: "retryable", cause, refusedStatus: status });
    });
    socket.on("close", (code, reason) =>
      this.#lost(`the control plane closed the socket (${code}${reason.byteLength > 0 ? `, ${reason}` : ""})`),
    );
  }

  #patience(cause: string): NodeJS.Timeout {
    return setTimeout(() => this.#lost(`${cause} within ${this.#handshakeMs} ms`), this.#handshakeMs);
  }

  #receive(data: RawData, binary: boolean): void {
    if (this.#state.at === "closed") return;
    this.#heard();
    if (!binary && data.toString() === "pong") {
      this.#spokenPongs += 1;
      return;
    }
    let message: DownMessage;
    try {
      if (binary) throw new TypeError("a binary message, where only text is expected");
      message = decodeDown(data.toString());
    } catch (error) {
      const cause = error instanceof Fault ? error.cause_ : String(error);
      if (this.#state.at === "serving")
        this.#parts.log.write("error", "a message of the control plane was not understood and passed over", { cause });
      else this.#lost(cause);
      return;
    }
    if (message.type === "refused") this.#end({ kind: "refused", fault: message.fault }, 1000);
    else if (this.#state.at === "serving") this.#serve(message);
    else if (message.type === "challenge" && !this.#greeted) void this.#greet(message.nonce, message.protocols);
    else if (message.type === "welcome" && this.#greeted) this.#open(message);
    else this.#lost(`a ${message.type} message came before the session was open`);
  }

  async #greet(nonce: string, peer: { min: number; max: number }): Promise<void> {
    this.#greeted = true;
    const { hostId, sign, facts, renews } = this.#parts;
    if (peer.max < protocolVersions.min || peer.min > protocolVersions.max) {
      const older = peer.max < protocolVersions.min ? "the control plane" : "this shim";
      this.#end({
        kind: "refused",
        fault: {
          code: "shim.incompatible",
          cause: `The control plane speaks protocol ${peer.min} to ${peer.max}, this shim ${protocolVersions.min} to ${protocolVersions.max}.`,
          action: `Update ${older}.`,
          retry: "person",
        },
      });
      return;
    }
    try {
      const hello: UpMessage = {
        type: "hello",
        protocols: protocolVersions,
        features: [...protocolFeatures],
        hostId,
        signature: sign(nonce),
        facts: await facts(),
        ...(renews === undefined ? {} : { renews }),
      };
      if (this.#state.at === "greeting") this.#socket.send(encode(hello));
    } catch (error) {
      this.#end({ kind: "fatal", fault: helloFault(error) });
    }
  }

  #open(welcome: Welcome): void {
    if (this.#state.at === "greeting") clearTimeout(this.#state.timer);
    const fromMs = this.#parts.clock.monotonicMs();
    const heartbeat = setInterval(() => this.#beat(welcome.heartbeatMs), welcome.heartbeatMs);
    this.#state = { at: "serving", heartbeat, fromMs, heardMs: fromMs };
    this.#guard(() =>
      this.#parts.onSession({
        welcome,
        send: (message) => this.#send(message),
      }),
    );
  }

  /** C3. The ping asks for a pong, which every websocket peer gives by itself. */
  #beat(everyMs: number): void {
    if (this.#state.at !== "serving") return;
    const silentMs = this.#parts.clock.monotonicMs() - this.#state.heardMs;
    this.#beats += 1;
    const isTelling = this.#parts.dial.nonce === null || this.#pongs > 0;
    if (!isTelling && this.#beats % spokenBeats === 0) this.#socket.send("ping");
    const silentMax = isTelling ? 2 : this.#spokenPongs > 0 ? 2 * spokenBeats : Number.POSITIVE_INFINITY;
    if (silentMs >= silentMax * everyMs) this.#lost(`the control plane was silent for ${Math.round(silentMs)} ms`);
    else this.#socket.ping();
  }

  #heard(): void {
    if (this.#state.at === "serving") this.#state.heardMs = this.#parts.clock.monotonicMs();
  }

  #serve(message: DownMessage): void {
    if (message.type === "challenge" || message.type === "welcome") {
      this.#lost(`a second ${message.type} came in an open session`);
      return;
    }
    this.#guard(() => this.#parts.onMessage(message));
  }

  /** A listener that throws is a defect of ours; it must not take the session with it. */
  #guard(listener: () => void): void {
    try {
      listener();
    } catch (error) {
      this.#parts.log.write("error", "a message was not handled", {
        error: error instanceof Error ? (error.stack ?? error.message) : String(error),
      });
    }
  }

  #send(message: UpMessage): boolean {
    const text = encode(message);
    if (this.#state.at !== "serving" || this.#socket.readyState !== WebSocket.OPEN) return false;
    if (this.#socket.bufferedAmount > waitingBytesMax) return false;
    const bytes = Buffer.from(text, "utf8");
    for (let at = 0; at < bytes.byteLength; at += frameBytesMax)
      this.#socket.send(bytes.subarray(at, at + frameBytesMax), {
        binary: false,
        fin: at + frameBytesMax >= bytes.byteLength,
      });
    return true;
  }

  /** The session or the attempt at one is over, not by our wish. */
  #lost(cause: string): void {
    this.#end(
      this.#state.at === "serving"
        ? { kind: "served", heldMs: this.#parts.clock.monotonicMs() - this.#state.fromMs, cause }
        : { kind: "retryable", cause },
    );
  }

  /** The one way out (C2). Only the first call counts. With `code` the peer is told. */
  #end(outcome: ConnectionOutcome, code?: number): void {
    const state = this.#state;
    if (state.at === "closed") return;
    this.#state = { at: "closed" };
    if (state.at === "serving") clearInterval(state.heartbeat);
    else clearTimeout(state.timer);
    this.#parts.signal.removeEventListener("abort", this.#stop);
    // What the dying socket still has to say is of no interest, but must not be an uncaught error.
    this.#socket.on("error", () => {});
    if (code !== undefined && this.#socket.readyState === WebSocket.OPEN) {
      this.#socket.close(code);
      setTimeout(() => this.#socket.terminate(), closeMs).unref();
    } else this.#socket.terminate();
    this.#resolve(outcome);
  }
}

/** Heartbeats between two pings in words; twice as many without any answer, and the peer is dead. */
const spokenBeats = 4;

/** Silence after which the system begins to probe the line. */
const keepAliveMs = 15_000;

/** How long the peer may take to agree to a close. */
const closeMs = 1_000;

const helloFault = (error: unknown): FaultBody =>
  error instanceof Fault
    ? error.toBody()
    : {
        code: "internal",
        cause: "The shim cannot make its hello; its log has the text.",
        action: "Look at the shim's key and state directory, and report it as a defect if they are sound.",
        retry: "person",
      };
