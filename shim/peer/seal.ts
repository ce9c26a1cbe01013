/**
 * Ed25519 (RFC 8032) over the exact text of tickets, results and receipts (#protocol/ticket), by node's own crypto and
 * without waiting: nothing here may yield inside the guest's blackout. Whether a key is the right one is for the caller to
 * know; a signature that cannot be read is simply not valid (I7 rests on it), so verifying never throws.
 */
import { createPublicKey, type KeyObject, sign, verify } from "node:crypto";
import { publicKeySchema, signatureSchema } from "#protocol/signed";

/** Raw 32 bytes, base64url without padding, of an Ed25519 key, private or public. Throws a TypeError for any other key. */
export function publicKeyOf(key: KeyObject): string {
  if (key.asymmetricKeyType !== "ed25519") throw new TypeError("an Ed25519 key is needed");
  const { x } = (key.type === "private" ? createPublicKey(key) : key).export({ format: "jwk" });
  if (x === undefined) throw new TypeError("an Ed25519 key without its public half");
  return x;
}

/** 64 bytes, base64url without padding, over the UTF-8 of `text`. */
export function signText(key: KeyObject, text: string): string {
  return sign(null, Buffer.from(text, "utf8"), key).toString("base64url");
}

/** True only for the one encoding of a valid signature by `publicKey`; false for anything else, readable or not. */
export function verifyText(publicKey: string, text: string, signature: string): boolean {
  if (!publicKeySchema.safeParse(publicKey).success || !signatureSchema.safeParse(signature).success) return false;
  const bytes = Buffer.from(signature, "base64url");
  // The last character has four free bits: without this one signature would have sixteen spellings.
  if (bytes.toString("base64url") !== signature) return false;
  try {
    const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: publicKey }, format: "jwk" });
    return verify(null, Buffer.from(text, "utf8"), key, bytes);
  } catch {
    // Bytes that are no point of the curve: nobody can have signed by them.
    return false;
  }
}
