/**
 * Virtual time and seeded chance: the only clock and the only dice of a simulated world. Everything that happens between
 * actors is an event of one queue; after each event everything that can go on without another one does so (microtasks),
 * so that a run is decided by its seed alone.
 */

/** Where virtual time begins: any fixed instant does. */
export const beginMs = Date.parse("2026-01-01T00:00:00.000Z");

export interface Timer {
  readonly atMs: number;
  readonly order: number;
  act: (() => void) | null;
}

export class VirtualTime {
  nowMs = 0;
  /** Events that have happened. */
  events = 0;
  readonly #heap: Timer[] = [];
  #order = 0;
  #textMs = -1;
  #text = "";

  /** RFC 3339, as every actor's clock shows it. */
  now(): string {
    if (this.#textMs !== this.nowMs) {
      this.#textMs = this.nowMs;
      this.#text = new Date(beginMs + this.nowMs).toISOString();
    }
    return this.#text;
  }

  /** Events of one instant happen in the order in which they were planned. */
  after(ms: number, act: () => void): Timer {
    const timer: Timer = { atMs: this.nowMs + Math.max(0, ms), order: this.#order++, act };
    this.#push(timer);
    return timer;
  }

  cancel(timer: Timer): void {
    timer.act = null;
  }

  /** Lets events happen until there is none, `stop` says so, or virtual time would pass `untilMs`. */
  async run(untilMs: number, stop: () => boolean): Promise<void> {
    await drained();
    while (!stop()) {
      const next = this.#heap[0];
      if (next === undefined || next.atMs > untilMs) return;
      this.#pop();
      if (next.act === null) continue;
      this.nowMs = next.atMs;
      this.events += 1;
      next.act();
      await drained();
    }
  }

  #push(timer: Timer): void {
    const heap = this.#heap;
    let at = heap.length;
    heap.push(timer);
    while (at > 0) {
      const up = (at - 1) >> 1;
      const above = heap[up];
      if (above === undefined || !isBefore(timer, above)) break;
      heap[at] = above;
      at = up;
    }
    heap[at] = timer;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return;
    let at = 0;
    for (;;) {
      const left = 2 * at + 1;
      if (left >= heap.length) break;
      const [one, other] = [heap[left], heap[left + 1]];
      const child = one !== undefined && other !== undefined && isBefore(other, one) ? left + 1 : left;
      const below = heap[child];
      if (below === undefined || !isBefore(below, last)) break;
      heap[at] = below;
      at = child;
    }
    heap[at] = last;
  }
}

const isBefore = (one: Timer, other: Timer) =>
  one.atMs < other.atMs || (one.atMs === other.atMs && one.order < other.order);

/** Resolves when no microtask is left: nothing in a simulated world waits for anything but the queue. */
const drained = () => new Promise<void>((resolve) => setImmediate(resolve));

/** Seeded chance (mulberry32): small, fast, and the same on every machine. */
export class Chance {
  #state: number;

  constructor(seed: number) {
    this.#state = (seed ^ 0x9e3779b9) >>> 0;
    for (let warm = 0; warm < 4; warm += 1) this.next();
  }

  /** In [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  }

  /** A whole number in [from, to]. */
  between(from: number, to: number): number {
    return from + Math.floor(this.next() * (to - from + 1));
  }

  is(likelihood: number): boolean {
    return this.next() < likelihood;
  }

  pick<T>(items: readonly T[]): T {
    const item = items[Math.floor(this.next() * items.length)];
    if (item === undefined) throw new TypeError("nothing to pick from");
    return item;
  }
}
