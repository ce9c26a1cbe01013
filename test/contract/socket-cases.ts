/**
 * What every kind of host socket must do, as one list of cases; sockets.test.ts runs it in memory and on Durable Objects, api-gateway.test.ts on
 * API Gateway.
 */
import assert from "node:assert/strict";
import type { HostSockets } from "#functions/ports";
import type { Answer, DownMessage, Progress, Query } from "#protocol/message";
import { ulid, uuid } from "./store-cases.ts";

/** A shim that has proved itself. */
export interface Shim {
  hostId: string;
  /** The next message of that type that came, or comes. */
  next(type: DownMessage["type"]): Promise<DownMessage>;
  answer(queryId: string, answer: Answer): Promise<void>;
  progress(migrationId: string, progress: Progress): Promise<void>;
  /** Resolves when its socket was closed by the other side. */
  closed: Promise<{ code: number; reason: string }>;
  leave(): Promise<void>;
}

export interface Switchboard {
  sockets: HostSockets;
  /** Connects a shim and proves it; of a host that is connected already it is the newer session. */
  connect(hostId: string): Promise<Shim>;
  newHost(): Promise<string>;
  /** Whether a socket that is closed from here says why. API Gateway's callback for that takes no reason. */
  tellsWhy: boolean;
  /** Resolves when all that shims have said so far was heard; API Gateway hears messages side by side and in no order. */
  settled(): Promise<void>;
}

export const progressOf = (elapsedMs: number): Progress => ({
  memory: {
    totalBytes: 1,
    processedBytes: 1,
    remainingBytes: 0,
    bytesPerSecond: 0,
    dirtyPagesPerSecond: 0,
    iteration: 1,
  },
  disk: { totalBytes: 0, processedBytes: 0, remainingBytes: 0 },
  elapsedMs,
  expectedDowntimeMs: null,
});

const acknowledged = (): DownMessage => ({ type: "acknowledged", commandId: `m_${ulid()}:export:1` });
const describe = (): Query => ({ kind: "describeDomain", domain: { uuid: uuid(), name: "web-1" } });
const refusal: Answer = {
  ok: false,
  fault: { code: "domain.absent", cause: "There is none.", action: "Look elsewhere.", retry: "never" },
};

export const socketCases: Record<string, (board: Switchboard) => Promise<void>> = {
  "a push to a host that is away is not taken": async ({ sockets, newHost }) => {
    assert.equal(await sockets.push(await newHost(), acknowledged()), false);
  },
  "a push reaches the host it is for": async ({ sockets, connect, newHost }) => {
    const [one, two] = [await connect(await newHost()), await connect(await newHost())];
    const [left, right] = [acknowledged(), acknowledged()];
    assert.equal(await sockets.push(one.hostId, left), true);
    assert.equal(await sockets.push(two.hostId, right), true);
    assert.deepEqual(await one.next("acknowledged"), left);
    assert.deepEqual(await two.next("acknowledged"), right);
    await one.leave();
    await two.leave();
  },
  "a question gets its own answer, in whatever order": async ({ sockets, connect, newHost }) => {
    const shim = await connect(await newHost());
    const asked = [describe(), describe()].map((query) => sockets.query(shim.hostId, query, 20_000));
    const [first, second] = [await shim.next("query"), await shim.next("query")];
    assert.ok(first.type === "query" && second.type === "query");
    const uuidOf = ({ query }: typeof first) => ("domain" in query ? query.domain.uuid : "");
    const named = (name: string): Answer => ({ ...refusal, fault: { ...refusal.fault, cause: name } });
    await shim.answer(second.queryId, named(uuidOf(second)));
    await shim.answer(first.queryId, named(uuidOf(first)));
    const causes = (await Promise.all(asked)).map((answer) => (answer?.ok === false ? answer.fault.cause : null));
    assert.deepEqual(causes.sort(), [uuidOf(first), uuidOf(second)].sort());
    await shim.leave();
  },
  "I2: away, too late or cut off is no answer": async ({ sockets, connect, newHost }) => {
    assert.equal(await sockets.query(await newHost(), describe(), 20_000), null, "away");
    const shim = await connect(await newHost());
    assert.equal(await sockets.query(shim.hostId, describe(), 50), null, "too late");
    const late = await shim.next("query");
    assert.ok(late.type === "query");
    await shim.answer(late.queryId, refusal);
    const asked = sockets.query(shim.hostId, describe(), 20_000);
    await shim.next("query");
    await shim.leave();
    assert.equal(await asked, null, "cut off");
  },
  "the newest progress is kept by migration": async ({ sockets, connect, newHost, settled }) => {
    const shim = await connect(await newHost());
    const [one, two] = [`m_${ulid()}`, `m_${ulid()}`];
    assert.equal(await sockets.progress(shim.hostId, one), null);
    await shim.progress(one, progressOf(1));
    await shim.progress(two, progressOf(2));
    await shim.progress(one, progressOf(3));
    const asked = sockets.query(shim.hostId, describe(), 20_000);
    const question = await shim.next("query");
    assert.ok(question.type === "query");
    await shim.answer(question.queryId, refusal);
    await asked;
    await settled();
    assert.deepEqual(await sockets.progress(shim.hostId, one), progressOf(3));
    assert.deepEqual(await sockets.progress(shim.hostId, two), progressOf(2));
    await shim.leave();
  },
  "a newer session replaces the older": async ({ sockets, connect, newHost, tellsWhy }) => {
    const older = await connect(await newHost());
    const newer = await connect(older.hostId);
    const { reason } = await older.closed;
    if (tellsWhy) assert.match(reason, /replaced/);
    const message = acknowledged();
    assert.equal(await sockets.push(older.hostId, message), true);
    assert.deepEqual(await newer.next("acknowledged"), message);
    await newer.leave();
  },
  "a dropped host is away": async ({ sockets, connect, newHost, tellsWhy }) => {
    const shim = await connect(await newHost());
    await sockets.drop(shim.hostId, "removed");
    const { reason } = await shim.closed;
    if (tellsWhy) assert.equal(reason, "removed");
    assert.equal(await sockets.push(shim.hostId, acknowledged()), false);
    await sockets.drop(shim.hostId, "removed");
  },
};
