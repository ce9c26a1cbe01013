/**
 * The host sockets over API Gateway. Nothing is kept in memory: which connection a host is reached by, what was asked and answered, and the
 * newest progress are in the link store, so any invocation may ask and any other may hear the answer. No answer is no statement (I2).
 *
 * What differs from the Durable Object, because the carrier differs:
 * - A dropped or replaced socket closes with 1000 and no reason: DeleteConnection takes none. The shim comes back and is told then.
 * - An answer is found by looking for it, up to half a second after it came.
 * - A host that left without a word is noticed by the next push (410), or when the carrier tells ($disconnect, which may be late or never come).
 * - Too large a message never arrives: the carrier cuts the socket with 1009 and nobody can say `refused`.
 * - Nobody limits how many messages of one shim wait: they run side by side, bounded by the throttle of the stage.
 */
import { encode } from "#protocol/codec";
import { Fault } from "#protocol/fault";
import type { Answer, DownMessage, Progress, Query } from "#protocol/message";
import type { Clock, HostSockets, Ids, LinkStore, Log } from "../ports.ts";
import { ApiGatewayCallbacks, type CallbackOptions } from "./api-gateway-callbacks.ts";

/** An answer is looked for so often: an inspection takes some 100 ms, and a look is a read of one small item. */
const lookMsMin = 150;
const lookMsMax = 500;
/** Every so many looks it is asked whether the host still has a connection at all. */
const bindingLooks = 4;
/** Reaching a host again: once, for a connection that it renewed at that very moment. */
const reachAttemptsMax = 2;

export interface ApiGatewayOptions extends CallbackOptions {
  links: LinkStore;
  ids: Pick<Ids, "ulid">;
  clock: Clock;
}

export class ApiGatewaySockets implements HostSockets {
  /** For the socket's own handler, which answers the connection that speaks. */
  readonly callbacks: ApiGatewayCallbacks;
  readonly #links: LinkStore;
  readonly #ids: Pick<Ids, "ulid">;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #sleep: (ms: number) => Promise<void>;

  constructor(options: ApiGatewayOptions) {
    this.callbacks = new ApiGatewayCallbacks(options);
    this.#links = options.links;
    this.#ids = options.ids;
    this.#clock = options.clock;
    this.#log = options.log;
    this.#sleep = options.sleep ?? ((ms) => new Promise((resolve) => setTimeout(resolve, ms)));
  }

  push(hostId: string, message: DownMessage): Promise<boolean> {
    return this.#ask(hostId, "push", false, () => this.#push(hostId, message));
  }

  query(hostId: string, query: Query, waitMs: number): Promise<Answer | null> {
    return this.#ask(hostId, "query", null, () => this.#query(hostId, query, waitMs));
  }

  progress(hostId: string, migrationId: string): Promise<Progress | null> {
    return this.#ask(hostId, "progress", null, () => this.#links.progress(hostId, migrationId));
  }

  /** Records go first: whatever a connection still says from then on is said by nobody. */
  async drop(hostId: string, cause: string): Promise<void> {
    return this.#ask(hostId, "drop", undefined, async () => {
      const links = await this.#links.of(hostId);
      for (const link of links) {
        await this.#links.close(link);
        await this.callbacks.close(link.connectionId);
      }
      this.#log.write("info", "a host's sockets were dropped", { host: hostId, cause, connections: links.length });
    });
  }

  async #push(hostId: string, message: DownMessage): Promise<boolean> {
    const text = encode(message);
    for (let attempt = 0; attempt < reachAttemptsMax; attempt += 1) {
      const connectionId = await this.#links.current(hostId);
      if (connectionId === null) return false;
      const posted = await this.callbacks.post(connectionId, text);
      if (posted !== "gone") return posted === "sent";
      await this.#links.close({ connectionId, hostId });
    }
    return false;
  }

  async #query(hostId: string, query: Query, waitMs: number): Promise<Answer | null> {
    const queryId = this.#ids.ulid();
    if ((await this.#links.current(hostId)) === null) return null;
    const untilMs = this.#nowMs() + waitMs;
    await this.#links.ask({ hostId, queryId, untilMs });
    try {
      if (!(await this.#push(hostId, { type: "query", queryId, query }))) return null;
      let lookMs = lookMsMin;
      for (let look = 1; ; look += 1) {
        const leftMs = untilMs - this.#nowMs();
        await this.#sleep(Math.max(0, Math.min(lookMs, leftMs)));
        const answer = await this.#links.answerTo(hostId, queryId);
        if (answer !== null || leftMs <= lookMs) return answer;
        // Nobody is left who could answer.
        if (look % bindingLooks === 0 && (await this.#links.current(hostId)) === null) return null;
        lookMs = Math.min(lookMsMax, lookMs * 1.25);
      }
    } finally {
      // An answer that is here is not lost for a store that fails now: the broom takes what stays, and its time is up soon.
      await this.#links.withdraw(hostId, queryId).catch(() => {});
    }
  }

  #nowMs(): number {
    return Date.parse(this.#clock.now());
  }

  /** What cannot be asked is like a host that is away: nothing was said, nothing is concluded (I2). */
  async #ask<T>(hostId: string, call: string, away: T, ask: () => Promise<T>): Promise<T> {
    try {
      return await ask();
    } catch (error) {
      this.#log.write("warn", "a host's socket could not be used", {
        host: hostId,
        call,
        error: error instanceof Fault ? error.code : String(error),
      });
      return away;
    }
  }
}
