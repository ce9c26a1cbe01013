/**
 * What is done each minute, side by side: none of it waits for another, and none is kept from its turn by another's failure. The timer of migrations
 * must run whatever a rule's document or a slow host does (a Lambda has less than a minute for all of it).
 */
import type { Log } from "./ports.ts";

/** Rejects when one has failed, after all have ended, so that whoever counts failed invocations counts this one. */
export async function everyMinute<K extends string>(
  log: Log,
  tasks: Readonly<Record<K, () => Promise<unknown>>>,
): Promise<void> {
  const failed: unknown[] = [];
  await Promise.all(
    Object.entries<() => Promise<unknown>>(tasks).map(async ([task, work]) => {
      try {
        await work();
      } catch (error) {
        log.write("error", "a task of the timer failed; the next minute tries again", { task, error: String(error) });
        failed.push(error);
      }
    }),
  );
  if (failed.length > 0) throw new AggregateError(failed, `${failed.length} tasks of the timer failed`);
}
