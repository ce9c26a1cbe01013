/**
 * Whatever receivers answer, whoever dies where, and however many deliver at once: every event that is wanted reaches the receiver or is counted as dropped,
 * and what it sees for the first time it sees in the order of the chronicle. The moments at which stores and receivers answer are the scheduler's to choose.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { positionAt } from "#core/chronicle-position";
import { chronicleSettleMs } from "#core/limits";
import { leaseMs, retryPausesMs, type WebhookDelivery, type WebhookOutcome } from "#core/webhook-delivery";
import type { WebhookStore } from "#functions/ports";
import type { WebhookPost } from "#functions/webhook-post";
import { MemoryChronicle } from "#test/fake/memory-chronicle";
import { MemoryWebhooks } from "#test/fake/memory-webhooks";
import { answered, eventOf, firstIds, unanswered, webhookWorld } from "#test/fake/webhook-world";

/** `lost`: the receiver took it, and its answer never came. */
type Answer = 204 | 500 | 302 | "refused" | "lost";
/** What befalls one request to the store or the receiver. */
interface Fate {
  /** The process dies before or after it, or the request alone fails after it was carried out. */
  end: "well" | "diesBefore" | "diesAfter" | "failsAfter";
  takesMs: number;
  answer: Answer;
}
interface Step {
  passMs: number;
  /** The receiver takes nothing, whatever was drawn for it. */
  isDown: boolean;
  events: { wanted: boolean; lateMs: number }[];
  /** One for each process that looks at the same time. */
  looks: Fate[][];
}

const daysMs = 24 * 3_600_000;
const fate: fc.Arbitrary<Fate> = fc.record({
  end: fc.oneof(
    { weight: 8, arbitrary: fc.constant("well" as const) },
    { weight: 1, arbitrary: fc.constantFrom("diesBefore" as const, "diesAfter" as const, "failsAfter" as const) },
  ),
  takesMs: fc.oneof(
    { weight: 6, arbitrary: fc.integer({ min: 0, max: 300 }) },
    { weight: 1, arbitrary: fc.constantFrom(10_000, leaseMs, leaseMs * 2) },
  ),
  answer: fc.constantFrom<Answer>(204, 204, 500, 302, "refused", "lost"),
});
const step: fc.Arbitrary<Step> = fc.record({
  isDown: fc.boolean(),
  passMs: fc.constantFrom(1_000, 10_000, 60_000, leaseMs, 3_600_000, 40 * 3_600_000),
  events: fc.array(
    fc.record({ wanted: fc.boolean(), lateMs: fc.integer({ min: 0, max: chronicleSettleMs - 1_000 }) }),
    {
      maxLength: 3,
    },
  ),
  looks: fc.array(fc.array(fate, { maxLength: 12 }), { minLength: 1, maxLength: 2 }),
});

class Dead extends Error {}

/** Carries the steps out, heals everything, and says what the receiver saw. */
async function run(
  scheduler: fc.Scheduler,
  steps: readonly Step[],
  heard: (outcome: WebhookOutcome) => WebhookOutcome = (outcome) => outcome,
) {
  const world = webhookWorld();
  const store = new MemoryWebhooks();
  let positions = 0;
  let lateMs = 0;
  const chronicle = new MemoryChronicle({
    ulid: () => `${positionAt(Date.parse(world.clock.now()) - lateMs)}${String(++positions).padStart(16, "0")}`,
  });
  const seen: WebhookPost[] = [];
  const taken = new Set<string>();
  const dropped = new Map<string, string>();
  const wanted: string[] = [];
  await world.book.put("one", { url: "https://example.com/", types: ["host.enrolled"] }, "test");
  const record = await world.book.load("one");
  await store.commit(record);
  // What is written down late must still be after the webhook's own beginning.
  world.pass(chronicleSettleMs);

  /** A process whose requests have these fates; when they are used up, all goes well. */
  function processOf(fates: readonly Fate[], isDown: boolean) {
    let used = 0;
    let dead = false;
    const suffer = async <T>(what: string, work: (answer: Answer) => Promise<T>): Promise<T> => {
      const { end, takesMs, answer } = fates[used] ?? { end: "well", takesMs: 1, answer: 204 };
      used += 1;
      await scheduler.schedule(Promise.resolve(), `${what} begins`);
      if (dead || end === "diesBefore") dead = true;
      if (dead) throw new Dead();
      world.pass(takesMs);
      const result = await work(answer);
      await scheduler.schedule(Promise.resolve(), `${what} ends`);
      if (dead || end === "diesAfter") dead = true;
      if (dead || end === "failsAfter") throw new Dead();
      return result;
    };
    const webhooks: WebhookStore = {
      load: (name) => store.load(name),
      list: () => suffer("list", () => store.list()),
      commit: (next) => store.commit(next),
      remove: (next) => store.remove(next),
      delivery: (id) => store.delivery(id),
      deliveries: () => suffer("deliveries", () => store.deliveries()),
      commitDelivery: (next: WebhookDelivery) =>
        suffer("commit", async () => {
          const result = await store.commitDelivery(next);
          const last = next.lastDropped;
          if (result === "committed" && last !== null) dropped.set(last.eventId, last.at);
          return result;
        }),
      removeDelivery: (id) => store.removeDelivery(id),
    };
    return world.runnerOver({
      webhooks,
      chronicle: { after: (page) => suffer("read", () => chronicle.after(page)) },
      post: async (post): Promise<WebhookOutcome> =>
        suffer("post", async (drawn) => {
          const answer = isDown ? 500 : drawn;
          seen.push(post);
          if (answer === 204 || answer === "lost") taken.add(post.headers["webhook-id"] ?? "");
          return heard(typeof answer === "number" ? answered(answer) : unanswered);
        }),
    });
  }
  const look = (fates: readonly Fate[], isDown = false) =>
    processOf(fates, isDown)
      .tick()
      .catch((error: unknown) => assert.ok(error instanceof Dead, String(error)));

  let serial = 0;
  for (const { passMs, isDown, events, looks } of steps) {
    // Down for days: it is tried on the way, as often as it takes to be given up.
    const parts = isDown && passMs > daysMs ? 8 : 1;
    for (let part = 1; part < parts; part += 1) {
      world.pass(passMs / parts);
      await scheduler.waitFor(look([], true));
    }
    world.pass(passMs / parts);
    for (const event of events) {
      serial += 1;
      const type = event.wanted ? "dev.vmferry.host.enrolled" : "dev.vmferry.host.shutdownRequested";
      lateMs = event.lateMs;
      await chronicle.append(eventOf(`e${serial}`, type, world.clock.now()));
    }
    await scheduler.waitFor(Promise.all(looks.map((fates) => look(fates, isDown))));
  }
  // All is well from here: the longest pause, twice the lease, and one look for whatever is left.
  for (let round = 0; round < 3; round += 1) {
    world.pass((retryPausesMs.at(-1) ?? 0) * 2 + leaseMs * 2);
    await scheduler.waitFor(look([]));
  }
  for (const event of chronicle.events) if (event.type === "dev.vmferry.host.enrolled") wanted.push(event.id);
  return { wanted, seen, taken, dropped, delivery: await store.delivery(record.id) };
}

async function holds(...given: Parameters<typeof run>): Promise<void> {
  const { wanted, seen, taken, dropped, delivery } = await run(...given);
  assert.deepEqual(firstIds(seen), wanted, "each is tried, and what is new comes in order");
  for (const id of wanted) assert.ok(taken.has(id) || dropped.has(id), `${id} was neither taken nor dropped`);
  const {
    delivered,
    dropped: counted,
    pending,
    lease,
  } = delivery ?? { delivered: 0, dropped: 0, pending: null, lease: null };
  assert.deepEqual([delivered + counted, pending, lease], [wanted.length, null, null]);
  assert.ok(counted >= dropped.size);
}

const steps = fc.array(step, { minLength: 1, maxLength: 12 });

test("every event is delivered at least once, in order, or counted as dropped", async () => {
  await fc.assert(
    fc.asyncProperty(fc.scheduler(), steps, (scheduler, given) => holds(scheduler, given)),
    { numRuns: 250 },
  );
});

test("the test finds a poster that reads silence as an answer", async () => {
  const found = await fc.check(
    fc.asyncProperty(fc.scheduler(), steps, (scheduler, given) => holds(scheduler, given, () => answered(204))),
    { numRuns: 2_000, endOnFailure: true },
  );
  assert.equal(found.failed, true);
});

test("the test finds a reader that does not wait for the chronicle to settle", async () => {
  const found = await fc.check(
    fc.asyncProperty(fc.scheduler(), steps, async (scheduler, given) => {
      const eager = given.map((each) => ({
        ...each,
        // Told so late that what settles has passed it by.
        events: each.events.map((event) => ({ ...event, lateMs: event.lateMs + 2 * chronicleSettleMs })),
      }));
      await holds(scheduler, eager);
    }),
    { numRuns: 2_000, endOnFailure: true },
  );
  assert.equal(found.failed, true);
});
