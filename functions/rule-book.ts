/**
 * Writes rules: each change is a new version, made the current one by a conditional write, with who made it and when. The same rule again is no change.
 */
import { Fault } from "#protocol/fault";
import { type Rule, ruleProblems } from "./core/rule.ts";
import type { RuleRecord } from "./core/rule-state.ts";
import { type Cron, scheduleProblems } from "./core/schedule.ts";
import type { Clock, RuleStore } from "./ports.ts";

export const sha256Hex = async (text: string): Promise<string> =>
  Buffer.from(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text))).toString("hex");

/** Tries of a change against others' changes: each conflict is somebody else's success. */
const attemptsMax = 8;

export interface RuleBook {
  /** Refuses what the schema cannot: throws `request.malformed` with every problem. */
  check(rule: Rule): void;
  /** `expected`: the version that is to be replaced, 0: there is no such rule; null: whichever. Throws `request.conflict`. */
  put(rule: Rule, by: string, expected: number | null): Promise<{ record: RuleRecord; changed: boolean }>;
  /** Throws `request.notFound`. */
  load(name: string): Promise<RuleRecord>;
  /** Throws `request.notFound`. */
  change(name: string, by: string, change: { paused: boolean } | { deleted: true }): Promise<RuleRecord>;
}

export const noSuchRule = (): Fault =>
  new Fault({
    code: "request.notFound",
    cause: "There is no such rule.",
    action: "List them: GET /v1/rules (vmferry rules).",
    retry: "never",
  });

const conflict = (cause: string): Fault =>
  new Fault({
    code: "request.conflict",
    cause,
    action: "Read the rule as it is now, then send the change again with its version.",
    retry: "never",
  });

export function createRuleBook({ clock, rules, cron }: { clock: Clock; rules: RuleStore; cron: Cron }): RuleBook {
  async function next(
    before: RuleRecord | null,
    by: string,
    is: { rule: Rule; paused: boolean; deleted: boolean },
  ): Promise<RuleRecord> {
    const record = {
      name: is.rule.name,
      version: (before?.version ?? 0) + 1,
      previousSha256: before?.sha256 ?? null,
      at: clock.now(),
      by,
      ...is,
    };
    return { ...record, sha256: await sha256Hex(JSON.stringify(record)) };
  }

  async function write(
    name: string,
    make: (before: RuleRecord | null) => Promise<{ record: RuleRecord; changed: boolean }>,
  ): Promise<{ record: RuleRecord; changed: boolean }> {
    for (let attempt = 0; attempt < attemptsMax; attempt += 1) {
      const made = await make(await rules.load(name));
      if (!made.changed || (await rules.commit(made.record)) === "committed") return made;
    }
    throw conflict("The rule is being changed by others.");
  }

  async function load(name: string): Promise<RuleRecord> {
    const record = await rules.load(name);
    if (record === null || record.deleted) throw noSuchRule();
    return record;
  }

  return {
    check(rule) {
      const { when } = rule;
      const nowMs = Date.parse(clock.now());
      const problems = [
        ...ruleProblems(rule),
        ...(when.kind === "schedule" ? scheduleProblems(when, nowMs, cron) : []),
      ];
      if (problems.length > 0)
        throw new Fault({
          code: "request.malformed",
          cause: `The rule is refused. ${problems.join("; ")}.`.slice(0, 2_000),
          action: "Correct the rule; the documentation has examples.",
          retry: "never",
        });
    },

    put: (rule, by, expected) =>
      write(rule.name, async (before) => {
        const standing = before?.deleted === true ? 0 : (before?.version ?? 0);
        if (expected !== null && expected !== standing)
          throw conflict(
            standing === 0 ? "There is no such rule." : `The rule is at version ${standing}, not ${expected}.`,
          );
        const same = before !== null && !before.deleted && JSON.stringify(before.rule) === JSON.stringify(rule);
        if (same) return { record: before, changed: false };
        const paused = before !== null && !before.deleted && before.paused;
        return { record: await next(before, by, { rule, paused, deleted: false }), changed: true };
      }),

    load,

    async change(name, by, change) {
      const { record } = await write(name, async (before) => {
        if (before === null || before.deleted) throw noSuchRule();
        const { rule, paused } = before;
        if ("paused" in change && change.paused === paused) return { record: before, changed: false };
        return {
          record: await next(before, by, { rule, paused, deleted: false, ...change }),
          changed: true,
        };
      });
      return record;
    },
  };
}
