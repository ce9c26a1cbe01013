/**
 * Commands (down, may be repeated) and what a shim reports for each (up, states a fact). A command is wholly described
 * by its body: the same id never has two bodies (I6), so nothing that expires, such as a presigned URL, is in it; a shim
 * asks for a grant when it needs one. Every command carries the migration's epoch and a shim refuses a lower one (I5).
 */
import * as z from "zod/mini";
import { blobSchema, bundleRefSchema, handedBlobSchema, sha256Schema } from "./blob.ts";
import { faultSchema, findingSchema } from "./fault.ts";
import { checkpointsMax, nameCharsMax, snapshotsMax } from "./limits.ts";
import { peerAddressSchema } from "./peer-address.ts";
import { signatureSchema, signedTextSchema } from "./signed.ts";

export const sideSchema = z.enum(["source", "destination"]);
export type Side = z.infer<typeof sideSchema>;

export const uuidSchema = z.string().check(z.regex(/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/));
export const nameSchema = z.string().check(z.minLength(1), z.maxLength(nameCharsMax));
export const migrationIdSchema = z.string().check(z.regex(/^[mb]_[0-9A-HJKMNP-TV-Z]{26}$/));
export const commandIdSchema = z.string().check(z.regex(/^[mb]_[0-9A-HJKMNP-TV-Z]{26}:[a-zA-Z]{1,32}:[0-9]{1,6}$/));

export const domainRefSchema = z.object({ uuid: uuidSchema, name: nameSchema });
export type DomainRef = z.infer<typeof domainRefSchema>;

/** How to migrate, in words; the shim turns them into libvirt's flags and typed parameters. */
export const migrateOptionsSchema = z.object({
  /** The domain is not running: VIR_MIGRATE_OFFLINE, Perform is skipped. */
  offline: z.boolean(),
  /** Both shims proved the storage shared, or a person accepted the risk: VIR_MIGRATE_UNSAFE silences libvirt's own guess. */
  unsafe: z.boolean(),
  autoConverge: z.boolean(),
  /** MiB/s; null: libvirt's default. */
  bandwidthMiBps: z.nullable(z.int().check(z.minimum(1), z.maximum(1_000_000))),
});
export type MigrateOptions = z.infer<typeof migrateOptionsSchema>;

/** The destination's statement of how Finish ended (I7: never contradicted). */
export const receiptSchema = z.object({
  outcome: z.enum(["started", "destroyed"]),
  /** How it is known: the destination called Finish itself, or looked at the domain afterwards; or, where it is gone for
   *  good, a person stated that it is fenced. */
  evidence: z.enum(["finish", "probe", "fenced"]),
  at: z.string(),
  /** Over `receiptSignedText` (ticket.ts), by the destination's key; a `fenced` one by the control plane's. */
  signature: z.optional(signatureSchema),
});
export type Receipt = z.infer<typeof receiptSchema>;

const head = {
  id: commandIdSchema,
  migrationId: migrationIdSchema,
  epoch: z.int().check(z.minimum(1)),
  domain: domainRefSchema,
};
const bundle = z.nullable(bundleRefSchema);

export const commandSchema = z.discriminatedUnion("kind", [
  z.object({ ...head, kind: z.literal("inspectSource") }),
  z.object({ ...head, kind: z.literal("inspectDestination"), facts: blobSchema }),
  z.object({ ...head, kind: z.literal("export") }),
  z.object({ ...head, kind: z.literal("stage"), bundle: bundleRefSchema }),
  z.object({ ...head, kind: z.literal("begin"), bundle, options: migrateOptionsSchema }),
  z.object({
    ...head,
    kind: z.literal("prepare"),
    cookie: blobSchema,
    xml: blobSchema,
    options: migrateOptionsSchema,
    flags: z.int(),
  }),
  z.object({
    ...head,
    kind: z.literal("perform"),
    bundle,
    cookie: blobSchema,
    uri: z.nullable(z.string()),
    options: migrateOptionsSchema,
    flags: z.int(),
    /** A `Ticket` (ticket.ts), signed by the control plane. Null: none can be made, and Perform is refused. */
    ticket: z.nullable(signedTextSchema),
  }),
  z.object({ ...head, kind: z.literal("abort") }),
  z.object({
    ...head,
    kind: z.literal("finish"),
    cookie: z.nullable(z.union([blobSchema, handedBlobSchema])),
    cancelled: z.boolean(),
    options: migrateOptionsSchema,
    flags: z.int(),
  }),
  z.object({
    ...head,
    kind: z.literal("confirm"),
    cookie: z.nullable(blobSchema),
    receipt: receiptSchema,
    /** Names the key that the receipt is signed with; null for a domain that was not running: its Finish needs no ticket. */
    ticket: z.nullable(signedTextSchema),
    options: migrateOptionsSchema,
    flags: z.int(),
  }),
  z.object({ ...head, kind: z.literal("settle"), bundle, autostart: z.boolean(), offline: z.boolean() }),
  /** `autostart`: what the inspection saw; Begin takes it off the source, so that a reboot there starts no second copy (I1). */
  z.object({ ...head, kind: z.literal("restore"), bundle, autostart: z.boolean() }),
  z.object({ ...head, kind: z.literal("unstage"), bundle }),
  z.object({ ...head, kind: z.literal("restoreBundle"), bundle: bundleRefSchema }),
]);
export type Command = z.infer<typeof commandSchema>;

export const commandKindSchema = z.enum([
  "inspectSource",
  "inspectDestination",
  "export",
  "stage",
  "begin",
  "prepare",
  "perform",
  "abort",
  "finish",
  "confirm",
  "settle",
  "restore",
  "unstage",
  "restoreBundle",
] as const satisfies readonly Command["kind"][]);
export type CommandKind = Command["kind"];
export type CommandOf<K extends CommandKind> = Extract<Command, { kind: K }>;

/** Which side executes a command. */
export const commandSide: Record<CommandKind, Side> = {
  inspectSource: "source",
  inspectDestination: "destination",
  export: "source",
  stage: "destination",
  begin: "source",
  prepare: "destination",
  perform: "source",
  abort: "source",
  finish: "destination",
  confirm: "source",
  settle: "destination",
  restore: "source",
  unstage: "destination",
  restoreBundle: "destination",
};

/** Commands after whose acknowledged report the shim forgets the migration (closes its libvirt connection, drops its journal). */
export const finalCommands: ReadonlySet<CommandKind> = new Set(["settle", "restore", "unstage", "restoreBundle"]);

const count = (max: number) => z.int().check(z.minimum(0), z.maximum(max));
const domainStateSchema = z.enum([
  "nostate",
  "running",
  "blocked",
  "paused",
  "shutdown",
  "shutoff",
  "crashed",
  "pmsuspended",
]);
export type DomainState = z.infer<typeof domainStateSchema>;
export { domainStateSchema };

/** What was verified of a tree: how many snapshots, and the digest that both sides compute alike. */
const treeSchema = z.object({
  snapshots: count(snapshotsMax),
  checkpoints: count(checkpointsMax),
  treeSha256: sha256Schema,
});
export type TreeSummary = z.infer<typeof treeSchema>;

const confirmedSourceSchema = z.enum(["gone", "running", "paused", "shutoff"]);

/** The end of a handshake between the two shims: the destination's receipt, and what the source has done by it. */
const peerEndSchema = z.object({
  receipt: receiptSchema,
  source: confirmedSourceSchema,
  /** Why Finish did not start the domain. */
  fault: z.nullable(faultSchema),
  /** Cookie D; null: there is none, or it is too large to be carried for its figures. */
  cookie: z.nullable(blobSchema),
  /** From handing over to the receipt, and what Confirm took then. */
  finishMs: z.number().check(z.minimum(0)),
  confirmMs: z.number().check(z.minimum(0)),
});
export type PeerEnd = z.infer<typeof peerEndSchema>;

export const reportBodySchema = z.discriminatedUnion("kind", [
  z.object({
    kind: z.literal("inspectSource"),
    facts: blobSchema,
    findings: z.array(findingSchema).check(z.maxLength(200)),
    carries: z.object({ snapshots: count(snapshotsMax), checkpoints: count(checkpointsMax) }),
    domain: z.object({
      name: nameSchema,
      state: domainStateSchema,
      memoryKiB: z.int(),
      vcpus: z.int(),
      autostart: z.boolean(),
    }),
  }),
  z.object({
    kind: z.literal("inspectDestination"),
    findings: z.array(findingSchema).check(z.maxLength(200)),
    /** True when both shims proved that every disk is the same file, though libvirt would guess otherwise. */
    storageProven: z.boolean(),
  }),
  z.object({ kind: z.literal("export"), bundle: bundleRefSchema }),
  z.object({ kind: z.literal("stage"), tree: treeSchema }),
  z.object({
    kind: z.literal("begin"),
    cookie: blobSchema,
    xml: blobSchema,
    /** libvirt's flags as they stand after Begin (PAUSED added when the domain is paused); opaque to the functions. */
    flags: z.int(),
    /** How long the source lacked its snapshot metadata; 0 without snapshots. */
    strippedMs: z.number(),
  }),
  z.object({
    kind: z.literal("prepare"),
    cookie: blobSchema,
    uri: z.nullable(z.string().check(z.maxLength(2000))),
    /** Where this host's peer channel listens now; null: it has none, so no ticket can be made. */
    peer: z.nullable(peerAddressSchema),
  }),
  z.object({
    kind: z.literal("perform"),
    /** Cookie C. Null: the shims have ended it, so nobody needs it, and it could not be stored. */
    cookie: z.nullable(blobSchema),
    statistics: z.object({
      downtimeMs: z.nullable(z.number()),
      transferredBytes: z.nullable(z.number()),
      totalMs: z.nullable(z.number()),
    }),
    /** How the two shims have ended it by themselves; null: the destination was not reached, and the functions relay. */
    ended: z.nullable(peerEndSchema),
  }),
  z.object({ kind: z.literal("abort"), aborted: z.boolean() }),
  z.object({
    kind: z.literal("finish"),
    receipt: receiptSchema,
    cookie: z.nullable(blobSchema),
    fault: z.nullable(faultSchema),
  }),
  /** `receipt`: by which it was confirmed; the functions may not have seen it yet. */
  z.object({ kind: z.literal("confirm"), source: confirmedSourceSchema, receipt: receiptSchema }),
  z.object({
    kind: z.literal("settle"),
    tree: treeSchema,
    state: domainStateSchema,
    autostart: z.boolean(),
    /** The tree arrived whole and its owner has changed it since: that stands, and is said. */
    changedByOwner: z.optional(z.boolean()),
  }),
  z.object({
    kind: z.literal("restore"),
    tree: treeSchema,
    state: domainStateSchema,
    /** The domain was taken away from the source by somebody meanwhile: there is nothing left to restore. */
    absent: z.optional(z.boolean()),
  }),
  z.object({ kind: z.literal("unstage"), removed: z.boolean() }),
  z.object({ kind: z.literal("restoreBundle"), tree: treeSchema }),
]);
export type ReportBody = z.infer<typeof reportBodySchema>;
export type ReportBodyOf<K extends CommandKind> = Extract<ReportBody, { kind: K }>;

/**
 * What a shim states about a command: done with facts, or failed with a fault. For a failed `perform`, `sourceState` says
 * whether the domain runs on the source again (I2a) or is paused and waits for a receipt (I2b).
 */
export const reportSchema = z.object({
  commandId: commandIdSchema,
  migrationId: migrationIdSchema,
  epoch: z.int().check(z.minimum(1)),
  /** Time from first execution to its end on the shim. */
  ms: z.number().check(z.minimum(0)),
  result: z.discriminatedUnion("ok", [
    z.object({ ok: z.literal(true), body: reportBodySchema }),
    z.object({
      ok: z.literal(false),
      fault: faultSchema,
      sourceState: z.optional(domainStateSchema),
      /** Of a failed Perform: what the destination has stated by its ticket already. */
      receipt: z.optional(receiptSchema),
      /** This host had finished with the migration and forgotten it before the command came: nothing was executed. */
      forgotten: z.optional(z.literal(true)),
    }),
  ]),
});
export type Report = z.infer<typeof reportSchema>;
