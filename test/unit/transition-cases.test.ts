/** Single ways through the protocol: the happy ones, the ways back that a review or a checker has found, what people ask for. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { type MigrationState, migrationStateSchema } from "#core/state";
import { transition } from "#core/transition";
import type { CommandKind } from "#protocol/command";
import { ticketCommandId } from "#protocol/ticket";
import { explored, reached } from "#test/fake/exploration";
import {
  at,
  bundleRef,
  failureReport,
  forgottenReport,
  freshMigration,
  later,
  receipt,
  success,
  successes,
} from "#test/fake/migration";

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

describe("a record that is older than what the hosts have done (a table put back from a backup)", () => {
  const forgotten = (state: MigrationState, pending: MigrationState["pending"][number]) =>
    ({ type: "reported", at, report: forgottenReport(state, pending) }) as const;

  test("from every state: hosts that have forgotten it are sent nothing forward, and the domain is free", () => {
    const ways = new Map<string, number>();
    for (const { to } of explored.arrows) {
      let { state } = to;
      if (state.step === "ended" || state.step === "sweeping") continue;
      const begin = state.step;
      for (let round = 0; round < 8; round += 1) {
        const [pending] = state.pending;
        const next =
          pending === undefined
            ? transition(state, { type: "ticked", at: later, unreachable: [], elapsedMs: null })
            : transition(state, forgotten(state, pending));
        const sent = next.effects.flatMap((effect) => (effect.type === "send" ? [effect.pending.kind] : []));
        if (pending !== undefined)
          for (const kind of sent)
            assert.ok(["finish", "confirm", "settle", "restore", "unstage"].includes(kind), `${begin} sent ${kind}`);
        state = next.state;
        if (state.endedAt === null) continue;
        assert.ok(next.effects.some(({ type }) => type === "release"));
        break;
      }
      if (state.endedAt === null) assert.fail(`${begin} does not end when both hosts have forgotten it`);
      const way = `${begin} -> ${state.status}`;
      ways.set(way, (ways.get(way) ?? 0) + 1);
    }
    assert.ok(ways.size > 10, `${[...ways.keys()].join(", ")}`);
  });

  test("the destination's journal says how it ended when the source alone has forgotten it", () => {
    let state = reached("performing");
    const [perform] = state.pending;
    assert.ok(perform);
    ({ state } = transition(state, forgotten(state, perform)));
    const [finish] = state.pending;
    assert.ok(finish?.kind === "finish");
    const started = successes("finish").started;
    assert.ok(started);
    ({ state } = transition(state, { type: "reported", at, report: success(state, finish, started) }));
    const [confirm] = state.pending;
    assert.ok(confirm?.kind === "confirm");
    ({ state } = transition(state, forgotten(state, confirm)));
    const [settle] = state.pending;
    assert.ok(settle?.kind === "settle");
    const done = successes("settle").done;
    assert.ok(done);
    ({ state } = transition(state, { type: "reported", at, report: success(state, settle, done) }));
    assert.equal(state.status, "completed");
  });

  test("an old report of a forgotten migration changes nothing", () => {
    const state = reached("performing");
    const [perform] = state.pending;
    assert.ok(perform);
    const stale = forgotten(state, { ...perform, id: `${state.id}:perform:7` });
    assert.equal(transition(state, stale).state, state);
  });
});
