/** A migration state and the reports that shims would give, for tests of the core. Not a fake of a port: plain data. */

import type { StoredReport } from "#core/event";
import { type MigrationRequest, newMigration } from "#core/new-migration";
import type { BlobName, MigrationState, Pending, StoredBlob } from "#core/state";
import type { BundleRef, InlineBlob } from "#protocol/blob";
import type { CommandKind, Receipt, ReportBody } from "#protocol/command";
import type { FaultBody } from "#protocol/fault";

export const at = "2026-11-22T10:00:00.000Z";
export const later = "2026-11-22T23:00:00.000Z";
const digest = (letter: string) => letter.repeat(64);

export const bundleRef: BundleRef = {
  key: `bundles/${digest("b")}`,
  sha256: digest("b"),
  bytes: 2000,
  plainSha256: digest("c"),
  plainBytes: 9000,
  snapshots: 5,
  checkpoints: 0,
  treeSha256: digest("d"),
};

export const inlineBlob: InlineBlob = { in: "inline", base64: "AA==", sha256: digest("a"), bytes: 1 };
export const storedBlob: StoredBlob = { in: "item", key: "x", sha256: digest("a"), bytes: 1 };
export const tree = { snapshots: 5, checkpoints: 0, treeSha256: bundleRef.treeSha256 };
export const fault: FaultBody = { code: "libvirt.failed", cause: "it broke", action: "look", retry: "safe" };
export const receipt = (outcome: Receipt["outcome"]): Receipt => ({ outcome, evidence: "finish", at });

export const migrationRequest: MigrationRequest = {
  id: "m_01JD0000000000000000000000",
  domain: { uuid: "11111111-2222-4333-8444-555555555555", name: "web" },
  source: { id: "h_01JD0000000000000000000001", name: "alpha", publicKey: `${"a".repeat(42)}A` },
  destination: { id: "h_01JD0000000000000000000002", name: "beta", publicKey: `${"b".repeat(42)}A` },
  options: { offline: false, unsafe: false, autoConverge: false, bandwidthMiBps: null },
  accept: [],
};

export const freshMigration = (): MigrationState => newMigration(migrationRequest, at);

const address = { hosts: ["beta"], port: 16_515 };
const performedBody = {
  kind: "perform",
  cookie: inlineBlob,
  statistics: { downtimeMs: 20, transferredBytes: 1000, totalMs: 100 },
} as const;

const peerEnd = { fault: null, cookie: null, finishMs: 5, confirmMs: 5 };

/** Every success that a shim can report for a kind of command, by a name for the table. */
export function successes(kind: CommandKind): Record<string, ReportBody> {
  const inspected = (snapshots: number, state: "running" | "shutoff" = "running"): ReportBody => ({
    kind: "inspectSource",
    facts: inlineBlob,
    findings: [],
    carries: { snapshots, checkpoints: 0 },
    domain: { name: "web", state, memoryKiB: 1, vcpus: 1, autostart: true },
  });
  const finding = (severity: "blocker" | "risk") =>
    ({ severity, code: "storage.notShared", cause: "local", action: "share it" }) as const;
  switch (kind) {
    case "inspectSource": {
      const plain = inspected(0);
      return {
        snapshots: inspected(5),
        bare: plain,
        offline: inspected(5, "shutoff"),
        blocked: plain.kind === "inspectSource" ? { ...plain, findings: [finding("blocker")] } : plain,
      };
    }
    case "inspectDestination":
      return {
        clear: { kind, findings: [], storageProven: true },
        risk: { kind, findings: [finding("risk")], storageProven: false },
        blocked: { kind, findings: [finding("blocker")], storageProven: false },
      };
    case "export":
      return { done: { kind, bundle: bundleRef } };
    case "stage":
      return { done: { kind, tree }, mismatch: { kind, tree: { ...tree, treeSha256: digest("0") } } };
    case "begin":
      return { done: { kind, cookie: inlineBlob, xml: inlineBlob, flags: 25, strippedMs: 3 } };
    case "prepare":
      return {
        done: { kind, cookie: inlineBlob, uri: "tcp:beta:49152", peer: address },
        deaf: { kind, cookie: inlineBlob, uri: null, peer: null },
      };
    case "perform":
      return {
        done: { ...performedBody, ended: { ...peerEnd, receipt: receipt("started"), source: "gone" } },
        relayed: { ...performedBody, ended: null },
        unconfirmed: { ...performedBody, ended: { ...peerEnd, receipt: receipt("started"), source: "paused" } },
        destroyed: { ...performedBody, ended: { ...peerEnd, receipt: receipt("destroyed"), source: "running", fault } },
        untaken: { ...performedBody, ended: { ...peerEnd, receipt: receipt("destroyed"), source: "paused" } },
      };
    case "abort":
      return { done: { kind, aborted: true }, late: { kind, aborted: false } };
    case "finish":
      return {
        started: { kind, receipt: receipt("started"), cookie: inlineBlob, fault: null },
        destroyed: { kind, receipt: receipt("destroyed"), cookie: null, fault: null },
      };
    case "confirm":
      return {
        done: { kind, source: "gone", receipt: receipt("started") },
        back: { kind, source: "running", receipt: receipt("destroyed") },
      };
    case "settle":
      return {
        done: { kind, tree, state: "running", autostart: true },
        mismatch: { kind, tree: { ...tree, treeSha256: digest("0") }, state: "running", autostart: true },
      };
    case "restore":
      return { done: { kind, tree, state: "running" } };
    case "unstage":
      return { done: { kind, removed: true } };
    case "restoreBundle":
      return { done: { kind, tree } };
  }
}

const blobNamesOf: Partial<Record<CommandKind, BlobName[]>> = {
  inspectSource: ["facts"],
  begin: ["A", "xml"],
  prepare: ["B"],
  perform: ["C"],
  finish: ["D"],
};

export function success(state: MigrationState, pending: Pending, body: ReportBody): StoredReport {
  const names = blobNamesOf[pending.kind] ?? [];
  const blobs = Object.fromEntries(names.map((name) => [name, storedBlob]));
  return { commandId: pending.id, migrationId: state.id, epoch: state.epoch, ms: 5, result: { ok: true, body, blobs } };
}

/** What a host says of a command of a migration that it has finished with and forgotten. */
export function forgottenReport(state: MigrationState, pending: Pending): StoredReport {
  const stale = { code: "epoch.stale", cause: "forgotten", action: "Nothing.", retry: "never" } as const;
  const { result, ...report } = failureReport(state, pending, { fault: stale });
  return { ...report, result: result.ok ? result : { ...result, forgotten: true } };
}

export function failureReport(
  state: MigrationState,
  pending: Pending,
  failed: { fault?: FaultBody; sourceState?: "running" | "paused" | undefined; receipt?: Receipt | undefined } = {},
): StoredReport {
  return {
    commandId: pending.id,
    migrationId: state.id,
    epoch: state.epoch,
    ms: 5,
    result: { ok: false, fault: failed.fault ?? fault, sourceState: failed.sourceState, receipt: failed.receipt },
  };
}
