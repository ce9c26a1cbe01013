/** Exhaustive: every kind of fault at every point that a run without faults reaches, one at a time. */
import { describe, test } from "node:test";
import { runBatch } from "./batch.ts";
import { mustHold } from "./expectation.ts";

describe("every single fault", () => {
  test("of a running guest with a tree", async (context) => {
    mustHold(context, await runBatch({ type: "singles", seed: 1, scenario: "tree" }), 2_500);
  });

  test("of a guest that is off", async (context) => {
    mustHold(context, await runBatch({ type: "singles", seed: 2, scenario: "offline" }), 2_000);
  });
});
