/**
 * The executor of both shims, reduced: one command at a time in the order taken, the intent on disk before a step begins and
 * the report before it is sent, a lower epoch refused, a known id never begun again, what was cut off taken up again.
 */
import { commandOf, type ModelCommand } from "./functions-side.ts";
import type { Rules } from "./rules.ts";
import type { ModelJournal, ModelMemory } from "./world.ts";

export interface Lane {
  journal: ModelJournal;
  memory: ModelMemory;
}

export const resumedMark = "~";

export const epochOf = ({ intents }: ModelJournal): number =>
  Math.max(0, ...intents.map((text) => commandOf(text).epoch));

export const textOf = (entry: string): string => (entry.startsWith(resumedMark) ? entry.slice(1) : entry);

/** Whether an id is known, begun or not. */
export function isTaken({ journal, memory }: Lane, text: string): boolean {
  const { id } = commandOf(text);
  const same = (other: string) => other !== "" && commandOf(textOf(other)).id === id;
  return journal.intents.some(same) || memory.queue.some(same) || same(memory.running);
}

/** The other body that an id was taken with; null: none (I6). */
export function conflicting({ journal, memory }: Lane, text: string): string | null {
  const { id } = commandOf(text);
  const known = [...journal.intents, ...memory.queue.map(textOf), memory.running].filter((other) => other !== "");
  return known.find((other) => commandOf(other).id === id && other !== text) ?? null;
}

export function isRefused({ journal, memory }: Lane, text: string, rules: Rules): boolean {
  if (journal.forgotten && rules.keepsTombstone) return true;
  return rules.checksEpoch && commandOf(text).epoch < memory.epoch;
}

/** Takes a command; when nothing runs it begins at once. The first position of a step is its kind's name. */
export function take(lane: Lane, text: string, rules: Rules): void {
  const { journal, memory } = lane;
  if (journal.forgotten) journal.forgotten = false;
  memory.epoch = Math.max(memory.epoch, commandOf(text).epoch);
  memory.queue = [...memory.queue, text];
  if (memory.running === "") startNext(lane, rules);
}

/** Begins the next command that still counts. */
export function startNext(lane: Lane, rules: Rules): void {
  const { memory } = lane;
  while (memory.running === "" && memory.queue.length > 0) {
    const [entry = "", ...rest] = memory.queue;
    memory.queue = rest;
    const text = textOf(entry);
    const resumed = entry !== text;
    const command = commandOf(text);
    if (!resumed && rules.checksEpoch && command.epoch < memory.epoch) continue;
    if (!resumed) intend(lane, text);
    memory.running = text;
    memory.resumed = resumed && rules.journalsIntent;
    memory.position = command.kind;
  }
}

export function intend({ journal }: Lane, text: string): void {
  journal.intents = [...journal.intents, text];
  journal.reports = [...journal.reports, ""];
}

export function journalReport({ journal }: Lane, text: string, report: string): void {
  const index = journal.intents.indexOf(text);
  journal.reports = journal.reports.map((known, at) => (at === index ? report : known));
}

/** The running step has ended. */
export function end(lane: Lane, report: string, rules: Rules): void {
  const { memory } = lane;
  journalReport(lane, memory.running, report);
  memory.running = "";
  memory.resumed = false;
  memory.position = "";
  startNext(lane, rules);
}

export const unreported = ({ journal }: Lane): string[] =>
  journal.intents.filter((_, index) => journal.reports[index] === "");

export const isIdle = ({ memory }: Lane): boolean => memory.running === "" && memory.queue.length === 0;

export function reportOf({ journal }: Lane, matches: (command: ModelCommand) => boolean): string | null {
  const index = journal.intents.findIndex((text) => matches(commandOf(text)));
  return index < 0 ? null : (journal.reports[index] ?? null);
}
