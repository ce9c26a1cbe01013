/** A migration that was asked for and has not begun: no command, no story, nothing touched. */
import type { DomainRef, MigrateOptions } from "#protocol/command";
import type { Origin } from "./origin.ts";
import type { HostRef, MigrationState } from "./state.ts";

export interface MigrationRequest {
  id: string;
  domain: DomainRef;
  source: HostRef;
  destination: HostRef;
  options: MigrateOptions;
  accept: string[];
  /** Who asked for it. */
  origin?: Origin | undefined;
}

export function newMigration(input: MigrationRequest, at: string): MigrationState {
  return {
    ...input,
    status: "running",
    step: "inspectingSource",
    epoch: 1,
    version: 1,
    createdAt: at,
    updatedAt: at,
    endedAt: null,
    pending: [],
    attempts: {},
    findings: [],
    facts: null,
    bundle: null,
    blobs: {},
    flags: null,
    uri: null,
    receipt: null,
    peer: null,
    ticket: null,
    cancel: null,
    fenced: null,
    sweep: [],
    snapshots: { total: 0, staged: 0, verified: 0 },
    downtimeMs: null,
    transferredBytes: null,
    strippedMs: null,
    touched: { staged: false, prepared: false, performed: false },
    performSeen: null,
    abortCause: null,
    failure: null,
    timeline: [],
  };
}
