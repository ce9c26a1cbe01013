/**
 * The protocol, explored exhaustively: from a new migration every event that can happen is applied in every state that can
 * be reached, and the rules are checked at each arrow. What (step, event) leads to stands in a golden table, so a change of
 * the protocol is a visible change of a file.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { describe, test } from "node:test";
import { stepsOf } from "#core/advance";
import { blobsOf, commandBody } from "#core/command-body";
import type { MigrationEvent } from "#core/event";
import { type MigrationState, migrationStateSchema } from "#core/state";
import { ticketOf } from "#core/ticket";
import { transition } from "#core/transition";
import { type CommandKind, commandKindSchema, commandSide } from "#protocol/command";
import { ticketCommandId } from "#protocol/ticket";
import {
  at,
  bundleRef,
  failureReport,
  freshMigration,
  inlineBlob,
  later,
  receipt,
  success,
  successes,
} from "#test/fake/migration";

interface Arrow {
  from: MigrationState;
  label: string;
  event: MigrationEvent;
  to: ReturnType<typeof transition>;
  fromKey: string;
  toKey: string;
}

/** Every event that the world can produce in a state, under a name for the table. */
function eventsIn(state: MigrationState): [string, MigrationEvent][] {
  const events: [string, MigrationEvent][] = [
    ["requested", { type: "requested", at }],
    ["refused", { type: "refused", at, fault: { code: "domain.busy", cause: "busy", action: "wait", retry: "safe" } }],
    ["cancelRequested", { type: "cancelRequested", at, by: "ann" }],
    ["resolved(source fenced)", { type: "resolved", at, by: "ann", reason: "burnt", fenced: "source" }],
    ["resolved(destination fenced)", { type: "resolved", at, by: "ann", reason: "burnt", fenced: "destination" }],
    ["connectionLost", { type: "connectionLost", at, epoch: state.epoch, cause: "libvirtd is gone" }],
    ["connectionLost(old epoch)", { type: "connectionLost", at, epoch: state.epoch - 1, cause: "old news" }],
    ["ticked(in time)", { type: "ticked", at, unreachable: [], elapsedMs: null }],
    ["ticked(overdue)", { type: "ticked", at: later, unreachable: [], elapsedMs: null }],
    ["ticked(Perform moves)", { type: "ticked", at: later, unreachable: [], elapsedMs: 1 }],
    [
      "ticked(overdue, hosts away)",
      { type: "ticked", at: later, unreachable: ["source", "destination"], elapsedMs: null },
    ],
  ];
  for (const pending of state.pending) {
    for (const [name, body] of Object.entries(successes(pending.kind)))
      events.push([`${pending.kind} ${name}`, { type: "reported", at, report: success(state, pending, body) }]);
    for (const sourceState of pending.kind === "perform" ? (["running", "paused", undefined] as const) : [undefined])
      for (const stated of pending.kind === "perform" ? ([undefined, "destroyed", "started"] as const) : [undefined])
        events.push([
          `${pending.kind} failed${sourceState === undefined ? "" : ` (source ${sourceState})`}${stated === undefined ? "" : ` with receipt ${stated}`}`,
          {
            type: "reported",
            at,
            report: failureReport(state, pending, {
              sourceState,
              receipt: stated === undefined ? undefined : receipt(stated),
            }),
          },
        ]);
    if (pending.kind === "finish")
      for (const code of ["cookie.altered", "bundle.unreachable"] as const)
        events.push([
          `finish failed: ${code}`,
          {
            type: "reported",
            at,
            report: failureReport(state, pending, { fault: { code, cause: "c", action: "a", retry: "safe" } }),
          },
        ]);
    const person = { code: "libvirt.failed", cause: "c", action: "a", retry: "person" } as const;
    events.push([
      `${pending.kind} failed, needs a person`,
      { type: "reported", at, report: failureReport(state, pending, { fault: person }) },
    ]);
  }
  // What shims do by their ticket, whenever it is learnt. Its receipts are of one world: the destination has stated one thing.
  if (state.ticket !== null)
    for (const kind of ["finish", "confirm"] as const)
      for (const [name, body] of Object.entries(successes(kind))) {
        const id = ticketCommandId(state.id, kind, 1);
        const made = { id, kind, side: commandSide[kind], issuedAt: at, deadlineAt: at };
        events.push([`ticket's ${kind} ${name}`, { type: "reported", at, report: success(state, made, body) }]);
      }
  // Reports of commands that nobody awaits: late, repeated, or of another attempt.
  for (const kind of commandKindSchema.options) {
    if (state.pending.some((pending) => pending.kind === kind)) continue;
    const stray = { id: `${state.id}:${kind}:9999`, kind, side: "source" as const, issuedAt: at, deadlineAt: at };
    for (const body of Object.values(successes(kind)))
      events.push([`stray ${kind}`, { type: "reported", at, report: success(state, stray, body) }]);
  }
  return events;
}

/** As the runner signs it; the key is not of the core. */
const ticketText = (state: MigrationState) => ({ text: JSON.stringify(ticketOf(state)), signature: "s" });

/** What makes two states the same for the future: everything but times, counters that no longer count, and the story. */
const key = (state: MigrationState) => {
  const current = commandKindSchema.options.filter((kind) => stepsOf[kind].includes(state.step));
  const { failure } = state;
  const silence = failure?.code === "host.offline" || failure?.code === "step.overdue";
  const same = JSON.stringify({
    ...state,
    version: 0,
    epoch: 0,
    timeline: [],
    downtimeMs: null,
    transferredBytes: null,
    strippedMs: null,
    blobs: state.pending.flatMap(({ kind }) => blobsOf(kind)).filter((name) => state.blobs[name] !== undefined),
    receipt: state.receipt?.outcome,
    fenced: state.fenced?.side,
    evidence: state.receipt?.evidence === "fenced",
    updatedAt: "",
    endedAt: state.endedAt === null,
    attempts: current.map((kind) => Math.min(state.attempts[kind] ?? 0, 3)),
    pending: state.pending.map((pending) => pending.kind),
    failure:
      failure === null ? null : silence ? "silence" : failure.code === "migration.cancelled" ? "cancelled" : "other",
    abortCause: state.abortCause === null ? null : state.abortCause.code,
    performSeen: state.step === "performing" && state.performSeen !== null,
  });
  // Half a million arrows name two each.
  return createHash("sha1").update(same).digest("base64");
};

/** The story is not explored: its last line is enough to know that there is one. */
const brief = (from: MigrationState, to: ReturnType<typeof transition>): ReturnType<typeof transition> =>
  to.state === from ? to : { ...to, state: { ...to.state, timeline: to.state.timeline.slice(-1) } };

function explore(): { states: MigrationState[]; arrows: Arrow[] } {
  const states = new Map<string, MigrationState>();
  const arrows: Arrow[] = [];
  const queue = [freshMigration()];
  for (let from = queue.pop(); from !== undefined; from = queue.pop()) {
    const fromKey = key(from);
    if (states.has(fromKey)) continue;
    states.set(fromKey, from);
    for (const [label, event] of eventsIn(from)) {
      const to = brief(from, transition(from, event));
      const toKey = to.state === from ? fromKey : key(to.state);
      arrows.push({ from, label, event, to, fromKey, toKey });
      if (!states.has(toKey)) queue.push(to.state);
    }
  }
  return { states: [...states.values()], arrows };
}

const explored = explore();

describe("every reachable state and event", () => {
  test("the exploration reached every step and every end", () => {
    const steps = new Set(explored.states.map((state) => state.step));
    assert.deepEqual([...steps].sort(), [
      "abortingConfirm",
      "abortingFinish",
      "beginning",
      "confirming",
      "ended",
      "exporting",
      "finishing",
      "inspectingDestination",
      "inspectingSource",
      "performing",
      "preparing",
      "restoring",
      "settling",
      "staging",
      "sweeping",
      "unstaging",
    ]);
    const ends = new Set(explored.states.filter((state) => state.step === "ended").map((state) => state.status));
    assert.deepEqual([...ends].sort(), ["cancelled", "completed", "refused", "rolledBack", "stranded"]);
    assert.ok(explored.states.some((state) => state.status === "stranded"));
    assert.ok(explored.states.length > 200, `only ${explored.states.length} states explored`);
  });

  test("the version rises by exactly one with a change and the state is the very same without one", () => {
    for (const { from, to } of explored.arrows) {
      if (to.state === from) assert.deepEqual(to.effects, []);
      else assert.equal(to.state.version, from.version + 1);
    }
  });

  test("I5: the epoch never falls, and rises when the way forward is given up", () => {
    const back = new Set(["abortingFinish", "abortingConfirm", "restoring", "unstaging"]);
    for (const { from, to } of explored.arrows) {
      assert.ok(to.state.epoch >= from.epoch);
      if (!back.has(from.step) && back.has(to.state.step))
        assert.equal(to.state.epoch, from.epoch + 1, `${from.step} -> ${to.state.step}`);
    }
  });

  test("I6: a command id is never issued twice and its body never changes while it is pending", () => {
    for (const { from, label, to } of explored.arrows) {
      const before = new Set(from.pending.map((pending) => pending.id));
      for (const effect of to.effects) {
        if (effect.type !== "send") continue;
        assert.ok(!before.has(effect.pending.id), `${label} repeats ${effect.pending.id}`);
        const attempt = from.attempts[effect.pending.kind] ?? 0;
        assert.ok(effect.pending.id.endsWith(`:${attempt + 1}`));
      }
      for (const pending of to.state.pending) {
        const blobs = Object.fromEntries(
          blobsOf(pending.kind)
            .filter((name) => to.state.blobs[name] !== undefined)
            .map((name) => [name, inlineBlob]),
        );
        const now = commandBody(to.state, pending, blobs, ticketText(to.state));
        assert.ok(now !== null, `${to.state.step} cannot build ${pending.kind} after ${label}`);
        if (before.has(pending.id))
          assert.deepEqual(commandBody(from, pending, blobs, ticketText(from)), now, `${pending.id} changed its body`);
      }
    }
  });

  test("I2: the source is told to resume only by a receipt that says destroyed", () => {
    for (const { to } of explored.arrows)
      for (const effect of to.effects) {
        if (effect.type !== "send" || effect.pending.kind !== "confirm") continue;
        assert.notEqual(to.state.receipt, null);
        if (to.state.step === "abortingConfirm") assert.equal(to.state.receipt?.outcome, "destroyed");
        if (to.state.step === "confirming") assert.equal(to.state.receipt?.outcome, "started");
      }
  });

  test("I2: after a Perform whose source is not seen running, nothing reaches the source before the destination's verdict", () => {
    for (const { from, label, to } of explored.arrows) {
      if (from.step !== "performing" || !label.startsWith("perform ") || label.includes("source running")) continue;
      const kinds = to.effects.flatMap((effect) => (effect.type === "send" ? [effect.pending.kind] : []));
      if (to.state.receipt === null) assert.deepEqual(kinds, ["finish"], label);
      else assert.ok(!kinds.includes("finish"), `${label}: it has stated that already`);
    }
  });

  test("I7: a receipt never changes", () => {
    for (const { from, to } of explored.arrows)
      if (from.receipt !== null && from.receipt.evidence !== "fenced")
        assert.equal(to.state.receipt?.outcome, from.receipt.outcome);
  });

  test("I7: a shim that contradicts its receipt changes nothing", () => {
    const state = explored.states.find((candidate) => candidate.step === "finishing");
    assert.ok(state);
    const told: MigrationState = { ...state, receipt: receipt("destroyed") };
    const pending = told.pending[0];
    assert.ok(pending);
    const started = successes("finish").started;
    assert.ok(started);
    assert.equal(transition(told, { type: "reported", at, report: success(told, pending, started) }).state, told);
  });

  test("silence after Perform never gives up, it only calls a person", () => {
    const firm = new Set([
      "performing",
      "finishing",
      "confirming",
      "settling",
      "abortingFinish",
      "abortingConfirm",
      "restoring",
      "unstaging",
    ]);
    for (const { from, label, to } of explored.arrows) {
      if (!label.startsWith("ticked") || !firm.has(from.step)) continue;
      assert.equal(to.state.step, from.step, `${label} moved ${from.step}`);
      if (to.state.status !== from.status) assert.equal(to.state.status, "stranded");
    }
  });

  test("an end releases what was held exactly once and nothing follows it", () => {
    for (const { from, to } of explored.arrows) {
      const releases = to.effects.filter((effect) => effect.type === "release").length;
      const ends = to.state.step === "ended" || to.state.step === "sweeping";
      assert.equal(releases, to.state !== from && ends && to.state.step !== from.step ? 1 : 0);
      if (from.step === "ended") assert.equal(to.state, from);
      if (to.state.step === "ended") {
        assert.deepEqual(to.state.pending, []);
        assert.notEqual(to.state.endedAt, null);
        if (to.state.status !== "completed") assert.notEqual(to.state.failure, null, "every refusal has a cause");
        else assert.equal(to.state.failure, null);
      }
    }
  });

  test("I10: from every state there is a way to an end, and every state without a command gets one from the timer", () => {
    const ends = new Set(explored.states.filter((state) => state.step === "ended").map(key));
    const sources = new Map<string, Set<string>>();
    for (const { fromKey, toKey } of explored.arrows) {
      const set = sources.get(toKey) ?? new Set();
      set.add(fromKey);
      sources.set(toKey, set);
    }
    const alive = new Set(ends);
    const queue = [...ends];
    for (let end = queue.pop(); end !== undefined; end = queue.pop())
      for (const from of sources.get(end) ?? []) if (!alive.has(from)) alive.add(from) && queue.push(from);
    for (const state of explored.states) {
      assert.ok(alive.has(key(state)), `no way out of ${state.step} (${state.status})`);
      if (state.step === "ended" || state.pending.length > 0) continue;
      const ticked = transition(state, { type: "ticked", at: later, unreachable: [], elapsedMs: null });
      assert.equal(ticked.state.pending.length, 1, `the timer does not wake ${state.step}`);
    }
  });

  test("what was staged or prepared is swept before a rolled back end", () => {
    for (const { from, to } of explored.arrows) {
      if (
        to.state.step !== "ended" ||
        from.step === "ended" ||
        !["rolledBack", "cancelled", "refused"].includes(to.state.status)
      )
        continue;
      const touched = from.touched.staged || from.touched.prepared;
      if (touched && from.step !== "sweeping") assert.equal(from.step, "unstaging");
    }
  });
});

test("the table of (step, event) is the one on record", () => {
  const rows = new Map<string, Set<string>>();
  for (const { from, label, to } of explored.arrows) {
    const status = (state: MigrationState) =>
      state.step === "ended"
        ? `ended ${state.status}`
        : state.status === "stranded"
          ? `${state.step} stranded`
          : state.step;
    if (from.step === "ended") continue;
    const row = `${from.step} | ${label}`;
    const set = rows.get(row) ?? new Set();
    set.add(to.state === from ? "unchanged" : status(to.state));
    rows.set(row, set);
  }
  const table = `${[...rows]
    .map(([row, set]) => `${row} -> ${[...set].sort().join(", ")}`)
    .sort()
    .join("\n")}\n`;
  const path = new URL("../golden/transition-table.txt", import.meta.url);
  if (process.env.VMFERRY_RECORD === "1") writeFileSync(path, table);
  assert.equal(table, readFileSync(path, "utf8"), "run with VMFERRY_RECORD=1 and read the difference");
});

test("the happy path goes through the nine steps in order", () => {
  const forward: CommandKind[] = [];
  let { state } = transition(freshMigration(), { type: "requested", at });
  while (state.step !== "ended") {
    const pending = state.pending[0];
    assert.ok(pending);
    forward.push(pending.kind);
    // As it was before there were tickets, and as it is when the shims do not reach each other: the functions relay.
    const bodies = successes(pending.kind);
    const body = bodies.relayed ?? Object.values(bodies)[0];
    assert.ok(body);
    state = transition(state, { type: "reported", at, report: success(state, pending, body) }).state;
  }
  assert.equal(state.status, "completed");
  assert.deepEqual(forward, [
    "inspectSource",
    "inspectDestination",
    "export",
    "stage",
    "begin",
    "prepare",
    "perform",
    "finish",
    "confirm",
    "settle",
  ]);
  assert.deepEqual(state.snapshots, { total: 5, staged: 5, verified: 5 });
});

test("the shims end it by themselves: Finish and Confirm are learnt with Perform's report", () => {
  let { state } = transition(freshMigration(), { type: "requested", at });
  const forward: CommandKind[] = [];
  while (state.step !== "ended") {
    const pending = state.pending[0];
    assert.ok(pending);
    forward.push(pending.kind);
    const body = Object.values(successes(pending.kind))[0];
    assert.ok(body);
    state = transition(state, { type: "reported", at, report: success(state, pending, body) }).state;
  }
  assert.equal(state.status, "completed");
  assert.deepEqual(forward.slice(-3), ["prepare", "perform", "settle"]);
  const told = (timeline: MigrationState["timeline"]) => [...new Set(timeline.map(({ step }) => step))].slice(-5);
  const order = ["performing", "finishing", "confirming", "settling", "ended"];
  assert.deepEqual(told(state.timeline), order);
  // The destination's own report may be quicker than the source's: the story is the same.
  let early = reached("performing");
  const made = {
    id: ticketCommandId(early.id, "finish", 1),
    kind: "finish",
    side: "destination",
    issuedAt: at,
    deadlineAt: at,
  } as const;
  const stated = successes("finish").started;
  assert.ok(stated);
  early = transition(early, { type: "reported", at, report: success(early, made, stated) }).state;
  for (const kind of ["perform", "settle"] as const) {
    const pending = early.pending.find((one) => one.kind === kind);
    const body = Object.values(successes(kind))[0];
    assert.ok(pending !== undefined && body !== undefined);
    early = transition(early, { type: "reported", at: later, report: success(early, pending, body) }).state;
  }
  assert.deepEqual(told(early.timeline), order);
  assert.equal(state.receipt?.outcome, "started");
});

describe("a person's word for a fenced host", () => {
  test("never moves anything while the destination has stated that it runs the domain", () => {
    for (const { from, label, to } of explored.arrows) {
      if (label !== "resolved(destination fenced)" || from.receipt?.outcome !== "started") continue;
      if (from.step !== "settling") assert.equal(to.state, from, from.step);
    }
  });

  test("a fenced destination's leftovers are asked for when it returns, and its lock is free before", () => {
    const arrows = explored.arrows.filter(({ to }) => to.state.step === "sweeping");
    assert.ok(arrows.length > 0);
    for (const { from, to } of arrows) {
      const { fenced, pending, sweep } = to.state;
      assert.deepEqual(
        pending.map(({ side }) => side),
        [fenced?.side],
      );
      assert.deepEqual(
        pending.map(({ kind }) => kind),
        sweep.slice(0, 1),
      );
      if (from.step !== "sweeping")
        assert.ok(to.effects.some((effect) => effect.type === "release" && effect.keep === fenced?.side));
    }
  });

  test("gives way to the destination's own word, which the source had acted on before", () => {
    const waiting = explored.states.find(
      ({ step, touched, fenced, receipt }) =>
        step === "finishing" && touched.performed && fenced === null && receipt === null,
    );
    assert.ok(waiting);
    let state = waiting;
    const stated = transition(state, { type: "resolved", at, by: "ann", reason: "burnt", fenced: "destination" });
    assert.deepEqual([stated.state.step, stated.state.receipt?.evidence], ["abortingConfirm", "fenced"]);
    const id = ticketCommandId(state.id, "confirm", 1);
    const made = { id, kind: "confirm", side: "source", issuedAt: at, deadlineAt: at } as const;
    const body = { kind: "confirm", source: "gone", receipt: receipt("started") } as const;
    state = transition(stated.state, { type: "reported", at, report: success(stated.state, made, body) }).state;
    assert.deepEqual([state.step, state.status, state.receipt?.outcome], ["sweeping", "stranded", "started"]);
    assert.match(state.failure?.action ?? "", /goes on on its source|start the domain there/);
  });

  test("is taken only where a silent host can hold up the end", () => {
    const steps = new Set(
      explored.arrows
        .filter(({ label, from, to }) => label.startsWith("resolved") && to.state !== from)
        .map(({ from }) => from.step),
    );
    assert.deepEqual([...steps].sort(), [
      "abortingConfirm",
      "abortingFinish",
      "confirming",
      "finishing",
      "performing",
      "restoring",
      "settling",
      "unstaging",
    ]);
  });
});

test("a cancel says truthfully whether it won", () => {
  for (const { to } of explored.arrows) {
    const { cancel, step, status } = to.state;
    if (cancel === null) continue;
    const ended = step === "ended" || step === "sweeping";
    assert.equal(cancel.outcome, !ended ? "pending" : status === "cancelled" ? "won" : "late");
  }
});

/** A migration in that step, as the exploration reached it on the way forward. */
function reached(step: MigrationState["step"]): MigrationState {
  const states = explored.states.filter(({ status, pending }) => status === "running" && pending.length > 0);
  const state =
    states.find((candidate) => candidate.step === step && candidate.failure === null) ??
    states.find((candidate) => candidate.step === step);
  assert.ok(state, step);
  return state;
}

describe("what a hostile review found", () => {
  const dear = { code: "libvirt.failed", cause: "ä".repeat(2000), action: "ö".repeat(2000), retry: "person" } as const;

  test("a step that fails for weeks stays readable and below the size of an item", () => {
    let state = reached("confirming");
    let nowMs = Date.parse(at);
    for (let attempt = 0; attempt < 20_000; attempt += 1) {
      nowMs += 60_000;
      const now = new Date(nowMs).toISOString();
      state = transition(state, { type: "ticked", at: now, unreachable: [], elapsedMs: null }).state;
      const pending = state.pending[0];
      if (pending === undefined) continue;
      const different = { ...dear, cause: `${attempt} ${dear.cause}`.slice(0, 2000) };
      state = transition(state, {
        type: "reported",
        at: now,
        report: failureReport(state, pending, { fault: different }),
      }).state;
    }
    assert.ok((state.attempts.confirm ?? 0) > 1000);
    assert.equal(state.status, "stranded");
    assert.ok(migrationStateSchema.safeParse(state).success);
    assert.ok(Buffer.byteLength(JSON.stringify(state)) < 390_000, `${Buffer.byteLength(JSON.stringify(state))} bytes`);
  });

  test("tries of a failing step become rarer, and never stop", () => {
    let state = reached("confirming");
    const minutesOf = (attempts: number) => {
      state = { ...state, pending: [], attempts: { ...state.attempts, confirm: attempts } };
      for (let minutes = 0; ; minutes += 1) {
        const now = new Date(Date.parse(state.updatedAt) + minutes * 60_000).toISOString();
        if (transition(state, { type: "ticked", at: now, unreachable: [], elapsedMs: null }).state !== state)
          return minutes;
      }
    };
    assert.deepEqual([1, 2, 3, 4, 5, 9, 900].map(minutesOf), [0, 0, 1, 2, 4, 15, 15]);
  });

  test("many findings keep the first of every code and stay small", () => {
    const state = reached("inspectingSource");
    const pending = state.pending[0];
    assert.ok(pending);
    const body = successes("inspectSource").snapshots;
    assert.ok(body?.kind === "inspectSource");
    const note = (code: "lock.none" | "snapshot.incomplete") =>
      ({ severity: "note", code, cause: dear.cause, action: dear.action }) as const;
    const findings = [...Array.from({ length: 150 }, () => note("lock.none")), note("snapshot.incomplete")];
    const next = transition(state, {
      type: "reported",
      at,
      report: success(state, pending, { ...body, findings }),
    }).state;
    assert.deepEqual(new Set(next.findings.map(({ code }) => code)), new Set(["lock.none", "snapshot.incomplete"]));
    assert.ok(JSON.stringify(next.findings).length < 60_000);
  });

  test("a cookie C that is altered, or stays away, turns round by way of the arbiter", () => {
    const turn = (code: "cookie.altered" | "bundle.unreachable", attempts: number) => {
      const state = { ...reached("finishing"), attempts: { ...reached("finishing").attempts, finish: attempts } };
      const pending = state.pending[0];
      assert.ok(pending);
      const fault = { code, cause: "c", action: "a", retry: "safe" } as const;
      return transition(state, { type: "reported", at, report: failureReport(state, pending, { fault }) }).state;
    };
    assert.equal(turn("cookie.altered", 1).step, "abortingFinish");
    assert.equal(turn("cookie.altered", 1).epoch, reached("finishing").epoch + 1);
    assert.equal(turn("bundle.unreachable", 1).step, "finishing");
    assert.equal(turn("bundle.unreachable", 3).step, "abortingFinish");
  });

  test("a Perform that moves is left alone for hours; one that stands still calls a person and goes on when it moves", () => {
    let state = reached("performing");
    const tick = (minutes: number, elapsedMs: number | null) => {
      const now = new Date(Date.parse(at) + minutes * 60_000).toISOString();
      state = transition(state, { type: "ticked", at: now, unreachable: [], elapsedMs }).state;
      return state.status;
    };
    for (let minutes = 1; minutes < 300; minutes += 1) assert.equal(tick(minutes, minutes), "running");
    assert.equal(tick(310, 299), "running");
    assert.equal(tick(320, 299), "stranded");
    assert.equal(state.failure?.code, "step.overdue");
    assert.equal(state.step, "performing");
  });

  test("an abort that came too late leaves room for another, and blames no later failure", () => {
    const asked = transition(reached("performing"), { type: "cancelRequested", at, by: "ann" }).state;
    const abort = asked.pending.find(({ kind }) => kind === "abort");
    const late = successes("abort").late;
    assert.ok(abort && late);
    const told = transition(asked, { type: "reported", at, report: success(asked, abort, late) }).state;
    assert.equal(told.abortCause, null);
    assert.notEqual(transition(told, { type: "cancelRequested", at, by: "ann" }).state, told);
  });

  test("a domain that somebody took from the source does not hold the way back", () => {
    const state = reached("restoring");
    const pending = state.pending[0];
    const body = successes("restore").done;
    assert.ok(pending && body?.kind === "restore");
    const report = success(state, pending, { ...body, absent: true, state: "nostate" });
    const next = transition(state, { type: "reported", at, report }).state;
    assert.notEqual(next.step, "restoring");
    assert.match(next.timeline.map(({ note }) => note).join("\n"), /no longer knows the domain/);
  });

  test("a tree that grew by a checkpoint or was changed by its owner is no mismatch", () => {
    const settle = (change: object) => {
      const state = { ...reached("settling"), bundle: bundleRef };
      const pending = state.pending[0];
      const body = successes("settle").mismatch;
      assert.ok(pending && body?.kind === "settle");
      return transition(state, { type: "reported", at, report: success(state, pending, { ...body, ...change }) }).state;
    };
    assert.equal(settle({ changedByOwner: true }).status, "completed");
    assert.equal(settle({ tree: { snapshots: 5, checkpoints: 1, treeSha256: "1".repeat(64) } }).status, "completed");
    const wrong = settle({});
    assert.deepEqual([wrong.status, wrong.step, wrong.failure?.code], ["stranded", "ended", "snapshot.mismatch"]);
  });
});
