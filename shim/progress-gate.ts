/**
 * Holds progress back where the functions pay for each message: the first of a migration passes, then one in `everyMs`. What is held back is
 * older than what comes next, so it is dropped, not kept.
 */
import type { UpMessage } from "#protocol/message";
import type { Clock } from "./clock.ts";

/** Migrations remembered; a host moves a handful at once. */
const migrationsMax = 64;

export class ProgressGate {
  readonly #clock: Pick<Clock, "monotonicMs">;
  readonly #passedMs = new Map<string, number>();
  /** As the welcome said; 0: everything passes. */
  everyMs = 0;

  constructor(clock: Pick<Clock, "monotonicMs">) {
    this.#clock = clock;
  }

  /** Whether this message may go now. Only progress is ever held back. */
  passes(message: UpMessage): boolean {
    if (message.type !== "progress" || this.everyMs === 0) return true;
    const nowMs = this.#clock.monotonicMs();
    const passedMs = this.#passedMs.get(message.migrationId);
    if (passedMs !== undefined && nowMs - passedMs < this.everyMs) return false;
    this.#passedMs.delete(message.migrationId);
    if (this.#passedMs.size >= migrationsMax) this.#passedMs.clear();
    this.#passedMs.set(message.migrationId, nowMs);
    return true;
  }
}
