/** The desk of evacuations: of many who ask at once few look, each evacuation is looked at with all that was named before, and whoever died is succeeded. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { memoryFleet } from "#test/fake/memory-fleet";
import { type Around, EvacuationDesk, looksAtOnce } from "../../functions/evacuation-desk.ts";

const lookMs = 20;

async function desk(look: (id: string, around: Around) => Promise<void> = () => sleep(lookMs)) {
  const { ports, pass } = await memoryFleet();
  const seen = { looks: [] as string[], rounds: new Set<object>(), atOnce: 0, atOnceMax: 0 };
  const made = new EvacuationDesk(ports, async (id, around) => {
    seen.looks.push(id);
    seen.rounds.add(around.round);
    seen.atOnce += 1;
    seen.atOnceMax = Math.max(seen.atOnceMax, seen.atOnce);
    await look(id, around);
    seen.atOnce -= 1;
  });
  const untilMs = Date.parse(ports.clock.now()) + 20_000;
  return { desk: made, seen, untilMs, pass };
}

const ids = Array.from({ length: 50 }, (_, index) => `e_${index}`);

describe("the desk of evacuations", () => {
  test("fifty that are asked for at once are looked at once each, a few side by side, with few readings", async () => {
    const { desk: made, seen, untilMs } = await desk();
    await Promise.all(ids.map((id) => made.seeTo(id, { untilMs })));
    assert.deepEqual([...seen.looks].sort(), [...ids].sort());
    assert.equal(seen.atOnceMax, looksAtOnce);
    assert.ok(seen.rounds.size <= 2, `${seen.rounds.size} rounds`);
  });

  test("what is named again while it is looked at is looked at once more, however often it is named", async () => {
    let during: () => void = () => {};
    const { desk: made, seen } = await desk(async () => {
      during();
      await sleep(lookMs);
    });
    during = () => {
      during = () => {};
      for (let times = 0; times < 10; times += 1) void made.seeTo("e_1", null);
    };
    await made.seeTo("e_1", null);
    assert.deepEqual(seen.looks, ["e_1", "e_1"]);
  });

  test("who only tells of an end does not wait while another looks; it is looked at all the same", async () => {
    const { desk: made, seen } = await desk();
    const first = made.seeTo("e_1", null);
    await made.seeTo("e_2", null);
    assert.deepEqual(seen.looks, ["e_1"]);
    await first;
    assert.deepEqual(seen.looks, ["e_1", "e_2"]);
  });

  test("a request whose look never ends is succeeded when its time is over", async () => {
    const never = new Promise<void>(() => {});
    const { desk: made, seen, untilMs, pass } = await desk((id) => (id === "e_dead" ? never : sleep(lookMs)));
    void made.seeTo("e_dead", { untilMs });
    const second = made.seeTo("e_2", { untilMs: untilMs + 60_000 });
    await sleep(lookMs);
    assert.deepEqual(seen.looks, ["e_dead"]);
    pass(46_000);
    await second;
    assert.deepEqual(seen.looks, ["e_dead", "e_2"]);
  });

  test("hosts are asked for whoever may ask, and not any more when the time for it is over", async () => {
    const asks: (number | null)[] = [];
    const { desk: made, untilMs } = await desk(async (_id, around) => void asks.push(around.asks?.untilMs ?? null));
    await made.seeTo("e_1", { untilMs });
    await made.seeTo("e_1", null);
    assert.deepEqual(asks, [untilMs, null]);
  });
});
