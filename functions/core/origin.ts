/** Who or what asked for something: kept with it, so that each thing leads back to what started it. */
import * as z from "zod/mini";

/** A token's name, and on whose behalf: the evacuation (undo, restore) that asked for a migration, the rule that asked for the evacuation. */
export const originSchema = z.object({
  by: z.string(),
  evacuation: z.nullable(z.string()),
  rule: z.nullable(z.string()),
});
export type Origin = z.infer<typeof originSchema>;
