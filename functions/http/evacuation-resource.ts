/**
 * Evacuations and their plans as the API shows them: hosts by name, sizes in bytes, each domain with where it goes or why it stays. A plan is what would
 * be done now; nothing of it is promised, for each look plans again with what is true then.
 */
import * as z from "zod/mini";
import { domainRefSchema } from "#protocol/command";
import { faultCodes } from "#protocol/fault";
import {
  type EvacuationState,
  type EvacuationSummary,
  evacuationDomainStateSchema,
  evacuationPolicySchema,
  evacuationStateSchema,
  evacuationStatusSchema,
  evacuationSummary,
  evacuationSummarySchema,
} from "../core/evacuation-state.ts";
import { placementLabels } from "../core/placement-ledger.ts";
import type { Plan, PlannedMove } from "../core/placement-view.ts";
import type { Seen } from "../placement-look.ts";

const reasonSchema = z.object({ code: z.enum(faultCodes), cause: z.string(), action: z.string() });

export const evacuationRowSchema = z.object({
  id: z.string(),
  kind: evacuationStateSchema.shape.kind,
  host: z.string(),
  status: evacuationStatusSchema,
  createdAt: z.string(),
  endedAt: z.nullable(z.string()),
  deadlineAt: z.nullable(z.string()),
  counts: evacuationSummarySchema.shape.counts,
});
export type EvacuationRow = z.infer<typeof evacuationRowSchema>;

export const evacuationSchema = z.object({
  ...evacuationRowSchema.shape,
  updatedAt: z.string(),
  version: z.int(),
  /** The evacuation that this undo takes back. */
  undoes: z.nullable(z.string()),
  /** Who or what asked for it. */
  origin: evacuationStateSchema.shape.origin,
  /** `to`: names of hosts; null: all that take domains. */
  policy: z.object({ ...evacuationPolicySchema.shape, to: z.nullable(z.array(z.string())) }),
  /** Why nothing is started at the moment; it goes on by itself. */
  held: z.nullable(reasonSchema),
  /** Why nothing more is started. */
  stopped: z.nullable(reasonSchema),
  domains: z.array(
    z.object({
      domain: domainRefSchema,
      memoryBytes: z.number(),
      vcpus: z.int(),
      priority: z.int(),
      state: evacuationDomainStateSchema,
      /** Where it was when this began. */
      home: z.string(),
      /** Where it goes or went; null: not decided. */
      destination: z.nullable(z.string()),
      migration: z.nullable(z.string()),
      attempts: z.int(),
      /** Not tried again before this. */
      notBefore: z.nullable(z.string()),
      /** Why it stays, has failed or waits. */
      reason: z.nullable(reasonSchema),
    }),
  ),
  timeline: z.array(z.object({ at: z.string(), domain: z.nullable(z.string()), note: z.string() })),
});
export type Evacuation = z.infer<typeof evacuationSchema>;

const plannedSchema = z.object({
  domain: domainRefSchema,
  from: z.string(),
  to: z.string(),
  memoryBytes: z.number(),
  vcpus: z.int(),
  snapshots: z.int(),
  reason: z.string(),
  runnersUp: z.array(z.object({ host: z.string(), why: z.string() })),
  /** Moves of one wave may run side by side within the limits. */
  wave: z.int(),
  startMs: z.number(),
  endMs: z.number(),
  /** Whether a preflight has allowed exactly this move. */
  proven: z.boolean(),
});
export type Planned = z.infer<typeof plannedSchema>;

const blockedSchema = z.object({ domain: domainRefSchema, from: z.string(), blocker: reasonSchema });

const limitsSchema = z.pick(evacuationPolicySchema, { outMax: true, inMax: true, fleetMax: true, networkMax: true });
export type EvacuationLimits = z.infer<typeof limitsSchema>;

export const evacuationPlanSchema = z.object({
  kind: evacuationStateSchema.shape.kind,
  host: z.string(),
  at: z.string(),
  /** How long it takes by the estimate, and when it would end. */
  makespanMs: z.number(),
  deadlineAt: z.nullable(z.string()),
  /** Migrations at once that the times were reckoned with; `networkMax` null: no such limit. */
  limits: limitsSchema,
  moves: z.array(plannedSchema),
  blocked: z.array(blockedSchema),
  /** What each destination has, before and after: the proof that there is room. */
  rooms: z.array(
    z.object({
      host: z.string(),
      memoryBytesMax: z.number(),
      memoryBytesBefore: z.number(),
      memoryBytesAfter: z.number(),
      vcpusMax: z.number(),
      vcpusBefore: z.number(),
      vcpusAfter: z.number(),
    }),
  ),
  /** The way back, in an order that fits. */
  home: z.array(plannedSchema),
  homeBlocked: z.array(blockedSchema),
  /** What this plan could not know, for people. */
  notes: z.array(z.string()),
});
export type EvacuationPlan = z.infer<typeof evacuationPlanSchema>;

/** Names of hosts by their ids; a host that was removed is named by its id. */
export type HostNames = ReadonlyMap<string, string>;

const nameOf = (names: HostNames, id: string): string => names.get(id) ?? id;

/** Stories and reasons are kept with ids, which stay right when a host is renamed; people read names. */
const inWords = (names: HostNames, text: string): string =>
  text.replaceAll(/h_[0-9A-HJKMNP-TV-Z]{26}/g, (id) => nameOf(names, id));

const reasonText = (
  names: HostNames,
  reason: { code: (typeof faultCodes)[number]; cause: string; action: string } | null,
) =>
  reason === null
    ? null
    : { code: reason.code, cause: inWords(names, reason.cause), action: inWords(names, reason.action) };

/** A row of a list. */
export function evacuationRow(summary: EvacuationSummary): EvacuationRow {
  const { id, kind, host, status, createdAt, endedAt, deadlineAt, counts } = summary;
  return { id, kind, host: host.name, status, createdAt, endedAt, deadlineAt, counts };
}

/** The whole resource. */
export function evacuationResource(state: EvacuationState, names: HostNames): Evacuation {
  const { policy } = state;
  return {
    ...evacuationRow(evacuationSummary(state)),
    updatedAt: state.updatedAt,
    version: state.version,
    undoes: state.undoes,
    origin: state.origin,
    policy: { ...policy, to: policy.to?.map((id) => nameOf(names, id)) ?? null },
    held: reasonText(names, state.held),
    stopped: reasonText(names, state.stopped),
    domains: state.domains.map((each) => ({
      domain: each.domain,
      memoryBytes: each.memoryKiB * 1024,
      vcpus: each.vcpus,
      priority: each.priority,
      state: each.state,
      home: nameOf(names, each.homeId),
      destination: each.destinationId === null ? null : nameOf(names, each.destinationId),
      migration: each.migrationId,
      attempts: each.attempts,
      notBefore: each.notBefore,
      reason: reasonText(names, each.reason),
    })),
    timeline: state.timeline.map(({ at, domain, note }) => ({ at, domain, note: inWords(names, note) })),
  };
}

/** A plan with what was seen when it was made. */
export function planResource(state: EvacuationState, plan: Plan, seen: Seen): EvacuationPlan {
  const { outMax, inMax, fleetMax, networkMax } = state.policy;
  const names: HostNames = new Map([...seen.records.values()].map(({ id, name }) => [id, name]));
  const refOf = (uuid: string) => ({
    uuid,
    name: seen.placed.get(uuid)?.name ?? state.domains.find(({ domain }) => domain.uuid === uuid)?.domain.name ?? uuid,
  });
  const planned = (move: PlannedMove): Planned => {
    const domain = seen.placed.get(move.domainUuid);
    return {
      domain: refOf(move.domainUuid),
      from: nameOf(names, move.fromId),
      to: nameOf(names, move.toId),
      memoryBytes: (domain?.memoryKiB ?? 0) * 1024,
      vcpus: domain?.vcpus ?? 0,
      snapshots: domain?.snapshots ?? 0,
      reason: inWords(names, move.reason),
      runnersUp: move.runnersUp.map(({ hostId, why }) => ({ host: nameOf(names, hostId), why: inWords(names, why) })),
      wave: move.wave,
      startMs: Math.round(move.startMs),
      endMs: Math.round(move.endMs),
      proven: move.proven,
    };
  };
  const stays = ({ domainUuid, fromId, blocker }: Plan["blocked"][number]) => ({
    domain: refOf(domainUuid),
    from: nameOf(names, fromId),
    blocker: { code: blocker.code, cause: inWords(names, blocker.cause), action: inWords(names, blocker.action) },
  });
  return {
    kind: state.kind,
    host: state.host.name,
    at: new Date(seen.view.atMs).toISOString(),
    makespanMs: Math.round(plan.makespanMs),
    deadlineAt: state.deadlineAt,
    limits: { outMax, inMax, fleetMax, networkMax },
    moves: plan.moves.map(planned),
    blocked: plan.blocked.map(stays),
    rooms: plan.rooms.map((room) => ({
      host: nameOf(names, room.hostId),
      memoryBytesMax: room.memoryKiBMax * 1024,
      memoryBytesBefore: room.memoryKiBBefore * 1024,
      memoryBytesAfter: room.memoryKiBAfter * 1024,
      vcpusMax: room.vcpusMax,
      vcpusBefore: room.vcpusBefore,
      vcpusAfter: room.vcpusAfter,
    })),
    home: plan.home.map(planned),
    homeBlocked: plan.homeBlocked.map(stays),
    notes: unreadNotes(state, seen),
  };
}

/**
 * Of a large fleet only so many inventories are read. Every destination is one of these, so room and anti-affinity are judged in full; but members of an affinity
 * group that are on the others are not seen.
 */
function unreadNotes({ domains }: EvacuationState, { view, records, placed }: Seen): string[] {
  const unread = records.size - view.hosts.length;
  const groups = new Set(
    domains.flatMap(({ domain }) => placed.get(domain.uuid)?.labels[placementLabels.affinity] ?? []),
  );
  if (unread <= 0 || groups.size === 0) return [];
  const names = [...groups].sort().slice(0, 5).join(", ");
  const more = groups.size > 5 ? ` and ${groups.size - 5} more` : "";
  return [
    `${view.hosts.length} of ${records.size} hosts were read: where members of the affinity ${groups.size === 1 ? "group" : "groups"} ${names}${more} are on the other ${unread}, ` +
      "they are not moved to. To have a host among those that are read, name it as a destination (--to).",
  ];
}
