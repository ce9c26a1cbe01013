/**
 * Who asks: the admin token (its digest is configuration) or an API token (its digest is stored, it always expires). A
 * join token is recognised only to say that it opens nothing here. Digests are compared in constant time.
 */
import type { AppDeps } from "./deps.ts";
import { fault } from "./problem.ts";
import { parseToken, sameDigest, sha256Hex } from "./token.ts";

export interface Principal {
  /** Scopes idempotency keys: two credentials never share one. */
  owner: string;
  /** What the timeline says who asked. */
  name: string;
  admin: boolean;
}

const unauthorised = (cause: string) =>
  fault("request.unauthorised", cause, "Send `Authorization: Bearer TOKEN`; the CLI reads VMFERRY_TOKEN.");

/** Finds the principal of a request. Throws `request.unauthorised`, `request.forbidden`. */
export async function authenticate(deps: AppDeps, authorization: string | undefined): Promise<Principal> {
  if (authorization === undefined) throw unauthorised("No token was sent.");
  const match = /^Bearer +([\x21-\x7e]{1,512})$/i.exec(authorization);
  const text = match?.[1];
  if (text === undefined) throw unauthorised("The Authorization header is not `Bearer TOKEN`.");
  if (deps.adminTokenSha256 !== null && sameDigest(await sha256Hex(text), deps.adminTokenSha256))
    return { owner: "admin", name: "admin", admin: true };
  const parsed = parseToken(text);
  if (parsed === null) throw unauthorised("This token is not known.");
  if (parsed.kind === "join")
    throw fault(
      "request.forbidden",
      "A join token enrols a host and opens nothing else.",
      "Use an API token (vmk_...) or the admin token.",
    );
  const record = await deps.ports.tokens.byId(parsed.id);
  const digest = await sha256Hex(parsed.secret);
  if (record === null || record.kind !== "api" || !sameDigest(digest, record.secretSha256))
    throw unauthorised("This token is not known.");
  if (Date.parse(record.expiresAt) <= Date.parse(deps.ports.clock.now()))
    throw unauthorised(`This token expired at ${record.expiresAt}.`);
  return { owner: `token:${record.id}`, name: record.name ?? record.id, admin: false };
}

/** Tokens make tokens: only the admin token may. Throws `request.forbidden`. */
export function requireAdmin(principal: Principal): void {
  if (!principal.admin)
    throw fault(
      "request.forbidden",
      "An API token does not manage tokens.",
      "Use the admin token (DATA/admin-token of `vmferry up`).",
    );
}
