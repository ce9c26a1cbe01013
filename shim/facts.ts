/**
 * What the source tells the destination before anything is touched: gzip over JSON, opaque to the functions, decoded by
 * schema on the other side. It holds no XML but the CPU element, so no password travels in it (I9).
 */
import { promisify } from "node:util";
import { gunzip, gzip } from "node:zlib";
import * as z from "zod/mini";
import { uuidSchema } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { fileIdentitySchema } from "./storage.ts";

/** A domain with 16,384 snapshots of 255-byte names on ten disks stays below; a bomb stops here. */
const factsBytesMax = 64 * 1024 * 1024;

/** `disk`: an image the domain writes to. `readonly`: an image it only reads. `backing`: below another image. `snapshot`:
 *  an image that a snapshot names. `memory`: a snapshot's memory file. `boot`: kernel, initrd, loader, template. */
const roleSchema = z.enum(["disk", "readonly", "backing", "snapshot", "memory", "boot"]);
export type FileRole = z.infer<typeof roleSchema>;

const fileSchema = z.object({
  identity: fileIdentitySchema,
  role: roleSchema,
  /** What uses it, for people: `disk vda`, `snapshot base`. */
  usedBy: z.string(),
  cache: z.nullable(z.string()),
  /** qcow2 images: internal snapshots that must be in it for the tree to be revertible. */
  snapshots: z.array(z.string()),
});
export type FileFacts = z.infer<typeof fileSchema>;

export const factsSchema = z.object({
  format: z.literal(1),
  hostUuid: z.string(),
  bootId: z.string(),
  libvirtVersion: z.int(),
  hypervisorVersion: z.int(),
  domain: z.object({ uuid: uuidSchema, name: z.string(), active: z.boolean(), memoryKiB: z.number() }),
  virtType: z.string(),
  arch: z.nullable(z.string()),
  machine: z.nullable(z.string()),
  emulator: z.nullable(z.string()),
  cpu: z.nullable(z.object({ xml: z.string(), mode: z.string() })),
  secrets: z.array(z.string()),
  files: z.array(fileSchema),
  /** Storage without a path (network disks, pools), for people. */
  pathless: z.array(z.object({ type: z.string(), label: z.string() })),
  snapshots: z.int(),
  checkpoints: z.int(),
});
export type SourceFacts = z.infer<typeof factsSchema>;

export async function encodeFacts(facts: SourceFacts): Promise<Uint8Array> {
  return promisify(gzip)(JSON.stringify(facts));
}

/** Throws `message.malformed`: the other shim is of another version, or somebody changed the bytes. */
export async function decodeFacts(bytes: Uint8Array): Promise<SourceFacts> {
  const malformed = (why: string) =>
    new Fault({
      code: "message.malformed",
      cause: `The source's facts cannot be read: ${why}.`,
      action: "Run the same version of vmferry on both hosts, then check again.",
      retry: "never",
    });
  let value: unknown;
  try {
    const inflated = await promisify(gunzip)(bytes, { maxOutputLength: factsBytesMax });
    value = JSON.parse(inflated.toString("utf8"));
  } catch {
    throw malformed("they are not JSON under gzip");
  }
  const result = factsSchema.safeParse(value);
  if (result.success) return result.data;
  throw malformed(`they do not fit their schema at ${result.error.issues[0]?.path.join(".") ?? "the root"}`);
}
