/**
 * Outgoing webhooks in DynamoDB: what people write and how the delivery stands are two items, so that neither waits for the other.
 *
 * Keys (pk / sk):
 *   WEBHOOKS / name          a webhook             WEBHOOKDELIVERIES / webhook's id      how its delivery stands
 */
import { type WebhookRecord, webhookRecordSchema } from "#core/webhook";
import { type WebhookDelivery, webhookDeliverySchema } from "#core/webhook-delivery";
import type { CommitResult, WebhookStore } from "../ports.ts";
import { type Condition, type DynamoTable, itemDoesNotExist, itemExists } from "./dynamo-table.ts";
import { bodyText, jsonOf } from "./stored-item.ts";

type Key = { pk: string; sk: string };
const recordKey = (name: string): Key => ({ pk: "WEBHOOKS", sk: name });
const deliveryKey = (webhookId: string): Key => ({ pk: "WEBHOOKDELIVERIES", sk: webhookId });

const isAt = (version: number): Condition => ({
  expression: "#version = :version",
  names: { "#version": "version" },
  values: { ":version": { N: String(version) } },
});

export class DynamoWebhooks implements WebhookStore {
  readonly #table: DynamoTable;

  constructor(table: DynamoTable) {
    this.#table = table;
  }

  async load(name: string): Promise<WebhookRecord | null> {
    const what = `webhook ${name}`;
    const item = await this.#table.get(what, recordKey(name));
    return item === null ? null : jsonOf(what, webhookRecordSchema, item, "body");
  }

  async list(): Promise<WebhookRecord[]> {
    const what = "the list of webhooks";
    const items = await this.#table.partition(what, "WEBHOOKS", "");
    return items.map((item) => jsonOf(what, webhookRecordSchema, item, "body"));
  }

  commit(record: WebhookRecord): Promise<CommitResult> {
    return this.#write(`webhook ${record.name}`, recordKey(record.name), record);
  }

  async remove({ name, id, version }: WebhookRecord): Promise<CommitResult> {
    const what = `webhook ${name}`;
    if ((await this.#table.delete(what, recordKey(name), isAt(version))) === "written") return "committed";
    // The refusal may come from our own first attempt; another of that name is another webhook.
    return (await this.load(name))?.id === id ? "conflict" : "committed";
  }

  async delivery(webhookId: string): Promise<WebhookDelivery | null> {
    const what = `the delivery of webhook ${webhookId}`;
    const item = await this.#table.get(what, deliveryKey(webhookId));
    return item === null ? null : jsonOf(what, webhookDeliverySchema, item, "body");
  }

  async deliveries(): Promise<WebhookDelivery[]> {
    const what = "the deliveries of webhooks";
    const items = await this.#table.partition(what, "WEBHOOKDELIVERIES", "");
    return items.map((item) => jsonOf(what, webhookDeliverySchema, item, "body"));
  }

  commitDelivery(delivery: WebhookDelivery): Promise<CommitResult> {
    return this.#write(`the delivery of webhook ${delivery.webhook}`, deliveryKey(delivery.webhook), delivery);
  }

  async removeDelivery(webhookId: string): Promise<void> {
    await this.#table.delete(`the delivery of webhook ${webhookId}`, deliveryKey(webhookId), itemExists);
  }

  async #write(what: string, key: Key, value: { version: number }): Promise<CommitResult> {
    const body = bodyText(what, value);
    const item = { pk: { S: key.pk }, sk: { S: key.sk }, version: { N: String(value.version) }, body: { S: body } };
    const condition = value.version === 1 ? itemDoesNotExist : isAt(value.version - 1);
    if ((await this.#table.put(what, item, condition)) === "written") return "committed";
    // The refusal may come from our own first attempt whose answer was lost.
    return (await this.#table.get(what, key))?.body?.S === body ? "committed" : "conflict";
  }
}
