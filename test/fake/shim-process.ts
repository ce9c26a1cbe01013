/**
 * Shim processes for tests of the executor: a real journal on disk, invented steps and libvirt connections, and a crash that
 * cuts off whatever runs.
 */
import type { Command, CommandKind, Report, ReportBody } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { UpMessage } from "#protocol/message";
import { bundleAccess } from "#shim/bundle-files";
import { Executor } from "#shim/executor";
import { type FileJournal, openJournal } from "#shim/journal";
import { MigrationConnections } from "#shim/migration-connections";
import type { Journal, Payloads, Steps, Work } from "#shim/ports";
import { SilentPeers, sealOf } from "./treaty.ts";

export const id = "m_01JD0000000000000000000000";
export const other = "m_01JD0000000000000000000001";
const sha256 = "a".repeat(64);
export const bundle = {
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
export const receipt = { outcome: "started", evidence: "finish", at: "2026-11-22T10:00:00.000Z" } as const;
export const tree = { snapshots: 0, checkpoints: 0, treeSha256: sha256 };

const head = (kind: CommandKind, migrationId: string, epoch: number, attempt: number) => ({
  id: `${migrationId}:${kind}:${attempt}`,
  migrationId,
  epoch,
  domain: { uuid: "c7a5fdbd-edaf-9455-926a-d65c16db1809", name: "web" },
});
/** A command of that kind; everything that does not matter here is the same in all. */
export function make(kind: CommandKind, { migration = id, epoch = 1, attempt = 1 } = {}): Command {
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
      return { ...start, kind, bundle: null, cookie: blob, uri: null, options, flags: 0, ticket: null };
    case "finish":
      return { ...start, kind, cookie: null, cancelled: false, options, flags: 0 };
    case "confirm":
      return { ...start, kind, cookie: null, receipt, ticket: null, options, flags: 0 };
    case "settle":
      return { ...start, kind, bundle: null, autostart: false, offline: false };
    case "restore":
      return { ...start, kind, bundle: null, autostart: false };
    case "unstage":
      return { ...start, kind, bundle: null };
    case "inspectSource":
    case "export":
    case "abort":
      return { ...start, kind };
  }
}

export const bodies: { [K in CommandKind]: Extract<ReportBody, { kind: K }> } = {
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
  prepare: { kind: "prepare", cookie: blob, uri: null, peer: null },
  perform: {
    kind: "perform",
    cookie: blob,
    statistics: { downtimeMs: null, transferredBytes: null, totalMs: null },
    ended: null,
  },
  abort: { kind: "abort", aborted: true },
  finish: { kind: "finish", receipt, cookie: null, fault: null },
  confirm: { kind: "confirm", source: "gone", receipt },
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
export class Process {
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
        ...bundleAccess,
        path: (migration) => `/nowhere/${migration}`,
        remove: async (migration) => {
          this.removed.push(migration);
        },
      },
      peers: new SilentPeers(),
      seal: sealOf("source"),
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
    processes.push(process);
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

/** Every process made here; a test file ends them when it ends. */
export const processes: Process[] = [];
