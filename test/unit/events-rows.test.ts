/** The rows of a stream over more migrations than a list holds: what falls out of a full list is not read one by one at each look, and its end is told nevertheless. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { pageRowsMax } from "#core/limits";
import type { MigrationState } from "#core/state";
import { LiveRows } from "#functions/http/events-rows";
import { MemoryEvacuations, MemoryMigrations } from "#test/fake/memory-store";
import { freshMigration } from "#test/fake/migration";

const clock = { now: () => "2026-11-23T08:00:00.000Z" };
const migration = (serial: number): MigrationState => ({
  ...freshMigration(),
  id: `m_01JE0000000000000000${String(serial).padStart(6, "0")}`,
});

test("of more active migrations than a list holds the oldest are left alone until the list reaches them again", async () => {
  const migrations = new MemoryMigrations(clock);
  const add = (serial: number) => migrations.create(migration(serial));
  const end = async (serial: number) => {
    const state = await migrations.load(migration(serial).id);
    assert.ok(state);
    const ended = { ...state, version: state.version + 1, status: "completed", step: "ended" } as const;
    assert.equal(await migrations.commit({ ...ended, endedAt: clock.now() }), "committed");
  };
  for (let serial = 0; serial < pageRowsMax; serial += 1) await add(serial);
  const rows = new LiveRows({ migrations, evacuations: new MemoryEvacuations(clock) }, null);
  assert.equal((await rows.changed()).length, pageRowsMax);
  for (let serial = 0; serial < 50; serial += 1) await add(pageRowsMax + serial);

  let loads = 0;
  const { load } = migrations;
  migrations.load = (id) => {
    loads += 1;
    return load.call(migrations, id);
  };
  assert.equal((await rows.changed()).length, 50);
  assert.deepEqual(await rows.changed(), []);
  assert.equal(loads, 0);

  // Of the oldest, of those that are listed.
  await end(7);
  await end(pageRowsMax);
  const told = await rows.changed();
  assert.ok(told.some(({ data }) => data.id === migration(pageRowsMax).id && data.endedAt !== null));
  for (let serial = 10; serial < 90; serial += 1) await end(serial);
  const ids = (await rows.changed()).filter(({ data }) => data.endedAt !== null).map(({ data }) => data.id);
  assert.ok(ids.includes(migration(7).id));
  assert.deepEqual(await rows.changed(), []);
});
