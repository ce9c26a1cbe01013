/** What happened, for consoles and the audit trail: as a page, or as a stream that goes on. */
import * as z from "zod/mini";
import { Fault } from "#protocol/fault";
import { type ChronicleEntry, eventIdSchema } from "../core/chronicle-event.ts";
import { positionAt, positionPattern } from "../core/chronicle-position.ts";
import { chronicleRowsMax } from "../core/limits.ts";
import type { Chronicle } from "../ports.ts";
import { authenticate } from "./auth.ts";
import type { AppDeps } from "./deps.ts";
import { eventLineSchema, eventPageSchema } from "./event-resource.ts";
import { filterOf } from "./events-filter.ts";
import { Place } from "./events-place.ts";
import { eventsStream } from "./events-stream.ts";
import { eventLinesMax, eventsIdleMs, eventsPollMs } from "./limits.ts";
import { limitSchema } from "./page-query.ts";
import { fault } from "./problem.ts";
import { type Route, route } from "./route.ts";
import { eventStreamHeaders } from "./sse.ts";

const time = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$/;

/** Reads on until the page is full, the end is reached, or so many lines were looked at that the rest is for the next page. */
async function pageOfLines(
  chronicle: Chronicle,
  ask: {
    order: "newest" | "oldest";
    limit: number;
    cursor: string | null;
    /** Nothing before this position. */
    since: string | null;
    wants(entry: ChronicleEntry): boolean;
  },
): Promise<{ items: ChronicleEntry[]; cursor: string | null }> {
  const { order, limit, since } = ask;
  const items: ChronicleEntry[] = [];
  let cursor = ask.cursor;
  for (let looked = 0; looked < eventLinesMax; looked += chronicleRowsMax) {
    const page =
      order === "newest"
        ? await chronicle.before({ at: cursor, limit: chronicleRowsMax })
        : await chronicle.after({ at: cursor ?? since, until: null, limit: chronicleRowsMax });
    for (const entry of page) {
      if (since !== null && entry.at < since) return { items, cursor: null };
      cursor = entry.at;
      if (ask.wants(entry) && items.push(entry) >= limit) return { items, cursor };
    }
    if (page.length < chronicleRowsMax) return { items, cursor: null };
  }
  return { items, cursor };
}

/** Whether this credential opens anything now. Throws `Fault` `store.unreachable`. */
const isKnown = (deps: AppDeps, authorization: string | undefined): Promise<boolean> =>
  authenticate(deps, authorization).then(
    () => true,
    (error: unknown) => {
      if (error instanceof Fault && error.code !== "store.unreachable") return false;
      throw error;
    },
  );

export function eventRoutes(deps: AppDeps): Route[] {
  const { ports } = deps;
  return [
    route({
      method: "GET",
      path: "/v1/events/:id",
      tag: "events",
      summary: "One event by its id, such as `m_...-started`, `m_...-ended`, `e_...-started`, `r_...-ended`",
      access: "token",
      reply: { status: 200, description: "The event and where it stands", schema: eventLineSchema },
      faults: ["request.notFound"],
      async handle({ param }) {
        const id = eventIdSchema.safeParse(param("id"));
        const value = id.success ? await ports.chronicle.find(id.data) : null;
        if (value === null) throw fault("request.notFound", "There is no such event.", "Look at: vmferry events.");
        return { value };
      },
    }),
    route({
      method: "GET",
      path: "/v1/events",
      tag: "events",
      summary:
        "What happened and who asked for it (CloudEvents): a page, newest first; with `Accept: text/event-stream` everything from now on (`since`, Last-Event-ID: from then on), and unless `live` is false the rows of active migrations and evacuations as they change",
      access: "token",
      query: z.strictObject({
        limit: limitSchema,
        cursor: z.optional(z.string().check(z.regex(positionPattern))),
        order: z._default(z.enum(["newest", "oldest"]), "newest"),
        /** Types or their beginnings, by commas: `migration,rule.run.ended`. */
        types: z.optional(z.string().check(z.minLength(1), z.maxLength(1_000))),
        /** The id of a migration, evacuation, run or host, or a request's path. */
        subject: z.optional(z.string().check(z.minLength(1), z.maxLength(300))),
        /** Written down at this time or later. */
        since: z.optional(z.string().check(z.regex(time))),
        live: z._default(z.enum(["true", "false"]), "true"),
      }),
      reply: {
        status: 200,
        description: "A page. It may have fewer lines than asked for; `cursor` null: there are no more",
        schema: eventPageSchema,
      },
      otherReplies: [
        {
          status: 200,
          description: "`event`: the type of the CloudEvent in `data`; `migration` and `evacuation`: a row",
          schema: null,
          mediaType: "text/event-stream",
        },
      ],
      faults: ["request.malformed"],
      async handle({ query, context }) {
        const wants = filterOf(query);
        const sinceMs = query.since === undefined ? null : Date.parse(query.since);
        if (Number.isNaN(sinceMs))
          throw fault("request.malformed", "`since` is no time.", "Send such as 2026-11-23T08:00:00Z.");
        if (!(context.req.header("accept") ?? "").includes("text/event-stream")) {
          const value = await pageOfLines(ports.chronicle, {
            order: query.order,
            limit: query.limit,
            cursor: query.cursor ?? null,
            since: sinceMs === null ? null : positionAt(sinceMs),
            wants: ({ event }) => wants(event),
          });
          return { value };
        }
        const fromMs = sinceMs ?? Date.parse(ports.clock.now());
        const place = Place.after(context.req.header("last-event-id")) ?? Place.since(fromMs);
        const authorization = context.req.header("authorization");
        const stream = eventsStream({
          ports,
          place,
          wants,
          rows: query.live === "true" ? { id: query.subject ?? null } : null,
          pollMs: deps.eventsPollMs ?? eventsPollMs,
          idleMs: deps.eventsIdleMs ?? eventsIdleMs,
          carrier: deps.eventsCarrier,
          mayHear: () => isKnown(deps, authorization),
        });
        return new Response(stream, { headers: eventStreamHeaders });
      },
    }),
  ];
}
