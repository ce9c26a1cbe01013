/** `/v1/events` against the real app: pages, filters, the stream and its resumption, rows of what is active, and what is written down of requests. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { beforeEach, describe, test } from "node:test";
import * as z from "zod/mini";
import { positionAt } from "#core/chronicle-position";
import { readEvents, type StreamEvent } from "#functions/cli/event-parser";
import { createApp } from "#functions/http/app";
import type { EventsCarrier } from "#functions/http/deps";
import { evacuationRowSchema } from "#functions/http/evacuation-resource";
import { eventLineSchema, eventPageSchema } from "#functions/http/event-resource";
import { migrationSummarySchema } from "#functions/http/migration-resource";
import { adminToken, domainNamed, type MemoryFleet, memoryFleet, refusal } from "#test/fake/memory-fleet";

let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
  await fleet.addHost(1, {}, [domainNamed("web")]);
  await fleet.addHost(2);
});

const page = async (query = "") => eventPageSchema.parse(await (await fleet.ask(`/v1/events${query}`)).json());
const typesOf = async (query = "") =>
  (await page(query)).items.map(({ event }) => event.type.slice("dev.vmferry.".length));
const migrate = async () => {
  const response = await fleet.ask("/v1/migrations", { body: { domain: "web", destination: "host2" } });
  assert.equal(response.status, 202);
  return z.object({ id: z.string() }).parse(await response.json()).id;
};
const cordon = (cordoned: boolean) => fleet.ask("/v1/hosts/host2", { method: "PATCH", body: { cordoned } });

describe("a page of what happened", () => {
  test("the newest first: who asked, what began, how it ended", async () => {
    const id = await migrate();
    await fleet.serve();
    assert.deepEqual(await typesOf(), ["migration.ended", "migration.started", "request.received"]);
    assert.deepEqual(await typesOf("?order=oldest"), ["request.received", "migration.started", "migration.ended"]);
    assert.deepEqual(await typesOf(`?subject=${id}`), ["migration.ended", "migration.started"]);
    const { items } = await page("?types=request");
    assert.deepEqual(
      items.map(({ event }) => event.type === "dev.vmferry.request.received" && [event.data.by, event.data.path]),
      [["admin", "/v1/migrations"]],
    );
  });

  test("one of them by its id, or 404", async () => {
    const id = await migrate();
    const found = eventLineSchema.parse(await (await fleet.ask(`/v1/events/${id}-started`)).json());
    assert.deepEqual(found, (await page("?types=migration")).items[0]);
    for (const other of [`${id}-ended`, "a.b"])
      assert.deepEqual(await refusal(await fleet.ask(`/v1/events/${other}`)), [404, "request.notFound"]);
  });

  test("page by page, either way, each line once", async () => {
    for (let count = 0; count < 7; count += 1) await cordon(count % 2 === 0);
    const whole = (await page()).items.map(({ at }) => at);
    assert.equal(whole.length, 7);
    for (const order of ["newest", "oldest"]) {
      const found: string[] = [];
      let cursor: string | null = null;
      do {
        const next: string = cursor === null ? "" : `&cursor=${cursor}`;
        const part: z.infer<typeof eventPageSchema> = await page(`?order=${order}&limit=3${next}`);
        found.push(...part.items.map(({ at }) => at));
        cursor = part.cursor;
      } while (cursor !== null);
      assert.deepEqual(order === "newest" ? found : found.toReversed(), whole);
    }
  });

  test("types by their beginnings, whole words only; times; or a refusal that names what there is", async () => {
    await migrate();
    fleet.pass(60_000);
    await fleet.serve();
    assert.deepEqual(await typesOf("?types=migration.ended,request"), ["migration.ended", "request.received"]);
    assert.deepEqual(await typesOf("?types=dev.vmferry.migration.*"), ["migration.ended", "migration.started"]);
    const since = encodeURIComponent(new Date(Date.parse(fleet.ports.clock.now()) - 1_000).toISOString());
    assert.deepEqual(await typesOf(`?since=${since}`), ["migration.ended"]);
    assert.deepEqual(await typesOf(`?order=oldest&since=${since}`), ["migration.ended"]);
    for (const query of ["?types=migrat", "?types=", "?since=yesterday", "?order=any", "?cursor=12"])
      assert.deepEqual(await refusal(await fleet.ask(`/v1/events${query}`)), [400, "request.malformed"], query);
  });

  test("few among many: a page ends before it has looked at everything, and says where to go on", async () => {
    await migrate();
    for (let count = 0; count < 1_100; count += 1) await fleet.ports.chronicle.append(line(count));
    const first = await page("?types=migration");
    assert.equal(first.items.length, 0);
    assert.notEqual(first.cursor, null);
    assert.deepEqual(await typesOf(`?types=migration&cursor=${first.cursor}`), ["migration.started"]);
  });
});

const line = (serial: number) =>
  ({
    specversion: "1.0",
    id: `q_${serial}`,
    source: "/vmferry",
    subject: "/x",
    time: fleet.ports.clock.now(),
    datacontenttype: "application/json",
    type: "dev.vmferry.request.received",
    data: { method: "POST", path: "/x", by: "ann", requestId: String(serial), admin: false },
  }) as const;

describe("what is written down of requests", () => {
  const received = async () =>
    (await page("?types=request.received&order=oldest")).items.map(({ event }) =>
      event.type === "dev.vmferry.request.received" ? `${event.data.method} ${event.data.path}` : "",
    );

  test("each that asks for a change and was let in, whatever came of it, without its query", async () => {
    await cordon(true);
    await cordon(true);
    assert.equal((await fleet.ask("/v1/migrations", { body: { domain: "none", destination: "host2" } })).status, 404);
    assert.equal((await fleet.ask("/v1/hosts/none?force=true", { method: "DELETE" })).status, 404);
    assert.deepEqual(await received(), [
      "PATCH /v1/hosts/host2",
      "PATCH /v1/hosts/host2",
      "POST /v1/migrations",
      "DELETE /v1/hosts/none",
    ]);
  });

  test("without a token that somebody has pasted whole where its id belongs", async () => {
    const made = await fleet.ask("/v1/api-tokens", { body: { name: "ann" } });
    const { id, token } = z.object({ id: z.string(), token: z.string() }).parse(await made.json());
    assert.equal((await fleet.ask(`/v1/api-tokens/${token}`, { method: "DELETE" })).status, 404);
    const rule = `vmt_${token.slice(-43)}`;
    assert.equal((await fleet.ask(`/v1/rules/disk/credentials/${rule}`, { method: "DELETE" })).status, 404);
    const paths = (await received()).slice(1);
    assert.deepEqual(paths, [`DELETE /v1/api-tokens/vmk_${id}_...`, "DELETE /v1/rules/disk/credentials/vmt_..."]);
    assert.ok(!JSON.stringify(await page()).includes(token.slice(-43)));
  });

  test("none of who was refused at the door, of what cannot be read, of what changes nothing", async () => {
    await fleet.ask("/v1/migrations", { body: { domain: "web", destination: "host2" }, token: null });
    await fleet.ask("/v1/migrations", { body: { nonsense: true } });
    await fleet.ask("/v1/checks", { body: { domain: "web" } });
    await fleet.ask("/v1/evacuations", { body: { host: "host1", dryRun: true } });
    await fleet.ask("/v1/bundle-uploads", { body: { sha256: "a".repeat(64), bytes: 1 } });
    await fleet.ask("/v1/hosts");
    assert.deepEqual(await received(), []);
  });

  test("a trigger's caller when it has proved itself, and nothing of one that has not", async () => {
    const rule = {
      name: "disk",
      when: { kind: "alertmanager", matchers: { alertname: "x" } },
      which: { fromTrigger: { label: "instance" } },
    };
    assert.equal((await fleet.ask("/v1/rules/disk", { method: "PUT", body: rule })).status, 200);
    const made = await fleet.ask("/v1/rules/disk/credentials", { body: {} });
    const { value } = z.object({ value: z.string() }).parse(await made.json());
    const before = await received();
    const body = { version: "4", groupKey: "{}", truncatedAlerts: 0, status: "firing", alerts: [] };
    const fire = (token: string) => fleet.ask("/v1/triggers/disk/alertmanager", { body, token });
    assert.equal((await fire("nonsense")).status, 401);
    assert.deepEqual(await received(), before);
    assert.equal((await fire(value)).status, 202);
    assert.deepEqual((await received()).slice(before.length), ["POST /v1/triggers/disk/alertmanager"]);
    const [newest] = (await page("?types=request")).items;
    assert.ok(newest?.event.type === "dev.vmferry.request.received");
    assert.equal(newest.event.data.by, "trigger of disk");
  });

  test("before it is done: what cannot be written down is not done", async () => {
    const { append } = fleet.ports.chronicle;
    let cordonedThen: boolean | undefined;
    fleet.ports.chronicle.append = async (event) => {
      cordonedThen = (await fleet.ports.hosts.byName("host2"))?.cordoned;
      return append.call(fleet.ports.chronicle, event);
    };
    await cordon(true);
    assert.equal(cordonedThen, false);
    assert.equal((await fleet.ports.hosts.byName("host2"))?.cordoned, true);
  });
});

const adminTokenSha256 = createHash("sha256").update(adminToken).digest("hex");
const appWith = (eventsCarrier?: EventsCarrier) =>
  createApp({
    ports: fleet.ports,
    runner: fleet.runner,
    evacuations: fleet.evacuations,
    adminTokenSha256,
    eventsPollMs: 1,
    eventsIdleMs: 20,
    eventsCarrier,
  });

/** Opens the stream and reads it as a client does. */
async function open(query = "", lastEventId?: string, carrier?: EventsCarrier, token = adminToken) {
  const response = await appWith(carrier).request(`http://api.test/v1/events${query}`, {
    headers: {
      authorization: `Bearer ${token}`,
      accept: "text/event-stream",
      ...(lastEventId === undefined ? {} : { "last-event-id": lastEventId }),
    },
  });
  assert.equal(response.status, 200);
  assert.match(response.headers.get("content-type") ?? "", /^text\/event-stream/);
  assert.ok(response.body);
  const events = readEvents(response.body);
  let place = lastEventId;
  return {
    get place() {
      return place;
    },
    /** The next event with a name; null: the stream has ended. */
    async next(): Promise<StreamEvent | null> {
      for (;;) {
        const { done, value } = await events.next();
        if (done === true) return null;
        place = value?.id ?? place;
        if (value !== null && value.name !== "") return value;
      }
    },
    async rest(): Promise<StreamEvent[]> {
      const found: StreamEvent[] = [];
      for (let event = await this.next(); event !== null; event = await this.next()) found.push(event);
      return found;
    },
    /** The next place that is told, with an event or without. */
    async anyPlace(): Promise<string | null> {
      for (;;) {
        const { done, value } = await events.next();
        if (done === true) return null;
        if (value?.id != null) return value.id;
      }
    },
    leave: () => events.return(),
  };
}

describe("the stream of everything", () => {
  test("lines as they are written, from now on, each with an id and its type as the event's name", async () => {
    await cordon(true);
    fleet.pass(1_000);
    const stream = await open("?live=false");
    const coming = stream.next();
    await cordon(false);
    const event = await coming;
    assert.equal(event?.name, "dev.vmferry.request.received");
    assert.equal(z.object({ specversion: z.literal("1.0") }).parse(JSON.parse(event.data)).specversion, "1.0");
    assert.notEqual(event.id, null);
    await stream.leave();
  });

  test("a client that comes back hears what it missed and nothing twice, also where it had heard nothing yet", async () => {
    const first = await open("?live=false&types=request");
    const quiet = first.next();
    await cordon(true);
    await quiet;
    await first.leave();
    await cordon(false);
    fleet.pass(60_000);
    await cordon(true);
    const again = await open("?live=false&types=request", first.place);
    const told = [await again.next(), await again.next()];
    await again.leave();
    const all = (await page("?order=oldest")).items.map(({ event }) => event.id);
    assert.equal(all.length, 3);
    assert.deepEqual(
      told.map((event) => z.object({ id: z.string() }).parse(JSON.parse(event?.data ?? "")).id),
      all.slice(1),
    );
  });

  test("from a time on", async () => {
    await cordon(true);
    fleet.pass(3_600_000);
    const stream = await open(`?live=false&since=${encodeURIComponent("2026-11-22T09:59:59+00:00")}`);
    assert.equal((await stream.next())?.name, "dev.vmferry.request.received");
    await stream.leave();
  });

  test("rows of what is active, at first and whenever one changes, and its last one when it has ended", async () => {
    const id = await migrate();
    const stream = await open("?types=host.enrolled");
    /** Reads rows up to the one with this step; those between may be seen or not. */
    const until = async (step: string) => {
      for (;;) {
        const event = await stream.next();
        assert.deepEqual([event?.name, event?.id], ["migration", null]);
        const row = migrationSummarySchema.parse(JSON.parse(event?.data ?? ""));
        assert.equal(row.id, id);
        if (row.step === step) return row;
      }
    };
    assert.equal((await until("inspect")).status, "running");
    await fleet.serve({}, "stage");
    assert.equal((await until("stage")).endedAt, null);
    await fleet.serve();
    const last = await until("ended");
    assert.equal(last.status, "completed");
    assert.notEqual(last.endedAt, null);
    await stream.leave();
  });

  test("rows of evacuations as well; of one thing where it is asked for", async () => {
    const response = await fleet.ask("/v1/evacuations", { body: { host: "host1" } });
    const { id } = evacuationRowSchema.parse(await response.json());
    fleet.pass(1_000);
    const stream = await open(`?subject=${id}`);
    const event = await stream.next();
    assert.equal(event?.name, "evacuation");
    assert.equal(evacuationRowSchema.parse(JSON.parse(event.data)).id, id);
    await stream.leave();
  });

  test("a carrier that delivers answers whole: a poll ends with its first news, and rows at its beginning are none", async () => {
    const carrier: EventsCarrier = { delivers: "whole", msMax: 60_000 };
    await migrate();
    fleet.pass(1_000);
    const from = await open("", undefined, { delivers: "whole", msMax: 30 });
    assert.deepEqual(
      (await from.rest()).map(({ name }) => name),
      ["migration"],
    );
    const waiting = await open("", from.place, carrier);
    const rest = waiting.rest();
    await cordon(true);
    const names = (await rest).map(({ name }) => name);
    assert.deepEqual(names.slice(-1), ["dev.vmferry.request.received"]);
    await cordon(false);
    const more = await open("?live=false", waiting.place, carrier);
    const [next, ...others] = await more.rest();
    assert.deepEqual(others, []);
    assert.equal(
      (await page("?limit=1")).items[0]?.event.id,
      z.object({ id: z.string() }).parse(JSON.parse(next?.data ?? "")).id,
    );
  });

  /** So many lines of an hour ago; `asked` counts the readings. */
  function longPast(count: number) {
    const hourAgoMs = Date.parse(fleet.ports.clock.now()) - 3_600_000;
    const lines = Array.from({ length: count }, (_, serial) => ({
      at: `${positionAt(hourAgoMs + serial)}${String(serial).padStart(16, "0")}`,
      event: line(serial),
    }));
    const past = { asked: 0, since: new Date(hourAgoMs - 1_000).toISOString() };
    fleet.ports.chronicle.after = async ({ at, limit }) => {
      past.asked += 1;
      return lines.filter((entry) => at === null || entry.at > at).slice(0, limit);
    };
    return past;
  }

  test("a long past over a carrier that delivers answers whole: in answers that fit it, each line once", async () => {
    const { since } = longPast(1_700);
    const told: string[] = [];
    for (let place: string | undefined, polls = 0; told.length < 1_700; polls += 1) {
      assert.ok(polls < 10, `${told.length} after ${polls} polls`);
      const poll = await open(`?live=false&since=${since}`, place, { delivers: "whole", msMax: 60_000 });
      const events = await poll.rest();
      // 6 MB is the most that a Lambda answers, and a line has up to 8 KiB.
      assert.ok(events.length <= 500, `${events.length} events in one answer`);
      told.push(...events.map(({ data }) => z.object({ id: z.string() }).parse(JSON.parse(data)).id));
      place = poll.place;
    }
    assert.deepEqual(
      told,
      Array.from({ length: 1_700 }, (_, serial) => `q_${serial}`),
    );
  });

  test("a storm over such a carrier: its answer is as large as its lines, for only the last place is of use", async () => {
    const nowMs = Date.parse(fleet.ports.clock.now());
    const lines = Array.from({ length: 400 }, (_, serial) => ({
      at: `${positionAt(nowMs - 5_000 + serial)}${String(serial).padStart(16, "0")}`,
      event: line(serial),
    }));
    fleet.ports.chronicle.after = async ({ at, limit }) =>
      lines.filter((entry) => at === null || entry.at > at).slice(0, limit);
    const poll = () =>
      appWith({ delivers: "whole", msMax: 60_000 }).request(
        `http://api.test/v1/events?live=false&since=${new Date(nowMs - 10_000).toISOString()}`,
        { headers: { authorization: `Bearer ${adminToken}`, accept: "text/event-stream" } },
      );
    const text = await (await poll()).text();
    assert.ok(text.length < 400 * (JSON.stringify(line(400)).length + 200), `${text.length} characters`);
    const again = await open(`?live=false`, [...text.matchAll(/^id: (.*)$/gm)].at(-1)?.[1], {
      delivers: "whole",
      msMax: 30,
    });
    assert.deepEqual(await again.rest(), []);
  });

  test("a long past of which nothing is wanted: how far it was looked through is told on the way", async () => {
    const past = longPast(4_000);
    const stream = await open(`?live=false&types=host&since=${past.since}`);
    const from = await stream.anyPlace();
    const further = await stream.anyPlace();
    assert.ok((further ?? "") > (from ?? ""), `${from} ${further}`);
    assert.ok(past.asked < 20, `${past.asked} readings before a word`);
    await stream.leave();
  });

  test("says that it is alive, and ends in good order when its carrier has had enough", async () => {
    const stream = await open("?live=false", undefined, { delivers: "events", msMax: 60 });
    assert.deepEqual(await stream.rest(), []);
    assert.notEqual(stream.place, undefined);
  });

  test("a token that is revoked hears nothing more", async () => {
    const made = await fleet.ask("/v1/api-tokens", { body: { name: "ann" } });
    const { id, token } = z.object({ id: z.string(), token: z.string() }).parse(await made.json());
    const stream = await open("?live=false", undefined, undefined, token);
    await cordon(true);
    assert.notEqual(await stream.next(), null);
    fleet.pass(20_000);
    await cordon(false);
    assert.notEqual(await stream.next(), null, "a token that holds hears on");
    assert.equal((await fleet.ask(`/v1/api-tokens/${id}`, { method: "DELETE" })).status, 204);
    fleet.pass(20_000);
    await cordon(true);
    const rest = (await stream.rest()).map(({ data }) => data).join();
    assert.ok(!rest.includes("PATCH"), rest);
  });

  test("a store that fails ends it; the client resumes", async () => {
    const stream = await open("?live=false");
    fleet.ports.chronicle.after = async () => {
      throw new Error("cut");
    };
    assert.deepEqual(await stream.rest(), []);
    assert.ok(fleet.script.logged.some((text) => text.includes("a stream of all events was given up")));
  });
});
