/**
 * A clean end: no new migration is begun, those between Begin and their end are carried on, up to a bound. Ending in the
 * middle loses nothing (the journal takes it up, libvirt undoes what hung on the connection), but costs the attempt.
 */
import type { Clock } from "./clock.ts";
import type { Executor } from "./executor.ts";

/** The systemd unit gives a little more (TimeoutStopSec). Longer than any handshake but a large memory's Perform. */
export const drainMsMax = 5 * 60_000;

const lookEveryMs = 250;

/** Resolves when the shim may end: after `signal`, once nothing is under way or `msMax` has passed. */
export async function drainUntilIdle(drain: {
  executor: Pick<Executor, "drain" | "underWay">;
  signal: AbortSignal;
  clock: Clock;
  say(line: string): void;
  msMax: number;
}): Promise<void> {
  const { executor, signal, clock, say, msMax } = drain;
  if (!signal.aborted)
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  executor.drain();
  const endMs = clock.monotonicMs() + msMax;
  let said = "";
  for (;;) {
    const waiting = executor.underWay();
    if (waiting.length === 0) return;
    if (clock.monotonicMs() >= endMs) {
      say(`ending although ${waiting.join(", ")} has not ended; it is taken up at the next start`);
      return;
    }
    const line = `waiting for ${waiting.join(", ")} before ending, at most ${Math.round(msMax / 1000)} s`;
    if (line !== said) say(line);
    said = line;
    await clock.sleep(lookEveryMs);
  }
}
