/** What keeps an evacuation from starting more, what it makes of lost effects, and how large it may become. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { evacuate } from "#core/evacuation";
import { jsonBytes } from "#core/evacuation-draft";
import type { EvacuationEvent } from "#core/evacuation-event";
import { evacuationMigrationId } from "#core/evacuation-id";
import { domainBytes, itemBytesMax, lineBytes, massSilence, stopBytes, triedMax } from "#core/evacuation-limits";
import { evacuationPolicyDefault, evacuationStateSchema, evacuationTimelineMax } from "#core/evacuation-state";
import { type FaultBody, faultCodes } from "#protocol/fault";
import {
  after,
  block,
  born,
  cancel,
  domainAt,
  ends,
  evacuationId,
  hostId,
  input,
  kindsOf,
  look,
  minute,
  move,
  play,
  seen,
  started,
  startMs,
  tick,
  uuid,
} from "./evacuation-scene.ts";

const policy = evacuationPolicyDefault;

describe("the deadline", () => {
  const short = { deadlineMs: 30 * minute };

  test("nothing is started whose estimate does not fit; what fits goes", () => {
    const moves = [move(0, 1, { endMs: 31 * minute }), move(1, 1, { startMs: 20 * minute, endMs: 49 * minute })];
    const { state, effects } = play(born(2, short), () => look(0, moves));
    assert.deepEqual(started(effects), ["vm1>1"]);
    assert.equal(domainAt(state, 0).reason?.code, "step.overdue");
    const ended = play(
      state,
      (now) => ends(now, 1, minute, "completed"),
      () => look(2 * minute, moves),
    );
    assert.equal(ended.state.status, "partial");
    assert.equal(domainAt(ended.state, 0).state, "failed");
    assert.equal(ended.state.stopped?.code, "step.overdue");
  });

  test("after it nothing starts, what runs may end, and a look that comes late is no exception", () => {
    const { state } = play(
      born(2, short),
      () => look(0, [move(0, 1)]),
      () => tick(30 * minute),
    );
    assert.equal(state.status, "ending");
    const done = play(state, (now) => ends(now, 0, 50 * minute, "completed"));
    assert.equal(done.state.status, "partial");
    const late = play(born(1, short), () => look(31 * minute, [move(0, 1)]));
    assert.deepEqual(kindsOf(late.effects), ["release"]);
    assert.equal(late.state.status, "failed");
  });

  test("there always is one", () => {
    assert.equal(born(1, { deadlineMs: null }).deadlineAt, after(24 * 60 * minute));
    assert.equal(born(1, { deadlineMs: 1e12 }).deadlineAt, after(7 * 24 * 60 * minute));
  });
});

describe("silence", () => {
  test("a silent source or destination neither sends nor receives, and a host that is not known neither", () => {
    const one = (hosts: ReturnType<typeof seen>) =>
      started(play(born(1), () => look(0, [move(0, 1)], { hosts })).effects);
    assert.deepEqual(one(seen(9, { 0: startMs - 1 })), []);
    assert.deepEqual(one(seen(9, { 1: startMs - 1 })), []);
    assert.deepEqual(one(seen(1)), []);
    assert.deepEqual(one(seen(9, { 2: startMs - 1 })), ["vm0>1"]);
  });

  test("the brake holds everything when too many went silent at once, says so once, and lifts by itself", () => {
    const silent = { 2: startMs - 10_000, 3: startMs - 50_000 };
    const held = play(born(2), () =>
      look(0, [move(0, 1)], { hosts: seen(4, silent), blocked: [block(1, "domain.hostdev")] }),
    );
    assert.deepEqual(held.effects, []);
    assert.match(held.state.held?.cause ?? "", /^2 of 4 hosts/);
    assert.equal(domainAt(held.state, 1).state, "waiting");
    assert.equal(evacuate(held.state, look(1, [move(0, 1)], { hosts: seen(4, silent) })).state, held.state);
    const back = play(held.state, () => look(minute, [move(0, 1)], { hosts: seen(4, { 2: startMs - 10_000 }) }));
    assert.deepEqual(started(back.effects), ["vm0>1"]);
    assert.equal(back.state.held, null);
    const lasting = play(held.state, () => look(11 * minute, [move(0, 1)], { hosts: seen(4, silent) }));
    assert.deepEqual(started(lasting.effects), ["vm0>1"]);
  });

  test("who counts as a mass", () => {
    assert.equal(massSilence(seen(3, { 1: startMs }), startMs), null);
    assert.deepEqual(massSilence(seen(3, { 1: startMs, 2: startMs - minute }), startMs), { silent: 2, of: 3 });
    assert.equal(massSilence(seen(3, { 1: startMs, 2: startMs - minute - 1 }), startMs), null);
    assert.equal(massSilence(seen(8, { 1: startMs, 2: startMs }), startMs), null);
    assert.deepEqual(massSilence(seen(8, { 1: startMs, 2: startMs, 3: startMs - 5 }), startMs), { silent: 3, of: 8 });
  });

  test("the deadline comes even while it is held", () => {
    const silent = { 2: startMs + 119 * minute, 3: startMs + 119 * minute };
    const { state } = play(
      born(1),
      () => look(119 * minute, [move(0, 1)], { hosts: seen(4, silent) }),
      () => tick(120 * minute),
    );
    assert.equal(state.status, "failed");
    assert.equal(state.held, null);
  });
});

describe("cancel and lost effects", () => {
  test("cancel starts nothing more and lets running ones end", () => {
    const { state } = play(
      born(2),
      () => look(0, [move(0, 1)]),
      () => cancel(1),
    );
    assert.equal(state.status, "ending");
    assert.equal(evacuate(state, cancel(2)).state, state);
    const done = play(
      state,
      () => look(3, [move(1, 1)]),
      (now) => ends(now, 0, 4, "completed"),
    );
    assert.equal(done.state.status, "cancelled");
    assert.deepEqual(kindsOf(done.effects), ["release"]);
    assert.equal(done.state.cordoned, false);
    assert.equal(domainAt(done.state, 1).reason?.code, "migration.cancelled");
  });

  test("cancelled before anything moved opens what it closed; after that it stays closed", () => {
    const open = { hosts: seen(4, {}, []) };
    const early = play(
      born(1),
      () => look(0, [], open),
      () => cancel(1),
    );
    assert.deepEqual(kindsOf(early.effects), ["cordon", "uncordon", "release"]);
    const late = play(
      born(2),
      () => look(0, [move(0, 1)], open),
      () => cancel(1),
      (now) => ends(now, 0, 2, "completed"),
    );
    assert.deepEqual(kindsOf(late.effects), ["cordon", "startMigration", "release"]);
    assert.equal(late.state.cordoned, true);
  });

  test("a start that was lost is decided anew, and none of the tries", () => {
    const moving = play(born(1), () => look(0, [move(0, 1)])).state;
    const lost = (ms: number): EvacuationEvent => ({
      type: "migrationMissing",
      at: after(ms),
      domainUuid: uuid(0),
      migrationId: domainAt(moving, 0).migrationId ?? "",
    });
    assert.equal(evacuate(moving, lost(59_000)).state, moving);
    const found = play(moving, () => lost(minute));
    assert.equal(domainAt(found.state, 0).state, "waiting");
    assert.equal(domainAt(found.state, 0).attempts, 0);
    const again = play(found.state, () => look(minute + 1, [move(0, 1)]));
    assert.deepEqual(started(again.effects), ["vm0>1"]);
    assert.notEqual(domainAt(again.state, 0).migrationId, domainAt(moving, 0).migrationId);
    assert.equal(
      play(
        moving,
        () => cancel(1),
        () => lost(minute),
      ).state.status,
      "cancelled",
    );
  });
});

describe("sizes", () => {
  test("500 domains that all fail for long reasons and a full story are one item, and the story keeps its ends", () => {
    const long = "x".repeat(2_000);
    const name = (index: number) => `${"virtual-machine-with-a-long-name-".padEnd(50, "-")}${index}`;
    const wide = {
      ...policy,
      outMax: 50,
      inMax: 50,
      fleetMax: 500,
      attemptsMax: 3,
      breakerFailures: 100,
      to: Array.from({ length: 200 }, (_, i) => hostId(i)),
    };
    const fresh = input(500, { policy: wide, deadlineMs: 7 * 24 * 60 * minute });
    const named = {
      ...fresh,
      domains: fresh.domains.map((each, index) => ({ ...each, domain: { ...each.domain, name: name(index) } })),
    };
    let state = born(500, { policy: wide });
    state = {
      ...state,
      domains: state.domains.map((each, index) => ({ ...each, domain: named.domains[index]?.domain ?? each.domain })),
    };
    const text = (code: FaultBody["code"]): FaultBody => ({ code, cause: `"${long}"`, action: long, retry: "safe" });
    for (let round = 0; round < 3; round += 1)
      for (let from = 0; from < 500; from += 50) {
        const ms = (round * 1_000 + from) * minute * 0.5;
        const moves = Array.from({ length: 50 }, (_, index) => move(from + index, 1 + ((round + index) % 150)));
        state = evacuate({ ...state, failuresInRow: 0, deadlineAt: null }, look(ms, moves, { hosts: seen(200) })).state;
        for (const each of state.domains)
          if (each.state === "moving")
            state = evacuate(
              { ...state, failuresInRow: 0 },
              {
                type: "migrationEnded",
                at: after(ms + 1_000),
                domainUuid: each.domain.uuid,
                migrationId: each.migrationId ?? "",
                status: "rolledBack",
                fault: text("destination.secretMissing"),
              },
            ).state;
      }
    assert.equal(state.status, "failed");
    assert.equal(state.timeline.length, evacuationTimelineMax);
    assert.equal(state.timeline[0]?.note, "asked for by token t1");
    assert.ok(
      state.domains.every(
        ({ state: now, attempts, reason }) => now === "failed" && attempts === 3 && (reason?.cause.length ?? 0) > 20,
      ),
    );
    const bytes = new TextEncoder().encode(JSON.stringify(state)).byteLength;
    assert.ok(bytes <= itemBytesMax, `${bytes} bytes`);
    assert.ok(bytes > 300 * 1024, `${bytes} bytes: the case is no worst case any more`);
    assert.equal(evacuationStateSchema.safeParse(JSON.parse(JSON.stringify(state))).success, true);
  });

  test("the figures that are counted with are no less than what a record and a line can be", () => {
    const id = hostId(9);
    const [each] = born(1).domains;
    const widest = {
      ...each,
      domain: { uuid: uuid(0), name: "" },
      memoryKiB: 2 ** 34,
      vcpus: 1_024,
      priority: 100,
      state: "waiting",
      destinationId: id,
      migrationId: evacuationMigrationId(evacuationId(1), 499, 10, startMs),
      attempts: 10,
      triedIds: Array.from({ length: triedMax }, () => id),
      notBefore: after(0),
      waitsSince: after(0),
      reason: {
        code: [...faultCodes].sort((one, other) => other.length - one.length)[0],
        cause: "",
        action: "",
        retry: "person",
      },
    };
    assert.ok(JSON.stringify(widest).length + 1 <= domainBytes, `${JSON.stringify(widest).length}`);
    const stop = { fromId: id, migrationId: evacuationMigrationId(evacuationId(1), 499, 9, startMs) };
    assert.ok(JSON.stringify({ ...widest, stop }).length + 1 <= domainBytes + stopBytes);
    assert.ok(JSON.stringify({ at: after(0), domain: uuid(0), note: "" }).length + 1 <= lineBytes);
  });

  test("texts are measured as the item holds them", () => {
    for (const text of ["plain", "ü€😀", 'a"b\\c', "\u0001\n", "\ud800"])
      assert.ok(jsonBytes(text) >= new TextEncoder().encode(JSON.stringify(text)).byteLength - 2, text);
  });
});
