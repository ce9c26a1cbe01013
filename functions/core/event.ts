/** What can happen to a migration. Events are past tense and carry the time at which they were observed; the core has no clock. */
import type { DomainState, Receipt, Report, ReportBody, Side } from "#protocol/command";
import type { FaultBody } from "#protocol/fault";
import type { BlobName, StoredBlob } from "./state.ts";

/** A report whose payloads have been stored already (written before they are named). */
export type StoredReport = Omit<Report, "result"> & {
  result:
    | { ok: true; body: ReportBody; blobs: Partial<Record<BlobName, StoredBlob>> }
    | {
        ok: false;
        fault: FaultBody;
        sourceState?: DomainState | undefined;
        receipt?: Receipt | undefined;
        forgotten?: true | undefined;
      };
};

export type MigrationEvent =
  /** The domain's lock is held and both hosts know of the migration: it may start. */
  | { type: "requested"; at: string }
  /** Another migration holds the domain: this one ends before it began. */
  | { type: "refused"; at: string; fault: FaultBody }
  | { type: "reported"; at: string; report: StoredReport }
  | { type: "cancelRequested"; at: string; by: string }
  /** A person states that a side's host is fenced: it runs no copy and will not by itself. */
  | { type: "resolved"; at: string; by: string; reason: string; fenced: Side }
  /** The destination's shim noticed that the libvirt connection that holds the incoming domain is gone. */
  | { type: "connectionLost"; at: string; epoch: number; cause: string }
  /** The timer looked; `unreachable` names the sides whose host was silent longer than the pace allows. */
  /** `elapsedMs` is what the source last said of a running Perform; null when nothing is known. */
  | { type: "ticked"; at: string; unreachable: Side[]; elapsedMs: number | null };

export const eventTypes = [
  "requested",
  "refused",
  "reported",
  "cancelRequested",
  "resolved",
  "connectionLost",
  "ticked",
] as const satisfies readonly MigrationEvent["type"][];
