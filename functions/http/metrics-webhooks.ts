/** Outgoing webhooks in `/metrics`. Their number is bounded (core/webhook.ts), so each has series of its own; one that is made anew under its name begins at 0 again. */
import type { MetricFamily } from "../core/metric-family.ts";
import type { MetricSamples } from "../core/metric-text.ts";
import type { WebhookRecord } from "../core/webhook.ts";
import { lagMs, newDelivery, type WebhookDelivery } from "../core/webhook-delivery.ts";

type Read = (delivery: WebhookDelivery, record: WebhookRecord, nowMs: number) => number;

const families: readonly { name: string; help: string; type: MetricFamily["type"]; read: Read }[] = [
  {
    name: "vmferry_webhook_delivered_total",
    help: "Events that a webhook's receiver has taken.",
    type: "counter",
    read: ({ delivered }) => delivered,
  },
  {
    name: "vmferry_webhook_failed_attempts_total",
    help: "Attempts at delivering an event that failed.",
    type: "counter",
    read: ({ failed }) => failed,
  },
  {
    name: "vmferry_webhook_dropped_total",
    help: "Events that were given up after days of trying.",
    type: "counter",
    read: ({ dropped }) => dropped,
  },
  {
    name: "vmferry_webhook_failing",
    help: "Whether a webhook's last attempt has failed.",
    type: "gauge",
    read: ({ failingSince }) => (failingSince === null ? 0 : 1),
  },
  {
    name: "vmferry_webhook_lag_seconds",
    help: "For how long the oldest event that is known to wait has waited; 0 when none does.",
    type: "gauge",
    read: (delivery, _record, nowMs) => lagMs(delivery, nowMs) / 1_000,
  },
  {
    name: "vmferry_webhook_paused",
    help: "Whether a webhook is paused, by a person or because its receiver is gone.",
    type: "gauge",
    read: (_delivery, { paused }) => (paused === null ? 0 : 1),
  },
];

export function webhookSamples(
  records: readonly WebhookRecord[],
  deliveries: readonly WebhookDelivery[],
  nowMs: number,
): MetricSamples[] {
  const byId = new Map(deliveries.map((delivery) => [delivery.webhook, delivery]));
  return families.map(({ read, ...family }) => ({
    family: { ...family, labels: ["webhook"] },
    series: records.map((record) => ({
      values: [record.name],
      value: read(byId.get(record.id) ?? newDelivery(record), record, nowMs),
    })),
  }));
}
