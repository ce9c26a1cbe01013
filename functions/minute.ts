/**
 * What is done each minute, side by side: none of it waits for another, and none is kept from its turn by another's failure. The timer of migrations
 * must run whatever a rule's document or a slow host does (a Lambda has less than a minute for all of it).
 */
import type { Log } from "./ports.ts";

/** Rejects when one has failed, after all have ended, so that whoever counts failed invocations counts this one. */
export async function everyMinute<K extends string>(
  log: Log,
  tasks: Readonly<Record<K, () => Promise<unknown>>>,
  /** Told at the end which of them have done their work, so that others see when one has stopped doing it. */
  succeeded: (tasks: readonly string[]) => Promise<void> = async () => {},
): Promise<void> {
  const failed: unknown[] = [];
  const done: string[] = [];
  const failure = (task: string, error: unknown) => {
    log.write("error", "a task of the timer failed; the next minute tries again", { task, error: String(error) });
    failed.push(error);
  };
  await Promise.all(
    Object.entries<() => Promise<unknown>>(tasks).map(async ([task, work]) => {
      try {
        await work();
        done.push(task);
      } catch (error) {
        failure(task, error);
      }
    }),
  );
  await succeeded(done).catch((error: unknown) => failure("succeeded", error));
  if (failed.length > 0) throw new AggregateError(failed, `${failed.length} tasks of the timer failed`);
}
