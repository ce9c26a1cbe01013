/**
 * Lets so many requests at once to a store that one process serves (`vmferry up`). A request is given up after three seconds and tried again; when a thousand are sent
 * at once, all of them are late, all are tried again, and nothing comes through any more, though each alone takes milliseconds. Here they wait in line
 * before they are sent, so that what is sent is answered in time.
 *
 * A request that dies between the two ends of its turn, because its client has left, holds its place for `heldMsMax` and no longer. Who waits is woken by whoever
 * leaves, and looks by himself now and then, so that nobody depends on another's life.
 */

/** A store that is one process does no more at once in any case; this many are answered within a second by one that does a hundred a second. */
export const insideMax = 64;
/** Longer than a request is given (3 s). */
const heldMsMax = 5_000;
/** Whoever has waited so long would be told too late: a host's next heartbeat is about to come. */
export const waitMsMax = 8_000;
const lookMs = 500;

/** The line is too long. Not tried again at once: that would make it longer. */
export class GateOverdueError extends Error {
  override readonly name = "GateOverdueError";
}

export interface GateParts {
  nowMs(): number;
  sleep(ms: number): Promise<void>;
}

export class RequestGate {
  readonly #parts: GateParts;
  /** Since when, by ticket; oldest first, as a map keeps its order. */
  readonly #inside = new Map<number, number>();
  readonly #waiting: (() => void)[] = [];
  #tickets = 0;

  constructor(parts: GateParts) {
    this.#parts = parts;
  }

  /** Resolves when the request may be sent, to what must be called when it has ended. Throws `GateOverdueError`. */
  async enter(): Promise<() => void> {
    const { nowMs } = this.#parts;
    const untilMs = nowMs() + waitMsMax;
    // Who comes while others wait stands behind them.
    if (this.#waiting.length > 0 || !this.#hasRoom()) await this.#wait(untilMs);
    this.#tickets += 1;
    const ticket = this.#tickets;
    this.#inside.set(ticket, nowMs());
    return () => {
      if (this.#inside.delete(ticket)) this.#waiting[0]?.();
    };
  }

  /** Keeps its place in the line until there is room. */
  async #wait(untilMs: number): Promise<void> {
    const { nowMs, sleep } = this.#parts;
    let wake = () => {};
    const place = () => {
      // Whoever leaves next wakes the next one, also when this one has died.
      this.#waiting.splice(this.#waiting.indexOf(place), 1);
      isInLine = false;
      wake();
    };
    this.#waiting.push(place);
    let isInLine = true;
    try {
      do {
        if (nowMs() >= untilMs)
          throw new GateOverdueError(`${this.#waiting.length} requests wait for the store already`);
        if (!isInLine) {
          this.#waiting.unshift(place);
          isInLine = true;
        }
        const woken = new Promise<void>((resolve) => {
          wake = resolve;
        });
        await Promise.race([woken, sleep(lookMs)]);
      } while (!this.#hasRoom());
    } finally {
      if (isInLine) this.#waiting.splice(this.#waiting.indexOf(place), 1);
    }
  }

  #hasRoom(): boolean {
    const goneMs = this.#parts.nowMs() - heldMsMax;
    for (const [ticket, sinceMs] of this.#inside) {
      if (sinceMs > goneMs) break;
      this.#inside.delete(ticket);
    }
    return this.#inside.size < insideMax;
  }
}
