/**
 * Exit codes. 0 to 4 and 64 are the contract of interface.md; the others are sysexits' and say who has to act. A migration
 * that was only lost from sight has its own code: it is not known to have failed.
 */
import type { FaultCode } from "#protocol/fault";

export const exitCodes = {
  ok: 0,
  /** The migration was rolled back or cancelled: the source is as it was. Also: something asked for is not fit (`doctor`). */
  rolledBack: 1,
  risks: 2,
  blocked: 3,
  stranded: 4,
  /** The control plane could not be reached for too long while watching; the migration goes on without us. */
  lostSight: 5,
  usage: 64,
  notFound: 66,
  unavailable: 69,
  internal: 70,
  noPermission: 77,
  interrupted: 130,
} as const;

const byCode: Partial<Record<string, number>> = {
  "risk.notAccepted": exitCodes.risks,
  "request.malformed": exitCodes.usage,
  "request.tooLarge": exitCodes.usage,
  "idempotency.mismatch": exitCodes.usage,
  "request.notFound": exitCodes.notFound,
  "request.unauthorised": exitCodes.noPermission,
  "request.forbidden": exitCodes.noPermission,
  "token.invalid": exitCodes.noPermission,
  "store.unreachable": exitCodes.unavailable,
  "bundle.unreachable": exitCodes.unavailable,
  internal: exitCodes.internal,
} satisfies Partial<Record<FaultCode, number>>;

/** The exit code of a refusal; a code that is not known here is something in the way: blocked. */
export const exitOf = (code: string): number => byCode[code] ?? exitCodes.blocked;
