/**
 * Goes on asking the destination for a receipt after Perform's own report went to the functions without one, and does what
 * it says. Whoever gets through first, this channel or the functions' relay, ends the migration; with both cut, the source
 * stays paused (I2, I10).
 */
import type { Command, Report } from "#protocol/command";
import { ticketCommandId, ticketKindOf } from "#protocol/ticket";
import type { Clock } from "./clock.ts";
import {
  type Armed,
  armedOf,
  askOnce,
  type Handed,
  handedOf,
  receiptMilestone,
  type Stated,
  statedOf,
} from "./hand-over.ts";
import type { Log } from "./log.ts";
import type { MigrationRecord } from "./migration-record.ts";
import type { Peers, Seal } from "./ports.ts";

/** Between two rounds: the guest is stopped while this waits, and asking costs one small message. */
const askEveryMs = 1_000;

/** Longest wait between two Confirms that failed, doubled from one second: each is a command of its own in the journal, and
 *  what fails for minutes needs a person. */
const confirmAgainMsMax = 5 * 60_000;

export interface HandOverWatchParts {
  executor: {
    records(): MigrationRecord[];
    milestone(migrationId: string, commandId: string, name: string, data: Record<string, unknown>): Promise<void>;
    carryOut(command: Command): Promise<Report>;
  };
  peers: Peers;
  seal: Seal;
  clock: Clock;
  log: Log;
  signal: AbortSignal;
}

export class HandOverWatch {
  readonly #parts: HandOverWatchParts;
  /** Migrations that are being looked after now. */
  readonly #busy = new Set<string>();
  /** Confirms of this process that failed one after the other, and until when the next one waits. */
  readonly #failed = new Map<string, { times: number; untilMs: number }>();

  constructor(parts: HandOverWatchParts) {
    this.#parts = parts;
  }

  /** Until `signal`. */
  async run(): Promise<void> {
    const { clock, signal } = this.#parts;
    while (!signal.aborted) {
      void this.round();
      await clock.sleep(askEveryMs, signal);
    }
  }

  /** Looks after every migration that lacks a receipt, or was not confirmed by the one that it has, each beside the others.
   *  Resolves with the end of what it began; never rejects. */
  async round(): Promise<void> {
    const { executor, clock } = this.#parts;
    const begun: Promise<void>[] = [];
    for (const record of executor.records()) {
      const { migrationId } = record;
      const open = openHandOver(record);
      if (open === null) this.#failed.delete(migrationId);
      if (open === null || this.#busy.has(migrationId)) continue;
      if ((this.#failed.get(migrationId)?.untilMs ?? Number.NEGATIVE_INFINITY) > clock.monotonicMs()) continue;
      this.#busy.add(migrationId);
      begun.push(this.#end(record, open).finally(() => this.#busy.delete(migrationId)));
    }
    await Promise.all(begun);
  }

  /** Never rejects: what fails now is tried with a later round. */
  async #end(record: MigrationRecord, open: OpenHandOver): Promise<void> {
    const { executor, log } = this.#parts;
    const { migrationId } = record;
    try {
      const stated = open.stated ?? (await this.#ask(record, open));
      // The functions' relay may have been quicker meanwhile.
      if (openHandOver(record) === null) return;
      const report = await executor.carryOut(confirmCommand(record, open.armed, stated));
      if (!report.result.ok) this.#waitLonger(migrationId);
    } catch (error) {
      log.write("debug", "a result could not be handed over yet", {
        migration: migrationId,
        error: error instanceof Error ? error.message : String(error),
      });
    }
  }

  /** The statement is on disk before anything is done by it: none that says otherwise counts after it (I7). */
  async #ask(record: MigrationRecord, { armed, handed, performId }: OpenHandOver): Promise<Stated> {
    const { executor, log } = this.#parts;
    const { migrationId } = record;
    const stated = await askOnce(this.#parts, armed, handed);
    const { receipt, cookie } = stated;
    log.write("info", "the destination has stated how Finish ended", {
      migration: migrationId,
      outcome: receipt.outcome,
    });
    if (openHandOver(record) !== null)
      await executor.milestone(migrationId, performId, receiptMilestone, { receipt, cookie });
    return stated;
  }

  #waitLonger(migrationId: string): void {
    const times = (this.#failed.get(migrationId)?.times ?? 0) + 1;
    const waitMs = Math.min(confirmAgainMsMax, askEveryMs * 2 ** Math.min(times, 20));
    this.#failed.set(migrationId, { times, untilMs: this.#parts.clock.monotonicMs() + waitMs });
  }
}

interface OpenHandOver {
  armed: Armed;
  handed: Handed;
  /** What the destination has stated already; only Confirm is left then. */
  stated: Stated | null;
  performId: string;
}

/** A result that was kept and reported, and of which nobody has stated what became, or nothing was done by what was stated. */
export function openHandOver(record: MigrationRecord): OpenHandOver | null {
  const history = record.history();
  const handed = handedOf(history);
  const armed = armedOf(history);
  if (handed === null || armed === null || record.happened("confirmed")) return null;
  const perform = record.intents().find((command) => command.kind === "perform");
  // While Perform's step runs it asks itself.
  if (perform === undefined || record.report(perform.id) === undefined) return null;
  const decided = record.intents().filter((command) => command.kind === "confirm" || command.kind === "restore");
  if (decided.length > 0 && record.unreported().length > 0) return null;
  // The source is as it was: whatever pauses it after that is not this migration.
  if (decided.some(({ id, kind }) => kind === "restore" && record.report(id)?.result.ok === true)) return null;
  return { armed, handed, stated: statedOf(history), performId: perform.id };
}

/** The Confirm of the ticket; a new one after those that failed. Of the newest epoch, because it states a fact. Cookie D
 *  only carries figures, and is left out. */
function confirmCommand(record: MigrationRecord, armed: Armed, { receipt }: Stated): Command {
  const { migrationId, domain, options, flags } = armed.ticket;
  const earlier = record.intents().filter(({ id }) => ticketKindOf(id) === "confirm");
  return {
    id: ticketCommandId(migrationId, "confirm", earlier.length + 1),
    migrationId,
    epoch: record.epoch,
    domain,
    kind: "confirm",
    cookie: null,
    receipt,
    ticket: armed.signed,
    options,
    flags,
  };
}
