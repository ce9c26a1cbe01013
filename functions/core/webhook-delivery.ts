/**
 * How the delivery of a webhook stands and how it goes on: one event after the other in the order of the chronicle, each until it is taken or, after
 * days, dropped and counted. An event that waits holds those after it back, so the pauses between attempts have an upper end that a person can wait for.
 *
 * The cursor moves past an event only when its answer is known, over the version that was read: whoever dies between the post and that write posts again, and
 * of two who deliver at once one writes. So every event is delivered at least once and, as far as a receiver has not seen it before, in order.
 */
import * as z from "zod/mini";
import type { ChronicleEntry } from "./chronicle-event.ts";
import { positionAt, positionMs } from "./chronicle-position.ts";
import type { WebhookRecord } from "./webhook.ts";

/**
 * Pauses after the first, second, ... failed attempt in a row; the last is kept to. They spread over days as Standard Webhooks recommends; its last steps of
 * up to a day are for single messages, and here everything waits behind one.
 */
export const retryPausesMs = [
  5_000,
  30_000,
  2 * 60_000,
  10 * 60_000,
  30 * 60_000,
  60 * 60_000,
  2 * 60 * 60_000,
] as const;
/** Each pause is up to this part longer or shorter, so that receivers are not asked in step. */
export const retryJitter = 0.2;
/** An event that has waited so long for a receiver that failed all the time is dropped: a long weekend. */
export const waitMsMax = 72 * 60 * 60_000;
/** And so many attempts have failed: as many as there are in that time when each is put off as long as may be asked for. Whoever was away himself has made fewer. */
export const dropAttemptsMin = 12;
/** A receiver that asks for a longer pause is asked again then. */
export const retryAfterMsMax = 6 * 60 * 60_000;
/** Longer than a post and the write after it, with its tries, so that a deliverer that lives is never overtaken. */
export const leaseMs = 45_000;

const refSchema = z.object({ eventId: z.string(), type: z.string(), writtenAt: z.string() });
type EventRef = z.infer<typeof refSchema>;

export const webhookDeliverySchema = z.object({
  /** The webhook's id. */
  webhook: z.string(),
  name: z.string(),
  version: z.int(),
  /** What stands up to here in the chronicle was delivered, dropped, or is not wanted. */
  cursor: z.string(),
  /** Who delivers now, and until when nobody else begins. */
  lease: z.nullable(z.object({ holder: z.string(), until: z.string() })),
  /** Failed attempts since the last success. */
  attempts: z.int(),
  failingSince: z.nullable(z.string()),
  notBefore: z.nullable(z.string()),
  /** The oldest event that is known to wait, because its attempt failed or others before it took all the time; null: none does. */
  pending: z.nullable(refSchema),
  lastAttemptAt: z.nullable(z.string()),
  /** Null: there was no answer. */
  lastStatus: z.nullable(z.int()),
  lastError: z.nullable(z.string()),
  deliveredAt: z.nullable(z.string()),
  delivered: z.int(),
  /** Attempts that failed. */
  failed: z.int(),
  dropped: z.int(),
  lastDropped: z.nullable(z.object({ ...refSchema.shape, at: z.string() })),
});
export type WebhookDelivery = z.infer<typeof webhookDeliverySchema>;

/** What a post came to. `retryAfter`: the header as it came. */
export type WebhookOutcome =
  | { kind: "answered"; status: number; retryAfter: string | null }
  | { kind: "unanswered"; cause: string };

/** It begins with what happens after the webhook was made. Version 0: nothing is stored yet. */
export const newDelivery = ({
  id,
  name,
  createdAt,
}: Pick<WebhookRecord, "id" | "name" | "createdAt">): WebhookDelivery => ({
  webhook: id,
  name,
  version: 0,
  cursor: positionAt(Date.parse(createdAt)),
  lease: null,
  attempts: 0,
  failingSince: null,
  notBefore: null,
  pending: null,
  lastAttemptAt: null,
  lastStatus: null,
  lastError: null,
  deliveredAt: null,
  delivered: 0,
  failed: 0,
  dropped: 0,
  lastDropped: null,
});

const text = (ms: number) => new Date(ms).toISOString();
const isAhead = (at: string | null | undefined, nowMs: number): at is string =>
  typeof at === "string" && Date.parse(at) > nowMs;

/** Null: it may be looked at now; otherwise the moment until which it is another's, or rests. */
export function restsUntil({ lease, notBefore }: WebhookDelivery, nowMs: number): string | null {
  if (isAhead(notBefore, nowMs)) return notBefore;
  return isAhead(lease?.until, nowMs) ? (lease?.until ?? null) : null;
}

export const leased = (delivery: WebhookDelivery, holder: string, nowMs: number): WebhookDelivery => ({
  ...delivery,
  version: delivery.version + 1,
  lease: { holder, until: text(nowMs + leaseMs) },
});

/** Past events that are not wanted, and with the lease given back: nothing more is there now. */
export const rested = (delivery: WebhookDelivery, cursor: string): WebhookDelivery => ({
  ...delivery,
  version: delivery.version + 1,
  cursor,
  lease: null,
});

const refOf = ({ at, event }: ChronicleEntry): EventRef => ({
  eventId: event.id,
  type: event.type,
  writtenAt: text(positionMs(at)),
});

/** This event is the next one. A receiver that takes everything, but more slowly than it happens, falls behind visibly. */
export const waitedFor = (delivery: WebhookDelivery, entry: ChronicleEntry): WebhookDelivery => ({
  ...delivery,
  pending: refOf(entry),
});

/** Whether there is time for one more post under this lease. */
export const mayPost = ({ lease }: WebhookDelivery, postMsMax: number, nowMs: number): boolean =>
  lease !== null && Date.parse(lease.until) - nowMs > postMsMax;

/** `gone`: the receiver wants nothing more; a person must let it go on. */
export type WebhookVerdict = "delivered" | "waits" | "dropped" | "gone";

/** What an answer, or none, makes of it. `jitter`: from 0 to 1. */
export function settled(
  delivery: WebhookDelivery,
  { at, event }: ChronicleEntry,
  outcome: WebhookOutcome,
  { holder, nowMs, jitter }: { holder: string; nowMs: number; jitter: number },
): { delivery: WebhookDelivery; verdict: WebhookVerdict } {
  const status = outcome.kind === "answered" ? outcome.status : null;
  const now = text(nowMs);
  const tried = {
    ...delivery,
    version: delivery.version + 1,
    lease: { holder, until: text(nowMs + leaseMs) },
    lastAttemptAt: now,
    lastStatus: status,
    lastError: errorOf(outcome),
  };
  const past = { cursor: at, pending: null, notBefore: null };
  if (status !== null && status >= 200 && status < 300) {
    const counted = { delivered: delivery.delivered + 1, deliveredAt: now, attempts: 0, failingSince: null };
    return { verdict: "delivered", delivery: { ...tried, ...past, ...counted } };
  }
  const pending = refOf({ at, event });
  const failed = { ...tried, failed: delivery.failed + 1, pending };
  if (status === 410) return { verdict: "gone", delivery: { ...failed, lease: null } };
  const attempts = delivery.attempts + 1;
  const failingSince = delivery.failingSince ?? now;
  // Not while we were away ourselves: what nobody tried to deliver has not waited for the receiver.
  const waitedMs = nowMs - Math.max(positionMs(at), Date.parse(failingSince));
  if (waitedMs >= waitMsMax && attempts >= dropAttemptsMin) {
    const counted = { dropped: delivery.dropped + 1, lastDropped: { ...pending, at: now } };
    return { verdict: "dropped", delivery: { ...failed, ...past, ...counted, attempts, failingSince } };
  }
  const pauseMs = retryPauseMs(attempts, jitter, outcome.kind === "answered" ? outcome.retryAfter : null, nowMs);
  return {
    verdict: "waits",
    delivery: { ...failed, lease: null, attempts, failingSince, notBefore: text(nowMs + pauseMs) },
  };
}

function errorOf(outcome: WebhookOutcome): string | null {
  if (outcome.kind === "unanswered") return outcome.cause;
  const { status } = outcome;
  if (status >= 200 && status < 300) return null;
  if (status >= 300 && status < 400) return `it answered ${status}, and redirects are not followed`;
  return `it answered ${status}`;
}

/** The pause after so many failed attempts (from 1); never shorter than what the receiver asks for, within bounds. */
export function retryPauseMs(attempts: number, jitter: number, retryAfter: string | null, nowMs: number): number {
  const base = retryPausesMs[Math.min(attempts, retryPausesMs.length) - 1] ?? retryPausesMs[0];
  const own = base * (1 + retryJitter * (2 * jitter - 1));
  return Math.round(Math.max(own, Math.min(askedPauseMs(retryAfter, nowMs), retryAfterMsMax)));
}

/** Retry-After: whole seconds or a date (RFC 9110, section 10.2.3); 0 for what is neither. */
function askedPauseMs(retryAfter: string | null, nowMs: number): number {
  if (retryAfter === null) return 0;
  if (/^\d{1,9}$/.test(retryAfter)) return Number(retryAfter) * 1_000;
  const atMs = /^[A-Z][a-z]{2}, /.test(retryAfter) ? Date.parse(retryAfter) : Number.NaN;
  return Number.isNaN(atMs) ? 0 : Math.max(0, atMs - nowMs);
}

/** A person has changed the webhook: it is tried at once, nothing has waited yet, and whoever delivers by what stood before is overtaken. */
export const resumed = (delivery: WebhookDelivery): WebhookDelivery => ({
  ...delivery,
  version: delivery.version + 1,
  attempts: 0,
  failingSince: null,
  notBefore: null,
  lease: null,
});

/** Once more from this time on, or on from a later one. */
export const replayed = (delivery: WebhookDelivery, sinceMs: number): WebhookDelivery => ({
  ...resumed(delivery),
  cursor: positionAt(sinceMs),
  pending: null,
});

/** For how long the oldest event that is known to wait has waited; 0: none does. */
export const lagMs = ({ pending }: WebhookDelivery, nowMs: number): number =>
  pending === null ? 0 : Math.max(0, nowMs - Date.parse(pending.writtenAt));
