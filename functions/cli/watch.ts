/**
 * Follows a migration to its end, over restarts of the control plane: the stream is opened again from the last event that
 * was seen. A lost connection says nothing about the migration, so it never becomes an outcome (I2); after a long named
 * bound the watcher gives up and says how to look again.
 *
 * A stream that ended in good order is none that was lost: a control plane of functions ends each after a while, or with its first news,
 * and says how soon it wants to be asked again.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { type Progress, progressSchema } from "#protocol/message";
import { type Migration, migrationSchema } from "../http/migration-resource.ts";
import { CliError } from "./cli-error.ts";
import { type ApiClient, mayPass } from "./client.ts";
import type { Pace } from "./command.ts";
import { readEvents } from "./event-parser.ts";
import { exitCodes } from "./exit-code.ts";
import { durationText } from "./terminal.ts";

export interface Watcher {
  changed(migration: Migration): void;
  progressed(progress: Progress): void;
  /** The connection was lost or found again. */
  notice(line: string): void;
}

/** Resolves with the migration once it has ended or is stranded. Throws `watch.lostSight`; `signal`'s reason when aborted. */
export async function follow(
  client: ApiClient,
  id: string,
  options: { watcher: Watcher; pace: Pace; signal: AbortSignal },
): Promise<Migration> {
  const { watcher, pace, signal } = options;
  const sight = new Sight(pace, watcher);
  const place: Place = { lastEventId: null, retryMs: null };
  for (;;) {
    let isSilent = true;
    try {
      for await (const item of stream(client, id, { place, pace, signal })) {
        isSilent = false;
        sight.again();
        if (item.kind === "progress") watcher.progressed(item.progress);
        if (item.kind !== "migration") continue;
        const { migration } = item;
        watcher.changed(migration);
        // A stranded one may yet go on, but whoever waits here has to act now.
        if (migration.endedAt !== null || migration.status === "stranded") return migration;
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
    await sleep(sight.lost(client.url, id), undefined, { signal });
  }
}

/** Where a watcher stands between two streams. */
interface Place {
  lastEventId: string | null;
  /** What the server asked for last; null: nothing. */
  retryMs: number | null;
}

type Item = { kind: "migration"; migration: Migration } | { kind: "progress"; progress: Progress } | { kind: "alive" };

/** One stream, until it breaks or is silent for too long. */
async function* stream(
  client: ApiClient,
  id: string,
  options: { place: Place; pace: Pace; signal: AbortSignal },
): AsyncGenerator<Item> {
  const silent = new AbortController();
  let timer = setTimeout(() => silent.abort(), options.pace.silenceMsMax);
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silent.abort(), options.pace.silenceMsMax);
  };
  try {
    const path = `/v1/migrations/${id}/events`;
    const { place } = options;
    const bytes = await client.events(path, place.lastEventId, AbortSignal.any([silent.signal, options.signal]));
    if (bytes === null) {
      yield { kind: "migration", migration: await client.ask(`/v1/migrations/${id}`, migrationSchema) };
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
      else if (event.name === "migration" || event.name === "ended")
        yield { kind: "migration", migration: migrationSchema.parse(JSON.parse(event.data)) };
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
  readonly #watcher: Watcher;
  #lostAt: number | null = null;
  #waitMs: number;

  constructor(pace: Pace, watcher: Watcher) {
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
  lost(url: string, id: string): number {
    const now = performance.now();
    if (this.#lostAt === null) {
      this.#lostAt = now;
      this.#watcher.notice(`Lost the control plane at ${url}; the migration goes on without it. Looking again.`);
    } else if (now - this.#lostAt >= this.#pace.lostSightMs)
      throw new CliError({
        code: "watch.lostSight",
        cause: `${url} has not been reached for ${durationText(this.#pace.lostSightMs)}. How the migration stands is not known here.`,
        action: `When the control plane is back: vmferry migration watch ${id}`,
        exit: exitCodes.lostSight,
      });
    const waitMs = this.#waitMs;
    this.#waitMs = Math.min(waitMs * 2, this.#pace.retryMsMax);
    // Half of it at random, so that many watchers do not come back as one.
    return waitMs / 2 + Math.random() * (waitMs / 2);
  }
}
