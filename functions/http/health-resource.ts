/** What `GET /healthz` answers. */
import * as z from "zod/mini";

/** `at` lets `vmferry doctor` compare clocks. */
export const healthSchema = z.object({ status: z.literal("ok"), at: z.string() });
