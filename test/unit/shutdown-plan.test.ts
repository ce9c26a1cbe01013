/** What a shim decides about its host's shutdown, step by step; and what it reads in logind's answers. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { shutdownBudgetMsMax, shutdownIdSchema, upMessageSchema } from "#protocol/message";
import { shimOptions } from "#shim/command-line";
import { LogindAbsentError, shuttingOf } from "#shim/logind";
import {
  budgetLeftMs,
  lockReason,
  type Occupancy,
  planShutdown,
  quietPlan,
  type ShutdownPlan,
  type Shutting,
} from "#shim/shutdown-plan";

const startMs = Date.parse("2027-02-01T00:00:00.000Z");
const minuteMs = 60_000;
const budgetMs = 15 * minuteMs;
const quiet: Shutting = { preparing: false, kind: null, scheduledMs: null, delayMsMax: 30 * minuteMs };
const empty: Occupancy = { domains: [], journals: 0 };
const busy: Occupancy = { domains: ["web1"], journals: 0 };

const step = (
  plan: ShutdownPlan,
  afterMs: number,
  seen: { occupancy?: Occupancy; shutting?: Partial<Shutting>; budgetMs?: number } = {},
) =>
  planShutdown(plan, {
    nowMs: startMs + afterMs,
    occupancy: seen.occupancy ?? busy,
    shutting: { ...quiet, ...seen.shutting },
    budgetMs: seen.budgetMs ?? budgetMs,
  });

describe("the locks", () => {
  test("are held while something is here and nobody has asked", () => {
    assert.equal(step(quietPlan, 0).plan.locks, true);
    assert.equal(step(quietPlan, 0, { occupancy: empty }).plan.locks, false);
    assert.equal(step(quietPlan, 0, { occupancy: { domains: [], journals: 1 } }).plan.locks, true);
    assert.equal(step(quietPlan, 0, { budgetMs: 0 }).plan.locks, false);
  });

  test("are held over a shutdown that has come until the budget is over, and that is said once", () => {
    const asked = step(quietPlan, 0, { shutting: { preparing: true, kind: "reboot" } });
    assert.equal(asked.requested?.untilMs, startMs + budgetMs);
    assert.equal(asked.plan.locks, true);
    const before = step(asked.plan, budgetMs - 1, { shutting: { preparing: true, kind: "reboot" } });
    assert.deepEqual([before.plan.locks, before.givenUp, before.requested], [true, null, null]);
    const over = step(before.plan, budgetMs, { shutting: { preparing: true, kind: "reboot" } });
    assert.equal(over.plan.locks, false);
    assert.match(over.givenUp ?? "", /^the budget is over after 900 s and 1 domain runs here \(web1\)/);
    assert.equal(step(over.plan, budgetMs + 1, { shutting: { preparing: true } }).givenUp, null);
  });

  test("are given back when nothing is here any more, and nothing was given up", () => {
    const asked = step(quietPlan, 0, { shutting: { preparing: true } });
    const left = step(asked.plan, minuteMs, { occupancy: empty, shutting: { preparing: true } });
    assert.deepEqual([left.plan.locks, left.givenUp], [false, null]);
  });

  test("are taken again when the shutdown that they were given up for is taken back", () => {
    const asked = step(quietPlan, 0, { shutting: { preparing: true } });
    const over = step(asked.plan, budgetMs, { shutting: { preparing: true } });
    const back = step(over.plan, budgetMs + 1);
    assert.equal(back.withdrawn?.requestId, asked.requested?.requestId);
    assert.equal(back.plan.locks, true);
  });
});

describe("requests", () => {
  test("one that is scheduled has the time until then, and is the same when it comes due", () => {
    const atMs = startMs + 60 * minuteMs;
    const scheduled = step(quietPlan, 0, { shutting: { scheduledMs: atMs, kind: "poweroff" } });
    assert.ok(scheduled.requested);
    assert.equal(budgetLeftMs(scheduled.requested, startMs), 75 * minuteMs);
    assert.equal(scheduled.requested.requestId, `at-${atMs}-poweroff`);
    const due = step(scheduled.plan, 60 * minuteMs, {
      shutting: { preparing: true, scheduledMs: atMs, kind: "poweroff" },
    });
    assert.deepEqual([due.requested, due.withdrawn], [null, null]);
    assert.equal(due.plan.request?.untilMs, atMs + budgetMs);
  });

  test("logind's own bound counts where it is shorter than the budget", () => {
    const asked = step(quietPlan, 0, { shutting: { preparing: true, delayMsMax: 5_000 } });
    assert.ok(asked.requested);
    assert.equal(budgetLeftMs(asked.requested, startMs), 5_000);
  });

  test("one that comes before the scheduled one is another, and that one is withdrawn", () => {
    const scheduledMs = startMs + 60 * minuteMs;
    const scheduled = step(quietPlan, 0, { shutting: { scheduledMs, kind: "poweroff" } });
    const early = step(scheduled.plan, minuteMs, { shutting: { preparing: true, scheduledMs, kind: "reboot" } });
    assert.equal(early.requested?.requestId, `now-${startMs + minuteMs}`);
    assert.equal(early.withdrawn?.requestId, `at-${scheduledMs}-poweroff`);
  });

  test("scheduled anew is another; cancelled is withdrawn; the same after a restart is the same", () => {
    const scheduledMs = startMs + 60 * minuteMs;
    const one = step(quietPlan, 0, { shutting: { scheduledMs, kind: "reboot" } });
    const other = step(one.plan, 1, { shutting: { scheduledMs: scheduledMs + minuteMs, kind: "reboot" } });
    assert.ok(other.requested && other.withdrawn);
    assert.notEqual(other.requested.requestId, other.withdrawn.requestId);
    assert.equal(step(other.plan, 2).withdrawn?.requestId, other.requested.requestId);
    const restarted = step(quietPlan, 5_000, { shutting: { scheduledMs, kind: "reboot" } });
    assert.equal(restarted.requested?.requestId, one.requested?.requestId);
  });

  test("scheduled for the same time after it was cancelled is another: who heard of the withdrawal must hear of it", () => {
    const shutting = { scheduledMs: startMs + 60 * minuteMs, kind: "reboot" };
    const ids = new Set<string | undefined>();
    let { plan } = step(quietPlan, 0);
    for (let times = 0; times < 30; times += 1) {
      const asked = step(plan, 2 * times, { shutting });
      ids.add(asked.requested?.requestId);
      assert.ok(shutdownIdSchema.safeParse(asked.requested?.requestId).success);
      const stands = step(asked.plan, 2 * times + 1, { shutting });
      assert.deepEqual([stands.requested, stands.withdrawn], [null, null]);
      ({ plan } = step(stands.plan, 2 * times + 1));
    }
    assert.equal(ids.size, 30);
  });

  test("a host without domains tells of its shutdown as well", () => {
    assert.ok(step(quietPlan, 0, { occupancy: empty, shutting: { preparing: true } }).requested);
  });

  const kinds = fc.constantFrom(null, "reboot", "poweroff", "soft-reboot", "X\u0000y".repeat(20));
  const moment = fc.record({
    passMs: fc.integer({ min: 0, max: 20 * minuteMs }),
    preparing: fc.boolean(),
    kind: kinds,
    scheduledMs: fc.option(fc.integer({ min: startMs, max: startMs + 60 * 86_400_000 })),
    delayMsMax: fc.constantFrom(5_000, 15 * minuteMs),
    isOccupied: fc.boolean(),
  });

  test("whatever comes: every request has an id that may be said, is withdrawn once at most, and none is held past its budget", () => {
    fc.assert(
      fc.property(fc.array(moment, { maxLength: 30 }), fc.constantFrom(0, 1_000, budgetMs), (moments, budget) => {
        let plan = quietPlan;
        let nowMs = startMs;
        const open: string[] = [];
        for (const { passMs, isOccupied, ...shutting } of moments) {
          nowMs += passMs;
          const change = planShutdown(plan, {
            nowMs,
            occupancy: isOccupied ? busy : empty,
            shutting,
            budgetMs: budget,
          });
          if (change.withdrawn !== null) assert.equal(open.pop(), change.withdrawn.requestId);
          if (change.requested !== null) {
            const { requestId, kind } = change.requested;
            assert.ok(shutdownIdSchema.safeParse(requestId).success, requestId);
            open.push(requestId);
            const left = budgetLeftMs(change.requested, nowMs);
            assert.ok(left >= 0 && left <= shutdownBudgetMsMax);
            const at = new Date(change.requested.seenMs).toISOString();
            const said = {
              type: "shutdown",
              requestId,
              state: "requested",
              kind: kind?.slice(0, 32) ?? null,
              at,
              budgetMs: left,
            };
            assert.ok(upMessageSchema.safeParse(said).success);
          }
          ({ plan } = change);
          assert.deepEqual(open, plan.request === null ? [] : [plan.request.requestId]);
          if (plan.locks)
            assert.ok(isOccupied && budget > 0 && (plan.request === null || nowMs < plan.request.untilMs));
          if (isOccupied && budget > 0 && plan.request === null) assert.ok(plan.locks);
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe("what the person reads", () => {
  test("names some domains, counts the rest, and says the command", () => {
    const domains = ["a", "b", "c", "d", "e"];
    assert.equal(
      lockReason({ domains, journals: 2 }, "host1"),
      "5 domains run here (a, b, c and 2 more) and 2 migrations are not over. Move them first: vmferry evacuate host1",
    );
  });

  test("who is held by what is not over only, a stranded one too, is told where that is seen: nothing is left to be moved", () => {
    assert.equal(
      lockReason({ domains: [], journals: 1 }, "host1"),
      "1 migration is not over. See what it waits for: vmferry migrations",
    );
    assert.equal(
      lockReason({ domains: [], journals: 2 }, "host1"),
      "2 migrations are not over. See what they wait for: vmferry migrations",
    );
  });

  test("no name moves a cursor or fills a screen", () => {
    const reason = lockReason({ domains: ["a\u001b[2Jb\nc", "x".repeat(500)], journals: 0 }, "host1");
    assert.match(reason, /\(a\?\[2Jb\?c, x{60}\)/);
  });
});

describe("logind's answers", () => {
  const answer = (preparing: unknown, kind: unknown, micros: number | string, delay: unknown = 5_000_000) =>
    [
      JSON.stringify({ type: "b", data: preparing }),
      `{"type":"(st)","data":[${JSON.stringify(kind)},${micros}]}`,
      JSON.stringify({ type: "t", data: delay }),
    ].join("\n");
  test("are read as its versions give them", () => {
    const calm = { preparing: false, kind: null, scheduledMs: null, delayMsMax: 5_000 };
    // 252 says never by the largest number that there is, others by none.
    assert.deepEqual(shuttingOf(answer(false, "", "18446744073709551615")), calm);
    assert.deepEqual(shuttingOf(answer(false, "", 0)), calm);
    const scheduled = shuttingOf(answer(false, "reboot", 1_795_425_749_000_000));
    assert.deepEqual(scheduled, { ...calm, kind: "reboot", scheduledMs: 1_795_425_749_000 });
    assert.deepEqual(shuttingOf(answer(true, "reboot", 0)), { ...calm, preparing: true, kind: "reboot" });
    assert.deepEqual(shuttingOf(answer(false, "dry-reboot", 1_795_425_749_000_000)), calm);
  });
  test("that are none are told as no logind", () => {
    for (const text of ["", "{}", "no JSON", answer("yes", "", 0), answer(false, 1, 0), answer(false, "", 0, "x")])
      assert.throws(() => shuttingOf(text), LogindAbsentError);
  });
});

test("the options of the command line", () => {
  const of = (values: Record<string, string>, env: Record<string, string> = {}) => {
    const { shutdownBudgetMs, shutdownLock } = shimOptions({ url: "http://x", ...values }, env);
    return [shutdownBudgetMs, shutdownLock];
  };
  assert.deepEqual(of({}), [undefined, undefined]);
  assert.deepEqual(of({ "shutdown-budget": "0" }), [0, undefined]);
  assert.deepEqual(of({ "shutdown-budget": "90s", "shutdown-lock": "block-weak" }), [90_000, "block-weak"]);
  assert.deepEqual(of({}, { VMFERRY_SHUTDOWN_BUDGET: "2h", VMFERRY_SHUTDOWN_LOCK: "block" }), [7_200_000, "block"]);
  for (const wrong of ["5", "m", "15 m", "25h", "-1m", "1.5h", "99999s9"])
    assert.throws(() => of({ "shutdown-budget": wrong }), /--shutdown-budget takes a time/);
  assert.throws(() => of({ "shutdown-lock": "delay" }), /--shutdown-lock is block or block-weak/);
});
