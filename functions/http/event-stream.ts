/**
 * The events of one migration as server-sent events. The feed only wakes the stream; what is sent is read from the store,
 * so a lost wake-up costs `idleMs` and never an event. Each event holds the whole resource, so resuming from any version
 * misses nothing: the timeline in it is complete.
 */
import type { Progress } from "#protocol/message";
import type { MigrationState } from "../core/state.ts";
import type { Ports } from "../ports.ts";
import { migrationResource } from "./migration-resource.ts";

export interface Watch {
  ports: Ports;
  state: MigrationState;
  /** The version the client saw last; 0: none. */
  seenVersion: number;
  /** The longest wait for a wake-up. */
  idleMs: number;
}

const eventText = (event: { id?: number; name: string; data: unknown }) =>
  `${event.id === undefined ? "" : `id: ${event.id}\n`}event: ${event.name}\ndata: ${JSON.stringify(event.data)}\n\n`;

/** Opens the stream; it ends after the terminal event, or when the client leaves. */
export function eventStream(watch: Watch): ReadableStream<Uint8Array> {
  const left = new AbortController();
  const texts = eventTexts(watch, left.signal);
  const encoder = new TextEncoder();
  return new ReadableStream({
    async pull(controller) {
      try {
        const { done, value } = await texts.next();
        if (done) controller.close();
        else controller.enqueue(encoder.encode(value));
      } catch (error) {
        // The client resumes where it was; why it had to is in the log, not on the wire.
        watch.ports.log.write("warn", "an event stream was given up", {
          migration: watch.state.id,
          error: error instanceof Error ? error.name : "unknown",
        });
        left.abort();
        controller.close();
      }
    },
    cancel() {
      left.abort();
    },
  });
}

async function* eventTexts(watch: Watch, left: AbortSignal): AsyncGenerator<string, void> {
  const { ports, idleMs } = watch;
  const { id } = watch.state;
  const ended = new AbortController();
  const bell = doorbell();
  left.addEventListener("abort", bell.stop, { once: true });
  void listen(ports, id, AbortSignal.any([left, ended.signal]), bell);
  try {
    let state = watch.state;
    let seen = watch.seenVersion;
    yield `retry: ${idleMs}\n\n`;
    for (;;) {
      const isEnd = state.step === "ended";
      if (state.version > seen) {
        seen = state.version;
        yield eventText({
          id: seen,
          name: isEnd ? "ended" : "migration",
          data: migrationResource(state, bell.progress),
        });
      }
      if (isEnd || left.aborted) return;
      const rung = await bell.wait(idleMs);
      if (left.aborted) return;
      if (rung === "progress" && bell.progress !== null) yield eventText({ name: "progress", data: bell.progress });
      else {
        if (rung === "idle") yield ": still here\n\n";
        const newer = await ports.migrations.load(id);
        if (newer === null) return;
        state = newer;
      }
    }
  } finally {
    ended.abort();
  }
}

type Rung = "changed" | "progress" | "idle";

/** Remembers what rang while nobody waited, the newest progress only. */
function doorbell() {
  let changed = false;
  let fresh = false;
  let wake = () => {};
  const bell = {
    progress: null as Progress | null,
    ring(progress: Progress | null) {
      if (progress === null) changed = true;
      else {
        bell.progress = progress;
        fresh = true;
      }
      wake();
    },
    /** Ends a wait; nothing has rung. */
    stop() {
      wake();
    },
    async wait(ms: number): Promise<Rung> {
      if (!changed && !fresh)
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, ms);
          wake = () => {
            clearTimeout(timer);
            resolve();
          };
        });
      wake = () => {};
      const rung: Rung = changed ? "changed" : fresh ? "progress" : "idle";
      if (rung === "changed") changed = false;
      if (rung === "progress") fresh = false;
      return rung;
    },
  };
  return bell;
}

/** Rings for every event of the feed. A feed that fails is only slower: the store is looked at every `idleMs`. */
async function listen(ports: Ports, id: string, until: AbortSignal, bell: ReturnType<typeof doorbell>): Promise<void> {
  try {
    for await (const event of ports.feed.subscribe(id, until))
      bell.ring(event.type === "progress" ? event.progress : null);
  } catch {
    if (!until.aborted) ports.log.write("debug", "the feed of a migration broke off", { migration: id });
  }
}
