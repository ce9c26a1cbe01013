/**
 * Delivers webhooks: reads the chronicle from where each stands, posts what is wanted in order, and moves on when the answer is known. Nothing waits for
 * it: it runs beside everything else, and one webhook beside the others. Whoever is killed anywhere in between leaves a lease that lapses and an event that is
 * posted again; a receiver tells repetitions by `webhook-id`.
 */
import { type ChronicleEntry, eventHead } from "./core/chronicle-event.ts";
import { positionAt } from "./core/chronicle-position.ts";
import { chronicleRowsMax, chronicleSettleMs } from "./core/limits.ts";
import { isWanted, secretPlace, signingSecrets, type WebhookRecord } from "./core/webhook.ts";
import { type WebhookTargets, webhookUrl } from "./core/webhook-address.ts";
import {
  leased,
  mayPost,
  newDelivery,
  rested,
  restsUntil,
  settled,
  type WebhookDelivery,
  type WebhookOutcome,
  waitedFor,
} from "./core/webhook-delivery.ts";
import type { Chronicle, Clock, Ids, Log, WebhookStore } from "./ports.ts";
import type { SecretSeal } from "./secret-seal.ts";
import { secretBytes, signatureOf } from "./trigger-signature.ts";
import { postMsMax, type WebhookPoster } from "./webhook-post.ts";

export interface WebhookPorts {
  clock: Clock;
  ids: Ids;
  log: Log;
  chronicle: Pick<Chronicle, "after">;
  webhooks: WebhookStore;
  seal: SecretSeal;
  post: WebhookPoster;
  targets: WebhookTargets;
  /** From 0 to 1. */
  random(): number;
  /** Posts under way at once. A Worker has six connections in all, and the store needs one. */
  postsAtOnce: number;
}

export interface WebhookRunner {
  /** Looks at every webhook once. `againAt`: when another look is worth it, before the next minute's; null: then. */
  tick(): Promise<{ againAt: string | null }>;
  /** Posts an event that says it is a test, now, paused or not; nothing of the delivery changes. */
  test(record: WebhookRecord): Promise<{ eventId: string; status: number | null; error: string | null; ms: number }>;
}

/** No post begins later in one look: with the last one and its writes it ends before the minute is over, which is all that a Lambda has. */
const lookMsMax = 30_000;
/** Tries of writing down that a receiver is gone; then the next look hears it again. */
const pauseAttemptsMax = 4;

export function createWebhookRunner(ports: WebhookPorts): WebhookRunner {
  const { clock, ids, log, chronicle, webhooks, seal, targets, random } = ports;
  const nowMs = () => Date.parse(clock.now());
  const slots = createSlots(ports.postsAtOnce);

  async function post<E extends { id: string }>(record: WebhookRecord, event: E): Promise<WebhookOutcome> {
    const url = webhookUrl(record.url, targets);
    if ("cause" in url) return { kind: "unanswered", cause: `its URL is refused: ${url.cause}` };
    const atMs = nowMs();
    const secrets: Uint8Array<ArrayBuffer>[] = [];
    for (const { id, sealed } of signingSecrets(record, atMs)) {
      const secret = await seal.open(sealed, secretPlace(record.id, id));
      const bytes = secret === null ? null : secretBytes(secret);
      if (bytes === null)
        return { kind: "unanswered", cause: "its secret was sealed under another control key; rotate it" };
      secrets.push(bytes);
    }
    const body = new TextEncoder().encode(JSON.stringify(event));
    const message = { id: event.id, timestamp: String(Math.floor(atMs / 1_000)), body };
    const headers = {
      "content-type": "application/cloudevents+json",
      "user-agent": "vmferry-webhook/1",
      "webhook-id": message.id,
      "webhook-timestamp": message.timestamp,
      "webhook-signature": await signatureOf(message, secrets),
    };
    return ports.post({ url: url.url, headers, body });
  }

  /** The receiver's own word that it wants nothing more. */
  async function pause({ name, id }: WebhookRecord): Promise<void> {
    const at = clock.now();
    const paused = { at, by: "its receiver", reason: "it answered 410 Gone: it wants nothing more" };
    for (let attempt = 0; attempt < pauseAttemptsMax; attempt += 1) {
      const record = await webhooks.load(name);
      if (record === null || record.id !== id || record.paused !== null) return;
      const next = { ...record, version: record.version + 1, changedAt: at, paused };
      if ((await webhooks.commit(next)) === "committed") {
        log.write("warn", "a webhook was paused: its receiver answered 410 Gone", { webhook: name });
        return;
      }
    }
  }

  /** One webhook's turn; when to look again, null: no earlier than usual. */
  async function deliver(record: WebhookRecord, stored: WebhookDelivery | null, untilMs: number) {
    let delivery = stored ?? newDelivery(record);
    const rests = restsUntil(delivery, nowMs());
    if (rests !== null) return rests;
    const holder = ids.ulid();
    const commit = async (next: WebhookDelivery): Promise<boolean> => {
      delivery = next;
      return (await webhooks.commitDelivery(next)) === "committed";
    };
    const isOver = () => nowMs() >= untilMs;
    for (;;) {
      const until = positionAt(nowMs() - chronicleSettleMs);
      const entries = await chronicle.after({ at: delivery.cursor, until, limit: chronicleRowsMax });
      const last = entries.at(-1);
      const isEnd = entries.length < chronicleRowsMax;
      const wanted = entries.filter(({ event }) => isWanted(record.types, event.type));
      const isHeld = delivery.lease?.holder === holder;
      if (wanted.length === 0) {
        if (last === undefined && !isHeld) return null;
        if (!(await commit(rested(delivery, last?.at ?? delivery.cursor))) || isEnd) return null;
        if (isOver()) return clock.now();
        continue;
      }
      if (!isHeld && !(await commit(leased(delivery, holder, nowMs())))) return null;
      for (const [index, entry] of wanted.entries()) {
        const outcome = await slots(async () => {
          if (isOver() || !mayPost(delivery, postMsMax, nowMs())) return null;
          return post(record, entry.event);
        });
        if (outcome === null) {
          await commit(waitedFor(rested(delivery, delivery.cursor), entry));
          return clock.now();
        }
        const { delivery: next, verdict } = settled(delivery, entry, outcome, {
          holder,
          nowMs: nowMs(),
          jitter: random(),
        });
        const isPast = verdict === "delivered" || verdict === "dropped";
        // The last of all that is there gives the lease back in the same write.
        const behind = wanted[index + 1];
        const isDone = isPast && isEnd && behind === undefined;
        const done = { ...next, cursor: last?.at ?? next.cursor, lease: null };
        const onward = isPast && behind !== undefined ? waitedFor(next, behind) : next;
        // Somebody has changed the webhook, or has taken over from us: they go on from what is stored.
        if (!(await commit(isDone ? done : onward))) return null;
        said(record, entry, next, verdict);
        if (verdict === "gone") await pause(record);
        if (!isPast) return next.notBefore;
        if (isDone) return null;
      }
    }
  }

  function said({ name }: WebhookRecord, { event }: ChronicleEntry, next: WebhookDelivery, verdict: string): void {
    const { attempts, lastError, notBefore, failingSince } = next;
    const about = { webhook: name, event: event.id, type: event.type, attempts, error: lastError };
    if (verdict === "waits") log.write("info", "a webhook's receiver did not take an event", { ...about, notBefore });
    if (verdict === "dropped")
      log.write("warn", "an event was dropped for a webhook whose receiver failed for days", {
        ...about,
        failingSince,
      });
  }

  /** What a deletion left behind that was cut short. */
  async function sweep(deliveries: readonly WebhookDelivery[], known: ReadonlySet<string>): Promise<void> {
    for (const { webhook, name } of deliveries)
      if (!known.has(webhook) && (await webhooks.load(name))?.id !== webhook) await webhooks.removeDelivery(webhook);
  }

  return {
    async tick() {
      const records = await webhooks.list();
      if (records.length === 0) return { againAt: null };
      const untilMs = nowMs() + lookMsMax;
      const deliveries = await webhooks.deliveries();
      const turns = records.map(async (record) => {
        if (record.paused !== null) return null;
        const stored = deliveries.find(({ webhook }) => webhook === record.id) ?? null;
        try {
          return await deliver(record, stored, untilMs);
        } catch (error) {
          // One webhook's trouble is not the others'.
          log.write("error", "a webhook could not be looked at; the next minute tries again", {
            webhook: record.name,
            error: error instanceof Error ? error.message.slice(0, 300) : "not an error",
          });
          return null;
        }
      });
      await sweep(deliveries, new Set(records.map(({ id }) => id)));
      const again = (await Promise.all(turns)).filter((at) => at !== null).sort();
      return { againAt: again[0] ?? null };
    },

    async test(record) {
      const eventId = `test_${ids.ulid()}`;
      const head = eventHead(eventId, record.name, clock.now());
      const beganMs = nowMs();
      const outcome = await post(record, { ...head, type: "dev.vmferry.webhook.test", data: { webhook: record.name } });
      const ms = nowMs() - beganMs;
      if (outcome.kind === "unanswered") return { eventId, status: null, error: outcome.cause, ms };
      return { eventId, status: outcome.status, error: null, ms };
    },
  };
}

/** At most so many at once; the others wait in order. */
function createSlots(atOnce: number): <T>(work: () => Promise<T>) => Promise<T> {
  let free = atOnce;
  const waiting: (() => void)[] = [];
  return async (work) => {
    if (free > 0) free -= 1;
    else await new Promise<void>((resolve) => waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = waiting.shift();
      if (next === undefined) free += 1;
      else next();
    }
  };
}
