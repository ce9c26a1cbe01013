/**
 * The Durable Object that delivers webhooks soon after something happened: whoever writes it down rings, without waiting, and this one's alarm looks when the
 * chronicle has settled. One object, apart from all that migrates: its connections are its own, and its slowness nobody else's. A ring that is lost costs time
 * and nothing more, for the minute's timer rings as well.
 */
import { DurableObject } from "cloudflare:workers";
import type { Log } from "../ports.ts";
import type { WebhookRunner } from "../webhook-runner.ts";

/** What is due later than this is left to the minute's timer. */
const aheadMsMax = 60_000;
/** A look is worth a look again no sooner: an event that is refused at once must not turn in a circle. */
const pauseMs = 500;
/** Where the last of several moments is kept, when the alarm is set to an earlier one. */
const laterKey = "laterMs";

/** What the functions call on the object. */
export interface WebhookBellStub {
  /** Looks after this many milliseconds, and also at every moment that was asked for before. */
  ring(delayMs: number): Promise<void>;
}

export interface BellWiring {
  log: Log;
  runner: Pick<WebhookRunner, "tick">;
}

export abstract class WebhookBellObject<Env> extends DurableObject<Env> implements WebhookBellStub {
  /** Of this environment. */
  protected abstract wireBell(): BellWiring;

  async ring(delayMs: number): Promise<void> {
    await this.#lookAt(Date.now() + delayMs);
  }

  /** Never rejects: after six of those an alarm is not called again. */
  async alarm(): Promise<void> {
    const { log, runner } = this.wireBell();
    try {
      const laterMs = await this.ctx.storage.get<number>(laterKey);
      await this.ctx.storage.delete(laterKey);
      if (laterMs !== undefined) await this.#lookAt(Math.max(laterMs, Date.now() + pauseMs));
      const { againAt } = await runner.tick();
      if (againAt !== null && Date.parse(againAt) - Date.now() < aheadMsMax)
        await this.#lookAt(Math.max(Date.parse(againAt), Date.now() + pauseMs));
    } catch (error) {
      log.write("error", "webhooks could not be looked at; the next minute tries again", {
        error: error instanceof Error ? error.message.slice(0, 300) : "not an error",
      });
    }
  }

  /** The alarm goes to the first of all moments; of the others the last is enough, for each look sees all that lies before it. */
  async #lookAt(atMs: number): Promise<void> {
    const { storage } = this.ctx;
    const alarmMs = await storage.getAlarm();
    if (alarmMs === null) return storage.setAlarm(atMs);
    const laterMs = (await storage.get<number>(laterKey)) ?? 0;
    if (atMs < alarmMs) await storage.setAlarm(atMs);
    const lastMs = Math.max(laterMs, alarmMs, atMs);
    if (lastMs > laterMs && lastMs > Math.min(atMs, alarmMs)) await storage.put(laterKey, lastMs);
  }
}
