/**
 * The control key: the Ed25519 key by which the functions sign tickets, and receipts that a person's statement stands for.
 * Hosts keep its public half from their enrolment on and take no other, so it is made once for each control plane. By
 * WebCrypto, because that is what workerd and Node both have; signatures are deterministic (RFC 8032), so a ticket that is
 * made again from the same text is the same ticket. The private half is never logged and never quoted (I9).
 */
import { Fault } from "#protocol/fault";
import type { TicketSigner } from "./ports.ts";

const unusable = (why: string, cause?: unknown) =>
  new Fault(
    {
      code: "internal",
      cause: `The control plane's ticket key cannot be used: ${why}.`,
      action:
        "Give TICKET_KEY the PKCS#8 form of an Ed25519 private key in base64: openssl genpkey -algorithm ed25519 -outform DER | base64 -w0.",
      retry: "person",
    },
    { cause },
  );

/** A signer for a private key in PKCS#8 DER, base64. The key is imported at the first use and kept. Throws `Fault` `internal` for a text that is none. */
export function createTicketSigner(pkcs8Base64: string): TicketSigner {
  const text = pkcs8Base64.trim();
  if (text === "") throw unusable("there is none");
  let imported: Promise<{ key: CryptoKey; publicKey: string }> | null = null;
  const opened = () => {
    imported ??= open(text);
    return imported;
  };
  return {
    publicKey: async () => (await opened()).publicKey,
    async sign(signed) {
      const { key } = await opened();
      const bytes = await crypto.subtle.sign("Ed25519", key, new TextEncoder().encode(signed));
      return Buffer.from(bytes).toString("base64url");
    },
  };
}

async function open(text: string): Promise<{ key: CryptoKey; publicKey: string }> {
  let publicKey: string | undefined;
  let key: CryptoKey;
  try {
    key = await crypto.subtle.importKey("pkcs8", Buffer.from(text, "base64"), { name: "Ed25519" }, true, ["sign"]);
    // WebCrypto has no other way from the private half to the public one.
    ({ x: publicKey } = await crypto.subtle.exportKey("jwk", key));
  } catch (error) {
    throw unusable("it is not an Ed25519 private key", error);
  }
  if (publicKey === undefined) throw unusable("it has no public half");
  return { key, publicKey };
}
