/**
 * Tokens: `vmk_<id>_<secret>` opens the API, `vmj_<id>_<secret>` enrols a host and does nothing else. The secret is 256
 * random bits, so its SHA-256 alone is stored and no slow hash is needed; it is shown once and never logged (I9).
 */
import type { Ids, TokenRecord } from "../ports.ts";

const secretBytes = 32;
const tokenPattern = /^vm([jk])_([0-9A-HJKMNP-TV-Z]{26})_([A-Za-z0-9_-]{43})$/;

export interface ParsedToken {
  kind: TokenRecord["kind"];
  id: string;
  secret: string;
}

/** Takes a token apart; null when it does not look like one. */
export function parseToken(text: string): ParsedToken | null {
  const match = tokenPattern.exec(text);
  if (match === null) return null;
  const [, letter, id, secret] = match;
  if (id === undefined || secret === undefined) return null;
  return { kind: letter === "j" ? "join" : "api", id, secret };
}

/** SHA-256 of a text's UTF-8 bytes, hex. */
export async function sha256Hex(text: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Compares two hex digests in a time that depends on their length only. */
export function sameDigest(one: string, other: string): boolean {
  let difference = one.length ^ other.length;
  for (let index = 0; index < one.length; index += 1)
    difference |= one.charCodeAt(index) ^ (other.charCodeAt(index % Math.max(1, other.length)) || 0);
  return difference === 0;
}

/** Makes a token: its text, to be shown once, and its record, to be stored. */
export async function mintToken(
  ids: Ids,
  want: {
    id: string;
    kind: TokenRecord["kind"];
    name: string | null;
    usesLeft: number | null;
    at: string;
    ttlMs: number;
  },
): Promise<{ text: string; record: TokenRecord }> {
  const secret = ids.secret(secretBytes);
  return {
    text: `vm${want.kind === "join" ? "j" : "k"}_${want.id}_${secret}`,
    record: {
      id: want.id,
      kind: want.kind,
      secretSha256: await sha256Hex(secret),
      name: want.name,
      createdAt: want.at,
      expiresAt: new Date(Date.parse(want.at) + want.ttlMs).toISOString(),
      usesLeft: want.usesLeft,
    },
  };
}
