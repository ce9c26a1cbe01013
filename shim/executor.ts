/**
 * Executes commands: one by one for each migration, different migrations beside each other, everything through the
 * journal. It owns order, repetition and fencing; the steps own libvirt.
 *
 * - I5: a command of a lower epoch than one acted on is refused (`epoch.stale`), and so is any of a forgotten migration.
 * - I6: the intent is on disk before a step begins and the report before it is sent. Where the disk refuses the intent, the
 *   command has failed for good and is reported so: nobody waits for what does not run. A repeated id is answered from the
 *   journal or, while it runs, not at all; the same id with another body is refused (`command.conflict`).
 * - A step that was cut off by a crash runs again with `resumed`, and must look before it acts.
 * - A report is kept and repeated until it is acknowledged. After the acknowledged report that ends this host's part, the
 *   migration's connection is closed, its bundle removed and its journal forgotten (I4).
 */
import type { LibvirtConnection } from "#libvirt/client";
import type { Command, CommandKind, Report } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { Progress, UpMessage } from "#protocol/message";
import { ticketKindOf } from "#protocol/ticket";
import { canonical } from "./canonical.ts";
import type { Clock } from "./clock.ts";
import { conflictFault, forgottenRefusal, refusal, runStep, sendable, staleFault, unbegunFault } from "./execution.ts";
import { armedMilestone } from "./hand-over.ts";
import { InspectionDesk } from "./inspection-desk.ts";
import type { Log } from "./log.ts";
import type { MigrationConnections } from "./migration-connections.ts";
import { connectedMilestone, endsMigration, MigrationRecord } from "./migration-record.ts";
import type { BundleAccess, Journal, JournalEntry, Payloads, Peers, Seal, Steps } from "./ports.ts";
import { Slots } from "./slots.ts";

/** Exports, stagings and inspections at once: each may hold some MiB of XML, and libvirtd has 20 workers for everybody.
 *  The steps around the blackout are never kept waiting by them. */
const heavyAtOnceMax = 4;
const heavyKinds: ReadonlySet<CommandKind> = new Set(["export", "stage", "restoreBundle"]);

/** Steps that write a domain's records: one at a time for a domain, whichever task or migration they are of. A bundle task
 *  that is taken up after a crash must not redefine what a migration's Begin has just stripped. */
const treeKinds: ReadonlySet<CommandKind> = new Set([
  "begin",
  "stage",
  "settle",
  "restore",
  "unstage",
  "restoreBundle",
]);

/** Pause between attempts to write a report to a disk that refuses it; nothing is sent that is not on disk. */
const journalRetryMs = 1_000;

/** Commands remembered whose intent the disk refused: more than the functions send in the hours a full disk may last. */
const refusedMax = 1_024;

/** Least time between two progress messages of one command: a progress bar needs no more. */
const progressEveryMs = 1_000;

export interface ExecutorParts {
  journal: Journal;
  steps: Steps;
  connections: MigrationConnections;
  inventory(): Promise<LibvirtConnection>;
  payloadsFor(command: Pick<Command, "id" | "migrationId">): Payloads;
  peers: Peers;
  seal: Seal;
  bundles: BundleAccess & { path(migrationId: string): string; remove(migrationId: string): Promise<void> };
  migrationAddress: string | null;
  allowPaths: readonly string[];
  /** False when no session took it. */
  send(message: UpMessage): boolean;
  clock: Clock;
  log: Log;
}

/** One migration on this host. */
interface Lane {
  record: MigrationRecord;
  /** Commands taken, by id, whether they have begun or not. */
  taken: Map<string, Command>;
  /** The highest epoch taken. */
  epoch: number;
  /** Ends when everything taken so far has ended. */
  tail: Promise<void>;
  running: Map<string, Command>;
  /** Set when the migration is being forgotten. */
  closed: boolean;
}

export class Executor {
  readonly #parts: ExecutorParts;
  readonly #lanes = new Map<string, Lane>();
  /** Migrations whose journal cannot be read: nothing is done for them until a person has looked. */
  readonly #damaged = new Map<string, Fault>();
  readonly #heavy = new Slots(heavyAtOnceMax);
  /** By domain: ends when the step that writes its records, and all that wait for it, have ended. */
  readonly #trees = new Map<string, Promise<void>>();
  readonly #inspections: InspectionDesk;
  /** Lost incoming domains that no session has been told of. */
  readonly #lost = new Map<string, Extract<UpMessage, { type: "lost" }>>();
  /** Ended migrations whose journal the disk would not let go of. */
  readonly #unforgotten = new Set<string>();
  /** Commands that were never begun because their intent could not be journalled, with what was answered. */
  readonly #refused = new Map<string, Report>();
  /** Who waits for the report of a command beside the functions. */
  readonly #awaited = new Map<string, Set<(report: Report) => void>>();
  #draining = false;
  #ended = false;

  constructor(parts: ExecutorParts) {
    this.#parts = parts;
    this.#inspections = new InspectionDesk(parts, this.#heavy);
  }

  /** Takes up what an earlier process left: unfinished steps run again, ended migrations are forgotten. */
  async start(): Promise<void> {
    const { journal, log } = this.#parts;
    for (const id of await journal.list()) {
      const entries = await this.#readThrough(id);
      if (entries === null) continue;
      const record = new MigrationRecord(id, entries);
      const lane = this.#lane(id, record);
      if (record.holdsIncoming) this.#noteLost(lane, "the shim was started again, which closed its libvirt connection");
      for (const command of record.unreported()) {
        lane.taken.set(command.id, command);
        log.write("info", "taking up a command that was cut off", { command: command.id });
        this.#enqueue(lane, command, true);
      }
      if (record.hasEnded) this.#forgetSoon(lane);
    }
  }

  /** A journal's entries; null when it is damaged, and a person has to look. A disk that refuses is asked until it does not. */
  async #readThrough(id: string): Promise<JournalEntry[] | null> {
    const { journal, clock, log } = this.#parts;
    for (;;) {
      try {
        return await journal.read(id);
      } catch (error) {
        if (!(error instanceof Fault)) throw error;
        log.write("error", error.cause_, { migration: id, code: error.code, action: error.action });
        if (error.retry !== "safe") {
          this.#damaged.set(id, error);
          return null;
        }
        await clock.sleep(journalRetryMs);
      }
    }
  }

  /** Takes a command; what becomes of it is reported, now or when it ends. */
  command(command: Command): void {
    const lane = this.#lanes.get(command.migrationId);
    const refused = this.#refusalOf(command, lane);
    if (refused !== null) {
      this.#parts.send({ type: "report", report: refused });
    } else if (this.#known(command, lane) !== undefined) {
      // Repeated: answered from memory, or by its end when it still runs.
      const report = lane?.record.report(command.id) ?? this.#inspections.report(command.id);
      if (report !== undefined) this.#answer(report);
    } else if (command.kind === "inspectSource" || command.kind === "inspectDestination") {
      this.#inspections.take(command);
    } else if (lane !== undefined || !this.#draining) {
      const joined = lane ?? this.#lane(command.migrationId, new MigrationRecord(command.migrationId));
      joined.epoch = Math.max(joined.epoch, command.epoch);
      joined.taken.set(command.id, command);
      this.#enqueue(joined, command, false);
    }
    // A draining shim leaves new migrations to the next one: the functions send the command again.
  }

  /** As `command`, for a peer or this shim itself that needs the end of it. Joins one that runs; a refusal is told to this
   *  caller alone, for whoever waits for the one that runs waits for that one. */
  carryOut(command: Command): Promise<Report> {
    const refused = this.#refusalOf(command, this.#lanes.get(command.migrationId));
    if (refused !== null) return Promise.resolve(refused);
    return new Promise((resolve) => {
      const waiting = this.#awaited.get(command.id) ?? new Set();
      this.#awaited.set(command.id, waiting.add(resolve));
      this.command(command);
    });
  }

  /** What is known of a migration that is not over here; null: nothing. */
  record(migrationId: string): MigrationRecord | null {
    const lane = this.#lanes.get(migrationId);
    return lane === undefined || lane.closed ? null : lane.record;
  }

  /** Every migration that is not over here. */
  records(): MigrationRecord[] {
    return [...this.#lanes.values()].filter((lane) => !lane.closed).map((lane) => lane.record);
  }

  /** Journals a point of a migration outside any of its steps. */
  async milestone(migrationId: string, commandId: string, name: string, data: Record<string, unknown>): Promise<void> {
    const lane = this.#lanes.get(migrationId);
    if (lane === undefined || lane.closed) throw new TypeError(`migration ${migrationId} is over here`);
    await this.#append(lane, { type: "milestone", at: this.#parts.clock.now(), commandId, name, data });
  }

  #known(command: Command, lane: Lane | undefined): Command | undefined {
    return lane?.taken.get(command.id) ?? lane?.record.intent(command.id) ?? this.#inspections.known(command.id);
  }

  /** Why a command is not even looked up or begun; null when it may be. */
  #refusalOf(command: Command, lane: Lane | undefined): Report | null {
    const damage = this.#damaged.get(command.migrationId);
    if (damage !== undefined) return refusal(command, damage.toBody());
    if (lane?.closed === true || this.#parts.journal.forgottenEpoch(command.migrationId) !== null)
      return forgottenRefusal(command);
    const known = this.#known(command, lane);
    // Once answered as not begun, it never is: the functions may have turned round by then.
    const unbegun = this.#refused.get(command.id);
    if (unbegun !== undefined) return unbegun;
    if (known !== undefined)
      return canonical(known) === canonical(command) ? null : refusal(command, conflictFault(command));
    return lane !== undefined && command.epoch < lane.epoch ? refusal(command, staleFault(command, lane.epoch)) : null;
  }

  /** The functions have stored the report of that command. */
  async acknowledged(commandId: string): Promise<void> {
    this.#inspections.acknowledged(commandId);
    const lane = this.#lanes.get(commandId.split(":")[0] ?? "");
    if (lane === undefined || lane.closed) return;
    const { record } = lane;
    const report = record.report(commandId);
    if (report === undefined || record.isAcknowledged(commandId)) return;
    await this.#append(lane, { type: "acknowledged", at: this.#parts.clock.now(), commandId });
    const command = record.intent(commandId);
    if (command !== undefined && endsMigration(command, report)) this.#forgetSoon(lane);
  }

  /** Sends again everything that waits for its acknowledgement; called at each hello and every few seconds. */
  resend(): void {
    for (const message of [...this.#lost.values()])
      if (this.#parts.send(message)) this.#lost.delete(message.migrationId);
    for (const { record } of this.#lanes.values()) for (const report of record.unacknowledged()) this.#answer(report);
    for (const report of this.#inspections.unacknowledged()) this.#answer(report);
    for (const id of [...this.#unforgotten]) {
      const lane = this.#lanes.get(id);
      if (lane === undefined) continue;
      this.#unforgotten.delete(id);
      lane.tail = lane.tail.then(() => {
        lane.closed = false;
        return this.#forget(lane);
      });
    }
  }

  /** To be called when a migration's libvirt connection ended by itself. */
  connectionLost(migrationId: string, cause: string): void {
    const lane = this.#lanes.get(migrationId);
    if (lane?.record.holdsIncoming === true) this.#noteLost(lane, cause);
  }

  /** From now on no new migration is begun; those under way are carried on. */
  drain(): void {
    this.#draining = true;
  }

  /** From now on nothing is journalled, begun or asked of libvirt: what still runs is left as a crash would leave it, because
   *  the state directory may be another process's in a moment. */
  end(): void {
    this.#draining = true;
    this.#ended = true;
  }

  /** Migrations between Begin or Prepare and their end on this host, and those whose step runs now. */
  underWay(): string[] {
    return [...this.#lanes.values()]
      .filter((lane) => !lane.closed && (lane.running.size > 0 || lane.record.isInHandshake))
      .map((lane) => lane.record.migrationId);
  }

  /** Those that both shims are to end by their ticket, and have not yet on this host. */
  armed(): string[] {
    return this.records()
      .filter((record) => record.isInHandshake && record.happened(armedMilestone))
      .map(({ migrationId }) => migrationId);
  }

  /** Waits until nothing runs and nothing is queued. For tests and for a clean end. */
  async idle(): Promise<void> {
    for (;;) {
      const lanes = [...this.#lanes.values()];
      await Promise.all([...lanes.map((lane) => lane.tail), this.#inspections.idle()]);
      if (lanes.every((lane) => lane.running.size === 0 || lane.closed)) return;
    }
  }

  #lane(id: string, record: MigrationRecord): Lane {
    const lane: Lane = {
      record,
      taken: new Map(),
      epoch: record.epoch,
      tail: Promise.resolve(),
      running: new Map(),
      closed: false,
    };
    this.#lanes.set(id, lane);
    return lane;
  }

  /** An abort must overtake the Perform that it aborts; everything else waits its turn. */
  #enqueue(lane: Lane, command: Command, resumed: boolean): void {
    const run = () => this.#execute(lane, command, resumed);
    const beside = command.kind === "abort";
    const ended = beside ? run() : lane.tail.then(run);
    lane.tail = beside ? Promise.all([lane.tail, ended]).then(() => {}) : ended;
  }

  /** Never rejects. */
  async #execute(lane: Lane, command: Command, resumed: boolean): Promise<void> {
    const { clock, log } = this.#parts;
    lane.running.set(command.id, command);
    const releaseTree = treeKinds.has(command.kind) ? await this.#takeTree(command.domain.uuid) : undefined;
    const release = heavyKinds.has(command.kind) ? await this.#heavy.take() : undefined;
    try {
      // After all waiting: a newer decision may have come meanwhile.
      if (!resumed && (lane.closed || command.epoch < lane.epoch)) {
        lane.taken.delete(command.id);
        this.#answer(lane.closed ? forgottenRefusal(command) : refusal(command, staleFault(command, lane.epoch)));
        return;
      }
      const history = lane.record.history();
      if (!resumed && !(await this.#intend(lane, command))) return;
      const result = await runStep(
        this.#parts.steps,
        command,
        {
          ...this.#common(command),
          resumed,
          history,
          milestone: (name, data) =>
            this.#append(lane, { type: "milestone", at: clock.now(), commandId: command.id, name, data }),
          happened: (name) => lane.record.happened(name),
          connection: async () =>
            this.#ended
              ? never()
              : this.#parts.connections.use({
                  record: lane.record,
                  commandId: command.id,
                  resumed,
                  connected: (generation) =>
                    this.#append(lane, {
                      type: "milestone",
                      at: clock.now(),
                      commandId: command.id,
                      name: connectedMilestone,
                      data: { generation },
                    }),
                }),
        },
        log,
      );
      const begunAt = Date.parse(lane.record.begunAt(command.id) ?? clock.now());
      const ms = Math.max(0, Date.parse(clock.now()) - begunAt);
      const { id, migrationId, epoch } = command;
      const report = sendable({ commandId: id, migrationId, epoch, ms, result });
      await this.#appendReport(lane, report);
      this.#answer(report);
    } finally {
      release?.();
      releaseTree?.();
      lane.running.delete(command.id);
    }
  }

  /** Waits until nobody writes that domain's records; the answer lets the next one go on. */
  async #takeTree(uuid: string): Promise<() => void> {
    const before = this.#trees.get(uuid);
    const { promise, resolve } = Promise.withResolvers<void>();
    const tail = Promise.all([before, promise]).then(() => {
      if (this.#trees.get(uuid) === tail) this.#trees.delete(uuid);
    });
    this.#trees.set(uuid, tail);
    await before;
    return resolve;
  }

  /** Journals that a command begins. False when the disk refuses: it is not begun, and whoever waits for it is told. */
  async #intend(lane: Lane, command: Command): Promise<boolean> {
    const { clock, log } = this.#parts;
    try {
      await this.#append(lane, { type: "intent", at: clock.now(), command });
      return true;
    } catch (error) {
      lane.taken.delete(command.id);
      const report = refusal(command, unbegunFault(command, error));
      // Nobody turns round by the failure of what a ticket asked for, and it is asked for again as the same command.
      if (ticketKindOf(command.id) === null) this.#refused.set(command.id, report);
      const oldest = this.#refused.keys().next().value;
      if (this.#refused.size > refusedMax && oldest !== undefined) this.#refused.delete(oldest);
      log.write("error", "a command was not begun: its intent cannot be journalled", {
        command: command.id,
        error: error instanceof Error ? error.message : String(error),
      });
      this.#answer(report);
      return false;
    }
  }

  #common(command: Command) {
    const { inventory, payloadsFor, bundles, peers, seal, migrationAddress, allowPaths, clock, send } = this.#parts;
    let sentAtMs = Number.NEGATIVE_INFINITY;
    return {
      inventory,
      payloads: payloadsFor(command),
      bundles,
      peers,
      seal,
      bundlePath: bundles.path(command.migrationId),
      migrationAddress,
      allowPaths,
      clock,
      progress: (progress: Progress) => {
        const nowMs = clock.monotonicMs();
        if (nowMs - sentAtMs < progressEveryMs) return;
        sentAtMs = nowMs;
        send({ type: "progress", migrationId: command.migrationId, commandId: command.id, progress });
      },
    };
  }

  async #append(lane: Lane, entry: JournalEntry): Promise<void> {
    if (this.#ended) await never();
    await this.#parts.journal.append(lane.record.migrationId, entry);
    lane.record.add(entry);
  }

  /** The step has ended: its report must reach the disk, however long the disk refuses it. */
  async #appendReport(lane: Lane, report: Report): Promise<void> {
    for (;;) {
      try {
        return await this.#append(lane, { type: "report", at: this.#parts.clock.now(), report });
      } catch (error) {
        this.#parts.log.write("error", "a report cannot be journalled yet", {
          command: report.commandId,
          error: error instanceof Error ? error.message : String(error),
        });
        await this.#parts.clock.sleep(journalRetryMs);
      }
    }
  }

  #forgetSoon(lane: Lane): void {
    lane.tail = lane.tail.then(() => this.#forget(lane));
  }

  /** In this order: a crash in between leaves the journal, and the next start does the rest. */
  async #forget(lane: Lane): Promise<void> {
    if (this.#ended) await never();
    const { connections, bundles, journal, log } = this.#parts;
    const { migrationId } = lane.record;
    if (lane.closed || !lane.record.hasEnded) return;
    lane.closed = true;
    this.#unforgotten.delete(migrationId);
    try {
      await connections.close(migrationId);
      await bundles.remove(migrationId);
      await journal.forget(migrationId, lane.epoch);
      this.#lanes.delete(migrationId);
      this.#lost.delete(migrationId);
      log.write("info", "migration ended on this host", { migration: migrationId });
    } catch (error) {
      // Nothing is executed for it meanwhile; it is tried again with the next resend, or by the next start.
      this.#unforgotten.add(migrationId);
      log.write("warn", "an ended migration could not be forgotten yet", {
        migration: migrationId,
        error: error instanceof Error ? error.message : String(error),
      });
    }
  }

  #noteLost(lane: Lane, cause: string): void {
    const { migrationId } = lane.record;
    const message = { type: "lost", migrationId, epoch: lane.epoch, cause: cause.slice(0, 2_000) } as const;
    this.#parts.log.write("warn", "a migration's libvirt connection was lost with its incoming domain", {
      migration: migrationId,
      cause,
    });
    if (!this.#parts.send(message)) this.#lost.set(migrationId, message);
  }

  #answer(report: Report): void {
    const waiting = this.#awaited.get(report.commandId);
    this.#awaited.delete(report.commandId);
    for (const resolve of waiting ?? []) resolve(report);
    this.#parts.send({ type: "report", report });
  }
}

/** What a dead process does next. */
const never = () => new Promise<never>(() => {});
