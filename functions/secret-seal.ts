/**
 * Seals small secrets that must be used again and so cannot be digests (the shared secrets of webhooks), for the store holds none in clear (I9). The key
 * follows from the control key: its signature over one fixed text is deterministic, known to nobody else, and never given out. Who replaces the control
 * key gives the secrets anew.
 */
import type { Ids, TicketSigner } from "./ports.ts";

const keyText = "vmferry seal 1";
/** AES-GCM's own size of a nonce. */
const nonceBytes = 12;

export interface SecretSeal {
  /** `context` binds the sealed text to its place: moved elsewhere it does not open. */
  seal(secret: string, context: string): Promise<string>;
  /** Null: it was sealed under another key, for another place, or altered. */
  open(sealed: string, context: string): Promise<string | null>;
}

/** A seal by the control key. The key is derived at the first use and kept; where that fails, the next use tries again. */
export function createSecretSeal(ports: { ids: Ids; tickets: TicketSigner }): SecretSeal {
  let derived: Promise<CryptoKey> | null = null;
  const key = () => {
    derived ??= derive(ports.tickets).catch((error: unknown) => {
      derived = null;
      throw error;
    });
    return derived;
  };
  return {
    async seal(secret, context) {
      const nonce = ports.ids.secret(nonceBytes);
      const bytes = await crypto.subtle.encrypt(parameters(nonce, context), await key(), encoded(secret));
      return `${nonce}.${Buffer.from(bytes).toString("base64url")}`;
    },
    async open(sealed, context) {
      const [nonce = "", text = ""] = sealed.split(".");
      const opened = await key();
      try {
        const bytes = await crypto.subtle.decrypt(parameters(nonce, context), opened, Buffer.from(text, "base64url"));
        return new TextDecoder().decode(bytes);
      } catch {
        return null;
      }
    },
  };
}

const encoded = (text: string) => new TextEncoder().encode(text);
const parameters = (nonce: string, context: string) => ({
  name: "AES-GCM",
  iv: Buffer.from(nonce, "base64url"),
  additionalData: encoded(context),
});

async function derive(tickets: TicketSigner): Promise<CryptoKey> {
  const digest = await crypto.subtle.digest("SHA-256", encoded(await tickets.sign(keyText)));
  return crypto.subtle.importKey("raw", digest, "AES-GCM", false, ["encrypt", "decrypt"]);
}
