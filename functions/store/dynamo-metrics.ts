/**
 * What `/metrics` keeps, in DynamoDB: three items of one partition, so that a scrape reads all of them with one request.
 *
 * Keys (pk / sk):
 *   METRICS / TOTALS#layout   the totals and how far they were counted; an item for each layout (core/metric-totals.ts)
 *   METRICS / INVENTORY       the domains, counted
 *   METRICS / TIMER           when each of the timer's tasks has done its work, an attribute each
 */
import { type InventoryCount, inventoryCountSchema } from "#core/metric-inventory";
import { type MetricRecord, metricLayout, metricRecordSchema } from "#core/metric-totals";
import type { CommitResult, MetricStore, MetricsKept } from "../ports.ts";
import { type Condition, type DynamoTable, type Item, itemDoesNotExist } from "./dynamo-table.ts";
import { bodyText, jsonOf } from "./stored-item.ts";

const pk = "METRICS";
const totalsSort = `TOTALS#${metricLayout}`;
const inventorySort = "INVENTORY";
const timerSort = "TIMER";
const taskPrefix = "task_";
const what = "the metrics";

const always: Condition = { expression: "attribute_exists(pk) OR attribute_not_exists(pk)" };
const isOneVersionAhead = (version: number): Condition =>
  version === 1
    ? itemDoesNotExist
    : {
        expression: "#version = :previous",
        names: { "#version": "version" },
        values: { ":previous": { N: String(version - 1) } },
      };

export class DynamoMetrics implements MetricStore {
  readonly #table: DynamoTable;

  constructor(table: DynamoTable) {
    this.#table = table;
  }

  async load(): Promise<MetricsKept> {
    const items = new Map((await this.#table.partition(what, pk, "")).map((item) => [item.sk?.S, item]));
    const totals = items.get(totalsSort);
    const inventory = items.get(inventorySort);
    return {
      record: totals === undefined ? null : jsonOf(what, metricRecordSchema, totals, "body"),
      inventory: inventory === undefined ? null : jsonOf(what, inventoryCountSchema, inventory, "body"),
      tasks: tasksOf(items.get(timerSort) ?? {}),
    };
  }

  async commit(record: MetricRecord): Promise<CommitResult> {
    const body = bodyText(what, record);
    const item: Item = {
      pk: { S: pk },
      sk: { S: totalsSort },
      version: { N: String(record.version) },
      body: { S: body },
    };
    if ((await this.#table.put(what, item, isOneVersionAhead(record.version))) === "written") return "committed";
    // The refusal may come from our own first attempt whose answer was lost.
    const standing = await this.#table.get(what, { pk, sk: totalsSort });
    return standing?.body?.S === body ? "committed" : "conflict";
  }

  async putInventory(count: InventoryCount): Promise<void> {
    const item: Item = {
      pk: { S: pk },
      sk: { S: inventorySort },
      body: { S: bodyText("the count of domains", count) },
    };
    await this.#table.put("the count of domains", item, always);
  }

  async succeeded(tasks: readonly string[], at: string): Promise<void> {
    if (tasks.length === 0) return;
    const names = Object.fromEntries(tasks.map((task, index) => [`#t${index}`, `${taskPrefix}${task}`]));
    const expression = `SET ${tasks.map((_, index) => `#t${index} = :at`).join(", ")}`;
    await this.#table.update("the timer's sign of life", { pk, sk: timerSort }, expression, {
      ...always,
      names,
      values: { ":at": { S: at } },
    });
  }
}

const tasksOf = (item: Item): Record<string, string> =>
  Object.fromEntries(
    Object.entries(item).flatMap(([name, value]) =>
      name.startsWith(taskPrefix) && value.S !== undefined ? [[name.slice(taskPrefix.length), value.S]] : [],
    ),
  );
