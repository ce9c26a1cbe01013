/** Events over a carrier that delivers an answer whole: a long poll, its resumption, and the command line on top of it. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { beforeEach, describe, test } from "node:test";
import { readEvents, type StreamEvent } from "#functions/cli/event-parser";
import { createApp } from "#functions/http/app";
import type { EventsCarrier } from "#functions/http/deps";
import { longPollRetryMs } from "#functions/http/limits";
import { migrationSchema } from "#functions/http/migration-resource";
import type { Progress } from "#protocol/message";
import { adminToken, domainNamed, type MemoryFleet, memoryFleet } from "#test/fake/memory-fleet";
import { MemoryServer } from "#test/fake/memory-server";
import { run } from "#test/fake/memory-terminal";

const adminTokenSha256 = createHash("sha256").update(adminToken).digest("hex");
/** Long enough that a test which waits for it fails by its own bound. */
const never = 60_000;

let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
  await fleet.addHost(1, {}, [domainNamed("web")]);
  await fleet.addHost(2);
});

const appWith = (eventsCarrier: EventsCarrier) =>
  createApp({
    ports: fleet.ports,
    runner: fleet.runner,
    evacuations: fleet.evacuations,
    adminTokenSha256,
    eventsIdleMs: 5,
    eventsCarrier,
  });

async function started() {
  const response = await fleet.ask("/v1/migrations", { body: { domain: "web", destination: "host2" } });
  return migrationSchema.parse(await response.json());
}

/** One poll to its end. */
async function poll(app: ReturnType<typeof appWith>, id: string, lastEventId?: string) {
  const response = await app.request(`http://api.test/v1/migrations/${id}/events`, {
    headers: {
      authorization: `Bearer ${adminToken}`,
      ...(lastEventId === undefined ? {} : { "last-event-id": lastEventId }),
    },
  });
  assert.equal(response.status, 200);
  const text = new TextEncoder().encode(await response.text());
  const events: StreamEvent[] = [];
  let retryMs: number | null = null;
  async function* source() {
    yield text;
  }
  const read = readEvents(source(), (ms) => {
    retryMs = ms;
  });
  for await (const event of read) if (event !== null) events.push(event);
  return { events, retryMs };
}

const progress = (elapsedMs: number): Progress => ({
  memory: {
    totalBytes: 100,
    processedBytes: 40,
    remainingBytes: 60,
    bytesPerSecond: 1,
    dirtyPagesPerSecond: 0,
    iteration: 1,
  },
  disk: { totalBytes: 0, processedBytes: 0, remainingBytes: 0 },
  elapsedMs,
  expectedDowntimeMs: null,
});

describe("a carrier that delivers answers whole", () => {
  test("gets the present at once and the end of the stream with it", async () => {
    const app = appWith({ delivers: "whole", msMax: never });
    const { id, version } = await started();
    const { events, retryMs } = await poll(app, id);
    assert.deepEqual(
      events.map(({ id, name }) => [id, name]),
      [[String(version), "migration"]],
    );
    assert.equal(retryMs, longPollRetryMs);
    assert.equal(fleet.feed.listeners(id), 0);
  });

  test("waits for the next news after what was seen, one stream for each, to the end", async () => {
    const app = appWith({ delivers: "whole", msMax: never });
    const { id, version } = await started();
    let last = String(version);
    const waiting = poll(app, id, last);
    await fleet.serve({}, "begin");
    const names: string[] = [];
    for (let { events } = await waiting; ; { events } = await poll(app, id, last)) {
      assert.equal(events.length, 1);
      names.push(events[0]?.name ?? "");
      last = events[0]?.id ?? "";
      if (names.at(-1) === "ended") break;
      void fleet.serve();
    }
    assert.ok(names.length >= 2, names.join());
  });

  test("gets a progress once: the same one again is no news", async () => {
    const app = appWith({ delivers: "whole", msMax: 40 });
    const { id, version } = await started();
    const heard = async (lastEventId: string, elapsedMs: number) => {
      const polled = poll(app, id, lastEventId);
      while (fleet.feed.listeners(id) === 0) await new Promise((resolve) => setImmediate(resolve));
      await fleet.feed.publish(id, { type: "progress", progress: progress(elapsedMs) });
      return (await polled).events.map((event) => event.id);
    };
    const resumeFrom = `${version}.1000`;
    assert.deepEqual(await heard(String(version), 1_000), [resumeFrom]);
    assert.deepEqual(await heard(resumeFrom, 1_000), []);
    assert.deepEqual(await heard(resumeFrom, 1_001), [`${version}.1001`]);
  });

  test("without news ends after its bound, saying when to come back", async () => {
    const app = appWith({ delivers: "whole", msMax: 20 });
    const { id, version } = await started();
    assert.deepEqual(await poll(app, id, String(version)), { events: [], retryMs: longPollRetryMs });
  });
});

test("a carrier that delivers each event is ended after its bound all the same", async () => {
  const app = appWith({ delivers: "events", msMax: 20 });
  const { id } = await started();
  const { events } = await poll(app, id);
  assert.deepEqual(
    events.map(({ name }) => name),
    ["migration"],
  );
});

describe("vmferry migrate over long polls", () => {
  for (const delivers of ["whole", "events"] as const)
    test(`of a carrier that delivers ${delivers}: every step is told, and nothing is called lost`, async () => {
      const app = appWith({ delivers, msMax: 15 });
      let polls = 0;
      const server = new MemoryServer((request) => {
        if (request.url.endsWith("/events")) polls += 1;
        // Some polls without news first, then step by step.
        if (polls > 3) void fleet.serve();
        return app.fetch(request);
      });
      await server.start();
      try {
        fleet.script.relayed = true;
        const ran = await run(["migrate", "web", "--to", "host2"], {
          env: { VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken },
        });
        assert.equal(ran.exit, 0, ran.err);
        assert.match(ran.out, /^completed: /);
        assert.ok(polls > 3, `${polls} polls`);
        assert.doesNotMatch(ran.err, /Lost|again/);
        assert.match(ran.err, /^settle/m);
      } finally {
        await server.stop();
      }
    });

  test("streams that end without a word are a lost control plane", async () => {
    const app = appWith({ delivers: "whole", msMax: never });
    const server = new MemoryServer((request) =>
      request.url.endsWith("/events")
        ? new Response(new Blob([]).stream(), { headers: { "content-type": "text/event-stream" } })
        : app.fetch(request),
    );
    await server.start();
    try {
      const ran = await run(["migrate", "web", "--to", "host2"], {
        env: { VMFERRY_URL: server.url, VMFERRY_TOKEN: adminToken },
        pace: { lostSightMs: 20 },
      });
      assert.equal(ran.exit, 5, ran.err);
      assert.match(ran.err, /^vmferry: watch\.lostSight/m);
    } finally {
      await server.stop();
    }
  });
});
