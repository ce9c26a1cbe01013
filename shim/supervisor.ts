/**
 * Keeps a session with the control plane: dials, serves, waits, dials again, until it is stopped.
 *
 * - S1: waits are drawn with full jitter and grow; they start anew only after a session that held for a while, so a control
 *   plane that accepts and drops everybody is not hammered.
 * - S2: a refusal is said once, with cause and action, and tried again slowly: what a person repairs over there must not
 *   need a visit here.
 * - S3: what to send outlives sessions elsewhere (journal, grants); this keeps only the session that is open now.
 * - S4: a socket that its carrier will cut (`renewAfterMs`) is succeeded before that: the next one opens beside it, takes over, and only then
 *   is the older one closed. A successor that does not come about is tried again for as long as the older one lives.
 */
import type { FaultBody } from "#protocol/fault";
import type { UpMessage } from "#protocol/message";
import { jitteredMs } from "./clock.ts";
import type { ConnectionOutcome, Session } from "./connection.ts";
import { Line, type LineParts } from "./line.ts";

/** First wait and longest wait between two attempts. 15 s is half of what makes a host offline, so one lost attempt after a
 *  short cut does not show. */
export const backoff = { baseMs: 500, capMs: 15_000 } as const;

/** Between two attempts after a refusal: somebody has to act first, and a minute is soon enough to see that they have. */
export const refusedBackoff = { baseMs: 15_000, capMs: 60_000 } as const;

/** A session that held this long was a session, not a door that opens and shuts. Longer than a throttled store takes to refuse an inventory (some tries of
 *  three seconds), after which the control plane closes: else a fleet would bring its inventories to a store that is short of breath twice a second. */
export const heldMsMin = 30_000;

/** How often unanswered reports and grants are repeated while a session is open. */
export const resendMs = 5_000;

/** Waits between attempts at a successor: the older session still serves, so there is no hurry. */
export const renewBackoff = { baseMs: 5_000, capMs: 60_000 } as const;

/** How long an older socket lives on beside its successor, for what is under way on it. */
export const overlapMs = 10_000;

export interface SupervisorParts extends Omit<LineParts, "onSession" | "renews"> {
  /** A session has opened; everything unanswered should be sent now. `renewed`: it succeeds one that is still open. */
  onSession(session: Session, renewed: boolean): void;
  /** Every `resendMs` of an open session. */
  onResend(): void;
  /** A refusal, once for each different one. */
  onRefused(fault: FaultBody): void;
}

export class Supervisor {
  readonly #parts: SupervisorParts;
  #session: Session | null = null;

  constructor(parts: SupervisorParts) {
    this.#parts = parts;
  }

  /** False when no session is open or it does not take more now. */
  send(message: UpMessage): boolean {
    return this.#session?.send(message) ?? false;
  }

  get isConnected(): boolean {
    return this.#session !== null;
  }

  /** Resolves when `signal` aborts (null), or with the fault that makes every further attempt useless. */
  async run(): Promise<FaultBody | null> {
    const { clock, log, signal } = this.#parts;
    let attempt = 0;
    let refusals = 0;
    let said = "";
    for (;;) {
      const outcome = await this.#connect();
      let waitMs: number;
      switch (outcome.kind) {
        case "stopped":
          return null;
        case "fatal":
          return outcome.fault;
        case "refused":
          if (said !== outcome.fault.cause) this.#parts.onRefused(outcome.fault);
          said = outcome.fault.cause;
          waitMs = refusedBackoff.baseMs + jitteredMs(refusals, refusedBackoff, clock.random);
          refusals += 1;
          break;
        case "served":
          refusals = 0;
          if (outcome.heldMs >= heldMsMin) attempt = 0;
          waitMs = jitteredMs(attempt, backoff, clock.random);
          attempt += 1;
          log.write("warn", "the session with the control plane ended", {
            cause: outcome.cause,
            again: `${waitMs} ms`,
          });
          said = "";
          break;
        case "retryable":
          waitMs = jitteredMs(attempt, backoff, clock.random);
          attempt += 1;
          // The same cause every few seconds for hours tells nothing new.
          log.write(said === outcome.cause ? "debug" : "warn", "no session with the control plane", {
            cause: outcome.cause,
            again: `${waitMs} ms`,
          });
          said = outcome.cause;
          break;
      }
      await clock.sleep(waitMs, signal);
      if (signal.aborted) return null;
    }
  }

  /** One session and its successors, until the last of them ends. */
  async #connect(): Promise<ConnectionOutcome> {
    let line = this.#open();
    for (;;) {
      const next = this.#successor(line);
      const outcome = await Promise.race([line.ended, next]);
      if (!(outcome instanceof Line)) return outcome;
      void this.#retire(line);
      line = outcome;
    }
  }

  #open(renews?: string): Line {
    const { onSession, onResend, ...parts } = this.#parts;
    let timer: NodeJS.Timeout | undefined;
    let own: Session | null = null;
    const line = new Line({
      ...parts,
      ...(renews === undefined ? {} : { renews }),
      onSession: (session) => {
        own = session;
        this.#session = session;
        timer = setInterval(() => {
          if (this.#session === own) onResend();
        }, resendMs);
        onSession(session, renews !== undefined);
      },
    });
    line.over.addEventListener("abort", () => {
      clearInterval(timer);
      if (this.#session === own) this.#session = null;
    });
    return line;
  }

  /** S4. The open successor of a line; pending for as long as none is due. */
  async #successor(line: Line): Promise<Line> {
    const { clock, log } = this.#parts;
    const session = await line.opened;
    const renewAfterMs = session?.welcome.renewAfterMs;
    if (session === null || renewAfterMs === undefined) return pending();
    for (let attempt = 0; ; attempt += 1) {
      await clock.sleep(attempt === 0 ? renewAfterMs : jitteredMs(attempt, renewBackoff, clock.random), line.over);
      if (line.over.aborted) return pending();
      const next = this.#open(session.welcome.session);
      const giveUp = () => next.close();
      line.over.addEventListener("abort", giveUp);
      if ((await next.opened) !== null) {
        line.over.removeEventListener("abort", giveUp);
        return next;
      }
      log.write("warn", "the socket could not be renewed yet; the older one still serves", { attempt });
    }
  }

  async #retire(line: Line): Promise<void> {
    await this.#parts.clock.sleep(overlapMs, line.over);
    line.close();
  }
}

/** A promise of its own each time: one that is shared and never settles keeps everybody who ever waited for it. */
const pending = () => new Promise<never>(() => {});
