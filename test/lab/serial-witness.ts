/**
 * Outside reader of a guest's serial log: what the guest says, when it was seen, and whether there is exactly one of it.
 *
 * The guest counts in its memory and prints each count once. So a count that comes back means a revert, and counts that
 * interleave mean two running copies (I1). Times are taken here, by a clock that the guest's stops do not touch.
 */
import { type FileHandle, open } from "node:fs/promises";

/** Half a tick of the 100 Hz guest: the error of a measured gap. */
const defaultPollMs = 5;
const readBytesMax = 64 * 1024;
/** A guest line is under 40 bytes; more without a newline is noise of firmware. */
const lineBytesMax = 4096;
/** Gaps that are kept where somebody asks for them; a migration makes a few. */
const gapsMax = 1000;
/** A witness that ran into two running copies sees hundreds a second; the first ones tell. */
const violationsMax = 1000;

/** Time without any tick, in ms, and how blind we were ourselves in it (our own longest pause between two looks). */
export interface TickGap {
  readonly ms: number;
  readonly observerMs: number;
  readonly before: number;
  readonly after: number;
}

/** Two ticks that do not follow each other: `after` should be `before + 1`. */
export interface TickViolation {
  readonly kind: "back" | "repeat" | "skip";
  readonly before: number;
  readonly after: number;
}

export interface SerialWitnessOptions {
  /** Monotonic clock in ms. */
  readonly now?: () => number;
  readonly pollMs?: number;
  /** Read what is in the file already ("start", default), or only what comes ("end"). */
  readonly from?: "start" | "end";
  /** Keep every gap of at least this many ms in `gaps`; default: none. */
  readonly gapMsMin?: number;
}

interface Waiter {
  readonly check: () => boolean;
  readonly done: () => void;
}

export class SerialWitness {
  readonly path: string;
  /** Last tick seen; undefined before the first. */
  current: number | undefined;
  /** Ticks seen since the last `reset()`. */
  ticksSeen = 0;
  /** Largest gap between two ticks since the last `reset()`. */
  largestGap: TickGap | undefined;
  /** Gaps of at least `gapMsMin` since the last `reset()`, at most the first 1,000. */
  gaps: TickGap[] = [];
  /** Ticks that do not follow their predecessor since the last `reset()`, at most 1,000. */
  violations: TickViolation[] = [];
  /** How often the guest has booted. */
  boots = 0;
  /** Last count the guest has appended to the file on its disk and synced. */
  diskCount: number | undefined;
  /** Counts the guest could not write. */
  diskErrors = 0;

  readonly #now: () => number;
  readonly #pollMs: number;
  readonly #from: "start" | "end";
  readonly #gapMsMin: number;
  #file: FileHandle | undefined;
  #offset = 0;
  #rest = "";
  #stopped = false;
  #timer: NodeJS.Timeout | undefined;
  #polling: Promise<void> = Promise.resolve();
  #lastTickAt: number | undefined;
  #lastLookAt: number | undefined;
  #observerMs = 0;
  #waiters = new Set<Waiter>();

  constructor(path: string, options: SerialWitnessOptions = {}) {
    this.path = path;
    this.#now = options.now ?? (() => performance.now());
    this.#pollMs = options.pollMs ?? defaultPollMs;
    this.#from = options.from ?? "start";
    this.#gapMsMin = options.gapMsMin ?? Number.POSITIVE_INFINITY;
  }

  /** Begins to read; the file may appear later. Keeps no process alive by itself. */
  start(): this {
    this.#schedule();
    return this;
  }

  /** Ends reading; waits that are under way reject. */
  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#polling;
    await this.#file?.close();
    this.#file = undefined;
    for (const waiter of [...this.#waiters]) waiter.done();
  }

  /** Forgets gaps, violations and the number of ticks; the next tick is compared with the last one seen. */
  reset(): void {
    this.ticksSeen = 0;
    this.largestGap = undefined;
    this.gaps = [];
    this.violations = [];
    this.#observerMs = 0;
  }

  /** Waits for a tick greater than `n`; returns it. Throws after `timeoutMs` with what was seen. */
  async waitForTickAfter(n: number, timeoutMs: number): Promise<number> {
    await this.#waitUntil(() => this.current !== undefined && this.current > n, timeoutMs, `a tick after ${n}`);
    return this.current ?? n;
  }

  /** Waits for `count` more ticks, whatever their numbers: the guest runs. Returns the last. */
  async waitForTicks(count: number, timeoutMs: number): Promise<number> {
    let left = count;
    await this.#waitUntil(
      () => left <= 0,
      timeoutMs,
      `${count} more ticks`,
      () => {
        left -= 1;
      },
    );
    return this.current ?? 0;
  }

  /** Waits until the count goes back, as after a revert; returns the two ticks. Only what comes from now on counts. */
  async waitForJumpBack(timeoutMs: number): Promise<TickViolation> {
    let found: TickViolation | undefined;
    await this.#waitUntil(
      () => found !== undefined,
      timeoutMs,
      "the count to go back",
      undefined,
      (violation) => {
        if (violation.kind === "back") found ??= violation;
      },
    );
    if (found === undefined) throw new Error("unreachable");
    return found;
  }

  /** Waits until the guest has synced a count greater than `n` to its disk. */
  async waitForDiskAfter(n: number, timeoutMs: number): Promise<number> {
    await this.#waitUntil(
      () => this.diskCount !== undefined && this.diskCount > n,
      timeoutMs,
      `a disk write after ${n}`,
    );
    return this.diskCount ?? n;
  }

  /** Each tick from now on, in the order printed. */
  async *ticks(): AsyncGenerator<number, void, void> {
    const queue: number[] = [];
    const listener = (tick: number) => queue.push(tick);
    this.#tickListeners.add(listener);
    try {
      while (!this.#stopped) {
        if (queue.length === 0) await this.#waitUntil(() => queue.length > 0 || this.#stopped, undefined, "a tick");
        yield* queue.splice(0);
      }
    } finally {
      this.#tickListeners.delete(listener);
    }
  }

  readonly #tickListeners = new Set<(tick: number) => void>();
  readonly #violationListeners = new Set<(violation: TickViolation) => void>();

  async #waitUntil(
    check: () => boolean,
    timeoutMs: number | undefined,
    what: string,
    onTick?: (tick: number) => void,
    onViolation?: (violation: TickViolation) => void,
  ): Promise<void> {
    if (onTick !== undefined) this.#tickListeners.add(onTick);
    if (onViolation !== undefined) this.#violationListeners.add(onViolation);
    let timer: NodeJS.Timeout | undefined;
    let waiter: Waiter | undefined;
    try {
      await new Promise<void>((resolve) => {
        waiter = { check, done: resolve };
        this.#waiters.add(waiter);
        // This one holds the process: a test that waits must not end early.
        if (timeoutMs !== undefined) timer = setTimeout(resolve, timeoutMs);
        if (this.#stopped || check()) resolve();
      });
      if (check()) return;
      throw new Error(
        `${this.path}: waited ${this.#stopped ? "until the witness stopped" : `${timeoutMs} ms`} for ${what}; ` +
          `last tick ${this.current ?? "none"}, last lines ${JSON.stringify(this.#lastLines)}`,
      );
    } finally {
      clearTimeout(timer);
      if (waiter !== undefined) this.#waiters.delete(waiter);
      if (onTick !== undefined) this.#tickListeners.delete(onTick);
      if (onViolation !== undefined) this.#violationListeners.delete(onViolation);
    }
  }

  #schedule(): void {
    if (this.#stopped) return;
    this.#timer = setTimeout(() => {
      this.#polling = this.#poll().finally(() => this.#schedule());
    }, this.#pollMs);
    if (this.#waiters.size === 0) this.#timer.unref();
  }

  async #poll(): Promise<void> {
    try {
      if (this.#file === undefined) {
        this.#file = await open(this.path, "r");
        if (this.#from === "end") this.#offset = (await this.#file.stat()).size;
      }
      const buffer = Buffer.allocUnsafe(readBytesMax);
      for (;;) {
        const { bytesRead } = await this.#file.read(buffer, 0, readBytesMax, this.#offset);
        const at = this.#now();
        if (this.#lastLookAt !== undefined) this.#observerMs = Math.max(this.#observerMs, at - this.#lastLookAt);
        this.#lastLookAt = at;
        if (bytesRead === 0) break;
        this.#offset += bytesRead;
        this.#take(buffer.toString("latin1", 0, bytesRead), at);
        if (bytesRead < readBytesMax) break;
      }
    } catch {
      // Not there yet, or gone with its lab; the waits tell when that matters.
    }
  }

  #lastLines: string[] = [];

  #take(text: string, at: number): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = (lines.pop() ?? "").slice(-lineBytesMax);
    for (const raw of lines) this.#line(raw.trim(), at);
    for (const waiter of [...this.#waiters]) if (waiter.check()) waiter.done();
  }

  #line(line: string, at: number): void {
    const [, word, digits] = /^(tick|disk|disk-error|boot) (\d+)/.exec(line) ?? [];
    const count = Number(digits);
    if (word !== "tick") {
      if (line !== "") this.#lastLines = [...this.#lastLines.slice(-3), line.slice(0, 200)];
      if (word === "boot") this.boots += 1;
      if (word === "disk") this.diskCount = count;
      if (word === "disk-error") this.diskErrors += 1;
      return;
    }
    const before = this.current;
    this.current = count;
    this.ticksSeen += 1;
    if (before !== undefined && this.#lastTickAt !== undefined) {
      const ms = at - this.#lastTickAt;
      const gap = { ms, observerMs: this.#observerMs, before, after: count };
      if (ms > (this.largestGap?.ms ?? 0)) this.largestGap = gap;
      if (ms >= this.#gapMsMin && this.gaps.length < gapsMax) this.gaps.push(gap);
      if (count !== before + 1) {
        const kind = count === before ? "repeat" : count < before ? "back" : "skip";
        const violation: TickViolation = { kind, before, after: count };
        if (this.violations.length < violationsMax) this.violations.push(violation);
        for (const listener of this.#violationListeners) listener(violation);
      }
    }
    this.#lastTickAt = at;
    this.#observerMs = 0;
    for (const listener of this.#tickListeners) listener(count);
  }
}
