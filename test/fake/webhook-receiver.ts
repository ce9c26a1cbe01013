/** A webhook's receiver over real HTTP, which answers as a test decides: well, badly, slowly, endlessly, or not at all. */
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";

export interface Heard {
  path: string;
  headers: IncomingHttpHeaders;
  body: Uint8Array<ArrayBuffer>;
}

export interface ReceiverAnswer {
  status: number;
  headers?: Record<string, string>;
  /** `endless`: bytes without end, as fast as they are taken. `trickle`: a first byte and no end. `none`: no answer at all. `cut`: the connection is closed. */
  body?: "endless" | "trickle" | "none" | "cut";
}

export async function openReceiver() {
  const heard: Heard[] = [];
  let taken = 0;
  let wake = () => {};
  const state = {
    heard,
    answer: { status: 204 } as ReceiverAnswer,
    /** Bytes of answers that were given out. */
    givenBytes: 0,
    url: "",
    /** The next request that was not taken yet. */
    async next(): Promise<Heard> {
      for (;;) {
        const found = heard[taken];
        if (found !== undefined) {
          taken += 1;
          return found;
        }
        await new Promise<void>((resolve) => (wake = resolve));
      }
    },
    async close(): Promise<void> {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  const respond = (response: ServerResponse): void => {
    const { status, headers = {}, body } = state.answer;
    if (body === "none") return;
    if (body === "cut") return void response.destroy();
    response.writeHead(status, headers);
    if (body === undefined) return void response.end();
    response.flushHeaders();
    const part = Buffer.alloc(16 * 1024, "x");
    const give = (): void => {
      const bytes = body === "trickle" ? part.subarray(0, 1) : part;
      state.givenBytes += bytes.byteLength;
      if (body === "endless" && response.write(bytes)) setImmediate(give);
      if (body === "trickle") response.write(bytes);
    };
    response.on("drain", give).on("error", () => undefined);
    give();
  };
  const server = createServer((request, response) => {
    const parts: Buffer[] = [];
    request
      .on("data", (part: Buffer) => parts.push(part))
      .on("end", () => {
        heard.push({ path: request.url ?? "", headers: request.headers, body: Uint8Array.from(Buffer.concat(parts)) });
        respond(response);
        wake();
      })
      .on("error", () => undefined);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("not listening");
  state.url = `http://127.0.0.1:${address.port}`;
  return state;
}
export type Receiver = Awaited<ReturnType<typeof openReceiver>>;
