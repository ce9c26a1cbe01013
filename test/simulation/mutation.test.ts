/** The proof that the simulation sees: with one rule taken away it must find what breaks, and without that it must not. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Removed } from "./mutations.ts";
import { mutations } from "./mutations.ts";
import { type RunResult, simulate } from "./run.ts";
import { plainScenario } from "./scene.ts";
import { runSwarm } from "./swarm.ts";

/** Seeds tried for one rule; most need fewer than a hundred. */
const seedsMax = 1_500;

function run(seed: number, { source }: Pick<Removed, "source">, mutation?: Removed["mutation"]): Promise<RunResult> {
  const mutated = mutation === undefined ? {} : { mutation };
  if (source === undefined) return runSwarm(seed, mutated);
  return simulate({ seed, scenario: plainScenario, source, ...mutated });
}

describe("a rule taken away is found", () => {
  for (const [name, removed] of Object.entries(mutations))
    test(name, async (context) => {
      for (let seed = 1; seed <= seedsMax; seed += 1) {
        const [violation] = (await run(seed, removed, removed.mutation)).violations;
        if (violation === undefined) continue;
        // What goes wrong with the rule in place proves nothing about its removal.
        if ((await run(seed, removed)).violations.length > 0) continue;
        context.diagnostic(`seed ${seed}: ${violation.invariant}: ${violation.text}`);
        return;
      }
      assert.fail(`${seedsMax} seeds did not show that the rule is gone`);
    });

  test("there are enough of them", () => {
    assert.ok(Object.keys(mutations).length >= 12);
  });
});
