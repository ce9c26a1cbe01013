/**
 * What can go wrong with libvirt, one class for each thing the receiver must do:
 *
 * - LibvirtError: libvirt answered "no". Its code, domain, level and message are kept as they came.
 * - LibvirtClosedError: the connection ended before the answer. If `sent` is true the call may or may not have had its
 *   effect: this is no answer, and must never be read as one (I2, I8).
 * - LibvirtNoAnswerError: the caller stopped waiting. The same as above; the connection lives on.
 * - LibvirtProtocolError: an answer came and we do not understand it. Also no answer.
 * - LibvirtAccessError: we may not talk to this daemon. A person must change something; `action` says what.
 * - LibvirtUnreachableError: there is no daemon at that socket (yet); `action` says what to look at.
 */
import { ErrorCode, ErrorDomain } from "./constants.ts";
import { remoteDomain, uuid } from "./handle.ts";
import { int, message, optional, string, struct, type ValueOf } from "./shape.ts";

/** virNetMessageError: the body of a reply with status ERROR. */
export const remoteError = struct({
  code: int,
  domain: int,
  message: optional(message),
  level: int,
  dom: optional(remoteDomain),
  str1: optional(message),
  str2: optional(message),
  str3: optional(message),
  int1: int,
  int2: int,
  net: optional(struct({ name: string, uuid })),
});
export type RemoteError = ValueOf<typeof remoteError>;

const codeNames = new Map<number, string>(Object.entries(ErrorCode).map(([name, code]) => [code, name]));
const domainNames = new Map<number, string>(Object.entries(ErrorDomain).map(([name, domain]) => [domain, name]));

/** libvirt's name of an error code without VIR_ERR_, or the number as text when vmferry does not know it. */
export function errorCodeName(code: number): string {
  return codeNames.get(code) ?? String(code);
}

/** libvirt's name of an error domain without VIR_FROM_, or the number as text. */
export function errorDomainName(domain: number): string {
  return domainNames.get(domain) ?? String(domain);
}

/** libvirt's refusal of a call. `message` is libvirt's own sentence, unchanged. */
export class LibvirtError extends Error {
  override readonly name = "LibvirtError";
  /** Name of the procedure that was refused. */
  readonly procedure: string;
  /** virErrorNumber; see ErrorCode. */
  readonly code: number;
  /** virErrorDomain; see ErrorDomain. */
  readonly domain: number;
  /** virErrorLevel. */
  readonly level: number;
  readonly dom: RemoteError["dom"];
  readonly str1: string | null;
  readonly str2: string | null;
  readonly str3: string | null;
  readonly int1: number;
  readonly int2: number;

  constructor(procedure: string, error: RemoteError) {
    super(error.message ?? `libvirt error ${errorCodeName(error.code)} without a message`);
    this.procedure = procedure;
    this.code = error.code;
    this.domain = error.domain;
    this.level = error.level;
    this.dom = error.dom;
    this.str1 = error.str1;
    this.str2 = error.str2;
    this.str3 = error.str3;
    this.int1 = error.int1;
    this.int2 = error.int2;
  }
}

/** Why a connection ended. */
export type CloseReason = "local" | "peer" | "socket" | "protocol";

/** The connection is gone. `sent`: the call had been given to the socket, so its outcome is unknown. */
export class LibvirtClosedError extends Error {
  override readonly name = "LibvirtClosedError";
  readonly reason: CloseReason;
  readonly procedure: string | undefined;
  readonly sent: boolean;

  constructor(reason: CloseReason, detail: string, call?: { procedure: string; sent: boolean; cause?: unknown }) {
    const about = call === undefined ? "" : `${call.procedure} ${call.sent ? "has no answer" : "was not sent"}: `;
    super(`${about}${detail}`, call?.cause === undefined ? undefined : { cause: call.cause });
    this.reason = reason;
    this.procedure = call?.procedure;
    this.sent = call?.sent ?? false;
  }
}

/** The caller's patience ended, not the call. `sent` false: it never reached libvirt and never will. */
export class LibvirtNoAnswerError extends Error {
  override readonly name = "LibvirtNoAnswerError";
  readonly procedure: string;
  readonly sent: boolean;

  constructor(procedure: string, sent: boolean, why: string) {
    super(
      sent
        ? `${procedure} has no answer yet (${why}); it may still take effect, so ask libvirt before deciding anything`
        : `${procedure} was not sent (${why})`,
    );
    this.procedure = procedure;
    this.sent = sent;
  }
}

/** What came is not what the protocol says. `cause` holds the XdrError or FrameError. */
export class LibvirtProtocolError extends Error {
  override readonly name = "LibvirtProtocolError";
  readonly procedure: string | undefined;

  constructor(detail: string, options?: { procedure?: string; cause?: unknown }) {
    super(
      options?.procedure === undefined ? detail : `${options.procedure}: ${detail}`,
      options?.cause === undefined ? undefined : { cause: options.cause },
    );
    this.procedure = options?.procedure;
  }
}

/** The daemon is there and does not let us in. */
export class LibvirtAccessError extends Error {
  override readonly name = "LibvirtAccessError";
  /** What a person can do about it. */
  readonly action: string;

  constructor(cause: string, action: string, options?: ErrorOptions) {
    super(cause, options);
    this.action = action;
  }
}

/** No daemon answers at that socket. */
export class LibvirtUnreachableError extends Error {
  override readonly name = "LibvirtUnreachableError";
  readonly action: string;

  constructor(cause: string, action: string, options?: ErrorOptions) {
    super(cause, options);
    this.action = action;
  }
}

function hasCode(error: unknown, ...codes: readonly number[]): error is LibvirtError {
  return error instanceof LibvirtError && codes.includes(error.code);
}

/** libvirt knows no such domain: the only proof of absence there is. */
export function isNoDomain(error: unknown): error is LibvirtError {
  return hasCode(error, ErrorCode.NO_DOMAIN);
}

export function isNoSnapshot(error: unknown): error is LibvirtError {
  return hasCode(error, ErrorCode.NO_DOMAIN_SNAPSHOT);
}

export function isNoCheckpoint(error: unknown): error is LibvirtError {
  return hasCode(error, ErrorCode.NO_DOMAIN_CHECKPOINT);
}

/** Finish with `cancelled` did what was asked: libvirt says so by this error. */
export function isFinishCancelled(error: unknown): error is LibvirtError {
  return hasCode(error, ErrorCode.MIGRATE_FINISH_OK);
}

/** The daemon or driver is too old for the call, or cannot do it at all. */
export function isUnsupported(error: unknown): error is LibvirtError {
  return hasCode(error, ErrorCode.NO_SUPPORT, ErrorCode.OPERATION_UNSUPPORTED, ErrorCode.ARGUMENT_UNSUPPORTED);
}

/** True when nobody can know from this error whether the call had its effect. */
export function isOutcomeUnknown(error: unknown): boolean {
  if (error instanceof LibvirtClosedError || error instanceof LibvirtNoAnswerError) return error.sent;
  return error instanceof LibvirtProtocolError;
}
