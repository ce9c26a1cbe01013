/**
 * The guest's blackout as its serial port tells it: the silence between the last count that the source printed and the first one from
 * the destination. Other silences, such as those of a busy machine, are none.
 */
import { open, stat } from "node:fs/promises";
import type { Guest } from "#lab/guest";
import type { Host } from "#lab/host";

/** A gap shorter than this is the guest's own pace, in ms. */
export const gapMsMin = 6;
/** The line in which the writers change may be cut in two, so the first whole count over there is that of the gap or the next. */
const countsApart = 2;
const headBytesMax = 4_096;

export interface Blackout {
  ms: number;
  /** The reader's own longest pause between two looks in the gap: the gap is known to that. */
  observerMs: number;
}

/** Where the destination's output ends now, so that what comes is told from what was there from an earlier visit. */
export async function outputEnd(guest: Guest, destination: Host): Promise<number> {
  return stat(guest.serialCopyOn(destination)).then(
    ({ size }) => size,
    () => 0,
  );
}

/** The gap of the handover; the guest must have counted over there. Throws when no gap fits: a blackout is never 0. */
export async function blackoutOf(guest: Guest, destination: Host, from: number): Promise<Blackout> {
  const first = await firstCount(guest.serialCopyOn(destination), from);
  const fitting = guest.witness.gaps.filter(({ after }) => Math.abs(after - first) <= countsApart);
  const gap = fitting.toSorted((one, other) => other.ms - one.ms)[0];
  if (gap === undefined) throw new Error(`no gap of ${gapMsMin} ms before the count ${first}`);
  return { ms: gap.ms, observerMs: gap.observerMs };
}

/** The first whole count in the file behind `from`. */
async function firstCount(path: string, from: number): Promise<number> {
  const file = await open(path, "r");
  try {
    const buffer = Buffer.alloc(headBytesMax);
    const { bytesRead } = await file.read(buffer, 0, headBytesMax, from);
    const count = /^tick (\d+)\r?\n/m.exec(buffer.toString("latin1", 0, bytesRead))?.[1];
    if (count === undefined) throw new Error(`no count in ${path} behind ${from}`);
    return Number(count);
  } finally {
    await file.close();
  }
}
