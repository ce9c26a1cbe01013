/**
 * A wire vector: one frame between a client and a real libvirtd, as hex, with every field named. The annotation is made
 * from the shapes, so a reader can check a shape by eye against the bytes; the test decodes and re-encodes the bytes.
 */
import * as z from "zod/mini";
import { remoteError } from "#libvirt/error";
import { connectionClosedEvent, events } from "#libvirt/event";
import { type Frame, FrameStatus, FrameType } from "#libvirt/frame";
import { procedures } from "#libvirt/procedures";
import { nothing, type Shape } from "#libvirt/shape";
import { XdrReader } from "#libvirt/xdr";

const vectorHead = z.object({
  libvirt: z.string(),
  /** Which client made the calls: virsh is the independent witness of argument shapes. */
  client: z.string(),
});

const vectorLine = z.object({
  host: z.string(),
  direction: z.enum(["call", "reply", "error", "event"]),
  procedure: z.string(),
  hex: z.string(),
  /** Offset in the frame, length, name and value of each field (long values are shortened). */
  fields: z.array(z.tuple([z.number(), z.number(), z.string(), z.string()])),
});

export type Vector = z.infer<typeof vectorLine>;
export type VectorFile = z.infer<typeof vectorHead> & { readonly vectors: readonly Vector[] };

/** One line for the head and one for each vector: a new recording shows in a diff as the vectors that changed. */
export function formatVectors({ vectors, ...head }: VectorFile): string {
  return `${[head, ...vectors].map((line) => JSON.stringify(line)).join("\n")}\n`;
}

export function parseVectors(text: string): VectorFile {
  const [head, ...lines] = text
    .trimEnd()
    .split("\n")
    .map((line): unknown => JSON.parse(line));
  return { ...vectorHead.parse(head), vectors: lines.map((line) => vectorLine.parse(line)) };
}

type Described = {
  readonly direction: Vector["direction"];
  readonly procedure: string;
  readonly shape: Shape<unknown>;
};

const proceduresByNumber = new Map(Object.values(procedures).map((procedure) => [procedure.number, procedure]));
const eventsByNumber = new Map(
  [...Object.values(events), connectionClosedEvent].map((event) => [event.number, event] as const),
);

/** What a frame is, or undefined for a procedure that vmferry does not use. */
export function describeFrame(frame: Frame): Described | undefined {
  if (frame.type === FrameType.MESSAGE) {
    const event = eventsByNumber.get(frame.procedure);
    return event === undefined ? undefined : { direction: "event", procedure: event.name, shape: event.message };
  }
  const procedure = proceduresByNumber.get(frame.procedure);
  if (procedure === undefined) return undefined;
  if (frame.type === FrameType.CALL) return { direction: "call", procedure: procedure.name, shape: procedure.args };
  if (frame.status === FrameStatus.ERROR) return { direction: "error", procedure: procedure.name, shape: remoteError };
  return { direction: "reply", procedure: procedure.name, shape: procedure.result };
}

const headerFields = ["length", "program", "version", "procedure", "type", "serial", "status"];
const valueCharsMax = 60;

/** Every field of a frame in wire order. */
export function annotate(bytes: Uint8Array, shape: Shape<unknown>): Vector["fields"] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const fields: Vector["fields"] = headerFields.map((name, index) => [
    index * 4,
    4,
    name,
    `0x${view.getUint32(index * 4).toString(16)}`,
  ]);
  const reader = new XdrReader(bytes.subarray(28));
  walk(shape, reader, "", fields);
  reader.end();
  return fields;
}

function walk(shape: Shape<unknown>, reader: XdrReader, path: string, fields: Vector["fields"]): void {
  if (shape === nothing) return;
  const start = reader.offset;
  if (shape.parts !== undefined) {
    for (const [name, part] of shape.parts) walk(part, reader, path === "" ? name : `${path}.${name}`, fields);
    return;
  }
  if (shape.item !== undefined) {
    const isArray = shape.kind.startsWith("array");
    const count = isArray ? reader.count(0xffff_ffff) : Number(reader.bool());
    fields.push([start + 28, 4, `${path} (${isArray ? "count" : "present"})`, String(count)]);
    for (let index = 0; index < count; index += 1) {
      walk(shape.item, reader, isArray ? `${path}[${index}]` : path, fields);
    }
    return;
  }
  const value = shape.read(reader);
  fields.push([start + 28, reader.offset - start, `${path}: ${shape.kind}`, show(value)]);
}

function show(value: unknown): string {
  if (value instanceof Uint8Array) return `${value.byteLength} bytes`;
  const text =
    typeof value === "string" ? value : JSON.stringify(value, (_, v) => (typeof v === "bigint" ? `${v}` : v));
  return text.length > valueCharsMax ? `${text.slice(0, valueCharsMax)}... (${text.length} chars)` : text;
}
