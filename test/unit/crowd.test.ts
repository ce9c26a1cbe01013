/** The crowd before a local control plane's door: a few inside at a time, who is gone makes room, and nobody waits longer than a shim listens. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Crowd, insideMax } from "#functions/socket/crowd";

/** A clock that moves when somebody sleeps and nobody else is to be woken earlier. */
function world() {
  let nowMs = 0;
  const sleepers: { atMs: number; wake: () => void }[] = [];
  return {
    nowMs: () => nowMs,
    random: () => 0.5,
    sleep: (ms: number) => new Promise<void>((wake) => sleepers.push({ atMs: nowMs + ms, wake })),
    async pass(ms: number) {
      const untilMs = nowMs + ms;
      for (;;) {
        await new Promise((resolve) => setImmediate(resolve));
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

const host = (index: number) => `h_${index}`;

describe("the crowd before the door", () => {
  test("so many are let in at once; each that has said what it has makes room for one", async () => {
    const time = world();
    const crowd = new Crowd(time);
    const inside: string[] = [];
    for (let index = 0; index < 2 * insideMax; index += 1)
      void crowd.enter(host(index)).then((isIn) => isIn && inside.push(host(index)));
    await time.pass(1_000);
    assert.equal(inside.length, insideMax);
    crowd.left(host(0));
    crowd.left(host(1));
    await time.pass(1_000);
    assert.equal(inside.length, insideMax + 2);
  });

  test("who finds no room within the time that a shim listens is told to come again", async () => {
    const time = world();
    const crowd = new Crowd(time);
    for (let index = 0; index < insideMax; index += 1) assert.equal(await crowd.enter(host(index)), true);
    const late = crowd.enter("h_late");
    await time.pass(11_000);
    assert.equal(await late, false);
  });

  test("who was let in and never heard of again does not hold a place for ever, and who dials again holds one", async () => {
    const time = world();
    const crowd = new Crowd(time);
    for (let index = 0; index < insideMax; index += 1) await crowd.enter(host(index));
    assert.equal(await crowd.enter(host(3)), true);
    await time.pass(16_000);
    assert.equal(await crowd.enter("h_next"), true);
  });
});
