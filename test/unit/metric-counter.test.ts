/**
 * Counting by several at once: timers and scrapes of different processes, in any order of their requests, with answers that are lost and writers whose clocks
 * differ. Whatever happens each event is counted once, and what a scrape tells never goes back.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { positionAt } from "#core/chronicle-position";
import { chronicleSettleMs } from "#core/limits";
import { totalsText } from "#core/metric-text";
import { fold, type MetricRecord, type MetricTotals, noTotals } from "#core/metric-totals";
import { createMetricCounter, type MetricsView } from "#functions/metric-counter";
import type { MetricStore } from "#functions/ports";
import { Fault } from "#protocol/fault";
import { MemoryChronicle } from "#test/fake/memory-chronicle";
import { MemoryMetrics } from "#test/fake/memory-metrics";
import { anyMetricEvent, metricEvent } from "#test/fake/metric-events";
import { parsedMetrics, risingValues } from "#test/fake/metric-parser";

const beginMs = Date.parse("2026-11-01T00:00:00.000Z");
const bounds = { rowsMax: 3, timerPagesMax: 2, scrapePagesMax: 1 };
const log = { write: () => {} };

/** A chronicle whose writers' clocks are wrong by what the test says, and a clock that only the test moves. */
function world() {
  let nowMs = beginMs;
  let skewMs = 0;
  let serial = 0;
  const clock = { now: () => new Date(nowMs).toISOString() };
  const ids = { ulid: () => `${positionAt(nowMs + skewMs)}${String(++serial).padStart(16, "0")}` };
  const chronicle = new MemoryChronicle(ids);
  return {
    clock,
    chronicle,
    metrics: new MemoryMetrics(),
    pass: (ms: number) => (nowMs += ms),
    async append(event = metricEvent("migration.started"), skew = 0) {
      skewMs = skew;
      await chronicle.append(event);
    },
    entries: () => chronicle.after({ at: null, until: null, limit: 10_000 }),
  };
}

const lost = () =>
  new Fault({ code: "store.unreachable", cause: "The answer was lost.", action: "Wait.", retry: "safe" });

type Outcome = "answered" | "lost" | "refused";
type Wrap = <A extends unknown[], R>(call: (...args: A) => Promise<R>) => (...args: A) => Promise<R>;

/** The store with outcomes of its writes; `wrap` puts each request where the test decides when it is done. */
function faulty(
  store: MemoryMetrics,
  outcome: () => Outcome,
  wrap: Wrap,
  commit: MetricStore["commit"] = (record) => store.commit(record),
): Pick<MetricStore, "load" | "commit"> {
  return {
    load: wrap(() => store.load()),
    commit: wrap(async (record: MetricRecord) => {
      const happens = outcome();
      if (happens === "refused") throw lost();
      const result = await commit(record);
      if (happens === "lost") throw lost();
      return result;
    }),
  };
}

type Action =
  | { do: "append"; skewMs: number; events: ReturnType<typeof metricEvent>[] }
  | { do: "pass"; ms: number }
  | { do: "tick" | "view"; by: number }
  | { do: "serve"; requests: number };

const action: fc.Arbitrary<Action> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("append" as const),
      skewMs: fc.integer({ min: 1 - chronicleSettleMs, max: 5_000 }),
      events: fc.array(anyMetricEvent, { minLength: 1, maxLength: 6 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ do: fc.constant("pass" as const), ms: fc.constantFrom(1, 3_000, 20_000) }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ do: fc.constantFrom("tick" as const, "view" as const), by: fc.nat(2) }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constant("serve" as const), requests: fc.integer({ min: 1, max: 4 }) }) },
);

const outcomes = fc.array(fc.constantFrom<Outcome>("answered", "answered", "lost", "refused"), { maxLength: 12 });

/** What is told of totals; nothing while they are not whole. */
const toldOf = ({ record }: MetricsView): Map<string, number> | null =>
  record.whole ? risingValues(parsedMetrics(totalsText(record.totals))) : null;

async function play(
  scheduler: fc.Scheduler,
  actions: readonly Action[],
  faults: readonly Outcome[],
  commit?: (store: MemoryMetrics) => MetricStore["commit"],
): Promise<void> {
  const { clock, chronicle, metrics, pass, append, entries } = world();
  let step = 0;
  const left = [...faults];
  const wrap: Wrap = (call) => {
    // A request that fails is done as well; the scheduler itself must not fail by it.
    const scheduled = scheduler.scheduleFunction((...args: Parameters<typeof call>) =>
      call(...args).then(
        (value) => ({ ok: true as const, value }),
        (error: unknown) => ({ ok: false as const, error }),
      ),
    );
    return async (...args) => {
      const done = await scheduled(...args);
      if (!done.ok) throw done.error;
      return done.value;
    };
  };
  const counters = [0, 1, 2].map(() =>
    createMetricCounter(
      {
        clock,
        log,
        chronicle: { after: wrap((page) => chronicle.after(page)) },
        metrics: faulty(metrics, () => left.shift() ?? "answered", wrap, commit?.(metrics)),
      },
      bounds,
    ),
  );
  await createMetricCounter({ clock, log, chronicle, metrics }).tick();
  const views: { from: number; to: number; view: MetricsView }[] = [];
  const running: Promise<void>[] = [];
  const begin = (work: () => Promise<void>) =>
    running.push(
      work().catch((error: unknown) => {
        if (!(error instanceof Fault)) throw error;
      }),
    );
  for (const each of actions) {
    step += 1;
    if (each.do === "append") for (const event of each.events) await append(event, each.skewMs);
    else if (each.do === "pass") pass(each.ms);
    else if (each.do === "serve")
      for (let request = 0; request < each.requests && scheduler.count() > 0; request += 1) {
        await scheduler.waitNext(1);
        // What follows from its answer is asked for in later turns.
        await new Promise((resolve) => setImmediate(resolve));
        step += 1;
      }
    else {
      const counter = counters[each.by];
      assert.ok(counter);
      if (each.do === "tick") begin(() => counter.tick());
      else {
        const from = step;
        begin(async () => {
          const view = await counter.view();
          views.push({ from, to: step, view });
        });
      }
    }
  }
  await scheduler.waitFor(Promise.all(running));

  const all = await entries();
  const exactly = (cursor: string | null): MetricTotals =>
    fold(
      noTotals(),
      all.filter(({ at }) => cursor !== null && at <= cursor),
    );
  for (const { view } of views) assert.deepEqual(view.record.totals, exactly(view.record.cursor));
  const told = views.map(({ from, to, view }) => ({ from, to, values: toldOf(view) }));
  for (const earlier of told)
    for (const later of told) {
      if (later.from <= earlier.to) continue;
      for (const [key, value] of earlier.values ?? [])
        assert.ok((later.values?.get(key) ?? -1) >= value, `${key} went back`);
    }

  // The faults are over and time goes on: everything is counted in a bounded number of minutes.
  const healed = createMetricCounter({ clock, log, chronicle, metrics }, bounds);
  pass(60_000);
  for (let minute = 0; minute < all.length; minute += 1) await healed.tick();
  const { record } = await healed.view();
  assert.deepEqual(record.totals, fold(noTotals(), all));
  assert.equal(record.whole, true);
}

describe("counted by several at once", () => {
  const property = (commit?: (store: MemoryMetrics) => MetricStore["commit"]) =>
    fc.asyncProperty(
      fc.scheduler(),
      fc.array(action, { minLength: 15, maxLength: 50 }),
      outcomes,
      (s, actions, faults) => play(s, actions, faults, commit),
    );

  test("each event is counted once, and what is told never goes back", async () => {
    await fc.assert(property(), { numRuns: 100 });
  });

  test("a store that writes whatever the version is makes it fail", async () => {
    /** The last writer wins, whatever stood there. */
    const blind = (store: MemoryMetrics) => async (record: MetricRecord) => {
      const version = (await store.load()).record?.version ?? 0;
      return store.commit({ ...record, version: version + 1 });
    };
    // The same runs each time: this is about what the property can see, not about luck.
    await assert.rejects(fc.assert(property(blind), { numRuns: 500, endOnFailure: true, seed: 1 }), (error) => {
      assert.ok(error instanceof Error && error.cause instanceof assert.AssertionError);
      assert.match(error.cause.message, /went back/);
      return true;
    });
  });
});

describe("a long history", () => {
  test("is counted over several minutes, and told when it is whole", async () => {
    const { clock, chronicle, metrics, append, pass } = world();
    for (let event = 0; event < 20; event += 1) await append();
    pass(60_000);
    const counter = createMetricCounter({ clock, log, chronicle, metrics }, bounds);
    const seen: (number | null)[] = [];
    for (let minute = 0; minute < 4; minute += 1) {
      await counter.tick();
      const { record } = await metrics.load();
      seen.push(record?.whole === true ? (record.totals.counters.migrationsStarted?.[""] ?? 0) : null);
    }
    assert.deepEqual(seen, [null, null, null, 20]);
  });

  test("says how far it is", async () => {
    const { clock, chronicle, metrics, append, pass } = world();
    for (let event = 0; event < 5; event += 1) {
      await append();
      pass(1_000);
    }
    pass(60_000);
    const counter = createMetricCounter({ clock, log, chronicle, metrics }, bounds);
    assert.equal((await counter.view()).countedMs, beginMs + 2_000);
    assert.equal((await counter.view()).countedMs, Date.parse(clock.now()) - chronicleSettleMs);
  });
});

describe("what it costs", () => {
  test("an idle fleet writes nothing, and a scrape soon after another does not look again", async () => {
    const { clock, chronicle, metrics, append, pass } = world();
    let looks = 0;
    const after: typeof chronicle.after = (page) => {
      looks += 1;
      return chronicle.after(page);
    };
    const counter = createMetricCounter({ clock, log, chronicle: { after }, metrics });
    await append();
    pass(20_000);
    await counter.view();
    assert.deepEqual([looks, metrics.writes], [1, 1]);
    for (let scrape = 0; scrape < 5; scrape += 1) {
      pass(1_000);
      await counter.view();
    }
    assert.deepEqual([looks, metrics.writes], [1, 1]);
    for (let minute = 0; minute < 10; minute += 1) {
      pass(60_000);
      await counter.tick();
      await counter.view();
    }
    assert.deepEqual([looks, metrics.writes], [11, 1]);
  });

  test("what may still be joined by something older is not counted yet", async () => {
    const { clock, chronicle, metrics, append, pass } = world();
    const counter = createMetricCounter({ clock, log, chronicle, metrics });
    await append();
    pass(chronicleSettleMs);
    await counter.tick();
    assert.equal((await metrics.load()).record?.cursor, null);
    await append(metricEvent("host.enrolled"), 1 - chronicleSettleMs);
    pass(1);
    await counter.tick();
    pass(1);
    await counter.tick();
    const { record } = await metrics.load();
    assert.deepEqual(record?.totals.counters, { migrationsStarted: { "": 1 }, hostsEnrolled: { "": 1 } });
  });
});
