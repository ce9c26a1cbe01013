/**
 * Faults: what goes wrong, classified by what the receiver must do. A fault keeps libvirt's own code, domain, level and
 * message; `cause` comes first and `action` names the next step. `code` is stable (interface.md, "Codes").
 */
import * as z from "zod/mini";
import { textCharsMax } from "./limits.ts";

/** `safe`: the same request may be repeated. `never`: it will fail again. `person`: somebody has to look first. */
export const retrySchema = z.enum(["safe", "never", "person"]);
export type Retry = z.infer<typeof retrySchema>;

export const libvirtFaultSchema = z.object({
  code: z.int(),
  domain: z.int(),
  level: z.int(),
  message: z.string().check(z.maxLength(textCharsMax)),
});
export type LibvirtFault = z.infer<typeof libvirtFaultSchema>;

export const faultCodes = [
  // the domain
  "domain.absent",
  "domain.notUnique",
  "domain.busy",
  "domain.blockJob",
  "domain.hostdev",
  "domain.managedSave",
  "domain.transient",
  "domain.transientDisk",
  "domain.state",
  "domain.notMigratable",
  // the destination
  "destination.sameHost",
  "destination.duplicateUuid",
  "destination.nameTaken",
  "destination.active",
  "destination.defined",
  "destination.cpu",
  "destination.memory",
  "destination.version",
  "destination.secretMissing",
  // storage and snapshots
  "storage.unreachable",
  "storage.notShared",
  "storage.cacheMode",
  "snapshot.dataUnreachable",
  "snapshot.changed",
  "snapshot.refused",
  "snapshot.mismatch",
  "snapshot.revertUncertain",
  "snapshot.incomplete",
  "lock.none",
  "transport.clear",
  // the bundle
  "bundle.unreachable",
  "bundle.altered",
  "bundle.malformed",
  "bundle.tooLarge",
  // the handshake
  "begin.failed",
  "prepare.failed",
  "perform.failed",
  "finish.failed",
  "confirm.failed",
  "settle.failed",
  "peer.unreachable",
  "ticket.refused",
  "receipt.refused",
  "source.lost",
  "destination.lost",
  "cookie.altered",
  "cookie.tooLarge",
  "step.overdue",
  "migration.cancelled",
  "risk.notAccepted",
  // hosts, shims, sessions
  "host.absent",
  "host.offline",
  "host.cordoned",
  "host.nameTaken",
  "shim.incompatible",
  "shim.unauthorised",
  "shim.restarted",
  "epoch.stale",
  "command.conflict",
  "libvirt.unreachable",
  "libvirt.refused",
  "libvirt.failed",
  // plans: where domains may go
  "placement.pinned",
  "placement.noRoom",
  "placement.antiAffinity",
  "placement.noDestination",
  "placement.swap",
  // messages and requests
  "message.malformed",
  "message.tooLarge",
  "request.malformed",
  "request.tooLarge",
  "request.unauthorised",
  "request.forbidden",
  "request.notFound",
  "request.conflict",
  "token.invalid",
  "idempotency.mismatch",
  "store.unreachable",
  "internal",
] as const;
export type FaultCode = (typeof faultCodes)[number];

/** A code that a newer side knows and this one does not is read as `internal`: what must be done stands beside it, and no report is lost for a word. */
const readCodeSchema = z.catch(z.enum(faultCodes), "internal");

export const faultSchema = z.object({
  code: readCodeSchema,
  cause: z.string().check(z.maxLength(textCharsMax)),
  action: z.string().check(z.maxLength(textCharsMax)),
  retry: retrySchema,
  libvirt: z.optional(libvirtFaultSchema),
});
export type FaultBody = z.infer<typeof faultSchema>;

/** A fault as an exception. `internal` may hold text that must never leave the process; it is not serialised. */
export class Fault extends Error {
  override name = "Fault";
  readonly code: FaultCode;
  readonly cause_: string;
  readonly action: string;
  readonly retry: Retry;
  readonly libvirt: LibvirtFault | undefined;

  constructor(body: FaultBody, options?: { cause?: unknown }) {
    super(`${body.code}: ${body.cause}`, options);
    this.code = body.code;
    this.cause_ = body.cause;
    this.action = body.action;
    this.retry = body.retry;
    this.libvirt = body.libvirt;
  }

  /** What may travel and be stored; texts are cut to the treaty's bound so that a long libvirt message is never the reason a report is refused. */
  toBody(): FaultBody {
    const cut = (text: string) => (text.length > textCharsMax ? `${text.slice(0, textCharsMax - 1)}…` : text);
    return {
      code: this.code,
      cause: cut(this.cause_),
      action: cut(this.action),
      retry: this.retry,
      ...(this.libvirt === undefined ? {} : { libvirt: { ...this.libvirt, message: cut(this.libvirt.message) } }),
    };
  }
}

/** Severity of a finding: a blocker cannot be overridden, a risk can be accepted by its code, a note is only said. */
export const findingSchema = z.object({
  severity: z.enum(["blocker", "risk", "note"]),
  code: readCodeSchema,
  cause: z.string().check(z.maxLength(textCharsMax)),
  action: z.string().check(z.maxLength(textCharsMax)),
  /** Of how many things it speaks, where somebody counts them; absent: of one. */
  count: z.optional(z.int()),
});
export type Finding = z.infer<typeof findingSchema>;
