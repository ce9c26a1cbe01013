/**
 * Text on the wire <-> messages: the one place where bytes from outside become typed values. A message that does not fit
 * its schema is a fault with the path of the first mismatch, never a cast and never an exception of the JSON parser.
 */
import type * as z from "zod/mini";
import { Fault } from "./fault.ts";
import { messageBytesMax } from "./limits.ts";
import { type DownMessage, downMessageSchema, type UpMessage, upMessageSchema } from "./message.ts";

const utf8 = new TextEncoder();

const malformed = (cause: string) =>
  new Fault({
    code: "message.malformed",
    cause,
    action: "Update the older side; versions are negotiated at hello.",
    retry: "never",
  });

/**
 * A message of the treaty's form that this side does not understand: a newer side's, or a defect. In an open session it is passed over with a log
 * line; dropping the socket would bring it back with the next one, and keep everything else of that host waiting.
 */
export class ForeignMessage extends Fault {
  override name = "ForeignMessage";
  /** What it calls itself, cut. */
  readonly type: string;

  constructor(type: string, fault: Fault) {
    super(fault.toBody());
    this.type = type.slice(0, 64);
  }
}

const typeOf = (value: unknown): string | null =>
  typeof value === "object" && value !== null && "type" in value && typeof value.type === "string" ? value.type : null;

function decode<T>(schema: z.ZodMiniType<T>, text: string): T {
  const bytes = utf8.encode(text).byteLength;
  if (bytes > messageBytesMax)
    throw new Fault({
      code: "message.tooLarge",
      cause: `A message of ${bytes} bytes is over the limit of ${messageBytesMax}.`,
      action: "Payloads above 24 KiB go to the bucket; this is a defect of the sender.",
      retry: "never",
    });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw malformed(`A message is not JSON: ${error instanceof Error ? error.message : "unreadable"}.`);
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const fault = malformed(
    `A message does not fit its schema at ${issue?.path.join(".") || "its root"}: ${issue?.message ?? "mismatch"}.`,
  );
  const type = typeOf(value);
  throw type === null ? fault : new ForeignMessage(type, fault);
}

/** Decodes what a shim receives. Throws `Fault` (`message.malformed`, a `ForeignMessage` where it has a type; `message.tooLarge`). */
export const decodeDown = (text: string): DownMessage => decode(downMessageSchema, text);

/** Decodes what the functions receive. Throws `Fault` (`message.malformed`, a `ForeignMessage` where it has a type; `message.tooLarge`). */
export const decodeUp = (text: string): UpMessage => decode(upMessageSchema, text);

/** Encodes and checks the size that every transport must carry. Throws `Fault` `message.tooLarge`. */
export function encode(message: UpMessage | DownMessage): string {
  const text = JSON.stringify(message);
  const bytes = utf8.encode(text).byteLength;
  if (bytes > messageBytesMax)
    throw new Fault({
      code: "message.tooLarge",
      cause: `A ${message.type} message of ${bytes} bytes is over the limit of ${messageBytesMax}.`,
      action: "Payloads above 24 KiB go to the bucket; report this as a defect with the message's type.",
      retry: "never",
    });
  return text;
}
