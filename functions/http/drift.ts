/** Drift: where the fleet and the records disagree, with cause and next action. Asking changes nothing. */
import * as z from "zod/mini";
import { driftSchema } from "../core/drift.ts";
import { createReconciler } from "../reconciler.ts";
import type { AppDeps } from "./deps.ts";
import { type Route, route } from "./route.ts";

export const driftReportSchema = z.object({
  at: z.string(),
  /** How many were held against each other. */
  hosts: z.int(),
  migrations: z.int(),
  /** False: only the newest part of a very long history was looked at. */
  complete: z.boolean(),
  /** The worst first. */
  drifts: z.array(driftSchema),
});
export type DriftReport = z.infer<typeof driftReportSchema>;

export function driftRoutes({ ports }: AppDeps): Route[] {
  return [
    route({
      method: "GET",
      path: "/v1/drift",
      tag: "drift",
      summary: "Where hosts and records disagree: each with cause, next action, and what is repaired by itself",
      access: "token",
      reply: { status: 200, description: "What was found, the worst first", schema: driftReportSchema },
      async handle() {
        return { value: await createReconciler(ports).look() };
      },
    }),
  ];
}
