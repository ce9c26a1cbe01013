/** What `/metrics` keeps, in memory; it passes the same cases as DynamoDB's (test/contract/metrics.test.ts). */
import type { InventoryCount } from "#core/metric-inventory";
import type { MetricRecord } from "#core/metric-totals";
import type { CommitResult, MetricStore, MetricsKept } from "#functions/ports";

export class MemoryMetrics implements MetricStore {
  #kept: MetricsKept = { record: null, inventory: null, tasks: {} };
  /** Writes of totals, for tests that count them. */
  writes = 0;

  async load(): Promise<MetricsKept> {
    return structuredClone(this.#kept);
  }

  async commit(record: MetricRecord): Promise<CommitResult> {
    const standing = this.#kept.record;
    if (JSON.stringify(standing) === JSON.stringify(record)) return "committed";
    if ((standing?.version ?? 0) !== record.version - 1) return "conflict";
    this.#kept = { ...this.#kept, record: structuredClone(record) };
    this.writes += 1;
    return "committed";
  }

  async putInventory(count: InventoryCount): Promise<void> {
    this.#kept = { ...this.#kept, inventory: structuredClone(count) };
  }

  async succeeded(tasks: readonly string[], at: string): Promise<void> {
    const fresh = Object.fromEntries(tasks.map((task) => [task, at]));
    this.#kept = { ...this.#kept, tasks: { ...this.#kept.tasks, ...fresh } };
  }
}
