/**
 * The model check at its smaller bound: every single fault at every moment, with channels that lose, repeat and reorder. And
 * the proof that the checker sees: with a rule removed it finds a broken invariant and tells how. `npm run model` goes further.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { FunctionsSide } from "#test/model/functions-side";
import { check, mutants, tale } from "#test/model/mutants";
import { type FaultKind, knownFaults } from "#test/model/successors";

/** Several times what the bound has today: only a model that grows without end meets it. */
const statesMax = 1_000_000;

describe("the handshake, explored exhaustively", () => {
  test("no single fault breaks an invariant, and an end can be reached from every state", (context) => {
    const found = check({ faults: 1, statesMax });
    assert.equal(found.violation, null, tale(found));
    assert.equal(found.isCut, false);
    assert.deepEqual(Object.keys(found.statuses).sort(), [
      "cancelled",
      "completed",
      "rolledBack",
      "running",
      "stranded",
    ]);
    context.diagnostic(
      `${found.states} states, ${found.transitions} transitions, depth ${found.depth}, ${found.ms} ms`,
    );
  });

  test("without any fault but those of the channels it is never stranded", () => {
    const found = check({ faults: 0, statesMax });
    assert.equal(found.violation, null, tale(found));
    assert.ok((found.statuses.completed ?? 0) > 0);
    assert.equal(found.statuses.stranded, undefined);
  });
});

describe("the checker finds it when a rule is removed", () => {
  for (const mutant of mutants)
    test(mutant.name, (context) => {
      const found = check({ faults: mutant.faults, statesMax }, mutant);
      assert.ok(found.violation, `nothing was found in ${found.states} states`);
      assert.ok(found.violation.story.length > 0);
      context.diagnostic(`${found.violation.rule}, after ${found.violation.story.length} steps`);
    });
});

describe("what is known to break a rule", () => {
  const known: Partial<Record<FaultKind, { rule: RegExp; with: FaultKind[]; faults: number; step: string }>> = {
    reasonForgotten: {
      rule: /^I1: .*from before the guest ran/,
      with: ["endsAtFinish", "crashDestination"],
      faults: 3,
      step: "forgets why the guest ended",
    },
  };
  for (const kind of knownFaults)
    test(`${kind} still does; when it does no more, it is to be one of all faults`, () => {
      const expected = known[kind];
      assert.ok(expected, "no test says what it breaks");
      const { violation } = check({ faults: expected.faults, kinds: [...expected.with, kind], statesMax });
      assert.match(violation?.rule ?? "nothing was found", expected.rule);
      assert.ok(violation?.story.some((line) => line.includes(expected.step)));
    });
});

test("equal decisions of the functions are one state, so that the exploration ends", () => {
  const functions = new FunctionsSide();
  const first = functions.begin();
  assert.equal(functions.begin(), first);
  assert.equal(functions.reported(first, "begin:1", "ok"), functions.reported(first, "begin:1", "ok"));
  assert.notEqual(functions.reported(first, "begin:1", "ok"), first);
});
