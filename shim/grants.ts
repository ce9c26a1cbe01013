/**
 * Asking the functions for access to the bucket. A grant is asked for when it is needed and used at once, because it
 * expires; while no session is open the question waits and is asked again when one is, up to a bound.
 */
import { Fault } from "#protocol/fault";
import type { DownMessage, UpMessage } from "#protocol/message";

export type Granted = Extract<DownMessage, { type: "granted" }>;
export type GrantWant = Extract<UpMessage, { type: "grant" }>["want"];
type GrantRequest = Extract<UpMessage, { type: "grant" }>;

/** How long a step waits for a grant through a lost session. Longer than a restart of the control plane or a 20 s cut of
 *  the line, shorter than the ten minutes after which the functions give a step up. */
export const grantWaitMs = 2 * 60_000;

interface Waiting {
  request: GrantRequest;
  resolve(granted: Granted): void;
  reject(fault: Fault): void;
  timer: NodeJS.Timeout;
}

export class Grants {
  readonly #send: (message: UpMessage) => boolean;
  readonly #waitMs: number;
  readonly #waiting = new Map<string, Waiting>();
  #count = 0;

  constructor(send: (message: UpMessage) => boolean, waitMs: number = grantWaitMs) {
    this.#send = send;
    this.#waitMs = waitMs;
  }

  /** Throws `Fault`: `bundle.unreachable` when no grant came in time, or what the functions refused it with. */
  ask(command: { id: string; migrationId: string }, want: GrantWant): Promise<Granted> {
    this.#count += 1;
    const request: GrantRequest = {
      type: "grant",
      request: `g${this.#count}`,
      migrationId: command.migrationId,
      commandId: command.id,
      want,
    };
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => this.#settle(request.request)?.reject(new GrantOverdue(this.#waitMs)),
        this.#waitMs,
      );
      this.#waiting.set(request.request, { request, resolve, reject, timer });
      this.#send(request);
    });
  }

  /** Asks again for everything unanswered: at each new session and every few seconds. A grant asked for twice is no harm. */
  resend(): void {
    for (const { request } of this.#waiting.values()) this.#send(request);
  }

  granted(message: Granted): void {
    this.#settle(message.request)?.resolve(message);
  }

  refused(message: Extract<DownMessage, { type: "grantRefused" }>): void {
    this.#settle(message.request)?.reject(new Fault(message.fault));
  }

  /** Takes it out; undefined for an answer that came late or twice. */
  #settle(request: string): Waiting | undefined {
    const waiting = this.#waiting.get(request);
    if (waiting === undefined) return undefined;
    this.#waiting.delete(request);
    clearTimeout(waiting.timer);
    return waiting;
  }
}

/** No grant came in time. Whoever asked has waited long enough and should not ask again by itself. */
export class GrantOverdue extends Fault {
  constructor(waitMs: number) {
    super({
      code: "bundle.unreachable",
      cause: `The control plane gave no access to its bucket within ${Math.round(waitMs / 1000)} s.`,
      action: "Look at the shim's session (vmferry hosts) and at the control plane's log, then migrate again.",
      retry: "safe",
    });
  }
}
