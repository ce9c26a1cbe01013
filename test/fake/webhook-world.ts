/** Webhooks over memory: a chronicle, a store, a clock that tests move, and a receiver whose answers they decide. */
import type { ChronicleEvent } from "#core/chronicle-event";
import { eventHead } from "#core/chronicle-event";
import type { WebhookTargets } from "#core/webhook-address";
import type { WebhookOutcome } from "#core/webhook-delivery";
import type { Chronicle, WebhookStore } from "#functions/ports";
import { createSecretSeal } from "#functions/secret-seal";
import { createWebhookBook } from "#functions/webhook-book";
import type { WebhookPost, WebhookPoster } from "#functions/webhook-post";
import { createWebhookRunner } from "#functions/webhook-runner";
import { controlSigner } from "#test/fake/control-key";
import { MemoryChronicle, positionsBy } from "#test/fake/memory-chronicle";
import { MemoryWebhooks } from "#test/fake/memory-webhooks";

export const answered = (status: number, retryAfter: string | null = null): WebhookOutcome => ({
  kind: "answered",
  status,
  retryAfter,
});
export const unanswered: WebhookOutcome = { kind: "unanswered", cause: "the connection was refused" };

export function webhookWorld(options: { targets?: WebhookTargets; post?: WebhookPoster } = {}) {
  let nowMs = Date.parse("2026-11-23T10:00:00.000Z");
  let serial = 0;
  const clock = { now: () => new Date(nowMs).toISOString() };
  const ids = {
    ulid: () => `01JE0000000000000000${String(++serial).padStart(6, "0")}`,
    secret: (bytes: number) => {
      serial += 1;
      return Buffer.alloc(bytes, serial).toString("base64url");
    },
  };
  const logged: string[] = [];
  const log = { write: (...line: unknown[]) => void logged.push(JSON.stringify(line)) };
  const chronicle = new MemoryChronicle(positionsBy(clock));
  const webhooks = new MemoryWebhooks();
  const seal = createSecretSeal({ ids, tickets: controlSigner() });
  const targets = options.targets ?? "public";
  const posts: WebhookPost[] = [];
  /** What the receiver answers; a test puts its own here. */
  const receiver = { answer: async (_post: WebhookPost): Promise<WebhookOutcome> => answered(204) };
  const post: WebhookPoster =
    options.post ??
    ((given) => {
      posts.push(given);
      return receiver.answer(given);
    });
  const runnerOver = (
    over: {
      webhooks?: WebhookStore;
      chronicle?: Pick<Chronicle, "after">;
      post?: WebhookPoster;
      postsAtOnce?: number;
    } = {},
  ) =>
    createWebhookRunner({
      clock,
      ids,
      log,
      chronicle,
      webhooks,
      seal,
      targets,
      post,
      random: () => 0.5,
      postsAtOnce: 32,
      ...over,
    });
  const book = createWebhookBook({ clock, ids, webhooks, seal, targets });

  return {
    clock,
    ids,
    logged,
    chronicle,
    webhooks,
    seal,
    posts,
    receiver,
    runnerOver,
    runner: runnerOver(),
    book,
    pass: (ms: number) => (nowMs += ms),
    setNow: (ms: number) => (nowMs = ms),
    /** Writes something down that happens now. */
    happens: (id: string, type: ChronicleEvent["type"] = "dev.vmferry.host.enrolled") =>
      chronicle.append(eventOf(id, type, clock.now())),
    delivery: async (name: string) => webhooks.delivery((await book.load(name)).id),
  };
}
export type WebhookWorld = ReturnType<typeof webhookWorld>;

const host = { id: "h_01JD0000000000000000000001", name: "host1" };

/** Of a few types, which is enough to be wanted or not. */
export function eventOf(id: string, type: ChronicleEvent["type"], at: string): ChronicleEvent {
  const head = eventHead(id, host.id, at);
  if (type === "dev.vmferry.host.enrolled") return { ...head, type, data: { host, joinToken: null } };
  if (type === "dev.vmferry.host.shutdownRequested") return { ...head, type, data: { host, requestId: id } };
  if (type === "dev.vmferry.request.received")
    return { ...head, type, data: { method: "POST", path: "/v1/checks", by: "ci", requestId: id, admin: false } };
  throw new Error(`no example of ${type}`);
}

/** The ids that were posted, each once, in the order in which they came first. */
export const firstIds = (posts: readonly WebhookPost[]): string[] => [
  ...new Set(posts.map(({ headers }) => headers["webhook-id"] ?? "")),
];
