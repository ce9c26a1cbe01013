/** Rules as the API shows them, and as the CLI reads them. No secret is in any of it but in the one answer that makes it (I9). */
import * as z from "zod/mini";
import { ruleNameSchema, ruleSchema } from "../core/rule.ts";
import type { RunDecision } from "../core/rule-run.ts";
import {
  type RuleCredential,
  type RuleRecord,
  type RuleState,
  ruleRunSchema,
  ruleStateSchema,
} from "../core/rule-state.ts";
import { type Cron, nextWindows } from "../core/schedule.ts";

/** Windows that are shown ahead. */
const windowsShown = 5;

export const ruleVersionSchema = z.object({
  name: ruleNameSchema,
  version: z.int(),
  at: z.string(),
  by: z.string(),
  paused: z.boolean(),
  deleted: z.boolean(),
  rule: ruleSchema,
});
export type RuleVersion = z.infer<typeof ruleVersionSchema>;

export const windowSchema = z.object({ opensAt: z.string(), closesAt: z.string() });

export const ruleRowSchema = z.object({
  ...z.omit(ruleVersionSchema, { deleted: true }).shape,
  /** The next windows of a schedule, in UTC; empty for a trigger. */
  nextWindows: z.array(windowSchema),
});
export type RuleRow = z.infer<typeof ruleRowSchema>;

export const credentialSchema = z.object({
  id: z.string(),
  kind: z.enum(["secret", "token", "publicKey"]),
  createdAt: z.string(),
  by: z.string(),
});
export const mintedCredentialSchema = z.object({
  ...credentialSchema.shape,
  /** Shown once; null: the sender's own, which it has. */
  value: z.nullable(z.string()),
});

export const ruleDetailSchema = z.object({
  ...ruleRowSchema.shape,
  /** The open run; null: nothing is under way. */
  run: z.nullable(ruleRunSchema),
  past: z.array(ruleRunSchema),
  restores: ruleStateSchema.shape.restores,
  /** Why an event started nothing, newest first. */
  refusals: ruleStateSchema.shape.refusals,
  credentials: z.array(credentialSchema),
});
export type RuleDetail = z.infer<typeof ruleDetailSchema>;

/** What a run takes and what it leaves, each with why. */
export const decisionSchema = z.object({
  hosts: z.array(z.string()),
  refusals: z.array(z.object({ host: z.nullable(z.string()), cause: z.string() })),
  /** They wait until a person approves them. */
  approval: z.boolean(),
});
export const ruleWrittenSchema = z.object({
  ...ruleRowSchema.shape,
  /** False: the rule is as it was. */
  changed: z.boolean(),
  /** True: nothing was stored. */
  dryRun: z.boolean(),
  /** What a run would do this moment; null: it is known only when the trigger names hosts. */
  now: z.nullable(decisionSchema),
});
export const ruleRunReplySchema = z.object({
  dryRun: z.boolean(),
  ...decisionSchema.shape,
  run: z.nullable(ruleRunSchema),
});
export const triggeredSchema = z.object({
  /** Events that were new. */
  accepted: z.int(),
  /** Events that were heard before. */
  repeated: z.int(),
  /** Events that are not of this rule, or of one that is paused. */
  ignored: z.int(),
});

export function ruleVersion({ name, version, at, by, paused, deleted, rule }: RuleRecord): RuleVersion {
  return { name, version, at, by, paused, deleted, rule };
}

export function ruleRow(record: RuleRecord, nowMs: number, cron: Cron): RuleRow {
  const { deleted: _, ...version } = ruleVersion(record);
  const { when } = record.rule;
  const windows = when.kind === "schedule" ? nextWindows(when, nowMs, windowsShown, cron) : [];
  return {
    ...version,
    nextWindows: windows.map(({ opensMs, closesMs }) => ({
      opensAt: new Date(opensMs).toISOString(),
      closesAt: new Date(closesMs).toISOString(),
    })),
  };
}

export function ruleDetail(row: RuleRow, state: RuleState | null, credentials: readonly RuleCredential[]): RuleDetail {
  return {
    ...row,
    run: state?.run ?? null,
    past: state?.past ?? [],
    restores: state?.restores ?? [],
    refusals: state?.refusals ?? [],
    credentials: credentials.map(({ id, kind, createdAt, by }) => ({ id, kind, createdAt, by })),
  };
}

export const decisionResource = ({ hosts, refusals, approval }: RunDecision): z.infer<typeof decisionSchema> => ({
  hosts: hosts.map(({ name }) => name),
  refusals: refusals.map(({ host, cause }) => ({ host, cause })),
  approval,
});
