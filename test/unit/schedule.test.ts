/**
 * Windows over a whole year in three zones whose clocks change differently: Berlin by an hour on last Sundays, New York by an hour and back on a first Sunday,
 * Lord Howe by half an hour on first Sundays. What is expected is written by hand from the zones' own rules.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ruleSchema, type Schedule } from "#core/rule";
import { dueRuns } from "#core/rule-run";
import type { RuleRecord } from "#core/rule-state";
import { excludedBy, fits, localDate, nextWindows, openWindow, scheduleProblems, windowFrom } from "#core/schedule";
import { cronerCron } from "#functions/schedule/croner-cron";

const cron = cronerCron();
const ms = (text: string) => Date.parse(text);
const iso = (at: number) => new Date(at).toISOString().replace(":00.000Z", "Z");
const minuteMs = 60_000;

function schedule(fields: Partial<Schedule>): Schedule {
  const { when } = ruleSchema.parse({
    name: "x",
    which: { names: ["a"] },
    when: { kind: "schedule", cron: "0 2 * * SUN#1", timeZone: "Europe/Berlin", ...fields },
  });
  assert.ok(when.kind === "schedule");
  return when;
}

const record = (when: Schedule): RuleRecord => ({
  name: "x",
  version: 1,
  previousSha256: null,
  sha256: "",
  at: "2026-12-01T00:00:00.000Z",
  by: "test",
  paused: false,
  deleted: false,
  rule: ruleSchema.parse({ name: "x", which: { names: ["a"] }, when }),
});

const firstSundays2027: Record<string, { opens: string[]; closes: Record<string, string> }> = {
  // +1 in winter; +2 from 28 March to 31 October: neither day is a first Sunday.
  "Europe/Berlin": {
    opens: [
      "2027-01-03T01:00Z",
      "2027-02-07T01:00Z",
      "2027-03-07T01:00Z",
      "2027-04-04T00:00Z",
      "2027-05-02T00:00Z",
      "2027-06-06T00:00Z",
      "2027-07-04T00:00Z",
      "2027-08-01T00:00Z",
      "2027-09-05T00:00Z",
      "2027-10-03T00:00Z",
      "2027-11-07T01:00Z",
      "2027-12-05T01:00Z",
    ],
    closes: { "2027-04-04T00:00Z": "2027-04-04T03:00Z" },
  },
  // -5, -4 from 14 March to 7 November, a first Sunday: at 02:00 it becomes 01:00, so 02:00 comes once, in winter time.
  "America/New_York": {
    opens: [
      "2027-01-03T07:00Z",
      "2027-02-07T07:00Z",
      "2027-03-07T07:00Z",
      "2027-04-04T06:00Z",
      "2027-05-02T06:00Z",
      "2027-06-06T06:00Z",
      "2027-07-04T06:00Z",
      "2027-08-01T06:00Z",
      "2027-09-05T06:00Z",
      "2027-10-03T06:00Z",
      "2027-11-07T07:00Z",
      "2027-12-05T07:00Z",
    ],
    closes: { "2027-11-07T07:00Z": "2027-11-07T10:00Z" },
  },
  // +11 until 4 April, a first Sunday: at 02:00 it becomes 01:30, and 02:00 comes again half an hour later, at +10:30. On 3 October, a first
  // Sunday, 02:00 becomes 02:30: the window opens then, and closes at 05:00 after two hours and a half.
  "Australia/Lord_Howe": {
    opens: [
      "2027-01-02T15:00Z",
      "2027-02-06T15:00Z",
      "2027-03-06T15:00Z",
      "2027-04-03T15:30Z",
      "2027-05-01T15:30Z",
      "2027-06-05T15:30Z",
      "2027-07-03T15:30Z",
      "2027-07-31T15:30Z",
      "2027-09-04T15:30Z",
      "2027-10-02T15:30Z",
      "2027-11-06T15:00Z",
      "2027-12-04T15:00Z",
    ],
    closes: { "2027-04-03T15:30Z": "2027-04-03T18:30Z", "2027-10-02T15:30Z": "2027-10-02T18:00Z" },
  },
};

describe("every first Sunday 02:00 to 05:00, over a year", () => {
  for (const [timeZone, { opens, closes }] of Object.entries(firstSundays2027))
    test(timeZone, () => {
      const when = schedule({ timeZone, until: "05:00" });
      const rule = record(when);
      // Every hour of the year, and every minute from half an hour before an opening to four hours after it.
      const instants = new Set<number>();
      for (let at = ms("2027-01-01T00:00Z"); at < ms("2028-01-01T00:00Z"); at += 60 * minuteMs) instants.add(at);
      for (const open of opens)
        for (let minute = -30; minute < 240; minute += 1) instants.add(ms(open) + minute * minuteMs);
      const lastRuns = new Map<string, number>();
      const runs: string[] = [];
      for (const now of [...instants].sort((one, other) => one - other)) {
        const [due, ...more] = dueRuns([rule], lastRuns, now, cron);
        assert.equal(more.length, 0);
        if (due === undefined) continue;
        assert.equal(iso(due.window.opensMs), iso(now), "it is due in the first minute of its window");
        lastRuns.set("x", due.window.opensMs);
        runs.push(iso(now));
        const expected = closes[iso(now)];
        if (expected !== undefined) assert.equal(iso(due.window.closesMs), expected);
      }
      assert.deepEqual(runs, opens);
    });

  test("a timer that slept through the opening opens late, one that slept through the window does not", () => {
    const rule = record(schedule({ window: "3h" }));
    const due = (now: string) => dueRuns([rule], new Map(), ms(now), cron).map(({ window }) => iso(window.opensMs));
    assert.deepEqual(due("2027-02-07T00:59Z"), []);
    assert.deepEqual(due("2027-02-07T03:59Z"), ["2027-02-07T01:00Z"]);
    assert.deepEqual(due("2027-02-07T04:00Z"), []);
  });

  test("paused and deleted rules, and one that was written inside its window, are not due", () => {
    const rule = record(schedule({ window: "3h" }));
    const now = ms("2027-02-07T02:00Z");
    assert.equal(dueRuns([rule], new Map(), now, cron).length, 1);
    for (const change of [{ paused: true }, { deleted: true }, { at: "2027-02-07T01:30:00.000Z" }])
      assert.deepEqual(dueRuns([{ ...rule, ...change }], new Map(), now, cron), []);
    // Also one that has run before: an edit of today is no reason to empty a rack now.
    const ranIn = new Map([[rule.rule.name, ms("2027-01-03T01:00Z")]]);
    assert.equal(dueRuns([rule], ranIn, now, cron).length, 1);
    assert.deepEqual(dueRuns([{ ...rule, at: "2027-02-07T01:30:00.000Z" }], ranIn, now, cron), []);
  });
});

describe("clocks that change", () => {
  const opening = (expression: string, timeZone: string, after: string) =>
    iso(cron.next(expression, timeZone, ms(after)) ?? 0);

  test("an hour that does not exist: the first instant that does", () => {
    assert.equal(opening("30 2 * * *", "Europe/Berlin", "2027-03-27T12:00Z"), "2027-03-28T01:00Z");
    assert.equal(opening("30 2 * * *", "America/New_York", "2027-03-13T12:00Z"), "2027-03-14T07:00Z");
    assert.equal(opening("10 2 * * *", "Australia/Lord_Howe", "2027-10-02T12:00Z"), "2027-10-02T15:30Z");
  });

  test("an hour that comes twice: the first time, and once", () => {
    assert.equal(opening("30 2 * * *", "Europe/Berlin", "2027-10-30T12:00Z"), "2027-10-31T00:30Z");
    assert.equal(opening("30 2 * * *", "Europe/Berlin", "2027-10-31T00:30Z"), "2027-11-01T01:30Z");
    assert.equal(opening("30 1 * * *", "America/New_York", "2027-11-06T12:00Z"), "2027-11-07T05:30Z");
    assert.equal(opening("30 1 * * *", "America/New_York", "2027-11-07T05:30Z"), "2027-11-08T06:30Z");
    assert.equal(opening("45 1 * * *", "Australia/Lord_Howe", "2027-04-03T12:00Z"), "2027-04-03T14:45Z");
    assert.equal(opening("45 1 * * *", "Australia/Lord_Howe", "2027-04-03T14:45Z"), "2027-04-04T15:15Z");
  });

  test("`window` is time that passes, `until` is the clock on the wall", () => {
    const span = (fields: Partial<Schedule>, opens: string) => {
      const window = windowFrom(schedule({ cron: "0 1 * * *", ...fields }), ms(opens), cron);
      return (window.closesMs - window.opensMs) / minuteMs;
    };
    // 01:00 to 05:00 in Berlin: an hour less in spring, an hour more in autumn.
    assert.equal(span({ until: "05:00" }, "2027-03-28T00:00Z"), 180);
    assert.equal(span({ until: "05:00" }, "2027-10-30T23:00Z"), 300);
    assert.equal(span({ until: "05:00" }, "2027-06-01T23:00Z"), 240);
    assert.equal(span({ window: "4h" }, "2027-03-28T00:00Z"), 240);
    assert.equal(span({ window: "4h" }, "2027-10-30T23:00Z"), 240);
    // Past midnight.
    assert.equal(span({ until: "00:30" }, "2027-06-01T23:00Z"), 23 * 60 + 30);
  });

  test("the day on the wall", () => {
    assert.equal(localDate("Europe/Berlin", ms("2026-12-31T22:59Z")), "2026-12-31");
    assert.equal(localDate("Europe/Berlin", ms("2026-12-31T23:00Z")), "2027-01-01");
    assert.equal(localDate("Australia/Lord_Howe", ms("2027-10-02T12:59Z")), "2027-10-02");
    assert.equal(localDate("Australia/Lord_Howe", ms("2027-10-02T13:30Z")), "2027-10-03");
  });
});

describe("exclusions", () => {
  const exclude = { dates: ["2027-05-02"], ranges: [{ from: "2027-12-01", to: "2028-01-06" }] };
  const when = schedule({ window: "3h", exclude });

  test("a day and a range open no window, by the days of the zone", () => {
    const opens = nextWindows(when, ms("2027-04-01T00:00Z"), 8, cron).map(({ opensMs }) => iso(opensMs));
    assert.deepEqual(opens, [
      "2027-04-04T00:00Z",
      "2027-06-06T00:00Z",
      "2027-07-04T00:00Z",
      "2027-08-01T00:00Z",
      "2027-09-05T00:00Z",
      "2027-10-03T00:00Z",
      "2027-11-07T01:00Z",
      "2028-02-06T01:00Z",
    ]);
    assert.equal(openWindow(when, ms("2027-05-02T01:00Z"), cron), null);
    assert.deepEqual(dueRuns([record(when)], new Map(), ms("2027-05-02T01:00Z"), cron), []);
  });

  test("an instant on an excluded day says so", () => {
    assert.equal(excludedBy(when, ms("2027-05-01T21:59Z")), null);
    assert.equal(excludedBy(when, ms("2027-05-01T22:00Z")), "2027-05-02 is excluded");
    assert.match(excludedBy(when, ms("2028-01-06T22:00Z")) ?? "", /2027-12-01 to 2028-01-06/);
    assert.equal(excludedBy(when, ms("2028-01-06T23:00Z")), null);
  });
});

describe("what fits", () => {
  const window = { opensMs: ms("2027-02-07T01:00Z"), closesMs: ms("2027-02-07T04:00Z") };
  test("only inside the window, and only what ends in it", () => {
    const mayStart = (now: string, minutes: number) => fits(window, ms(now), minutes * minuteMs);
    assert.equal(mayStart("2027-02-07T00:59Z", 1), false);
    assert.equal(mayStart("2027-02-07T01:00Z", 180), true);
    assert.equal(mayStart("2027-02-07T01:00Z", 181), false);
    assert.equal(mayStart("2027-02-07T03:59Z", 1), true);
    assert.equal(mayStart("2027-02-07T04:00Z", 0), false);
  });
});

describe("a schedule that cannot be meant", () => {
  const problems = (fields: Partial<Schedule>) =>
    scheduleProblems(schedule(fields), ms("2027-01-01T00:00Z"), cron).join("; ");
  const cases: [string, Partial<Schedule>, RegExp][] = [
    ["neither window nor until", {}, /either `window` or `until`/],
    ["both", { window: "3h", until: "05:00" }, /either `window` or `until`/],
    ["a window of eight days", { window: "8d" }, /`when.window`/],
    ["windows that overlap", { cron: "0 * * * *", window: "2h" }, /before the one before it has closed/],
    ["an unknown zone", { timeZone: "Mars/Olympus", window: "1h" }, /`when.timeZone`/],
    ["a day that never comes", { cron: "0 2 30 2 *", window: "1h" }, /never comes/],
    ["a weekday that is none", { cron: "0 2 * * FOO", window: "1h" }, /`when.cron`.*FOO/],
    ["a minute that is none", { cron: "61 2 * * *", window: "1h" }, /`when.cron`/],
    [
      "a range backwards",
      { window: "1h", exclude: { dates: [], ranges: [{ from: "2027-02-02", to: "2027-02-01" }] } },
      /ends before it begins/,
    ],
    [
      "a day that does not exist",
      { window: "1h", exclude: { dates: ["2027-02-30"], ranges: [] } },
      /there is no 2027-02-30/,
    ],
  ];
  for (const [name, fields, pattern] of cases) test(name, () => assert.match(problems(fields), pattern));
  test("a good one has none", () => assert.equal(problems({ until: "05:00" }), ""));
});
