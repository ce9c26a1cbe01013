/** The simulated world's clock (test/simulation) on real time: the same actors, no faults, and the machine's own timers instead of a queue. */
import type { Timer } from "#test/simulation/virtual-time";
import { beginMs, VirtualTime } from "#test/simulation/virtual-time";
import { World } from "#test/simulation/world";

class RealTime extends VirtualTime {
  readonly #startMs = performance.now();

  override now(): string {
    return new Date(beginMs + this.#elapsedMs()).toISOString();
  }

  override after(ms: number, act: () => void): Timer {
    this.nowMs = this.#elapsedMs();
    const timer: Timer = { atMs: this.nowMs + ms, order: 0, act };
    setTimeout(
      () => {
        this.nowMs = this.#elapsedMs();
        timer.act?.();
      },
      Math.max(0, ms),
    );
    return timer;
  }

  override run(): Promise<void> {
    throw new Error("real time runs by itself");
  }

  #elapsedMs(): number {
    return performance.now() - this.#startMs;
  }
}

export class RealWorld extends World {
  override readonly time = new RealTime();

  constructor(seed: number) {
    super({ seed, source: { type: "none" }, tracing: false, onWorld: () => {} });
    // No point is counted: there are no faults, and a fleet passes millions.
    this.faults.closed = true;
  }
}
