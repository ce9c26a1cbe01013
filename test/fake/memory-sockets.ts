/**
 * Host sockets and the feed in memory, for the simulation: a shim is a function that is given what is sent to it. They
 * pass the same contract cases as the Durable Objects.
 */
import type { Feed, FeedEvent, HostSockets } from "#functions/ports";
import type { Answer, DownMessage, Progress, Query } from "#protocol/message";

/** The shim's end of a socket. */
export interface Wire {
  deliver(message: DownMessage): void;
  closed(cause: string): void;
}

export class MemorySockets implements HostSockets {
  readonly #wires = new Map<string, Wire>();
  readonly #answers = new Map<string, (answer: Answer | null) => void>();
  readonly #progress = new Map<string, Progress>();
  readonly #wait: (ms: number) => Promise<void>;
  #queries = 0;

  /** `wait` is the virtual clock's. */
  constructor(wait: (ms: number) => Promise<void>) {
    this.#wait = wait;
  }

  /** A proved session of a host; it replaces an older one. */
  connect(hostId: string, wire: Wire): void {
    this.#wires.get(hostId)?.closed("replaced by a newer session");
    this.#wires.set(hostId, wire);
  }

  /** The socket is gone, whoever ended it; who waits for an answer learns that there is none. */
  disconnect(hostId: string, wire: Wire): void {
    if (this.#wires.get(hostId) !== wire) return;
    this.#wires.delete(hostId);
    for (const [queryId, resolve] of this.#answers) if (queryId.startsWith(`${hostId} `)) resolve(null);
  }

  answered(queryId: string, answer: Answer): void {
    this.#answers.get(queryId)?.(answer);
  }

  progressed(hostId: string, migrationId: string, progress: Progress): void {
    this.#progress.set(`${hostId} ${migrationId}`, progress);
  }

  async push(hostId: string, message: DownMessage): Promise<boolean> {
    const wire = this.#wires.get(hostId);
    wire?.deliver(structuredClone(message));
    return wire !== undefined;
  }

  async query(hostId: string, query: Query, waitMs: number): Promise<Answer | null> {
    this.#queries += 1;
    const queryId = `${hostId} ${this.#queries}`;
    const answer = new Promise<Answer | null>((resolve) => this.#answers.set(queryId, resolve));
    try {
      if (!(await this.push(hostId, { type: "query", queryId, query }))) return null;
      return await Promise.race([answer, this.#wait(waitMs).then(() => null)]);
    } finally {
      this.#answers.delete(queryId);
    }
  }

  async progress(hostId: string, migrationId: string): Promise<Progress | null> {
    return this.#progress.get(`${hostId} ${migrationId}`) ?? null;
  }

  async drop(hostId: string, cause: string): Promise<void> {
    const wire = this.#wires.get(hostId);
    if (wire === undefined) return;
    this.disconnect(hostId, wire);
    wire.closed(cause);
  }
}

export class MemoryFeed implements Feed {
  readonly #watchers = new Map<string, Set<(event: FeedEvent | null) => void>>();

  async publish(topic: string, event: FeedEvent): Promise<void> {
    for (const watcher of this.#watchers.get(topic) ?? []) watcher(structuredClone(event));
  }

  async *subscribe(topic: string, signal: AbortSignal): AsyncGenerator<FeedEvent> {
    const events: (FeedEvent | null)[] = [];
    let wake = () => {};
    const watcher = (event: FeedEvent | null) => {
      events.push(event);
      wake();
    };
    const watchers = this.#watchers.get(topic) ?? new Set();
    this.#watchers.set(topic, watchers.add(watcher));
    const leave = () => watcher(null);
    signal.addEventListener("abort", leave, { once: true });
    try {
      while (!signal.aborted) {
        const event = events.shift();
        if (event === null) return;
        if (event !== undefined) yield event;
        else
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
      }
    } finally {
      signal.removeEventListener("abort", leave);
      watchers.delete(watcher);
    }
  }
}
