/** Webhooks put together over a deployment's ports, as the API and the timer use them. */
import type { WebhookTargets } from "./core/webhook-address.ts";
import type { Chronicle, Ports, WebhookStore } from "./ports.ts";
import { createSecretSeal } from "./secret-seal.ts";
import { createWebhookBook, type WebhookBook } from "./webhook-book.ts";
import type { WebhookPoster } from "./webhook-post.ts";
import { createWebhookRunner, type WebhookRunner } from "./webhook-runner.ts";

export interface WebhookFace {
  webhooks: WebhookStore;
  book: WebhookBook;
  runner: WebhookRunner;
  /** Something may be there to deliver now: a look soon, where the runtime can, or the next minute's. Never waits. */
  soon(): void;
}

/** A chronicle that says when something new stands in it; whoever writes does not wait for that. */
export const heard = (chronicle: Chronicle, ring: () => void): Chronicle => ({
  async append(event) {
    const isNew = await chronicle.append(event);
    if (isNew) ring();
    return isNew;
  },
  find: (id) => chronicle.find(id),
  after: (page) => chronicle.after(page),
  before: (page) => chronicle.before(page),
});

export interface WebhookMeans {
  post: WebhookPoster;
  targets: WebhookTargets;
  postsAtOnce: number;
  /** From 0 to 1. */
  random(): number;
  /** Absent: the minute's timer is soon enough. */
  soon?: (() => void) | undefined;
}

export function createWebhooks(
  ports: Pick<Ports, "clock" | "ids" | "log" | "chronicle" | "tickets">,
  webhooks: WebhookStore,
  { soon = () => undefined, ...means }: WebhookMeans,
): WebhookFace {
  const seal = createSecretSeal(ports);
  const all = { ...ports, ...means, webhooks, seal };
  return { webhooks, book: createWebhookBook(all), runner: createWebhookRunner(all), soon };
}
