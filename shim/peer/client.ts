/**
 * The side of the peer channel that asks: `Peers` over TLS 1.3. A connection counts only when the key that the ticket names
 * is proven on it, and nothing is sent before. No answer is told as no answer, with what happened on each way (I2): a
 * request that may have been read is never repeated here, for only the caller knows what that would mean.
 */
import type { KeyObject } from "node:crypto";
import { Fault } from "#protocol/fault";
import type { PeerReply, PeerRequest, Ticket } from "#protocol/ticket";
import type { Log } from "../log.ts";
import type { Peers } from "../ports.ts";
import { endpointText } from "./address.ts";
import { ChannelError } from "./channel.ts";
import { type PeerCredentials, peerCredentials } from "./credentials.ts";
import { type DestinationBounds, DestinationChannels } from "./destination-channels.ts";
import { DialError } from "./dial.ts";
import { PeerFrameError } from "./frame.ts";

export const peerClientBounds: DestinationBounds = {
  staggerMs: 150,
  handshakeMs: 4_000,
  pingMs: 5_000,
  idleMs: 20_000,
  redialBaseMs: 200,
  redialCapMs: 5_000,
};

export interface PeerClientOptions {
  /** This host's private Ed25519 key. */
  key: KeyObject;
  log: Log;
  random?: () => number;
  /** Tests only. */
  bounds?: Partial<DestinationBounds>;
}

export class PeerClient implements Peers {
  readonly #log: Log;
  readonly #random: () => number;
  readonly #bounds: DestinationBounds;
  readonly #credentials: PeerCredentials;
  /** By key and addresses: a host that moved to another port is another way. */
  readonly #destinations = new Map<string, DestinationChannels>();
  #closed = false;

  constructor(options: PeerClientOptions) {
    this.#log = options.log;
    this.#random = options.random ?? Math.random;
    this.#bounds = { ...peerClientBounds, ...options.bounds };
    this.#credentials = peerCredentials(options.key);
  }

  /** Waits `patienceMs` at most, dialling included. Throws `Fault` `peer.unreachable`. */
  async ask(to: Ticket["destination"], request: PeerRequest, patienceMs: number): Promise<PeerReply> {
    if (this.#closed) throw unreachable(to, "this shim is ending");
    const patience = new AbortController();
    const timer = setTimeout(() => patience.abort(), patienceMs);
    try {
      return await this.#destination(to).ask(request, patience.signal);
    } catch (error) {
      if (error instanceof PeerFrameError) throw tooLarge(error);
      if (!(error instanceof DialError) && !(error instanceof ChannelError)) throw error;
      const late = patience.signal.aborted ? `, and ${patienceMs} ms have passed` : "";
      throw unreachable(to, `${error.message}${late}`, error);
    } finally {
      clearTimeout(timer);
    }
  }

  hold(to: Ticket["destination"]): () => void {
    return this.#closed ? () => {} : this.#destination(to).hold();
  }

  /** Ends every connection; whoever waits is told that no answer came. */
  close(): void {
    this.#closed = true;
    for (const destination of [...this.#destinations.values()]) destination.close();
    this.#destinations.clear();
  }

  #destination({ publicKey, address }: Ticket["destination"]): DestinationChannels {
    const name = JSON.stringify([publicKey, address.port, address.hosts]);
    const known = this.#destinations.get(name);
    if (known !== undefined) return known;
    const made: DestinationChannels = new DestinationChannels({
      to: { ...address, publicKey },
      credentials: this.#credentials,
      bounds: this.#bounds,
      log: this.#log,
      random: this.#random,
      onUnused: () => {
        if (this.#destinations.get(name) === made) this.#destinations.delete(name);
      },
    });
    this.#destinations.set(name, made);
    return made;
  }
}

function unreachable(to: Ticket["destination"], what: string, cause?: unknown): Fault {
  const { hosts, port } = to.address;
  const ways = hosts.map((host) => endpointText(host, port)).join(", ");
  return new Fault(
    {
      code: "peer.unreachable",
      cause: `The shim of host ${to.name} gave no answer over the peer channel (${ways}): ${what}.`,
      action: `Open TCP port ${port} of host ${to.name} for this host (its shim says at its start where it listens, and takes --peer-listen), look whether its shim runs, and try again.`,
      retry: "safe",
    },
    { cause },
  );
}

const tooLarge = (cause: PeerFrameError) =>
  new Fault(
    {
      code: "message.tooLarge",
      cause: `What the other host's shim should be asked does not fit the peer channel: ${cause.message}.`,
      action: "Nothing was sent. Report it as a defect with the migration's id.",
      retry: "never",
    },
    { cause },
  );
