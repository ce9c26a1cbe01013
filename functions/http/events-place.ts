/**
 * Where a reader of the chronicle stands. Lines may be joined by older ones for as long as `chronicleSettleMs`, so that much is read again each time, and what
 * was told of it is known by its position: nothing is left out and nothing is told twice, also by a reader that comes back with the id that it was given last.
 *
 * That id is `newest.floor~mark~mark`: the newest position that was looked at, the one up to which nothing is left, and marks of what was told between the two.
 * A bare position is one that somebody took from a page: what is near it may come again.
 */
import type { ChronicleEntry } from "../core/chronicle-event.ts";
import { positionAt, positionMs } from "../core/chronicle-position.ts";
import { chronicleRowsMax, chronicleSettleMs } from "../core/limits.ts";
import type { Chronicle } from "../ports.ts";
import { eventPagesMax } from "./limits.ts";

/** The end of a position stands for it: 30 random bits among the lines of some seconds. */
const markChars = 6;
/** Marks in one id, which a client sends back as a header: below 4 KB, of 10 KB that API Gateway takes of all headers. What is beyond may be told again. */
const marksMax = 512;
/** A ULID, or its first ten characters: a moment. */
const position = "[0-9A-HJKMNP-TV-Z]{10}(?:[0-9A-HJKMNP-TV-Z]{16})?";
const idPattern = new RegExp(
  `^(${position})(?:\\.(${position}))?((?:~[0-9A-HJKMNP-TV-Z]{${markChars}}){0,${marksMax}})$`,
);

const markOf = (at: string) => at.slice(-markChars);

export class Place {
  /** Nothing at or before it is looked at again. */
  #floor: string;
  #newest: string;
  #isBehind = false;
  /** Positions after the floor that were looked at; true: told. */
  readonly #seen = new Map<string, boolean>();
  /** Marks of what was told before this reader came back, up to `#resumedAt`. */
  readonly #resumed: ReadonlySet<string>;
  readonly #resumedAt: string;

  private constructor(floor: string, newest: string, marks: readonly string[]) {
    this.#floor = floor;
    this.#newest = newest;
    this.#resumedAt = newest;
    this.#resumed = new Set(marks);
  }

  /** From a moment on. */
  static since(atMs: number): Place {
    const floor = positionAt(atMs);
    return new Place(floor, floor, []);
  }

  /** From a Last-Event-ID on; null: it is none of ours. */
  static after(lastEventId: string | undefined): Place | null {
    const [, newest, floor, marks = ""] = idPattern.exec(lastEventId ?? "") ?? [];
    if (newest === undefined) return null;
    return new Place(floor ?? positionAt(positionMs(newest) - chronicleSettleMs), newest, marks.split("~").slice(1));
  }

  /** What a client gives back to go on from here. */
  get id(): string {
    // In the order of their places: of too many the oldest are left out, which settle first, and not now these and now those.
    const places = [...this.#seen].flatMap(([at, isTold]) => (isTold ? [at] : []));
    const told = new Set(places.sort().map(markOf));
    // Some of them may not have been seen again yet.
    const resumed = this.#floor < this.#resumedAt ? [...this.#resumed].filter((mark) => !told.has(mark)) : [];
    const newest = this.#newest < this.#floor ? this.#floor : this.#newest;
    return [`${newest}.${this.#floor}`, ...[...resumed, ...told].slice(-marksMax)].join("~");
  }

  /** The last reading has ended before it came to the newest: the next one goes on. */
  get isBehind(): boolean {
    return this.#isBehind;
  }

  /** What is new since the last reading, oldest first; of a long past a part. `wants`: whether a line is told; what is not is looked at once. */
  async *read(
    chronicle: Pick<Chronicle, "after">,
    nowMs: number,
    wants: (entry: ChronicleEntry) => boolean,
  ): AsyncGenerator<ChronicleEntry, void> {
    const settled = positionAt(nowMs - chronicleSettleMs);
    this.#isBehind = false;
    for (let at = this.#floor, pages = 1; ; pages += 1) {
      const page = await chronicle.after({ at, until: null, limit: chronicleRowsMax });
      for (const entry of page) {
        if (this.#seen.has(entry.at)) {
          if (entry.at < settled) this.#settle(entry.at);
          continue;
        }
        const known = entry.at <= this.#resumedAt && this.#resumed.has(markOf(entry.at));
        const isTold = known || wants(entry);
        this.#seen.set(entry.at, isTold);
        if (entry.at > this.#newest) this.#newest = entry.at;
        if (entry.at < settled) this.#settle(entry.at);
        if (isTold && !known) yield entry;
      }
      const last = page.at(-1);
      if (last === undefined || page.length < chronicleRowsMax) break;
      at = last.at;
      // What is younger is read to its end each time, for the next reading begins with it again.
      if (pages >= eventPagesMax && at < settled) {
        this.#isBehind = true;
        return;
      }
    }
    this.#settle(settled);
  }

  #settle(floor: string): void {
    if (floor <= this.#floor) return;
    this.#floor = floor;
    for (const at of this.#seen.keys()) if (at <= floor) this.#seen.delete(at);
  }
}
