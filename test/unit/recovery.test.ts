/** The recovery table: what it must never say, whatever else is changed in it; and its page and its golden copy. */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { describe, test } from "node:test";
import { ShutoffReason } from "#libvirt/constants";
import type { CommandKind } from "#protocol/command";
import { destinationRecovery } from "#shim/destination-recovery";
import { type Found, foundOf, founds, type SourceMoment, sourceMoment } from "#shim/moment";
import type { JournalEntry } from "#shim/ports";
import type { Probe } from "#shim/probe";
import { overdue, type Row, strandFault } from "#shim/recovery";
import { sourceRecovery } from "#shim/source-recovery";
import { make } from "#test/fake/shim-process";
import { type Action, recoveryPage, recoveryTable } from "#test/golden/recovery-page";

interface Told {
  side: "source" | "destination";
  moment: string;
  found: Found;
  row: Row<Action>;
}

const rowsOf = (side: Told["side"], table: Readonly<Record<string, Readonly<Record<Found, Row<Action>>>>>): Told[] =>
  Object.entries(table).flatMap(([moment, rows]) =>
    (Object.keys(founds) as Found[]).map((found) => ({ side, moment, found, row: rows[found] })),
  );
const rows = [...rowsOf("source", sourceRecovery), ...rowsOf("destination", destinationRecovery)];
const doing = (action: Action) =>
  rows.filter(({ row }) => row.do === action || (row.do !== "strand" && row.otherwise === action));
const named = (told: readonly Told[]) => new Set(told.map(({ moment }) => moment));

describe("what no row may say", () => {
  test("I2: only a receipt that nothing is over there resumes, and only a pause of the migration's is ended", () => {
    assert.deepEqual(named(doing("takeBack")), new Set(["takingBack"]));
    for (const { found } of doing("takeBack")) assert.match(found, /^(migrationPaused|outgoingPaused)$/);
  });

  test("I1, I8: a copy is given up only by a receipt, and never one that runs or arrives", () => {
    assert.deepEqual(named(doing("giveUp")), new Set(["givingUp"]));
    for (const { found } of doing("giveUp")) assert.doesNotMatch(found, /^(running|outgoing|otherJob|incoming)$/);
  });

  test("I1: a result is not handed over while the source runs by its owner's hand", () => {
    for (const found of ["running", "outgoing", "otherJob"] as const)
      assert.equal(sourceRecovery.performed[found].do, "withdraw");
  });

  test("I3: records that were taken away are given back whatever the domain does, unless it is gone", () => {
    for (const moment of ["stripping", "stripped"] as const)
      for (const found of Object.keys(founds) as Found[])
        assert.equal(sourceRecovery[moment][found].do, found === "absent" ? "refuse" : "completeTree");
  });

  test("I8: on the destination only what has never run is ended, and only what does not run is swept", () => {
    for (const { moment, found } of doing("endIncoming"))
      assert.match(
        found,
        moment === "sweepingArrival"
          ? /^(inactive|endedItself|incoming|migrationPaused)$/
          : /^(incoming|migrationPaused)$/,
      );
    for (const { found } of [...doing("sweep"), ...doing("sweepIfProven")])
      assert.match(found, /^(inactive|endedItself)$/);
    for (const { found } of doing("stateDestroyed")) assert.match(found, /^(absent|inactive|endedItself)$/);
  });

  test("I1: a guest that may have run on the destination is never said to have been destroyed there", () => {
    // libvirt gives the same reason for an incoming QEMU that died before it ran: without Finish's own answer nobody knows.
    const { finishing, finishingCut, finishingBooted, finishingRefused } = destinationRecovery;
    for (const decided of [finishing, finishingCut, finishingBooted]) assert.equal(decided.endedItself.do, "strand");
    assert.equal(finishingBooted.inactive.do, "strand");
    assert.equal(finishingRefused.endedItself.do, "stateDestroyed");
  });

  test("what is looked at again comes to an end", () => {
    for (const { side, moment, found, row } of [...doing("lookAgain"), ...doing("abortJob")]) {
      assert.ok(
        row.do !== "strand" && row.otherwise !== undefined && (row.patienceMs ?? 0) > 0,
        `${side} ${moment} ${found}`,
      );
      assert.equal(overdue(row, (row.patienceMs ?? 0) - 1), null);
      assert.equal(overdue(row, row.patienceMs ?? 0), row.otherwise);
    }
  });

  test("a stranded row names a command to type, and its fault the facts of both sides", () => {
    for (const { side, found, row } of rows) {
      if (row.do !== "strand") continue;
      assert.match(row.action, /`(virsh|vmferry) [^`]+`/);
      const domain = { uuid: "11111111-2222-3333-4444-555555555555", name: "web" };
      const about = { moment: "givingUp" as SourceMoment, found, domain, migrationId: "m_1", history: [] };
      const fault = strandFault(row, { code: "confirm.failed", side, ...about });
      assert.equal(fault.retry, "person");
      assert.ok(fault.cause_.includes(founds[found]));
      assert.match(fault.cause_, side === "source" ? /The destination/ : /The source/);
      assert.doesNotMatch(fault.action, /UUID|NAME|MIGRATION/);
    }
  });
});

describe("a moment is read from the journal", () => {
  const milestone = (name: string, data = {}): JournalEntry => ({
    type: "milestone",
    at: "",
    commandId: "",
    name,
    data,
  });
  const intent = (kind: CommandKind): JournalEntry => ({ type: "intent", at: "", command: make(kind) });
  const receipt = { outcome: "destroyed", evidence: "finish", at: "x" };
  const course: readonly (readonly [JournalEntry, SourceMoment])[] = [
    [intent("export"), "untouched"],
    [intent("begin"), "begun"],
    [milestone("stripping"), "stripping"],
    [milestone("stripped"), "stripped"],
    [milestone("redefined"), "begun"],
    [intent("perform"), "uncalled"],
    [milestone("performing"), "performing"],
    [milestone("handing", { outcome: "performed", cookie: "QQ==" }), "performed"],
    [milestone("handing", { outcome: "failed", cookie: null }), "performing"],
    [milestone("receipt", { receipt, cookie: null }), "takingBack"],
    [milestone("confirmed", { outcome: "destroyed", source: "running" }), "takenBack"],
  ];

  test("line by line, through one migration that goes back", () => {
    const history: JournalEntry[] = [];
    for (const [entry, moment] of course) {
      history.push(entry);
      const happened = (name: string) => history.some((each) => each.type === "milestone" && each.name === name);
      assert.equal(sourceMoment({ history, happened }, { kind: "perform" }), moment);
    }
  });
});

test("everything that a probe can say is found as one thing", () => {
  const dom = { name: "web", uuid: "", id: 1 };
  const of = (given: Partial<Extract<Probe, { present: true }>>) =>
    foundOf({
      ...{ present: true, dom, state: "running", reason: 0, active: true, persistent: true, job: "none" },
      ...{ pausedByMigration: false },
      ...given,
    });
  const paused = { state: "paused", pausedByMigration: true } as const;
  assert.deepEqual(
    [
      foundOf({ present: false }),
      of({ active: false, state: "shutoff" }),
      of({ active: false, state: "shutoff", reason: ShutoffReason.SHUTDOWN }),
      of({}),
      of({ state: "paused" }),
      of(paused),
      of({ job: "outgoing" }),
      of({ ...paused, job: "outgoing" }),
      of({ state: "paused", job: "outgoing" }),
      of({ ...paused, job: "incoming" }),
      of({ job: "other" }),
    ],
    Object.keys(founds),
  );
});

describe("what is written of it", () => {
  for (const [file, text] of [
    ["golden/recovery-table.txt", recoveryTable()],
    ["../docs/recovery.md", recoveryPage()],
  ] as const)
    test(`${file} is what the table says`, () => {
      const path = new URL(`../${file}`, import.meta.url);
      if (process.env.VMFERRY_RECORD === "1") writeFileSync(path, text);
      assert.equal(text, readFileSync(path, "utf8"), "run with VMFERRY_RECORD=1 and read the difference");
    });
});
