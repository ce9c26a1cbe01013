/** Defects that were found and are open. Each must still be there: a repaired one is taken out of the list. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { scenarios } from "./batch.ts";
import { knownDefects, repairedDefects, repairedSeeds } from "./known-defects.ts";
import { plainScenario } from "./scene.ts";
import { runSingle } from "./singles.ts";
import { runSwarm } from "./swarm.ts";

describe("known defects are still there, or have to be taken out of the list", () => {
  for (const { name, shown, matches } of knownDefects)
    test(name, async () => {
      const result = await runSingle(shown.seed, scenarios[shown.scenario] ?? plainScenario, shown.fault);
      const [violation] = result.violations;
      assert.ok(violation, `repaired? ${result.status}`);
      assert.ok(matches(result, violation), `${violation.invariant}: ${violation.text}`);
    });
});

describe("repaired defects stay repaired", () => {
  for (const { name, shown } of repairedDefects)
    test(name, async () => {
      const result = await runSingle(shown.seed, scenarios[shown.scenario] ?? plainScenario, shown.fault);
      assert.equal(result.injected.length, 1, "the fault has a place");
      assert.deepEqual(result.violations, []);
    });

  for (const { name, seed } of repairedSeeds)
    test(name, async () => {
      const result = await runSwarm(seed);
      assert.notEqual(result.injected.length, 0);
      assert.deepEqual(result.violations, []);
    });
});
