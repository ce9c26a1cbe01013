/**
 * One line of a journal file: `LENGTH CRC32 JSON\n`, both guards as eight hex digits over the JSON's bytes. A crash can
 * only tear the last line, and a torn line is told from a damaged one: what was torn lacks its newline, its length or
 * holds zeros that the file system put there. Anything else that does not fit is damage, which nobody may pass over.
 */
import { crc32 } from "node:zlib";
import * as z from "zod/mini";
import { commandIdSchema, commandSchema, reportSchema } from "#protocol/command";
import { Fault } from "#protocol/fault";
import type { JournalEntry } from "./ports.ts";

const entrySchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("intent"), at: z.string(), command: commandSchema }),
  z.object({ type: z.literal("report"), at: z.string(), report: reportSchema }),
  z.object({ type: z.literal("acknowledged"), at: z.string(), commandId: commandIdSchema }),
  z.object({
    type: z.literal("milestone"),
    at: z.string(),
    commandId: commandIdSchema,
    name: z.string(),
    data: z.record(z.string(), z.unknown()),
  }),
]);

const guardBytes = 18;
const newline = 0x0a;

const hex = (value: number) => value.toString(16).padStart(8, "0");

export function encodeLine(entry: JournalEntry): Buffer {
  const json = Buffer.from(JSON.stringify(entry), "utf8");
  return Buffer.concat([
    Buffer.from(`${hex(json.byteLength)} ${hex(crc32(json))} `, "latin1"),
    json,
    Buffer.of(newline),
  ]);
}

/**
 * The entries of a file, and how many of its bytes are sound: fewer than all when the last line is torn.
 * Throws `Fault` `internal` for damage; `path` is for its sentence.
 */
export function decodeLines(bytes: Buffer, path: string): { entries: JournalEntry[]; soundBytes: number } {
  const entries: JournalEntry[] = [];
  let offset = 0;
  while (offset < bytes.byteLength) {
    const end = bytes.indexOf(newline, offset);
    const isLast = end === -1 || end === bytes.byteLength - 1;
    const line = bytes.subarray(offset, end === -1 ? bytes.byteLength : end);
    const json = end === -1 ? null : guardedJson(line);
    if (json === null) {
      if (isLast && (end === -1 || line.includes(0))) break;
      throw damaged(path, entries.length + 1, "its guard does not match");
    }
    entries.push(decodeEntry(json, path, entries.length + 1));
    offset = end + 1;
  }
  return { entries, soundBytes: offset };
}

/** The JSON behind a line's guards; null when they do not match. */
function guardedJson(line: Buffer): Buffer | null {
  if (line.byteLength < guardBytes) return null;
  const json = line.subarray(guardBytes);
  const guard = `${hex(json.byteLength)} ${hex(crc32(json))} `;
  return line.subarray(0, guardBytes).toString("latin1") === guard ? json : null;
}

function decodeEntry(json: Buffer, path: string, number: number): JournalEntry {
  let value: unknown;
  try {
    value = JSON.parse(json.toString("utf8"));
  } catch (error) {
    throw damaged(path, number, "it is not JSON", error);
  }
  const result = entrySchema.safeParse(value);
  if (!result.success) throw damaged(path, number, `${result.error.issues[0]?.message ?? "it has another form"}`);
  return result.data;
}

const damaged = (path: string, line: number, why: string, cause?: unknown) =>
  new Fault(
    {
      code: "internal",
      cause: `The shim's journal ${path} is damaged at line ${line}: ${why}. What this migration did here is not known.`,
      action:
        "Keep the file. Look at the domain on both hosts (virsh list --all, virsh snapshot-list), settle the migration with `vmferry migration resolve`, then move the file away and restart the shim.",
      retry: "person",
    },
    { cause },
  );
