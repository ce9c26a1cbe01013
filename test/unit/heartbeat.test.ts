/** The heartbeat: at the pace of the welcome, from an instant of the first interval that is drawn. */
import assert from "node:assert/strict";
import { describe, mock, test } from "node:test";
import type { HostFacts, UpMessage } from "#protocol/message";
import { startHeartbeat } from "#shim/heartbeat";
import { factsOf } from "#test/fake/memory-fleet";

const everyMs = 10_000;

/** Beats of `ms`, with the times at which they came. */
async function beatsWithin(ms: number, random: number, facts: () => HostFacts = () => factsOf(1)) {
  mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  try {
    const beats: { atMs: number; message: UpMessage }[] = [];
    let nowMs = 0;
    const stop = startHeartbeat(
      {
        send: (message) => beats.push({ atMs: nowMs, message }) > 0,
        facts: async () => facts(),
        clock: { random: () => random },
      },
      everyMs,
    );
    for (; nowMs < ms; nowMs += 500) {
      mock.timers.tick(nowMs === 0 ? 0 : 500);
      // Facts are read before a beat that says them.
      await new Promise((resolve) => setImmediate(resolve));
    }
    stop();
    mock.timers.tick(10 * everyMs);
    return beats;
  } finally {
    mock.timers.reset();
  }
}

describe("the heartbeat", () => {
  test("begins at the drawn part of an interval and keeps its pace", async () => {
    const times = async (random: number) => (await beatsWithin(45_000, random)).map(({ atMs }) => atMs);
    assert.deepEqual(await times(0), [0, 10_000, 20_000, 30_000, 40_000]);
    assert.deepEqual(await times(0.25), [2_500, 12_500, 22_500, 32_500, 42_500]);
    assert.deepEqual(await times(0.95), [9_500, 19_500, 29_500, 39_500]);
  });

  test("says facts once a minute, and only what has changed", async () => {
    let free = 0;
    const changing = await beatsWithin(180_000, 0.5, () => ({ ...factsOf(1), nodeVersion: `v${free++}` }));
    assert.equal(
      changing.filter(({ message }) => message.type === "heartbeat" && message.facts !== undefined).length,
      3,
    );
    const same = await beatsWithin(180_000, 0.5);
    assert.equal(same.filter(({ message }) => message.type === "heartbeat" && message.facts !== undefined).length, 1);
  });
});
