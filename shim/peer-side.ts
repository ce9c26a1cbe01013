/**
 * This host's end of the peer channel, wired: who it is to others, the port where it answers them, and the way to them. The
 * port opens before the executor is there, because Prepare has to name it; asked too early, it says so.
 */

import type { Clock } from "./clock.ts";
import type { Identity } from "./enrolment.ts";
import type { Log } from "./log.ts";
import { endpointOf, listenOf } from "./peer/address.ts";
import { PeerClient } from "./peer/client.ts";
import { type DeskExecutor, PeerDesk } from "./peer/desk.ts";
import { signText } from "./peer/seal.ts";
import { startPeerServer } from "./peer/server.ts";
import type { Peers, Seal } from "./ports.ts";
import { readBootId } from "./storage.ts";

export interface PeerSide {
  seal: Seal;
  peers: Peers;
  /** From now on requests are answered. */
  open(executor: DeskExecutor): void;
  close(): Promise<void>;
}

/** `listen`, `advertise`: as on the command line; absent: the usual port on every address, which are told. Throws `Fault`
 *  `request.malformed`. */
export async function openPeerSide(parts: {
  identity: Identity;
  listen: string | undefined;
  advertise: string | undefined;
  clock: Clock;
  log: Log;
}): Promise<PeerSide> {
  const { identity, clock, log } = parts;
  const told = parts.advertise === undefined ? null : endpointOf(parts.advertise);
  const bootId = await readBootId();
  const seal: Seal = {
    hostId: identity.hostId,
    publicKey: identity.publicKey,
    bootId,
    sign: (text) => signText(identity.key, text),
    controlKey: () => identity.controlKey,
    peerAddress: () => told ?? server.address,
  };
  let desk: PeerDesk | null = null;
  const server = await startPeerServer({
    listen: listenOf(parts.listen),
    key: identity.key,
    answer: async (peerKey, request) =>
      desk === null ? { type: "refused", fault: starting } : desk.answer(peerKey, request),
    log,
  });
  const peers = new PeerClient({ key: identity.key, log });
  return {
    seal,
    peers,
    open: (executor) => {
      desk = new PeerDesk({ executor, seal, now: clock.now });
    },
    close: async () => {
      peers.close();
      await server.close();
    },
  };
}

const starting = {
  code: "shim.restarted",
  cause: "The shim on the destination is starting and has not read its journal yet.",
  action: "It is asked again by itself.",
  retry: "safe",
} as const;
