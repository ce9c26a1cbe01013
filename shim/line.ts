/**
 * One attempt at a session, from asking the door to its end, and what was learnt from it. The supervisor keeps one line, and two for the
 * moments in which a socket that will be cut is succeeded by the next.
 */
import { Fault } from "#protocol/fault";
import type { UpMessage } from "#protocol/message";
import { type ConnectionOutcome, type ConnectionParts, runConnection, type Session } from "./connection.ts";
import { type ControlPlaneDoor, DoorUnreachableError } from "./door.ts";

export interface LineParts extends Omit<ConnectionParts, "dial" | "onSession"> {
  door: Pick<ControlPlaneDoor, "dial" | "forget" | "refusal">;
  /** The session has opened; the line's `opened` resolves after it. */
  onSession(session: Session): void;
  /** Runs one connection; tests replace it. */
  run?: ((parts: ConnectionParts) => Promise<ConnectionOutcome>) | undefined;
}

export class Line {
  readonly #own = new AbortController();
  readonly #over = new AbortController();
  #session: Session | null = null;
  /** How it ended. Never rejects. */
  readonly ended: Promise<ConnectionOutcome>;
  /** The session, or null when it ended without one. */
  readonly opened: Promise<Session | null>;

  constructor(parts: LineParts) {
    const { promise, resolve } = Promise.withResolvers<Session | null>();
    this.opened = promise;
    const signal = AbortSignal.any([parts.signal, this.#own.signal]);
    const onSession = (session: Session) => {
      this.#session = session;
      parts.onSession(session);
      resolve(session);
    };
    this.ended = outcomeOf({ ...parts, signal, onSession }).finally(() => {
      this.#session = null;
      resolve(null);
      this.#over.abort();
    });
  }

  /** Aborts when the line has ended, for whatever reason. */
  get over(): AbortSignal {
    return this.#over.signal;
  }

  send(message: UpMessage): boolean {
    return this.#session?.send(message) ?? false;
  }

  /** Ends it in good order. */
  close(): void {
    this.#own.abort();
  }
}

async function outcomeOf({ door, run = runConnection, ...parts }: LineParts): Promise<ConnectionOutcome> {
  let outcome: ConnectionOutcome;
  try {
    outcome = await run({ ...parts, dial: await door.dial() });
  } catch (error) {
    if (parts.signal.aborted) return { kind: "stopped" };
    if (error instanceof Fault) return { kind: "refused", fault: error.toBody() };
    if (!(error instanceof DoorUnreachableError)) throw error;
    outcome = { kind: "retryable", cause: error.message };
  }
  if (outcome.kind !== "retryable") return outcome;
  door.forget();
  // A refused request for a websocket says no more than its status; the door knows why.
  const isRefused = outcome.refusedStatus === 401 || outcome.refusedStatus === 403;
  const fault = isRefused ? await door.refusal() : null;
  return fault === null ? outcome : { kind: "refused", fault };
}
