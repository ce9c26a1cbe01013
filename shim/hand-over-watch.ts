/**
 * Goes on asking the destination for a receipt after Perform's own report went to the functions without one. Whoever gets
 * through first, this channel or the functions' relay, ends the migration; with both cut, the source stays paused (I2, I10).
 */
import type { Command, Report } from "#protocol/command";
import { ticketCommandId, ticketKindOf } from "#protocol/ticket";
import type { Clock } from "./clock.ts";
import { type Armed, armedOf, askOnce, type Handed, handedOf, type Stated, statedOf } from "./hand-over.ts";
import type { Log } from "./log.ts";
import type { MigrationRecord } from "./migration-record.ts";
import type { Peers, Seal } from "./ports.ts";

/** Between two rounds: the guest is stopped while this waits, and asking costs one small message. */
const askEveryMs = 1_000;

export interface HandOverWatchParts {
  executor: { records(): MigrationRecord[]; carryOut(command: Command): Promise<Report> };
  peers: Peers;
  seal: Seal;
  clock: Clock;
  log: Log;
  signal: AbortSignal;
}

export class HandOverWatch {
  readonly #parts: HandOverWatchParts;
  /** Migrations that are being asked about now. */
  readonly #asking = new Set<string>();

  constructor(parts: HandOverWatchParts) {
    this.#parts = parts;
  }

  /** Until `signal`. */
  async run(): Promise<void> {
    const { clock, signal } = this.#parts;
    while (!signal.aborted) {
      this.round();
      await clock.sleep(askEveryMs, signal);
    }
  }

  /** Asks for every migration that lacks a receipt, each beside the others. */
  round(): void {
    for (const record of this.#parts.executor.records()) {
      const open = openHandOver(record);
      if (open === null || this.#asking.has(record.migrationId)) continue;
      this.#asking.add(record.migrationId);
      void this.#ask(record, open).finally(() => this.#asking.delete(record.migrationId));
    }
  }

  /** Never rejects: what fails now is tried with the next round. */
  async #ask(record: MigrationRecord, { armed, handed }: OpenHandOver): Promise<void> {
    const { executor, log } = this.#parts;
    try {
      const stated = await askOnce(this.#parts, armed, handed);
      // The functions' relay may have been quicker meanwhile.
      if (stated === null || openHandOver(record) === null) return;
      log.write("info", "the destination has stated how Finish ended", {
        migration: record.migrationId,
        outcome: stated.receipt.outcome,
      });
      await executor.carryOut(confirmCommand(record, armed, stated));
    } catch (error) {
      log.write("debug", "a result could not be handed over yet", {
        migration: record.migrationId,
        error: error instanceof Error ? error.message : String(error),
      });
    }
  }
}

interface OpenHandOver {
  armed: Armed;
  handed: Handed;
}

/** A result that was kept and reported, and of which nobody has stated what became. */
export function openHandOver(record: MigrationRecord): OpenHandOver | null {
  const history = record.history();
  const handed = handedOf(history);
  const armed = armedOf(history);
  if (handed === null || armed === null || statedOf(history) !== null || record.happened("confirmed")) return null;
  const perform = record.intents().find((command) => command.kind === "perform");
  // While Perform's step runs it asks itself.
  if (perform === undefined || record.report(perform.id) === undefined) return null;
  const decided = record.intents().some((command) => command.kind === "confirm" || command.kind === "restore");
  return decided && record.unreported().length > 0 ? null : { armed, handed };
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
