/** The answer of a check: everything that was found, by what may be done about it. */
import * as z from "zod/mini";
import { sideSchema } from "#protocol/command";
import { faultCodes } from "#protocol/fault";

const checkFindingSchema = z.object({
  code: z.enum(faultCodes),
  side: sideSchema,
  cause: z.string(),
  action: z.string(),
});
export type CheckFinding = z.infer<typeof checkFindingSchema>;

const verdictShape = {
  /** No blocker, and no risk that was not accepted. */
  allowed: z.boolean(),
  blockers: z.array(checkFindingSchema),
  /** Not yet accepted. */
  risks: z.array(checkFindingSchema),
  notes: z.array(checkFindingSchema),
};

export const checkSchema = z.object({
  ...verdictShape,
  domain: z.object({ uuid: z.string(), name: z.string() }),
  source: z.string(),
  destination: z.nullable(z.string()),
  /** Null when the source could not be asked. */
  carries: z.nullable(z.object({ snapshots: z.int(), checkpoints: z.int() })),
  destinations: z.array(z.object({ host: z.string(), ...verdictShape })),
});
export type Check = z.infer<typeof checkSchema>;
