/**
 * The events vmferry listens to, as data, and their delivery to listeners.
 *
 * A daemon may send an event before the answer that names its callback id (the two come from different threads), so
 * events of unknown ids are held while a registration is under way, in bounded number, and delivered in order after it.
 */
import { remoteDomain } from "./handle.ts";
import { jobStatsMax } from "./procedures.ts";
import { array, decodePayload, int, type Shape, struct } from "./shape.ts";
import { typedParam } from "./typed-param.ts";

const jobStats = array(typedParam, jobStatsMax);

/** An event: the message number it arrives under, the event id to register for, and its shape. */
export type EventKind<M extends { readonly callbackId: number }> = {
  readonly name: string;
  readonly number: number;
  /** virDomainEventID. */
  readonly eventId: number;
  readonly message: Shape<M>;
};

function eventKind<M extends { readonly callbackId: number }>(
  name: string,
  number: number,
  eventId: number,
  message: Shape<M>,
): EventKind<M> {
  return { name, number, eventId, message };
}

export const events = {
  lifecycle: eventKind(
    "domain_event_callback_lifecycle",
    318,
    0,
    struct({ callbackId: int, msg: struct({ dom: remoteDomain, event: int, detail: int }) }),
  ),
  migrationIteration: eventKind(
    "domain_event_callback_migration_iteration",
    359,
    20,
    struct({ callbackId: int, dom: remoteDomain, iteration: int }),
  ),
  jobCompleted: eventKind(
    "domain_event_callback_job_completed",
    363,
    21,
    struct({ callbackId: int, dom: remoteDomain, params: jobStats }),
  ),
};

/** Sent before the daemon drops its own driver connection (after connect_register_close_callback). */
export const connectionClosedEvent = {
  name: "connect_event_connection_closed",
  number: 362,
  message: struct({ reason: int }),
};

/** Events held at most while a registration is under way; more means the daemon floods us, and the oldest go. */
const heldEventsMax = 1_024;

type Held = { readonly number: number; readonly callbackId: number; readonly payload: Uint8Array };
type Listener = (payload: Uint8Array) => void;

/** Where events go: one table for each connection. Listeners never throw into the read path. */
export class EventTable {
  readonly #listeners = new Map<string, Listener>();
  #held: Held[] = [];
  #registering = 0;
  readonly #onFault: (fault: unknown) => void;

  /** `onFault` is told of an event that cannot be decoded and of a listener that threw. */
  constructor(onFault: (fault: unknown) => void) {
    this.#onFault = onFault;
  }

  /** Runs a registration; events that overtake its answer are kept for it. */
  async register<M extends { readonly callbackId: number }>(
    kind: EventKind<M>,
    listener: (message: M) => void,
    ask: () => Promise<{ readonly callbackId: number }>,
  ): Promise<number> {
    this.#registering += 1;
    try {
      const { callbackId } = await ask();
      this.#listeners.set(keyOf(kind.number, callbackId), (payload) => {
        listener(decodePayload(kind.message, payload));
      });
      const mine = this.#held.filter((held) => held.number === kind.number && held.callbackId === callbackId);
      this.#held = this.#held.filter((held) => !mine.includes(held));
      for (const held of mine) this.deliver(held.number, held.payload);
      return callbackId;
    } finally {
      this.#registering -= 1;
      if (this.#registering === 0) this.#held = [];
    }
  }

  forget(number: number, callbackId: number): void {
    this.#listeners.delete(keyOf(number, callbackId));
  }

  /** Every event body starts with the callback id it belongs to. Ids nobody waits for are dropped (a late event). */
  deliver(number: number, payload: Uint8Array): void {
    try {
      if (payload.byteLength < 4) throw new RangeError(`event ${number} has no callback id`);
      const callbackId = new DataView(payload.buffer, payload.byteOffset, payload.byteLength).getInt32(0);
      const listener = this.#listeners.get(keyOf(number, callbackId));
      if (listener !== undefined) listener(payload);
      else if (this.#registering > 0) this.#hold({ number, callbackId, payload });
    } catch (fault) {
      this.#onFault(fault);
    }
  }

  #hold(held: Held): void {
    if (this.#held.length >= heldEventsMax) this.#held.shift();
    this.#held.push(held);
  }
}

function keyOf(number: number, callbackId: number): string {
  return `${number}:${callbackId}`;
}
