/** Seeded swarms and sampled pairs: with the single faults more than 10,000 runs in each `npm test`. */
import { describe, test } from "node:test";
import { runBatch } from "./batch.ts";
import { mustHold } from "./expectation.ts";

describe("faults together", () => {
  test("pairs of single faults, drawn", async (context) => {
    mustHold(context, await runBatch({ type: "pairs", from: 1, runs: 1_200 }), 1_200);
  });

  test("swarms", async (context) => {
    mustHold(context, await runBatch({ type: "swarm", from: 1, runs: 4_000 }), 4_000);
  });
});
