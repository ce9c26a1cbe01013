/** The journal under torn writes, damage and forgetting: what was said to be on disk is there, and nothing else. */
import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import type { Command } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { openJournal, tombstonesMax } from "#shim/journal";
import type { JournalEntry } from "#shim/ports";

const id = "m_01JD0000000000000000000000";
const other = "m_01JD0000000000000000000001";
const command: Command = {
  id: `${id}:export:1`,
  migrationId: id,
  epoch: 1,
  domain: { uuid: "c7a5fdbd-edaf-9455-926a-d65c16db1809", name: "web" },
  kind: "export",
};
const entries: JournalEntry[] = [
  { type: "intent", at: "2026-11-22T10:00:00.000Z", command },
  { type: "milestone", at: "2026-11-22T10:00:01.000Z", commandId: command.id, name: "stripping", data: { total: 5 } },
  {
    type: "report",
    at: "2026-11-22T10:00:02.000Z",
    report: {
      commandId: command.id,
      migrationId: id,
      epoch: 1,
      ms: 2000,
      result: { ok: false, fault: { code: "libvirt.failed", cause: "no\nline 😀", action: "look", retry: "safe" } },
    },
  },
  { type: "acknowledged", at: "2026-11-22T10:00:03.000Z", commandId: command.id },
];

let root: string;
let state: string;
let round = 0;
const file = () => join(state, "journal", `${id}.jsonl`);
before(async () => {
  root = await mkdtemp(join(tmpdir(), "vmferry-journal-"));
});
beforeEach(() => {
  round += 1;
  state = join(root, `state${round}`);
});
after(() => rm(root, { recursive: true, force: true }));

const write = async (...what: JournalEntry[]) => {
  const journal = await openJournal(state);
  for (const entry of what) await journal.append(id, entry);
  await journal.close();
};
const reread = async () => {
  const journal = await openJournal(state);
  try {
    return await journal.read(id);
  } finally {
    await journal.close();
  }
};
const damage = (error: unknown) => {
  assert.ok(error instanceof Fault);
  assert.equal(error.retry, "person");
  assert.match(error.cause_, /damaged at line/);
  return true;
};

describe("journal", () => {
  test("gives back what was appended, in this process and the next, only for its owner", async () => {
    const journal = await openJournal(state);
    assert.deepEqual(await journal.read(id), []);
    for (const entry of entries) await journal.append(id, entry);
    assert.deepEqual(await journal.read(id), entries);
    assert.deepEqual(await journal.list(), [id]);
    await journal.close();
    assert.deepEqual(await reread(), entries);
    assert.equal((await stat(file())).mode & 0o777, 0o600);
    assert.equal((await stat(join(state, "journal"))).mode & 0o777, 0o700);
  });

  test("appends made at once are kept in their order", async () => {
    const journal = await openJournal(state);
    const many = Array.from({ length: 50 }, (_, index) => ({
      ...(entries[1] as Extract<JournalEntry, { type: "milestone" }>),
      data: { index },
    }));
    await Promise.all(many.map((entry) => journal.append(id, entry)));
    assert.deepEqual(await journal.read(id), many);
    await journal.close();
  });

  test("a line torn at any byte is dropped, the ones before it stay, and the next one is sound", async () => {
    await write(...entries.slice(0, 2));
    const kept = (await stat(file())).size;
    await write(...entries.slice(2, 3));
    const whole = await readFile(file());
    for (let size = kept; size < whole.byteLength; size += 1) {
      await writeFile(file(), whole.subarray(0, size));
      assert.deepEqual(await reread(), entries.slice(0, 2), `cut at ${size}`);
      await write(...entries.slice(3));
      assert.deepEqual(await reread(), [...entries.slice(0, 2), ...entries.slice(3)], `appended after ${size}`);
    }
  });

  test("a last line that the file system filled with zeros is torn", async () => {
    await write(...entries.slice(0, 3));
    const whole = await readFile(file());
    const start = whole.lastIndexOf(0x0a, whole.byteLength - 2) + 1;
    whole.fill(0, start + 30, whole.byteLength - 1);
    await writeFile(file(), whole);
    assert.deepEqual(await reread(), entries.slice(0, 2));
  });

  test("one changed byte anywhere is damage, said with the line and never passed over", async () => {
    await write(...entries);
    const whole = await readFile(file());
    for (let at = 0; at < whole.byteLength - 1; at += 1) {
      const copy = Buffer.from(whole);
      copy.writeUInt8(copy.readUInt8(at) ^ 0x01, at);
      await writeFile(file(), copy);
      await assert.rejects(reread(), damage, `byte ${at}`);
      await assert.rejects(write(...entries.slice(0, 1)), damage, `append after damage at ${at}`);
    }
  });

  test("a line missing its newline in the middle is damage", async () => {
    await write(...entries);
    const whole = await readFile(file());
    const first = whole.indexOf(0x0a);
    await writeFile(file(), Buffer.concat([whole.subarray(0, first), whole.subarray(first + 1)]));
    await assert.rejects(reread(), damage);
  });

  test("a file cut to nothing is an empty journal", async () => {
    await write(...entries);
    await truncate(file(), 0);
    assert.deepEqual(await reread(), []);
  });
});

describe("forgetting", () => {
  test("drops the journal and keeps the epoch, also after a restart", async () => {
    await write(...entries);
    const journal = await openJournal(state);
    await journal.append(id, { ...(entries[3] as JournalEntry) });
    assert.equal(journal.forgottenEpoch(id), null);
    await journal.forget(id, 3);
    assert.equal(journal.forgottenEpoch(id), 3);
    assert.deepEqual(await journal.list(), []);
    assert.deepEqual(await journal.read(id), []);
    await assert.rejects(journal.append(id, entries[0] as JournalEntry), /was forgotten/);
    await journal.forget(id, 2);
    assert.equal(journal.forgottenEpoch(id), 3, "an epoch only rises (I5)");
    await journal.close();
    const next = await openJournal(state);
    assert.equal(next.forgottenEpoch(id), 3);
    assert.equal(next.forgottenEpoch(other), null);
    await next.close();
  });

  test("a crash between tombstone and removal is finished at the next start", async () => {
    await write(...entries);
    const journal = await openJournal(state);
    const bytes = await readFile(file());
    await journal.forget(id, 1);
    await journal.close();
    await writeFile(file(), bytes);
    const next = await openJournal(state);
    assert.deepEqual(await next.list(), []);
    assert.deepEqual(await readdir(join(state, "journal")), []);
    await next.close();
  });

  test("the list is bounded: the oldest go first", async () => {
    const ids = Array.from({ length: tombstonesMax }, (_, index) => `m_${String(index).padStart(26, "0")}`);
    await write(...entries.slice(0, 1));
    await writeFile(
      join(state, "tombstones.json"),
      JSON.stringify({ version: 1, forgotten: ids.map((each) => [each, 1]) }),
    );
    const journal = await openJournal(state);
    await journal.forget(id, 1);
    assert.equal(journal.forgottenEpoch(id), 1);
    assert.equal(journal.forgottenEpoch(ids[0] ?? ""), null);
    assert.equal(journal.forgottenEpoch(ids[1] ?? ""), 1);
    await journal.close();
  });

  test("a damaged list is said, not taken for an empty one", async () => {
    await write(...entries.slice(0, 1));
    await writeFile(join(state, "tombstones.json"), '{"version":1,"forgotten":[["m_');
    await assert.rejects(openJournal(state), (error) => error instanceof Fault && error.retry === "person");
  });
});
