/** What every chronicle must do; chronicle.test.ts runs it on the fake and on DynamoDB's API. A chronicle is shared by cases, so each case looks at its own lines only. */
import assert from "node:assert/strict";
import { type ChronicleEntry, type ChronicleEvent, chronicleEventBytesMax, eventHead } from "#core/chronicle-event";
import { eventBytes } from "#core/chronicle-fit";
import type { Chronicle } from "#functions/ports";
import { ulid } from "./store-cases.ts";

const now = "2026-11-01T00:00:00.000Z";

export const requested = (id = `q_${ulid()}`, path = "/v1/hosts"): ChronicleEvent => ({
  ...eventHead(id, path, now),
  type: "dev.vmferry.request.received",
  data: { method: "POST", path, by: "admin", requestId: id, admin: true },
});

const idsOf = (entries: readonly ChronicleEntry[]) => entries.map(({ event }) => event.id);

async function written(chronicle: Chronicle, count: number): Promise<ChronicleEvent[]> {
  const events = Array.from({ length: count }, () => requested());
  for (const event of events) assert.equal(await chronicle.append(event), true);
  return events;
}

/** Where one event stands. */
async function positionOf(chronicle: Chronicle, id: string): Promise<string> {
  const newest = await chronicle.before({ at: null, limit: 100 });
  const found = newest.find(({ event }) => event.id === id);
  assert.ok(found);
  return found.at;
}

export const chronicleCases: Record<string, (chronicle: Chronicle) => Promise<void>> = {
  "the same event is one line, and only its first writing is new": async (chronicle) => {
    const event = requested();
    assert.equal(await chronicle.append(event), true);
    assert.equal(await chronicle.append(event), false);
    assert.equal(await chronicle.append({ ...event, time: "2027-01-01T00:00:00.000Z" }), false);
    const found = (await chronicle.before({ at: null, limit: 100 })).filter((entry) => entry.event.id === event.id);
    assert.deepEqual(
      found.map((entry) => entry.event),
      [event],
    );
  },
  "a line is found by its event's id": async (chronicle) => {
    const event = requested();
    assert.equal(await chronicle.find(event.id), null);
    await chronicle.append(event);
    const [newest] = await chronicle.before({ at: null, limit: 1 });
    assert.deepEqual(await chronicle.find(event.id), newest);
    assert.deepEqual(newest?.event, event);
  },
  "of many that write the same at once one was new": async (chronicle) => {
    const event = requested();
    const answers = await Promise.all(Array.from({ length: 8 }, () => chronicle.append(event)));
    assert.equal(answers.filter(Boolean).length, 1);
  },
  "lines are read in the order in which they were written, after one and before another": async (chronicle) => {
    const events = await written(chronicle, 5);
    const ids = events.map(({ id }) => id);
    const places = await Promise.all(ids.map((id) => positionOf(chronicle, id)));
    const [first = "", , , fourth = ""] = places;
    assert.deepEqual(places.toSorted(), places);
    assert.deepEqual(idsOf(await chronicle.after({ at: first, until: null, limit: 2 })), ids.slice(1, 3));
    assert.deepEqual(idsOf(await chronicle.after({ at: first, until: null, limit: 100 })).slice(0, 4), ids.slice(1));
    assert.deepEqual(idsOf(await chronicle.after({ at: first, until: fourth, limit: 100 })), ids.slice(1, 3));
    assert.deepEqual(idsOf(await chronicle.after({ at: first, until: fourth, limit: 1 })), ids.slice(1, 2));
    assert.deepEqual(await chronicle.after({ at: first, until: first, limit: 100 }), []);
    assert.deepEqual(await chronicle.after({ at: fourth, until: first, limit: 100 }), []);
  },
  "the newest come first the other way round": async (chronicle) => {
    const ids = (await written(chronicle, 4)).map(({ id }) => id);
    assert.deepEqual(idsOf(await chronicle.before({ at: null, limit: 4 })), ids.toReversed());
    const third = await positionOf(chronicle, ids[2] ?? "");
    assert.deepEqual(idsOf(await chronicle.before({ at: third, limit: 2 })), [ids[1], ids[0]]);
  },
  "from the beginning, in pages, each line comes once": async (chronicle) => {
    await written(chronicle, 7);
    const newest = idsOf(await chronicle.before({ at: null, limit: 1_000 }));
    const found: string[] = [];
    for (let at: string | null = null; ; ) {
      const page = await chronicle.after({ at, until: null, limit: 3 });
      found.push(...idsOf(page));
      at = page.at(-1)?.at ?? null;
      if (page.length < 3) break;
    }
    assert.deepEqual(found, newest.toReversed());
  },
  "a line that no reader could read is not written: it would hold up all who read on": async (chronicle) => {
    const bad = [
      requested(`q.${ulid()}`),
      requested(`q_${ulid()}`, "/long".repeat(100)),
      {
        ...eventHead(`e_${ulid()}-ended`, "e", now),
        type: "dev.vmferry.rule.run.started",
        data: {
          id: "r",
          rule: "rack",
          // JSON has no such number.
          ruleVersion: Number.POSITIVE_INFINITY,
          trigger: { type: "t", id: "1", source: "/rack" },
          hosts: [],
          awaitsApproval: false,
        },
      },
    ] satisfies ChronicleEvent[];
    for (const event of bad) await assert.rejects(chronicle.append(event), /cannot be written down/);
    const good = requested();
    assert.equal(await chronicle.append(good), true);
    assert.equal((await chronicle.before({ at: null, limit: 1 }))[0]?.event.id, good.id);
  },
  "an event that is too long is cut, not refused": async (chronicle) => {
    const long: ChronicleEvent = {
      ...eventHead(`r_${ulid()}-started`, "rack", now),
      type: "dev.vmferry.rule.run.started",
      data: {
        id: `r_${ulid()}`,
        rule: "rack",
        ruleVersion: 1,
        trigger: { type: "dev.vmferry.trigger.schedule", id: "1", source: "/rack" },
        hosts: Array.from({ length: 300 }, (_, index) => ({
          host: { id: `h_${ulid()}`, name: `host${index}` },
          state: "waiting",
          evacuationId: null,
          reason: "ü".repeat(2_000),
        })),
        awaitsApproval: false,
      },
    };
    await chronicle.append(long);
    const [entry] = await chronicle.before({ at: null, limit: 1 });
    assert.ok(entry?.event.id === long.id && entry.event.type === "dev.vmferry.rule.run.started");
    assert.ok(eventBytes(entry.event) <= chronicleEventBytesMax);
    const { hosts, hostsLeftOut = 0 } = entry.event.data;
    assert.ok(hosts.length > 0);
    assert.equal(hosts.length + hostsLeftOut, 300);
  },
};
