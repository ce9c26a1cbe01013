/**
 * HTTP as far as a shim needs it: one request, streamed both ways, no redirects, bounded in size and silence. node:http
 * instead of fetch: a body of known length is sent with its Content-Length, which presigned URLs demand, and an idle shim
 * stays small. Errors never hold the URL: a presigned one is a secret (I9).
 */
import { type ClientRequest, request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

export interface HttpCall {
  method: "GET" | "PUT" | "POST";
  url: URL;
  headers: Readonly<Record<string, string>>;
  /** With its exact length. */
  body?: { bytes: number; stream: Readable };
  /** No byte in either direction for this long ends the request. */
  silenceMs: number;
  signal?: AbortSignal;
}

/** The request did not come to an answer, or the answer broke off. `cause` is Node's own error. */
export class HttpBrokenError extends Error {
  override readonly name = "HttpBrokenError";
}

/**
 * Sends the request and gives the status and the body, which the caller reads to its end or destroys.
 * Throws `HttpBrokenError`; a broken answer body is thrown where it is read.
 */
export async function httpCall(call: HttpCall): Promise<{ status: number; body: IncomingMessage }> {
  const send = call.url.protocol === "https:" ? httpsRequest : httpRequest;
  const headers = { ...call.headers, ...(call.body === undefined ? {} : { "content-length": `${call.body.bytes}` }) };
  let request: ClientRequest;
  try {
    request = send(call.url, {
      method: call.method,
      headers,
      // A connection of its own: a pooled one that the peer has just closed would look like an outage.
      agent: false,
      ...(call.signal === undefined ? {} : { signal: call.signal }),
    });
  } catch (error) {
    call.body?.stream.destroy();
    throw broken(error);
  }
  request.setTimeout(call.silenceMs, () => request.destroy(new Error(`nothing was heard for ${call.silenceMs} ms`)));
  const answered = new Promise<IncomingMessage>((resolve, reject) => {
    request.once("response", resolve);
    request.once("error", reject);
  });
  try {
    if (call.body === undefined) request.end();
    // A server may answer before it has read everything (a refusal); then its answer counts, not our broken pipe.
    else {
      const sent = pipeline(call.body.stream, request);
      sent.catch(() => {
        // The race below has its outcome, or the answer tells.
      });
      await Promise.race([sent, answered]);
    }
    const response = await answered;
    return { status: response.statusCode ?? 0, body: response };
  } catch (error) {
    answered.catch(() => {
      // Told by the error at hand.
    });
    request.destroy();
    throw broken(error);
  }
}

/** The body as text, at most `bytesMax`; what is longer breaks off. Throws `HttpBrokenError`. */
export async function readText(body: Readable, bytesMax: number): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of body) {
      bytes += chunk.byteLength;
      if (bytes > bytesMax) throw new Error(`the answer is longer than ${bytesMax} bytes`);
      chunks.push(chunk);
    }
  } catch (error) {
    throw broken(error);
  }
  return Buffer.concat(chunks).toString("utf8");
}

const broken = (error: unknown) =>
  new HttpBrokenError(error instanceof Error ? withoutUrls(error.message) : "unknown", { cause: error });

const withoutUrls = (text: string) => text.replaceAll(/https?:\/\/\S+/g, "(an address)");
