/**
 * From libvirt's errors to faults: the cause starts with what failed and ends in libvirt's own words, its code, domain and
 * level are kept, and what is no answer is never worded as one.
 */
import {
  isNoDomain,
  isOutcomeUnknown,
  LibvirtAccessError,
  LibvirtClosedError,
  LibvirtError,
  LibvirtNoAnswerError,
  LibvirtUnreachableError,
} from "#libvirt/error";
import { Fault, type FaultBody, type FaultCode, type LibvirtFault, type Retry } from "#protocol/fault";
import { textCharsMax } from "#protocol/limits";

/** libvirt's own fields, as they travel. */
export function libvirtFields(error: unknown): LibvirtFault | undefined {
  if (!(error instanceof LibvirtError)) return undefined;
  return {
    code: error.code,
    domain: error.domain,
    level: error.level,
    message: error.message.slice(0, textCharsMax),
  };
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** True when the connection is gone or nobody answers: somebody has to connect again and look. */
export function isConnectionGone(error: unknown): boolean {
  return (
    error instanceof LibvirtClosedError ||
    error instanceof LibvirtUnreachableError ||
    (error instanceof Fault && (error.code === "libvirt.unreachable" || error.code === "source.lost"))
  );
}

/** True when libvirt gave no answer at all: gone, or not within our patience, or not understood. */
export function isNoAnswer(error: unknown): boolean {
  return isConnectionGone(error) || error instanceof LibvirtNoAnswerError || isOutcomeUnknown(error);
}

export interface FaultWords {
  code: FaultCode;
  /** What was being done, as the start of a sentence: "Begin on the source failed". */
  what: string;
  action: string;
  retry: Retry;
}

/** A fault as it stands, or a new one that carries libvirt's words behind `what`. A lost connection, an absent domain and a
 *  refused login keep their own codes: the next action is another one. */
export function faultBodyOf(error: unknown, words: FaultWords): FaultBody {
  if (error instanceof Fault) return error.toBody();
  if (isNoDomain(error)) {
    return {
      code: "domain.absent",
      cause: `${words.what}: libvirt no longer knows the domain (${messageOf(error)}).`,
      action: "Look where the domain is with `virsh list --all` on both hosts.",
      retry: "person",
      libvirt: libvirtFields(error),
    };
  }
  if (error instanceof LibvirtAccessError) {
    return {
      code: "libvirt.refused",
      cause: `${words.what}: ${messageOf(error)}`,
      action: error.action,
      retry: "person",
    };
  }
  if (isNoAnswer(error)) {
    return {
      code: "libvirt.unreachable",
      cause: `${words.what}: ${messageOf(error)}`,
      action:
        "Look at libvirt's daemon on this host (systemctl status libvirtd virtqemud); the step is looked at again.",
      retry: "safe",
    };
  }
  return {
    code: words.code,
    cause: `${words.what}: ${messageOf(error)}`,
    action: words.action,
    retry: words.retry,
    libvirt: libvirtFields(error),
  };
}

export function faultOf(error: unknown, words: FaultWords): Fault {
  if (error instanceof Fault) return error;
  return new Fault(faultBodyOf(error, words), { cause: error });
}
