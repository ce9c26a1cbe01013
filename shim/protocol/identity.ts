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

/**
 * A proof of identity that travels with the request for a websocket, for doors that cannot speak before the socket is open (API Gateway).
 * It is good once and for `connectMsMax`; `atMs` is the control plane's time as the door told it, so no host's clock counts.
 */
export interface ConnectProof {
  hostId: string;
  /** Unix time of the control plane. */
  atMs: number;
  /** Random, 32 bytes, base64url; the hello in the session signs it once more. */
  nonce: string;
  /** Ed25519 over `connectSignedText`, base64url. */
  signature: string;
}

/** The header that carries a connect proof. */
export const connectHeader = "x-vmferry-connect";

/** How long a connect proof holds: a slow dial and a retry of it, no more. */
export const connectMsMax = 2 * 60_000;

/** What a connect proof is about: made for one socket's address, so that whoever else is dialled cannot use it there. */
export type ConnectClaim = Omit<ConnectProof, "signature"> & {
  /** As the door named it; empty: the one beside the door. */
  socket: string;
};

/** The exact text that a connect proof signs; the prefix keeps it apart from a hello. */
export function connectSignedText({ hostId, atMs, nonce, socket }: ConnectClaim): string {
  return `vmferry connect 1\n${hostId}\n${atMs}\n${nonce}\n${socket}`;
}

const connectPattern = /^1 (h_[0-9A-HJKMNP-TV-Z]{26}) (\d{13}) ([A-Za-z0-9_-]{43}) ([A-Za-z0-9_-]{86})$/;

/** The header's text. */
export const formatConnectProof = ({ hostId, atMs, nonce, signature }: ConnectProof): string =>
  `1 ${hostId} ${atMs} ${nonce} ${signature}`;

/** Reads the header; null when it is none. */
export function parseConnectProof(text: string): ConnectProof | null {
  const [, hostId, atMs, nonce, signature] = connectPattern.exec(text) ?? [];
  if (hostId === undefined || atMs === undefined || nonce === undefined || signature === undefined) return null;
  return { hostId, atMs: Number(atMs), nonce, signature };
}

/**
 * Where a shim connects and how: GET, open to everybody. A control plane of before this path answers 404, and has its socket at
 * `shimSocketPath` beside it.
 */
export const doorPath = "/v1/shim-door";

/** `challenge`: the control plane speaks first. `connect`: the shim proves itself in the request (`ConnectProof`) and says hello at once. */
export const doorSchema = z.object({
  /** ws: or wss:, without the query; null: at `shimSocketPath` of the address that was asked. */
  socket: z.nullable(z.string().check(z.maxLength(500), z.regex(/^wss?:\/\/[^\s?#]+$/))),
  hello: z.enum(["challenge", "connect"]),
  /** The control plane's clock. */
  atMs: z.int().check(z.minimum(0)),
});
export type Door = z.infer<typeof doorSchema>;

/** The path on the control plane where a shim's websocket connects; the host's id is a query parameter `host`. */
export const shimSocketPath = "/v1/shim";

/** The path where a join token and a public key become a host: POST {token, name, publicKey} -> {hostId, name, controlKey}. */
export const enrolmentPath = "/v1/enrolments";
