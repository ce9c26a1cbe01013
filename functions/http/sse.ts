/** Server-sent events on the wire, and how texts that come one by one become an answer's body. */

/** One event; `id` null: a client that resumes does not start from it. */
export const eventText = (event: { id: string | null; name: string; data: unknown }): string =>
  `${event.id === null ? "" : `id: ${event.id}\n`}event: ${event.name}\ndata: ${JSON.stringify(event.data)}\n\n`;

/** A body that asks for the next text when the client has taken the last. `left` is aborted when the client leaves, and when a text fails: the client then
 *  resumes where it was; why it had to is told to `failed`, not on the wire. */
export function textStream(
  texts: AsyncGenerator<string, void>,
  left: AbortController,
  failed: (error: unknown) => void,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  return new ReadableStream({
    async pull(controller) {
      try {
        const { done, value } = await texts.next();
        if (done) controller.close();
        else controller.enqueue(encoder.encode(value));
      } catch (error) {
        failed(error);
        left.abort();
        controller.close();
      }
    },
    cancel() {
      left.abort();
    },
  });
}

export const eventStreamHeaders = {
  "content-type": "text/event-stream; charset=utf-8",
  "x-accel-buffering": "no",
} as const;
