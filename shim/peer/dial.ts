/**
 * From the addresses of a shim to one proven connection: all are tried, each a little after the one before it, and the first
 * at which the right key is proven wins. Another key is another machine, for addresses are told by hosts that may share
 * 127.0.0.1 or a bridge's address with us; it is passed over and named. Nothing is sent before the proof.
 */
import { connect, type TLSSocket } from "node:tls";
import { endpointText } from "./address.ts";
import { type PeerCredentials, provenKey } from "./credentials.ts";

export interface DialBounds {
  /** Between two addresses: what a healthy handshake takes over some distance, so that the first one usually stays alone. */
  staggerMs: number;
  /** One address, from the first packet to the proof. */
  handshakeMs: number;
}

export interface DialTarget {
  hosts: readonly string[];
  port: number;
  publicKey: string;
}

/** No address led to that key. `message` says what happened on each. */
export class DialError extends Error {
  override readonly name = "DialError";
}

/** Rejects with DialError; when `signal` aborts, with what was known by then. */
export function dial(
  to: DialTarget,
  credentials: PeerCredentials,
  bounds: DialBounds,
  signal: AbortSignal,
): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const happened = new Map(to.hosts.map((host) => [host, "not tried yet"]));
    const waiting = [...happened.keys()];
    const open = new Set<TLSSocket>();
    let stagger: NodeJS.Timeout | undefined;
    const settle = (winner: TLSSocket | null): void => {
      clearTimeout(stagger);
      signal.removeEventListener("abort", giveUp);
      waiting.length = 0;
      for (const socket of open) if (socket !== winner) socket.destroy();
      open.clear();
      if (winner !== null) {
        resolve(winner);
        return;
      }
      const each = [...happened].map(([host, what]) => `${endpointText(host, to.port)} ${what}`);
      reject(new DialError(each.join("; ")));
    };
    const giveUp = (): void => settle(null);
    const next = (): void => {
      clearTimeout(stagger);
      const host = waiting.shift();
      if (host === undefined) {
        if (open.size === 0) settle(null);
        return;
      }
      happened.set(host, "has not answered yet");
      const socket = attempt({ ...to, host }, credentials, bounds.handshakeMs, (failure) => {
        if (!open.has(socket)) return;
        if (failure === null) {
          settle(socket);
          return;
        }
        open.delete(socket);
        happened.set(host, failure);
        next();
      });
      open.add(socket);
      if (waiting.length > 0) stagger = setTimeout(next, bounds.staggerMs);
    };
    signal.addEventListener("abort", giveUp, { once: true });
    if (signal.aborted) giveUp();
    else next();
  });
}

/** One address. `onEnd` is called once, later, with null for a proof or with what happened instead. */
function attempt(
  to: { host: string; port: number; publicKey: string },
  credentials: PeerCredentials,
  handshakeMs: number,
  onEnd: (failure: string | null) => void,
): TLSSocket {
  const socket = connect({
    ...credentials,
    host: to.host,
    port: to.port,
    // There is no authority and no name to verify against; the key is what counts, below.
    rejectUnauthorized: false,
    checkServerIdentity: () => undefined,
  });
  // One small frame is all that the guest's blackout waits for.
  socket.setNoDelay(true);
  socket.setKeepAlive(true);
  let ended = false;
  const end = (failure: string | null): void => {
    if (ended) return;
    ended = true;
    clearTimeout(timer);
    if (failure !== null) socket.destroy();
    onEnd(failure);
  };
  const timer = setTimeout(() => end(`gave no answer within ${handshakeMs} ms`), handshakeMs);
  socket.once("secureConnect", () => {
    const key = provenKey(socket);
    if (key === to.publicKey) end(null);
    else end(key === null ? "is no vmferry shim: it shows no Ed25519 key" : `is another host's shim (key ${key})`);
  });
  // Stays for the connection's whole life: whoever owns it afterwards learns of its end by its close.
  socket.on("error", (error) => end(`failed: ${causeText(error)}`));
  socket.once("close", () => end("closed the connection during the handshake"));
  return socket;
}

/** A name with several addresses fails with all of their errors at once, and an empty message. */
const causeText = (error: Error): string =>
  error instanceof AggregateError ? error.errors.map((each: unknown) => causeOf(each)).join(", ") : causeOf(error);

const causeOf = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error);
  // OpenSSL's own words; its whole message names threads and source lines.
  if ("reason" in error && typeof error.reason === "string") return `TLS: ${error.reason}`;
  return error.message.trim();
};
