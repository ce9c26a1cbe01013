/**
 * Bytes of a request -> typed values: JSON only, bounded while it is read, unknown keys refused by name. A refusal names
 * the path and the rule, never the value that was sent (I9).
 */
import type * as z from "zod/mini";
import { bodyBytesMax } from "./limits.ts";
import { fault } from "./problem.ts";

const correct = "Correct the request; GET /v1/openapi.json describes it.";
type Issue = z.core.$ZodIssue;

/** One mismatch in words. */
function issueText(issue: Issue): string {
  const path = issue.path.map(String).join(".");
  const where = path === "" ? "It" : `\`${path}\``;
  switch (issue.code) {
    case "unrecognized_keys":
      return `${path === "" ? "It" : where} has an unknown key: ${issue.keys.map((key) => `\`${key.slice(0, 64)}\``).join(", ")}.`;
    case "invalid_type":
      return `${where} is missing or is not of type ${issue.expected}.`;
    case "invalid_value":
      return `${where} is not one of: ${issue.values.map(String).join(", ").slice(0, 1_000)}.`;
    case "too_big":
      return `${where} is over the limit of ${String(issue.maximum)}.`;
    case "too_small":
      return `${where} is under the minimum of ${String(issue.minimum)}.`;
    case "invalid_format":
      return `${where} does not have the right form${issue.pattern === undefined ? "" : ` (${issue.pattern})`}.`;
    default:
      return `${where} is not valid.`;
  }
}

/** Checks a value against a schema. Throws `request.malformed` with the first mismatch. */
export function accepted<T>(what: string, schema: z.ZodMiniType<T>, value: unknown): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw fault("request.malformed", `The ${what} is refused. ${issue === undefined ? "" : issueText(issue)}`, correct);
}

/** Reads at most `bodyBytesMax` bytes. Throws `request.tooLarge` as soon as there are more. */
async function readBounded(request: Request): Promise<string> {
  const tooLarge = () =>
    fault("request.tooLarge", `The request body is over the limit of ${bodyBytesMax} bytes.`, "Send a smaller body.");
  if (Number(request.headers.get("content-length") ?? 0) > bodyBytesMax) throw tooLarge();
  if (request.body === null) return "";
  const decoder = new TextDecoder();
  const reader = request.body.getReader();
  let bytes = 0;
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return text + decoder.decode();
    bytes += value.byteLength;
    if (bytes > bodyBytesMax) {
      await reader.cancel();
      throw tooLarge();
    }
    text += decoder.decode(value, { stream: true });
  }
}

/** Reads a JSON body that fits `schema`. Throws `request.malformed`, `request.tooLarge`. */
export async function body<T>(schema: z.ZodMiniType<T>, request: Request): Promise<T> {
  const type = (request.headers.get("content-type") ?? "").split(";")[0]?.trim().toLowerCase();
  if (type !== "application/json")
    throw fault("request.malformed", "The request body is not declared as application/json.", correct);
  const text = await readBounded(request);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    // The parser's message quotes the text, which may hold a token.
    throw fault("request.malformed", "The request body is not JSON.", correct);
  }
  return accepted("request body", schema, value);
}
