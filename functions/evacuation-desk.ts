/**
 * Which evacuations are to be looked at in this isolate, and by whom. When fifty are asked for at once, or migrations of many end at once, each by itself would
 * read the fleet and all other evacuations and stand in line for the fleet's turn, and none would come to its end. So one of those who ask looks after
 * all that wait, with one round's readings, and each is looked at once however often it was named meanwhile.
 *
 * Only plain data is shared between requests, never a promise: workerd lets no request wait for another's. Whoever looks may die with its request; after
 * `leaseMs` somebody else does it, and what nobody names again is the timer's.
 */
import { Round } from "./evacuation-round.ts";
import type { Ports } from "./ports.ts";

/** Evacuations that one looks after side by side, as the timer does. */
export const looksAtOnce = 4;
/** One look asks hosts for 20 s at most and waits for the turn; whoever said nothing for longer has died. */
const leaseMs = 45_000;
/** A request that waits for its evacuation's look asks so often whether it was done. */
const pauseMs = 100;
/** What one round has read is used so long: ends are to be seen soon, and inventories are what hosts said some seconds ago in any case. */
const roundMsMax = 3_000;
/** Who was only telling of a migration's end goes on for others so long, and leaves the rest to the next who tells. */
const othersMsMax = 10_000;

export interface Around {
  round: Round;
  /** Until when hosts may be asked (Unix time); null: they may not be asked now. */
  asks: { untilMs: number } | null;
}

export class EvacuationDesk {
  readonly #ports: Ports;
  readonly #look: (id: string, around: Around) => Promise<void>;
  /** In the order in which they were named, with until when hosts may be asked. */
  readonly #waiting = new Map<string, Around["asks"]>();
  readonly #looking = new Set<string>();
  #holder: { seenMs: number } | null = null;
  /** The last round, when all of it has ended: the next one goes on with its turn and with what it knew. */
  #ended: Round | null = null;

  /** `look` must not reject. */
  constructor(ports: Ports, look: (id: string, around: Around) => Promise<void>) {
    this.#ports = ports;
    this.#look = look;
  }

  /** Sees to it that the evacuation is looked at. With `asks` it resolves when that was done, or when the time to ask is over; else it may be done later. */
  async seeTo(id: string, asks: Around["asks"]): Promise<void> {
    this.#waiting.set(id, asks ?? this.#waiting.get(id) ?? null);
    if (asks === null) return this.#seeToAll(this.#nowMs() + othersMsMax, () => false);
    const isDone = () => !this.#waiting.has(id) && !this.#looking.has(id);
    while (!isDone() && this.#nowMs() < asks.untilMs) {
      await this.#seeToAll(asks.untilMs, isDone);
      if (!isDone()) await new Promise((resolve) => setTimeout(resolve, pauseMs));
    }
  }

  /** Looks at all that wait, unless somebody is at it. */
  async #seeToAll(untilMs: number, isEnough: () => boolean): Promise<void> {
    if (this.#holder !== null && this.#nowMs() - this.#holder.seenMs < leaseMs) return;
    const holder = { seenMs: this.#nowMs() };
    this.#holder = holder;
    // What somebody who died was at is looked at again when it is named, or by the timer.
    this.#looking.clear();
    try {
      while (this.#holder === holder && this.#waiting.size > 0 && this.#nowMs() < untilMs && !isEnough())
        await this.#lookAtSome(holder, Math.min(untilMs, this.#nowMs() + roundMsMax));
    } finally {
      if (this.#holder === holder) this.#holder = null;
    }
  }

  /** With the readings of one round, until nobody waits or the round's time is over. */
  async #lookAtSome(holder: { seenMs: number }, untilMs: number): Promise<void> {
    const round = new Round(this.#ports, this.#ended);
    // Whoever takes over from one that has not ended must not have the turn under its name: both could be in it.
    this.#ended = null;
    const running = new Set<Promise<void>>();
    for (;;) {
      while (running.size < looksAtOnce && this.#holder === holder && this.#nowMs() < untilMs) {
        const next = this.#waiting.entries().next().value;
        if (next === undefined) break;
        holder.seenMs = this.#nowMs();
        const one = this.#lookAt(next, round).finally(() => running.delete(one));
        running.add(one);
      }
      if (running.size === 0) break;
      await Promise.race(running);
    }
    if (this.#holder === holder) this.#ended = round;
  }

  async #lookAt([id, asks]: [string, Around["asks"]], round: Round): Promise<void> {
    this.#waiting.delete(id);
    this.#looking.add(id);
    try {
      await this.#look(id, { round, asks: asks !== null && asks.untilMs > this.#nowMs() ? asks : null });
    } finally {
      this.#looking.delete(id);
    }
  }

  #nowMs(): number {
    return Date.parse(this.#ports.clock.now());
  }
}
