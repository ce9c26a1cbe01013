/**
 * Watches over this host's own shutdown where systemd-logind runs: holds its locks while domains run or migrations are open here, and tells the control
 * plane what was asked of the host. What follows from what is in shutdown-plan.ts; this file only looks, and does it.
 */
import type { InventoryDomain, offeredFeatures, UpMessage } from "#protocol/message";
import { type Clock, jitteredMs } from "./clock.ts";
import { type InhibitMode, Inhibitor, inhibitBackoff } from "./inhibitor.ts";
import type { Log } from "./log.ts";
import { LogindAbsentError, readScheduled, readShutting, watchLogind } from "./logind.ts";
import {
  budgetLeftMs,
  lockReason,
  type Occupancy,
  type PlanChange,
  planShutdown,
  quietPlan,
  type ShutdownPlan,
  type ShutdownRequest,
  type Shutting,
} from "./shutdown-plan.ts";

/** How long a shutdown that is due is held unless the owner says otherwise: some live migrations of usual size, and shorter than a person waits in vain. */
export const shutdownBudgetMsDefault = 15 * 60_000;

const feature: (typeof offeredFeatures)[number] = "shutdown.1";

/** Between two looks at a small file and at the journals; a scheduled shutdown leaves a minute or more. */
const lookEveryMs = 2_000;
/** So often the properties are asked for although nothing hinted at a change. */
const askEveryMs = 60_000;
/** The reason names domains: it follows them, but not each one of a rack that starts. */
const reasonEveryMs = 10_000;
/** A withdrawal that nobody heard matters no more after the request's own time and this. */
const withdrawnSaidMs = 10 * 60_000;

/** Words that wait to be heard; older ones of a person who changes their mind all day say nothing any more. */
const toldMax = 20;

export interface ShutdownWatchParts {
  /** For the command in the lock's reason. */
  host: string;
  /** 0: no lock is held, the control plane is only told. */
  budgetMs: number;
  lock: Exclude<InhibitMode, "delay">;
  /** Migrations with an open journal. */
  records(): readonly unknown[];
  send(message: UpMessage): boolean;
  clock: Clock;
  log: Log;
  /** Ends the watch and gives the locks back. */
  signal: AbortSignal;
  logind?: Partial<LogindSource> | undefined;
}

/** Where logind is asked; tests ask another. */
export interface LogindSource {
  shutting(): Promise<Shutting>;
  scheduledText(): Promise<string | null>;
  watch(onHint: () => void, signal: AbortSignal): Promise<string>;
}

interface Told {
  request: ShutdownRequest;
  state: "requested" | "withdrawn";
  /** Not said any more after this. */
  untilMs: number;
}

export class ShutdownWatch {
  readonly #parts: ShutdownWatchParts;
  readonly #logind: LogindSource;
  readonly #block: Inhibitor;
  readonly #delay: Inhibitor;
  #plan: ShutdownPlan = quietPlan;
  #shutting: Shutting | null = null;
  /** As libvirt said last; nothing until it was read, and as before while it cannot be. */
  #domains: readonly string[] = [];
  #reason = "";
  #reasonMs = Number.NEGATIVE_INFINITY;
  /** What the control plane has not said that it heard, oldest first. */
  #told: Told[] = [];
  #isListened = false;
  #wake: (() => void) | null = null;
  #hinted = true;

  constructor(parts: ShutdownWatchParts) {
    this.#parts = parts;
    this.#logind = {
      shutting: readShutting,
      scheduledText: () => readScheduled(),
      watch: watchLogind,
      ...parts.logind,
    };
    const { lock, clock, log } = parts;
    this.#block = new Inhibitor({ mode: lock, clock, log });
    this.#delay = new Inhibitor({ mode: "delay", clock, log });
  }

  /** Every look of the inventory: all domains of this host. */
  seen(domains: readonly InventoryDomain[]): void {
    const running = domains.filter(({ state }) => state !== "shutoff" && state !== "crashed");
    this.#domains = running.map(({ name }) => name).sort();
    this.#wake?.();
  }

  /**
   * A session has opened. `features` are the welcome's: functions that do not know of this are not bothered. What stands is said again even if it was
   * heard: of a host that begins anew they believe nothing older.
   */
  welcome(features: readonly string[]): void {
    this.#isListened = features.includes(feature);
    const { request } = this.#plan;
    if (request !== null) {
      this.heard(request.requestId, "requested");
      this.#told.push({ request, state: "requested", untilMs: request.untilMs + withdrawnSaidMs });
    }
    this.resend();
  }

  /** Says again what was not heard. */
  resend(): void {
    const nowMs = this.#nowMs();
    this.#told = this.#told.filter(({ untilMs }) => nowMs < untilMs);
    if (!this.#isListened) return;
    for (const { request, state } of this.#told)
      this.#parts.send({
        type: "shutdown",
        requestId: request.requestId,
        state,
        kind: request.kind,
        at: new Date(request.seenMs).toISOString(),
        budgetMs: budgetLeftMs(request, nowMs),
      });
  }

  heard(requestId: string, state: Told["state"]): void {
    this.#told = this.#told.filter((each) => each.request.requestId !== requestId || each.state !== state);
  }

  /** Until `signal`. Where no logind answers at the start it says so once and asks again now and then, and does nothing else. Never rejects. */
  async run(): Promise<void> {
    const { clock, signal } = this.#parts;
    const first = await this.#first();
    if (first === null) return;
    this.#shutting = first;
    this.#sayBounds(first);
    const watching = this.#listen();
    let askedMs = clock.monotonicMs();
    let scheduled = await this.#logind.scheduledText();
    while (!signal.aborted) {
      const text = await this.#logind.scheduledText();
      if (this.#hinted || text !== scheduled || clock.monotonicMs() - askedMs >= askEveryMs || this.#isPressing()) {
        this.#hinted = false;
        scheduled = text;
        askedMs = clock.monotonicMs();
        await this.#ask();
      }
      await this.#look();
      const enough = new AbortController();
      this.#wake = () => enough.abort();
      if (!this.#hinted) await clock.sleep(lookEveryMs, AbortSignal.any([signal, enough.signal]));
      this.#wake = null;
    }
    await Promise.all([this.#block.release(), this.#delay.release(), watching]);
  }

  /** Logind's first answer, however long it takes: it may be about to start, or the host be too busy with its own start. Null: `signal` came before. */
  async #first(): Promise<Shutting | null> {
    const { clock, log, signal } = this.#parts;
    for (let attempt = 0; !signal.aborted; attempt += 1) {
      try {
        return await this.#logind.shutting();
      } catch (error) {
        if (attempt === 0)
          log.write("info", "no systemd-logind here: a shutdown of this host is neither held nor told", {
            cause: error instanceof Error ? error.message : String(error),
          });
      }
      await clock.sleep(inhibitBackoff.baseMs + jitteredMs(attempt, inhibitBackoff, clock.random), signal);
    }
    return null;
  }

  /** Shortly before one comes due, and from then on, nothing is left to hints. */
  #isPressing(): boolean {
    const { request } = this.#plan;
    return request !== null && this.#nowMs() >= request.dueMs - askEveryMs;
  }

  #sayBounds({ delayMsMax }: Shutting): void {
    const { budgetMs, log } = this.#parts;
    if (budgetMs === 0)
      log.write("info", "a shutdown of this host is told to the control plane and not held (--shutdown-budget 0)");
    else if (delayMsMax < budgetMs)
      log.write("warn", "logind holds a shutdown for a shorter time than the budget", {
        seconds: Math.floor(delayMsMax / 1000),
        budgetSeconds: Math.floor(budgetMs / 1000),
        action: "raise InhibitDelayMaxSec in /etc/systemd/logind.conf.d/ and restart systemd-logind",
      });
  }

  async #listen(): Promise<void> {
    const { clock, log, signal } = this.#parts;
    const hint = () => {
      this.#hinted = true;
      this.#wake?.();
    };
    for (let attempt = 0; !signal.aborted; attempt += 1) {
      const beganMs = clock.monotonicMs();
      const cause = await this.#logind.watch(hint, signal);
      if (signal.aborted) return;
      if (clock.monotonicMs() - beganMs > inhibitBackoff.capMs) attempt = 0;
      log.write(attempt < 3 ? "warn" : "debug", "logind is not listened to; it is asked now and then", { cause });
      await clock.sleep(inhibitBackoff.baseMs + jitteredMs(attempt, inhibitBackoff, clock.random), signal);
    }
  }

  async #ask(): Promise<void> {
    try {
      this.#shutting = await this.#logind.shutting();
    } catch (error) {
      if (!(error instanceof LogindAbsentError)) throw error;
      // What was seen last stands: a bus that restarts takes no request back.
      this.#parts.log.write("debug", "logind did not answer", { cause: error.message });
    }
  }

  async #look(): Promise<void> {
    const { budgetMs, host, records, log } = this.#parts;
    const journals = records().length;
    if (this.#shutting === null) return;
    const occupancy: Occupancy = { domains: this.#domains, journals };
    const seen = { nowMs: this.#nowMs(), occupancy, shutting: this.#shutting, budgetMs };
    const hadLocks = this.#plan.locks;
    const change = planShutdown(this.#plan, seen);
    this.#plan = change.plan;
    this.#tell(change);
    if (change.givenUp !== null)
      log.write("warn", "the lock against this host's shutdown is given up", { cause: change.givenUp });
    if (change.plan.locks) this.#hold(lockReason(occupancy, host));
    else if (hadLocks) {
      log.write("info", "this host's shutdown is not held any more", { domains: occupancy.domains.length, journals });
      await Promise.all([this.#block.release(), this.#delay.release()]);
    }
  }

  #hold(reason: string): void {
    const { clock } = this.#parts;
    const nowMs = clock.monotonicMs();
    const isFirst = !this.#block.isHeld && !this.#delay.isHeld;
    // logind gives no lock while it waits for locks.
    const isFixed = this.#shutting?.preparing === true || nowMs - this.#reasonMs < reasonEveryMs;
    if (!isFirst && (reason === this.#reason || isFixed)) return;
    this.#reason = reason;
    this.#reasonMs = nowMs;
    this.#block.hold(reason);
    this.#delay.hold(reason);
  }

  /** The newer request first: whoever acts on it never sees none. */
  #tell({ requested, withdrawn }: PlanChange): void {
    const { log } = this.#parts;
    const nowMs = this.#nowMs();
    if (requested !== null) {
      this.#told.push({ request: requested, state: "requested", untilMs: requested.untilMs + withdrawnSaidMs });
      log.write("warn", "somebody asks this host to shut down", {
        request: requested.requestId,
        kind: requested.kind,
        due: new Date(requested.dueMs).toISOString(),
        held: `until ${new Date(requested.untilMs).toISOString()}`,
      });
    }
    if (withdrawn !== null) {
      this.#told.push({ request: withdrawn, state: "withdrawn", untilMs: nowMs + withdrawnSaidMs });
      log.write("info", "this host's shutdown was taken back", { request: withdrawn.requestId });
    }
    this.#told = this.#told.slice(-toldMax);
    if (requested !== null || withdrawn !== null) this.resend();
  }

  #nowMs(): number {
    return Date.parse(this.#parts.clock.now());
  }
}
