/** `vmferry events`: what happened and who asked for it, one line each; with `--follow` as it happens, over restarts of the control plane. */
import { setTimeout as sleep } from "node:timers/promises";
import { type ChronicleEvent, chronicleEventSchema } from "../core/chronicle-event.ts";
import { eventPageSchema } from "../http/event-resource.ts";
import { CliError } from "./cli-error.ts";
import { type ApiClient, mayPass } from "./client.ts";
import { type CommandContext, type Invocation, type Run, usageError } from "./command.ts";
import { readEvents } from "./event-parser.ts";
import { eventLine } from "./event-text.ts";
import { exitCodes } from "./exit-code.ts";
import { durationText } from "./terminal.ts";

/** Without `--since`: what fits on a screen. */
const linesDefault = 50;
/** Of one request. */
const pageLines = 200;

/** An RFC 3339 time, from one or from how long ago. Throws `usage`. */
export function sinceOf(invocation: Invocation, nowMs: number): string | undefined {
  const text = invocation.text("since");
  if (text === undefined) return undefined;
  if (/^\d+[smhd]$/.test(text)) return new Date(nowMs - (invocation.durationMs("since") ?? 0)).toISOString();
  if (/^\d{4}-\d\d-\d\dT/.test(text) && !Number.isNaN(Date.parse(text))) return new Date(text).toISOString();
  throw usageError(
    `--since takes a time such as 2026-11-23T08:00:00Z or a duration such as 1h, not ${text}.`,
    invocation.words,
  );
}

const queryOf = (wanted: Record<string, string | undefined>): string =>
  new URLSearchParams(
    Object.entries(wanted).flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])),
  ).toString();

/** Lines of the chronicle, page by page, in the order asked for. `take` says when it has enough. */
export async function readChronicle(
  client: ApiClient,
  wanted: {
    order: "newest" | "oldest";
    since?: string | undefined;
    types?: string | undefined;
    subject?: string | undefined;
  },
  take: (event: ChronicleEvent) => "more" | "enough",
): Promise<void> {
  let cursor: string | undefined;
  do {
    const query = queryOf({ ...wanted, limit: String(pageLines), cursor });
    const page = await client.ask(`/v1/events?${query}`, eventPageSchema);
    for (const { event } of page.items) if (take(event) === "enough") return;
    cursor = page.cursor ?? undefined;
  } while (cursor !== undefined);
}

export const events: Run = async (context, invocation) => {
  const { terminal } = context;
  const types = invocation.texts("type").join(",");
  const wanted = {
    since: sinceOf(invocation, Date.now()),
    types: types === "" ? undefined : types,
    subject: invocation.text("subject"),
  };
  const isJson = invocation.flag("json");
  const client = await context.connect();
  if (invocation.flag("follow")) {
    const print = (event: ChronicleEvent) => terminal.out(isJson ? JSON.stringify(event) : eventLine(event));
    return followEvents(context, client, wanted, print);
  }
  const lines: ChronicleEvent[] = [];
  const max = invocation.count("limit") ?? (wanted.since === undefined ? linesDefault : Number.POSITIVE_INFINITY);
  await readChronicle(client, { ...wanted, order: "newest" }, (event) =>
    lines.push(event) >= max ? "enough" : "more",
  );
  lines.reverse();
  if (isJson) terminal.json(lines);
  else if (lines.length === 0) terminal.err("Nothing of that kind is written down.");
  else for (const event of lines) terminal.out(eventLine(event));
  return exitCodes.ok;
};

/** Prints what happens until it is interrupted. Throws `watch.lostSight` when the control plane stays away. */
async function followEvents(
  { terminal, pace, signal }: CommandContext,
  client: ApiClient,
  wanted: { since: string | undefined; types: string | undefined; subject: string | undefined },
  print: (event: ChronicleEvent) => void,
): Promise<number> {
  const path = `/v1/events?${queryOf({ ...wanted, live: "false" })}`;
  const place: Place = { lastEventId: null, retryMs: pace.retryMs };
  let lostAt: number | null = null;
  let waitMs = pace.retryMs;
  for (;;) {
    let isHeard = false;
    try {
      for await (const event of stream(client, path, { place, silenceMsMax: pace.silenceMsMax, signal })) {
        if (lostAt !== null) terminal.err("The control plane answers again.");
        [isHeard, lostAt, waitMs] = [true, null, pace.retryMs];
        if (event !== null) print(event);
      }
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof CliError && !mayPass(error)) throw error;
    }
    signal.throwIfAborted();
    // Ended in good order, or cut off: where it was is known, and it is opened again.
    if (isHeard) {
      await sleep(Math.min(place.retryMs, pace.retryMsMax), undefined, { signal });
      continue;
    }
    if (lostAt === null) {
      lostAt = performance.now();
      terminal.err(`Lost the control plane at ${client.url}. Looking again.`);
    } else if (performance.now() - lostAt >= pace.lostSightMs)
      throw new CliError({
        code: "watch.lostSight",
        cause: `${client.url} has not been reached for ${durationText(pace.lostSightMs)}.`,
        action: "When the control plane is back: vmferry events --follow --since 1h",
        exit: exitCodes.lostSight,
      });
    // Half of it at random, so that many do not come back as one.
    await sleep(waitMs / 2 + Math.random() * (waitMs / 2), undefined, { signal });
    waitMs = Math.min(waitMs * 2, pace.retryMsMax);
  }
}

/** Where a follower stands between two streams. */
interface Place {
  lastEventId: string | null;
  retryMs: number;
}

/** One stream, until it ends, breaks or is silent for too long. Null: a sign of life. */
async function* stream(
  client: ApiClient,
  path: string,
  { place, silenceMsMax, signal }: { place: Place; silenceMsMax: number; signal: AbortSignal },
): AsyncGenerator<ChronicleEvent | null> {
  const silent = new AbortController();
  let timer = setTimeout(() => silent.abort(), silenceMsMax);
  try {
    const bytes = await client.events(path, place.lastEventId, AbortSignal.any([silent.signal, signal]));
    if (bytes === null) return;
    const onRetry = (ms: number) => {
      place.retryMs = ms;
    };
    for await (const item of readEvents(bytes, onRetry)) {
      clearTimeout(timer);
      timer = setTimeout(() => silent.abort(), silenceMsMax);
      // A type that only a newer control plane knows is passed over.
      const event = item === null || item.data === "" ? null : chronicleEventSchema.safeParse(JSON.parse(item.data));
      yield event?.success === true ? event.data : null;
      place.lastEventId = item?.id ?? place.lastEventId;
    }
  } finally {
    clearTimeout(timer);
  }
}
