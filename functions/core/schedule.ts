/**
 * Windows of a schedule: opened by a cron expression in a time zone, closed after a duration or by the clock on the wall. The cron library is behind a
 * port; what an hour that does not exist or exists twice means is decided there once: one that is skipped opens at the first instant that exists, one
 * that comes twice opens the first time (test/unit/schedule.test.ts holds it to that over a year).
 */
import { durationMs, type Schedule } from "./rule.ts";

/** Reads cron expressions. Pure: the same arguments, the same instant (as long as the time zone's own rules stand). */
export interface Cron {
  /** The first instant after `afterMs` (Unix time); null: never again. Throws `RangeError` with the reason for what it cannot read. */
  next(expression: string, timeZone: string, afterMs: number): number | null;
}

export interface Window {
  opensMs: number;
  /** The first instant at which it is closed. */
  closesMs: number;
}

/** Longest window: more is no window but a state. Also the bound of how far back an opening is looked for. */
export const windowMsMax = 7 * 86_400_000;
/** Openings that are looked at when a rule is checked: a year of weeks. */
const openingsChecked = 53;
/** Openings in one window's length: a checked rule has one; a rule from before a time zone changed may have some more. */
const openingsMax = 64;

const formats = new Map<string, Intl.DateTimeFormat>();
/** The day on the wall at an instant, `YYYY-MM-DD`. */
export function localDate(timeZone: string, atMs: number): string {
  let format = formats.get(timeZone);
  if (format === undefined) {
    format = new Intl.DateTimeFormat("en-CA", { timeZone, year: "numeric", month: "2-digit", day: "2-digit" });
    formats.set(timeZone, format);
  }
  return format.format(atMs);
}

/** Why nothing is started at this instant; null: it may. Texts in the form YYYY-MM-DD compare as days do. */
export function excludedBy(schedule: Schedule, atMs: number): string | null {
  const date = localDate(schedule.timeZone, atMs);
  if (schedule.exclude.dates.includes(date)) return `${date} is excluded`;
  const range = schedule.exclude.ranges.find(({ from, to }) => from <= date && date <= to);
  return range === undefined ? null : `${date} is excluded (${range.from} to ${range.to})`;
}

/** The window that opens at `opensMs`. */
export function windowFrom(schedule: Schedule, opensMs: number, cron: Cron): Window {
  if (schedule.window !== undefined) return { opensMs, closesMs: opensMs + durationMs(schedule.window) };
  const [hour = "0", minute = "0"] = (schedule.until ?? "00:00").split(":");
  const closesMs = cron.next(`${Number(minute)} ${Number(hour)} * * *`, schedule.timeZone, opensMs);
  // Every clock shows every hour once in two days; a zone that never does opens no window at all.
  return { opensMs, closesMs: closesMs ?? opensMs };
}

/** The next windows after an instant, excluded ones left out. */
export function nextWindows(schedule: Schedule, afterMs: number, count: number, cron: Cron): Window[] {
  const windows: Window[] = [];
  let at: number | null = afterMs;
  for (let looked = 0; windows.length < count && looked < count + 1_000; looked += 1) {
    at = cron.next(schedule.cron, schedule.timeZone, at);
    if (at === null) break;
    if (excludedBy(schedule, at) === null) windows.push(windowFrom(schedule, at, cron));
  }
  return windows;
}

/** The window that is open at an instant, the latest if there are several; null: none. Excluded openings open nothing. */
export function openWindow(schedule: Schedule, nowMs: number, cron: Cron): Window | null {
  // Two days cover `until` where a clock skips an hour.
  const lengthMs = schedule.window === undefined ? 2 * 86_400_000 : durationMs(schedule.window);
  let found: Window | null = null;
  let at: number | null = nowMs - Math.min(lengthMs, windowMsMax) - 1;
  for (let looked = 0; looked < openingsMax; looked += 1) {
    at = cron.next(schedule.cron, schedule.timeZone, at);
    if (at === null || at > nowMs) break;
    const window = windowFrom(schedule, at, cron);
    if (nowMs < window.closesMs && excludedBy(schedule, at) === null) found = window;
  }
  return found;
}

/** Whether what takes `estimateMs` may be started now: inside the window, and done before it closes. */
export const fits = (window: Window, nowMs: number, estimateMs: number): boolean =>
  window.opensMs <= nowMs && nowMs < window.closesMs && nowMs + estimateMs <= window.closesMs;

/** What is wrong with a schedule, each problem with its path; empty: nothing. */
export function scheduleProblems(schedule: Schedule, nowMs: number, cron: Cron): string[] {
  const problems: string[] = [];
  if ((schedule.window === undefined) === (schedule.until === undefined))
    problems.push("`when`: give either `window` or `until`");
  if (schedule.window !== undefined && durationMs(schedule.window) > windowMsMax)
    problems.push("`when.window` is over the limit of 7d");
  for (const [index, { from, to }] of schedule.exclude.ranges.entries())
    if (to < from) problems.push(`\`when.exclude.ranges.${index}\` ends before it begins`);
  for (const date of [...schedule.exclude.dates, ...schedule.exclude.ranges.flatMap(({ from, to }) => [from, to])])
    if (!isDay(date)) problems.push(`\`when.exclude\`: there is no ${date}`);
  try {
    localDate(schedule.timeZone, nowMs);
  } catch {
    return [...problems, "`when.timeZone` is not a time zone that is known here (IANA: Europe/Berlin)"];
  }
  if (problems.length > 0) return problems;
  try {
    let at: number | null = nowMs;
    let before: Window | null = null;
    for (let looked = 0; looked < openingsChecked; looked += 1) {
      at = cron.next(schedule.cron, schedule.timeZone, at);
      if (at === null) break;
      if (before !== null && at < before.closesMs)
        return ["`when`: a window opens before the one before it has closed; make it shorter or the cron rarer"];
      before = windowFrom(schedule, at, cron);
    }
    if (before === null) problems.push("`when.cron` never comes");
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    problems.push(`\`when.cron\`: ${error.message}`);
  }
  return problems;
}

/** 2026-02-30 has the form of a day and is none. */
function isDay(text: string): boolean {
  const ms = Date.parse(`${text}T00:00:00Z`);
  return Number.isFinite(ms) && new Date(ms).toISOString().startsWith(text);
}
