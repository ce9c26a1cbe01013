/** What a test asks of a batch: enough was done, and nothing is broken that is not known already. */
import assert from "node:assert/strict";
import type { TestContext } from "node:test";
import { type Figures, replayOf } from "./batch.ts";

export function mustHold(context: TestContext, figures: Figures, runsMin: number): void {
  const ends = Object.entries(figures.ends).map(([status, count]) => `${status} ${count}`);
  context.diagnostic(`${figures.runs} runs, ${figures.events} events; ${ends.join(", ")}`);
  const known = figures.failures.filter(({ knownDefect }) => knownDefect !== null);
  for (const { knownDefect, one } of known)
    context.diagnostic(`known defect: ${knownDefect} (npm run sim -- ${replayOf(one)})`);
  const broken = figures.failures
    .filter(({ knownDefect }) => knownDefect === null)
    .map(({ invariant, text, faults, one }) => `${invariant}: ${text}\n  ${faults}\n  npm run sim -- ${replayOf(one)}`);
  assert.deepEqual(broken, []);
  assert.ok(figures.runs >= runsMin, `${figures.runs} runs`);
}
