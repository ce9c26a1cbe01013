/**
 * What is true of a domain on this host, asked of libvirt itself. A probe changes nothing, and no answer is never read as
 * an answer (I2, I8): whatever cannot be asked is thrown.
 */
import type { LibvirtConnection } from "#libvirt/client";
import { DomainState as Code, ErrorCode, JobOperation, JobStatsFlag, JobType, PausedReason } from "#libvirt/constants";
import { isNoDomain, LibvirtError } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { type Procedure, procedures } from "#libvirt/procedures";
import { numberOf, type TypedParam } from "#libvirt/typed-param";
import type { DomainRef, DomainState } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { isNoAnswer, messageOf } from "./libvirt-fault.ts";
import type { Work } from "./ports.ts";

/** Patience of a call that only reads. libvirt itself waits 30 s for a busy domain before it answers with error 68. */
export const readMs = 30_000;

/** A read with bounded patience. A timeout throws and is no answer. */
export function read<A, R>(libvirt: LibvirtConnection, procedure: Procedure<A, R>, args: A): Promise<R> {
  return libvirt.call(procedure, args, { patienceMs: readMs });
}

const stateNames: readonly DomainState[] = [
  "nostate",
  "running",
  "blocked",
  "paused",
  "shutdown",
  "shutoff",
  "crashed",
  "pmsuspended",
];

/** `none`: no job. `outgoing`: a migration leaves. `incoming`: a migration arrives and Finish has not been called. */
export type DomainJob = "none" | "outgoing" | "incoming" | "other";

export type Probe =
  | { present: false }
  | {
      present: true;
      dom: RemoteDomain;
      state: DomainState;
      reason: number;
      active: boolean;
      persistent: boolean;
      job: DomainJob;
      /** Paused by a migration: it must not be resumed without a receipt (I2). */
      pausedByMigration: boolean;
    };

/** The domain of that UUID, or null: libvirt's own word for absence is the only proof of it. */
export async function lookUp(libvirt: LibvirtConnection, uuid: string): Promise<RemoteDomain | null> {
  try {
    return (await read(libvirt, procedures.domainLookupByUuid, { uuid })).dom;
  } catch (error) {
    if (isNoDomain(error)) return null;
    throw error;
  }
}

/** As `lookUp`, for a step that cannot go on without the domain. Throws `domain.absent`. */
export async function mustLookUp(libvirt: LibvirtConnection, domain: DomainRef): Promise<RemoteDomain> {
  const dom = await lookUp(libvirt, domain.uuid);
  if (dom !== null) return dom;
  throw new Fault({
    code: "domain.absent",
    cause: `libvirt on this host knows no domain "${domain.name}" (${domain.uuid}).`,
    action: "Look where it is with `vmferry domains`; name the right source with --from.",
    retry: "never",
  });
}

export async function probeDomain(libvirt: LibvirtConnection, uuid: string): Promise<Probe> {
  const dom = await lookUp(libvirt, uuid);
  if (dom === null) return { present: false };
  try {
    const { state, reason } = await read(libvirt, procedures.domainGetState, { dom, flags: 0 });
    const active = state !== Code.SHUTOFF && state !== Code.NOSTATE && (await isActive(libvirt, dom));
    const { persistent } = await read(libvirt, procedures.domainIsPersistent, { dom });
    return {
      present: true,
      dom,
      state: stateNames[state] ?? "nostate",
      reason,
      active,
      persistent,
      job: active ? await jobOf(libvirt, dom) : "none",
      pausedByMigration:
        state === Code.PAUSED && (reason === PausedReason.MIGRATION || reason === PausedReason.STARTING_UP),
    };
  } catch (error) {
    // It went away between two questions.
    if (isNoDomain(error)) return { present: false };
    throw error;
  }
}

async function isActive(libvirt: LibvirtConnection, dom: RemoteDomain): Promise<boolean> {
  return (await read(libvirt, procedures.domainIsActive, { dom })).active;
}

/** libvirt refuses statistics of an incoming migration with error 55, while its monitor is not up yet with 84, and of an inactive domain with the same one; its words
 *  depend on the daemon's language, so the domain is asked once more. */
const notHereCodes: ReadonlySet<number> = new Set([ErrorCode.OPERATION_INVALID, ErrorCode.OPERATION_UNSUPPORTED]);

async function jobOf(libvirt: LibvirtConnection, dom: RemoteDomain): Promise<DomainJob> {
  try {
    const job = await read(libvirt, procedures.domainGetJobStats, { dom, flags: 0 });
    if (job.type === JobType.NONE) return "none";
    return numberOf(job.params, "operation") === JobOperation.MIGRATION_OUT ? "outgoing" : "other";
  } catch (error) {
    if (error instanceof LibvirtError && notHereCodes.has(error.code))
      return (await isActive(libvirt, dom)) ? "incoming" : "none";
    throw error;
  }
}

/** Statistics of a running job, or of the last completed one (without clearing them). Null when there are none. */
export async function jobStatistics(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  completed: boolean,
): Promise<{ type: number; params: readonly TypedParam[] } | null> {
  const flags = completed ? JobStatsFlag.COMPLETED | JobStatsFlag.KEEP_COMPLETED : 0;
  try {
    const stats = await read(libvirt, procedures.domainGetJobStats, { dom, flags });
    return stats.type === JobType.NONE ? null : stats;
  } catch (error) {
    if (error instanceof LibvirtError) return null;
    throw error;
  }
}

/** Time between two attempts to reach libvirt again, and how long a step keeps at it before it reports that it cannot. */
const reconnectMs = 500;
const reconnectMsMax = 300_000;

/**
 * Runs `use` on the migration's connection and again on a new one whenever it has no answer, because a lost answer has to
 * be asked for again. `use` must therefore look before it acts. Gives up, with the connection's error, after five minutes.
 */
export async function persistently<T>(
  work: Pick<Work, "connection" | "sleep" | "now">,
  use: (libvirt: LibvirtConnection, continuous: boolean) => Promise<T>,
): Promise<T> {
  // The clock bounds patience only; a step of it makes the wait shorter or longer, and concludes nothing.
  const startedMs = Date.parse(work.now());
  for (;;) {
    try {
      const connection = await work.connection();
      return await use(connection.libvirt, connection.continuous);
    } catch (error) {
      if (!isNoAnswer(error)) throw error;
      if (Date.parse(work.now()) - startedMs >= reconnectMsMax)
        throw new Fault(
          {
            code: "libvirt.unreachable",
            cause: `libvirt on this host gave no answer for ${reconnectMsMax / 1000} s: ${messageOf(error)}`,
            action: "Start libvirt's daemon on this host; nothing was concluded from its silence.",
            retry: "safe",
          },
          { cause: error },
        );
      await work.sleep(reconnectMs);
    }
  }
}
