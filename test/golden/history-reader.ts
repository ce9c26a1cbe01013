/**
 * Reads the histories that test/releases/record.ts wrote: what a release stored, was told and said, migration by migration.
 * Of a state the files keep what had changed; here it is put together again, to the letter of what the table held.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import * as z from "zod/mini";
import type { MigrationEvent, StoredReport } from "#core/event";
import { eventTypes } from "#core/event";
import { storedBlobSchema } from "#core/state";
import { domainStateSchema, receiptSchema, reportBodySchema, sideSchema } from "#protocol/command";
import { faultSchema } from "#protocol/fault";

export const historiesFolder = join(import.meta.dirname, "histories");

/** Every release of which there are histories. */
export const releases: readonly string[] = readdirSync(historiesFolder).sort();

const record = z.record(z.string(), z.unknown());
export type Stored = z.infer<typeof record>;

const headSchema = z.object({ name: z.string(), status: z.string(), stranded: z.boolean() });

/** `side` is the host that was told or that said it. */
const messageSchema = z.union([
  z.object({ down: z.looseObject({ type: z.string() }), side: sideSchema }),
  z.object({ up: z.looseObject({ type: z.string() }), side: sideSchema }),
]);
const blobSchema = z.object({ name: z.string(), base64: z.string(), sha256: z.string() });

const lineSchema = z.union([
  z.object({ created: record }),
  z.object({ event: z.unknown(), state: record }),
  z.object({ event: z.unknown(), changed: record, added: z.array(z.unknown()) }),
  z.object({ event: z.unknown() }),
  z.object({ blob: blobSchema }),
  messageSchema,
]);

/** What was done, in its order. `state` is as stored after the event; null: the event changed nothing. */
export interface Moment {
  event: MigrationEvent;
  before: Stored;
  state: Stored | null;
}

export interface History {
  release: string;
  name: string;
  status: string;
  created: Stored;
  moments: readonly Moment[];
  blobs: readonly z.infer<typeof blobSchema>[];
  /** Commands as they were sent, by side. */
  down: readonly { message: unknown; side: z.infer<typeof sideSchema> }[];
  up: readonly { message: unknown; side: z.infer<typeof sideSchema> }[];
}

/** The lines of a recorded file. */
export function linesOf(...path: string[]): unknown[] {
  const text = readFileSync(join(historiesFolder, ...path), "utf8");
  return text.split("\n").flatMap((line): unknown[] => (line === "" ? [] : [JSON.parse(line)]));
}

export function historiesOf(release: string): History[] {
  const folder = join(historiesFolder, release, "migrations");
  return readdirSync(folder)
    .sort()
    .map((file) => historyOf(release, linesOf(release, "migrations", file)));
}

function historyOf(release: string, [first, ...rest]: unknown[]): History {
  const head = headSchema.parse(first);
  const moments: Moment[] = [];
  const blobs: History["blobs"][number][] = [];
  const down: History["down"][number][] = [];
  const up: History["up"][number][] = [];
  let state: Stored | null = null;
  let created: Stored | null = null;
  for (const line of rest.map((each) => lineSchema.parse(each))) {
    if ("created" in line) {
      created = line.created;
      state = created;
    } else if ("blob" in line) blobs.push(line.blob);
    else if ("down" in line) down.push({ message: line.down, side: line.side });
    else if ("up" in line) up.push({ message: line.up, side: line.side });
    else {
      if (state === null) throw new Error(`${head.name}: an event came before its migration`);
      const after: Stored | null = stateAfter(line, state);
      moments.push({ event: eventSchema.parse(line.event), before: state, state: after });
      state = after ?? state;
    }
  }
  if (created === null) throw new Error(`${head.name}: no migration`);
  return { release, name: head.name, status: head.status, created, moments, blobs, down, up };
}

type EventLine = Extract<z.infer<typeof lineSchema>, { event: unknown }>;

function stateAfter(line: EventLine, before: Stored): Stored | null {
  if ("state" in line) return line.state;
  if (!("changed" in line)) return null;
  const told = z.array(z.unknown()).parse(before.timeline);
  return { ...before, ...line.changed, timeline: [...told, ...line.added] };
}

/**
 * Events are never stored, so the product has no schema of them; this is the recording's own. Reports in them are the
 * release's, decoded by the present schemas: that they fit is a part of what is proven.
 */
const at = z.string();
const storedReportSchema = z.object({
  commandId: z.string(),
  migrationId: z.string(),
  epoch: z.int(),
  ms: z.number(),
  result: z.union([
    z.object({ ok: z.literal(true), body: reportBodySchema, blobs: z.record(z.string(), storedBlobSchema) }),
    z.object({
      ok: z.literal(false),
      fault: faultSchema,
      sourceState: z.optional(domainStateSchema),
      receipt: z.optional(receiptSchema),
    }),
  ]),
}) satisfies z.ZodMiniType<StoredReport>;

const eventSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("requested"), at }),
  z.object({ type: z.literal("refused"), at, fault: faultSchema }),
  z.object({ type: z.literal("reported"), at, report: storedReportSchema }),
  z.object({ type: z.literal("cancelRequested"), at, by: z.string() }),
  z.object({ type: z.literal("resolved"), at, by: z.string(), reason: z.string(), fenced: sideSchema }),
  z.object({ type: z.literal("connectionLost"), at, epoch: z.int(), cause: z.string() }),
  z.object({
    type: z.literal("ticked"),
    at,
    unreachable: z.array(sideSchema),
    elapsedMs: z.nullable(z.number()),
  }),
]) satisfies z.ZodMiniType<MigrationEvent>;

export const eventTypesKnown: readonly string[] = eventTypes;
