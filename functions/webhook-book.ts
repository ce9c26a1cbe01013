/** Writes webhooks: each change is one conditional write. Secrets are made here, sealed before they are stored, and given out once (I9). */
import { Fault, type FaultCode } from "#protocol/fault";
import { chronicleTypes } from "./core/chronicle-event.ts";
import {
  overlapMsMax,
  rotated,
  secretPlace,
  type WebhookRecord,
  type WebhookSecret,
  webhooksMax,
  webhookTypes,
} from "./core/webhook.ts";
import { type WebhookTargets, webhookUrl } from "./core/webhook-address.ts";
import { newDelivery, replayed, resumed, type WebhookDelivery } from "./core/webhook-delivery.ts";
import type { Clock, Ids, WebhookStore } from "./ports.ts";
import type { SecretSeal } from "./secret-seal.ts";

/** Tries of a change against others' changes: each conflict is somebody else's success. */
const attemptsMax = 8;
/** Of a delivery's item: who delivers writes it with every event, and stops only when one of our writes comes between two of theirs. */
const deliveryAttemptsMax = 24;
/** 256 bits, of the 192 to 512 that Standard Webhooks ask for. */
const secretBytesMade = 32;

export interface WebhookBook {
  /** Makes it, with a secret that is shown this once, or changes where it goes and what it wants. Throws `request.malformed`, `request.conflict`. */
  put(
    name: string,
    asked: { url: string; types?: string[] | undefined },
    by: string,
  ): Promise<{ record: WebhookRecord; secret: string | null; changed: boolean }>;
  /** Throws `request.notFound`. */
  load(name: string): Promise<WebhookRecord>;
  /** A new secret; the former one signs beside it for the overlap. Throws `request.notFound`. */
  rotate(name: string, overlapMs: number, by: string): Promise<{ record: WebhookRecord; secret: string }>;
  /** Throws `request.notFound`. */
  pause(name: string, by: string): Promise<WebhookRecord>;
  /** What happened meanwhile is delivered, in order. Throws `request.notFound`. */
  resume(name: string, by: string): Promise<WebhookRecord>;
  /** Delivers from this time on, once more or leaving out what lies before. Throws `request.notFound`. */
  replay(name: string, sinceMs: number): Promise<WebhookRecord>;
  /** Throws `request.notFound`. */
  remove(name: string): Promise<void>;
}

const refused = (code: FaultCode, cause: string, action: string): Fault =>
  new Fault({ code, cause, action, retry: "never" });
const noSuchWebhook = () =>
  refused("request.notFound", "There is no such webhook.", "List them: GET /v1/webhooks (vmferry webhooks).");
const contended = () =>
  new Fault({
    code: "request.conflict",
    cause: "The webhook is being changed by others.",
    action: "Read it as it is now, then send the change again.",
    retry: "safe",
  });

export function createWebhookBook(ports: {
  clock: Clock;
  ids: Ids;
  webhooks: WebhookStore;
  seal: SecretSeal;
  targets: WebhookTargets;
}): WebhookBook {
  const { clock, ids, webhooks, seal, targets } = ports;

  async function freshSecret(webhookId: string): Promise<{ text: string; sealed: Omit<WebhookSecret, "until"> }> {
    const bytes = Buffer.from(ids.secret(secretBytesMade), "base64url");
    const text = `whsec_${bytes.toString("base64")}`;
    const id = ids.ulid();
    const sealed = await seal.seal(text, secretPlace(webhookId, id));
    return { text, sealed: { id, sealed, createdAt: clock.now() } };
  }

  async function load(name: string): Promise<WebhookRecord> {
    const record = await webhooks.load(name);
    if (record === null) throw noSuchWebhook();
    return record;
  }

  /** Load -> change -> one conditional write; null: it is so already. */
  async function change(
    name: string,
    by: string,
    make: (record: WebhookRecord) => Partial<WebhookRecord> | null,
  ): Promise<{ record: WebhookRecord; changed: boolean }> {
    for (let attempt = 0; attempt < attemptsMax; attempt += 1) {
      const before = await load(name);
      const made = make(before);
      if (made === null) return { record: before, changed: false };
      const record = { ...before, ...made, version: before.version + 1, changedAt: clock.now(), by };
      if ((await webhooks.commit(record)) === "committed") return { record, changed: true };
    }
    throw contended();
  }

  async function changeDelivery(
    record: WebhookRecord,
    make: (delivery: WebhookDelivery) => WebhookDelivery,
  ): Promise<void> {
    for (let attempt = 0; attempt < deliveryAttemptsMax; attempt += 1) {
      const before = (await webhooks.delivery(record.id)) ?? newDelivery(record);
      if ((await webhooks.commitDelivery(make(before))) === "committed") return;
    }
    throw contended();
  }

  async function create(name: string, url: string, types: string[], by: string) {
    if ((await webhooks.list()).length >= webhooksMax)
      throw refused(
        "request.conflict",
        `There are ${webhooksMax} webhooks already.`,
        "Delete one that nobody needs, or let one receiver pass events on.",
      );
    const id = `w_${ids.ulid()}`;
    const { text, sealed } = await freshSecret(id);
    const at = clock.now();
    const secrets = [{ ...sealed, until: null }];
    const record = { id, name, version: 1, url, types, secrets, createdAt: at, changedAt: at, by, paused: null };
    return (await webhooks.commit(record)) === "committed" ? { record, secret: text, changed: true } : null;
  }

  return {
    async put(name, asked, by) {
      const checked = webhookUrl(asked.url, targets);
      if ("cause" in checked)
        throw refused("request.malformed", `\`url\`: ${checked.cause}.`, "Give the https address of the receiver.");
      const filter = webhookTypes(asked.types);
      if ("unknown" in filter)
        throw refused(
          "request.malformed",
          `\`types\`: no event is of type ${filter.unknown.join(", ")}.`,
          `Name a type or a part of one up to a dot: ${chronicleTypes.map((type) => type.slice("dev.vmferry.".length)).join(", ")}.`,
        );
      const { url } = checked;
      const { types } = filter;
      if ((await webhooks.load(name)) === null) {
        const created = await create(name, url, types, by);
        if (created !== null) return created;
        // Somebody else has made it meanwhile: this one changes it, and its secret is theirs.
      }
      const result = await change(name, by, (before) =>
        before.url === url && JSON.stringify(before.types) === JSON.stringify(types) ? null : { url, types },
      );
      if (result.changed) await changeDelivery(result.record, resumed);
      return { ...result, secret: null };
    },

    load,

    async rotate(name, overlapMs, by) {
      const { id } = await load(name);
      const { text, sealed } = await freshSecret(id);
      const { record } = await change(name, by, (before) => {
        // Deleted and made anew meanwhile: what was sealed belongs to the one before.
        if (before.id !== id) throw contended();
        const nowMs = Date.parse(clock.now());
        return { secrets: rotated(before.secrets, sealed, Math.min(overlapMs, overlapMsMax), nowMs) };
      });
      return { record, secret: text };
    },

    async pause(name, by) {
      const { record, changed } = await change(name, by, (before) =>
        before.paused === null ? { paused: { at: clock.now(), by, reason: "asked for" } } : null,
      );
      // Who delivers now stops at its next write.
      if (changed) await changeDelivery(record, resumed);
      return record;
    },

    async resume(name, by) {
      const { record } = await change(name, by, (before) => (before.paused === null ? null : { paused: null }));
      await changeDelivery(record, resumed);
      return record;
    },

    async replay(name, sinceMs) {
      const record = await load(name);
      await changeDelivery(record, (delivery) => replayed(delivery, sinceMs));
      return record;
    },

    async remove(name) {
      for (let attempt = 0; attempt < attemptsMax; attempt += 1) {
        const record = await load(name);
        if ((await webhooks.remove(record)) === "conflict") continue;
        return webhooks.removeDelivery(record.id);
      }
      throw contended();
    },
  };
}
