/**
 * Idempotency keys: a key is bound once to the id that its first request was given, together with a digest of that
 * request. The key belongs to the credential, so another's key is simply another key.
 */
import type { AppDeps } from "./deps.ts";
import { idempotencyKeyCharsMax } from "./limits.ts";
import { fault } from "./problem.ts";
import type { Asked } from "./route.ts";
import { sha256Hex } from "./token.ts";

/** The same JSON value always gives the same text, whatever the order of its keys. */
function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (typeof value === "object" && value !== null)
    return `{${Object.entries(value)
      .filter(([, item]) => item !== undefined)
      .sort(([one], [other]) => (one < other ? -1 : 1))
      .map(([key, item]) => `${JSON.stringify(key)}:${canonicalJson(item)}`)
      .join(",")}}`;
  return JSON.stringify(value ?? null);
}

/**
 * The id under which this request creates its resource: `fresh`, or what an earlier request with the same key was given.
 * Whether it was created then is for the caller to look up: a request that was refused has bound its key and made nothing.
 * Throws `idempotency.mismatch` when the key came with another body, `request.malformed` for a key that cannot be one.
 */
export async function resourceId(deps: AppDeps, asked: Asked<unknown, unknown>, fresh: string): Promise<string> {
  const key = asked.context.req.header("idempotency-key");
  if (key === undefined) return fresh;
  if (key.length === 0 || key.length > idempotencyKeyCharsMax || !/^[\x21-\x7e]+$/.test(key))
    throw fault(
      "request.malformed",
      `The Idempotency-Key is not 1 to ${idempotencyKeyCharsMax} printable characters.`,
      "Send a UUID.",
    );
  const bodySha256 = await sha256Hex(
    `${asked.context.req.method} ${asked.context.req.path}\n${canonicalJson(asked.body)}`,
  );
  const bound = await deps.ports.migrations.bindKey({
    owner: asked.principal.owner,
    key,
    bodySha256,
    resource: fresh,
  });
  if (bound.bodySha256 !== bodySha256)
    throw fault(
      "idempotency.mismatch",
      "This Idempotency-Key was used for another request.",
      "Use a fresh key for a new request, or repeat the first one unchanged.",
    );
  return bound.resource;
}
