/** Control keys for tests: the same ones in every run, so that what is signed by them is the same as well. */
import type { TicketSigner } from "#functions/ports";
import { createTicketSigner } from "#functions/ticket-signer";

/** RFC 8410: the PKCS#8 of an Ed25519 key is this and its 32 bytes. */
const pkcs8Head = "302e020100300506032b657004220420";

/** A private key in PKCS#8, base64, as TICKET_KEY holds it. Different for each `seed` from 0 to 255. */
export const controlKeyPkcs8 = (seed = 7): string =>
  Buffer.concat([Buffer.from(pkcs8Head, "hex"), Buffer.alloc(32, seed)]).toString("base64");

export const controlSigner = (seed?: number): TicketSigner => createTicketSigner(controlKeyPkcs8(seed));
