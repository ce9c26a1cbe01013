/** Server-sent events from bytes (WHATWG HTML, 9.2.6): fields, comments, any line end, cut anywhere. */

export interface StreamEvent {
  id: string | null;
  name: string;
  data: string;
}

/** An event above this is not ours: a migration with a full timeline is about 100 KiB. */
const eventCharsMax = 4 * 1024 * 1024;

/**
 * Yields each event, and null for a comment: a sign of life. An id without data is an event without a name, by which a client resumes. Ends with the stream; an unfinished event is dropped. `onRetry` is told
 * how soon, in ms, the server wants to be asked again once the stream has ended.
 */
export async function* readEvents(
  stream: AsyncIterable<Uint8Array>,
  onRetry: (ms: number) => void = () => {},
): AsyncGenerator<StreamEvent | null, void> {
  const decoder = new TextDecoder();
  let rest = "";
  let id: string | null = null;
  let name = "";
  let data: string[] = [];
  for await (const chunk of stream) {
    rest += decoder.decode(chunk, { stream: true });
    if (rest.length > eventCharsMax) throw new Error("an event is too long");
    // A CR at the very end may be the first half of CRLF: it waits for the next chunk.
    const lines = rest.split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (data.length > 0) yield { id, name: name === "" ? "message" : name, data: data.join("\n") };
        else if (id !== null) yield { id, name: "", data: "" };
        id = null;
        name = "";
        data = [];
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) {
        yield null;
        continue;
      }
      const field = colon === -1 ? line : line.slice(0, colon);
      const value = colon === -1 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "data") data.push(value);
      else if (field === "event") name = value;
      else if (field === "id") id = value;
      else if (field === "retry" && /^\d{1,9}$/.test(value)) onRetry(Number(value));
    }
  }
}
