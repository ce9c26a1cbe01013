/**
 * An outgoing webhook: where events are posted, which of them, and the secrets that they are signed with, sealed (I9). How its delivery stands is an item
 * of its own (webhook-delivery.ts), for that is written with every event and this by people.
 */
import * as z from "zod/mini";
import { type ChronicleType, chronicleTypes } from "./chronicle-event.ts";

/** Each is looked at every minute, with a reading of the chronicle. */
export const webhooksMax = 32;
/** Longer than any address that a service gives out. */
export const urlCharsMax = 2_000;
/** The current secret and the one that it replaces: who rotates again while two are good ends the older at once. */
export const secretsMax = 2;
/** How long a replaced secret still signs, unless it is said: a day to bring the new one to a receiver. */
export const overlapMsDefault = 24 * 60 * 60_000;
export const overlapMsMax = 7 * 24 * 60 * 60_000;
const filtersMax = 32;
const prefix = "dev.vmferry.";

export const webhookNameSchema = z.string().check(z.regex(/^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/));

/** As it is asked for. A type's common beginning may be left out, and a part of it stands for all that is below: `migration`, `rule.run`. */
export const webhookSchema = z.strictObject({
  url: z.string().check(z.minLength(1), z.maxLength(urlCharsMax)),
  types: z.optional(
    z.array(z.string().check(z.regex(/^[A-Za-z.]{1,100}$/))).check(z.minLength(1), z.maxLength(filtersMax)),
  ),
});

export const webhookSecretSchema = z.object({
  id: z.string(),
  /** Of `whsec_...`, for this place only. */
  sealed: z.string(),
  createdAt: z.string(),
  /** It signs until then; null: it is the current one. */
  until: z.nullable(z.string()),
});
export type WebhookSecret = z.infer<typeof webhookSecretSchema>;

export const webhookRecordSchema = z.object({
  /** Of this making: one that is deleted and made anew under its name begins anew. */
  id: z.string(),
  name: webhookNameSchema,
  version: z.int(),
  url: z.string(),
  /** Without their common beginning. */
  types: z.array(z.string()),
  /** The current one first. */
  secrets: z.array(webhookSecretSchema),
  createdAt: z.string(),
  changedAt: z.string(),
  by: z.string(),
  paused: z.nullable(z.object({ at: z.string(), by: z.string(), reason: z.string() })),
});
export type WebhookRecord = z.infer<typeof webhookRecordSchema>;

/** Where a sealed secret belongs. */
export const secretPlace = (webhookId: string, secretId: string): string => `webhook ${webhookId} ${secretId}`;

const short = (type: string) => (type.startsWith(prefix) ? type.slice(prefix.length) : type);
const covers = (filter: string, type: string) => type === filter || type.startsWith(`${filter}.`);

/** Whether a webhook of these types wants an event. */
export const isWanted = (types: readonly string[], type: string): boolean =>
  types.some((filter) => covers(filter, short(type)));

/**
 * All that happens, but not the requests that ask for it: they must be named, for a receiver that asks for something at each event would else be told of
 * its own requests for ever.
 */
const typesDefault: readonly string[] = [
  ...new Set(chronicleTypes.map((type) => short(type).split(".")[0] ?? "")),
].filter((family) => family !== "request");

/** The filter as it is kept, or the filters that no event has. */
export function webhookTypes(asked: readonly string[] | undefined): { types: string[] } | { unknown: string[] } {
  const types = [...new Set((asked ?? typesDefault).map(short))].sort();
  const unknown = types.filter((filter) => !chronicleTypes.some((type: ChronicleType) => covers(filter, short(type))));
  return unknown.length > 0 ? { unknown } : { types };
}

/** Those that sign at this time, the current one first. */
export const signingSecrets = ({ secrets }: Pick<WebhookRecord, "secrets">, nowMs: number): WebhookSecret[] =>
  secrets.filter(({ until }) => until === null || Date.parse(until) > nowMs);

/** The secrets after one more was made: the former one signs on for the overlap, and none before it. */
export function rotated(
  secrets: readonly WebhookSecret[],
  fresh: Omit<WebhookSecret, "until">,
  overlapMs: number,
  nowMs: number,
): WebhookSecret[] {
  const until = new Date(nowMs + overlapMs).toISOString();
  const former = secrets.slice(0, secretsMax - 1).map((secret) => ({ ...secret, until }));
  return [{ ...fresh, until: null }, ...(overlapMs > 0 ? former : [])];
}
