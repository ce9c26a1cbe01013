/**
 * A migration as the API shows it. The stored state is the protocol's; this is its face: the steps in design's words,
 * hosts by name, each cookie with its phase and where it lies. No payload is shown, only its size and digest.
 */
import * as z from "zod/mini";
import { sha256Schema } from "#protocol/blob";
import { commandKindSchema, domainRefSchema, receiptSchema, sideSchema } from "#protocol/command";
import { faultCodes, findingSchema, libvirtFaultSchema } from "#protocol/fault";
import { type Progress, progressSchema } from "#protocol/message";
import { originSchema } from "../core/origin.ts";
import { type MigrationState, type Step, type StoredBlob, statusSchema } from "../core/state.ts";
import type { MigrationSummary } from "../ports.ts";

export const stepWordSchema = z.enum([
  "inspect",
  "export",
  "stage",
  "begin",
  "prepare",
  "perform",
  "finish",
  "confirm",
  "settle",
  "abort",
  "restore",
  "unstage",
  "sweep",
  "ended",
]);
export type StepWord = z.infer<typeof stepWordSchema>;

/** State (what is going on) -> step (design's word for it). Both inspections are `inspect`, both halves of the way back over there `abort`. */
export const stepWords: Record<Step, StepWord> = {
  inspectingSource: "inspect",
  inspectingDestination: "inspect",
  exporting: "export",
  staging: "stage",
  beginning: "begin",
  preparing: "prepare",
  performing: "perform",
  finishing: "finish",
  confirming: "confirm",
  settling: "settle",
  abortingFinish: "abort",
  abortingConfirm: "abort",
  restoring: "restore",
  unstaging: "unstage",
  sweeping: "sweep",
  ended: "ended",
};

const storedSchema = z.object({ bytes: z.int(), sha256: sha256Schema, in: z.enum(["item", "bucket"]) });

export const migrationSummarySchema = z.object({
  id: z.string(),
  domain: domainRefSchema,
  source: z.string(),
  destination: z.string(),
  status: statusSchema,
  step: stepWordSchema,
  createdAt: z.string(),
  endedAt: z.nullable(z.string()),
});
export type MigrationRow = z.infer<typeof migrationSummarySchema>;

export const migrationSchema = z.object({
  ...migrationSummarySchema.shape,
  updatedAt: z.string(),
  epoch: z.int(),
  version: z.int(),
  accept: z.array(z.string()),
  /** Who asked for it, and on whose behalf; null in records of before this was kept. */
  origin: z._default(z.nullable(originSchema), null),
  options: z.object({
    offline: z.boolean(),
    autoConverge: z.boolean(),
    bandwidthMiBps: z.nullable(z.int()),
  }),
  /** `memory` and `disk` are null while nothing was heard; `blackoutMs` is libvirt's own measure, known after Perform. */
  progress: z.object({
    memory: z.nullable(progressSchema.shape.memory),
    disk: z.nullable(progressSchema.shape.disk),
    snapshots: z.nullable(z.object({ done: z.int(), total: z.int() })),
    elapsedMs: z.nullable(z.number()),
    expectedDowntimeMs: z.nullable(z.number()),
    transferredBytes: z.nullable(z.number()),
    blackoutMs: z.nullable(z.number()),
  }),
  /** How long the source lacked its snapshot metadata in libvirt (it was journalled); null before Begin. */
  strippedMs: z.nullable(z.number()),
  snapshots: z.object({ total: z.int(), staged: z.int(), verified: z.int() }),
  cookies: z.array(
    z.object({
      cookie: z.enum(["A", "B", "C", "D"]),
      phase: z.enum(["begin", "prepare", "perform", "finish"]),
      ...storedSchema.shape,
    }),
  ),
  /** The domain's XML as Begin gave it, carried to Prepare. */
  xml: z.nullable(storedSchema),
  bundle: z.nullable(
    z.object({
      key: z.string(),
      sha256: sha256Schema,
      bytes: z.int(),
      /** Snapshots and checkpoints together. */
      count: z.int(),
      snapshots: z.int(),
      checkpoints: z.int(),
      plainBytes: z.int(),
      treeSha256: sha256Schema,
    }),
  ),
  receipt: z.nullable(receiptSchema),
  /** A person's wish to stop, and whether it came in time: `won` it is cancelled, `late` it ended otherwise. */
  cancel: z.nullable(z.object({ by: z.string(), at: z.string(), outcome: z.enum(["pending", "won", "late"]) })),
  /** A person's statement that this host runs nothing any more. */
  fenced: z.nullable(
    z.object({ host: z.string(), side: sideSchema, by: z.string(), reason: z.string(), at: z.string() }),
  ),
  /** What the fenced host still has to undo when it returns; the migration's result does not depend on it. */
  sweep: z.array(commandKindSchema),
  findings: z.array(findingSchema),
  timeline: z.array(
    z.object({
      at: z.string(),
      step: stepWordSchema,
      side: z.nullable(sideSchema),
      ms: z.nullable(z.number()),
      note: z.string(),
    }),
  ),
  error: z.nullable(
    z.object({
      code: z.enum(faultCodes),
      phase: stepWordSchema,
      side: z.nullable(sideSchema),
      cause: z.string(),
      action: z.string(),
      libvirt: z.optional(libvirtFaultSchema),
      /** What the inspections found that stands against it; for a refusal, everything at once. */
      blockers: z.array(findingSchema),
      risks: z.array(findingSchema),
    }),
  ),
});
export type Migration = z.infer<typeof migrationSchema>;

const stored = ({ bytes, sha256, in: where }: StoredBlob) => ({ bytes, sha256, in: where });
const cookiePhases = [
  ["A", "begin"],
  ["B", "prepare"],
  ["C", "perform"],
  ["D", "finish"],
] as const;

/** A row of a list. */
export function migrationRow(summary: MigrationSummary): MigrationRow {
  const { id, domain, source, destination, status, step, createdAt, endedAt } = summary;
  return {
    id,
    domain: { uuid: domain.uuid, name: domain.name },
    source: source.name,
    destination: destination.name,
    status,
    step: stepWords[step],
    createdAt,
    endedAt,
  };
}

/** The whole resource. `progress` is the newest that passed through the source's socket; null when none did. */
export function migrationResource(state: MigrationState, progress: Progress | null): Migration {
  const { bundle, failure, fenced, options } = state;
  const found = (severity: "blocker" | "risk") => state.findings.filter((finding) => finding.severity === severity);
  return {
    ...migrationRow(state),
    updatedAt: state.updatedAt,
    epoch: state.epoch,
    version: state.version,
    accept: state.accept,
    origin: state.origin ?? null,
    options: {
      offline: options.offline,
      autoConverge: options.autoConverge,
      bandwidthMiBps: options.bandwidthMiBps,
    },
    progress: {
      memory: progress?.memory ?? null,
      disk: progress?.disk ?? null,
      snapshots: progress?.snapshots ?? null,
      elapsedMs: progress?.elapsedMs ?? null,
      expectedDowntimeMs: progress?.expectedDowntimeMs ?? null,
      transferredBytes: state.transferredBytes,
      blackoutMs: state.downtimeMs,
    },
    strippedMs: state.strippedMs,
    snapshots: {
      total: state.snapshots.total,
      staged: state.snapshots.staged,
      verified: state.snapshots.verified,
    },
    cookies: cookiePhases.flatMap(([cookie, phase]) => {
      const blob = state.blobs[cookie];
      return blob === undefined ? [] : [{ cookie, phase, ...stored(blob) }];
    }),
    xml: state.blobs.xml === undefined ? null : stored(state.blobs.xml),
    bundle:
      bundle === null
        ? null
        : {
            key: bundle.key,
            sha256: bundle.sha256,
            bytes: bundle.bytes,
            count: bundle.snapshots + bundle.checkpoints,
            snapshots: bundle.snapshots,
            checkpoints: bundle.checkpoints,
            plainBytes: bundle.plainBytes,
            treeSha256: bundle.treeSha256,
          },
    receipt: state.receipt,
    cancel: state.cancel,
    fenced: fenced === null ? null : { host: state[fenced.side].name, ...fenced },
    sweep: state.sweep,
    findings: state.findings,
    timeline: state.timeline.map(({ at, step, side, ms, note }) => ({ at, step: stepWords[step], side, ms, note })),
    error:
      failure === null
        ? null
        : {
            code: failure.code,
            phase: stepWords[failure.phase],
            side: failure.side,
            cause: failure.cause,
            action: failure.action,
            ...(failure.libvirt === undefined ? {} : { libvirt: failure.libvirt }),
            blockers: found("blocker"),
            risks: found("risk").filter((risk) => !state.accept.includes(risk.code)),
          },
  };
}
