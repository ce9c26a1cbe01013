/**
 * The state of one evacuation, undo or restore: one item in DynamoDB, changed by one conditional write at a time like a migration's. It creates
 * migrations and learns how they ended; it never touches a domain itself (I8). Every domain of it ends with a stated result.
 */
import * as z from "zod/mini";
import { domainRefSchema, nameSchema } from "#protocol/command";
import { faultSchema } from "#protocol/fault";
import { hostIdSchema } from "#protocol/identity";
import { acceptMax } from "./limits.ts";

/** Domains of one evacuation: above what one host runs, and below what an item holds (500 of about 500 bytes). */
export const evacuationDomainsMax = 500;
/** Lines of the story of one. */
export const evacuationTimelineMax = 200;

export const evacuationIdSchema = z.string().check(z.regex(/^e_[0-9A-HJKMNP-TV-Z]{26}$/));

/**
 * `waiting`: to be moved, or to be tried again from `notBefore` on. `moving`: its migration runs. `moved`: it has arrived. `stays`: it cannot or
 * need not move, for the reason given. `failed`: the tries are used up or the evacuation ended first, the reason is given. Nothing is ever stopped.
 */
export const evacuationDomainStateSchema = z.enum(["waiting", "moving", "moved", "stays", "failed"]);

export const evacuationDomainSchema = z.object({
  domain: domainRefSchema,
  memoryKiB: z.int(),
  vcpus: z.int(),
  priority: z.int(),
  /** Where it was when this began: `undo` brings it back there. */
  homeId: hostIdSchema,
  state: evacuationDomainStateSchema,
  destinationId: z.nullable(hostIdSchema),
  migrationId: z.nullable(z.string()),
  attempts: z.int(),
  /** On its way home it stopped over: where from, and by which migration. Its `homeId` is the host of the stop since then. One stop at the most. */
  stop: z.optional(z.object({ fromId: hostIdSchema, migrationId: z.string() })),
  /** Destinations that a migration of it failed on. */
  triedIds: z.array(hostIdSchema).check(z.maxLength(20)),
  notBefore: z.nullable(z.string()),
  /** Since when nothing could be started for it for a reason that may pass by itself; absent: it is not held up. */
  waitsSince: z.optional(z.string()),
  reason: z.nullable(faultSchema),
});
export type EvacuationDomain = z.infer<typeof evacuationDomainSchema>;

export const networkMaxSchema = z.nullable(z.int().check(z.minimum(1), z.maximum(500)));

export const evacuationPolicySchema = z.object({
  /** Host ids; null: all that take domains. */
  to: z.nullable(z.array(hostIdSchema).check(z.maxLength(1_000))),
  accept: z.array(z.string()).check(z.maxLength(acceptMax)),
  vcpusPerCpuMax: z.number().check(z.minimum(0.1), z.maximum(100)),
  memoryReserveKiB: z.int().check(z.minimum(0)),
  outMax: z.int().check(z.minimum(1), z.maximum(50)),
  inMax: z.int().check(z.minimum(1), z.maximum(50)),
  fleetMax: z.int().check(z.minimum(1), z.maximum(500)),
  /** Migrations at once that touch one network (the hosts' label `network`); null, and what was stored before there was such a limit: no such limit. */
  networkMax: z._default(networkMaxSchema, null),
  bandwidthMiBps: z.nullable(z.int().check(z.minimum(1))),
  /** Tries of one domain in all. */
  attemptsMax: z.int().check(z.minimum(1), z.maximum(10)),
  /** Failures in a row, of any domains, after which nothing more is started. */
  breakerFailures: z.int().check(z.minimum(1), z.maximum(100)),
});
export type EvacuationPolicy = z.infer<typeof evacuationPolicySchema>;

export const evacuationPolicyDefault: EvacuationPolicy = {
  to: null,
  accept: [],
  vcpusPerCpuMax: 4,
  memoryReserveKiB: 1024 * 1024,
  outMax: 2,
  inMax: 2,
  fleetMax: 5,
  networkMax: null,
  bandwidthMiBps: null,
  attemptsMax: 3,
  breakerFailures: 3,
};

/** `running` starts migrations; `ending` starts none any more and waits for those that run; then how it ended. */
export const evacuationStatusSchema = z.enum(["running", "ending", "completed", "partial", "failed", "cancelled"]);
export type EvacuationStatus = z.infer<typeof evacuationStatusSchema>;

export const evacuationStateSchema = z.object({
  id: evacuationIdSchema,
  /** What it does: empty a host, bring back what an evacuation moved, bring home what belongs to a host. */
  kind: z.enum(["evacuate", "undo", "restore"]),
  host: z.object({ id: hostIdSchema, name: nameSchema }),
  /** Of an undo: the evacuation that it takes back. */
  undoes: z.nullable(evacuationIdSchema),
  /** Who or what asked for it: a person's token, a rule's run with its trigger. */
  origin: z.object({
    by: z.string(),
    rule: z.nullable(z.string()),
    trigger: z.nullable(z.string()),
    /** The rule's run; absent: none, or before this was kept. */
    run: z.optional(z.string()),
  }),
  status: evacuationStatusSchema,
  version: z.int(),
  createdAt: z.string(),
  updatedAt: z.string(),
  endedAt: z.nullable(z.string()),
  /** No migration is started after it. */
  deadlineAt: z.nullable(z.string()),
  policy: evacuationPolicySchema,
  /** We have closed the host to new domains, so we open it again where that is due. */
  cordoned: z.boolean(),
  /** It was open and we have closed it, whatever it is now; absent in what was stored before this was kept: the story says. */
  closedHost: z.optional(z.boolean()),
  domains: z.array(evacuationDomainSchema).check(z.maxLength(evacuationDomainsMax)),
  failuresInRow: z.int(),
  /** Why nothing is started at the moment: the mass-failure brake. Nothing is lost by it; it lifts by itself. */
  held: z.nullable(faultSchema),
  /** Why nothing more is started: cancelled, the deadline, the breaker. */
  stopped: z.nullable(faultSchema),
  timeline: z.array(z.object({ at: z.string(), domain: z.nullable(z.string()), note: z.string() })),
});
export type EvacuationState = z.infer<typeof evacuationStateSchema>;

/** The line of its story when it closes its host. */
export const closedNote = "the host is closed to new domains";

/** Whether it has closed its host itself. Of what was stored before that was a field, its story says. */
export const hasClosedHost = ({ closedHost, timeline }: EvacuationState): boolean =>
  closedHost ?? timeline.some(({ note }) => note === closedNote);

/** What a list shows: how many domains are in which state, instead of the domains. */
export const evacuationSummarySchema = z.object({
  ...z.pick(evacuationStateSchema, {
    id: true,
    kind: true,
    host: true,
    status: true,
    createdAt: true,
    endedAt: true,
    deadlineAt: true,
  }).shape,
  counts: z.object({ waiting: z.int(), moving: z.int(), moved: z.int(), stays: z.int(), failed: z.int() }),
});
export type EvacuationSummary = z.infer<typeof evacuationSummarySchema>;

export function evacuationSummary(state: EvacuationState): EvacuationSummary {
  const { id, kind, host, status, createdAt, endedAt, deadlineAt } = state;
  const counts = { waiting: 0, moving: 0, moved: 0, stays: 0, failed: 0 };
  for (const domain of state.domains) counts[domain.state] += 1;
  return { id, kind, host, status, createdAt, endedAt, deadlineAt, counts };
}
