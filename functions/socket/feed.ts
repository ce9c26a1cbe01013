/**
 * Tells watchers that a migration changed, and the state that was committed: one Durable Object per topic that passes
 * events on to the streams open at that moment and keeps none. What a watcher misses it reads from the store, so a lost
 * event only costs time.
 */
import { DurableObject } from "cloudflare:workers";
import * as z from "zod/mini";
import { progressSchema } from "#protocol/message";
import { migrationStateSchema } from "../core/state.ts";
import type { Feed, FeedEvent } from "../ports.ts";
import { type ObjectNamespace, objectOf } from "./object-namespace.ts";

/** Watchers of one topic; more are told to look into the store from time to time. */
const watchersMax = 1_000;
/** Events that a slow watcher may lag behind before events are dropped for it. */
const lagEventsMax = 32;

const feedEventSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("changed"), version: z.int(), state: z.optional(migrationStateSchema) }),
  z.object({ type: z.literal("progress"), progress: progressSchema }),
]);

export interface FeedStub {
  fetch(request: Request): Promise<Response>;
  publish(event: FeedEvent): Promise<void>;
}

export class FeedObject extends DurableObject implements FeedStub {
  readonly #watchers = new Set<ReadableStreamDefaultController<Uint8Array>>();

  async publish(event: FeedEvent): Promise<void> {
    const line = new TextEncoder().encode(`${JSON.stringify(event)}\n`);
    for (const watcher of this.#watchers) this.#write(watcher, line);
  }

  #write(watcher: ReadableStreamDefaultController<Uint8Array>, line: Uint8Array): void {
    try {
      if ((watcher.desiredSize ?? 0) > 0) watcher.enqueue(line);
    } catch {
      // Its reader is gone.
      this.#watchers.delete(watcher);
    }
  }

  /** An endless body of JSON lines; an empty line first, so that the reader knows it is heard. */
  async fetch(_request: Request): Promise<Response> {
    if (this.#watchers.size >= watchersMax) return new Response(null, { status: 429 });
    let own: ReadableStreamDefaultController<Uint8Array> | undefined;
    const body = new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          own = controller;
          this.#watchers.add(controller);
          controller.enqueue(new TextEncoder().encode("\n"));
        },
        cancel: () => {
          if (own !== undefined) this.#watchers.delete(own);
        },
      },
      new CountQueuingStrategy({ highWaterMark: lagEventsMax }),
    );
    return new Response(body);
  }
}

export class DurableFeed implements Feed {
  readonly #namespace: ObjectNamespace<FeedStub>;

  constructor(namespace: ObjectNamespace<FeedStub>) {
    this.#namespace = namespace;
  }

  async publish(topic: string, event: FeedEvent): Promise<void> {
    await objectOf(this.#namespace, topic).publish(event);
  }

  async *subscribe(topic: string, signal: AbortSignal): AsyncGenerator<FeedEvent> {
    if (signal.aborted) return;
    const response = await objectOf(this.#namespace, topic).fetch(new Request("http://feed.internal/"));
    if (!response.ok || response.body === null) return;
    const reader = response.body.getReader();
    const leave = () => void reader.cancel().catch(() => {});
    signal.addEventListener("abort", leave, { once: true });
    try {
      const decoder = new TextDecoder();
      let text = "";
      while (!signal.aborted) {
        const { done, value } = await reader.read();
        if (done) return;
        text += decoder.decode(value, { stream: true });
        const lines = text.split("\n");
        text = lines.pop() ?? "";
        for (const line of lines) {
          if (line === "") continue;
          const event = feedEventSchema.safeParse(JSON.parse(line));
          if (event.success) yield event.data;
        }
      }
    } finally {
      signal.removeEventListener("abort", leave);
      leave();
    }
  }
}
