/** Bundle tasks and upload grants as the API shows them. */
import * as z from "zod/mini";
import { bundleRefSchema } from "#protocol/blob";
import { domainRefSchema } from "#protocol/command";
import { faultSchema } from "#protocol/fault";
import { type BundleTask, bundleTaskSchema } from "../core/bundle-task.ts";

export const bundleTaskResourceSchema = z.object({
  id: z.string(),
  kind: bundleTaskSchema.shape.kind,
  status: bundleTaskSchema.shape.status,
  domain: domainRefSchema,
  host: z.string(),
  bundle: z.nullable(bundleRefSchema),
  error: z.nullable(faultSchema),
  createdAt: z.string(),
  endedAt: z.nullable(z.string()),
});
export type BundleTaskResource = z.infer<typeof bundleTaskResourceSchema>;

export const uploadGrantSchema = z.object({
  method: z.enum(["GET", "PUT"]),
  url: z.string(),
  /** To be sent as they are: they are signed. */
  headers: z.record(z.string(), z.string()),
  key: z.string(),
  /** It is there already: nothing to upload. */
  present: z.boolean(),
});

export const bundleTaskResource = (task: BundleTask): BundleTaskResource => ({
  id: task.id,
  kind: task.kind,
  status: task.status,
  domain: task.domain,
  host: task.host.name,
  bundle: task.bundle,
  error: task.failure,
  createdAt: task.createdAt,
  endedAt: task.endedAt,
});
