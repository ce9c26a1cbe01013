/** The executor after crashes and losses: what is taken up, what is repeated, what is forgotten, which connection is whose. */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import type { CommandKind, CommandOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { openJournal } from "#shim/journal";
import type { Steps, Work } from "#shim/ports";
import { bodies, id, make, other, Process, processes, receipt } from "#test/fake/shim-process";

let root: string;
let state: string;
let round = 0;
before(async () => {
  root = await mkdtemp(join(tmpdir(), "vmferry-executor-"));
});
beforeEach(() => {
  round += 1;
  state = join(root, `state${round}`);
});
after(async () => {
  for (const process of processes) await process.crash();
  await rm(root, { recursive: true, force: true });
});

describe("crash and repetition", () => {
  test("a step cut off between intent and report runs again as resumed, with its milestones", async () => {
    const first = await Process.start(state, {
      begin: async (work) => {
        await work.milestone("stripping", { snapshots: 5 });
        return new Promise<never>(() => {});
      },
    });
    first.executor.command(make("begin"));
    while ((await first.entries()).length < 2) await new Promise((done) => setImmediate(done));
    await first.crash();
    const seen: { resumed: boolean; names: string[] }[] = [];
    const second = await Process.start(state, {
      begin: async (work) => {
        seen.push({ resumed: work.resumed, names: work.history.map((entry) => entry.type) });
        return bodies.begin;
      },
    });
    await second.executor.idle();
    assert.deepEqual(seen, [{ resumed: true, names: ["intent", "milestone"] }]);
    assert.deepEqual(second.codes(), ["ok"]);
    assert.deepEqual(
      (await second.entries()).map((entry) => entry.type),
      ["intent", "milestone", "report"],
    );
  });

  test("a bundle task that is taken up waits for a migration's step on the same domain's records, and for no other's", async () => {
    const task = "b_01JD0000000000000000000000";
    const cut: Partial<Steps> = {
      begin: () => new Promise<never>(() => {}),
      restoreBundle: () => new Promise<never>(() => {}),
    };
    const first = await Process.start(state, cut);
    first.executor.command(make("restoreBundle", { migration: task }));
    while ((await first.entries(task)).length < 1) await new Promise((done) => setImmediate(done));
    await first.crash();

    // The migration's journal lies beside it, its Begin cut off as well.
    const second = await Process.start(join(state, "apart"), cut);
    second.executor.command(make("begin"));
    while ((await second.entries()).length < 1) await new Promise((done) => setImmediate(done));
    const begun = await second.entries();
    await second.crash();
    const journal = await openJournal(state);
    for (const entry of begun) await journal.append(id, entry);
    await journal.close();

    let inside = 0;
    let most = 0;
    const alone = async <B>(body: B): Promise<B> => {
      inside += 1;
      most = Math.max(most, inside);
      for (let turn = 0; turn < 20; turn += 1) await new Promise((done) => setImmediate(done));
      inside -= 1;
      return body;
    };
    const third = await Process.start(state, {
      begin: () => alone(bodies.begin),
      restoreBundle: () => alone(bodies.restoreBundle),
    });
    await third.executor.idle();
    assert.deepEqual([...third.begun].sort(), [`${task}:restoreBundle:1`, `${id}:begin:1`].sort());
    assert.equal(most, 1);

    const elsewhere = { uuid: "22222222-2222-3333-4444-555555555555", name: "db" };
    const beside = Promise.withResolvers<void>();
    const fourth = await Process.start(join(state, "fourth"), {
      begin: () => beside.promise.then(() => bodies.begin),
    });
    fourth.executor.command(make("begin"));
    fourth.executor.command({ ...make("restoreBundle", { migration: task }), domain: elsewhere });
    // It ends while the other one still holds its own domain.
    while (fourth.begun.length < 2 || fourth.reports().length < 1) await new Promise((done) => setImmediate(done));
    assert.deepEqual(
      fourth.reports().map(({ commandId }) => commandId),
      [`${task}:restoreBundle:1`],
    );
    beside.resolve();
    await fourth.executor.idle();
  });

  test("crash at every journal entry of a whole part: every step ends with one report and nothing is lost", async () => {
    const part = (["begin", "perform", "confirm"] as const).map((kind) => make(kind));
    for (let crashAfter = 1; crashAfter <= 6; crashAfter += 1) {
      const directory = `${state}-${crashAfter}`;
      const first = await Process.start(directory);
      let written = 0;
      const journal = first.guarded;
      const append = journal.append;
      journal.append = (migration, entry) => {
        written += 1;
        return written > crashAfter ? new Promise(() => {}) : append(migration, entry);
      };
      for (const command of part) first.executor.command(command);
      while (written <= crashAfter && written < 6) await new Promise((done) => setImmediate(done));
      await first.crash();
      const second = await Process.start(directory);
      await second.run(...part);
      for (const command of part) {
        const entries = await second.entries();
        const reports = entries.filter((entry) => entry.type === "report" && entry.report.commandId === command.id);
        assert.equal(reports.length, 1, `${command.kind} after a crash at entry ${crashAfter}`);
      }
    }
  });

  test("a report is repeated until acknowledged, through lost sessions and restarts", async () => {
    const first = await Process.start(state);
    first.online = false;
    await first.run(make("export"));
    assert.deepEqual(first.reports(), []);
    first.online = true;
    first.executor.resend();
    first.executor.resend();
    assert.equal(first.reports().length, 2);
    await first.crash();
    const second = await Process.start(state);
    second.executor.resend();
    assert.equal(second.reports().length, 1);
    await second.executor.acknowledged(`${id}:export:1`);
    await second.executor.acknowledged(`${id}:export:1`);
    second.executor.resend();
    assert.equal(second.reports().length, 1);
    assert.equal((await second.entries()).filter((entry) => entry.type === "acknowledged").length, 1);
    await second.crash();
    const third = await Process.start(state);
    third.executor.resend();
    assert.deepEqual(third.reports(), []);
  });

  test("an inspection is answered and repeated like any command, but leaves no journal", async () => {
    const process = await Process.start(state);
    await process.run(make("inspectSource"));
    await process.run(make("inspectSource"));
    assert.deepEqual(process.begun, [`${id}:inspectSource:1`]);
    assert.equal(process.reports().length, 2);
    process.executor.resend();
    assert.equal(process.reports().length, 3);
    await process.executor.acknowledged(`${id}:inspectSource:1`);
    process.executor.resend();
    assert.equal(process.reports().length, 3);
    assert.deepEqual(await process.entries(), []);
    assert.deepEqual(process.opened, []);
  });
});

describe("the end of a migration", () => {
  const finals: [CommandKind, string][] = [
    ["settle", id],
    ["restore", id],
    ["unstage", id],
    ["confirm", id],
    ["restoreBundle", `b${id.slice(1)}`],
    ["export", `b${id.slice(1)}`],
  ];
  for (const [kind, migration] of finals)
    test(`${kind} of ${migration.slice(0, 2)} acknowledged: connection closed, bundle removed, journal forgotten, duplicates refused`, async () => {
      const process = await Process.start(state, {
        [kind]: async (work: Work) => {
          await work.connection();
          return bodies[kind];
        },
      });
      const command = make(kind, { migration });
      await process.run(command);
      assert.equal(process.opened[0]?.isOpen, true);
      await process.executor.acknowledged(command.id);
      await process.executor.idle();
      assert.equal(process.opened[0]?.isOpen, false);
      assert.deepEqual(process.removed, [migration]);
      assert.deepEqual(await process.entries(migration), []);
      await process.run(command, make("begin", { migration, epoch: 9 }));
      assert.equal(process.begun.length, 1);
      assert.deepEqual(process.codes(), ["ok", "epoch.stale", "epoch.stale"]);
      await process.crash();
      const next = await Process.start(state);
      await next.run(command);
      assert.deepEqual(next.begun, []);
      assert.deepEqual(next.codes(), ["epoch.stale"]);
    });

  test("a failed final command does not end it: the functions issue it again", async () => {
    const process = await Process.start(state, {
      settle: async (work) => {
        if (work.command.id.endsWith(":1"))
          throw new Fault({ code: "settle.failed", cause: "x", action: "y", retry: "safe" });
        return bodies.settle;
      },
    });
    await process.run(make("settle"));
    await process.executor.acknowledged(`${id}:settle:1`);
    await process.run(make("settle", { attempt: 2 }));
    assert.deepEqual(process.codes(), ["settle.failed", "ok"]);
  });

  test("a confirm that took the domain back does not end it: restore follows", async () => {
    const process = await Process.start(state);
    const confirm = {
      ...(make("confirm") as CommandOf<"confirm">),
      receipt: { ...receipt, outcome: "destroyed" as const },
    };
    await process.run(confirm);
    await process.executor.acknowledged(confirm.id);
    await process.run(make("restore"));
    assert.deepEqual(process.codes(), ["ok", "ok"]);
  });

  test("a crash after the acknowledgement: the next start forgets", async () => {
    const first = await Process.start(state);
    await first.run(make("settle"));
    first.guarded.forget = () => new Promise(() => {});
    await first.executor.acknowledged(`${id}:settle:1`);
    await new Promise((done) => setImmediate(done));
    await first.crash();
    const second = await Process.start(state);
    await second.executor.idle();
    assert.deepEqual(second.removed, [id]);
    assert.deepEqual(await second.entries(), []);
  });

  test("a draining shim begins no migration and carries on those under way", async () => {
    const process = await Process.start(state);
    await process.run(make("begin"));
    assert.deepEqual(process.executor.underWay(), [id]);
    process.executor.drain();
    await process.run(make("begin", { migration: other }), make("confirm"));
    assert.deepEqual(process.begun, [`${id}:begin:1`, `${id}:confirm:1`]);
    await process.executor.acknowledged(`${id}:confirm:1`);
    assert.deepEqual(process.executor.underWay(), []);
  });
});

describe("the migration's connection", () => {
  const connecting = (log: boolean[]): Partial<Steps> =>
    Object.fromEntries(
      Object.entries(bodies).map(([kind, body]) => [
        kind,
        async (work: Work) => {
          log.push((await work.connection()).continuous);
          return body;
        },
      ]),
    );

  test("is one from the first command to the last", async () => {
    const continuous: boolean[] = [];
    const process = await Process.start(state, connecting(continuous));
    await process.run(make("begin"), make("perform"), make("confirm"));
    assert.equal(process.opened.length, 1);
    assert.deepEqual(continuous, [true, true, true]);
  });

  test("lost after Prepare: a new one, and Finish is told that it is not the same; the functions get a hint", async () => {
    const continuous: boolean[] = [];
    const process = await Process.start(state, connecting(continuous));
    await process.run(make("stage"), make("prepare"));
    process.opened[0]?.end("peer");
    await new Promise((done) => setImmediate(done));
    assert.deepEqual(
      process.sent.filter((message) => message.type === "lost"),
      [{ type: "lost", migrationId: id, epoch: 1, cause: "ended by peer" }],
    );
    await process.run(make("finish"), make("finish", { attempt: 2 }));
    assert.equal(process.opened.length, 2);
    assert.deepEqual(continuous, [true, true, false, false]);
  });

  test("lost before anything was bound to it: nothing is lost", async () => {
    const continuous: boolean[] = [];
    const process = await Process.start(state, connecting(continuous));
    await process.run(make("stage"));
    process.opened[0]?.end("peer");
    await process.run(make("prepare"), make("finish"));
    assert.deepEqual(continuous, [true, true, true]);
    assert.deepEqual(
      process.sent.filter((message) => message.type === "lost"),
      [],
    );
  });

  test("after a restart what was bound is gone; the hint waits for a session", async () => {
    const first = await Process.start(state, connecting([]));
    await first.run(make("prepare"));
    await first.crash();
    const continuous: boolean[] = [];
    const second = Process.prepare(await openJournal(state), connecting(continuous));
    second.online = false;
    await second.executor.start();
    assert.equal(second.sent.length, 0);
    second.online = true;
    second.executor.resend();
    second.executor.resend();
    assert.equal(second.sent.filter((message) => message.type === "lost").length, 1);
    await second.run(make("finish"));
    assert.deepEqual(continuous, [false]);
  });

  test("a resumed Prepare is told that its earlier connection is gone", async () => {
    const first = await Process.start(state, {
      prepare: async (work) => {
        assert.equal((await work.connection()).continuous, true);
        return new Promise<never>(() => {});
      },
    });
    first.executor.command(make("prepare"));
    while ((await first.entries()).length < 2) await new Promise((done) => setImmediate(done));
    await first.crash();
    const continuous: boolean[] = [];
    const second = await Process.start(state, connecting(continuous));
    await second.executor.idle();
    assert.deepEqual(continuous, [false]);
  });

  test("nobody but the end of the migration closes it", async () => {
    const process = await Process.start(state, connecting([]));
    await process.run(make("prepare"));
    process.online = false;
    process.executor.resend();
    await process.executor.acknowledged(`${id}:prepare:1`);
    assert.equal(process.opened[0]?.isOpen, true);
  });
});

describe("a damaged journal", () => {
  test("is said for every command of its migration and stops no other", async () => {
    const first = await Process.start(state);
    await first.run(make("begin"), make("begin", { migration: other }));
    await first.crash();
    const path = join(state, "journal", `${id}.jsonl`);
    const bytes = await readFile(path);
    bytes.writeUInt8(bytes.readUInt8(40) ^ 1, 40);
    await writeFile(path, bytes);
    const second = await Process.start(state);
    await second.run(make("perform"), make("perform", { migration: other }));
    assert.deepEqual(second.begun, [`${other}:perform:1`]);
    const [refused] = second.reports(`${id}:perform:1`);
    assert.ok(refused?.result.ok === false);
    assert.equal(refused.result.fault.retry, "person");
    assert.match(refused.result.fault.cause, /damaged at line 1/);
    assert.deepEqual(await readFile(path), bytes, "the evidence is kept");
  });
});
