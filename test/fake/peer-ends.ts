/** Both ends of the peer channel for tests: keys, requests, a shim that answers by a script, one that misbehaves on purpose. */
import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { once } from "node:events";
import { connect, createServer, type Server, type TLSSocket } from "node:tls";
import type { PeerReply, PeerRequest, Ticket } from "#protocol/ticket";
import type { Log } from "#shim/log";
import { type PeerCredentials, peerCredentials } from "#shim/peer/credentials";
import { type AskerFrame, askerFrameSchema, PeerFrameReader } from "#shim/peer/frame";
import { publicKeyOf } from "#shim/peer/seal";

export const newKey = (): KeyObject => generateKeyPairSync("ed25519").privateKey;
export const silent: Log = { write: () => {} };
const signature = "A".repeat(86);

/** The text of the ticket that a request carries. */
export const ticketText = (request: PeerRequest): string => ("ticket" in request ? request.ticket.text : "");

export const armOf = (text: string): PeerRequest => ({ type: "arm", ticket: { text, signature } });
export const handOverOf = (cookie: Uint8Array): PeerRequest => ({
  type: "handOver",
  ticket: { text: "ticket", signature },
  result: { text: "result", signature },
  cookie: Buffer.from(cookie).toString("base64"),
});
export const armed: PeerReply = { type: "armed" };
/** An answer that can be told from any other. */
export const finishedAt = (at: string, cookie: string | null = null): PeerReply => ({
  type: "finished",
  receipt: { outcome: "started", evidence: "finish", at, signature },
  cookie,
  fault: null,
});

export const destinationOf = (key: KeyObject, port: number, hosts = ["127.0.0.1"]): Ticket["destination"] => ({
  hostId: "host_DESTINATION",
  name: "beta",
  publicKey: publicKeyOf(key),
  address: { hosts, port },
});

/** A TLS client that is no PeerClient: sends bytes and collects frames. */
export class RawPeer {
  readonly socket: TLSSocket;
  readonly frames: unknown[] = [];
  readonly ended: Promise<void>;
  #arrived = Promise.withResolvers<void>();

  private constructor(socket: TLSSocket) {
    this.socket = socket;
    const reader = new PeerFrameReader();
    socket.on("data", (chunk: Buffer) => {
      reader.push(chunk, (frame) => this.frames.push(frame));
      this.#arrived.resolve();
    });
    socket.on("error", () => {});
    this.ended = new Promise((resolve) => socket.once("close", () => resolve()));
  }

  static async connect(port: number, credentials: Partial<PeerCredentials>): Promise<RawPeer> {
    const socket = connect({ ...credentials, host: "127.0.0.1", port, rejectUnauthorized: false });
    const peer = new RawPeer(socket);
    await once(socket, "secureConnect");
    return peer;
  }

  /** Resolves with all frames so far once there are `count`. */
  async framesUpTo(count: number): Promise<unknown[]> {
    while (this.frames.length < count) {
      this.#arrived = Promise.withResolvers();
      await this.#arrived.promise;
    }
    return this.frames;
  }
}

export interface FakeShim {
  readonly port: number;
  /** Resolves with the n-th connection (from 1) once it has come. */
  connection(n: number): Promise<TLSSocket>;
  readonly connections: readonly TLSSocket[];
  close(): Promise<void>;
}

/** A server with the right key and manners of its own: `on` is given each connection. */
export async function fakeShim(
  key: KeyObject,
  on: (socket: TLSSocket, n: number) => void,
  listen: { host?: string; port?: number } = {},
): Promise<FakeShim> {
  const connections: TLSSocket[] = [];
  const waiting: { n: number; resolve: (socket: TLSSocket) => void }[] = [];
  const server: Server = createServer({
    ...peerCredentials(key),
    requestCert: true,
    rejectUnauthorized: false,
    noDelay: true,
  });
  server.on("secureConnection", (socket) => {
    socket.on("error", () => {});
    connections.push(socket);
    for (const each of waiting) if (each.n === connections.length) each.resolve(socket);
    on(socket, connections.length);
  });
  server.listen(listen.port ?? 0, listen.host ?? "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no TCP address");
  return {
    port: address.port,
    connections,
    connection: (n) => {
      const there = connections[n - 1];
      return there === undefined ? new Promise((resolve) => waiting.push({ n, resolve })) : Promise.resolve(there);
    },
    close: async () => {
      const closed = once(server, "close");
      server.close();
      for (const socket of connections) socket.destroy();
      await closed;
    },
  };
}

/** Calls `on` for each frame of an asker. */
export function readAsker(socket: TLSSocket, on: (frame: AskerFrame) => void): void {
  const reader = new PeerFrameReader();
  socket.on("data", (chunk: Buffer) => reader.push(chunk, (value) => on(askerFrameSchema.parse(value))));
}
