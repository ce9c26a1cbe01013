/**
 * The chronicle in DynamoDB: one item for each event under the event's own id, so that what is told again is refused and stays one line. The order of reading
 * is the order of writing, by the index `newest`: `at` is a ULID made when it was written. `ttl` sweeps what is older than anybody asks for.
 */
import * as z from "zod/mini";
import { type ChronicleEntry, type ChronicleEvent, chronicleEventSchema, chronicleTypes } from "#core/chronicle-event";
import { lineText } from "#core/chronicle-fit";
import { positionAt, positionMs } from "#core/chronicle-position";
import { chronicleAppendMsMax, chronicleKeptMs, chronicleRowsMax } from "#core/limits";
import type { Chronicle, Ids } from "../ports.ts";
import { type DynamoTable, type Item, itemDoesNotExist } from "./dynamo-table.ts";
import { decoded, jsonOf, textOf } from "./stored-item.ts";

const eventKey = (id: string) => ({ pk: `EVENT#${id}`, sk: "EVENT" });
const index = { name: "newest", hash: "EVENTS" } as const;
const what = "the chronicle";
const typedSchema = z.looseObject({ type: z.string() });
const knownTypes: ReadonlySet<string> = new Set(chronicleTypes);

export class DynamoChronicle implements Chronicle {
  readonly #table: DynamoTable;
  readonly #ids: Pick<Ids, "ulid">;
  readonly #appendMsMax: number;

  constructor(table: DynamoTable, ids: Pick<Ids, "ulid">, appendMsMax = chronicleAppendMsMax) {
    this.#table = table;
    this.#ids = ids;
    this.#appendMsMax = appendMsMax;
  }

  async append(event: ChronicleEvent): Promise<boolean> {
    const key = eventKey(event.id);
    const at = this.#ids.ulid();
    const item: Item = {
      pk: { S: key.pk },
      sk: { S: key.sk },
      row: { S: lineText(event) },
      newestOf: { S: index.hash },
      newestSort: { S: at },
      ttl: { N: String(Math.ceil((positionMs(at) + chronicleKeptMs) / 1000)) },
    };
    // Written later, it would stand where readers have been already. Whoever repeats it gives it a place of then.
    const written = await this.#table.put(`event ${event.id}`, item, itemDoesNotExist, this.#appendMsMax);
    if (written === "written") return true;
    // The refusal may come from our own first attempt whose answer was lost.
    return (await this.#table.get(`event ${event.id}`, key))?.newestSort?.S === at;
  }

  async find(id: string): Promise<ChronicleEntry | null> {
    const item = await this.#table.get(`event ${id}`, eventKey(id));
    return item === null ? null : entryOf(item);
  }

  after({ at, until, limit }: Parameters<Chronicle["after"]>[0]): Promise<ChronicleEntry[]> {
    return this.#read({ after: at, before: until, limit, oldestFirst: true });
  }

  before({ at, limit }: Parameters<Chronicle["before"]>[0]): Promise<ChronicleEntry[]> {
    return this.#read({ after: null, before: at, limit, oldestFirst: false });
  }

  /** Removes lines that were written before that moment (Unix time), as many as one page holds; how many there were. For a store that sweeps nothing itself. */
  async sweep(untilMs: number): Promise<number> {
    const page = { after: null, before: positionAt(untilMs), limit: chronicleRowsMax, oldestFirst: true };
    const keys = (await this.#table.range(what, index, page)).map((item) => ({
      pk: textOf(what, item, "pk"),
      sk: textOf(what, item, "sk"),
    }));
    if (keys.length > 0) await this.#table.writeAll(what, [], keys);
    return keys.length;
  }

  async #read(page: {
    after: string | null;
    before: string | null;
    limit: number;
    oldestFirst: boolean;
  }): Promise<ChronicleEntry[]> {
    const entries: ChronicleEntry[] = [];
    for (let { after, before } = page; ; ) {
      const limit = page.limit - entries.length;
      const items = await this.#table.range(what, index, { ...page, after, before, limit });
      for (const item of items) {
        const entry = entryAmong(item);
        if (entry !== null) entries.push(entry);
      }
      const last = items.at(-1);
      if (last === undefined || items.length < limit || entries.length >= page.limit) return entries;
      const at = textOf(what, last, "newestSort");
      if (page.oldestFirst) after = at;
      else before = at;
    }
  }
}

/** Null: of a kind that only a newer version knows, which tells it to those who ask there. */
function entryOf(item: Item): ChronicleEntry | null {
  const typed = jsonOf(what, typedSchema, item, "row");
  if (!knownTypes.has(typed.type)) return null;
  return { at: textOf(what, item, "newestSort"), event: decoded(what, chronicleEventSchema, typed) };
}

/**
 * Among others. Null also for one in newer words: since each is checked before it is written (`lineText`), none is merely bad, and who went back to an older version
 * would have all its readers stand before it for good.
 */
function entryAmong(item: Item): ChronicleEntry | null {
  const event = chronicleEventSchema.safeParse(jsonOf(what, typedSchema, item, "row"));
  return event.success ? { at: textOf(what, item, "newestSort"), event: event.data } : null;
}
