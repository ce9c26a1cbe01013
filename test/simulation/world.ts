/**
 * What all simulated actors share: time, chance, the fault book, the trace, and the lives of processes. A process that
 * dies never goes on: whatever it waits for stays unanswered, and whatever it asks for is not heard.
 */
import type { Clock } from "#shim/clock";
import { FaultBook, type FaultSource, type OwnKind, type Point, type WorldKind } from "./fault-plan.ts";
import { Chance, VirtualTime } from "./virtual-time.ts";

export interface Violation {
  invariant: string;
  text: string;
  atMs: number;
}

/** One incarnation of a process. */
export class Life {
  readonly name: string;
  isAlive = true;
  readonly #onEnd: (() => void)[] = [];

  constructor(name: string) {
    this.name = name;
  }

  onEnd(act: () => void): void {
    this.#onEnd.push(act);
  }

  end(): void {
    if (!this.isAlive) return;
    this.isAlive = false;
    for (const act of this.#onEnd) act();
  }
}

/** What somebody who is dead waits for. */
export const never = <T>(): Promise<T> => new Promise<T>(() => {});

/** What a crossing does: it may fail by itself, and some faults are its own business. */
export interface Crossing<T> {
  life: Life;
  point: Point;
  /** Virtual ms from asking to its effect, at least and at most. */
  takesMs: readonly [number, number];
  /** The effect and the answer, at once. */
  act(): T;
  /** Called with the faults that were drawn, before anything; what it returns replaces the crossing. */
  faulted?(kinds: ReadonlySet<OwnKind>): Promise<T> | null;
  /** False: a request that is on its way is lost with its sender (a process's own disk). Default true. */
  outlives?: boolean;
}

export class World {
  readonly time = new VirtualTime();
  readonly chance: Chance;
  readonly faults: FaultBook;
  readonly violations: Violation[] = [];
  readonly trace: string[] = [];
  readonly tracing: boolean;
  /** What everybody is told when the world heals. */
  readonly #onHeal: (() => void)[] = [];
  healed = false;

  constructor(options: { seed: number; source: FaultSource; tracing: boolean; onWorld: (kind: WorldKind) => void }) {
    this.chance = new Chance(options.seed);
    this.faults = new FaultBook(options.source, new Chance(options.seed ^ 0x5bd1e995), options.onWorld);
    this.tracing = options.tracing;
  }

  note(text: string): void {
    if (this.tracing) this.trace.push(`${String(this.time.nowMs).padStart(9)} ${text}`);
  }

  violate(invariant: string, text: string): void {
    this.note(`!!! ${invariant}: ${text}`);
    this.violations.push({ invariant, text, atMs: this.time.nowMs });
  }

  onHeal(act: () => void): void {
    this.#onHeal.push(act);
  }

  /** From now on nothing goes wrong any more, and what is broken is repaired. */
  heal(): void {
    if (this.healed) return;
    this.healed = true;
    this.faults.closed = true;
    this.note("--- the world heals");
    for (const act of this.#onHeal) act();
  }

  /** A process's clock: its waits end with it. */
  clockOf(life: Life): Clock {
    return {
      now: () => this.time.now(),
      monotonicMs: () => this.time.nowMs,
      random: () => this.chance.next(),
      sleep: (ms) =>
        new Promise<void>((resolve) => {
          this.time.after(ms, () => {
            if (life.isAlive) resolve();
          });
        }),
    };
  }

  /** Carries something across a point, as one event, with the faults that were drawn for it. */
  cross<T>({ life, point, takesMs, act, faulted, outlives = true }: Crossing<T>): Promise<T> {
    if (!life.isAlive) return never();
    const kinds = this.faults.at(point);
    if (kinds.size > 0) {
      this.note(`*** ${[...kinds].join(" ")} at ${point.class} ${point.actor} ${point.what}`);
      const instead = faulted?.(kinds) ?? null;
      if (kinds.has("crashBefore")) {
        life.end();
        return never();
      }
      if (instead !== null) return instead;
    }
    // A fault of the world around may have ended it at this very point.
    if (!life.isAlive) return never();
    return new Promise<T>((resolve, reject) => {
      this.time.after(this.chance.between(takesMs[0], takesMs[1]), () => {
        if (!outlives && !life.isAlive) return;
        try {
          const value = act();
          if (kinds.has("crashAfter")) life.end();
          if (life.isAlive) resolve(value);
        } catch (error) {
          if (kinds.has("crashAfter")) life.end();
          if (life.isAlive) reject(error);
        }
      });
    });
  }
}
