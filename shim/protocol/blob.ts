/**
 * Opaque payloads (cookies, XML, facts): inline up to 24 KiB, otherwise in the bucket by reference. Carried, never parsed
 * by the functions. The digest travels beside the bytes on both paths, so whoever uses a blob checks it first.
 */
import * as z from "zod/mini";
import { cookieBytesMax, inlineBytesMax } from "./limits.ts";

export const sha256Schema = z.string().check(z.regex(/^[0-9a-f]{64}$/));

const blobBytesSchema = z.int().check(z.minimum(0), z.maximum(cookieBytesMax));

export const inlineBlobSchema = z.object({
  in: z.literal("inline"),
  base64: z.string().check(z.maxLength(Math.ceil(inlineBytesMax / 3) * 4), z.regex(/^[A-Za-z0-9+/]*={0,2}$/)),
  sha256: sha256Schema,
  bytes: blobBytesSchema,
});

/** Keys are made by the functions' grant and are content-addressed; a shim uses them only through a grant. */
export const bucketKeySchema = z.string().check(z.regex(/^[a-z0-9][a-zA-Z0-9/_.-]{0,511}$/));

export const bucketBlobSchema = z.object({
  in: z.literal("bucket"),
  key: bucketKeySchema,
  sha256: sha256Schema,
  bytes: blobBytesSchema,
});

/** A cookie that came from shim to shim: whole, whatever its size, because the guest is stopped while it travels. It is in
 *  no message to or from the functions. */
export const handedBlobSchema = z.object({
  in: z.literal("handed"),
  base64: z.string().check(z.maxLength(Math.ceil(cookieBytesMax / 3) * 4), z.regex(/^[A-Za-z0-9+/]*={0,2}$/)),
  sha256: sha256Schema,
  bytes: blobBytesSchema,
});
export type HandedBlob = z.infer<typeof handedBlobSchema>;

export const blobSchema = z.discriminatedUnion("in", [inlineBlobSchema, bucketBlobSchema]);
export type Blob = z.infer<typeof blobSchema>;
export type InlineBlob = z.infer<typeof inlineBlobSchema>;
export type BucketBlob = z.infer<typeof bucketBlobSchema>;

/** The bundle as a cookie names it. `sha256` and `bytes` are of the object as stored, so the key is its digest and any
 *  S3 tool can verify it; the plain bytes' digest is in the bundle's own trailer and in `plainSha256`. */
export const bundleRefSchema = z.object({
  key: bucketKeySchema,
  sha256: sha256Schema,
  bytes: z.int().check(z.minimum(1)),
  plainSha256: sha256Schema,
  plainBytes: z.int().check(z.minimum(1)),
  snapshots: z.int().check(z.minimum(0)),
  checkpoints: z.int().check(z.minimum(0)),
  /** Digest of names, parents, current and XML of the whole tree, as both sides compute it (`tree.ts`). */
  treeSha256: sha256Schema,
});
export type BundleRef = z.infer<typeof bundleRefSchema>;
