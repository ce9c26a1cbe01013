/**
 * What Lambda's Node runtime does, as far as a function can tell: loads the handler that the environment names and serves one invocation after
 * another from the Runtime API. Runs in a process of its own (lambda-process.ts starts it).
 */
import { type ClientRequest, type IncomingMessage, request } from "node:http";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { pathToFileURL } from "node:url";

const api = process.env.AWS_LAMBDA_RUNTIME_API ?? "";
const [file = "", exported = ""] = (process.env._HANDLER ?? "").split(".");
const streaming = Symbol("streaming");

/** The global that Lambda gives for streamed responses; the body's head says status and headers and ends with eight zero bytes. */
Object.assign(globalThis, {
  awslambda: {
    streamifyResponse: (handler: object) => Object.assign(handler, { [streaming]: true }),
    HttpResponseStream: {
      from(stream: ClientRequest, metadata: unknown) {
        stream.setHeader("content-type", "application/vnd.awslambda.http-integration-response");
        stream.write(JSON.stringify(metadata));
        stream.write(new Uint8Array(8));
        return stream;
      },
    },
  },
});

const open = (method: string, path: string, headers: Record<string, string> = {}) =>
  request(`http://${api}/2018-06-01/runtime/${path}`, { method, headers });

/** The Runtime API is gone when whoever started this process is: then it has nothing to live for. */
const answered = (asked: ClientRequest): Promise<IncomingMessage> =>
  new Promise((resolve) => asked.once("response", resolve).once("error", () => process.exit(0)));

async function post(path: string, body: unknown, headers?: Record<string, string>): Promise<void> {
  const asked = open("POST", path, headers);
  const answer = answered(asked);
  asked.end(JSON.stringify(body ?? null));
  (await answer).resume();
}

const errorBody = (error: unknown) => ({
  errorType: error instanceof Error ? error.name : "Error",
  errorMessage: error instanceof Error ? error.message : String(error),
});

async function load(): Promise<{ isStreaming: boolean; run: (...given: unknown[]) => unknown }> {
  const path = join(process.env.LAMBDA_TASK_ROOT ?? "", `${file}.mjs`);
  const module: Record<string, unknown> = await import(pathToFileURL(path).href);
  const handler = module[exported];
  if (typeof handler !== "function") throw new Error(`${path} exports no function ${exported}`);
  return { isStreaming: streaming in handler, run: (...given) => Reflect.apply(handler, undefined, given) };
}

const { isStreaming, run } = await load().catch(async (error: unknown) => {
  await post("init/error", errorBody(error));
  process.exit(1);
});

for (;;) {
  const asked = open("GET", "invocation/next");
  const answer = answered(asked);
  asked.end();
  const next = await answer;
  const id = String(next.headers["lambda-runtime-aws-request-id"]);
  const deadlineMs = Number(next.headers["lambda-runtime-deadline-ms"]);
  const event: unknown = JSON.parse(await text(next));
  const context = { awsRequestId: id, getRemainingTimeInMillis: () => deadlineMs - Date.now() };
  try {
    if (isStreaming) {
      const stream = open("POST", `invocation/${id}/response`, {
        "lambda-runtime-function-response-mode": "streaming",
        "transfer-encoding": "chunked",
      });
      const taken = answered(stream);
      await run(event, stream, context);
      if (!stream.writableEnded) stream.end();
      (await taken).resume();
    } else await post(`invocation/${id}/response`, await run(event, context));
  } catch (error) {
    await post(`invocation/${id}/error`, errorBody(error));
  }
}
