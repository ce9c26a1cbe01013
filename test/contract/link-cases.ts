/** What every link store must do, as one list of cases; links.test.ts runs it on DynamoDB's API. */
import assert from "node:assert/strict";
import type { Inventory, Link, LinkStore } from "#functions/ports";
import type { Answer } from "#protocol/message";
import { progressOf } from "./socket-cases.ts";
import { domain, ulid, uuid } from "./store-cases.ts";

export interface Links {
  links: LinkStore;
  /** Moves the clock that the store sees; Unix time. */
  setNow(ms: number): void;
}

const startMs = Date.parse("2026-11-01T00:00:00.000Z");
const newHost = () => `h_${ulid()}`;
const linkOf = (hostId: string, changes: Partial<Link> = {}): Link => ({
  connectionId: `${ulid().slice(-15)}=`,
  hostId,
  publicKey: "k".repeat(43),
  nonce: "n".repeat(43),
  session: null,
  openedAtMs: startMs,
  expiresAtMs: startMs + 60_000,
  ...changes,
});
const answerOf = (cause: string): Answer => ({
  ok: false,
  fault: { code: "domain.absent", cause, action: "Look elsewhere.", retry: "never" },
});
const partOf = (id: string, part: number, parts: number, changes: Partial<Inventory> = {}): Inventory => ({
  type: "inventory",
  series: { id, part, parts },
  full: part === 0,
  last: part === parts - 1,
  domains: [domain()],
  gone: [],
  ...changes,
});

export const linkCases: Record<string, (store: Links) => Promise<void>> = {
  "a nonce is used once by each host, and a retried write is no second use": async ({ links }) => {
    const use = { hostId: newHost(), nonce: "a".repeat(43), connectionId: "one=", untilMs: startMs + 1_000 };
    assert.equal(await links.useNonce(use), true);
    assert.equal(await links.useNonce(use), true, "its own");
    assert.equal(await links.useNonce({ ...use, connectionId: "two=" }), false);
    assert.equal(await links.useNonce({ ...use, hostId: newHost(), connectionId: "two=" }), true, "another host's");
  },
  "of many that use a nonce at once one does": async ({ links }) => {
    const hostId = newHost();
    const uses = Array.from({ length: 8 }, (_, at) =>
      links.useNonce({ hostId, nonce: "b".repeat(43), connectionId: `${at}=`, untilMs: startMs + 1_000 }),
    );
    assert.equal((await Promise.all(uses)).filter(Boolean).length, 1);
  },
  "a connection is known until it is closed or its time is up": async ({ links, setNow }) => {
    const link = linkOf(newHost());
    assert.equal(await links.byConnection(link.connectionId), null);
    await links.open(link);
    assert.deepEqual(await links.byConnection(link.connectionId), link);
    assert.equal(await links.prove(link.connectionId, "s1"), true);
    assert.deepEqual(await links.of(link.hostId), [{ ...link, session: "s1" }]);
    setNow(link.expiresAtMs);
    assert.equal(await links.byConnection(link.connectionId), null);
    assert.deepEqual(await links.of(link.hostId), []);
    setNow(startMs);
    await links.close(link);
    await links.close(link);
    assert.equal(await links.byConnection(link.connectionId), null);
    assert.equal(await links.prove(link.connectionId, "s2"), false, "nobody is there any more");
    assert.equal(await links.byConnection(link.connectionId), null, "and a late hello makes none");
  },
  "a host is reached by the newest connection": async ({ links, setNow }) => {
    const hostId = newHost();
    const [older, newer] = [linkOf(hostId), linkOf(hostId, { openedAtMs: startMs + 1, expiresAtMs: startMs + 90_000 })];
    assert.equal(await links.current(hostId), null);
    assert.equal(await links.bind(older), true);
    assert.equal(await links.current(hostId), older.connectionId);
    assert.equal(await links.bind(newer), true);
    assert.equal(await links.bind(older), false, "overtaken");
    assert.equal(await links.bind(newer), true, "again");
    await links.close(older);
    assert.equal(await links.current(hostId), newer.connectionId, "the other is left alone");
    setNow(newer.expiresAtMs);
    assert.equal(await links.current(hostId), null);
    assert.equal(await links.bind({ ...older, expiresAtMs: startMs + 200_000 }), true, "what expired holds nothing");
    setNow(startMs);
    await links.close(older);
    assert.equal(await links.current(hostId), null);
  },
  "I2: only an open question of that host takes an answer, and one": async ({ links, setNow }) => {
    const [hostId, other] = [newHost(), newHost()];
    const question = { hostId, queryId: ulid(), untilMs: startMs + 1_000 };
    assert.equal(await links.answer(hostId, question.queryId, answerOf("early")), false);
    await links.ask(question);
    assert.equal(await links.answerTo(hostId, question.queryId), null);
    assert.equal(await links.answer(other, question.queryId, answerOf("a lie")), false);
    assert.equal(await links.answer(hostId, question.queryId, answerOf("first")), true);
    assert.equal(await links.answer(hostId, question.queryId, answerOf("second")), false);
    assert.deepEqual(await links.answerTo(hostId, question.queryId), answerOf("first"));
    await links.withdraw(hostId, question.queryId);
    assert.equal(await links.answerTo(hostId, question.queryId), null);
    assert.equal(await links.answer(hostId, question.queryId, answerOf("withdrawn")), false);
    const late = { ...question, queryId: ulid() };
    await links.ask(late);
    setNow(late.untilMs);
    assert.equal(await links.answer(hostId, late.queryId, answerOf("late")), false);
    setNow(startMs);
  },
  "the newest progress stays, whatever comes last": async ({ links, setNow }) => {
    const [hostId, migrationId] = [newHost(), `m_${ulid()}`];
    await links.putProgress(hostId, migrationId, progressOf(2), startMs + 2);
    await links.putProgress(hostId, migrationId, progressOf(1), startMs + 1);
    assert.deepEqual(await links.progress(hostId, migrationId), progressOf(2));
    await links.putProgress(hostId, migrationId, progressOf(4), startMs + 4);
    await links.putProgress(hostId, migrationId, progressOf(3), startMs + 4);
    assert.deepEqual(
      await links.progress(hostId, migrationId),
      progressOf(4),
      "in one millisecond its own count decides",
    );
    assert.equal(await links.progress(newHost(), migrationId), null);
    setNow(startMs + 24 * 60 * 60_000);
    assert.equal(await links.progress(hostId, migrationId), null, "of yesterday");
    setNow(startMs);
  },
  "a list is whole for whoever brings the last part": async ({ links }) => {
    const hostId = newHost();
    const id = ulid();
    const parts = [0, 1, 2].map((part) => partOf(id, part, 3));
    const [first, second, third] = parts;
    assert.ok(first && second && third);
    assert.equal(await links.collect(hostId, third, startMs + 3), null);
    assert.equal(await links.collect(hostId, third, startMs + 3), null, "the same part again is no other");
    assert.equal(await links.collect(hostId, first, startMs + 1), null);
    assert.equal(await links.collect(newHost(), second, startMs), null, "another host's list of the same name");
    const whole = await links.collect(hostId, second, startMs + 2);
    assert.ok(whole);
    assert.equal(whole.atMs, startMs + 3);
    assert.deepEqual(
      whole.list.domains.map(({ uuid: named }) => named),
      parts.flatMap(({ domains }) => domains.map(({ uuid: named }) => named)),
    );
    assert.deepEqual([whole.list.full, whole.list.last], [true, true]);
  },
  "parts that come at once make one whole list at least": async ({ links }) => {
    const hostId = newHost();
    const id = ulid();
    const lists = await Promise.all([0, 1, 2, 3].map((part) => links.collect(hostId, partOf(id, part, 4), startMs)));
    const whole = lists.filter((list) => list !== null);
    assert.ok(whole.length >= 1);
    for (const { list } of whole) assert.equal(list.domains.length, 4);
  },
  "what was said of a domain is never undone by what was said before": async ({ links }) => {
    const hostId = newHost();
    const [one, two] = [uuid(), uuid()];
    const say = (atMs: number, full: boolean, ...uuids: string[]) =>
      links.orderInventory(hostId, { atMs: startMs + atMs, full, uuids });
    assert.deepEqual(await say(10, true, one, two), { except: [] });
    assert.deepEqual(await say(10, true, one, two), { except: "all" }, "the same list again");
    assert.deepEqual(await say(9, false, one), { except: "all" }, "a change of before the list");
    assert.deepEqual(await say(20, false, one), { except: [] });
    assert.deepEqual(await say(19, false, one, two), { except: [one] });
    assert.deepEqual(await say(20, false, one), { except: [] }, "at the same instant the later comer counts");
    assert.equal(await say(15, true, one, two), "disordered");
    assert.deepEqual(await say(30, true, two), { except: [] });
    assert.deepEqual(await say(5, true, one), { except: "all" });
    assert.deepEqual(await links.orderInventory(newHost(), { atMs: startMs, full: false, uuids: [one] }), {
      except: [],
    });
  },
  "changes at once are all let through": async ({ links }) => {
    const hostId = newHost();
    const said = await Promise.all(
      Array.from({ length: 6 }, (_, at) =>
        links.orderInventory(hostId, { atMs: startMs + at, full: false, uuids: [uuid()] }),
      ),
    );
    for (const order of said) assert.deepEqual(order, { except: [] });
  },
};
