/**
 * One post to a webhook's receiver by `fetch`, as Workers can do it: no redirect is followed, and it ends in time whatever the other side does. A Worker can
 * not say which address a name is connected to; what that leaves open is said in the documentation. Node's is webhook-post-node.ts.
 */
import type { WebhookOutcome } from "./core/webhook-delivery.ts";

export interface WebhookPost {
  url: string;
  headers: Record<string, string>;
  body: Uint8Array<ArrayBuffer>;
}

/** Never rejects: what went wrong is an outcome. */
export type WebhookPoster = (post: WebhookPost) => Promise<WebhookOutcome>;

/** From the first byte sent to the last one heard. A receiver stores what it is told and answers; its work is not waited for. */
export const postMsMax = 10_000;
/** The status says all. The body is read so far only that a receiver that still writes is not cut off. */
export const answerBytesMax = 64 * 1024;
/** For the same reason, and no longer. */
export const answerMsMax = 2_000;
const causeCharsMax = 200;
/** Tests are less patient. */
export interface PostBounds {
  postMs: number;
  answerMs: number;
}
export const postBounds: PostBounds = { postMs: postMsMax, answerMs: answerMsMax };

/** Why there was no answer, in words that hold nothing of the URL: it may be a secret (I9). */
export function causeOf(error: unknown, { postMs }: PostBounds): string {
  if (!(error instanceof Error)) return "the connection failed";
  if (error.name === "TimeoutError" || error.name === "AbortError")
    return `there was no answer within ${postMs / 1_000} s`;
  const inner = error.cause instanceof Error ? error.cause : error;
  const code = "code" in inner && typeof inner.code === "string" ? inner.code : null;
  if (code !== null)
    return (
      causes[code] ??
      `${certificateCode.test(code) ? "its certificate does not hold" : "the connection failed"} (${code.slice(0, 60)})`
    );
  const text = inner.message.replaceAll(/\b[a-z]+:\/\/\S+/g, "the address").replaceAll(/[^\x20-\x7e]/g, " ");
  return `the connection failed: ${text}`.slice(0, causeCharsMax);
}

/** What the address that a name leads to is refused by (webhook-post-node.ts). */
export const addressRefusedCode = "VMFERRY_ADDRESS_REFUSED";

/** OpenSSL's and Node's names of what is wrong with a certificate. */
const certificateCode = /CERT|SELF_SIGNED|UNABLE_TO_VERIFY|ALTNAME/;
const causes: Readonly<Record<string, string>> = {
  [addressRefusedCode]:
    "its name leads to an address within a network, and this control plane posts to the internet only",
  ECONNREFUSED: "the connection was refused",
  ECONNRESET: "the connection was cut before an answer",
  ENOTFOUND: "its name is not known",
  EAI_AGAIN: "its name could not be looked up",
  EHOSTUNREACH: "there is no way to its address",
  ENETUNREACH: "there is no way to its address",
};

export const fetchPoster =
  (bounds: PostBounds = postBounds): WebhookPoster =>
  async ({ url, headers, body }) => {
    const signal = AbortSignal.timeout(bounds.postMs);
    try {
      const response = await fetch(url, { method: "POST", headers, body, redirect: "manual", signal });
      await drained(response.body, bounds.answerMs);
      return { kind: "answered", status: response.status, retryAfter: response.headers.get("retry-after") };
    } catch (error) {
      return { kind: "unanswered", cause: causeOf(error, bounds) };
    }
  };

/** Reads to the end or to a bound, and lets the rest go. */
async function drained(body: ReadableStream<Uint8Array> | null, answerMs: number): Promise<void> {
  if (body === null) return;
  const reader = body.getReader();
  const cut = () => void reader.cancel().catch(() => undefined);
  const timer = setTimeout(cut, answerMs);
  try {
    for (let bytes = 0; bytes <= answerBytesMax; ) {
      const { done, value } = await reader.read();
      if (done) return;
      bytes += value.byteLength;
    }
    cut();
  } catch {
    // It has answered; that the rest of it broke off changes nothing.
  } finally {
    clearTimeout(timer);
  }
}
