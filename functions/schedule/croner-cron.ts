/**
 * The port `Cron` over croner, which carries no dependency and knows the time zones through Intl. Five fields alone: a rule is looked at once a minute, so
 * seconds would promise what does not happen. Day of month and day of week both given mean either of them, as in every cron.
 */
import { Cron as Croner } from "croner";
import type { Cron } from "#core/schedule";

/** Patterns kept read: more than a fleet has rules; the oldest goes first. */
const keptMax = 500;

/** Reads each expression once and keeps it. */
export function cronerCron(): Cron {
  const kept = new Map<string, Croner>();
  return {
    next(expression, timeZone, afterMs) {
      const key = `${timeZone} ${expression}`;
      try {
        let read = kept.get(key);
        if (read === undefined) {
          read = new Croner(expression, { timezone: timeZone, mode: "5-part", paused: true });
          if (kept.size >= keptMax) for (const oldest of [...kept.keys()].slice(0, 1)) kept.delete(oldest);
          kept.set(key, read);
        }
        return read.nextRun(new Date(afterMs))?.getTime() ?? null;
      } catch (error) {
        throw new RangeError(
          error instanceof Error ? error.message.replace(/^Cron(Pattern|Date): /, "") : "unreadable",
        );
      }
    },
  };
}
