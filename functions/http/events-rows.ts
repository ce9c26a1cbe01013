/**
 * What is active now, as rows of its lists: told when a step, a status or a count changes, for whoever watches, and kept nowhere. It costs two readings of an
 * index each time, only while somebody watches. What was active and is not any more is read once more, so that its last row is its end.
 */
import { evacuationSummary } from "../core/evacuation-state.ts";
import { pageRowsMax } from "../core/limits.ts";
import type { Page, Ports } from "../ports.ts";
import { type EvacuationRow, evacuationRow } from "./evacuation-resource.ts";
import { type MigrationRow, migrationRow } from "./migration-resource.ts";

export type LiveRow = { name: "migration"; data: MigrationRow } | { name: "evacuation"; data: EvacuationRow };

type Stores = Pick<Ports, "migrations" | "evacuations">;

const page = { limit: pageRowsMax, cursor: null, active: true };

/** A list has the newest first, and where it is full nothing is known of those before: they are no more read one by one than listed. */
const listedFrom = ({ items, cursor }: Page<{ id: string }>) => (cursor === null ? "" : (items.at(-1)?.id ?? ""));

export class LiveRows {
  readonly #stores: Stores;
  /** Null: all. */
  readonly #id: string | null;
  readonly #told = new Map<string, string>();

  constructor(stores: Stores, id: string | null) {
    this.#stores = stores;
    this.#id = id;
  }

  /** The rows that have changed since the last look; at the first, all that are active. */
  async changed(): Promise<LiveRow[]> {
    const { migrations, evacuations } = this.#stores;
    const [moving, draining] = await Promise.all([migrations.list(page), evacuations.list(page)]);
    const active: LiveRow[] = [
      ...draining.items.map((item) => ({ name: "evacuation" as const, data: evacuationRow(item) })),
      ...moving.items.map((item) => ({ name: "migration" as const, data: migrationRow(item) })),
    ].filter(({ data }) => this.#id === null || data.id === this.#id);
    const there = new Set(active.map(({ data }) => data.id));
    const gone = [...this.#told.keys()].filter(
      (id) => !there.has(id) && id >= listedFrom(id.startsWith("e_") ? draining : moving),
    );
    const ended = await Promise.all(gone.map((id) => this.#lastOf(id)));
    const rows = [...active, ...ended.filter((row) => row !== null)];
    return rows.filter((row) => this.#isNews(row));
  }

  #isNews({ data }: LiveRow): boolean {
    const text = JSON.stringify(data);
    const isNews = this.#told.get(data.id) !== text;
    if (data.endedAt === null) this.#told.set(data.id, text);
    else this.#told.delete(data.id);
    return isNews;
  }

  /** Null: it is no more; it stays what it was. */
  async #lastOf(id: string): Promise<LiveRow | null> {
    if (id.startsWith("e_")) {
      const state = await this.#stores.evacuations.load(id);
      return state === null ? null : { name: "evacuation", data: evacuationRow(evacuationSummary(state)) };
    }
    const state = await this.#stores.migrations.load(id);
    return state === null ? null : { name: "migration", data: migrationRow(state) };
  }
}
