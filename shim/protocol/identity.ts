/**
 * How a shim proves who it is: an Ed25519 key made on the host at enrolment. A session signs the functions' fresh nonce,
 * so a recorded hello is worthless, and no clock has to agree.
 */

import * as z from "zod/mini";

export const hostIdSchema = z.string().check(z.regex(/^h_[0-9A-HJKMNP-TV-Z]{26}$/));

/** The exact text that a hello signs. The prefix keeps the signature from being used for anything else. */
export function helloSignedText(challenge: { hostId: string; nonce: string }): string {
  return `vmferry hello 1\n${challenge.hostId}\n${challenge.nonce}`;
}

/** The path on the control plane where a shim's websocket connects; the host's id is a query parameter `host`. */
export const shimSocketPath = "/v1/shim";

/** The path where a join token and a public key become a host: POST {token, name, publicKey} -> {hostId, name, controlKey}. */
export const enrolmentPath = "/v1/enrolments";
