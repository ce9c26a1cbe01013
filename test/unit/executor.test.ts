/** The executor over a real journal on disk and invented steps: order, repetition, fencing. */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import type { Command, CommandOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { StepFault } from "#shim/step-fault";
import { bodies, bundle, id, make, other, Process, processes, tree } from "#test/fake/shim-process";

const gate = () => Promise.withResolvers<void>();

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

describe("executor", () => {
  test("intent before, report after, both in the journal", async () => {
    let seen: string[] = [];
    const process = await Process.start(state, {
      export: async (work) => {
        seen = (await process.entries()).map((entry) => entry.type);
        assert.equal(work.resumed, false);
        assert.deepEqual(work.history, []);
        await work.milestone("listed", { snapshots: 5 });
        return bodies.export;
      },
    });
    await process.run(make("export"));
    assert.deepEqual(seen, ["intent"]);
    assert.deepEqual(
      (await process.entries()).map((entry) => entry.type),
      ["intent", "milestone", "report"],
    );
    assert.deepEqual(process.codes(), ["ok"]);
  });

  test("a repeated command is executed once and answered from the journal, also by the next process", async () => {
    const first = await Process.start(state);
    await first.run(make("export"), make("export"));
    await first.run(make("export"));
    assert.deepEqual(first.begun, [`${id}:export:1`]);
    assert.equal(first.reports().length, 2);
    assert.deepEqual(first.reports()[1], first.reports()[0]);
    await first.crash();
    const second = await Process.start(state);
    await second.run(make("export"));
    assert.deepEqual(second.begun, []);
    assert.deepEqual(second.reports(), [first.reports()[0]]);
  });

  test("a repeated command that still runs is neither begun again nor answered", async () => {
    const { promise, resolve } = gate();
    const process = await Process.start(state, { perform: () => promise.then(() => bodies.perform) });
    process.executor.command(make("perform"));
    process.executor.command(make("perform"));
    assert.deepEqual(process.reports(), []);
    resolve();
    await process.executor.idle();
    assert.equal(process.begun.length, 1);
    assert.equal(process.reports().length, 1);
  });

  test("one id with another body is refused and the first one's report stands (I6)", async () => {
    const process = await Process.start(state);
    await process.run(make("stage"));
    await process.run({ ...(make("stage") as CommandOf<"stage">), bundle: { ...bundle, snapshots: 7 } });
    assert.deepEqual(process.codes(), ["ok", "command.conflict"]);
    assert.equal(process.begun.length, 1);
    assert.equal((await process.entries()).length, 2);
  });

  test("the same body with its fields in another order is the same body", async () => {
    const process = await Process.start(state);
    const command = make("stage") as CommandOf<"stage">;
    await process.run(command);
    await process.run(Object.fromEntries(Object.entries(command).reverse()) as unknown as Command);
    assert.deepEqual(process.codes(), ["ok", "ok"]);
    assert.equal(process.begun.length, 1);
  });

  test("a lower epoch is refused, also after a restart (I5)", async () => {
    const first = await Process.start(state);
    await first.run(make("restore", { epoch: 3 }), make("export", { epoch: 2 }));
    assert.deepEqual(first.begun, [`${id}:restore:1`]);
    assert.deepEqual(first.codes().sort(), ["epoch.stale", "ok"]);
    await first.crash();
    const second = await Process.start(state);
    await second.run(make("begin", { epoch: 2 }));
    assert.deepEqual(second.begun, []);
    assert.deepEqual(second.codes(), ["epoch.stale"]);
  });

  test("a queued command is refused when a higher epoch came while it waited", async () => {
    const { promise, resolve } = gate();
    const process = await Process.start(state, { export: () => promise.then(() => bodies.export) });
    process.executor.command(make("export", { epoch: 1 }));
    process.executor.command(make("begin", { epoch: 1 }));
    while (process.begun.length === 0) await new Promise((done) => setImmediate(done));
    process.executor.command(make("restore", { epoch: 2 }));
    resolve();
    await process.executor.idle();
    assert.deepEqual(process.begun, [`${id}:export:1`, `${id}:restore:1`]);
    assert.deepEqual(process.codes(), ["ok", "epoch.stale", "ok"]);
  });

  test("one by one for a migration, beside each other for two, and an abort beside its perform", async () => {
    const { promise, resolve } = gate();
    const process = await Process.start(state, { perform: () => promise.then(() => bodies.perform) });
    process.executor.command(make("perform"));
    process.executor.command(make("confirm"));
    process.executor.command(make("begin", { migration: other }));
    process.executor.command(make("abort"));
    while (process.reports().length < 2) await new Promise((done) => setImmediate(done));
    assert.deepEqual([...process.begun].sort(), [`${id}:abort:1`, `${id}:perform:1`, `${other}:begin:1`]);
    resolve();
    await process.executor.idle();
    assert.equal(process.begun.at(-1), `${id}:confirm:1`);
  });

  test("a running step sees the milestones that another one writes beside it, and those from before", async () => {
    const seen: boolean[] = [];
    const asked = gate();
    const process = await Process.start(state, {
      begin: async (work) => {
        await work.milestone("earlier");
        return bodies.begin;
      },
      perform: async (work) => {
        seen.push(work.happened("earlier"), work.happened("abortAsked"));
        await asked.promise;
        seen.push(work.happened("abortAsked"));
        return bodies.perform;
      },
      abort: async (work) => {
        await work.milestone("abortAsked");
        asked.resolve();
        return bodies.abort;
      },
    });
    process.executor.command(make("begin"));
    process.executor.command(make("perform"));
    while (seen.length === 0) await new Promise((done) => setImmediate(done));
    await process.run(make("abort"));
    assert.deepEqual(seen, [true, false, true]);
  });

  test("what a step throws: a fault as it is, a perform's with the source's state, anything else without its text", async () => {
    const fault = { code: "perform.failed", cause: "x", action: "y", retry: "safe" } as const;
    const process = await Process.start(state, {
      export: async () => {
        throw new Fault({ ...fault, code: "bundle.unreachable" });
      },
      perform: async () => {
        throw new StepFault(fault, "paused");
      },
      confirm: async () => {
        throw new TypeError("passwd=hunter2");
      },
    });
    await process.run(make("export"), make("perform"), make("confirm"));
    const [exported, performed, confirmed] = process.reports().map((report) => report.result);
    assert.deepEqual(exported, { ok: false, fault: { ...fault, code: "bundle.unreachable" } });
    assert.deepEqual(performed, { ok: false, fault, sourceState: "paused" });
    assert.ok(confirmed?.ok === false && confirmed.fault.code === "internal" && confirmed.fault.retry === "person");
    assert.doesNotMatch(JSON.stringify([confirmed, await process.entries()]), /hunter2/);
  });

  test("a report that cannot travel becomes one that says so", async () => {
    const process = await Process.start(state, {
      stage: async () => ({ kind: "stage", tree: { ...tree, snapshots: 99_999 } }),
    });
    await process.run(make("stage"));
    assert.deepEqual(process.codes(), ["message.malformed"]);
  });

  test("an intent that cannot be journalled is reported as not begun, and that id never is (I6)", async () => {
    const process = await Process.start(state);
    process.diskFull = true;
    await process.run(make("perform"));
    assert.deepEqual(process.begun, []);
    const [report] = process.reports();
    assert.ok(report?.result.ok === false);
    assert.match(report.result.fault.cause, /journal/);
    assert.equal(report.result.fault.retry, "safe");
    process.diskFull = false;
    // Delivered again, with the disk well again: the functions may have turned round on the first answer.
    await process.run(make("perform"));
    assert.deepEqual(process.begun, []);
    assert.deepEqual(process.reports(), [report, report]);
    await process.run(make("perform", { attempt: 2 }));
    assert.deepEqual(process.begun, [`${id}:perform:2`]);
    assert.equal(process.codes().at(-1), "ok");
  });
});
