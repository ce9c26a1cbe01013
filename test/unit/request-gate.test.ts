/** The line before a store of one process: so many at once, in the order in which they came, none for ever. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { GateOverdueError, insideMax, RequestGate, waitMsMax } from "#functions/store/request-gate";

/** Time passes only by `pass`. */
function world() {
  let nowMs = 0;
  const sleepers: { atMs: number; wake: () => void }[] = [];
  const settled = () => new Promise((resolve) => setImmediate(resolve));
  return {
    nowMs: () => nowMs,
    sleep: (ms: number) => new Promise<void>((wake) => sleepers.push({ atMs: nowMs + ms, wake })),
    settled,
    async pass(ms: number) {
      const untilMs = nowMs + ms;
      for (;;) {
        await settled();
        sleepers.sort((one, other) => one.atMs - other.atMs);
        const next = sleepers[0];
        if (next === undefined || next.atMs > untilMs) break;
        sleepers.shift();
        nowMs = next.atMs;
        next.wake();
      }
      nowMs = untilMs;
    },
  };
}

describe("the gate before the store", () => {
  test("lets so many in at once and the others in their order, each when one has left", async () => {
    const time = world();
    const gate = new RequestGate(time);
    const leaves: (() => void)[] = [];
    const inside: number[] = [];
    for (let index = 0; index < insideMax + 20; index += 1)
      void gate.enter().then((leave) => {
        inside.push(index);
        leaves.push(leave);
      });
    await time.settled();
    assert.equal(inside.length, insideMax);
    for (let left = 0; left < 20; left += 1) {
      leaves[left]?.();
      leaves[left]?.();
      await time.settled();
      assert.equal(inside.length, insideMax + left + 1);
    }
    assert.deepEqual(
      inside,
      Array.from({ length: insideMax + 20 }, (_, index) => index),
    );
  });

  test("whoever never leaves has gone after a while, and then those who wait go in by themselves", async () => {
    const time = world();
    const gate = new RequestGate(time);
    for (let index = 0; index < insideMax; index += 1) await gate.enter();
    let inside = 0;
    for (let index = 0; index < 3; index += 1) void gate.enter().then(() => (inside += 1));
    await time.pass(4_000);
    assert.equal(inside, 0);
    await time.pass(2_000);
    assert.equal(inside, 3);
  });

  test("who has waited too long is told so, and stands in nobody's way", async () => {
    const time = world();
    const gate = new RequestGate(time);
    const hold = async () => {
      // Leaves only to come again, so that there is never room for long.
      for (;;) {
        const leave = await gate.enter();
        await time.sleep(4_000);
        leave();
      }
    };
    for (let index = 0; index < 4 * insideMax; index += 1) void hold().catch(() => {});
    await time.settled();
    const late = gate.enter().then(
      () => "in",
      (error: unknown) => error,
    );
    await time.pass(waitMsMax + 1_000);
    assert.ok((await late) instanceof GateOverdueError);
  });
});
