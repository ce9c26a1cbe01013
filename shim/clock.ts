/** Time and chance, passed in so that what waits or draws lots can be tested without either. */
import { setTimeout as wait } from "node:timers/promises";

export interface Clock {
  /** RFC 3339 UTC with milliseconds: what journals and logs state. */
  now(): string;
  /** Milliseconds that never go back: what durations are measured with. */
  monotonicMs(): number;
  /** Resolves after `ms`, or at once when `signal` aborts; never rejects. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
  /** In [0, 1). */
  random(): number;
}

export const systemClock: Clock = {
  now: () => new Date().toISOString(),
  monotonicMs: () => performance.now(),
  sleep: (ms, signal) =>
    wait(ms, undefined, signal === undefined ? {} : { signal }).catch(() => {
      // Only an abort ends a wait early, and it is not an error here.
    }),
  random: Math.random,
};

/** Full jitter: a wait drawn from [0, base·2^attempt), capped, so that many hosts do not come back at one instant. */
export function jitteredMs(attempt: number, bounds: { baseMs: number; capMs: number }, random: () => number): number {
  return Math.floor(random() * Math.min(bounds.capMs, bounds.baseMs * 2 ** Math.min(attempt, 30)));
}
