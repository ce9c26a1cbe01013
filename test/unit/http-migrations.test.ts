/** Migrations over HTTP: what is refused before anything is made, idempotency, the resource, the event stream. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { type Migration, migrationSchema, migrationSummarySchema, stepWords } from "#functions/http/migration-resource";
import { problemSchema } from "#functions/http/problem";
import type { FaultCode } from "#protocol/fault";
import type { Progress } from "#protocol/message";
import { domainNamed, factsOf, hostId, type MemoryFleet, memoryFleet, refusal, webUuid } from "#test/fake/memory-fleet";

let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
  await fleet.addHost(1, {}, [domainNamed("web")]);
  await fleet.addHost(2);
});

const request = { domain: "web", destination: "host2" };
const post = (body: unknown = request, headers: Record<string, string> = {}, token?: string) =>
  fleet.ask("/v1/migrations", { body, headers, ...(token === undefined ? {} : { token }) });

async function started(headers: Record<string, string> = {}): Promise<Migration> {
  const response = await post(request, headers);
  assert.equal(response.status, 202);
  return migrationSchema.parse(await response.json());
}

const show = async (id: string): Promise<Migration> =>
  migrationSchema.parse(await (await fleet.ask(`/v1/migrations/${id}`)).json());

const listed = async (query = "") =>
  z
    .object({ items: z.array(migrationSummarySchema), cursor: z.nullable(z.string()) })
    .parse(await (await fleet.ask(`/v1/migrations${query}`)).json());

describe("POST /v1/migrations", () => {
  test("answers 202 with Location and the resource", async () => {
    const response = await post();
    const migration = migrationSchema.parse(await response.clone().json());
    assert.equal(response.status, 202);
    assert.equal(response.headers.get("location"), `/v1/migrations/${migration.id}`);
    assert.deepEqual(migration.domain, { uuid: webUuid, name: "web" });
    assert.deepEqual(
      [migration.source, migration.destination, migration.status, migration.step],
      ["host1", "host2", "running", "inspect"],
    );
    assert.equal(fleet.script.pushed.length, 1);
  });

  const refusals: [string, () => Promise<unknown>, object, [number, FaultCode]][] = [
    ["an unknown domain", async () => {}, { domain: "nope" }, [404, "domain.absent"]],
    [
      "a domain that is not on the source",
      async () => {},
      { source: "host2", destination: "host1" },
      [404, "domain.absent"],
    ],
    ["an unknown destination", async () => {}, { destination: "nope" }, [404, "host.absent"]],
    ["an unknown source", async () => {}, { source: "nope" }, [404, "host.absent"]],
    ["the same host", async () => {}, { destination: "host1" }, [409, "destination.sameHost"]],
    [
      "a name on two hosts",
      () => fleet.addHost(3, {}, [domainNamed("web", { uuid: webUuid.replace("1", "9") })]),
      {},
      [409, "domain.notUnique"],
    ],
    [
      "an offline destination",
      () => fleet.addHost(3, { lastSeenAt: "2026-11-22T09:59:24.999Z" }),
      { destination: "host3" },
      [409, "host.offline"],
    ],
    [
      "a destination that never connected",
      () => fleet.addHost(3, { lastSeenAt: null }),
      { destination: "host3" },
      [409, "host.offline"],
    ],
    [
      "a cordoned destination",
      () => fleet.addHost(3, { cordoned: true }),
      { destination: "host3" },
      [409, "host.cordoned"],
    ],
    [
      "a duplicate host UUID",
      () => fleet.addHost(3, { facts: factsOf(1) }),
      { destination: "host3" },
      [409, "destination.duplicateUuid"],
    ],
    [
      "a shim of another protocol",
      () => fleet.addHost(3, { protocol: 9 }),
      { destination: "host3" },
      [409, "shim.incompatible"],
    ],
    [
      "a shim without a feature",
      () => fleet.addHost(3, { features: [] }),
      { destination: "host3" },
      [409, "shim.incompatible"],
    ],
    [
      "a busy domain",
      () =>
        fleet.ports.migrations.lockDomain({
          domainUuid: webUuid,
          migrationId: "m_01JD0000000000000000000009",
          source: "x",
          destination: "y",
        }),
      {},
      [409, "domain.busy"],
    ],
  ];
  for (const [what, prepare, body, expected] of refusals)
    test(`refuses ${what} and makes nothing: ${expected.join(" ")}`, async () => {
      await prepare();
      const response = await post({ ...request, ...body });
      assert.deepEqual(await refusal(response), expected);
      assert.deepEqual((await listed()).items, []);
      assert.deepEqual(fleet.script.pushed, []);
    });

  test("a cordoned source may be left, an offline one not", async () => {
    await fleet.addHost(3, { cordoned: true }, [domainNamed("db", { uuid: webUuid.replace("1", "8") })]);
    assert.equal((await post({ domain: "db", destination: "host2" })).status, 202);
    fleet.pass(35_001);
    await fleet.ports.hosts.seen(hostId(2), { at: fleet.ports.clock.now() });
    assert.deepEqual(await refusal(await post()), [409, "host.offline"]);
  });

  test("takes the running copy where the inventory still knows a staged one", async () => {
    await fleet.addHost(3, {}, [domainNamed("web", { state: "shutoff" })]);
    const migration = await started();
    assert.equal(migration.source, "host1");
    assert.equal((await listed()).items.length, 1);
  });

  test("takes the source's copy while a migration moves it, so that the cause is domain.busy", async () => {
    const first = await started();
    // From Prepare on the destination has an incoming copy, and until Finish both are active.
    await fleet.ports.hosts.putInventory(hostId(2), {
      full: false,
      domains: [domainNamed("web", { state: "paused" })],
      gone: [],
    });
    for (const body of [request, { ...request, domain: webUuid }]) {
      const response = await post(body);
      assert.equal(response.status, 409);
      const { code, cause } = problemSchema.parse(await response.json());
      assert.equal(code, "domain.busy");
      assert.match(cause, new RegExp(first.id));
    }
  });

  test("a name on two hosts is taken with its source, or by UUID", async () => {
    const other = webUuid.replace("1", "9");
    await fleet.addHost(3, {}, [domainNamed("web", { uuid: other })]);
    assert.equal((await post({ ...request, source: "host3" })).status, 202);
    assert.equal((await post({ ...request, domain: webUuid })).status, 202);
  });
});

describe("an Idempotency-Key", () => {
  const key = { "idempotency-key": "b1f7" };

  test("with the same body returns the same migration, also when the domain is busy with it or a host has gone", async () => {
    const first = await started(key);
    const again = await started(key);
    assert.equal(again.id, first.id);
    await fleet.serve();
    fleet.pass(60_000);
    const late = await started(key);
    assert.deepEqual([late.id, late.status], [first.id, "completed"]);
    assert.equal((await listed()).items.length, 1);
  });

  test("knows a body by its meaning, not by the order of its keys", async () => {
    const first = await started(key);
    const response = await post({ destination: "host2", domain: "web", accept: [] }, key);
    assert.equal(migrationSchema.parse(await response.json()).id, first.id);
  });

  test("with another body or for another resource is refused", async () => {
    await started(key);
    assert.deepEqual(await refusal(await post({ ...request, autoConverge: true }, key)), [422, "idempotency.mismatch"]);
    const other = await fleet.ask("/v1/bundles", { body: { domain: "web" }, headers: key });
    assert.deepEqual(await refusal(other), [422, "idempotency.mismatch"]);
  });

  test("of another credential is another key: a stranger's migration is never shown", async () => {
    const first = await started(key);
    const made = await fleet.ask("/v1/api-tokens", { body: { name: "ci" } });
    const { token } = z.object({ token: z.string() }).parse(await made.json());
    assert.deepEqual(await refusal(await post(request, key, token)), [409, "domain.busy"]);
    assert.equal((await listed()).items.length, 1);
    assert.equal((await show(first.id)).id, first.id);
  });

  test("of a refused request is free to be tried again", async () => {
    await fleet.ports.hosts.setCordoned(hostId(2), true);
    assert.deepEqual(await refusal(await post(request, key)), [409, "host.cordoned"]);
    await fleet.ports.hosts.setCordoned(hostId(2), false);
    assert.equal((await post(request, key)).status, 202);
  });

  test("at once eight times makes one migration", async () => {
    const ids = await Promise.all(Array.from({ length: 8 }, async () => (await started(key)).id));
    assert.equal(new Set(ids).size, 1);
    assert.equal((await listed()).items.length, 1);
  });

  test("whose twin is served between the look for it and the look at the lock makes one migration", async () => {
    const { hosts } = fleet.ports;
    const byName = hosts.byName.bind(hosts);
    let twin: Promise<Migration> | undefined;
    hosts.byName = async (name) => {
      const found = await byName(name);
      if (twin === undefined) {
        hosts.byName = byName;
        twin = started(key);
        await twin;
      }
      return found;
    };
    const { id } = await started(key);
    assert.equal(id, (await twin)?.id);
    assert.equal((await listed()).items.length, 1);
  });

  test("that cannot be one is refused", async () => {
    for (const bad of ["x".repeat(256), "two words"])
      assert.deepEqual(await refusal(await post(request, { "idempotency-key": bad })), [400, "request.malformed"]);
  });
});

describe("the resource", () => {
  test("of a finished migration names cookies, bundle, receipt and every step in design's words", async () => {
    const { id } = await started();
    fleet.script.relayed = true;
    await fleet.serve();
    const migration = await show(id);
    assert.equal(migration.status, "completed");
    assert.deepEqual(
      migration.cookies.map(({ cookie, phase, bytes, in: where }) => [cookie, phase, bytes, where]),
      [
        ["A", "begin", 6, "item"],
        ["B", "prepare", 6, "item"],
        ["C", "perform", 6, "item"],
        ["D", "finish", 6, "item"],
      ],
    );
    assert.deepEqual(migration.xml?.bytes, 6);
    assert.equal(migration.bundle?.count, 5);
    assert.equal(migration.receipt?.outcome, "started");
    assert.equal(migration.progress.blackoutMs, 20);
    assert.deepEqual(migration.snapshots, { total: 5, staged: 5, verified: 5 });
    assert.equal(migration.error, null);
    const steps = migration.timeline.map(({ step }) => step);
    for (const word of ["inspect", "export", "stage", "begin", "prepare", "perform", "finish", "confirm", "settle"])
      assert.ok(
        steps.some((step) => step === word),
        `${word} is missing in ${steps.join()}`,
      );
  });

  test("has a word for every state of the machine", () => {
    assert.equal(new Set(Object.values(stepWords)).size, 14);
  });

  test("of a failed one says code, phase, side, cause and action", async () => {
    const { id } = await started();
    await fleet.serve({ prepare: { code: "prepare.failed", cause: "no port", action: "open it", retry: "safe" } });
    const { status, error } = await show(id);
    assert.equal(status, "rolledBack");
    assert.deepEqual(error, {
      code: "prepare.failed",
      phase: "prepare",
      side: "destination",
      cause: "no port",
      action: "open it",
      blockers: [],
      risks: [],
    });
  });

  test("carries the newest progress while it runs, and lives without", async () => {
    const { id } = await started();
    fleet.script.progress = progress(10);
    assert.deepEqual((await show(id)).progress.memory, progress(10).memory);
    fleet.ports.sockets.progress = async () => {
      throw new Error("the socket's object is away");
    };
    assert.equal((await show(id)).progress.memory, null);
  });

  test("unknown: 404, also for an id that cannot be one", async () => {
    for (const id of ["m_01JD0000000000000000000077", "x", "../hosts"])
      assert.deepEqual(await refusal(await fleet.app.request(`/v1/migrations/${encodeURIComponent(id)}`, auth)), [
        404,
        "request.notFound",
      ]);
  });

  test("lists come newest first, in pages, and only active ones if asked", async () => {
    const first = await started();
    await fleet.serve();
    const second = await started();
    const page = await listed("?limit=1");
    assert.deepEqual(
      page.items.map(({ id }) => id),
      [second.id],
    );
    assert.deepEqual(
      (await listed(`?limit=1&cursor=${page.cursor}`)).items.map(({ id }) => id),
      [first.id],
    );
    assert.deepEqual(
      (await listed("?active=true")).items.map(({ id }) => id),
      [second.id],
    );
  });
});

const auth = { headers: { authorization: "Bearer test-admin-token" } };

function progress(done: number): Progress {
  return {
    memory: {
      totalBytes: 100,
      processedBytes: done,
      remainingBytes: 100 - done,
      bytesPerSecond: 1,
      dirtyPagesPerSecond: 0,
      iteration: 1,
    },
    disk: { totalBytes: 0, processedBytes: 0, remainingBytes: 0 },
    elapsedMs: 1,
    expectedDowntimeMs: null,
  };
}

/** Reads a stream event by event. */
function reader(response: Response) {
  assert.ok(response.body);
  const bytes = response.body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  return {
    /** The next event or comment; null at the end. */
    async next(): Promise<Record<string, string> | null> {
      for (;;) {
        const end = text.indexOf("\n\n");
        if (end !== -1) {
          const lines = text.slice(0, end).split("\n");
          text = text.slice(end + 2);
          return Object.fromEntries(
            lines.map((line) => [line.slice(0, line.indexOf(":")) || "comment", line.slice(line.indexOf(":") + 2)]),
          );
        }
        const { done, value } = await bytes.read();
        if (done) return null;
        text += decoder.decode(value, { stream: true });
      }
    },
    leave: () => bytes.cancel(),
  };
}

describe("events", () => {
  const open = async (id: string, lastEventId?: string) =>
    reader(
      await fleet.ask(`/v1/migrations/${id}/events`, {
        headers: lastEventId === undefined ? {} : { "last-event-id": lastEventId },
      }),
    );

  test("tell the present at once, each change as it comes, and end after the end", async () => {
    const { id, version } = await started();
    const events = await open(id);
    assert.deepEqual(Object.keys((await events.next()) ?? {}), ["retry"]);
    const first = await events.next();
    assert.deepEqual([first?.event, first?.id], ["migration", String(version)]);
    const serving = fleet.serve();
    const names: (string | undefined)[] = [];
    let last: Record<string, string> | null = null;
    for (let event = await events.next(); event !== null; event = await events.next()) {
      names.push(event.event);
      last = event;
    }
    await serving;
    assert.equal(names.at(-1), "ended");
    const migration = migrationSchema.parse(JSON.parse(last?.data ?? ""));
    assert.equal(migration.status, "completed");
    assert.deepEqual(last?.id, String(migration.version));
    assert.equal(fleet.feed.listeners(id), 0);
  });

  test("resume after the version that was seen, and never repeat it", async () => {
    const { id, version } = await started();
    const events = await open(id, String(version));
    await events.next();
    await fleet.serve({}, "begin");
    const next = await events.next();
    assert.ok(Number(next?.id) > version);
    await events.leave();
    assert.equal((await events.next()) ?? null, null);
  });

  test("resumed long after the end give the end once, then 204", async () => {
    const { id, version } = await started();
    await fleet.serve();
    const events = await open(id, String(version));
    await events.next();
    const end = await events.next();
    assert.equal(end?.event, "ended");
    assert.equal(await events.next(), null);
    const again = await fleet.ask(`/v1/migrations/${id}/events`, { headers: { "last-event-id": end?.id ?? "" } });
    assert.equal(again.status, 204);
  });

  test("a Last-Event-ID that is none of ours is as none", async () => {
    const { id } = await started();
    const events = await open(id, "abc");
    await events.next();
    assert.equal((await events.next())?.event, "migration");
    await events.leave();
  });

  test("pass progress on without an id, so that it is never resumed from", async () => {
    const { id } = await started();
    const events = await open(id);
    await events.next();
    await events.next();
    const arrival = events.next();
    await fleet.feed.publish(id, { type: "progress", progress: progress(40) });
    const event = await arrival;
    assert.deepEqual([event?.event, event?.id], ["progress", undefined]);
    assert.deepEqual(JSON.parse(event?.data ?? ""), progress(40));
    await events.leave();
  });

  test("find what the feed lost, and say that they are alive", async () => {
    fleet = await memoryFleet({ eventsIdleMs: 5 });
    await fleet.addHost(1, {}, [domainNamed("web")]);
    await fleet.addHost(2);
    const { id, version } = await started();
    fleet.feed.publish = async () => undefined;
    const events = await open(id, String(version));
    await events.next();
    assert.deepEqual(Object.keys((await events.next()) ?? {}), ["comment"]);
    await fleet.serve();
    let event = await events.next();
    while (event !== null && event.event !== "ended") event = await events.next();
    assert.equal(event?.event, "ended");
  });

  test("end quietly when the store fails; the client resumes", async () => {
    fleet = await memoryFleet({ eventsIdleMs: 5 });
    await fleet.addHost(1, {}, [domainNamed("web")]);
    await fleet.addHost(2);
    const { id } = await started();
    const events = await open(id);
    await events.next();
    await events.next();
    fleet.ports.migrations.load = async () => {
      throw new Error("hunter2");
    };
    let text = "";
    for (let event = await events.next(); event !== null; event = await events.next()) text += JSON.stringify(event);
    assert.ok(!text.includes("hunter2"));
  });

  test("of an unknown migration: 404 as a problem", async () => {
    const response = await fleet.ask("/v1/migrations/m_01JD0000000000000000000077/events");
    assert.deepEqual(await refusal(response), [404, "request.notFound"]);
  });
});
