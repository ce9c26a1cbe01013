/** A reader's place: whatever the order in which lines become visible, and wherever the reader is cut off, each line that it wants is told once. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import type { ChronicleEntry } from "#core/chronicle-event";
import { requestReceived } from "#core/chronicle-host";
import { positionAt, positionMs } from "#core/chronicle-position";
import { chronicleRowsMax, chronicleSettleMs } from "#core/limits";
import { Place } from "#functions/http/events-place";

const beganMs = Date.parse("2026-11-23T08:00:00.000Z");
const line = (serial: number, atMs: number): ChronicleEntry => ({
  at: `${positionAt(atMs)}${String(serial).padStart(16, "0")}`,
  event: requestReceived(
    { method: "POST", path: `/${serial}`, by: "ann", requestId: String(serial), admin: false },
    new Date(atMs).toISOString(),
  ),
});

/** An index that shows a line only from some moment on. */
function lagging(lines: readonly { entry: ChronicleEntry; visibleMs: number }[]) {
  const world = {
    nowMs: beganMs,
    after: async ({ at, limit }: { at: string | null; limit: number }) =>
      lines
        .filter(({ entry, visibleMs }) => visibleMs <= world.nowMs && (at === null || entry.at > at))
        .map(({ entry }) => entry)
        .sort((one, other) => (one.at < other.at ? -1 : 1))
        .slice(0, limit),
  };
  return world;
}

async function read(place: Place, world: ReturnType<typeof lagging>, wants = (_: ChronicleEntry) => true) {
  const told: string[] = [];
  for await (const { event } of place.read(world, world.nowMs, wants)) told.push(event.id);
  return told;
}

describe("a reader's place in the chronicle", () => {
  test("position and moment are the same thing", () => {
    assert.equal(positionMs(positionAt(beganMs)), beganMs);
    assert.ok(positionAt(beganMs) < line(0, beganMs).at && line(9, beganMs - 1).at < positionAt(beganMs));
  });

  test("each line is told once, over late lines and readers that come back with their last id", async () => {
    const lines = fc.array(
      fc.record({
        atMs: fc.integer({ min: 0, max: 60_000 }),
        lagMs: fc.integer({ min: 0, max: chronicleSettleMs - 1_000 }),
        wanted: fc.boolean(),
      }),
      { maxLength: 40 },
    );
    const cuts = fc.array(fc.integer({ min: 1, max: 100 }), { maxLength: 20 });
    await fc.assert(
      fc.asyncProperty(lines, cuts, async (written, cutAfter) => {
        const entries = written.map(({ atMs, lagMs, wanted }, serial) => ({
          entry: line(serial, beganMs + atMs),
          visibleMs: beganMs + atMs + lagMs,
          wanted,
        }));
        const wanted = new Set(entries.flatMap(({ entry, wanted }) => (wanted ? [entry.event.id] : [])));
        const world = lagging(entries);
        let place = Place.since(beganMs);
        const told: string[] = [];
        const cuts = [...cutAfter];
        let left = cuts.shift() ?? Number.POSITIVE_INFINITY;
        for (; world.nowMs <= beganMs + 60_000 + chronicleSettleMs; world.nowMs += 700) {
          for await (const { event } of place.read(world, world.nowMs, ({ event }) => wanted.has(event.id))) {
            told.push(event.id);
            left -= 1;
            // The client has this event and nothing after it.
            if (left <= 0) break;
          }
          left -= 1;
          if (left > 0) continue;
          const again = Place.after(place.id);
          assert.ok(again, place.id);
          place = again;
          left = cuts.shift() ?? Number.POSITIVE_INFINITY;
        }
        assert.deepEqual(told.toSorted(), [...wanted].sort());
      }),
      { numRuns: 300 },
    );
  });

  test("a long past is told page by page, and an id in the midst of it goes on from there", async () => {
    const count = chronicleRowsMax * 2 + 30;
    const entries = Array.from({ length: count }, (_, serial) => ({
      entry: line(serial, beganMs + serial),
      visibleMs: 0,
    }));
    const world = lagging(entries);
    world.nowMs = beganMs + 3_600_000;
    const place = Place.since(beganMs);
    const told: string[] = [];
    for await (const { event } of place.read(world, world.nowMs, () => true)) {
      told.push(event.id);
      if (told.length === chronicleRowsMax + 80) break;
    }
    const again = Place.after(place.id);
    assert.ok(again);
    told.push(...(await read(again, world)));
    assert.equal(told.length, count);
    assert.equal(new Set(told).size, count);
    assert.deepEqual(await read(again, world), []);
    assert.ok(place.id.length < 600);
  });

  const polled = async (count: number) => {
    const world = lagging(
      Array.from({ length: count }, (_, serial) => ({ entry: line(serial, beganMs + serial), visibleMs: 0 })),
    );
    const told: string[][] = [];
    let place = Place.since(beganMs);
    // A client that comes back twice a second, as over a carrier that delivers answers whole.
    for (world.nowMs = beganMs + 3_000; world.nowMs < beganMs + 10_000; world.nowMs += 500) {
      told.push(await read(place, world));
      const again = Place.after(place.id);
      assert.ok(again);
      assert.ok(place.id.length < 4_000, `${place.id.length} characters`);
      place = again;
    }
    return told;
  };

  test("a storm of lines is told once to who comes back within it", async () => {
    const told = await polled(500);
    assert.deepEqual(
      told.map(({ length }) => length),
      [500, ...Array.from({ length: 13 }, () => 0)],
    );
  });

  test("of more lines than an id has marks for only those beyond come again, the oldest", async () => {
    for (const again of (await polled(800)).slice(1)) {
      assert.equal(again.length, 800 - 512);
      assert.equal(again[0], "q_0");
    }
  });

  test("a bare position goes on after it, and what is near it may come again", async () => {
    const [early, near, late] = [line(1, beganMs - 60_000), line(2, beganMs - 1_000), line(3, beganMs + 1_000)];
    const world = lagging([early, near, late].map((entry) => ({ entry, visibleMs: 0 })));
    world.nowMs = beganMs + 2_000;
    const place = Place.after(near.at);
    assert.ok(place);
    assert.deepEqual(await read(place, world), [near.event.id, late.event.id]);
  });

  test("what is no id of ours is none", () => {
    for (const id of [undefined, "", "12", "7.5", "nonsense", `${"0".repeat(26)}~x`, "u".repeat(26)])
      assert.equal(Place.after(id), null, String(id));
  });
});
