/**
 * Keeps a session with the control plane: dials, serves, waits, dials again, until it is stopped.
 *
 * - S1: waits are drawn with full jitter and grow; they start anew only after a session that held for a while, so a control
 *   plane that accepts and drops everybody is not hammered.
 * - S2: a refusal is said once, with cause and action, and tried again slowly: what a person repairs over there must not
 *   need a visit here.
 * - S3: what to send outlives sessions elsewhere (journal, grants); this keeps only the session that is open now.
 */
import type { FaultBody } from "#protocol/fault";
import type { UpMessage } from "#protocol/message";
import { jitteredMs } from "./clock.ts";
import { type ConnectionOutcome, type ConnectionParts, runConnection, type Session } from "./connection.ts";

/** First wait and longest wait between two attempts. 15 s is half of what makes a host offline, so one lost attempt after a
 *  short cut does not show. */
export const backoff = { baseMs: 500, capMs: 15_000 } as const;

/** Between two attempts after a refusal: somebody has to act first, and a minute is soon enough to see that they have. */
export const refusedBackoff = { baseMs: 15_000, capMs: 60_000 } as const;

/** A session that held this long was a session, not a door that opens and shuts. */
export const heldMsMin = 5_000;

/** How often unanswered reports and grants are repeated while a session is open. */
export const resendMs = 5_000;

export interface SupervisorParts extends Omit<ConnectionParts, "onSession"> {
  /** A session has opened; everything unanswered should be sent now. */
  onSession(session: Session): void;
  /** Every `resendMs` of an open session. */
  onResend(): void;
  /** A refusal, once for each different one. */
  onRefused(fault: FaultBody): void;
  /** Runs one connection; tests replace it. */
  run?: (parts: ConnectionParts) => Promise<ConnectionOutcome>;
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

  async #connect(): Promise<ConnectionOutcome> {
    const { onSession, onResend, run = runConnection, ...parts } = this.#parts;
    let timer: NodeJS.Timeout | undefined;
    try {
      return await run({
        ...parts,
        onSession: (session) => {
          this.#session = session;
          timer = setInterval(onResend, resendMs);
          onSession(session);
        },
      });
    } finally {
      clearInterval(timer);
      this.#session = null;
    }
  }
}
