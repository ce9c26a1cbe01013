/** What a shim's end of a socket received, for tests that wait for one message among others. */
import type { DownMessage } from "#protocol/message";

/** Messages by type, each taken once, now or when it comes. */
export function inbox() {
  const messages: DownMessage[] = [];
  let wake = () => {};
  return {
    deliver(message: DownMessage) {
      messages.push(message);
      wake();
    },
    async next(type: DownMessage["type"]): Promise<DownMessage> {
      for (;;) {
        const at = messages.findIndex((message) => message.type === type);
        const [found] = at < 0 ? [] : messages.splice(at, 1);
        if (found !== undefined) return found;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    },
  };
}
