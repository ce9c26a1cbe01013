/**
 * Brings the totals of `/metrics` up to the chronicle: read on from where they stand, fold, one conditional write (I5). The minute's timer does it, and a scrape
 * that finds them old. Whoever loses the race takes what the winner has written; whose answer is lost finds out at the next look. So each event is counted once,
 * and what is told was committed: it never goes back.
 */

import type { ChronicleEntry } from "./core/chronicle-event.ts";
import { positionAt, positionMs } from "./core/chronicle-position.ts";
import { chronicleRowsMax, chronicleSettleMs } from "./core/limits.ts";
import { advanced, type MetricRecord, noRecord } from "./core/metric-totals.ts";
import type { Chronicle, Clock, Log, MetricStore, MetricsKept } from "./ports.ts";

export interface AdvanceBounds {
  /** Events of one page. */
  rowsMax: number;
  /** Pages of one advance by the timer. */
  timerPagesMax: number;
  /** Pages of one by a scrape. */
  scrapePagesMax: number;
}

/**
 * The timer's 5,000 events take some seconds of its minute; a year of a busy fleet is counted in an hour or two. A scrape, which Prometheus waits 10 s for, counts
 * what a minute without a timer brings, in well below a second.
 */
const boundsDefault: AdvanceBounds = { rowsMax: chronicleRowsMax, timerPagesMax: 50, scrapePagesMax: 5 };
/** A scrape leaves totals alone that were brought up so recently: several scrapers at once cost no more than one. */
const scrapeAgeMs = 10_000;

export interface MetricsView extends Omit<MetricsKept, "record"> {
  record: MetricRecord;
  /** Unix time up to which everything that happened is in the totals. */
  countedMs: number;
}

export interface MetricCounter {
  /** The timer's: goes on with counting. */
  tick(): Promise<void>;
  /** A scrape's: everything that is kept, counted up when it is old. */
  view(): Promise<MetricsView>;
}

export interface MetricPorts {
  clock: Clock;
  log: Log;
  chronicle: Pick<Chronicle, "after">;
  metrics: Pick<MetricStore, "load" | "commit">;
}

export function createMetricCounter(
  { clock, log, chronicle, metrics }: MetricPorts,
  { rowsMax, timerPagesMax, scrapePagesMax } = boundsDefault,
): MetricCounter {
  /** Up to where this process has seen for itself that no event is left uncounted; what is not written down every time (an idle fleet writes nothing). */
  let lookedMs = 0;

  async function readOn(record: MetricRecord, untilMs: number, pagesMax: number) {
    const until = positionAt(untilMs);
    const entries: ChronicleEntry[] = [];
    for (let page = 0; page < pagesMax; page += 1) {
      const at = entries.at(-1)?.at ?? record.cursor;
      const more = await chronicle.after({ at, until, limit: rowsMax });
      entries.push(...more);
      if (more.length < rowsMax) return { entries, atEnd: true };
    }
    return { entries, atEnd: false };
  }

  async function advance(from: MetricRecord | null, pagesMax: number): Promise<MetricRecord> {
    const record = from ?? noRecord();
    const settledMs = Date.parse(clock.now()) - chronicleSettleMs;
    const { entries, atEnd } = await readOn(record, settledMs, pagesMax);
    const last = entries.at(-1);
    const countedMs = atEnd ? settledMs : last === undefined ? record.countedMs : positionMs(last.at);
    const next = advanced(record, entries, { atEnd, countedMs });
    if (next !== record && (await metrics.commit(next)) === "conflict") return (await metrics.load()).record ?? record;
    if (atEnd) lookedMs = Math.max(lookedMs, settledMs);
    else
      log.write("info", "the chronicle is being counted; more is left", { counted: entries.length, upTo: countedMs });
    return next;
  }

  const countedOf = (record: MetricRecord) => Math.max(record.countedMs, record.whole ? lookedMs : 0);

  return {
    async tick() {
      const { record } = await metrics.load();
      await advance(record, timerPagesMax);
    },

    async view() {
      const { record, ...kept } = await metrics.load();
      const isOld = record === null || Date.parse(clock.now()) - chronicleSettleMs - countedOf(record) >= scrapeAgeMs;
      const counted = isOld ? await advance(record, scrapePagesMax) : record;
      return { ...kept, record: counted, countedMs: countedOf(counted) };
    },
  };
}
