/**
 * Standard Webhooks, those that come in and those that go out: `webhook-signature` over `id.timestamp.` and the bytes of the body as they came. `v1` is
 * HMAC-SHA256 by a shared secret (`whsec_` and base64), `v1a` Ed25519 by the sender's key (`whpk_` and base64). Comparing is WebCrypto's, in constant time.
 */

/** A message older or newer than this is none: within it, its id is remembered. */
export const toleranceMs = 5 * 60_000;
/** Signatures of one header that are looked at: a sender changes keys one at a time. */
const signaturesMax = 8;
/** Standard Webhooks asks for 24 to 64 bytes. */
const secretBytesMin = 24;
const secretBytesMax = 64;

export interface SignedMessage {
  id: string;
  timestamp: string;
  signature: string;
  body: Uint8Array;
}

/** A shared secret's bytes; null when the text is none. */
export function secretBytes(text: string): Uint8Array<ArrayBuffer> | null {
  const bytes = base64(text, "whsec_");
  return bytes !== null && bytes.length >= secretBytesMin && bytes.length <= secretBytesMax ? bytes : null;
}

/** An Ed25519 public key's bytes; null when the text is none. */
export function publicKeyBytes(text: string): Uint8Array<ArrayBuffer> | null {
  const bytes = base64(text, "whpk_");
  return bytes?.length === 32 ? bytes : null;
}

function base64(text: string, prefix: string): Uint8Array<ArrayBuffer> | null {
  if (!text.startsWith(prefix) || !/^[A-Za-z0-9+/]+={0,2}$/.test(text.slice(prefix.length))) return null;
  return Uint8Array.from(Buffer.from(text.slice(prefix.length), "base64"));
}

/** A message's form and age, before any key is used. The id has no dot, so the signed text can be cut in one way only. */
export function isTimely(message: Omit<SignedMessage, "body" | "signature">, nowMs: number): boolean {
  if (!/^[!-\-/-~]{1,200}$/.test(message.id) || !/^\d{1,12}$/.test(message.timestamp)) return false;
  return Math.abs(Number(message.timestamp) * 1000 - nowMs) <= toleranceMs;
}

/** A key that is tried; where `counts` is false its word is worth nothing, and it is tried for the time that it takes. */
export interface TriedKey {
  kind: "secret" | "publicKey";
  bytes: Uint8Array<ArrayBuffer>;
  counts: boolean;
}

/** Whether one of the keys that count has made one of the signatures. Every key tries every signature of its kind: the time does not tell which. */
export async function isSignedBy(message: SignedMessage, keys: readonly TriedKey[]): Promise<boolean> {
  const signed = signedBytes(message);
  const signatures = message.signature.split(" ").slice(0, signaturesMax);
  let valid = false;
  for (const { kind, bytes, counts } of keys) {
    const prefix = kind === "secret" ? "v1," : "v1a,";
    const algorithm = kind === "secret" ? { name: "HMAC", hash: "SHA-256" } : { name: "Ed25519" };
    const key = await crypto.subtle.importKey("raw", bytes, algorithm, false, ["verify"]).catch(() => null);
    for (const text of signatures) {
      if (key === null || !text.startsWith(prefix)) continue;
      const signature = Uint8Array.from(Buffer.from(text.slice(prefix.length), "base64"));
      const fits = await crypto.subtle.verify(algorithm, key, signature, signed).catch(() => false);
      if (fits && counts) valid = true;
    }
  }
  return valid;
}

/** The header of a message that goes out: a `v1` signature by each secret (`secretBytes`), in their order. */
export async function signatureOf(
  message: Omit<SignedMessage, "signature">,
  secrets: readonly Uint8Array<ArrayBuffer>[],
): Promise<string> {
  const signed = signedBytes(message);
  const signatures = secrets.map(async (secret) => {
    const key = await crypto.subtle.importKey("raw", secret, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
    return `v1,${Buffer.from(await crypto.subtle.sign("HMAC", key, signed)).toString("base64")}`;
  });
  return (await Promise.all(signatures)).join(" ");
}

function signedBytes({ id, timestamp, body }: Omit<SignedMessage, "signature">): Uint8Array<ArrayBuffer> {
  const head = new TextEncoder().encode(`${id}.${timestamp}.`);
  const signed = new Uint8Array(head.length + body.length);
  signed.set(head);
  signed.set(body, head.length);
  return signed;
}
