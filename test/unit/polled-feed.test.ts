/** The feed that looks for itself. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { FeedEvent } from "#functions/ports";
import { PolledFeed } from "#functions/socket/polled-feed";
import type { Progress } from "#protocol/message";
import { progressOf } from "#test/contract/socket-cases";
import { migration } from "#test/contract/store-cases";

/** A store whose content a test changes while it is watched. */
function watched(state = migration()) {
  const world = { state: state as typeof state | null, progress: null as Progress | null, asked: new Set<string>() };
  const feed = new PolledFeed({
    everyMs: 1,
    migrations: { load: async () => world.state },
    sockets: {
      progress: async (hostId) => {
        world.asked.add(hostId);
        return world.progress;
      },
    },
  });
  return { world, feed, state };
}

describe("a polled feed", () => {
  test("tells each version and each progress once, and ends with the migration", async () => {
    const { world, feed, state } = watched();
    const seen: FeedEvent[] = [];
    for await (const event of feed.subscribe(state.id, new AbortController().signal)) {
      seen.push(event);
      if (seen.length === 1) world.progress = progressOf(1);
      if (seen.length === 2) world.progress = progressOf(2);
      if (seen.length === 3) world.state = { ...state, version: 5, endedAt: state.createdAt };
    }
    assert.deepEqual(
      seen.map((event) => (event.type === "changed" ? event.version : event.progress.elapsedMs)),
      [1, 1, 2, 5],
    );
    assert.deepEqual(seen.at(-1), { type: "changed", version: 5, state: world.state });
    assert.deepEqual([...world.asked], [state.source.id]);
  });

  test("asks the side that works", async () => {
    const { world, feed, state } = watched();
    const at = state.createdAt;
    const pending = {
      id: `${state.id}:stage:1`,
      kind: "stage",
      side: "destination",
      issuedAt: at,
      deadlineAt: at,
    } as const;
    world.state = { ...state, pending: [pending] };
    world.progress = progressOf(1);
    for await (const event of feed.subscribe(state.id, new AbortController().signal))
      if (event.type === "progress") break;
    assert.deepEqual([...world.asked], [state.destination.id]);
  });

  test("ends at once when nobody watches any more, also while it waits", async () => {
    const { world, feed, state } = watched();
    world.state = null;
    const left = new AbortController();
    const watching = (async () => {
      for await (const event of feed.subscribe(state.id, left.signal)) assert.fail(event.type);
    })();
    await feed.publish();
    left.abort();
    await watching;
    for await (const event of feed.subscribe(state.id, left.signal)) assert.fail(event.type);
  });
});
