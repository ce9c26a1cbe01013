/** Bundle tasks in DynamoDB: one item each, written over the version before (I5). */
import { type BundleTask, bundleTaskSchema } from "#core/bundle-task";
import type { BundleTaskStore, CommitResult } from "../ports.ts";
import { type Condition, type DynamoTable, itemDoesNotExist } from "./dynamo-table.ts";
import { bodyText, jsonOf } from "./stored-item.ts";

const taskKey = (id: string) => ({ pk: `TASK#${id}`, sk: "STATE" });

const isOneVersionAhead = (task: BundleTask): Condition => ({
  expression: "#version = :previous",
  names: { "#version": "version" },
  values: { ":previous": { N: String(task.version - 1) } },
});

export class DynamoBundleTasks implements BundleTaskStore {
  readonly #table: DynamoTable;

  constructor(table: DynamoTable) {
    this.#table = table;
  }

  create(task: BundleTask): Promise<CommitResult> {
    return this.#write(task, itemDoesNotExist);
  }

  commit(task: BundleTask): Promise<CommitResult> {
    return this.#write(task, isOneVersionAhead(task));
  }

  async #write(task: BundleTask, condition: Condition): Promise<CommitResult> {
    const what = `bundle task ${task.id}`;
    const body = bodyText(what, task);
    const { pk, sk } = taskKey(task.id);
    const item = { pk: { S: pk }, sk: { S: sk }, version: { N: String(task.version) }, body: { S: body } };
    if ((await this.#table.put(what, item, condition)) === "written") return "committed";
    // The refusal may come from our own first attempt whose answer was lost.
    const standing = await this.#table.get(what, taskKey(task.id));
    return standing?.body?.S === body ? "committed" : "conflict";
  }

  async load(id: string): Promise<BundleTask | null> {
    const what = `bundle task ${id}`;
    const item = await this.#table.get(what, taskKey(id));
    return item === null ? null : jsonOf(what, bundleTaskSchema, item, "body");
  }
}
