/**
 * The ticket of a migration, derived from its state alone: made today or tomorrow it is the same text, and Ed25519 gives the
 * same signature for it, so a command that carries it never has two bodies (I6).
 */
import type { CommandKind } from "#protocol/command";
import type { Ticket } from "#protocol/ticket";
import type { MigrationState } from "./state.ts";

/** The commands that carry it: the one that arms both shims, and the one whose receipt is signed by a key that it names. */
export const ticketedKinds: ReadonlySet<CommandKind> = new Set(["perform", "confirm"]);

/** Null when none was issued: a domain that is not running has no blackout, and its Finish needs none. */
export function ticketOf(state: MigrationState): Ticket | null {
  const { source, destination, peer, ticket, flags, blobs } = state;
  const sourceKey = source.publicKey;
  const destinationKey = destination.publicKey;
  if (sourceKey === undefined || destinationKey === undefined || blobs.B === undefined) return null;
  if (peer === null || ticket === null || flags === null) return null;
  return {
    version: 1,
    migrationId: state.id,
    epoch: ticket.epoch,
    domain: { uuid: state.domain.uuid, name: state.domain.name },
    source: { hostId: source.id, publicKey: sourceKey },
    destination: {
      hostId: destination.id,
      name: destination.name,
      publicKey: destinationKey,
      address: { hosts: peer.hosts, port: peer.port },
    },
    options: state.options,
    flags,
    cookieSha256: blobs.B.sha256,
    expiresAt: ticket.expiresAt,
  };
}
