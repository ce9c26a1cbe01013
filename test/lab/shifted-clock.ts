/**
 * A clock that a test drives: loaded before anything else (`--import`), it shifts this process's calendar by the milliseconds in the file that
 * VMFERRY_LAB_CLOCK names, and follows when the file changes. What measures durations (performance.now, timers) stays as it is.
 */
import { readFileSync } from "node:fs";

const path = process.env.VMFERRY_LAB_CLOCK ?? "";
/** How soon a change of the file is seen. */
const readEveryMs = 50;
const RealDate = Date;
let shiftMs = 0;
let readAtMs = Number.NEGATIVE_INFINITY;

function shift(): number {
  const nowMs = performance.now();
  if (nowMs - readAtMs < readEveryMs) return shiftMs;
  readAtMs = nowMs;
  try {
    shiftMs = Number(readFileSync(path, "utf8"));
  } catch {
    // Not written yet: the last one holds.
  }
  return shiftMs;
}

globalThis.Date = new Proxy(RealDate, {
  construct: (target, given, newTarget) =>
    Reflect.construct(target, given.length === 0 ? [RealDate.now() + shift()] : given, newTarget),
  get: (target, name, receiver) =>
    name === "now" ? () => RealDate.now() + shift() : Reflect.get(target, name, receiver),
});
