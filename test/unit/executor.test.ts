/** The executor over a real journal on disk and invented steps: order, repetition, fencing, crashes, forgetting. */
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import type { Command, CommandKind, CommandOf, Report, ReportBody } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { UpMessage } from "#protocol/message";
import { Executor } from "#shim/executor";
import { type FileJournal, openJournal } from "#shim/journal";
import { MigrationConnections } from "#shim/migration-connections";
import type { Journal, Payloads, Steps, Work } from "#shim/ports";
import { StepFault } from "#shim/step-fault";

const id = "m_01JD0000000000000000000000";
const other = "m_01JD0000000000000000000001";
const sha256 = "a".repeat(64);
const bundle = {
  key: "bundles/x",
  sha256,
  bytes: 1,
  plainSha256: sha256,
  plainBytes: 1,
  snapshots: 0,
  checkpoints: 0,
  treeSha256: sha256,
};
const blob = { in: "inline", base64: "", sha256, bytes: 0 } as const;
const options = { offline: false, unsafe: false, autoConverge: false, bandwidthMiBps: null };
const receipt = { outcome: "started", evidence: "finish", at: "2026-11-22T10:00:00.000Z" } as const;
const tree = { snapshots: 0, checkpoints: 0, treeSha256: sha256 };

const head = (kind: CommandKind, migrationId: string, epoch: number, attempt: number) => ({
  id: `${migrationId}:${kind}:${attempt}`,
  migrationId,
  epoch,
  domain: { uuid: "c7a5fdbd-edaf-9455-926a-d65c16db1809", name: "web" },
});
function make(kind: CommandKind, { migration = id, epoch = 1, attempt = 1 } = {}): Command {
  const start = head(kind, migration, epoch, attempt);
  switch (kind) {
    case "inspectDestination":
      return { ...start, kind, facts: blob };
    case "stage":
    case "restoreBundle":
      return { ...start, kind, bundle };
    case "begin":
      return { ...start, kind, bundle: null, options };
    case "prepare":
      return { ...start, kind, cookie: blob, xml: blob, options, flags: 0 };
    case "perform":
      return { ...start, kind, bundle: null, cookie: blob, uri: null, options, flags: 0 };
    case "finish":
      return { ...start, kind, cookie: null, cancelled: false, options, flags: 0 };
    case "confirm":
      return { ...start, kind, cookie: null, receipt, options, flags: 0 };
    case "settle":
      return { ...start, kind, bundle: null, autostart: false, offline: false };
    case "restore":
    case "unstage":
      return { ...start, kind, bundle: null };
    case "inspectSource":
    case "export":
    case "abort":
      return { ...start, kind };
  }
}

const bodies: { [K in CommandKind]: Extract<ReportBody, { kind: K }> } = {
  inspectSource: {
    kind: "inspectSource",
    facts: blob,
    findings: [],
    carries: { snapshots: 0, checkpoints: 0 },
    domain: { name: "web", state: "running", memoryKiB: 1, vcpus: 1, autostart: false },
  },
  inspectDestination: { kind: "inspectDestination", findings: [], storageProven: true },
  export: { kind: "export", bundle },
  stage: { kind: "stage", tree },
  begin: { kind: "begin", cookie: blob, xml: blob, flags: 1, strippedMs: 0 },
  prepare: { kind: "prepare", cookie: blob, uri: null },
  perform: {
    kind: "perform",
    cookie: blob,
    statistics: { downtimeMs: null, transferredBytes: null, totalMs: null },
  },
  abort: { kind: "abort", aborted: true },
  finish: { kind: "finish", receipt, cookie: null, fault: null },
  confirm: { kind: "confirm", source: "gone" },
  settle: { kind: "settle", tree, state: "running", autostart: false },
  restore: { kind: "restore", tree, state: "running" },
  unstage: { kind: "unstage", removed: true },
  restoreBundle: { kind: "restoreBundle", tree },
};

/** Stands for a libvirt connection as far as the executor's parts look at it. */
class FakeLibvirt {
  isOpen = true;
  readonly #end = Promise.withResolvers<{ reason: string; message: string }>();
  readonly closed = this.#end.promise;
  end(reason: "local" | "peer"): void {
    this.isOpen = false;
    this.#end.resolve({ reason, message: `ended by ${reason}` });
  }
  async close(): Promise<void> {
    this.end("local");
  }
}

/** One shim process over a state directory. `crash` leaves it as kill -9 would: nothing it does later is written. */
class Process {
  readonly executor: Executor;
  /** The journal as the executor sees it. */
  readonly guarded: Journal;
  readonly sent: UpMessage[] = [];
  readonly begun: string[] = [];
  readonly opened: FakeLibvirt[] = [];
  readonly removed: string[] = [];
  online = true;
  diskFull = false;
  readonly #journal: FileJournal;
  #crashed = false;

  private constructor(journal: FileJournal, steps: Partial<Steps>) {
    this.#journal = journal;
    this.guarded = {
      append: (migration, entry) => {
        if (this.#crashed) return new Promise(() => {});
        if (this.diskFull)
          return Promise.reject(new Fault({ code: "internal", cause: "full", action: "df", retry: "safe" }));
        return journal.append(migration, entry);
      },
      read: (migration) => journal.read(migration),
      list: () => journal.list(),
      forget: (migration, epoch) => (this.#crashed ? new Promise(() => {}) : journal.forget(migration, epoch)),
      forgottenEpoch: (migration) => journal.forgottenEpoch(migration),
    };
    const connections = new MigrationConnections(
      async () => {
        const libvirt = new FakeLibvirt();
        this.opened.push(libvirt);
        return libvirt as never;
      },
      (migration, cause) => this.executor.connectionLost(migration, cause),
    );
    const table = Object.fromEntries(
      Object.entries(bodies).map(([kind, body]) => [
        kind,
        async (work: Work<CommandKind>) => {
          this.begun.push(work.command.id);
          const step = steps[kind as CommandKind] as ((work: Work<CommandKind>) => Promise<ReportBody>) | undefined;
          return step === undefined ? body : step(work);
        },
      ]),
    );
    this.executor = new Executor({
      journal: this.guarded,
      steps: table as never as Steps,
      connections,
      inventory: async () => new FakeLibvirt() as never,
      payloadsFor: () => ({}) as Payloads,
      bundles: {
        path: (migration) => `/nowhere/${migration}`,
        remove: async (migration) => {
          this.removed.push(migration);
        },
      },
      migrationAddress: null,
      allowPaths: [],
      send: (message) => {
        if (this.online && !this.#crashed) this.sent.push(message);
        return this.online && !this.#crashed;
      },
      clock: {
        now: () => "2026-11-22T10:00:00.000Z",
        monotonicMs: () => 0,
        sleep: async () => {},
        random: () => 0,
      },
      log: { write() {} },
    });
  }

  static prepare(journal: FileJournal, steps: Partial<Steps>): Process {
    const process = new Process(journal, steps);
    started.push(process);
    return process;
  }
  static async start(state: string, steps: Partial<Steps> = {}): Promise<Process> {
    const process = Process.prepare(await openJournal(state), steps);
    await process.executor.start();
    return process;
  }
  async crash(): Promise<void> {
    this.#crashed = true;
    await this.#journal.close();
  }
  async run(...commands: Command[]): Promise<void> {
    for (const command of commands) this.executor.command(command);
    await this.executor.idle();
  }
  reports(commandId?: string): Report[] {
    return this.sent.flatMap((message) =>
      message.type === "report" && (commandId === undefined || message.report.commandId === commandId)
        ? [message.report]
        : [],
    );
  }
  codes(): string[] {
    return this.reports().map(({ result }) => (result.ok ? "ok" : result.fault.code));
  }
  entries(migration = id) {
    return this.#journal.read(migration);
  }
}

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
/** Journals to close: what a test leaves running is cut off as by a crash. */
const started: Process[] = [];
after(async () => {
  for (const process of started) await process.crash();
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

  test("an intent that cannot be journalled begins nothing, and the command may come again", async () => {
    const process = await Process.start(state);
    process.diskFull = true;
    await process.run(make("export"));
    assert.deepEqual(process.begun, []);
    assert.deepEqual(process.reports(), []);
    process.diskFull = false;
    await process.run(make("export"));
    assert.deepEqual(process.codes(), ["ok"]);
  });
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
