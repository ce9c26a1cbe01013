/**
 * Fetch for the SDK's clients under Node and workerd. The SDK's build for fetch knows the words of browsers for a broken connection, and neither undici's
 * nor workerd's: a connection that died while a Lambda was frozen would be an error at once, and the first request after each pause is on such a one. Here
 * the whole answer is read, so that one cut in the middle is a broken connection as well, and each is marked as passing.
 */

/** Marked as the SDK's retry strategy reads it. */
class BrokenConnectionError extends Error {
  override readonly name = "BrokenConnectionError";
  readonly $retryable = { throttling: false };
}

/** undici says "fetch failed" and puts what happened into the cause. */
const reasonOf = (error: unknown): string => {
  const inner = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const code = inner instanceof Error && "code" in inner ? ` (${String(inner.code)})` : "";
  return inner instanceof Error ? `${inner.message || inner.name}${code}` : "no answer";
};

/** For answers that fit memory: items, heads, callbacks; payloads never pass through the functions. */
export async function wholeFetch(request: Request): Promise<Response> {
  try {
    const response = await fetch(request);
    const { status, statusText, headers } = response;
    const bytes = await response.arrayBuffer();
    return new Response(bytes.byteLength === 0 ? null : bytes, { status, statusText, headers });
  } catch (error) {
    throw new BrokenConnectionError(reasonOf(error), { cause: error });
  }
}
