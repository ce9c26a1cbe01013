/**
 * What API Gateway's HTTP API and function URLs hand to a Lambda (payload 2.0) as a request of the web, and a response as what they take back.
 * Hono's own adapter knows four kinds of events; one is used, and this one is decoded.
 */
import type { Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import * as z from "zod/mini";

const eventSchema = z.object({
  rawPath: z.string(),
  rawQueryString: z.optional(z.string()),
  headers: z.optional(z.record(z.string(), z.string())),
  cookies: z.optional(z.array(z.string())),
  body: z.optional(z.nullable(z.string())),
  isBase64Encoded: z.optional(z.boolean()),
  requestContext: z.object({ domainName: z.string(), http: z.object({ method: z.string() }) }),
});

/** The head of a response as Lambda's runtime takes it. */
export interface ResponseHead {
  statusCode: number;
  headers: Record<string, string>;
  cookies: string[];
}

export interface ProxyResponse extends ResponseHead {
  body: string;
  isBase64Encoded: boolean;
}

/** Throws an error of the schema when it is no such event: the function was wired to something else. Throws `TypeError` when what a client sent makes no request. */
export function requestOf(value: unknown): Request {
  const { rawPath, rawQueryString, headers, cookies, body, isBase64Encoded, requestContext } = eventSchema.parse(value);
  const { method } = requestContext.http;
  const sent = new Headers();
  for (const [name, text] of Object.entries(headers ?? {})) sent.set(name, ascii(text));
  if (cookies !== undefined) sent.set("cookie", ascii(cookies.join("; ")));
  const query = rawQueryString === undefined || rawQueryString === "" ? "" : `?${rawQueryString}`;
  const hasBody = typeof body === "string" && body !== "" && method !== "GET" && method !== "HEAD";
  return new Request(`https://${requestContext.domainName}${rawPath}${query}`, {
    method,
    headers: sent,
    ...(hasBody ? { body: isBase64Encoded === true ? Buffer.from(body, "base64") : body } : {}),
  });
}

/** A header of the web holds bytes; others come from a client that sent what is none. */
const ascii = (text: string) => (/^[\t\x20-\x7e]*$/.test(text) ? text : encodeURIComponent(text));

function headOf(response: Response): ResponseHead {
  const headers = Object.fromEntries([...response.headers].filter(([name]) => name !== "set-cookie"));
  return { statusCode: response.status, headers, cookies: response.headers.getSetCookie() };
}

/** Everything that we answer is text but payloads of unknown kind; base64 would cost a third of the 6 MB that an answer may have. */
const isText = (type: string) => /^text\/|[/+]json\b/i.test(type);

/** Reads the whole body. */
export async function proxyResponse(response: Response): Promise<ProxyResponse> {
  const head = headOf(response);
  if (response.body === null || isText(head.headers["content-type"] ?? ""))
    return { ...head, body: await response.text(), isBase64Encoded: false };
  const body = Buffer.from(await response.arrayBuffer()).toString("base64");
  return { ...head, body, isBase64Encoded: true };
}

/** What Lambda's runtime brings along where answers can be streamed. */
export interface StreamingRuntime {
  streamifyResponse(
    handler: (event: unknown, stream: Writable, context?: { awsRequestId?: string }) => Promise<void>,
  ): unknown;
  HttpResponseStream: { from(stream: Writable, head: ResponseHead): Writable };
}

export function isStreamingRuntime(value: unknown): value is StreamingRuntime {
  return typeof value === "object" && value !== null && "streamifyResponse" in value && "HttpResponseStream" in value;
}

/** Sends the body as it comes; a client that leaves ends it. */
export async function streamResponse(runtime: StreamingRuntime, response: Response, to: Writable): Promise<void> {
  const stream = runtime.HttpResponseStream.from(to, headOf(response));
  if (response.body === null) {
    // The head travels with the first write.
    stream.write("");
    stream.end();
  } else await pipeline(chunks(response.body), stream).catch(() => undefined);
}

async function* chunks(body: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  yield* body;
}
