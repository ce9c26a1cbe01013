/**
 * What is kept of a rule: its versions, and beside them one item of how its runs stand, changed by one conditional write at a time (I5). A rule has one open
 * run at most; what fires meanwhile joins it, so that the limits of a rule hold over everything that it does.
 */
import * as z from "zod/mini";
import { nameSchema } from "#protocol/command";
import { hostIdSchema } from "#protocol/identity";
import { evacuationIdSchema } from "./evacuation-state.ts";
import { ruleNameSchema, ruleSchema } from "./rule.ts";
import { triggerEventSchema } from "./trigger-event.ts";

/** Hosts of one run: 100 of about 1 KiB, and the same without their causes for each past run, stay below what an item holds. */
export const runHostsMax = 100;
/** Causes that hold one host's evacuation; what comes beyond them is counted as `causeBeyond`. */
export const causesMax = 5;
/** Stands for causes beyond the bound: nobody resolves it, so nothing is cancelled while one of them may still hold. */
export const causeBeyond = "beyond";
/** Ended runs and refusals that are remembered, for people who ask why. */
export const pastRunsMax = 5;
export const refusalsMax = 20;
/** How long a host is waited for: longer than a repair takes; who comes back after it may have been given other work, and a person decides. */
export const restoreWaitMsMax = 7 * 86_400_000;
/** Hosts that wait to be brought home. */
export const restoresMax = 200;
/** Hosts whose last start is remembered for the cool-down; past ones are dropped. */
export const startsMax = 1_000;

/** One version of a rule, never changed once it is written. */
export const ruleRecordSchema = z.object({
  name: ruleNameSchema,
  version: z.int().check(z.minimum(1)),
  /** SHA-256 of the version before, so that what was never the current one is told apart; null: the first. */
  previousSha256: z.nullable(z.string()),
  sha256: z.string(),
  at: z.string(),
  by: z.string(),
  paused: z.boolean(),
  /** The rule is gone; its versions stay, and a rule of that name goes on from them. */
  deleted: z.boolean(),
  rule: ruleSchema,
});
export type RuleRecord = z.infer<typeof ruleRecordSchema>;

/** How a caller of a rule's trigger proves itself. A secret is sealed, a token is a digest, a public key is none (I9). */
export const ruleCredentialSchema = z.object({
  id: z.string(),
  rule: ruleNameSchema,
  kind: z.enum(["secret", "token", "publicKey"]),
  value: z.string(),
  createdAt: z.string(),
  by: z.string(),
});
export type RuleCredential = z.infer<typeof ruleCredentialSchema>;
/** An old and a new one while a sender is changed over, for each of two senders. */
export const credentialsMax = 4;

/** `awaitingApproval`, `waiting`: not started. `started`: its evacuation runs. Then how it ended; `skipped` and `cancelled` never started. */
export const runHostStateSchema = z.enum(["awaitingApproval", "waiting", "started", "ended", "skipped", "cancelled"]);

export const runHostSchema = z.object({
  host: z.object({ id: hostIdSchema, name: nameSchema }),
  state: runHostStateSchema,
  /** Keys of the events that ask for it; when the last one is resolved it is not started any more. */
  causes: z.array(z.string()).check(z.maxLength(causesMax)),
  evacuationId: z.nullable(evacuationIdSchema),
  /** Stands in the state before the evacuation is asked for, so that asking again after a crash asks for the same. */
  deadlineAt: z.nullable(z.string()),
  /** Not started any more from here on: the window's end, or when waiting makes no sense any more. */
  closesAt: z.string(),
  /** A window's estimate counts; a trigger has none. */
  windowed: z.boolean(),
  at: z.string(),
  reason: z.nullable(z.string()),
});
export type RunHost = z.infer<typeof runHostSchema>;

export const ruleRunSchema = z.object({
  id: z.string(),
  ruleVersion: z.int(),
  /** The event that opened it. */
  event: triggerEventSchema,
  createdAt: z.string(),
  endedAt: z.nullable(z.string()),
  approvedBy: z.nullable(z.string()),
  hosts: z.array(runHostSchema).check(z.maxLength(runHostsMax)),
});
export type RuleRun = z.infer<typeof ruleRunSchema>;

export const ruleStateSchema = z.object({
  rule: ruleNameSchema,
  version: z.int(),
  run: z.nullable(ruleRunSchema),
  past: z.array(ruleRunSchema).check(z.maxLength(pastRunsMax)),
  /** When each host was last started by this rule. */
  starts: z.record(z.string(), z.string()),
  /** The newest window that was dealt with. */
  lastOpeningAt: z.nullable(z.string()),
  /** Evacuated hosts whose domains come home when the host is back. `away`: it was silent since. `looksBack`: in so many looks in a row it answered after that. */
  restores: z
    .array(
      z.object({
        host: z.object({ id: hostIdSchema, name: nameSchema }),
        evacuationId: evacuationIdSchema,
        restoreId: z.nullable(evacuationIdSchema),
        away: z.boolean(),
        looksBack: z._default(z.int(), 0),
        since: z.string(),
      }),
    )
    .check(z.maxLength(restoresMax)),
  refusals: z
    .array(z.object({ at: z.string(), event: z.string(), host: z.nullable(z.string()), cause: z.string() }))
    .check(z.maxLength(refusalsMax)),
});
export type RuleState = z.infer<typeof ruleStateSchema>;
type Remembered = RuleState["refusals"][number];

/** With why something was not done, the newest first, for people who ask. */
export const withRefusals = (state: RuleState, refusals: readonly Remembered[]): RuleState =>
  refusals.length === 0 ? state : { ...state, refusals: [...refusals, ...state.refusals].slice(0, refusalsMax) };

/** A host that is not waited for any more: a person brings its domains home. */
export const notRestored = (entry: RuleState["restores"][number], at: string, why: string): Remembered => ({
  at,
  event: `restore ${entry.evacuationId}`,
  host: entry.host.name,
  cause: `its domains are not brought home: ${why}`.slice(0, 500),
});

/** Below what an item's body holds (390,000 bytes); causes, reasons and labels may be long, and counts alone do not bound them. */
export const ruleStateBytesMax = 380_000;

/** What an item can hold of it: the oldest runs are forgotten first, then why events started nothing. What is open stays whole. */
export function fitted(state: RuleState): RuleState {
  const isTooLarge = (one: RuleState) => new TextEncoder().encode(JSON.stringify(one)).length > ruleStateBytesMax;
  let kept = state;
  while (kept.past.length > 0 && isTooLarge(kept)) kept = { ...kept, past: kept.past.slice(0, -1) };
  return kept.refusals.length > 0 && isTooLarge(kept) ? { ...kept, refusals: [] } : kept;
}

export const newRuleState = (rule: string): RuleState => ({
  rule,
  version: 0,
  run: null,
  past: [],
  starts: {},
  lastOpeningAt: null,
  restores: [],
  refusals: [],
});
