/** The runner against receivers over real HTTP that fail in every way, by both ways of posting: what each makes of the delivery, and how much is read. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import { chronicleSettleMs } from "#core/limits";
import { retryPausesMs } from "#core/webhook-delivery";
import { fetchPoster, type PostBounds, type WebhookPoster } from "#functions/webhook-post";
import { nodePoster } from "#functions/webhook-post-node";
import { openReceiver, type Receiver, type ReceiverAnswer } from "#test/fake/webhook-receiver";
import { type WebhookWorld, webhookWorld } from "#test/fake/webhook-world";

const bounds: PostBounds = { postMs: 400, answerMs: 60 };
const posters: Record<string, WebhookPoster> = {
  "Node's client": nodePoster("private", { bounds }),
  fetch: fetchPoster(bounds),
};

let receiver: Receiver;
let world: WebhookWorld;
beforeEach(async () => {
  receiver = await openReceiver();
});
afterEach(() => receiver.close());

const settle = () => world.pass(chronicleSettleMs + 1);
const heardIds = () => receiver.heard.map(({ headers }) => headers["webhook-id"]);

for (const [name, post] of Object.entries(posters))
  describe(`by ${name}`, () => {
    beforeEach(async () => {
      world = webhookWorld({ targets: "private", post });
      await world.book.put("one", { url: `${receiver.url}/hook?key=word` }, "test");
      for (const id of ["e1", "e2"]) await world.happens(id);
      settle();
    });

    test("two events arrive in order, whole, under their headers", async () => {
      await world.runner.tick();
      assert.deepEqual(heardIds(), ["e1", "e2"]);
      const [first] = receiver.heard;
      assert.equal(first?.path, "/hook?key=word");
      assert.equal(first.headers["content-type"], "application/cloudevents+json");
      assert.equal(first.headers["content-length"], String(first.body.byteLength));
      assert.match(new TextDecoder().decode(first.body), /"id":"e1"/);
      assert.equal((await world.delivery("one"))?.delivered, 2);
    });

    const failures: [string, ReceiverAnswer, RegExp][] = [
      ["500", { status: 500 }, /^it answered 500$/],
      ["a redirect", { status: 307, headers: { location: "/elsewhere" } }, /redirects are not followed/],
      ["no answer", { status: 200, body: "none" }, /no answer within 0.4 s/],
      ["a cut connection", { status: 200, body: "cut" }, /cut before an answer|connection failed/],
      ["500 with an endless body", { status: 500, body: "endless" }, /^it answered 500$/],
      [
        "a change of protocol that nobody asked for",
        { status: 101, headers: { connection: "Upgrade", upgrade: "other" } },
        /^it answered 101$|connection failed/,
      ],
    ];
    for (const [what, answer, error] of failures)
      test(`${what}: nothing after it is sent, and it is tried again when its time has come`, async () => {
        receiver.answer = answer;
        const { againAt } = await world.runner.tick();
        assert.deepEqual(heardIds(), ["e1"]);
        assert.ok(receiver.heard.every(({ path }) => path === "/hook?key=word"));
        const failed = await world.delivery("one");
        assert.match(failed?.lastError ?? "", error);
        assert.deepEqual([failed?.failed, failed?.lease, failed?.notBefore], [1, null, againAt]);
        await world.runner.tick();
        assert.equal(receiver.heard.length, 1, "not before its time");
        receiver.answer = { status: 200 };
        world.pass(retryPausesMs[0]);
        await world.runner.tick();
        assert.deepEqual(heardIds(), ["e1", "e1", "e2"]);
        assert.deepEqual(receiver.heard[0]?.body, receiver.heard[1]?.body, "the same bytes");
        assert.ok(!world.logged.join().includes("word"), "no URL in a log");
      });

    test("Retry-After is waited for, to its second", async () => {
      receiver.answer = { status: 429, headers: { "retry-after": "90" } };
      await world.runner.tick();
      receiver.answer = { status: 200 };
      world.pass(89_999);
      await world.runner.tick();
      assert.equal(receiver.heard.length, 1);
      world.pass(1);
      await world.runner.tick();
      assert.deepEqual(heardIds(), ["e1", "e1", "e2"]);
    });

    test("410 pauses the webhook, which says why", async () => {
      receiver.answer = { status: 410 };
      await world.runner.tick();
      assert.match((await world.book.load("one")).paused?.reason ?? "", /410 Gone/);
      world.pass(86_400_000);
      await world.runner.tick();
      assert.deepEqual(heardIds(), ["e1"]);
    });

    for (const body of ["endless", "trickle"] as const)
      test(`200 with a body that is ${body} is success, and what is read has an end`, async () => {
        receiver.answer = { status: 200, body };
        await world.runner.tick();
        assert.deepEqual(heardIds(), ["e1", "e2"]);
        assert.equal((await world.delivery("one"))?.delivered, 2);
        // What a kernel holds between two ends, twice, and no stream beyond it.
        assert.ok(receiver.givenBytes < 32 * 1024 * 1024, `${receiver.givenBytes} bytes were given`);
      });

    test("nobody listens: the connection's refusal is said", async () => {
      await receiver.close();
      await world.runner.tick();
      assert.match((await world.delivery("one"))?.lastError ?? "", /the connection was refused|connection failed/);
      receiver = await openReceiver();
    });

    test("a receiver that hangs holds up nobody else's events", async () => {
      const other = await openReceiver();
      try {
        receiver.answer = { status: 200, body: "none" };
        await world.book.put("two", { url: other.url }, "test");
        for (const id of ["e3", "e4"]) await world.happens(id);
        settle();
        const looks = world.runner.tick();
        assert.deepEqual(
          [(await other.next()).headers["webhook-id"], (await other.next()).headers["webhook-id"]],
          ["e3", "e4"],
        );
        await looks;
        assert.equal((await world.delivery("one"))?.delivered, 0);
        assert.equal((await world.delivery("two"))?.delivered, 2);
      } finally {
        await other.close();
      }
    });

    test("of two who look at the same time one delivers", async () => {
      const looks = await Promise.all([world.runner.tick(), world.runnerOver().tick(), world.runnerOver().tick()]);
      assert.equal(looks.length, 3);
      assert.deepEqual(heardIds(), ["e1", "e2"]);
    });
  });

describe("names", () => {
  const names = { "receiver.example": ["127.0.0.1"], "both.example": ["8.8.8.8", "127.0.0.1"] };
  const resolve = async (name: string) =>
    (Object.entries(names).find(([known]) => known === name)?.[1] ?? []).map((address) => ({ address, family: 4 }));
  const post = (name: string, poster: WebhookPoster) =>
    poster({ url: `http://${name}:${new URL(receiver.url).port}/`, headers: {}, body: new TextEncoder().encode("{}") });

  test("that lead inside are not connected to; where that is allowed, the checked address is", async () => {
    for (const name of Object.keys(names)) {
      const outcome = await post(name, nodePoster("public", { resolve, bounds }));
      assert.equal(outcome.kind, "unanswered");
      assert.match(outcome.kind === "unanswered" ? outcome.cause : "", /leads to an address within a network/);
    }
    assert.deepEqual(receiver.heard, []);
    assert.equal((await post("receiver.example", nodePoster("private", { resolve, bounds }))).kind, "answered");
    assert.equal(receiver.heard.length, 1);
  });

  test("a URL that was taken under another setting is refused when it is posted to", async () => {
    const inside = webhookWorld({ targets: "private", post: fetchPoster(bounds) });
    await inside.book.put("one", { url: receiver.url }, "test");
    await inside.happens("e1");
    inside.pass(chronicleSettleMs + 1);
    world = webhookWorld({ targets: "public", post: fetchPoster(bounds) });
    await world.runnerOver({ webhooks: inside.webhooks, chronicle: inside.chronicle }).tick();
    assert.deepEqual(receiver.heard, []);
    world.pass(chronicleSettleMs + 1);
    await world.runnerOver({ webhooks: inside.webhooks, chronicle: inside.chronicle }).tick();
    const delivery = await inside.delivery("one");
    assert.match(delivery?.lastError ?? "", /its URL is refused: .*internet only/);
    assert.deepEqual(receiver.heard, []);
  });
});
