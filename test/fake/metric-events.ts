/** Events of every kind as the chronicle holds them, made by hand or by chance; each passes the chronicle's own schema. */
import fc from "fast-check";
import { type ChronicleEvent, chronicleEventSchema, chronicleTypes } from "#core/chronicle-event";
import { stepSchema } from "#core/state";

const time = "2026-11-01T00:00:00.000Z";
const host = { id: "h_01JD0000000000000000000001", name: "host1" };
const other = { id: "h_01JD0000000000000000000002", name: "host2" };
const origin = { by: "admin", rule: null, trigger: null };

const migration = {
  id: "m_01JD0000000000000000000001",
  domain: { uuid: "11111111-2222-4333-8444-555555555555", name: "web" },
  source: host,
  destination: other,
  origin: null,
};
export const migrationResult = {
  ...migration,
  status: "completed",
  durationMs: 42_000,
  blackoutMs: 180,
  transferredBytes: 1_000_000,
  phasesMs: { performing: 30_000, staging: 400 },
  snapshots: { total: 5, staged: 5, verified: 5, restored: 0, quarantined: 1 },
  error: null,
};
const evacuation = {
  id: "e_01JD0000000000000000000001",
  kind: "evacuate",
  host,
  origin,
  deadlineAt: null,
  domains: 3,
};
const run = {
  id: "r_01JD0000000000000000000001",
  rule: "rack-b",
  ruleVersion: 1,
  trigger: { type: "dev.vmferry.trigger.schedule", id: "1", source: "/rack-b" },
  hosts: [{ host, state: "ended", evacuationId: null, reason: null }],
};

const examples: Record<string, object> = {
  "migration.started": migration,
  "migration.stranded": { ...migrationResult, status: "stranded" },
  "migration.ended": migrationResult,
  "evacuation.started": evacuation,
  "evacuation.ended": {
    ...evacuation,
    status: "completed",
    durationMs: 90_000,
    counts: { waiting: 0, moving: 0, moved: 2, stays: 1, failed: 0 },
    error: null,
  },
  "rule.run.started": { ...run, awaitsApproval: false },
  "rule.run.ended": { ...run, approvedBy: null, durationMs: 1_000 },
  "host.enrolled": { host, joinToken: null },
  "host.shutdownRequested": { host, requestId: "1" },
  "request.received": { method: "POST", path: "/v1/hosts", by: "admin", requestId: "1", admin: true },
};

let serial = 0;

/** `kind`: a type without `dev.vmferry.`. `data` takes the place of what the example has. */
export function metricEvent(kind: string, data: object = {}): ChronicleEvent {
  serial += 1;
  return chronicleEventSchema.parse({
    specversion: "1.0",
    id: `event-${serial}`,
    source: "/vmferry",
    subject: "test",
    time,
    datacontenttype: "application/json",
    type: `dev.vmferry.${kind}`,
    data: { ...examples[kind], ...data },
  });
}

export const metricKinds: readonly string[] = chronicleTypes.map((type) => type.replace("dev.vmferry.", ""));

const count = fc.integer({ min: 0, max: 20 });
const ms = fc.oneof(fc.integer({ min: -5, max: 10_000_000 }), fc.double({ min: 0, max: 100_000, noNaN: true }));
const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: null });
const rule = fc.constantFrom("rack-a", "rack-b", "constructor", "to-string");

const chance: Record<string, fc.Arbitrary<object>> = {
  "migration.ended": fc.record({
    status: fc.constantFrom("completed", "rolledBack", "refused", "cancelled"),
    durationMs: ms,
    blackoutMs: maybe(ms),
    transferredBytes: maybe(fc.double({ min: 0, max: 1e12, noNaN: true })),
    phasesMs: fc.dictionary(fc.constantFrom(...stepSchema.options), ms, { maxKeys: 4 }),
    snapshots: fc.record({ total: count, staged: count, verified: count, restored: count, quarantined: count }),
    error: maybe(
      fc.record({
        code: fc.constant("domain.busy"),
        phase: fc.constantFrom(...stepSchema.options),
        side: fc.constantFrom("source", "destination", null),
        cause: fc.constant("c"),
        action: fc.constant("a"),
      }),
    ),
  }),
  "evacuation.started": fc.record({ kind: fc.constantFrom("evacuate", "undo", "restore") }),
  "evacuation.ended": fc.record({
    kind: fc.constantFrom("evacuate", "undo", "restore"),
    status: fc.constantFrom("completed", "partial", "failed", "cancelled"),
    durationMs: ms,
    counts: fc.record({ waiting: fc.constant(0), moving: fc.constant(0), moved: count, stays: count, failed: count }),
  }),
  "rule.run.started": fc.record({ rule }),
  "rule.run.ended": fc.record({
    rule,
    hosts: fc.array(
      fc.record({
        host: fc.constant(host),
        state: fc.constantFrom("ended", "skipped", "cancelled", "of a newer version"),
        evacuationId: fc.constant(null),
        reason: fc.constant(null),
      }),
      { maxLength: 3 },
    ),
    hostsLeftOut: fc.constantFrom(0, 7),
  }),
  "request.received": fc.record({ method: fc.constantFrom("POST", "PUT", "PATCH", "DELETE", "PROPFIND") }),
};

export const anyMetricEvent: fc.Arbitrary<ChronicleEvent> = fc
  .constantFrom(...metricKinds)
  .chain((kind) => (chance[kind] ?? fc.constant({})).map((data) => metricEvent(kind, data)));
