/**
 * From a host's word that it is to be shut down to its rules, the same on every runtime: the session keeps the word as a small item (its function has no
 * rules in its bundle), the timer looks each minute, and where rules are at hand they look at once.
 */
import type { UpMessage } from "#protocol/message";
import {
  eventOfShutdown,
  type HostShutdown,
  type ShutdownStep,
  shutdownRequested,
  shuttingUntil,
  stepOfShutdown,
} from "./core/host-shutdown.ts";
import type { TriggerEvent } from "./core/trigger-event.ts";
import type { Ports } from "./ports.ts";
import { createTeller } from "./teller.ts";

type Said = Extract<UpMessage, { type: "shutdown" }>;

/** Keeps what a session that has proved itself says of its own host. False: it was not kept, and is to be said again. Throws `Fault`. */
export async function keepShutdown(
  { clock, hosts, shutdowns, chronicle, log }: Pick<Ports, "clock" | "hosts" | "shutdowns" | "chronicle" | "log">,
  hostId: string,
  said: Said,
): Promise<boolean> {
  const at = clock.now();
  const { requestId, kind, state, budgetMs } = said;
  const standing = await shutdowns.keep({
    hostId,
    requestId,
    kind,
    at,
    deadlineAt: new Date(Date.parse(at) + budgetMs).toISOString(),
    withdrawnAt: state === "withdrawn" ? at : null,
  });
  if (standing === null) {
    log.write("warn", "a host says that it is shut down more often than can be kept; it says so again", {
      host: hostId,
    });
    return false;
  }
  await close({ hosts, shutdowns }, hostId, { at, standing });
  log.write("info", `a host's shutdown was ${state}`, { host: hostId, request: requestId, kind, budgetMs });
  if (state === "requested") {
    const host = await hosts.byId(hostId);
    // Written down once for each request, however often it is said.
    if (host !== null) await createTeller({ chronicle, log })(shutdownRequested(host, requestId, at));
  }
  return true;
}

/** Words on one host that are taken in side by side: each more than two makes one more writing at the most. */
const closeTriesMax = 4;

/** Writes at the host until when it is closed. What was kept beside it may be newer than what was read, and written before it: so it looks once more. */
async function close(
  { hosts, shutdowns }: Pick<Ports, "hosts" | "shutdowns">,
  hostId: string,
  { at, standing }: { at: string; standing: readonly HostShutdown[] },
): Promise<void> {
  let until = shuttingUntil(standing, Date.parse(at));
  for (let tries = 0; tries < closeTriesMax; tries += 1) {
    await hosts.seen(hostId, { at, shuttingUntil: until });
    const newest = (await shutdowns.list()).filter((each) => each.hostId === hostId);
    const now = shuttingUntil(newest, Date.parse(at));
    if (now === until) return;
    until = now;
  }
}

/** How long a look takes at most that tells of what took the place of another: until then another look does not say that the other is over. */
const joinsMsMax = 30_000;

/** What stands is told first: what it takes the place of must not cancel what both have asked for. */
const order: readonly ShutdownStep[] = ["fire", "resolve", "wait", "forget"];

/** Tells the rules what stands and what was withdrawn, and forgets what is over. */
export async function lookAtShutdowns(
  { clock, log, shutdowns }: Pick<Ports, "clock" | "log" | "shutdowns">,
  hosts: () => Promise<readonly { id: string; name: string }[]>,
  tell: (event: TriggerEvent) => Promise<void>,
): Promise<void> {
  const standing = await shutdowns.list();
  if (standing.length === 0) return;
  const known = new Map((await hosts()).map((host) => [host.id, host]));
  const nowMs = Date.parse(clock.now());
  const steps = standing
    .map((shutdown) => ({ shutdown, step: stepOfShutdown(shutdown, nowMs) }))
    .sort((one, other) => order.indexOf(one.step) - order.indexOf(other.step));
  const stands = new Set(steps.flatMap(({ shutdown, step }) => (step === "fire" ? [shutdown.hostId] : [])));
  const unheard = new Set<string>();
  for (const { shutdown, step } of steps)
    try {
      const { hostId, withdrawnAt } = shutdown;
      const isFresh = withdrawnAt !== null && nowMs - Date.parse(withdrawnAt) < joinsMsMax;
      if (step === "resolve" && (unheard.has(hostId) || (isFresh && stands.has(hostId)))) continue;
      const host = known.get(shutdown.hostId);
      if (step === "forget" || host === undefined) await shutdowns.forget(shutdown);
      else if (step !== "wait") await tell(eventOfShutdown(shutdown, host, step));
    } catch (error) {
      // One host's trouble is not the others'; the next minute looks again.
      unheard.add(shutdown.hostId);
      log.write("warn", "a host's shutdown could not be told to the rules", {
        host: shutdown.hostId,
        error: error instanceof Error ? error.message.slice(0, 300) : "not an error",
      });
    }
}
