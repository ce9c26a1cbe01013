/**
 * The connections to one destination: kept for the next request, as many as are asked at once, and as many ready as there
 * are holders, so that neither dialling nor another migration's Finish falls into a guest's blackout.
 */
import type { PeerReply, PeerRequest } from "#protocol/ticket";
import { jitteredMs } from "../clock.ts";
import type { Log } from "../log.ts";
import { Slots } from "../slots.ts";
import { Channel, ChannelError } from "./channel.ts";
import type { PeerCredentials } from "./credentials.ts";
import { type DialBounds, type DialTarget, dial } from "./dial.ts";
import { seatsPerKeyMax } from "./seats.ts";

export interface DestinationBounds extends DialBounds {
  pingMs: number;
  /** An unheld connection without a request. Below the other side's own patience (server.ts), so that it is we who close. */
  idleMs: number;
  /** First and longest wait between two attempts to get a held connection back. */
  redialBaseMs: number;
  redialCapMs: number;
}

/** Connections ready at once, however many hold: more migrations seldom end in the same moment. */
const warmMax = 8;

/** Requests to one destination at once; with the warm ones no more than it gives one key. Further ones wait their turn. */
const asksMax = seatsPerKeyMax - warmMax;

export interface DestinationParts {
  to: DialTarget;
  credentials: PeerCredentials;
  bounds: DestinationBounds;
  log: Log;
  random: () => number;
  /** No connection, no request, no holder: may be forgotten. */
  onUnused(): void;
}

export class DestinationChannels {
  readonly #parts: DestinationParts;
  readonly #slots = new Slots(asksMax);
  readonly #closing = new AbortController();
  readonly #open = new Set<Channel>();
  /** Without a request; the one used last is last, and taken first. */
  readonly #idle = new Map<Channel, NodeJS.Timeout>();
  #asks = 0;
  #holders = 0;
  #dialling = 0;
  #attempt = 0;
  #redial: NodeJS.Timeout | undefined;

  constructor(parts: DestinationParts) {
    this.#parts = parts;
  }

  /** Rejects with DialError or ChannelError. */
  async ask(request: PeerRequest, patience: AbortSignal): Promise<PeerReply> {
    const signal = AbortSignal.any([patience, this.#closing.signal]);
    this.#asks += 1;
    try {
      const leave = await this.#turn(signal);
      try {
        return await this.#askOnce(request, signal);
      } finally {
        leave();
      }
    } finally {
      this.#asks -= 1;
      this.#tellUnused();
    }
  }

  hold(): () => void {
    this.#holders += 1;
    this.#warm();
    let released = false;
    return () => {
      if (released) return;
      released = true;
      this.#holders -= 1;
      // What is now too many ends by its own idle timer.
      if (this.#holders === 0) clearTimeout(this.#redial);
      this.#tellUnused();
    };
  }

  close(): void {
    this.#holders = 0;
    clearTimeout(this.#redial);
    this.#closing.abort();
    for (const channel of [...this.#open]) channel.close();
  }

  async #turn(signal: AbortSignal): Promise<() => void> {
    const taking = this.#slots.take();
    const aborted = Promise.withResolvers<never>();
    const giveUp = (): void => aborted.reject(new ChannelError("its turn did not come in time", false));
    signal.addEventListener("abort", giveUp, { once: true });
    if (signal.aborted) giveUp();
    try {
      return await Promise.race([taking, aborted.promise]);
    } catch (error) {
      void taking.then((leave) => leave());
      throw error;
    } finally {
      signal.removeEventListener("abort", giveUp);
    }
  }

  async #askOnce(request: PeerRequest, signal: AbortSignal): Promise<PeerReply> {
    const kept = this.#takeIdle();
    if (kept !== null) {
      try {
        return await this.#askOn(kept, request, signal);
      } catch (error) {
        // A kept connection that had died unnoticed. What was written wholly may have been acted on: not ours to repeat.
        if (!(error instanceof ChannelError) || error.written || signal.aborted) throw error;
      }
    }
    return await this.#askOn(await this.#dial(signal), request, signal);
  }

  async #askOn(channel: Channel, request: PeerRequest, signal: AbortSignal): Promise<PeerReply> {
    try {
      return await channel.ask(request, signal);
    } finally {
      this.#keep(channel);
    }
  }

  #takeIdle(): Channel | null {
    for (const [channel, timer] of [...this.#idle].reverse()) {
      clearTimeout(timer);
      this.#idle.delete(channel);
      if (channel.isOpen) return channel;
    }
    return null;
  }

  async #dial(signal: AbortSignal): Promise<Channel> {
    const { to, credentials, bounds } = this.#parts;
    const socket = await dial(to, credentials, bounds, signal);
    const channel = new Channel(socket, bounds, {
      alive: () => {
        this.#attempt = 0;
      },
      end: (detail) => this.#onEnd(channel, detail),
    });
    this.#open.add(channel);
    return channel;
  }

  #keep(channel: Channel): void {
    if (!channel.isOpen) return;
    const timer = setTimeout(() => {
      if (this.#open.size > this.#warmCount()) channel.close();
      else this.#keep(channel);
    }, this.#parts.bounds.idleMs);
    timer.unref();
    clearTimeout(this.#idle.get(channel));
    this.#idle.set(channel, timer);
  }

  #onEnd(channel: Channel, detail: string): void {
    clearTimeout(this.#idle.get(channel));
    this.#idle.delete(channel);
    this.#open.delete(channel);
    if (this.#open.size < this.#warmCount()) {
      this.#parts.log.write("debug", "a held connection to a peer ended", { peer: this.#parts.to.publicKey, detail });
      this.#warmLater();
    }
    this.#tellUnused();
  }

  #warmCount(): number {
    return Math.min(this.#holders, warmMax);
  }

  #warm(): void {
    while (this.#open.size + this.#dialling < this.#warmCount()) void this.#warmOne();
  }

  /** Never rejects. */
  async #warmOne(): Promise<void> {
    const { log, to } = this.#parts;
    this.#dialling += 1;
    try {
      this.#keep(await this.#dial(this.#closing.signal));
    } catch (error) {
      const cause = error instanceof Error ? error.message : String(error);
      if (this.#holders > 0) log.write("debug", "a held peer is not reached", { peer: to.publicKey, cause });
      this.#warmLater();
    } finally {
      this.#dialling -= 1;
      this.#tellUnused();
    }
  }

  /** Always after a wait: a peer that accepts and drops must not be hammered. */
  #warmLater(): void {
    if (this.#holders === 0) return;
    const { bounds, random } = this.#parts;
    clearTimeout(this.#redial);
    const waitMs = jitteredMs(this.#attempt, { baseMs: bounds.redialBaseMs, capMs: bounds.redialCapMs }, random);
    this.#attempt += 1;
    this.#redial = setTimeout(() => this.#warm(), waitMs);
    this.#redial.unref();
  }

  #tellUnused(): void {
    if (this.#holders + this.#asks + this.#dialling + this.#open.size === 0) this.#parts.onUnused();
  }
}
