/**
 * Tells the chronicle of a rule's runs: as soon as one is stored, and again at the timer's looks, so that none is lost with a process that dies in between.
 * What was told by this process costs nothing; what ended long ago was told by the looks since.
 */
import { runEnded, runStarted } from "./core/chronicle-rule.ts";
import type { RuleState } from "./core/rule-state.ts";
import type { Tell } from "./teller.ts";

/** Ended runs are told again at each minute's look for so long: a day, in which somebody notices that no timer comes. */
const toldAgainMs = 24 * 60 * 60_000;

export async function tellRuns(tell: Tell, { rule, run, past }: RuleState, nowMs: number): Promise<void> {
  const ended = past.filter(({ endedAt }) => endedAt !== null && nowMs - Date.parse(endedAt) < toldAgainMs);
  for (const each of run === null ? ended : [run, ...ended]) {
    await tell(runStarted(rule, each));
    await tell(runEnded(rule, each));
  }
}
