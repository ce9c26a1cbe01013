/**
 * The state of one migration: the whole truth about it that the functions keep, one item in DynamoDB. `step` says where
 * the handshake stands; `pending` holds the commands whose reports are awaited; what a step learned stays until the end,
 * so that `vmferry migration show` can tell the whole story.
 */
import * as z from "zod/mini";
import { bundleRefSchema, sha256Schema } from "#protocol/blob";
import {
  commandIdSchema,
  commandKindSchema,
  domainRefSchema,
  domainStateSchema,
  migrateOptionsSchema,
  migrationIdSchema,
  nameSchema,
  receiptSchema,
  sideSchema,
} from "#protocol/command";
import { faultSchema, findingSchema } from "#protocol/fault";
import { hostIdSchema } from "#protocol/identity";
import { peerAddressSchema } from "#protocol/peer-address";
import { publicKeySchema } from "#protocol/signed";
import { acceptMax, timelineEntriesMax } from "./limits.ts";
import { originSchema } from "./origin.ts";

/** The way forward, in order; then the ways back; then what a fenced host owes when it returns; then rest. */
export const stepSchema = z.enum([
  "inspectingSource",
  "inspectingDestination",
  "exporting",
  "staging",
  "beginning",
  "preparing",
  "performing",
  "finishing",
  "confirming",
  "settling",
  "abortingFinish",
  "abortingConfirm",
  "restoring",
  "unstaging",
  "sweeping",
  "ended",
]);
export type Step = z.infer<typeof stepSchema>;

export const statusSchema = z.enum(["running", "completed", "rolledBack", "refused", "stranded", "cancelled"]);
export type Status = z.infer<typeof statusSchema>;

/** Where a carried payload is kept: an immutable item of its own, or the bucket. */
export const storedBlobSchema = z.object({
  in: z.enum(["item", "bucket"]),
  key: z.string(),
  sha256: sha256Schema,
  bytes: z.int(),
});
export type StoredBlob = z.infer<typeof storedBlobSchema>;

export const blobNames = ["facts", "A", "xml", "B", "C", "D"] as const;
export type BlobName = (typeof blobNames)[number];
const storedBlob = z.optional(storedBlobSchema);

export const hostRefSchema = z.object({
  id: hostIdSchema,
  name: nameSchema,
  /** The key of its enrolment; a ticket names it. Absent in records of before tickets. */
  publicKey: z.optional(publicKeySchema),
});
export type HostRef = z.infer<typeof hostRefSchema>;

export const pendingSchema = z.object({
  id: commandIdSchema,
  kind: commandKindSchema,
  side: sideSchema,
  issuedAt: z.string(),
  deadlineAt: z.string(),
});
export type Pending = z.infer<typeof pendingSchema>;

export const timelineEntrySchema = z.object({
  at: z.string(),
  step: stepSchema,
  side: z.nullable(sideSchema),
  /** How long the shim worked on it; null for decisions of the functions. */
  ms: z.nullable(z.number()),
  note: z.string(),
});
export type TimelineEntry = z.infer<typeof timelineEntrySchema>;

/** The first thing that went wrong: later failures of the way back never replace it. */
export const failureSchema = z.object({
  ...faultSchema.shape,
  phase: stepSchema,
  side: z.nullable(sideSchema),
});
export type Failure = z.infer<typeof failureSchema>;

export const migrationStateSchema = z.object({
  id: migrationIdSchema,
  domain: domainRefSchema,
  source: hostRefSchema,
  destination: hostRefSchema,
  options: migrateOptionsSchema,
  accept: z.array(z.string()).check(z.maxLength(acceptMax)),
  /** Who asked for it; absent in records of before this was kept. */
  origin: z.optional(originSchema),
  status: statusSchema,
  step: stepSchema,
  epoch: z.int(),
  /** Optimistic lock: rises by one with every commit (I5). */
  version: z.int(),
  createdAt: z.string(),
  updatedAt: z.string(),
  endedAt: z.nullable(z.string()),
  pending: z.array(pendingSchema),
  /** Commands of each kind issued so far; the number is part of a command's id (I6). */
  attempts: z.record(z.string(), z.int()),
  findings: z.array(findingSchema),
  /** What the source inspection said; null before. */
  facts: z.nullable(
    z.object({
      state: domainStateSchema,
      memoryKiB: z.int(),
      vcpus: z.int(),
      autostart: z.boolean(),
      snapshots: z.int(),
      checkpoints: z.int(),
    }),
  ),
  bundle: z.nullable(bundleRefSchema),
  blobs: z.object({ facts: storedBlob, A: storedBlob, xml: storedBlob, B: storedBlob, C: storedBlob, D: storedBlob }),
  /** libvirt's flags after Begin; opaque, handed from phase to phase. */
  flags: z.nullable(z.int()),
  uri: z.nullable(z.string()),
  receipt: z.nullable(receiptSchema),
  /** Where the destination's peer channel listened at Prepare. */
  peer: z._default(z.nullable(peerAddressSchema), null),
  /** What of the ticket cannot be told from the rest: with it, the ticket is the same whenever it is made (I6). */
  ticket: z._default(z.nullable(z.object({ epoch: z.int(), expiresAt: z.string() })), null),
  /** A person's wish to stop, and what became of it. */
  cancel: z._default(
    z.nullable(z.object({ by: z.string(), at: z.string(), outcome: z.enum(["pending", "won", "late"]) })),
    null,
  ),
  /** A person's statement that this side's host runs nothing any more. */
  fenced: z._default(
    z.nullable(z.object({ side: sideSchema, by: z.string(), reason: z.string(), at: z.string() })),
    null,
  ),
  /** Commands that the fenced host still owes when the migration has ended without it, in order. */
  sweep: z._default(z.array(commandKindSchema), []),
  snapshots: z.object({
    total: z.int(),
    staged: z.int(),
    verified: z.int(),
    /** What the source was seen to have again on the way back from behind Begin; absent: it never came to that. */
    restored: z.optional(z.int()),
  }),
  downtimeMs: z.nullable(z.number()),
  transferredBytes: z.nullable(z.number()),
  strippedMs: z.nullable(z.number()),
  /** How far the handshake got, for the way back: what has to be undone on which side. */
  touched: z.object({
    /** Something was, or may have been, staged on the destination. */
    staged: z.boolean(),
    /** Prepare was sent: the destination may hold an incoming domain. */
    prepared: z.boolean(),
    /** Perform returned success: the source is paused until a receipt says otherwise (I2). */
    performed: z.boolean(),
  }),
  /** The newest sign of life of Perform that the timer saw: libvirt's own count, and when it was seen to have moved. */
  performSeen: z.nullable(z.object({ elapsedMs: z.number(), at: z.string() })),
  /** Why Perform was asked to abort (a person's cancel, a lost destination): the true cause of the failure that follows. */
  abortCause: z.nullable(failureSchema),
  failure: z.nullable(failureSchema),
  /** How often it began to wait for a person; absent: never, or before this was counted. */
  strandings: z.optional(z.int()),
  timeline: z.array(timelineEntrySchema).check(z.maxLength(timelineEntriesMax)),
});
export type MigrationState = z.infer<typeof migrationStateSchema>;
