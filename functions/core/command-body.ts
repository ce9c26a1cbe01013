/**
 * The body of a pending command, derived from the state alone: pushed today or redelivered tomorrow, it is the same (I6).
 */
import type { Blob } from "#protocol/blob";
import type { Command, CommandKind } from "#protocol/command";
import type { SignedText } from "#protocol/signed";
import type { BlobName, MigrationState, Pending } from "./state.ts";

/** Which stored payloads a command carries. */
export function blobsOf(kind: CommandKind): readonly BlobName[] {
  switch (kind) {
    case "inspectDestination":
      return ["facts"];
    case "prepare":
      return ["A", "xml"];
    case "perform":
      return ["B"];
    case "finish":
      return ["C"];
    case "confirm":
      return ["D"];
    default:
      return [];
  }
}

/** Builds the command; `ticket` is `ticketOf` the state, signed, for the kinds that carry one. Null when the state lacks what the command needs, which no reachable state does. */
export function commandBody(
  state: MigrationState,
  pending: Pending,
  blobs: Partial<Record<BlobName, Blob>>,
  ticket: SignedText | null,
): Command | null {
  const head = { id: pending.id, migrationId: state.id, epoch: state.epoch, domain: state.domain };
  const { bundle, options, flags, receipt, uri } = state;
  switch (pending.kind) {
    case "inspectSource":
    case "export":
    case "abort":
      return { ...head, kind: pending.kind };
    case "inspectDestination":
      return blobs.facts === undefined ? null : { ...head, kind: "inspectDestination", facts: blobs.facts };
    case "stage":
      return bundle === null ? null : { ...head, kind: "stage", bundle };
    case "begin":
      return { ...head, kind: "begin", bundle, options };
    case "prepare":
      return blobs.A === undefined || blobs.xml === undefined || flags === null
        ? null
        : { ...head, kind: "prepare", cookie: blobs.A, xml: blobs.xml, options, flags };
    case "perform":
      return blobs.B === undefined || flags === null
        ? null
        : { ...head, kind: "perform", bundle, cookie: blobs.B, uri, options, flags, ticket };
    case "finish": {
      const cancelled = state.step === "abortingFinish";
      return flags === null
        ? null
        : { ...head, kind: "finish", cookie: cancelled ? null : (blobs.C ?? null), cancelled, options, flags };
    }
    case "confirm":
      return receipt === null || flags === null
        ? null
        : { ...head, kind: "confirm", cookie: blobs.D ?? null, receipt, ticket, options, flags };
    case "settle":
      return { ...head, kind: "settle", bundle, autostart: state.facts?.autostart ?? false, offline: options.offline };
    case "restore":
      return { ...head, kind: "restore", bundle, autostart: state.facts?.autostart ?? false };
    case "unstage":
      return { ...head, kind: "unstage", bundle };
    case "restoreBundle":
      return null;
  }
}
