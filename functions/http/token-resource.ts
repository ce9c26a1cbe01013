/** Tokens as the API shows them: never the digest, the secret only in the answer that made it. */
import * as z from "zod/mini";
import type { TokenRecord } from "../ports.ts";

export const tokenSchema = z.object({
  id: z.string(),
  name: z.nullable(z.string()),
  createdAt: z.string(),
  expiresAt: z.string(),
  /** Null: not limited. */
  usesLeft: z.nullable(z.int()),
});
export const mintedTokenSchema = z.object({
  ...tokenSchema.shape,
  /** Shown once: null when an Idempotency-Key is repeated after the token was made. */
  token: z.nullable(z.string()),
});

export const tokenResource = ({ id, name, createdAt, expiresAt, usesLeft }: TokenRecord) => ({
  id,
  name,
  createdAt,
  expiresAt,
  usesLeft,
});
