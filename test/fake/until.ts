/** Waits for what must come, by looking again and again; what never comes fails with what there was. */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

/** Looks, counted and not timed: a busy machine gets as many as a quiet one. */
const looksMax = 300;
const pauseMs = 50;

export async function until<T>(what: string, look: () => Promise<T> | T, isSo: (found: T) => boolean): Promise<T> {
  for (let looks = 0; ; looks += 1) {
    const found = await look();
    if (isSo(found)) return found;
    if (looks > looksMax) assert.fail(`${what}: ${JSON.stringify(found)}`);
    await sleep(pauseMs);
  }
}
