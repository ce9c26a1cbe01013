/**
 * The manual way: one export of a domain's snapshot metadata into a bundle, or one restore from it. A task is one command
 * to one host under the domain's lock; its ids begin with `b_` and the shim forgets it once its report is stored.
 */
import * as z from "zod/mini";
import { bundleRefSchema } from "#protocol/blob";
import { domainRefSchema, migrationIdSchema } from "#protocol/command";
import { faultSchema } from "#protocol/fault";
import { hostRefSchema, pendingSchema } from "./state.ts";

export const bundleTaskSchema = z.object({
  id: migrationIdSchema,
  kind: z.enum(["export", "restore"]),
  host: hostRefSchema,
  domain: domainRefSchema,
  status: z.enum(["running", "completed", "failed"]),
  /** Named from the start for a restore; learned from the report of an export. */
  bundle: z.nullable(bundleRefSchema),
  pending: z.nullable(pendingSchema),
  failure: z.nullable(faultSchema),
  version: z.int(),
  createdAt: z.string(),
  endedAt: z.nullable(z.string()),
});
export type BundleTask = z.infer<typeof bundleTaskSchema>;
