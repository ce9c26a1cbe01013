/**
 * The side of the peer channel that listens. TLS 1.3 and nothing older; both ends show a certificate (certificate.ts) and
 * prove its Ed25519 key by the handshake. Which key may do what is not decided here: `answer` is given the proven key with
 * each request, and the ticket names the key that it must be.
 *
 * - Strangers are bounded in number, in time and in bytes (seats.ts, frame.ts), so that who may only reach the port cannot
 *   keep out who has a ticket.
 * - No session is resumed: every connection proves the key anew.
 */
import type { KeyObject } from "node:crypto";
import type { AddressInfo, Socket } from "node:net";
import { hostname, networkInterfaces } from "node:os";
import { createServer, type Server, type TLSSocket } from "node:tls";
import { Fault } from "#protocol/fault";
import type { PeerAddress } from "#protocol/peer-address";
import type { PeerReply, PeerRequest } from "#protocol/ticket";
import type { Log } from "../log.ts";
import { advertisedHosts, endpointText, type PeerListen } from "./address.ts";
import { type PeerCredentials, peerCredentials, provenKey } from "./credentials.ts";
import { type Seat, Seats } from "./seats.ts";
import { PeerSession } from "./session.ts";

export interface PeerServerBounds {
  /** From the connection to its proof: a handshake is two round trips. */
  handshakeMs: number;
  /** A connection without a byte in either direction is dead: the other side pings every 5 s (client.ts). */
  idleMs: number;
  /** Between the last frame and the end of a connection. */
  lingerMs: number;
}

export const peerServerBounds: PeerServerBounds = { handshakeMs: 5_000, idleMs: 30_000, lingerMs: 1_000 };

export interface PeerServerOptions {
  listen: PeerListen;
  /** This host's private Ed25519 key. */
  key: KeyObject;
  /** Answers one request of the peer that has proven this key (raw, base64url). What it throws becomes `refused`. */
  answer(peerPublicKey: string, request: PeerRequest): Promise<PeerReply>;
  log: Log;
  /** An address at which the operator says this host is reached; told first. */
  advertise?: string | null;
  /** Tests only. */
  bounds?: Partial<PeerServerBounds>;
}

export interface PeerServer {
  /** What to tell others. */
  readonly address: PeerAddress;
  /** Accepts nothing more, lets go out what is written, and ends all connections. */
  close(): Promise<void>;
}

/** Throws `Fault` `request.malformed` when it cannot listen there. */
export async function startPeerServer(options: PeerServerOptions): Promise<PeerServer> {
  const { listen, log, advertise = null } = options;
  const door = new Door(options, peerCredentials(options.key));
  const { address, port } = await door.open(listen);
  if (listen.port !== 0 && port !== listen.port)
    log.write("warn", "the peer channel's own port is taken; it listens on another one", { wanted: listen.port, port });
  const hosts = advertisedHosts({
    listenHost: listen.host,
    advertise,
    hostname: hostname(),
    interfaces: networkInterfaces(),
  });
  log.write("info", "the peer channel listens", { on: endpointText(address, port), told: hosts });
  return { address: { hosts, port }, close: () => door.close() };
}

/** Everybody who is connected, from the first byte on. */
class Door {
  readonly #options: PeerServerOptions;
  readonly #bounds: PeerServerBounds;
  readonly #server: Server;
  readonly #seats = new Seats();
  /** By the connection's two ends: node tells the raw socket before the handshake and another one after it. */
  readonly #entrants = new Map<string, { raw: Socket; seat: Seat }>();
  readonly #sessions = new Set<PeerSession>();

  constructor(options: PeerServerOptions, credentials: PeerCredentials) {
    this.#options = options;
    this.#bounds = { ...peerServerBounds, ...options.bounds };
    this.#server = createServer({
      ...credentials,
      requestCert: true,
      // There is no authority to verify against: the key is looked at below, and its owner knows what it may.
      rejectUnauthorized: false,
      handshakeTimeout: this.#bounds.handshakeMs,
      noDelay: true,
      keepAlive: true,
    });
    this.#server.on("connection", (raw: Socket) => this.#enter(raw));
    this.#server.on("secureConnection", (socket) => this.#prove(socket));
    this.#server.on("tlsClientError", (error, socket) => {
      options.log.write("debug", "a peer's handshake failed", { from: socket.remoteAddress, cause: error.message });
      socket.destroy();
    });
  }

  async open(listen: PeerListen): Promise<AddressInfo> {
    try {
      await this.#listen(listen.host, listen.port);
    } catch (error) {
      if (!listen.orAnyPort || !isTaken(error)) throw cannotListen(listen, error);
      await this.#listen(listen.host, 0).catch((again: unknown) => {
        throw cannotListen({ ...listen, port: 0 }, again);
      });
    }
    this.#server.on("error", (error) => {
      this.#options.log.write("error", "the peer channel cannot accept", { cause: error.message });
    });
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("a TCP server without a TCP address");
    return address;
  }

  #listen(host: string | null, port: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(host === null ? { port } : { port, host }, () => {
        this.#server.off("error", reject);
        resolve();
      });
    });
  }

  #enter(raw: Socket): void {
    const ends = endsOf(raw);
    const seat = ends === null ? null : this.#seats.take(() => raw.destroy());
    if (ends === null || seat === null) {
      raw.destroy();
      return;
    }
    this.#entrants.set(ends, { raw, seat });
    raw.once("close", () => {
      seat.leave();
      if (this.#entrants.get(ends)?.raw === raw) this.#entrants.delete(ends);
    });
  }

  #prove(socket: TLSSocket): void {
    const { log, answer } = this.#options;
    const { idleMs, lingerMs } = this.#bounds;
    // A broken connection is told by its close.
    socket.on("error", (error) => log.write("debug", "a peer's connection failed", { cause: error.message }));
    const ends = endsOf(socket);
    const entrant = ends === null ? undefined : this.#entrants.get(ends);
    const publicKey = provenKey(socket);
    if (entrant === undefined || publicKey === null || socket.isSessionReused()) {
      const cause = publicKey === null ? "it has shown no certificate with an Ed25519 key" : "it came without a proof";
      log.write("debug", "a peer's connection was dropped", { from: socket.remoteAddress, cause });
      socket.destroy();
      return;
    }
    const { seat } = entrant;
    if (!this.#seats.prove(seat, publicKey)) {
      log.write("warn", "a peer has too many connections at work; one more was dropped", { peer: publicKey });
      socket.destroy();
      return;
    }
    const session = new PeerSession({ socket, publicKey, seats: this.#seats, seat, answer, log, idleMs, lingerMs });
    this.#sessions.add(session);
    socket.once("close", () => {
      seat.leave();
      this.#sessions.delete(session);
    });
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
      const inSession = new Set([...this.#sessions]);
      for (const session of inSession) session.end();
      for (const { raw, seat } of this.#entrants.values()) if (seat.publicKey === null) raw.destroy();
    });
  }
}

const endsOf = (socket: Socket): string | null =>
  socket.remoteAddress === undefined || socket.remotePort === undefined
    ? null
    : `${socket.remoteAddress} ${socket.remotePort} ${socket.localAddress} ${socket.localPort}`;

const isTaken = (error: unknown): boolean => error instanceof Error && "code" in error && error.code === "EADDRINUSE";

const cannotListen = ({ host, port }: { host: string | null; port: number }, error: unknown) =>
  new Fault(
    {
      code: "request.malformed",
      cause: `The peer channel cannot listen on ${endpointText(host ?? "*", port)}: ${isTaken(error) ? "the port is taken" : error instanceof Error ? error.message : String(error)}.`,
      action: "Give another address or port with --peer-listen (port 0 takes any free one), or end what holds it.",
      retry: "person",
    },
    { cause: error },
  );
