/** What every store must do with evacuations; store.test.ts runs it on the fake and on DynamoDB's API. */
import assert from "node:assert/strict";
import { itemBytesMax } from "#core/evacuation-limits";
import { type EvacuationState, evacuationPolicyDefault, evacuationSummary } from "#core/evacuation-state";
import { type Stores, ulid, uuid } from "./store-cases.ts";

const now = "2026-11-01T00:00:00.000Z";

export const evacuation = (changes: Partial<EvacuationState> = {}): EvacuationState => ({
  id: `e_${ulid()}`,
  kind: "evacuate",
  host: { id: `h_${ulid()}`, name: "alpha" },
  undoes: null,
  origin: { by: "admin", rule: null, trigger: null },
  status: "running",
  version: 1,
  createdAt: now,
  updatedAt: now,
  endedAt: null,
  deadlineAt: null,
  policy: evacuationPolicyDefault,
  cordoned: true,
  domains: [
    {
      domain: { uuid: uuid(), name: "Grüße" },
      memoryKiB: 131_072,
      vcpus: 1,
      priority: 50,
      homeId: `h_${ulid()}`,
      state: "waiting",
      destinationId: null,
      migrationId: null,
      attempts: 0,
      triedIds: [],
      notBefore: null,
      reason: null,
    },
  ],
  failuresInRow: 0,
  held: null,
  stopped: null,
  timeline: [{ at: now, domain: null, note: "began" }],
  ...changes,
});

export const evacuationCases: Record<string, (stores: Stores) => Promise<void>> = {
  "an evacuation is written, read back whole and null when absent": async ({ evacuations }) => {
    const state = evacuation();
    assert.equal(await evacuations.load(state.id), null);
    assert.equal(await evacuations.create(state), "committed");
    assert.deepEqual(await evacuations.load(state.id), state);
  },
  "an evacuation as large as the core lets it grow is one item": async ({ evacuations }) => {
    const state = evacuation();
    const bytes = new TextEncoder().encode(JSON.stringify(state)).byteLength;
    const note = "x".repeat(itemBytesMax - bytes + (state.timeline[0]?.note.length ?? 0));
    const grown = { ...state, timeline: [{ at: now, domain: null, note }] };
    assert.equal(new TextEncoder().encode(JSON.stringify(grown)).byteLength, itemBytesMax);
    assert.equal(await evacuations.create(grown), "committed");
    assert.deepEqual(await evacuations.load(state.id), grown);
  },
  "creating the same again is our own, over another one a conflict": async ({ evacuations }) => {
    const state = evacuation();
    await evacuations.create(state);
    assert.equal(await evacuations.create(state), "committed");
    assert.equal(await evacuations.create({ ...state, kind: "restore" }), "conflict");
    assert.deepEqual(await evacuations.load(state.id), state);
  },
  "I5: a commit of an evacuation goes over the version before only": async ({ evacuations }) => {
    const state = evacuation();
    await evacuations.create(state);
    const next = { ...state, version: 2, status: "ending" as const };
    assert.equal(await evacuations.commit(next), "committed");
    assert.equal(await evacuations.commit(next), "committed");
    assert.equal(await evacuations.commit({ ...state, version: 2 }), "conflict");
    assert.equal(await evacuations.commit({ ...state, version: 4 }), "conflict");
    assert.equal(await evacuations.commit(evacuation({ version: 2 })), "conflict");
    assert.deepEqual(await evacuations.load(state.id), next);
  },
  "of eight writers of one version of an evacuation one wins": async ({ evacuations }) => {
    const state = evacuation();
    await evacuations.create(state);
    const results = await Promise.all(
      Array.from({ length: 8 }, (_, writer) => evacuations.commit({ ...state, version: 2, failuresInRow: writer })),
    );
    assert.equal(results.filter((result) => result === "committed").length, 1);
  },
  "evacuations are listed newest first, page by page, with their counts; ended ones not among the active": async ({
    evacuations,
  }) => {
    const ended = evacuation({ status: "completed", endedAt: now });
    const running = evacuation();
    const stopping = evacuation({ status: "ending" });
    for (const state of [ended, running, stopping]) await evacuations.create(state);
    const first = await evacuations.list({ limit: 2, cursor: null, active: false });
    assert.deepEqual(first.items, [stopping, running].map(evacuationSummary));
    assert.equal(first.items[0]?.counts.waiting, 1);
    const second = await evacuations.list({ limit: 1, cursor: first.cursor, active: false });
    assert.deepEqual(second.items, [evacuationSummary(ended)]);
    const active = (await evacuations.list({ limit: 200, cursor: null, active: true })).items.map(({ id }) => id);
    assert.deepEqual(
      [running, stopping, ended].map(({ id }) => active.includes(id)),
      [true, true, false],
    );
    await evacuations.commit({ ...running, version: 2, status: "partial", endedAt: now });
    const later = await evacuations.list({ limit: 200, cursor: null, active: true });
    assert.ok(!later.items.some(({ id }) => id === running.id));
  },
  "a host is one evacuation's at a time, until that one frees it": async ({ evacuations, setNow }) => {
    setNow(now);
    const [hostId, one, two] = [`h_${ulid()}`, `e_${ulid()}`, `e_${ulid()}`];
    assert.deepEqual(await evacuations.claim(hostId, one), { evacuationId: one, at: now });
    setNow("2026-11-01T00:01:00.000Z");
    assert.deepEqual(await evacuations.claim(hostId, one), { evacuationId: one, at: now });
    assert.deepEqual(await evacuations.claim(hostId, two), { evacuationId: one, at: now });
    await evacuations.unclaim(hostId, two);
    const mine = (await evacuations.claims()).filter((claim) => claim.hostId === hostId);
    assert.deepEqual(mine, [{ hostId, evacuationId: one, at: now }]);
    await evacuations.unclaim(hostId, one);
    await evacuations.unclaim(hostId, one);
    assert.ok(!(await evacuations.claims()).some((claim) => claim.hostId === hostId));
    assert.equal((await evacuations.claim(hostId, two)).evacuationId, two);
    await evacuations.unclaim(hostId, two);
    setNow(now);
  },
  "the turn is one holder's at a time, until it ends it or its time is over": async ({ evacuations, setNow }) => {
    setNow(now);
    await evacuations.endTurn("nobody");
    assert.notEqual(await evacuations.takeTurn("one", 60_000), null);
    assert.equal(await evacuations.takeTurn("one", 60_000), "again");
    assert.equal(await evacuations.takeTurn("two", 60_000), null);
    await evacuations.endTurn("two");
    assert.equal(await evacuations.takeTurn("two", 60_000), null);
    setNow("2026-11-01T00:01:00.001Z");
    assert.equal(await evacuations.takeTurn("two", 60_000), "first");
    await evacuations.endTurn("one");
    assert.equal(await evacuations.takeTurn("one", 60_000), null);
    await evacuations.endTurn("two");
    assert.equal(await evacuations.takeTurn("one", 60_000), "first");
    await evacuations.endTurn("one");
    setNow(now);
  },
  "who takes the turn again is told whether anybody had it in between": async ({ evacuations, setNow }) => {
    setNow(now);
    const [one, two] = [ulid(), ulid()];
    assert.equal(await evacuations.takeTurn(one, 60_000), "first");
    await evacuations.endTurn(one);
    assert.equal(await evacuations.takeTurn(one, 60_000), "again");
    // It lapses, and nobody comes.
    setNow("2026-11-01T00:01:00.001Z");
    assert.equal(await evacuations.takeTurn(one, 60_000), "again");
    await evacuations.endTurn(one);
    assert.equal(await evacuations.takeTurn(two, 60_000), "first");
    await evacuations.endTurn(two);
    assert.equal(await evacuations.takeTurn(one, 60_000), "first");
    await evacuations.endTurn(one);
    setNow(now);
  },
};
