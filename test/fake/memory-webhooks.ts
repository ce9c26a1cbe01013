/** Webhooks in memory; they pass the same cases as DynamoDB's (test/contract/webhooks.test.ts). */
import type { WebhookRecord } from "#core/webhook";
import type { WebhookDelivery } from "#core/webhook-delivery";
import type { CommitResult, WebhookStore } from "#functions/ports";

export class MemoryWebhooks implements WebhookStore {
  readonly #records = new Map<string, WebhookRecord>();
  readonly #deliveries = new Map<string, WebhookDelivery>();
  /** Writes of deliveries, for tests that count them. */
  deliveryWrites = 0;

  async load(name: string): Promise<WebhookRecord | null> {
    return structuredClone(this.#records.get(name) ?? null);
  }

  async list(): Promise<WebhookRecord[]> {
    return structuredClone([...this.#records.values()].sort((one, other) => (one.name < other.name ? -1 : 1)));
  }

  async commit(record: WebhookRecord): Promise<CommitResult> {
    return written(this.#records, record.name, record);
  }

  async remove({ name, id, version }: WebhookRecord): Promise<CommitResult> {
    const standing = this.#records.get(name);
    if (standing?.id === id && standing.version !== version) return "conflict";
    if (standing?.id === id) this.#records.delete(name);
    return "committed";
  }

  async delivery(webhookId: string): Promise<WebhookDelivery | null> {
    return structuredClone(this.#deliveries.get(webhookId) ?? null);
  }

  async deliveries(): Promise<WebhookDelivery[]> {
    return structuredClone([...this.#deliveries.values()]);
  }

  async commitDelivery(delivery: WebhookDelivery): Promise<CommitResult> {
    this.deliveryWrites += 1;
    return written(this.#deliveries, delivery.webhook, delivery);
  }

  async removeDelivery(webhookId: string): Promise<void> {
    this.#deliveries.delete(webhookId);
  }
}

function written<T extends { version: number }>(map: Map<string, T>, key: string, value: T): CommitResult {
  const standing = map.get(key);
  if (standing !== undefined && JSON.stringify(standing) === JSON.stringify(value)) return "committed";
  if ((standing?.version ?? 0) !== value.version - 1) return "conflict";
  map.set(key, structuredClone(value));
  return "committed";
}
