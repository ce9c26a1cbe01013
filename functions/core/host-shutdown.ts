/**
 * A host's own word that somebody has asked it to shut down, as it is kept from the socket to the minute's look, and what is to be done with it. Pure.
 *
 * What was withdrawn stays withdrawn, in whatever order the two are heard: messages overtake each other. Nobody is told of a shutdown whose time is up:
 * an evacuation that could begin nothing only cordons a host. A shim that begins anew may be that of a host that has been down: what it does not say again
 * counts as taken back.
 */
import * as z from "zod/mini";
import { hostIdSchema } from "#protocol/identity";
import { shutdownIdSchema } from "#protocol/message";
import { type ChronicleEvent, eventHead } from "./chronicle-event.ts";
import { hostShutdownEvent, type TriggerEvent } from "./trigger-event.ts";

/** Requests of one host that are kept at once: a person who schedules and cancels all hour has fewer. */
export const shutdownsPerHostMax = 20;
/** How long a withdrawal is told: some looks of the timer, for the rules to hear it after one that failed. */
export const withdrawnToldMs = 5 * 60_000;
/**
 * How long it is kept after its time: the same request that comes late must not look new; and so long a host may take to stop once its locks are gone, its
 * shim still answering. One whose shutdown comes to nothing says so.
 */
export const shutdownKeptMs = 10 * 60_000;
/** How long a shim that has begun anew has for saying again what still stands: it does so in its first seconds. */
export const saidAgainMsMax = 90_000;

export const hostShutdownSchema = z.object({
  hostId: hostIdSchema,
  requestId: shutdownIdSchema,
  /** In the host's words; null: it did not say. */
  kind: z.nullable(z.string()),
  /** When it was heard. */
  at: z.string(),
  /** Until then the host surely runs. */
  deadlineAt: z.string(),
  withdrawnAt: z.nullable(z.string()),
  /** Since then its host's shim has begun anew and has not said it again; absent: it stands as it was said. */
  doubtedAt: z.optional(z.string()),
});
export type HostShutdown = z.infer<typeof hostShutdownSchema>;

/** `fire`: rules are told, every minute anew, as a source that repeats its alert. `forget`: nothing follows from it any more. */
export type ShutdownStep = "fire" | "resolve" | "wait" | "forget";

export function stepOfShutdown(shutdown: HostShutdown, nowMs: number): ShutdownStep {
  const deadlineMs = Date.parse(shutdown.deadlineAt);
  const overMs = overSinceMs(shutdown);
  if (overMs !== null) {
    if (nowMs < overMs) return "wait";
    if (nowMs < overMs + withdrawnToldMs) return "resolve";
    return nowMs < Math.max(deadlineMs, overMs) + shutdownKeptMs ? "wait" : "forget";
  }
  if (nowMs < deadlineMs) return "fire";
  return nowMs < deadlineMs + shutdownKeptMs ? "wait" : "forget";
}

function overSinceMs({ withdrawnAt, doubtedAt }: HostShutdown): number | null {
  if (withdrawnAt !== null) return Date.parse(withdrawnAt);
  return doubtedAt === undefined ? null : Date.parse(doubtedAt) + saidAgainMsMax;
}

/** Of what stands for a host, what is over and may go, and whether one more has room. */
export function roomForShutdown(
  standing: readonly HostShutdown[],
  nowMs: number,
): { over: HostShutdown[]; hasRoom: boolean } {
  const over = standing.filter((each) => stepOfShutdown(each, nowMs) === "forget");
  return { over, hasRoom: standing.length - over.length < shutdownsPerHostMax };
}

/** Until when a host surely runs that is about to shut down, of all that stands for it; null: it is not. Nothing is moved to it then, nor after. */
export function shuttingUntil(standing: readonly HostShutdown[], nowMs: number): string | null {
  const untils = standing
    .filter((each) => overSinceMs(each) === null && isShuttingDown(each.deadlineAt, nowMs))
    .map(({ deadlineAt }) => deadlineAt);
  return untils.sort().at(-1) ?? null;
}

/** Whether a host that surely runs until then is about to shut down, or does so. */
export const isShuttingDown = (untilAt: string, nowMs: number): boolean => nowMs < Date.parse(untilAt) + shutdownKeptMs;

/** What rules are told of it. */
export const eventOfShutdown = (
  shutdown: HostShutdown,
  host: { id: string; name: string },
  action: "fire" | "resolve",
): TriggerEvent =>
  hostShutdownEvent(host, shutdown.requestId, shutdown.at, {
    action,
    deadlineAt: shutdown.deadlineAt,
    kind: shutdown.kind,
  });

/** What the chronicle is told of it, once for each request. */
export const shutdownRequested = (
  host: { id: string; name: string },
  requestId: string,
  at: string,
): Extract<ChronicleEvent, { type: "dev.vmferry.host.shutdownRequested" }> => ({
  ...eventHead(`${host.id}-shutdown-${requestId}`, host.id, at),
  type: "dev.vmferry.host.shutdownRequested",
  data: { host: { id: host.id, name: host.name }, requestId },
});
