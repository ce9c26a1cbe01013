/** How a delivery goes on after each kind of answer, without a network; and the signatures of what is sent. */
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { describe, test } from "node:test";
import * as fc from "fast-check";
import { positionAt } from "#core/chronicle-position";
import { isWanted, rotated, signingSecrets, webhookTypes } from "#core/webhook";
import {
  dropAttemptsMin,
  lagMs,
  leased,
  leaseMs,
  mayPost,
  newDelivery,
  replayed,
  restsUntil,
  resumed,
  retryAfterMsMax,
  retryJitter,
  retryPauseMs,
  retryPausesMs,
  settled,
  type WebhookDelivery,
  type WebhookOutcome,
  waitMsMax,
} from "#core/webhook-delivery";
import { createSecretSeal } from "#functions/secret-seal";
import { isSignedBy, secretBytes, signatureOf } from "#functions/trigger-signature";
import { controlSigner } from "#test/fake/control-key";
import { answered, eventOf, unanswered } from "#test/fake/webhook-world";

const t0 = Date.parse("2026-11-23T10:00:00.000Z");
const text = (ms: number) => new Date(ms).toISOString();
const fresh = newDelivery({ id: "w_1", name: "one", createdAt: text(t0) });
const entryAt = (ms: number, id = "e1") => ({
  at: `${positionAt(ms)}0000000000000000`,
  event: eventOf(id, "dev.vmferry.host.enrolled", text(ms)),
});
const settle = (delivery: WebhookDelivery, outcome: WebhookOutcome, nowMs: number, entry = entryAt(t0)) =>
  settled(delivery, entry, outcome, { holder: "h", nowMs, jitter: 0.5 });

describe("an answer", () => {
  test("2xx moves past the event and ends a row of failures", () => {
    const failed = settle(fresh, answered(500), t0 + 1_000).delivery;
    assert.deepEqual([failed.attempts, failed.failed, failed.cursor], [1, 1, fresh.cursor]);
    for (const status of [200, 204, 299]) {
      const { delivery, verdict } = settle(failed, answered(status), t0 + 9_000);
      assert.equal(verdict, "delivered");
      const { attempts, failingSince, notBefore, pending, lastError, delivered, cursor, lastStatus, version } =
        delivery;
      assert.deepEqual([attempts, failingSince, notBefore, pending, lastError], [0, null, null, null, null]);
      assert.deepEqual([delivered, cursor, lastStatus, version], [1, entryAt(t0).at, status, failed.version + 1]);
    }
  });

  test("everything else is a failure that keeps the cursor, gives the lease back and names the event", () => {
    for (const outcome of [199, 300, 301, 302, 307, 304, 400, 404, 429, 500, 503].map((status) => answered(status))) {
      const { delivery, verdict } = settle(leased(fresh, "h", t0), outcome, t0 + 2_000);
      assert.equal(verdict, "waits");
      assert.deepEqual([delivery.cursor, delivery.lease, delivery.failed], [fresh.cursor, null, 1]);
      assert.equal(delivery.notBefore, text(t0 + 2_000 + 5_000));
      assert.equal(delivery.pending?.eventId, "e1");
      assert.equal(delivery.failingSince, text(t0 + 2_000));
      assert.equal(lagMs(delivery, t0 + 7_000), 7_000);
    }
    assert.match(settle(fresh, answered(302), t0).delivery.lastError ?? "", /redirects are not followed/);
    const none = settle(fresh, unanswered, t0).delivery;
    assert.deepEqual([none.lastStatus, none.lastError], [null, "the connection was refused"]);
  });

  test("410 is no failure to be retried: it is the receiver's word", () => {
    const { delivery, verdict } = settle(fresh, answered(410), t0);
    assert.equal(verdict, "gone");
    assert.deepEqual([delivery.cursor, delivery.notBefore, delivery.lastStatus], [fresh.cursor, null, 410]);
  });

  test("the pauses grow to two hours and stay there, jittered by a fifth", () => {
    const pauses = Array.from({ length: 9 }, (_, index) => retryPauseMs(index + 1, 0.5, null, t0));
    assert.deepEqual(pauses.slice(0, retryPausesMs.length), [...retryPausesMs]);
    assert.deepEqual(pauses.slice(-2), [2 * 3_600_000, 2 * 3_600_000]);
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1_000 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (attempts, jitter) => {
          const base = retryPausesMs[Math.min(attempts, retryPausesMs.length) - 1] ?? 0;
          const pause = retryPauseMs(attempts, jitter, null, t0);
          assert.ok(pause >= Math.floor(base * (1 - retryJitter)) && pause <= Math.ceil(base * (1 + retryJitter)));
        },
      ),
    );
  });

  test("Retry-After lengthens a pause, within its bound, and never shortens it", () => {
    const pause = (header: string) => retryPauseMs(1, 0.5, header, t0);
    assert.equal(pause("120"), 120_000);
    assert.equal(pause("0"), 5_000);
    assert.equal(pause("999999999"), retryAfterMsMax);
    assert.equal(pause("Mon, 23 Nov 2026 10:01:00 GMT"), 60_000);
    assert.equal(pause("Mon, 23 Nov 2026 09:00:00 GMT"), 5_000);
    for (const nonsense of ["", "soon", "-5", "1e9", "1.5", "12345678901", "2026-11-23"])
      assert.equal(pause(nonsense), 5_000);
    const { delivery } = settle(fresh, answered(503, "600"), t0);
    assert.equal(delivery.notBefore, text(t0 + 600_000));
  });

  test("an event is dropped only when the receiver has failed for as long as the event waited", () => {
    // The control plane was away for a week: the first failure drops nothing.
    const first = settle(fresh, answered(500), t0 + 7 * 86_400_000);
    assert.equal(first.verdict, "waits");
    const sinceMs = t0 + 7 * 86_400_000;
    // Nor does the second, when it was away once more in between: a laptop that is opened again before its network is there.
    assert.equal(settle(first.delivery, answered(500), sinceMs + waitMsMax).verdict, "waits");
    const tried = { ...first.delivery, attempts: dropAttemptsMin - 1 };
    assert.equal(settle(tried, answered(500), sinceMs + waitMsMax - 1).verdict, "waits");
    const { delivery, verdict } = settle(tried, answered(500), sinceMs + waitMsMax);
    assert.equal(verdict, "dropped");
    assert.deepEqual([delivery.dropped, delivery.cursor, delivery.notBefore], [1, entryAt(t0).at, null]);
    assert.equal(delivery.lastDropped?.eventId, "e1");
    // The next one is tried at once; it is young, and waits.
    const young = entryAt(sinceMs + waitMsMax - 1_000, "e2");
    const next = settle(delivery, answered(500), sinceMs + waitMsMax + 1, young);
    assert.equal(next.verdict, "waits");
  });
});

test("a receiver that is down for good, tried at every pause that it may ask for, is given up after 72 hours", () => {
  for (const retryAfter of [null, "86400"]) {
    let { delivery, verdict } = settle(fresh, answered(500, retryAfter), t0);
    let nowMs = t0;
    while (verdict === "waits") {
      nowMs = Date.parse(delivery.notBefore ?? "");
      ({ delivery, verdict } = settle(delivery, answered(500, retryAfter), nowMs));
    }
    assert.equal(verdict, "dropped");
    assert.ok(nowMs - t0 >= waitMsMax && nowMs - t0 <= waitMsMax + retryAfterMsMax, `${nowMs - t0}`);
  }
});

describe("whose turn it is", () => {
  test("a lease keeps others out until it lapses, a pause keeps everybody out", () => {
    const held = leased(fresh, "a", t0);
    assert.equal(restsUntil(fresh, t0), null);
    assert.equal(restsUntil(held, t0 + leaseMs - 1), text(t0 + leaseMs));
    assert.equal(restsUntil(held, t0 + leaseMs), null);
    assert.equal(mayPost(held, 10_000, t0 + leaseMs - 10_001), true);
    assert.equal(mayPost(held, 10_000, t0 + leaseMs - 10_000), false);
    assert.equal(mayPost(fresh, 10_000, t0), false);
    const waits = settle(held, answered(500), t0).delivery;
    assert.equal(restsUntil(waits, t0 + 4_999), text(t0 + 5_000));
    assert.equal(restsUntil(waits, t0 + 5_000), null);
  });

  test("who is resumed is tried at once; a replay begins at its time and overtakes who delivers", () => {
    const waits = settle(fresh, answered(500), t0).delivery;
    assert.equal(restsUntil(resumed(waits), t0), null);
    assert.equal(resumed(waits).failingSince, null);
    const again = replayed(leased(waits, "a", t0), t0 - 3_600_000);
    assert.deepEqual([again.cursor, again.lease, again.pending], [positionAt(t0 - 3_600_000), null, null]);
    assert.equal(again.version, waits.version + 2);
  });
});

describe("what is wanted", () => {
  test("a filter is a type or a part of one up to a dot", () => {
    const wants = (filter: string, type: string) => isWanted([filter], `dev.vmferry.${type}`);
    assert.ok(wants("migration", "migration.ended") && wants("migration.ended", "migration.ended"));
    assert.ok(wants("rule.run", "rule.run.started"));
    assert.ok(!wants("migration.end", "migration.ended") && !wants("migration.ended", "migration.started"));
    assert.ok(!isWanted([], "dev.vmferry.migration.ended"));
  });
  test("without one everything is but requests; what no event is, is refused", () => {
    const standard = webhookTypes(undefined);
    assert.ok("types" in standard);
    assert.deepEqual(
      ["migration", "evacuation", "rule", "host"].filter((type) => !standard.types.includes(type)),
      [],
    );
    assert.ok(!isWanted(standard.types, "dev.vmferry.request.received"));
    assert.deepEqual(webhookTypes(["dev.vmferry.request", "migration.ended", "request"]), {
      types: ["migration.ended", "request"],
    });
    assert.deepEqual(webhookTypes(["migraton", "host", "ended"]), { unknown: ["ended", "migraton"] });
  });
});

describe("secrets", () => {
  test("during a rotation two sign, the new one first; then one; a third ends the oldest at once", () => {
    const secret = (id: string) => ({ id, sealed: id, createdAt: text(t0) });
    const ids = (secrets: ReturnType<typeof rotated>, nowMs: number) =>
      signingSecrets({ secrets }, nowMs).map(({ id }) => id);
    const two = rotated([{ ...secret("a"), until: null }], secret("b"), 1_000, t0);
    assert.deepEqual(ids(two, t0 + 999), ["b", "a"]);
    assert.deepEqual(ids(two, t0 + 1_000), ["b"]);
    assert.deepEqual(ids(rotated(two, secret("c"), 1_000, t0 + 1), t0 + 2), ["c", "b"]);
    assert.deepEqual(ids(rotated(two, secret("c"), 0, t0 + 1), t0 + 2), ["c"]);
  });

  // The example of the Standard Webhooks libraries; the others are made with another implementation of HMAC.
  const vector = {
    secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
    timestamp: "1614265330",
    body: '{"test": 2432232314}',
    signature: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
  };
  const bytesOf = (secret: string) => {
    const bytes = secretBytes(secret);
    assert.ok(bytes);
    return bytes;
  };
  const body = (value: string) => new TextEncoder().encode(value);

  test("the signature is Standard Webhooks' own", async () => {
    const message = { ...vector, body: body(vector.body) };
    assert.equal(await signatureOf(message, [bytesOf(vector.secret)]), vector.signature);
  });

  test("two secrets make two signatures, each of which the incoming side takes alone", async () => {
    const other = `whsec_${Buffer.alloc(32, 7).toString("base64")}`;
    const message = { id: "m_1-ended", timestamp: "1700000000", body: body('{"ä":"✓"}') };
    const signature = await signatureOf(message, [bytesOf(other), bytesOf(vector.secret)]);
    const expected = [Buffer.alloc(32, 7), Buffer.from(vector.secret.slice(6), "base64")].map(
      (key) => `v1,${createHmac("sha256", key).update('m_1-ended.1700000000.{"ä":"✓"}').digest("base64")}`,
    );
    assert.equal(signature, expected.join(" "));
    const signed = { ...message, signature };
    const key = (secret: string) => ({ kind: "secret" as const, bytes: bytesOf(secret), counts: true });
    assert.ok(await isSignedBy(signed, [key(other)]));
    assert.ok(await isSignedBy(signed, [key(vector.secret)]));
    assert.ok(!(await isSignedBy(signed, [key(`whsec_${Buffer.alloc(32, 8).toString("base64")}`)])));
    assert.ok(!(await isSignedBy({ ...signed, body: body("{}") }, [key(other)])));
  });

  test("a seal whose key could not be derived once derives it at the next use", async () => {
    const signer = controlSigner();
    let failures = 1;
    const tickets = {
      publicKey: () => signer.publicKey(),
      sign: async (value: string) => {
        failures -= 1;
        if (failures >= 0) throw new Error("not now");
        return signer.sign(value);
      },
    };
    const ids = { ulid: () => "x", secret: (bytes: number) => Buffer.alloc(bytes, 1).toString("base64url") };
    const seal = createSecretSeal({ ids, tickets });
    await assert.rejects(seal.seal("secret", "here"), /not now/);
    assert.equal(await seal.open(await seal.seal("secret", "here"), "here"), "secret");
    assert.equal(await seal.open(await seal.seal("secret", "here"), "there"), null);
  });
});
