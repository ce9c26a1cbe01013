/**
 * Writes down what happened. Whoever finds that something began or ended tells it here, as often as it likes: the event's id makes it one line, and what this
 * process knows to stand there is not asked of the store again. What a crash keeps from being told is told by the timer's next look, for whatever would end
 * that look (a lock, a claim) is let go only after the line stands.
 */
import { Fault } from "#protocol/fault";
import type { ChronicleEvent } from "./core/chronicle-event.ts";
import type { Chronicle, Log } from "./ports.ts";

/** Ids that one process remembers: some hundred KB. One that is forgotten costs two requests. */
const rememberedMax = 10_000;

/**
 * Tells one event; null is nothing to tell. Rejects with `Fault` `store.unreachable` only: the caller repeats it later. Anything else is a defect of the
 * line, which is logged and must hold up no migration.
 */
export type Tell = (event: ChronicleEvent | null) => Promise<void>;

export function createTeller({ chronicle, log }: { chronicle: Chronicle; log: Log }): Tell {
  const told = new Set<string>();
  return async (event) => {
    if (event === null || told.has(event.id)) return;
    try {
      await chronicle.append(event);
    } catch (error) {
      if (error instanceof Fault && error.code === "store.unreachable") throw error;
      log.write("error", "an event could not be written down", { event: event.id, error: String(error).slice(0, 300) });
      return;
    }
    if (told.size >= rememberedMax) told.clear();
    told.add(event.id);
  };
}
