/**
 * What a refusal or a failure of one migration means to an evacuation. Each code of the treaty is judged here once, and the
 * compiler asks for a new one: `never` no host and no later time makes it possible, a person has to do something first;
 * `elsewhere` the pair did not do, so another destination is tried first; `later` it may pass by itself, with any destination.
 */
import type { FaultBody, FaultCode } from "#protocol/fault";

export type Outlook = "never" | "elsewhere" | "later";

const outlooks: Record<FaultCode, Outlook> = {
  "domain.absent": "never",
  "domain.notUnique": "never",
  "domain.busy": "later",
  "domain.blockJob": "later",
  "domain.hostdev": "never",
  "domain.managedSave": "never",
  "domain.transient": "never",
  "domain.transientDisk": "never",
  "domain.state": "later",
  "domain.notMigratable": "never",
  "destination.sameHost": "elsewhere",
  "destination.duplicateUuid": "elsewhere",
  "destination.nameTaken": "elsewhere",
  "destination.active": "elsewhere",
  "destination.defined": "elsewhere",
  "destination.cpu": "elsewhere",
  "destination.memory": "elsewhere",
  "destination.version": "elsewhere",
  "destination.secretMissing": "elsewhere",
  "storage.unreachable": "elsewhere",
  "storage.notShared": "elsewhere",
  "storage.cacheMode": "never",
  "snapshot.dataUnreachable": "elsewhere",
  "snapshot.changed": "later",
  "snapshot.refused": "elsewhere",
  "snapshot.mismatch": "elsewhere",
  "snapshot.revertUncertain": "elsewhere",
  "snapshot.incomplete": "never",
  "lock.none": "never",
  "transport.clear": "never",
  "bundle.unreachable": "later",
  "bundle.altered": "later",
  "bundle.malformed": "never",
  "bundle.tooLarge": "never",
  "begin.failed": "later",
  "prepare.failed": "elsewhere",
  "perform.failed": "elsewhere",
  "finish.failed": "elsewhere",
  "confirm.failed": "later",
  "settle.failed": "elsewhere",
  "peer.unreachable": "elsewhere",
  "ticket.refused": "elsewhere",
  "receipt.refused": "elsewhere",
  "source.lost": "later",
  "destination.lost": "elsewhere",
  "cookie.altered": "later",
  "cookie.tooLarge": "never",
  "step.overdue": "elsewhere",
  "migration.cancelled": "never",
  "risk.notAccepted": "never",
  "placement.antiAffinity": "elsewhere",
  "placement.noDestination": "elsewhere",
  "placement.noRoom": "elsewhere",
  "placement.pinned": "never",
  "placement.swap": "elsewhere",
  "host.absent": "elsewhere",
  "host.offline": "elsewhere",
  "host.cordoned": "elsewhere",
  "host.nameTaken": "elsewhere",
  "shim.incompatible": "elsewhere",
  "shim.unauthorised": "elsewhere",
  "shim.restarted": "later",
  "epoch.stale": "later",
  "command.conflict": "later",
  "libvirt.unreachable": "elsewhere",
  "libvirt.refused": "elsewhere",
  "libvirt.failed": "elsewhere",
  "message.malformed": "later",
  "message.tooLarge": "never",
  "request.malformed": "never",
  "request.tooLarge": "never",
  "request.unauthorised": "never",
  "request.forbidden": "never",
  "request.notFound": "later",
  "request.conflict": "later",
  "token.invalid": "never",
  "idempotency.mismatch": "never",
  "store.unreachable": "later",
  internal: "later",
};

/** Of a migration that was refused or failed. */
export const outlookOf = ({ code }: Pick<FaultBody, "code">): Outlook => outlooks[code];

/**
 * Beside what is `later` anyhow: what speaks against every destination now and may pass without a person. `placement.noDestination`
 * is said where each has another reason, so one of them may be no more than a host that is full or away.
 */
const passing: ReadonlySet<FaultCode> = new Set([
  "destination.memory",
  "placement.noRoom",
  "placement.noDestination",
  "placement.swap",
  "destination.lost",
  "peer.unreachable",
  "host.offline",
  "libvirt.unreachable",
]);

/** Of a planner's blocker: all destinations have been weighed already, so `elsewhere` is no way out. True: wait for it. */
export const passes = ({ code }: Pick<FaultBody, "code">): boolean => outlooks[code] === "later" || passing.has(code);
