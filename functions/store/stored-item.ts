/**
 * Item attributes <-> values. What comes out of the store is decoded by schema like anything else from outside: an item
 * that does not fit is a fault that names it, never a cast.
 */
import type * as z from "zod/mini";
import { Fault } from "#protocol/fault";
import { bodyBytesMax, type Item } from "./dynamo-table.ts";

const unreadable = (what: string, cause: string) =>
  new Fault({
    code: "internal",
    cause: `The stored item of ${what} cannot be read: ${cause}.`,
    action: "It was written by another version or altered by hand; look at it before anything else is done with it.",
    retry: "person",
  });

/** A string attribute. Throws `Fault` `internal` when it is absent. */
export function textOf(what: string, item: Item, attribute: string): string {
  const value = item[attribute]?.S;
  if (value === undefined) throw unreadable(what, `it has no text attribute ${attribute}`);
  return value;
}

/** A JSON attribute, decoded by its schema. Throws `Fault` `internal` when it does not fit. */
export function jsonOf<T>(what: string, schema: z.ZodMiniType<T>, item: Item, attribute: string): T {
  let value: unknown;
  try {
    value = JSON.parse(textOf(what, item, attribute));
  } catch (error) {
    if (error instanceof Fault) throw error;
    throw unreadable(what, `attribute ${attribute} is not JSON`);
  }
  return decoded(what, schema, value);
}

/** A value put together from attributes, decoded by its schema. Throws `Fault` `internal` when it does not fit. */
export function decoded<T>(what: string, schema: z.ZodMiniType<T>, value: unknown): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw unreadable(what, `${issue?.path.join(".") || "its root"}: ${issue?.message ?? "mismatch"}`);
}

/** JSON for a `body` attribute. Throws `Fault` `message.tooLarge` before DynamoDB would refuse the item. `bytesMax`: what its other attributes leave. */
export function bodyText(what: string, value: unknown, bytesMax = bodyBytesMax): string {
  const text = JSON.stringify(value);
  const bytes = new TextEncoder().encode(text).byteLength;
  if (bytes > bytesMax)
    throw new Fault({
      code: "message.tooLarge",
      cause: `${what} has grown to ${bytes} bytes; an item of DynamoDB holds 400 KB and ours ends at ${bytesMax}.`,
      action: "Nothing was written. Payloads belong into blobs; report this as a defect with the migration's timeline.",
      retry: "never",
    });
  return text;
}
