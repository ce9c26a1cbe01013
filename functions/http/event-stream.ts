/**
 * The events of one migration as server-sent events. The feed brings the state as it was committed; where it brings none,
 * or nothing for `idleMs`, the store is read, so a lost event costs time only. Each event holds the whole resource, so
 * resuming from any version misses nothing: the timeline in it is complete.
 */
import type { Progress } from "#protocol/message";
import type { MigrationState } from "../core/state.ts";
import type { FeedEvent, Ports } from "../ports.ts";
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
      // What a fenced host sweeps later changes nothing for a watcher.
      const isEnd = state.endedAt !== null;
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
        const newer = (rung === "changed" ? bell.takeState() : null) ?? (await ports.migrations.load(id));
        if (newer === null) return;
        // Events may overtake each other; a state never goes back (I5).
        if (newer.version > state.version) state = newer;
      }
    }
  } finally {
    ended.abort();
  }
}

type Rung = "changed" | "progress" | "idle";

/** Remembers what rang while nobody waited: the newest state and the newest progress only. */
function doorbell() {
  let changed = false;
  let brought: MigrationState | null = null;
  let fresh = false;
  let wake = () => {};
  const bell = {
    progress: null as Progress | null,
    ring(event: FeedEvent) {
      if (event.type === "changed") {
        changed = true;
        if (event.state !== undefined && event.state.version > (brought?.version ?? 0)) brought = event.state;
      } else {
        bell.progress = event.progress;
        fresh = true;
      }
      wake();
    },
    /** The newest state that was brought and not taken yet. */
    takeState(): MigrationState | null {
      const state = brought;
      brought = null;
      return state;
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
    for await (const event of ports.feed.subscribe(id, until)) bell.ring(event);
  } catch {
    if (!until.aborted) ports.log.write("debug", "the feed of a migration broke off", { migration: id });
  }
}
