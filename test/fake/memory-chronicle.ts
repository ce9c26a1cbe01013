/** The chronicle in memory; it passes the same cases as DynamoDB's (test/contract/chronicle-cases.ts). */
import { type ChronicleEntry, type ChronicleEvent, chronicleEventSchema } from "#core/chronicle-event";
import { lineText } from "#core/chronicle-fit";
import { positionAt } from "#core/chronicle-position";
import type { Chronicle, Clock, Ids } from "#functions/ports";

/** Positions by a clock that tests move, in the order in which they are asked for. */
export function positionsBy(clock: Clock): Pick<Ids, "ulid"> {
  let serial = 0;
  return { ulid: () => `${positionAt(Date.parse(clock.now()))}${String(++serial).padStart(16, "0")}` };
}

export class MemoryChronicle implements Chronicle {
  readonly #ids: Pick<Ids, "ulid">;
  readonly #entries: ChronicleEntry[] = [];

  constructor(ids: Pick<Ids, "ulid">) {
    this.#ids = ids;
  }

  /** Every event, oldest first, for tests that look at all. */
  get events(): ChronicleEvent[] {
    return this.#entries.map(({ event }) => event);
  }

  async append(event: ChronicleEvent): Promise<boolean> {
    const stored = chronicleEventSchema.parse(JSON.parse(lineText(event)));
    if (this.#entries.some((entry) => entry.event.id === event.id)) return false;
    this.#entries.push({ at: this.#ids.ulid(), event: stored });
    this.#entries.sort((one, other) => (one.at < other.at ? -1 : 1));
    return true;
  }

  async find(id: string): Promise<ChronicleEntry | null> {
    return structuredClone(this.#entries.find(({ event }) => event.id === id) ?? null);
  }

  async after({
    at,
    until,
    limit,
  }: {
    at: string | null;
    until: string | null;
    limit: number;
  }): Promise<ChronicleEntry[]> {
    const found = this.#entries.filter(
      (entry) => (at === null || entry.at > at) && (until === null || entry.at < until),
    );
    return structuredClone(found.slice(0, limit));
  }

  async before({ at, limit }: { at: string | null; limit: number }): Promise<ChronicleEntry[]> {
    const found = this.#entries.filter((entry) => at === null || entry.at < at).toReversed();
    return structuredClone(found.slice(0, limit));
  }
}
