/**
 * Everything that happens, as server-sent events: the lines of the chronicle, each with the id by which a client goes on after it, and between them, without
 * ids, the rows of what is active whenever one changes. Nobody is told by a push: a stream looks into the store once a second while it is watched.
 *
 * A carrier that delivers an answer only when it is whole makes it a long poll: it ends with the first news. The rows at its beginning are none, or no poll
 * would ever wait.
 */
import type { ChronicleEvent } from "../core/chronicle-event.ts";
import type { Ports } from "../ports.ts";
import type { EventsCarrier } from "./deps.ts";
import type { Place } from "./events-place.ts";
import { LiveRows } from "./events-rows.ts";
import { eventsReadsMax, longPollRetryMs } from "./limits.ts";
import { eventText, textStream } from "./sse.ts";

export interface EventsWatch {
  ports: Ports;
  place: Place;
  wants(event: ChronicleEvent): boolean;
  /** The rows of what is active as well: of all (`id` null) or of one. Null: none. */
  rows: { id: string | null } | null;
  pollMs: number;
  /** A sign of life after so long without any event. */
  idleMs: number;
  carrier?: EventsCarrier | undefined;
  /** Whether whoever opened it may still hear: a token that was revoked or has expired opens nothing any more. */
  mayHear(): Promise<boolean>;
}

/** How often that is asked: one request each time, and what is revoked is told little more. */
const mayHearMs = 15_000;

/** Opens the stream; it ends when the client leaves, or in good order when its carrier has had enough. */
export function eventsStream(watch: EventsWatch): ReadableStream<Uint8Array> {
  const left = new AbortController();
  return textStream(texts(watch, left.signal), left, (error) =>
    watch.ports.log.write("warn", "a stream of all events was given up", {
      error: error instanceof Error ? error.name : "unknown",
    }),
  );
}

async function* texts(watch: EventsWatch, left: AbortSignal): AsyncGenerator<string, void> {
  const { ports, place, wants, pollMs, idleMs, carrier } = watch;
  const isWhole = carrier?.delivers === "whole";
  const rows = watch.rows === null ? null : new LiveRows(ports, watch.rows.id);
  const over = new AbortController();
  const timer = carrier === undefined ? undefined : setTimeout(() => over.abort(), carrier.msMax);
  const stop = AbortSignal.any([left, over.signal]);
  try {
    // An id without data: a client that is cut off before the first event comes back to here.
    yield `retry: ${isWhole ? longPollRetryMs : idleMs}\nid: ${place.id}\n\n`;
    let quietMs = 0;
    let admittedMs = Date.parse(ports.clock.now());
    // A look into a long past makes about twice as many requests.
    for (let looks = 1; ; looks += place.isBehind ? 2 : 1) {
      let isNews = false;
      const nowMs = Date.parse(ports.clock.now());
      if (nowMs - admittedMs >= mayHearMs) {
        if (!(await watch.mayHear())) return;
        admittedMs = nowMs;
      }
      for await (const { event } of place.read(ports.chronicle, nowMs, ({ event }) => wants(event))) {
        if (left.aborted) return;
        isNews = true;
        // Of an answer that comes whole only the last is of use, and in a storm one has up to 4 KB.
        yield eventText({ id: isWhole ? null : place.id, name: event.type, data: event });
      }
      if (isWhole && isNews) yield `id: ${place.id}\n\n`;
      for (const { name, data } of place.isBehind ? [] : ((await rows?.changed()) ?? [])) {
        isNews ||= !isWhole || looks > 1;
        yield eventText({ id: null, name, data });
      }
      if (stop.aborted || looks >= eventsReadsMax || (isWhole && isNews)) return;
      if (place.isBehind) {
        yield `: looking through what was before\nid: ${place.id}\n\n`;
        continue;
      }
      quietMs = isNews ? 0 : quietMs + pollMs;
      if (quietMs >= idleMs) {
        quietMs = 0;
        // Also how far it has looked, so that what nobody wants is not looked through again.
        yield `: still here\nid: ${place.id}\n\n`;
      }
      await pause(pollMs, stop);
    }
  } finally {
    clearTimeout(timer);
  }
}

/** Ends early when it stops. */
function pause(ms: number, stop: AbortSignal): Promise<void> {
  if (stop.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      stop.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    stop.addEventListener("abort", done, { once: true });
  });
}
