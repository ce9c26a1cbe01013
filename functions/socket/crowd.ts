/**
 * Lets hosts in a few at a time where one isolate and one store serve all of them (`vmferry up`). When a fleet of a thousand comes back at once, each host asks the
 * store for some eight things until its inventory is kept; all at once, every request is late, every handshake runs out of its time, and all of them begin
 * again. A host that waits here has cost nothing yet.
 *
 * On the edge each host's object is a process of its own and the store is DynamoDB: nobody waits there. Only plain data is shared between requests, never a
 * promise: workerd lets no request wait for another's.
 */

/** Hosts between their request and their stored inventory. At 300 requests a second, which two busy cores serve, they are through within four seconds. */
export const insideMax = 128;
/** A host that was let in and not heard of for so long has gone again; the proof alone has 10 s. */
const insideMsMax = 15_000;
/** A shim waits 15 s for its socket; who is not let in before that is told to come again while it still listens. */
const waitMsMax = 10_000;
/** Between two looks whether there is room, with as much again drawn on top, so that those who wait do not look in step. */
const pauseMs = 150;

export interface CrowdParts {
  nowMs(): number;
  random(): number;
  sleep(ms: number): Promise<void>;
}

export class Crowd {
  readonly #parts: CrowdParts;
  /** Since when, by host. */
  readonly #inside = new Map<string, number>();

  constructor(parts: CrowdParts) {
    this.#parts = parts;
  }

  /** Resolves to true when the host may come in, to false when it is to come again later. Who is inside already is not counted twice. */
  async enter(hostId: string): Promise<boolean> {
    const { nowMs, random, sleep } = this.#parts;
    const untilMs = nowMs() + waitMsMax;
    while (!this.#hasRoom(hostId)) {
      if (nowMs() >= untilMs) return false;
      await sleep(pauseMs * (1 + random()));
    }
    this.#inside.delete(hostId);
    this.#inside.set(hostId, nowMs());
    return true;
  }

  /** It has said what it has, or is gone. */
  left(hostId: string): void {
    this.#inside.delete(hostId);
  }

  #hasRoom(hostId: string): boolean {
    const goneMs = this.#parts.nowMs() - insideMsMax;
    // Oldest first, as a map keeps its order.
    for (const [id, sinceMs] of this.#inside) {
      if (sinceMs > goneMs) break;
      this.#inside.delete(id);
    }
    return this.#inside.has(hostId) || this.#inside.size < insideMax;
  }
}
