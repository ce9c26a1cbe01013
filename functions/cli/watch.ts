/**
 * Follows a migration or an evacuation to its end, over restarts of the control plane: the stream is opened again from the last event that
 * was seen. A lost connection says nothing about the migration, so it never becomes an outcome (I2); after a long named
 * bound the watcher gives up and says how to look again.
 *
 * A stream that ended in good order is none that was lost: a control plane of functions ends each after a while, or with its first news,
 * and says how soon it wants to be asked again.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type * as z from "zod/mini";
import { type Progress, progressSchema } from "#protocol/message";
import { type Migration, migrationSchema } from "../http/migration-resource.ts";
import { CliError } from "./cli-error.ts";
import { type ApiClient, mayPass } from "./client.ts";
import type { Pace } from "./command.ts";
import { readEvents } from "./event-parser.ts";
import { exitCodes } from "./exit-code.ts";
import { durationText } from "./terminal.ts";

export interface WatcherOf<T> {
  changed(resource: T): void;
  progressed(progress: Progress): void;
  /** The connection was lost or found again. */
  notice(line: string): void;
}

export type Watcher = WatcherOf<Migration>;

/** What is followed: where it is, what it is, when nobody need wait any more. */
export interface Followed<T> {
  /** Of the resource; its events are below it. */
  path: string;
  schema: z.ZodMiniType<T>;
  /** As its events are called, but for the last. */
  name: "migration" | "evacuation";
  id: string;
  isOver(resource: T): boolean;
}

interface Patience<T> {
  watcher: WatcherOf<T>;
  pace: Pace;
  signal: AbortSignal;
}

/** Resolves with the migration once it has ended or is stranded. Throws `watch.lostSight`; `signal`'s reason when aborted. */
export const follow = (client: ApiClient, id: string, options: Patience<Migration>): Promise<Migration> =>
  followToEnd(
    client,
    {
      path: `/v1/migrations/${id}`,
      schema: migrationSchema,
      name: "migration",
      id,
      // A stranded one may yet go on, but whoever waits here has to act now.
      isOver: ({ endedAt, status }) => endedAt !== null || status === "stranded",
    },
    options,
  );

/** Resolves with the resource once it is over. Throws `watch.lostSight`; `signal`'s reason when aborted. */
export async function followToEnd<T>(client: ApiClient, followed: Followed<T>, options: Patience<T>): Promise<T> {
  const { watcher, pace, signal } = options;
  const sight = new Sight(pace, watcher);
  const place: Place = { lastEventId: null, retryMs: null };
  for (;;) {
    let isSilent = true;
    try {
      for await (const item of stream(client, followed, { place, pace, signal })) {
        isSilent = false;
        sight.again();
        if (item.kind === "progress") watcher.progressed(item.progress);
        if (item.kind !== "resource") continue;
        const { resource } = item;
        watcher.changed(resource);
        if (followed.isOver(resource)) return resource;
      }
      signal.throwIfAborted();
      // One that ended without a word is no answer.
      if (!isSilent) {
        await sleep(Math.min(place.retryMs ?? pace.retryMs, pace.retryMsMax), undefined, { signal });
        continue;
      }
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof CliError && !mayPass(error)) throw error;
    }
    signal.throwIfAborted();
    await sleep(sight.lost(client.url, followed), undefined, { signal });
  }
}

/** Where a watcher stands between two streams. */
interface Place {
  lastEventId: string | null;
  /** What the server asked for last; null: nothing. */
  retryMs: number | null;
}

type Item<T> = { kind: "resource"; resource: T } | { kind: "progress"; progress: Progress } | { kind: "alive" };

/** One stream, until it breaks or is silent for too long. */
async function* stream<T>(
  client: ApiClient,
  followed: Followed<T>,
  options: { place: Place; pace: Pace; signal: AbortSignal },
): AsyncGenerator<Item<T>> {
  const silent = new AbortController();
  let timer = setTimeout(() => silent.abort(), options.pace.silenceMsMax);
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silent.abort(), options.pace.silenceMsMax);
  };
  try {
    const { path, schema, name } = followed;
    const { place } = options;
    const bytes = await client.events(
      `${path}/events`,
      place.lastEventId,
      AbortSignal.any([silent.signal, options.signal]),
    );
    if (bytes === null) {
      yield { kind: "resource", resource: await client.ask(path, schema) };
      return;
    }
    let isGreeted = false;
    const events = readEvents(bytes, (ms) => {
      place.retryMs = ms;
      isGreeted = true;
    });
    for await (const event of events) {
      alive();
      if (event === null) yield { kind: "alive" };
      else if (event.name === "progress")
        yield { kind: "progress", progress: progressSchema.parse(JSON.parse(event.data)) };
      else if (event.name === name || event.name === "ended")
        yield { kind: "resource", resource: schema.parse(JSON.parse(event.data)) };
      place.lastEventId = event?.id ?? place.lastEventId;
    }
    // A poll without news says only how soon to ask again.
    if (isGreeted) yield { kind: "alive" };
  } finally {
    clearTimeout(timer);
  }
}

/** Counts how long the control plane has been out of sight and how long to wait. */
class Sight {
  readonly #pace: Pace;
  readonly #watcher: Pick<Watcher, "notice">;
  #lostAt: number | null = null;
  #waitMs: number;

  constructor(pace: Pace, watcher: Pick<Watcher, "notice">) {
    this.#pace = pace;
    this.#watcher = watcher;
    this.#waitMs = pace.retryMs;
  }

  again(): void {
    if (this.#lostAt !== null) this.#watcher.notice("The control plane answers again.");
    this.#lostAt = null;
    this.#waitMs = this.#pace.retryMs;
  }

  /** Returns the wait before the next try. Throws `watch.lostSight`. */
  lost(url: string, { name, id }: { name: string; id: string }): number {
    const now = performance.now();
    if (this.#lostAt === null) {
      this.#lostAt = now;
      this.#watcher.notice(`Lost the control plane at ${url}; the ${name} goes on without it. Looking again.`);
    } else if (now - this.#lostAt >= this.#pace.lostSightMs)
      throw new CliError({
        code: "watch.lostSight",
        cause: `${url} has not been reached for ${durationText(this.#pace.lostSightMs)}. How the ${name} stands is not known here.`,
        action: `When the control plane is back: vmferry ${name} watch ${id}`,
        exit: exitCodes.lostSight,
      });
    const waitMs = this.#waitMs;
    this.#waitMs = Math.min(waitMs * 2, this.#pace.retryMsMax);
    // Half of it at random, so that many watchers do not come back as one.
    return waitMs / 2 + Math.random() * (waitMs / 2);
  }
}
