/**
 * The rules of the protocol at each arrow of its exhaustive exploration (test/fake/exploration.ts). What (step, event) leads to
 * stands in a golden table, so a change of the protocol is a visible change of a file.
 */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { describe, test } from "node:test";
import { blobsOf, commandBody } from "#core/command-body";
import type { MigrationState } from "#core/state";
import { ticketOf } from "#core/ticket";
import { transition } from "#core/transition";
import { explored, key } from "#test/fake/exploration";
import { at, inlineBlob, later, receipt, success, successes } from "#test/fake/migration";

/** As the runner signs it; the key is not of the core. */
const ticketText = (state: MigrationState) => ({ text: JSON.stringify(ticketOf(state)), signature: "s" });

describe("every reachable state and event", () => {
  test("the exploration reached every step and every end", () => {
    const steps = new Set(explored.states.map((state) => state.step));
    assert.deepEqual([...steps].sort(), [
      "abortingConfirm",
      "abortingFinish",
      "beginning",
      "confirming",
      "ended",
      "exporting",
      "finishing",
      "inspectingDestination",
      "inspectingSource",
      "performing",
      "preparing",
      "restoring",
      "settling",
      "staging",
      "sweeping",
      "unstaging",
    ]);
    const ends = new Set(explored.states.filter((state) => state.step === "ended").map((state) => state.status));
    assert.deepEqual([...ends].sort(), ["cancelled", "completed", "refused", "rolledBack", "stranded"]);
    assert.ok(explored.states.some((state) => state.status === "stranded"));
    assert.ok(explored.states.length > 200, `only ${explored.states.length} states explored`);
  });

  test("the version rises by exactly one with a change and the state is the very same without one", () => {
    for (const { from, to } of explored.arrows) {
      if (to.state === from) assert.deepEqual(to.effects, []);
      else assert.equal(to.state.version, from.version + 1);
    }
  });

  test("I5: the epoch never falls, and rises when the way forward is given up", () => {
    const back = new Set(["abortingFinish", "abortingConfirm", "restoring", "unstaging"]);
    for (const { from, to } of explored.arrows) {
      assert.ok(to.state.epoch >= from.epoch);
      if (!back.has(from.step) && back.has(to.state.step))
        assert.equal(to.state.epoch, from.epoch + 1, `${from.step} -> ${to.state.step}`);
    }
  });

  test("I6: a command id is never issued twice and its body never changes while it is pending", () => {
    for (const { from, label, to } of explored.arrows) {
      const before = new Set(from.pending.map((pending) => pending.id));
      for (const effect of to.effects) {
        if (effect.type !== "send") continue;
        assert.ok(!before.has(effect.pending.id), `${label} repeats ${effect.pending.id}`);
        const attempt = from.attempts[effect.pending.kind] ?? 0;
        assert.ok(effect.pending.id.endsWith(`:${attempt + 1}`));
      }
      for (const pending of to.state.pending) {
        const blobs = Object.fromEntries(
          blobsOf(pending.kind)
            .filter((name) => to.state.blobs[name] !== undefined)
            .map((name) => [name, inlineBlob]),
        );
        const now = commandBody(to.state, pending, blobs, ticketText(to.state));
        assert.ok(now !== null, `${to.state.step} cannot build ${pending.kind} after ${label}`);
        if (before.has(pending.id))
          assert.deepEqual(commandBody(from, pending, blobs, ticketText(from)), now, `${pending.id} changed its body`);
      }
    }
  });

  test("I2: the source is told to resume only by a receipt that says destroyed", () => {
    for (const { to } of explored.arrows)
      for (const effect of to.effects) {
        if (effect.type !== "send" || effect.pending.kind !== "confirm") continue;
        assert.notEqual(to.state.receipt, null);
        if (to.state.step === "abortingConfirm") assert.equal(to.state.receipt?.outcome, "destroyed");
        if (to.state.step === "confirming") assert.equal(to.state.receipt?.outcome, "started");
      }
  });

  test("I2: after a Perform whose source is not seen running, nothing reaches the source before the destination's verdict", () => {
    for (const { from, label, to } of explored.arrows) {
      if (from.step !== "performing" || !label.startsWith("perform ") || label.includes("source running")) continue;
      const kinds = to.effects.flatMap((effect) => (effect.type === "send" ? [effect.pending.kind] : []));
      if (to.state.receipt === null) assert.deepEqual(kinds, ["finish"], label);
      else assert.ok(!kinds.includes("finish"), `${label}: it has stated that already`);
    }
  });

  test("I7: a receipt never changes", () => {
    for (const { from, to } of explored.arrows)
      if (from.receipt !== null && from.receipt.evidence !== "fenced")
        assert.equal(to.state.receipt?.outcome, from.receipt.outcome);
  });

  test("I7: a shim that contradicts its receipt changes nothing", () => {
    const state = explored.states.find((candidate) => candidate.step === "finishing");
    assert.ok(state);
    const told: MigrationState = { ...state, receipt: receipt("destroyed") };
    const pending = told.pending[0];
    assert.ok(pending);
    const started = successes("finish").started;
    assert.ok(started);
    assert.equal(transition(told, { type: "reported", at, report: success(told, pending, started) }).state, told);
  });

  test("silence after Perform never gives up, it only calls a person", () => {
    const firm = new Set([
      "performing",
      "finishing",
      "confirming",
      "settling",
      "abortingFinish",
      "abortingConfirm",
      "restoring",
      "unstaging",
    ]);
    for (const { from, label, to } of explored.arrows) {
      if (!label.startsWith("ticked") || !firm.has(from.step)) continue;
      assert.equal(to.state.step, from.step, `${label} moved ${from.step}`);
      if (to.state.status !== from.status) assert.equal(to.state.status, "stranded");
    }
  });

  test("an end releases what was held exactly once and nothing follows it", () => {
    for (const { from, to } of explored.arrows) {
      const releases = to.effects.filter((effect) => effect.type === "release").length;
      const ends = to.state.step === "ended" || to.state.step === "sweeping";
      assert.equal(releases, to.state !== from && ends && to.state.step !== from.step ? 1 : 0);
      if (from.step === "ended") assert.equal(to.state, from);
      if (to.state.step === "ended") {
        assert.deepEqual(to.state.pending, []);
        assert.notEqual(to.state.endedAt, null);
        if (to.state.status !== "completed") assert.notEqual(to.state.failure, null, "every refusal has a cause");
        else assert.equal(to.state.failure, null);
      }
    }
  });

  test("I10: from every state there is a way to an end, and every state without a command gets one from the timer", () => {
    const ends = new Set(explored.states.filter((state) => state.step === "ended").map(key));
    const sources = new Map<string, Set<string>>();
    for (const { fromKey, toKey } of explored.arrows) {
      const set = sources.get(toKey) ?? new Set();
      set.add(fromKey);
      sources.set(toKey, set);
    }
    const alive = new Set(ends);
    const queue = [...ends];
    for (let end = queue.pop(); end !== undefined; end = queue.pop())
      for (const from of sources.get(end) ?? []) if (!alive.has(from)) alive.add(from) && queue.push(from);
    for (const state of explored.states) {
      assert.ok(alive.has(key(state)), `no way out of ${state.step} (${state.status})`);
      if (state.step === "ended" || state.pending.length > 0) continue;
      const ticked = transition(state, { type: "ticked", at: later, unreachable: [], elapsedMs: null });
      assert.equal(ticked.state.pending.length, 1, `the timer does not wake ${state.step}`);
    }
  });

  test("what was staged or prepared is swept before a rolled back end", () => {
    for (const { from, to } of explored.arrows) {
      if (
        to.state.step !== "ended" ||
        from.step === "ended" ||
        !["rolledBack", "cancelled", "refused"].includes(to.state.status)
      )
        continue;
      const touched = from.touched.staged || from.touched.prepared;
      if (touched && from.step !== "sweeping") assert.equal(from.step, "unstaging");
    }
  });
});

test("the table of (step, event) is the one on record", () => {
  const rows = new Map<string, Set<string>>();
  for (const { from, label, to } of explored.arrows) {
    const status = (state: MigrationState) =>
      state.step === "ended"
        ? `ended ${state.status}`
        : state.status === "stranded"
          ? `${state.step} stranded`
          : state.step;
    if (from.step === "ended") continue;
    const row = `${from.step} | ${label}`;
    const set = rows.get(row) ?? new Set();
    set.add(to.state === from ? "unchanged" : status(to.state));
    rows.set(row, set);
  }
  const table = `${[...rows]
    .map(([row, set]) => `${row} -> ${[...set].sort().join(", ")}`)
    .sort()
    .join("\n")}\n`;
  const path = new URL("../golden/transition-table.txt", import.meta.url);
  if (process.env.VMFERRY_RECORD === "1") writeFileSync(path, table);
  assert.equal(table, readFileSync(path, "utf8"), "run with VMFERRY_RECORD=1 and read the difference");
});
