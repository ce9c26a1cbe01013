/**
 * The events of one migration or evacuation as server-sent events. The feed brings the state as it was committed; where it brings none,
 * or nothing for `idleMs`, the store is read, so a lost event costs time only. Each event holds the whole resource, so
 * resuming from any version misses nothing: the timeline in it is complete.
 *
 * A carrier that hands an answer over only when it is whole (API Gateway) makes it a long poll: the stream ends with the first
 * news, or after a while without any, and the client resumes it by Last-Event-ID. A progress has an id there as well, so that it is news once.
 */
import type { Progress } from "#protocol/message";
import type { MigrationState } from "../core/state.ts";
import type { FeedEvent, Ports } from "../ports.ts";
import type { EventsCarrier } from "./deps.ts";
import { longPollRetryMs } from "./limits.ts";
import { migrationResource } from "./migration-resource.ts";
import { eventText, textStream } from "./sse.ts";

/** What a client has seen: the version of the migration, and how far its progress had come. */
export interface Seen {
  version: number;
  elapsedMs: number;
}

/** Reads a Last-Event-ID, `version` or `version.elapsedMs`; nothing was seen where there is none. */
export function seenBy(lastEventId: string | undefined): Seen {
  const [, version, elapsedMs] = /^(\d{1,15})(?:\.(\d{1,15}))?$/.exec(lastEventId ?? "") ?? [];
  return { version: Number(version ?? 0), elapsedMs: Number(elapsedMs ?? 0) };
}

/** What a stream needs of that which is watched. */
export interface Watched<T extends Versioned> {
  /** Of its events, but for the last, which is `ended`. */
  name: "migration" | "evacuation";
  load(id: string): Promise<T | null>;
  resource(state: T, progress: Progress | null): Promise<unknown> | unknown;
  /** The state as the feed brought it; absent: it brings none. */
  brought?(event: FeedEvent): T | null;
}
interface Versioned {
  id: string;
  version: number;
  endedAt: string | null;
}

/** Migrations: the feed brings their states along. */
export const watchedMigrations = (ports: Ports): Watched<MigrationState> => ({
  name: "migration",
  load: (id) => ports.migrations.load(id),
  resource: migrationResource,
  brought: (event) => (event.type === "changed" ? (event.state ?? null) : null),
});

export interface Watch<T extends Versioned> {
  ports: Ports;
  watched: Watched<T>;
  state: T;
  seen: Seen;
  /** The longest wait for a wake-up. */
  idleMs: number;
  carrier?: EventsCarrier | undefined;
}

/** Opens the stream; it ends after the terminal event, when the client leaves, or when its carrier has had enough. */
export function eventStream<T extends Versioned>(watch: Watch<T>): ReadableStream<Uint8Array> {
  const left = new AbortController();
  return textStream(eventTexts(watch, left.signal), left, (error) =>
    watch.ports.log.write("warn", "an event stream was given up", {
      [watch.watched.name]: watch.state.id,
      error: error instanceof Error ? error.name : "unknown",
    }),
  );
}

async function* eventTexts<T extends Versioned>(watch: Watch<T>, left: AbortSignal): AsyncGenerator<string, void> {
  const { ports, watched, idleMs, carrier } = watch;
  const { id } = watch.state;
  const isWhole = carrier?.delivers === "whole";
  const ended = new AbortController();
  const bell = doorbell(watched);
  left.addEventListener("abort", bell.stop, { once: true });
  let isOver = false;
  const over =
    carrier === undefined
      ? undefined
      : setTimeout(() => {
          isOver = true;
          bell.stop();
        }, carrier.msMax);
  void listen(ports, id, AbortSignal.any([left, ended.signal]), bell);
  try {
    let state = watch.state;
    const seen = { ...watch.seen };
    let isTold = false;
    yield `retry: ${isWhole ? longPollRetryMs : idleMs}\n\n`;
    for (;;) {
      // What a fenced host sweeps later changes nothing for a watcher.
      const isEnd = state.endedAt !== null;
      if (state.version > seen.version) {
        seen.version = state.version;
        isTold = true;
        yield eventText({
          id: String(seen.version),
          name: isEnd ? "ended" : watched.name,
          data: await watched.resource(state, bell.progress),
        });
      }
      if (isEnd || left.aborted || isOver || (isWhole && isTold)) return;
      const rung = await bell.wait(idleMs);
      if (left.aborted) return;
      if (rung === "progress") {
        const elapsedMs = Math.round(bell.progress?.elapsedMs ?? 0);
        // A poll that begins hears the newest progress again; where each ends with its first news, that would never end.
        if (isWhole && elapsedMs <= seen.elapsedMs) continue;
        seen.elapsedMs = elapsedMs;
        isTold = true;
        yield eventText({
          id: isWhole ? `${seen.version}.${elapsedMs}` : null,
          name: "progress",
          data: bell.progress,
        });
      } else {
        if (rung === "idle" && !isOver) yield ": still here\n\n";
        const newer = (rung === "changed" ? bell.takeState() : null) ?? (await watched.load(id));
        if (newer === null) return;
        // Events may overtake each other; a state never goes back (I5).
        if (newer.version > state.version) state = newer;
      }
    }
  } finally {
    clearTimeout(over);
    ended.abort();
  }
}

type Rung = "changed" | "progress" | "idle";

/** Remembers what rang while nobody waited: the newest state and the newest progress only. */
function doorbell<T extends Versioned>({ brought: bring }: Watched<T>) {
  let changed = false;
  let brought: T | null = null;
  let fresh = false;
  let wake = () => {};
  const bell = {
    progress: null as Progress | null,
    ring(event: FeedEvent) {
      if (event.type === "changed") {
        changed = true;
        const state = bring?.(event) ?? null;
        if (state !== null && state.version > (brought?.version ?? 0)) brought = state;
      } else {
        bell.progress = event.progress;
        fresh = true;
      }
      wake();
    },
    /** The newest state that was brought and not taken yet. */
    takeState(): T | null {
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
async function listen(
  ports: Ports,
  id: string,
  until: AbortSignal,
  bell: { ring(event: FeedEvent): void },
): Promise<void> {
  try {
    for await (const event of ports.feed.subscribe(id, until)) bell.ring(event);
  } catch {
    if (!until.aborted) ports.log.write("debug", "a feed broke off", { of: id });
  }
}
