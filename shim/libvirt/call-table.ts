/**
 * Calls of one connection: which wait for room, which for an answer, which nobody waits for any more.
 *
 * libvirt serves at most `max_client_requests` (5 by default) of one client at a time and stops reading its socket
 * beyond; Perform holds one for minutes. So no more than `inFlightMax` are sent, the rest queue here in order, and one
 * slot stays free for CONNECT_CLOSE. Replies may come in any order and are matched by serial.
 *
 * A call whose caller gave up after it was sent keeps its slot and its serial until its answer comes: the daemon still
 * works on it, and its late answer must not look like an answer to nothing.
 */
import { type CloseReason, LibvirtClosedError, LibvirtNoAnswerError } from "./error.ts";
import type { Frame } from "./frame.ts";

/** One below libvirt's default max_client_requests. */
export const inFlightDefault = 4;

/** virNetMessageHeader.serial is unsigned 32-bit; 0 is for events. */
const serialMax = 0xffff_ffff;

type Call = {
  readonly name: string;
  readonly payload: Uint8Array;
  readonly number: number;
  settle: ((outcome: { reply: Frame } | { error: Error }) => void) | undefined;
};

export class CallTable {
  readonly #inFlightMax: number;
  readonly #send: (serial: number, number: number, payload: Uint8Array) => void;
  readonly #queue: Call[] = [];
  readonly #sent = new Map<number, Call>();
  #serial = 0;
  #closed: { readonly reason: CloseReason; readonly detail: string; readonly cause: unknown } | undefined;

  constructor(inFlightMax: number, send: (serial: number, number: number, payload: Uint8Array) => void) {
    this.#inFlightMax = inFlightMax;
    this.#send = send;
  }

  /** Queues a call; resolves with its reply frame, whatever its status. `urgent` skips queue and limit. */
  call(
    name: string,
    number: number,
    payload: Uint8Array,
    options: { readonly signal?: AbortSignal | undefined; readonly urgent?: boolean },
  ): Promise<Frame> {
    return new Promise((resolve, reject) => {
      const closed = this.#closed;
      if (closed !== undefined) {
        reject(
          new LibvirtClosedError(closed.reason, closed.detail, { procedure: name, sent: false, cause: closed.cause }),
        );
        return;
      }
      const { signal } = options;
      if (signal?.aborted === true) {
        reject(new LibvirtNoAnswerError(name, false, reasonOf(signal)));
        return;
      }
      const giveUp = (): void => {
        if (signal !== undefined) this.#giveUp(call, reasonOf(signal));
      };
      const call: Call = {
        name,
        payload,
        number,
        settle: (outcome) => {
          signal?.removeEventListener("abort", giveUp);
          call.settle = undefined;
          if ("reply" in outcome) resolve(outcome.reply);
          else reject(outcome.error);
        },
      };
      signal?.addEventListener("abort", giveUp, { once: true });
      if (options.urgent === true) this.#sendNow(call);
      else {
        this.#queue.push(call);
        this.#fill();
      }
    });
  }

  /** Gives a reply to its caller. False: no call with that serial was ever sent, or it was answered already. */
  answer(reply: Frame): boolean {
    const call = this.#sent.get(reply.serial);
    if (call === undefined || call.number !== reply.procedure) return false;
    this.#sent.delete(reply.serial);
    call.settle?.({ reply });
    this.#fill();
    return true;
  }

  /** Fails every call, sent or not, and every later one. */
  close(reason: CloseReason, detail: string, cause: unknown): void {
    if (this.#closed !== undefined) return;
    this.#closed = { reason, detail, cause };
    const sent = [...this.#sent.values()];
    const queued = this.#queue.splice(0);
    this.#sent.clear();
    for (const [calls, wasSent] of [[sent, true] as const, [queued, false] as const]) {
      for (const call of calls) {
        const error = new LibvirtClosedError(reason, detail, { procedure: call.name, sent: wasSent, cause });
        call.settle?.({ error });
      }
    }
  }

  /** Fails the calls that were not sent yet; those sent go on waiting for their answers. */
  refuseQueued(detail: string): void {
    for (const call of this.#queue.splice(0)) {
      call.settle?.({ error: new LibvirtClosedError("local", detail, { procedure: call.name, sent: false }) });
    }
  }

  #giveUp(call: Call, why: string): void {
    const position = this.#queue.indexOf(call);
    if (position >= 0) this.#queue.splice(position, 1);
    call.settle?.({ error: new LibvirtNoAnswerError(call.name, position < 0, why) });
  }

  #fill(): void {
    while (this.#sent.size < this.#inFlightMax && this.#closed === undefined) {
      const call = this.#queue.shift();
      if (call === undefined) return;
      this.#sendNow(call);
    }
  }

  #sendNow(call: Call): void {
    this.#serial = this.#serial === serialMax ? 1 : this.#serial + 1;
    this.#sent.set(this.#serial, call);
    this.#send(this.#serial, call.number, call.payload);
  }
}

function reasonOf(signal: AbortSignal): string {
  return signal.reason instanceof Error ? signal.reason.message : String(signal.reason);
}
