/** Webhooks as the API shows them, and as the CLI reads them. A secret is in the one answer that makes it and in nothing else (I9). */
import * as z from "zod/mini";
import { positionMs } from "../core/chronicle-position.ts";
import { signingSecrets, type WebhookRecord, webhookNameSchema, webhookRecordSchema } from "../core/webhook.ts";
import { lagMs, newDelivery, type WebhookDelivery, webhookDeliverySchema } from "../core/webhook-delivery.ts";

const { shape } = webhookDeliverySchema;

export const webhookRowSchema = z.object({
  name: webhookNameSchema,
  url: z.string(),
  types: z.array(z.string()),
  createdAt: z.string(),
  changedAt: z.string(),
  by: z.string(),
  /** Why nothing is delivered; null: it is. */
  paused: webhookRecordSchema.shape.paused,
  /** Those that sign now, the current one first; `until`: it signs until then. */
  secrets: z.array(z.object({ id: z.string(), createdAt: z.string(), until: z.nullable(z.string()) })),
  delivery: z.object({
    /** What was written down before this is delivered, dropped, or not wanted. */
    position: z.string(),
    delivered: shape.delivered,
    failed: shape.failed,
    dropped: shape.dropped,
    /** How long the event waits that could not be delivered; 0: none. */
    lagMs: z.number(),
    /** Failed attempts since the last success, since when, and when the next one is made. */
    attempts: shape.attempts,
    failingSince: shape.failingSince,
    nextAttemptAt: shape.notBefore,
    pending: shape.pending,
    lastAttemptAt: shape.lastAttemptAt,
    lastStatus: shape.lastStatus,
    lastError: shape.lastError,
    deliveredAt: shape.deliveredAt,
    lastDropped: shape.lastDropped,
  }),
});
export type WebhookRow = z.infer<typeof webhookRowSchema>;

export const webhookWrittenSchema = z.object({
  ...webhookRowSchema.shape,
  /** False: it is as it was. */
  changed: z.boolean(),
  /** Shown this once, when it was made; null: it was there before, with the secret that it has. */
  secret: z.nullable(z.string()),
});
export const webhookSecretMadeSchema = z.object({ ...webhookRowSchema.shape, secret: z.string() });

export const webhookTestedSchema = z.object({
  eventId: z.string(),
  /** Null: there was no answer. */
  status: z.nullable(z.int()),
  error: z.nullable(z.string()),
  ms: z.number(),
  /** The receiver took it: it answered 2xx. */
  taken: z.boolean(),
});

export function webhookRow(record: WebhookRecord, stored: WebhookDelivery | null, nowMs: number): WebhookRow {
  const { name, url, types, createdAt, changedAt, by, paused } = record;
  const delivery = stored ?? newDelivery(record);
  const { delivered, failed, dropped, attempts, failingSince, notBefore, pending, deliveredAt, lastDropped } = delivery;
  const { lastAttemptAt, lastStatus, lastError } = delivery;
  return {
    name,
    url,
    types,
    createdAt,
    changedAt,
    by,
    paused,
    secrets: signingSecrets(record, nowMs).map(({ id, createdAt, until }) => ({ id, createdAt, until })),
    delivery: {
      position: new Date(positionMs(delivery.cursor)).toISOString(),
      delivered,
      failed,
      dropped,
      lagMs: lagMs(delivery, nowMs),
      attempts,
      failingSince,
      nextAttemptAt: notBefore,
      pending,
      lastAttemptAt,
      lastStatus,
      lastError,
      deliveredAt,
      lastDropped,
    },
  };
}
