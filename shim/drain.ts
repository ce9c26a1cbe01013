/**
 * A clean end: no new migration is begun, those between Begin and their end are carried on, up to a bound. Ending in the
 * middle loses nothing (the journal takes it up, libvirt undoes what hung on the connection), but costs the attempt.
 */
import type { Clock } from "./clock.ts";
import type { Executor } from "./executor.ts";

/** For a migration that is not armed yet: longer than any handshake up to Perform. */
export const drainMsMax = 5 * 60_000;

/** For an armed one: Perform of a large memory takes its time, and is finished or handed over first. The systemd unit gives
 *  a little more (TimeoutStopSec). */
export const drainArmedMsMax = 60 * 60_000;

const lookEveryMs = 250;

/** Resolves when the shim may end: after `signal`, once nothing is under way or `msMax` has passed. */
export async function drainUntilIdle(drain: {
  executor: Pick<Executor, "drain" | "underWay" | "armed">;
  signal: AbortSignal;
  clock: Clock;
  say(line: string): void;
  msMax: number;
  armedMsMax: number;
}): Promise<void> {
  const { executor, signal, clock, say } = drain;
  if (!signal.aborted)
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  executor.drain();
  const begunMs = clock.monotonicMs();
  let said = "";
  for (;;) {
    const waiting = executor.underWay();
    if (waiting.length === 0) return;
    const msMax = executor.armed().length > 0 ? drain.armedMsMax : drain.msMax;
    if (clock.monotonicMs() - begunMs >= msMax) {
      say(`ending although ${waiting.join(", ")} has not ended; it is taken up at the next start`);
      return;
    }
    const line = `waiting for ${waiting.join(", ")} before ending, at most ${Math.round(msMax / 1000)} s`;
    if (line !== said) say(line);
    said = line;
    await clock.sleep(lookEveryMs);
  }
}
