/**
 * What this host does about being shut down, as a function of what is seen: whether it holds logind's locks, what the lock says to the person at the
 * terminal, what the control plane is told. Pure.
 *
 * What a lock can do, seen with systemd's own daemon (test/contract/logind.test.ts) and said in its manual (org.freedesktop.login1, systemd-inhibit):
 * - a `block` lock refuses a request that comes now: of users without privileges and of the power key always, of root from systemd 257 on. Whoever is
 *   refused leaves no trace here and reads the lock's reason. `systemctl -i` passes it, and so does what was scheduled before.
 * - a `delay` lock holds what passes that, for `InhibitDelayMaxSec` and no longer (5 s unless it is raised). logind says so beforehand.
 * - `systemctl --force`, the kernel's own ways and a power cut pass everything.
 *
 * - P1 (I8): nothing here stops a domain. When the time is over the locks are given back, and whatever the host does to its domains is the host's.
 * - P2: no host is kept from shutting down for ever by a request that was seen: every one has a time at which the locks go.
 * - P3: a request has one id for as long as it stands, and is withdrawn once.
 */
import { shutdownBudgetMsMax } from "#protocol/message";

/** What runs or is under way on this host. */
export interface Occupancy {
  /** Names of the domains that are not shut off. */
  domains: readonly string[];
  /** Migrations and tasks with an open journal. */
  journals: number;
}

/** logind's own state. */
export interface Shutting {
  /** It waits for the delay locks, or is past them. */
  preparing: boolean;
  /** What is asked for: poweroff, reboot, halt, ...; null: it does not say. */
  kind: string | null;
  /** `shutdown +N`, Unix time; null: none. */
  scheduledMs: number | null;
  /** `InhibitDelayMaxSec`. */
  delayMsMax: number;
}

export interface ShutdownRequest {
  requestId: string;
  kind: string | null;
  /** When it was first seen, Unix time. */
  seenMs: number;
  /** When it goes on unless it is held: for one that is scheduled, its time. */
  dueMs: number;
  /** Held until then at most; later the locks are gone. */
  untilMs: number;
}

export interface ShutdownPlan {
  request: ShutdownRequest | null;
  /** The budget of the standing request is over, or it was never held. */
  isOver: boolean;
  locks: boolean;
  /** Requests that were withdrawn since this process began. */
  withdrawals: number;
}

export const quietPlan: ShutdownPlan = { request: null, isOver: false, locks: false, withdrawals: 0 };

export interface PlanChange {
  plan: ShutdownPlan;
  requested: ShutdownRequest | null;
  withdrawn: ShutdownRequest | null;
  /** The locks go although something is here still: why, for the log. */
  givenUp: string | null;
}

/** A shutdown that comes so much before its scheduled time is another one. */
const earlyMs = 5_000;

/** `budgetMs`: how long a shutdown that is due may be held, 0: not at all, it is only told. */
export function planShutdown(
  before: ShutdownPlan,
  seen: { nowMs: number; occupancy: Occupancy; shutting: Shutting; budgetMs: number },
): PlanChange {
  const { nowMs, occupancy, budgetMs } = seen;
  const request = requestNow(before, seen);
  const isSame = request?.requestId === before.request?.requestId;
  const isOccupied = occupancy.domains.length > 0 || occupancy.journals > 0;
  const isOver = request !== null && nowMs >= request.untilMs;
  const locks = budgetMs > 0 && isOccupied && !isOver;
  const givenUp =
    isOver && isOccupied && before.locks && !locks ? givenUpCause(occupancy, nowMs - request.dueMs) : null;
  const withdrawn = isSame ? null : before.request;
  return {
    plan: { request, isOver, locks, withdrawals: before.withdrawals + (withdrawn === null ? 0 : 1) },
    requested: isSame ? null : request,
    withdrawn,
    givenUp,
  };
}

function requestNow(
  { request: standing, withdrawals }: ShutdownPlan,
  { nowMs, shutting, budgetMs }: Pick<Parameters<typeof planShutdown>[1], "nowMs" | "shutting" | "budgetMs">,
): ShutdownRequest | null {
  const { preparing, kind, scheduledMs, delayMsMax } = shutting;
  const seenNow = (requestId: string, dueMs: number): ShutdownRequest => ({
    requestId,
    kind,
    seenMs: nowMs,
    dueMs,
    untilMs: dueMs + Math.min(budgetMs, delayMsMax),
  });
  if (preparing) {
    // It has come: the scheduled one at its time, or the one that was seen before.
    if (standing !== null && standing.dueMs <= nowMs + earlyMs) return standing;
    return seenNow(`now-${nowMs}`, nowMs);
  }
  if (scheduledMs === null) return null;
  const isStanding = standing?.dueMs === scheduledMs && standing.kind === kind && standing.requestId.startsWith("at-");
  if (standing !== null && isStanding) return standing;
  // The same after a restart of this process; but another one once something was withdrawn, for what is withdrawn stays so wherever it was heard.
  const again = withdrawals === 0 ? "" : `${withdrawals}-`;
  const requestId = `at-${scheduledMs}-${again}${(kind ?? "").replaceAll(/[^a-z-]/g, "")}`.slice(0, 40);
  return seenNow(requestId, scheduledMs);
}

/** From now on: how long the host surely still runs, for the control plane to use. */
export const budgetLeftMs = (request: ShutdownRequest, nowMs: number): number =>
  Math.round(Math.min(Math.max(0, request.untilMs - nowMs), shutdownBudgetMsMax));

/** Names in a lock's reason; systemctl prints it on one line. */
const namesMax = 3;

const namesOf = (names: readonly string[]): string => {
  const shown = names.slice(0, namesMax).map(printable);
  const more = names.length - shown.length;
  return `${shown.join(", ")}${more > 0 ? ` and ${more} more` : ""}`;
};

/** A name may hold anything; a terminal must not. */
const printable = (name: string): string => name.replaceAll(/[^\x20-\x7e\u00a0-\uffff]/g, "?").slice(0, 60);

const count = (number: number, one: string, many: string): string => `${number} ${number === 1 ? one : many}`;

const whatIsHere = ({ domains, journals }: Occupancy): string => {
  const parts: string[] = [];
  if (domains.length > 0)
    parts.push(`${count(domains.length, "domain runs", "domains run")} here (${namesOf(domains)})`);
  if (journals > 0) parts.push(`${count(journals, "migration is", "migrations are")} not over`);
  return parts.join(" and ");
};

/** What the person at the terminal reads: what is here, and the command. */
export const lockReason = (occupancy: Occupancy, host: string): string => {
  const { domains, journals } = occupancy;
  const next =
    domains.length > 0
      ? `Move them first: vmferry evacuate ${printable(host)}`
      : `See what ${journals === 1 ? "it waits" : "they wait"} for: vmferry migrations`;
  return `${whatIsHere(occupancy)}. ${next}`;
};

const givenUpCause = (occupancy: Occupancy, heldMs: number): string =>
  `the budget is over after ${Math.max(0, Math.round(heldMs / 1000))} s and ${whatIsHere(occupancy)}; the host shuts down now and does with them what it is set up to do (libvirt-guests)`;
