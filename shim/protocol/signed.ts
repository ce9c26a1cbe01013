/** Keys, signatures, and a text that travels with its signature: whoever reads it verifies the very bytes that were signed. */
import * as z from "zod/mini";

/** Ed25519, raw 32 bytes in base64url without padding: 42 characters and one of the 16 whose two low bits are free. */
export const publicKeySchema = z.string().check(z.regex(/^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$/));

/** Ed25519, 64 bytes in base64url without padding. */
export const signatureSchema = z.string().check(z.regex(/^[A-Za-z0-9_-]{86}$/));

/** A ticket has about 1 KB; the rest is room for long names and sixteen addresses. */
const textCharsMax = 8_192;

/** JSON and the signature over it, behind a first line that names its kind (ticket.ts). */
export const signedTextSchema = z.object({
  text: z.string().check(z.maxLength(textCharsMax)),
  signature: signatureSchema,
});
export type SignedText = z.infer<typeof signedTextSchema>;
