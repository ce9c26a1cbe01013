/**
 * The messages of the websocket between a shim and the functions: a tagged union each way, decoded by schema at the edge
 * and trusted inside. A session: challenge -> hello -> welcome (or refused), then commands and queries down; reports,
 * heartbeats, inventory, progress and grant requests up. The protocol version is negotiated at hello.
 */
import * as z from "zod/mini";
import { blobSchema, bucketKeySchema, bundleRefSchema, sha256Schema } from "./blob.ts";
import {
  commandIdSchema,
  commandSchema,
  domainRefSchema,
  domainStateSchema,
  migrationIdSchema,
  nameSchema,
  reportBodySchema,
  reportSchema,
  uuidSchema,
} from "./command.ts";
import { faultSchema } from "./fault.ts";
import { hostIdSchema } from "./identity.ts";
import { bundleBytesMax, inventoryDomainsMax, journalsMax } from "./limits.ts";
import { peerAddressSchema } from "./peer-address.ts";
import { publicKeySchema } from "./signed.ts";
import { peerSchema } from "./ticket.ts";

/** The protocol versions that this code speaks. A change that an older peer would misread raises `max`. */
export const protocolVersions = { min: 1, max: 1 } as const;

/** What this code can do beyond the bare protocol. A migration that needs a feature a side lacks is refused as `shim.incompatible` before anything is touched. */
export const protocolFeatures = ["bundle.1", "snapshot.tree.1", "blob.bucket.1", "peer.1"] as const;

/** What the functions understand besides, told in the welcome: a shim says these things only to functions that do. */
export const offeredFeatures = ["journals.1", "shutdown.1"] as const;

const versionsSchema = z.object({ min: z.int(), max: z.int() });
const featuresSchema = z.array(z.string().check(z.maxLength(64))).check(z.maxLength(64));
const idSchema = z.string().check(z.minLength(1), z.maxLength(64));

export const libvirtFactsSchema = z.discriminatedUnion("reachable", [
  z.object({
    reachable: z.literal(true),
    hostUuid: uuidSchema,
    hostname: nameSchema,
    uri: z.string().check(z.maxLength(500)),
    libvirtVersion: z.string().check(z.maxLength(32)),
    hypervisorVersion: z.string().check(z.maxLength(32)),
    arch: z.string().check(z.maxLength(32)),
    cpus: z.int(),
    memoryKiB: z.int(),
    freeMemoryKiB: z.int(),
    /** libvirt driver features that answer yes (virDrvFeature numbers). */
    features: z.array(z.int()).check(z.maxLength(64)),
  }),
  z.object({ reachable: z.literal(false), cause: z.string().check(z.maxLength(2000)) }),
]);

/** As a domain's: fits an index and a line of a table. */
export const labelKeySchema = z.string().check(z.maxLength(63), z.regex(/^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$/));
export const labelValueSchema = z.string().check(z.maxLength(255));

export const hostFactsSchema = z.object({
  shimVersion: z.string().check(z.maxLength(32)),
  nodeVersion: z.string().check(z.maxLength(32)),
  /** Address the destination's QEMU listens on for migrations; null: libvirt's own choice (its hostname). */
  migrationAddress: z.nullable(z.string().check(z.maxLength(255))),
  /** Where its peer channel listens; absent: a shim of before tickets. */
  peer: z.optional(z.nullable(peerAddressSchema)),
  /** What its owner says of it (rack, zone, network): selectors and limits name these. Absent: a shim of before labels, or none. */
  labels: z.optional(z.record(labelKeySchema, labelValueSchema)),
  libvirt: libvirtFactsSchema,
});
export type HostFacts = z.infer<typeof hostFactsSchema>;

export const inventoryDomainSchema = z.object({
  uuid: uuidSchema,
  name: nameSchema,
  state: domainStateSchema,
  persistent: z.boolean(),
  autostart: z.boolean(),
  memoryKiB: z.int(),
  vcpus: z.int(),
  snapshots: z.int(),
  checkpoints: z.int(),
  labels: z.record(z.string().check(z.maxLength(63)), z.string().check(z.maxLength(255))),
});
export type InventoryDomain = z.infer<typeof inventoryDomainSchema>;

export const progressSchema = z.object({
  memory: z.object({
    totalBytes: z.number(),
    processedBytes: z.number(),
    remainingBytes: z.number(),
    bytesPerSecond: z.number(),
    dirtyPagesPerSecond: z.number(),
    iteration: z.number(),
  }),
  disk: z.object({ totalBytes: z.number(), processedBytes: z.number(), remainingBytes: z.number() }),
  elapsedMs: z.number(),
  expectedDowntimeMs: z.nullable(z.number()),
  /** Snapshots staged or exported so far, while that is what happens. */
  snapshots: z.optional(z.object({ done: z.int(), total: z.int() })),
});
export type Progress = z.infer<typeof progressSchema>;

/** Questions that change nothing and are not journalled. */
export const querySchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("inspectSource"), domain: domainRefSchema }),
  z.object({ kind: z.literal("inspectDestination"), domain: domainRefSchema, facts: blobSchema }),
  z.object({ kind: z.literal("describeDomain"), domain: domainRefSchema }),
  /** Does that other shim answer this one, with the key that enrolment bound to it? */
  z.object({ kind: z.literal("reachPeer"), peer: peerSchema }),
]);
export type Query = z.infer<typeof querySchema>;

export const snapshotNodeSchema = z.object({
  name: z.string(),
  parent: z.nullable(z.string()),
  current: z.boolean(),
  state: z.string(),
  createdAt: z.nullable(z.string()),
});
export type SnapshotNode = z.infer<typeof snapshotNodeSchema>;

export const domainDescriptionSchema = z.object({
  kind: z.literal("describeDomain"),
  domain: inventoryDomainSchema,
  /** In topological order; cut at 500 for the message's size, `snapshotsTotal` says the truth. */
  snapshotTree: z.array(snapshotNodeSchema).check(z.maxLength(500)),
  snapshotsTotal: z.int(),
});
export type DomainDescription = z.infer<typeof domainDescriptionSchema>;

const peerReachedSchema = z.object({ kind: z.literal("reachPeer") });

export const answerSchema = z.discriminatedUnion("ok", [
  z.object({ ok: z.literal(true), body: z.union([reportBodySchema, domainDescriptionSchema, peerReachedSchema]) }),
  z.object({ ok: z.literal(false), fault: faultSchema }),
]);
export type Answer = z.infer<typeof answerSchema>;

/** One for each time that somebody asks a host to shut down; goes into keys and into the chronicle's ids as it is. */
export const shutdownIdSchema = z.string().check(z.regex(/^[A-Za-z0-9-]{1,40}$/));
export const shutdownStateSchema = z.enum(["requested", "withdrawn"]);
/** `shutdown +N` takes up to years; more than a month ahead is told when it is nearer. */
export const shutdownBudgetMsMax = 31 * 86_400_000;

/** From the functions to a shim. */
export const downMessageSchema = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("challenge"),
    nonce: z.string().check(z.minLength(22), z.maxLength(86)),
    protocols: versionsSchema,
  }),
  z.object({
    type: z.literal("welcome"),
    session: idSchema,
    protocol: z.int(),
    features: featuresSchema,
    name: nameSchema,
    heartbeatMs: z.int().check(z.minimum(100)),
    /** The key by which the functions sign tickets. A shim keeps the first one it was told and takes no other. */
    controlKey: z.optional(publicKeySchema),
    /** This socket will be cut by its carrier: a shim opens the next one after this time and lets both overlap. */
    renewAfterMs: z.optional(z.int().check(z.minimum(100))),
    /** Progress is worth no more than one message in this time here; absent: as often as there is any. */
    progressMs: z.optional(z.int().check(z.minimum(0))),
  }),
  z.object({ type: z.literal("refused"), fault: faultSchema }),
  z.object({ type: z.literal("command"), command: commandSchema }),
  z.object({ type: z.literal("acknowledged"), commandId: commandIdSchema }),
  z.object({
    type: z.literal("granted"),
    request: idSchema,
    method: z.enum(["GET", "PUT"]),
    url: z.string().check(z.maxLength(8192)),
    /** Headers that were signed and must be sent as they are. */
    headers: z.record(z.string(), z.string()),
    key: bucketKeySchema,
    /** The object is there already with this digest: nothing to upload. */
    present: z.boolean(),
  }),
  z.object({ type: z.literal("grantRefused"), request: idSchema, fault: faultSchema }),
  z.object({ type: z.literal("query"), queryId: idSchema, query: querySchema }),
  /** The answer to `shutdown`, and to nothing else: it is stored, and need not be said again. */
  z.object({ type: z.literal("shutdownHeard"), requestId: shutdownIdSchema, state: shutdownStateSchema }),
]);
export type DownMessage = z.infer<typeof downMessageSchema>;

export const grantPurposeSchema = z.enum(["bundle", "cookie"]);

/** A migration or task that has a journal on a host: something of it is not over there. */
export const openJournalSchema = z.object({ id: migrationIdSchema, epoch: z.int().check(z.minimum(0)) });
export type OpenJournal = z.infer<typeof openJournalSchema>;

/** From a shim to the functions. */
export const upMessageSchema = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("hello"),
    protocols: versionsSchema,
    features: featuresSchema,
    hostId: hostIdSchema,
    /** Ed25519 over `helloSignedText` of the challenge's nonce (identity.ts), base64url. */
    signature: z.string().check(z.maxLength(128)),
    facts: hostFactsSchema,
    /** The session of this same shim that this one takes over from; it is left open until the shim closes it. */
    renews: z.optional(idSchema),
  }),
  z.object({ type: z.literal("heartbeat"), facts: z.optional(hostFactsSchema) }),
  /**
   * `full`: the first message of a complete list, `last` ends it and what was not named is gone; otherwise a change. `series` says the same to
   * functions that see the messages in no order: the list's own id, which part this is (from 0), of how many.
   */
  z.object({
    type: z.literal("inventory"),
    series: z.optional(
      z.object({ id: idSchema, part: z.int().check(z.minimum(0)), parts: z.int().check(z.minimum(1)) }),
    ),
    full: z.boolean(),
    last: z.boolean(),
    domains: z.array(inventoryDomainSchema).check(z.maxLength(inventoryDomainsMax)),
    gone: z.array(uuidSchema).check(z.maxLength(inventoryDomainsMax)),
  }),
  /** Every journal that is open here; at most so many, so what is not named says nothing. Feature `journals.1`. */
  z.object({
    type: z.literal("journals"),
    migrations: z.array(openJournalSchema).check(z.maxLength(journalsMax)),
  }),
  z.object({ type: z.literal("report"), report: reportSchema }),
  z.object({
    type: z.literal("progress"),
    migrationId: migrationIdSchema,
    commandId: commandIdSchema,
    progress: progressSchema,
  }),
  /** The destination's libvirt connection closed between Prepare and Finish: what it held is lost. A hint that saves time, never an answer. */
  z.object({
    type: z.literal("lost"),
    migrationId: migrationIdSchema,
    epoch: z.int(),
    cause: z.string().check(z.maxLength(2000)),
  }),
  z.object({
    type: z.literal("grant"),
    request: idSchema,
    migrationId: migrationIdSchema,
    commandId: commandIdSchema,
    want: z.discriminatedUnion("op", [
      z.object({
        op: z.literal("put"),
        purpose: grantPurposeSchema,
        sha256: sha256Schema,
        bytes: z.int().check(z.minimum(1), z.maximum(bundleBytesMax)),
      }),
      z.object({ op: z.literal("get"), key: bucketKeySchema }),
    ]),
  }),
  z.object({ type: z.literal("answered"), queryId: idSchema, answer: answerSchema }),
  /**
   * Somebody has asked this host to shut down, or taken that back. It names no host: it is always the one that speaks. Repeated until it is
   * heard. Feature `shutdown.1`.
   */
  z.object({
    type: z.literal("shutdown"),
    requestId: shutdownIdSchema,
    state: shutdownStateSchema,
    /** In the host's words: poweroff, reboot, halt, kexec, ...; null: it does not say. */
    kind: z.nullable(z.string().check(z.maxLength(32))),
    /** When the shim first saw it, by this host's clock. */
    at: z.string().check(z.maxLength(64)),
    /** From now on: how long this host surely still runs. A duration, for clocks differ. */
    budgetMs: z.int().check(z.minimum(0), z.maximum(shutdownBudgetMsMax)),
  }),
]);
export type UpMessage = z.infer<typeof upMessageSchema>;

export { bundleRefSchema };
