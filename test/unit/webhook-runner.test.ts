/** The runner's looks over memory: how far one goes, what an idle one costs, and what becomes of it when people change a webhook meanwhile. */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { chronicleSettleMs } from "#core/limits";
import { lagMs, leaseMs } from "#core/webhook-delivery";
import { createSecretSeal } from "#functions/secret-seal";
import { createWebhookRunner } from "#functions/webhook-runner";
import { controlSigner } from "#test/fake/control-key";
import { answered, firstIds, type WebhookWorld, webhookWorld } from "#test/fake/webhook-world";

let world: WebhookWorld;
beforeEach(async () => {
  world = webhookWorld();
  await world.book.put("one", { url: "https://one.example/" }, "test");
});
const settle = () => world.pass(chronicleSettleMs + 1);
const idsAt = (host: string) =>
  world.posts.filter(({ url }) => url.includes(host)).map(({ headers }) => headers["webhook-id"]);

/** The receiver holds its answer back until it is let go. */
function held() {
  let begun = () => {};
  let letGo = () => {};
  const asked = new Promise<void>((resolve) => (begun = resolve));
  const go = new Promise<void>((resolve) => (letGo = resolve));
  world.receiver.answer = async () => {
    begun();
    await go;
    return answered(200);
  };
  return { asked, letGo };
}

describe("how far a look goes", () => {
  test("over many pages, in order, with one write for each event and two beside", async () => {
    const ids = Array.from({ length: 250 }, (_, index) => `e${index}`);
    for (const id of ids) await world.happens(id);
    settle();
    assert.deepEqual(await world.runner.tick(), { againAt: null });
    assert.deepEqual(firstIds(world.posts), ids);
    assert.equal(world.posts.length, 250);
    assert.ok(world.webhooks.deliveryWrites <= 252, `${world.webhooks.deliveryWrites} writes`);
    assert.equal((await world.delivery("one"))?.lease, null);
  });

  test("one that finds nothing writes nothing; what is not wanted costs one write", async () => {
    await world.runner.tick();
    assert.equal(world.webhooks.deliveryWrites, 0);
    for (let index = 0; index < 50; index += 1) await world.happens(`r${index}`, "dev.vmferry.request.received");
    settle();
    await world.runner.tick();
    await world.runner.tick();
    assert.deepEqual([world.webhooks.deliveryWrites, world.posts.length], [1, 0]);
  });

  test("it ends in time, gives the lease back, and asks to go on at once", async () => {
    for (let index = 0; index < 60; index += 1) await world.happens(`e${index}`);
    settle();
    world.receiver.answer = async () => {
      world.pass(1_000);
      return answered(200);
    };
    const first = await world.runner.tick();
    assert.equal(first.againAt, world.clock.now());
    assert.ok(world.posts.length >= 20 && world.posts.length < 40, `${world.posts.length} posts`);
    const behind = await world.delivery("one");
    assert.equal(behind?.lease, null);
    // A receiver that takes everything and is too slow is seen to fall behind.
    assert.equal(behind?.pending?.eventId, `e${world.posts.length}`);
    assert.ok(behind !== null && lagMs(behind, Date.parse(world.clock.now())) > chronicleSettleMs);
    while ((await world.runner.tick()).againAt !== null);
    assert.equal(world.posts.length, 60);
    assert.equal((await world.delivery("one"))?.pending, null);
  });

  test("what is younger than the chronicle settles is left for later, and is not passed over", async () => {
    await world.happens("e1");
    world.pass(chronicleSettleMs - 1);
    await world.runner.tick();
    assert.equal(world.posts.length, 0);
    world.pass(2);
    await world.runner.tick();
    assert.deepEqual(idsAt("one"), ["e1"]);
  });
});

describe("what is changed meanwhile", () => {
  beforeEach(async () => {
    for (const id of ["e1", "e2"]) await world.happens(id);
    settle();
  });

  test("paused in the middle of a post: nothing after it is posted", async () => {
    const { asked, letGo } = held();
    const look = world.runner.tick();
    await asked;
    await world.book.pause("one", "test");
    letGo();
    await look;
    assert.deepEqual(idsAt("one"), ["e1"]);
    await world.book.resume("one", "test");
    await world.runner.tick();
    // What was under way when it was paused is not known to have arrived.
    assert.deepEqual(idsAt("one"), ["e1", "e1", "e2"]);
    assert.equal((await world.delivery("one"))?.delivered, 2);
  });

  test("moved in the middle of a post: what follows goes to the new address", async () => {
    const { asked, letGo } = held();
    const look = world.runner.tick();
    await asked;
    await world.book.put("one", { url: "https://other.example/" }, "test");
    letGo();
    await look;
    await world.runner.tick();
    assert.deepEqual([idsAt("one"), idsAt("other")], [["e1"], ["e1", "e2"]]);
  });

  test("deleted in the middle of a post: nothing follows, and nothing of it is left", async () => {
    const { asked, letGo } = held();
    const look = world.runner.tick();
    await asked;
    await world.book.remove("one");
    letGo();
    await look;
    assert.deepEqual([idsAt("one"), await world.webhooks.deliveries()], [["e1"], []]);
  });

  test("a delivery whose webhook is gone is swept, one that was just made is not", async () => {
    const record = await world.book.load("one");
    await world.runner.tick();
    // Its deletion was cut short.
    await world.webhooks.remove(record);
    await world.book.put("two", { url: "https://two.example/" }, "test");
    await world.happens("e3");
    settle();
    await world.runner.tick();
    const { id } = await world.book.load("two");
    assert.deepEqual(
      (await world.webhooks.deliveries()).map(({ webhook }) => webhook),
      [id],
    );
  });

  test("who died with the lease is waited for until it lapses", async () => {
    const { asked } = held();
    void world.runner.tick();
    await asked;
    world.receiver.answer = async () => answered(200);
    assert.equal((await world.runnerOver().tick()).againAt, (await world.delivery("one"))?.lease?.until);
    assert.deepEqual(idsAt("one"), ["e1"]);
    world.pass(leaseMs);
    await world.runnerOver().tick();
    assert.deepEqual(idsAt("one"), ["e1", "e1", "e2"]);
  });
});

describe("one webhook and the others", () => {
  beforeEach(async () => {
    await world.book.put("two", { url: "https://two.example/" }, "test");
    await world.happens("e1");
    settle();
  });

  test("what a store refuses for one is not the others' trouble", async () => {
    const { id } = await world.book.load("one");
    const { webhooks } = world;
    const failing = new Proxy(webhooks, {
      get(target, name) {
        if (name !== "commitDelivery") return Reflect.get(target, name).bind(target);
        return async (delivery: Parameters<typeof webhooks.commitDelivery>[0]) => {
          if (delivery.webhook === id) throw new Error("not now");
          return target.commitDelivery(delivery);
        };
      },
    });
    await world.runnerOver({ webhooks: failing }).tick();
    assert.deepEqual([idsAt("one"), idsAt("two")], [[], ["e1"]]);
    assert.match(world.logged.join(), /"webhook":"one","error":"not now"/);
  });

  test("with one connection for all, each has its turn", async () => {
    for (const id of ["e2", "e3"]) await world.happens(id);
    settle();
    let open = 0;
    world.receiver.answer = async () => {
      open += 1;
      assert.equal(open, 1);
      await new Promise((resolve) => setImmediate(resolve));
      open -= 1;
      return answered(200);
    };
    await world.runnerOver({ postsAtOnce: 1 }).tick();
    assert.deepEqual(
      [idsAt("one"), idsAt("two")],
      [
        ["e1", "e2", "e3"],
        ["e1", "e2", "e3"],
      ],
    );
    assert.notEqual(world.posts[1]?.url, world.posts[0]?.url, "they take turns");
  });

  test("under another control key it says that the secret must be rotated", async () => {
    const { clock, ids, chronicle, webhooks } = world;
    const runner = createWebhookRunner({
      clock,
      ids,
      chronicle,
      webhooks,
      log: { write: () => undefined },
      seal: createSecretSeal({ ids, tickets: controlSigner(8) }),
      post: () => assert.fail("nothing is posted unsigned"),
      targets: "public",
      random: () => 0,
      postsAtOnce: 1,
    });
    await runner.tick();
    assert.match((await world.delivery("one"))?.lastError ?? "", /sealed under another control key; rotate it/);
  });
});
