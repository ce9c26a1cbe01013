/**
 * What happened, as it is told to others: one line of the chronicle in the shape of CloudEvents 1.0. Consoles, outgoing webhooks, the audit trail and
 * the counters of `/metrics` all read these lines and nothing else, so they can never tell different stories.
 *
 * The id follows from what happened, not from when it was written down: writing the same thing down twice leaves one line. No line holds a secret, an XML
 * or a cookie (I9).
 */
import * as z from "zod/mini";
import { domainRefSchema, nameSchema } from "#protocol/command";
import { hostIdSchema } from "#protocol/identity";
import { evacuationStateSchema, evacuationSummarySchema } from "./evacuation-state.ts";
import { originSchema } from "./origin.ts";
import { failureSchema, migrationStateSchema, statusSchema, stepSchema } from "./state.ts";

/** Of one event as JSON: a webhook's body stays below the 20 KB that Standard Webhooks recommend, and an index holds it whole. */
export const chronicleEventBytesMax = 8 * 1024;

const host = z.object({ id: hostIdSchema, name: nameSchema });
const nullableText = z.nullable(z.string());

const migrationCore = {
  id: z.string(),
  domain: domainRefSchema,
  source: host,
  destination: host,
  origin: z.nullable(originSchema),
};

/** `code`, `cause` and `action` of the first thing that went wrong. */
const failure = z.nullable(z.pick(failureSchema, { code: true, phase: true, side: true, cause: true, action: true }));

const migrationResult = z.object({
  ...migrationCore,
  status: statusSchema,
  /** From the request to the end. */
  durationMs: z.number(),
  blackoutMs: z.nullable(z.number()),
  transferredBytes: z.nullable(z.number()),
  /** How long the hosts worked on each step. */
  phasesMs: z.partialRecord(stepSchema, z.number()),
  snapshots: z.object({
    ...migrationStateSchema.shape.snapshots.shape,
    /** Records proven to stand on the source again after the migration was rolled back from behind Begin, which takes them away. */
    restored: z.int(),
    /** Records that lack their data: known, accepted, and moved as they are. */
    quarantined: z.int(),
  }),
  error: failure,
});
export type MigrationResult = z.infer<typeof migrationResult>;

const evacuationCore = {
  id: z.string(),
  kind: evacuationStateSchema.shape.kind,
  host,
  origin: evacuationStateSchema.shape.origin,
  deadlineAt: nullableText,
  domains: z.int(),
};

const runCore = {
  id: z.string(),
  rule: z.string(),
  ruleVersion: z.int(),
  /** What set it off: `dev.vmferry.trigger.alertmanager` and its id at its source; of a person, the person. */
  trigger: z.object({ type: z.string(), id: z.string(), source: z.string() }),
  hosts: z.array(z.object({ host, state: z.string(), evacuationId: nullableText, reason: nullableText })),
  /** Hosts that are not among `hosts`, for the sake of size; absent: none. */
  hostsLeftOut: z.optional(z.int()),
};

/** No dots: Standard Webhooks sign `id.timestamp.body`. The same event always has the same id. */
export const eventIdSchema = z.string().check(z.regex(/^[A-Za-z0-9_-]{1,120}$/));

const common = {
  specversion: z.literal("1.0"),
  id: eventIdSchema,
  source: z.literal("/vmferry"),
  /** What it is about: a migration's, evacuation's, run's or host's id, a rule's name, a request's path. */
  subject: z.string().check(z.maxLength(300)),
  /** When it happened. */
  time: z.string(),
  datacontenttype: z.literal("application/json"),
};
const event = <T extends string, D extends z.ZodMiniType>(type: T, data: D) =>
  z.object({ ...common, type: z.literal(`dev.vmferry.${type}`), data });

export const chronicleEventSchema = z.discriminatedUnion("type", [
  event("migration.started", z.object(migrationCore)),
  /** It waits for a person. It may end after that, so this is no end. */
  event("migration.stranded", migrationResult),
  event("migration.ended", migrationResult),
  event("evacuation.started", z.object(evacuationCore)),
  event(
    "evacuation.ended",
    z.object({
      ...evacuationCore,
      status: evacuationStateSchema.shape.status,
      durationMs: z.number(),
      counts: evacuationSummarySchema.shape.counts,
      /** Why it stopped before its time; null: it did not. */
      error: z.nullable(z.object({ code: z.string(), cause: z.string(), action: z.string() })),
    }),
  ),
  event("rule.run.started", z.object({ ...runCore, awaitsApproval: z.boolean() })),
  event("rule.run.ended", z.object({ ...runCore, approvedBy: nullableText, durationMs: z.number() })),
  event("host.enrolled", z.object({ host, joinToken: nullableText })),
  event("host.shutdownRequested", z.object({ host, requestId: z.string() })),
  /** A person or a program was let in and asked for a change. What it asked is told by its method and path; bodies may hold secrets and are not. */
  event(
    "request.received",
    z.object({ method: z.string(), path: z.string(), by: z.string(), requestId: z.string(), admin: z.boolean() }),
  ),
]);
export type ChronicleEvent = z.infer<typeof chronicleEventSchema>;
export type ChronicleType = ChronicleEvent["type"];
export const chronicleTypes: readonly ChronicleType[] = chronicleEventSchema.def.options.flatMap(
  (option): readonly ChronicleType[] => option.shape.type.def.values,
);

/** `at`: where it stands in the chronicle, a ULID of when it was written down; what a reader resumes by. */
export interface ChronicleEntry {
  at: string;
  event: ChronicleEvent;
}

/** The part of an event that is the same for all. */
export const eventHead = (id: string, subject: string, time: string) =>
  ({ specversion: "1.0", id, source: "/vmferry", subject, time, datacontenttype: "application/json" }) as const;
