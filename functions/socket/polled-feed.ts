/**
 * A feed for functions that share no memory: nobody is told, everybody looks. A watcher reads the item every `everyMs` while it watches; who
 * watches nothing costs nothing.
 */
import type { EvacuationStore, Feed, FeedEvent, HostSockets, MigrationStore } from "../ports.ts";

export interface PolledFeedOptions {
  migrations: Pick<MigrationStore, "load">;
  evacuations?: Pick<EvacuationStore, "load"> | undefined;
  sockets: Pick<HostSockets, "progress">;
  /** Two reads of DynamoDB each time, per watcher. */
  everyMs: number;
}

export class PolledFeed implements Feed {
  readonly #options: PolledFeedOptions;

  constructor(options: PolledFeedOptions) {
    this.#options = options;
  }

  async publish(): Promise<void> {}

  /** Also ends with the migration: nothing changes for a watcher then. */
  async *subscribe(topic: string, signal: AbortSignal): AsyncGenerator<FeedEvent> {
    const { migrations, evacuations, sockets, everyMs } = this.#options;
    if (topic.startsWith("e_")) return yield* polledEvacuation(evacuations, topic, everyMs, signal);
    let version = 0;
    let told = "";
    while (!signal.aborted) {
      const state = await migrations.load(topic);
      if (signal.aborted) return;
      if (state !== null && state.version > version) {
        version = state.version;
        yield { type: "changed", version, state };
      }
      if (state !== null && state.endedAt !== null) return;
      // Whoever works tells how far it is; the source where nobody is asked to.
      const side = state?.pending[0]?.side ?? "source";
      const progress = state === null ? null : await sockets.progress(state[side].id, topic);
      const text = JSON.stringify(progress);
      if (progress !== null && text !== told && !signal.aborted) {
        told = text;
        yield { type: "progress", progress };
      }
      await pause(everyMs, signal);
    }
  }
}

/** An evacuation changes by itself only when a migration ends; its watcher reads it again for the whole of it. */
async function* polledEvacuation(
  evacuations: PolledFeedOptions["evacuations"],
  id: string,
  everyMs: number,
  signal: AbortSignal,
): AsyncGenerator<FeedEvent> {
  let version = 0;
  while (!signal.aborted) {
    const state = (await evacuations?.load(id)) ?? null;
    if (signal.aborted || state === null) return;
    if (state.version > version) {
      ({ version } = state);
      yield { type: "changed", version };
    }
    if (state.endedAt !== null) return;
    await pause(everyMs, signal);
  }
}

/** Ends early when nobody watches any more. */
function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done, { once: true });
  });
}
