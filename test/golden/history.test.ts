/**
 * What each release recorded goes on with the present code: stored states load, events lead where they led, every migration
 * that was in flight then comes to the same end now, and its commands are word for word what its shims were told (I6).
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, test } from "node:test";
import type { MigrationEvent } from "#core/event";
import { type MigrationState, migrationStateSchema, stepSchema } from "#core/state";
import { transition } from "#core/transition";
import { createRunner } from "#functions/runner";
import { decodeDown, decodeUp } from "#protocol/codec";
import { memoryFleet } from "#test/fake/memory-fleet";
import { MemoryMigrations } from "#test/fake/memory-store";
import { ticketSigner } from "#test/simulation/sim-keys";
import { eventTypesKnown, type History, historiesOf, releases, type Stored } from "./history-reader.ts";

/** What of a state decides what happens next. The rest is the story, whose words may get better, its counts, and the patience of the timer. */
function whatMatters(state: MigrationState) {
  const { updatedAt, timeline, failure, abortCause, findings, pending, strandings, snapshots, ...matters } = state;
  const { restored, ...tree } = snapshots;
  const known = (one: typeof failure) => one && { code: one.code, phase: one.phase, side: one.side };
  const awaited = pending.map(({ id, kind, side }) => ({ id, kind, side }));
  return { ...matters, snapshots: tree, awaited, failure: known(failure), abortCause: known(abortCause) };
}

/** Where the present code deliberately goes another way than a release did: `release history: why`. */
const deliberate: ReadonlyMap<string, string> = new Map([]);

/** The stored text is the truth; the schema may fill in what a later release added. */
const loaded = (stored: Stored): MigrationState => migrationStateSchema.parse(JSON.parse(JSON.stringify(stored)));

/** Events of the core in their order. */
const after = (state: MigrationState, events: readonly MigrationEvent[]) =>
  events.reduce((from, event) => transition(from, event).state, state);

for (const release of releases)
  describe(`histories of ${release}`, () => {
    const histories = historiesOf(release);
    const expected = histories.filter(({ name }) => !deliberate.has(`${release} ${name}`));

    test("they go through every step, every end and every kind of event", () => {
      const states = histories.flatMap(({ moments }) =>
        moments.flatMap(({ state }) => (state === null ? [] : [state])),
      );
      assert.deepEqual([...new Set(states.map(({ step }) => step))].sort(), [...stepSchema.options].sort());
      const ends = new Set(histories.map(({ status }) => status));
      assert.deepEqual([...ends].sort(), ["cancelled", "completed", "refused", "rolledBack"]);
      assert.ok(states.some(({ status }) => status === "stranded"));
      const events = new Set(histories.flatMap(({ moments }) => moments.map(({ event }) => event.type as string)));
      assert.deepEqual([...events].sort(), [...eventTypesKnown].sort());
    });

    test("every stored state is one of the present schema, and nothing of it is dropped", () => {
      for (const { name, moments } of histories)
        for (const { state } of moments)
          if (state !== null)
            assert.deepEqual({ ...loaded(state), ...state }, loaded(state), `${name} v${state.version}`);
    });

    for (const history of expected) {
      const { name, created, moments, status } = history;
      const events = moments.map(({ event }) => event);

      test(`${name}: each event leads from where it came to where it led`, () => {
        for (const [index, { event, before, state }] of moments.entries()) {
          const next = transition(loaded(before), event).state;
          const told = `event ${index} (${event.type}) on version ${before.version}`;
          if (state === null) assert.deepEqual(whatMatters(next), whatMatters(loaded(before)), told);
          else assert.deepEqual(whatMatters(next), whatMatters(loaded(state)), told);
        }
      });

      test(`${name}: from every state in flight it comes to the same end`, () => {
        for (const [index, { state }] of [{ state: created }, ...moments].entries()) {
          if (state === null) continue;
          const end = after(loaded(state), events.slice(index));
          assert.equal(end.step, "ended", `from version ${state.version}`);
          assert.equal(end.status, status, `from version ${state.version}`);
        }
      });

      test(`${name}: a host that asks what it owes is told the very command that it was sent`, () =>
        owedAgain(history));
    }

    test("commands and reports are messages of the present treaty", () => {
      for (const { down, up } of histories) {
        for (const { message } of down) assert.deepEqual(decodeDown(JSON.stringify(message)), message);
        for (const { message } of up) assert.deepEqual(decodeUp(JSON.stringify(message)), message);
      }
    });
  });

/** The present runner over each stored state, with the release's payloads and the same control key. */
async function owedAgain({ name, created, moments, blobs, down }: History): Promise<void> {
  const sent = new Map(
    down.flatMap(({ message }) => {
      const decoded = decodeDown(JSON.stringify(message));
      return decoded.type === "command" ? [[decoded.command.id, decoded.command] as const] : [];
    }),
  );
  const { ports } = await memoryFleet();
  const seen = new Set<string>();
  for (const { state } of [{ state: created }, ...moments]) {
    if (state === null) continue;
    const migration = loaded(state);
    const migrations = new MemoryMigrations(ports.clock);
    for (const { name: blob, base64, sha256 } of blobs) {
      assert.equal(createHash("sha256").update(Buffer.from(base64, "base64")).digest("hex"), sha256);
      await migrations.putBlob(migration.id, blob, Buffer.from(base64, "base64"), sha256);
    }
    assert.equal(await migrations.create(migration), "committed");
    const hosts = [migration.source.id, migration.destination.id];
    await migrations.point(hosts, migration.id);
    const runner = createRunner({ ...ports, migrations, tickets: ticketSigner });
    const owed = (await Promise.all(hosts.map((host) => runner.pendingOf(host)))).flat();
    assert.equal(owed.length, migration.pending.length, `${name} v${migration.version}`);
    for (const command of owed) {
      const before = sent.get(command.id);
      // One that was cut off on its way was never heard of, so its body binds nobody.
      if (before === undefined) continue;
      assert.deepEqual(command, before);
      seen.add(command.id);
    }
  }
  assert.ok(sent.size === 0 || seen.size > 0, `${name}: no command was compared`);
}
