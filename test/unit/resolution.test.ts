/**
 * A person's statement that a host is fenced, and what shims report of what they did by themselves, through the real runner
 * over stores in memory: in each step, in whatever order, to the end where nothing is held and nobody is asked any more.
 */
import assert from "node:assert/strict";
import { beforeEach, describe, test } from "node:test";
import { sweepAttemptsMax } from "#core/limits";
import type { MigrationState } from "#core/state";
import type { Command, CommandKind, CommandOf, Receipt, Report, ReportBody, Side } from "#protocol/command";
import { Fault, type FaultBody } from "#protocol/fault";
import { receiptSignedText, ticketCommandId, ticketSignedText } from "#protocol/ticket";
import { verifyText } from "#shim/peer/seal";
import { cookieBlob, type MemoryFleet, memoryFleet } from "#test/fake/memory-fleet";
import { migrationRequest, successes } from "#test/fake/migration";

const { id, domain } = migrationRequest;
const hosts: Record<Side, string> = {
  source: migrationRequest.source.id,
  destination: migrationRequest.destination.id,
};
const at = "2026-11-22T10:00:00.000Z";
const receiptOf = (outcome: Receipt["outcome"]): Receipt => ({ outcome, evidence: "finish", at });
const broken: FaultBody = { code: "libvirt.failed", cause: "it broke", action: "look", retry: "safe" };

let fleet: MemoryFleet;
beforeEach(async () => {
  fleet = await memoryFleet();
});

async function load(): Promise<MigrationState> {
  const state = await fleet.ports.migrations.load(id);
  assert.ok(state);
  return state;
}
const resolve = (fenced: Side) => fleet.runner.resolve(id, { by: "ann", reason: "burnt", fenced });
const cancel = () => fleet.runner.cancel(id, "ann");

/** The one command that a side owes, as the host is given it with its heartbeat. */
async function owedBy(side: Side): Promise<Command> {
  const owed = await fleet.runner.pendingOf(hosts[side]);
  assert.equal(owed.length, 1, `${side} owes ${owed.map(({ kind }) => kind).join(", ")}`);
  assert.ok(owed[0]);
  return owed[0];
}

async function report(side: Side, commandId: string, body: ReportBody | FaultBody | Report["result"]): Promise<void> {
  const result: Report["result"] =
    "ok" in body ? body : "kind" in body ? { ok: true, body } : { ok: false, fault: body };
  await fleet.runner.reported(hosts[side], { commandId, migrationId: id, epoch: 1, ms: 1, result });
}

/** Answers what a side owes. */
async function answer(side: Side, kind: CommandKind, body: ReportBody | FaultBody | Report["result"]): Promise<void> {
  const command = await owedBy(side);
  assert.equal(command.kind, kind);
  await report(side, command.id, body);
}

const finishedBody = (outcome: Receipt["outcome"]): ReportBody => ({
  kind: "finish",
  receipt: receiptOf(outcome),
  cookie: null,
  fault: null,
});
const confirmedBody = (outcome: Receipt["outcome"]): ReportBody => ({
  kind: "confirm",
  source: outcome === "started" ? "gone" : "running",
  receipt: receiptOf(outcome),
});
const one = (kind: CommandKind, name = "done"): ReportBody => {
  const body = successes(kind)[name];
  assert.ok(body);
  return body;
};
const performedBody = (name: string): ReportBody => {
  const body = one("perform", name);
  assert.ok(body.kind === "perform");
  return { ...body, cookie: cookieBlob, ended: body.ended === null ? null : { ...body.ended, cookie: null } };
};

/** Begins and answers everything up to a command of that kind; what is pushed from there on is not answered. */
async function upTo(kind: CommandKind, relayed = true): Promise<void> {
  await fleet.runner.request(migrationRequest);
  fleet.script.relayed = relayed;
  await fleet.serve({}, kind);
  fleet.script.pushed.length = 0;
}

/** How each step is reached. */
const reach: Partial<Record<MigrationState["step"], () => Promise<void>>> = {
  inspectingSource: () => upTo("inspectSource"),
  inspectingDestination: () => upTo("inspectDestination"),
  exporting: () => upTo("export"),
  staging: () => upTo("stage"),
  beginning: () => upTo("begin"),
  preparing: () => upTo("prepare"),
  performing: () => upTo("perform"),
  finishing: () => upTo("finish"),
  confirming: () => upTo("confirm"),
  settling: () => upTo("settle"),
  abortingFinish: async () => {
    await upTo("finish");
    await cancel();
  },
  abortingConfirm: async () => {
    await upTo("finish");
    await answer("destination", "finish", finishedBody("destroyed"));
  },
  restoring: async () => {
    await upTo("prepare");
    await answer("destination", "prepare", broken);
  },
  unstaging: async () => {
    await upTo("prepare");
    await answer("destination", "prepare", broken);
    await answer("source", "restore", one("restore"));
  },
};

/** Nothing is held, and neither host is asked for anything. */
async function restsWith(status: MigrationState["status"]): Promise<void> {
  const state = await load();
  assert.deepEqual([state.step, state.status, state.pending, state.sweep], ["ended", status, [], []]);
  assert.equal(await fleet.ports.migrations.domainLock(domain.uuid), null);
  for (const host of Object.values(hosts)) assert.deepEqual(await fleet.ports.migrations.migrationsOf(host), []);
}

describe("a statement is taken only where that host is waited for", () => {
  const takes: Partial<Record<MigrationState["step"], Side[]>> = {
    performing: ["source"],
    finishing: ["source", "destination"],
    confirming: ["source"],
    settling: ["destination"],
    abortingFinish: ["source", "destination"],
    abortingConfirm: ["source"],
    restoring: ["source"],
    unstaging: ["destination"],
  };
  for (const [step, enter] of Object.entries(reach))
    for (const side of ["source", "destination"] as const) {
      const taken = takes[step as MigrationState["step"]]?.includes(side) === true;
      test(`${step}, ${side}: ${taken ? "taken" : "refused, and nothing changes"}`, async () => {
        await enter();
        const before = await load();
        assert.equal(before.step, step);
        if (taken) {
          const after = await resolve(side);
          assert.deepEqual(after.fenced, { side, by: "ann", reason: "burnt", at: fleet.ports.clock.now() });
          await assert.rejects(resolve(side), (error) => error instanceof Fault && error.code === "request.conflict");
        } else {
          await assert.rejects(resolve(side), (error) => error instanceof Fault && error.code === "request.conflict");
          assert.deepEqual(await load(), before);
        }
      });
    }

  test("a destination that has stated that it runs the domain cannot be spoken for", async () => {
    await upTo("perform");
    await report("destination", ticketCommandId(id, "finish", 1), finishedBody("started"));
    await report("source", `${id}:perform:1`, performedBody("relayed"));
    assert.equal((await load()).step, "confirming");
    await assert.rejects(resolve("destination"));
  });
});

describe("the destination is gone", () => {
  for (const step of ["finishing", "abortingFinish"] as const)
    test(`${step}: the source takes the domain back by the statement, signed for it; the host is asked when it returns`, async () => {
      await reach[step]?.();
      const before = await load();
      await resolve("destination");
      const confirm = await owedBy("source");
      assert.ok(confirm.kind === "confirm");
      assert.ok(confirm.epoch > 1 && confirm.epoch >= before.epoch);
      assert.deepEqual([confirm.receipt.outcome, confirm.receipt.evidence], ["destroyed", "fenced"]);
      const key = await fleet.ports.tickets.publicKey();
      const text = receiptSignedText({ migrationId: id, domainUuid: domain.uuid, receipt: confirm.receipt });
      assert.ok(verifyText(key, text, confirm.receipt.signature ?? ""));
      const { ticket } = confirm;
      assert.ok(ticket !== null && verifyText(key, ticketSignedText(ticket.text), ticket.signature));
      // The very same with every heartbeat (I6).
      assert.deepEqual(await owedBy("source"), confirm);
      await report("source", confirm.id, { kind: "confirm", source: "running", receipt: confirm.receipt });
      await answer("source", "restore", one("restore"));

      const ended = await load();
      assert.equal(ended.step, "sweeping");
      assert.equal(await fleet.ports.migrations.domainLock(domain.uuid), null);
      assert.deepEqual(await fleet.ports.migrations.migrationsOf(hosts.source), []);
      await answer("destination", "unstage", one("unstage"));
      await restsWith(step === "finishing" ? "rolledBack" : "cancelled");
    });

  test("settling: the guest is on a host that is gone, and that is said", async () => {
    await upTo("settle");
    await resolve("destination");
    const { step, status, failure } = await load();
    assert.deepEqual([step, status], ["sweeping", "stranded"]);
    assert.match(failure?.action ?? "", /start the domain there/);
    // Back again, it says what nobody could look at: the tree is whole.
    await answer("destination", "settle", one("settle"));
    await restsWith("completed");
  });

  test("unstaging: the end comes at once, the sweep when it returns", async () => {
    await reach.unstaging?.();
    await resolve("destination");
    assert.equal((await load()).step, "sweeping");
    await answer("destination", "unstage", one("unstage"));
    await restsWith("rolledBack");
  });
});

describe("the source is gone", () => {
  test("performing, and the destination had been told nothing: it is given up there, the source owes its own way back", async () => {
    await upTo("perform");
    await resolve("source");
    const finish = await owedBy("destination");
    assert.ok(finish.kind === "finish" && finish.cancelled && finish.epoch === 2);
    await report("destination", finish.id, finishedBody("destroyed"));
    await answer("destination", "unstage", one("unstage"));
    const { step, sweep } = await load();
    assert.deepEqual([step, sweep], ["sweeping", ["confirm", "restore"]]);
    await answer("source", "confirm", confirmedBody("destroyed"));
    await answer("source", "restore", one("restore"));
    await restsWith("rolledBack");
    assert.equal((await load()).failure?.code, "source.lost");
  });

  test("performing, and the arbiter had decided to start it: it settles, the source owes its Confirm", async () => {
    await upTo("perform");
    await resolve("source");
    await answer("destination", "finish", finishedBody("started"));
    await answer("destination", "settle", one("settle"));
    const state = await load();
    assert.deepEqual([state.step, state.status, state.failure], ["sweeping", "completed", null]);
    const confirm = (await owedBy("source")) as CommandOf<"confirm">;
    assert.deepEqual([confirm.receipt.outcome, confirm.ticket === null], ["started", false]);
    await report("source", confirm.id, confirmedBody("started"));
    await restsWith("completed");
  });

  test("performing, with the destination's own word known: nobody is asked again", async () => {
    await upTo("perform");
    await report("destination", ticketCommandId(id, "finish", 1), finishedBody("started"));
    await resolve("source");
    await answer("destination", "settle", one("settle"));
    await answer("source", "confirm", confirmedBody("started"));
    await restsWith("completed");
  });

  for (const step of ["confirming", "abortingConfirm", "restoring"] as const)
    test(`${step}: the rest is done without it, and it is asked when it returns`, async () => {
      await reach[step]?.();
      await resolve("source");
      const started = step === "confirming";
      if (started) await answer("destination", "settle", one("settle"));
      else await answer("destination", "unstage", one("unstage"));
      if (step !== "restoring") await answer("source", "confirm", confirmedBody(started ? "started" : "destroyed"));
      if (!started) await answer("source", "restore", one("restore"));
      await restsWith(started ? "completed" : "rolledBack");
    });
});

describe("the sweep of a host that has returned", () => {
  async function sweeping(): Promise<void> {
    await reach.unstaging?.();
    await resolve("destination");
    fleet.script.pushed.length = 0;
  }

  test("fails a bounded number of times, each with a heartbeat, and then a person is told", async () => {
    await sweeping();
    let tries = 0;
    while ((await load()).step === "sweeping") {
      await answer("destination", "unstage", broken);
      tries += 1;
      assert.ok(tries <= sweepAttemptsMax, "it is asked without end");
    }
    assert.equal((await load()).attempts.unstage, sweepAttemptsMax);
    // Nothing is pushed at a host that may be away.
    assert.deepEqual(fleet.script.pushed, []);
    await restsWith("rolledBack");
    assert.match((await load()).timeline.at(-1)?.note ?? "", /look at what/);
  });

  test("fails once and then succeeds", async () => {
    await sweeping();
    await answer("destination", "unstage", broken);
    await answer("destination", "unstage", one("unstage"));
    await restsWith("rolledBack");
  });

  test("keeps nobody waiting: the timer asks for nothing, the domain is free, the other host's reports are nothing", async () => {
    await sweeping();
    const before = await load();
    fleet.pass(365 * 24 * 60 * 60_000);
    await fleet.runner.tick();
    await report("source", `${id}:unstage:1`, one("unstage"));
    await report("source", ticketCommandId(id, "confirm", 1), confirmedBody("destroyed"));
    await report("destination", ticketCommandId(id, "finish", 1), finishedBody("started"));
    assert.deepEqual(await load(), before);
    const second = { ...migrationRequest, id: "m_01JD0000000000000000000001" };
    assert.equal((await fleet.runner.request(second)).step, "inspectingSource");
    // The returned host is given both migrations' commands.
    assert.deepEqual(
      (await fleet.runner.pendingOf(hosts.destination)).map(({ kind }) => kind),
      ["unstage"],
    );
  });

  test("is no reason to take another statement or a cancel", async () => {
    await sweeping();
    await assert.rejects(resolve("source"));
    await assert.rejects(cancel());
  });
});

describe("what the shims did by themselves, in whatever order it is told", () => {
  const ticketFinish = (outcome: Receipt["outcome"]) =>
    report("destination", ticketCommandId(id, "finish", 1), {
      ...finishedBody(outcome),
      cookie: cookieBlob,
    } as ReportBody);
  const ticketConfirm = (outcome: Receipt["outcome"]) =>
    report("source", ticketCommandId(id, "confirm", 1), confirmedBody(outcome));
  const performed = (name: string) => report("source", `${id}:perform:1`, performedBody(name));
  const failed = (receipt?: Receipt) =>
    report("source", `${id}:perform:1`, {
      ok: false,
      fault: broken,
      sourceState: "running",
      ...(receipt === undefined ? {} : { receipt }),
    });
  const settled = async () => {
    await answer("destination", "settle", one("settle"));
    await restsWith("completed");
  };
  const restored = async () => {
    await answer("source", "restore", one("restore"));
    await answer("destination", "unstage", one("unstage"));
    await restsWith("rolledBack");
  };

  /** Each order of what is told of a migration that went well, by the two shims alone or with the relay half way. */
  const well: Record<string, (() => Promise<void>)[]> = {
    "the destination, then the source": [() => ticketFinish("started"), () => performed("done")],
    "the source, then the destination": [() => performed("done"), () => ticketFinish("started")],
    "the source alone": [() => performed("done")],
    "the source had not heard it, and confirms later": [
      () => performed("relayed"),
      () => ticketFinish("started"),
      () => ticketConfirm("started"),
    ],
    "the source's Confirm before the destination's Finish": [
      () => performed("relayed"),
      () => ticketConfirm("started"),
      () => ticketFinish("started"),
    ],
    "the source's Confirm before its own Perform": [() => ticketConfirm("started"), () => performed("relayed")],
    "the relayed Finish answers after the source has confirmed by itself": [
      () => performed("relayed"),
      () => ticketConfirm("started"),
      () => report("destination", `${id}:finish:1`, finishedBody("started")),
    ],
    "the relayed Confirm is stale, because the source has forgotten": [
      () => performed("relayed"),
      () => report("destination", `${id}:finish:1`, finishedBody("started")),
      () => ticketConfirm("started"),
      () => report("source", `${id}:confirm:1`, { ...broken, code: "epoch.stale", retry: "never" }),
    ],
    "a cancel came too late": [
      () => performed("relayed"),
      async () => void (await cancel()),
      () => ticketFinish("started"),
      () => ticketConfirm("started"),
    ],
    "a cancel came too late, and the source tells first": [
      () => performed("relayed"),
      async () => void (await cancel()),
      () => ticketConfirm("started"),
    ],
    "everything twice": [
      () => ticketFinish("started"),
      () => ticketFinish("started"),
      () => performed("done"),
      () => performed("done"),
    ],
  };
  for (const [name, told] of Object.entries(well))
    test(`it has moved: ${name}`, async () => {
      await upTo("perform");
      for (const tell of told) await tell();
      assert.equal((await load()).step, "settling");
      await settled();
    });

  const back: Record<string, (() => Promise<void>)[]> = {
    "Perform failed, and the destination says so first": [() => ticketFinish("destroyed"), () => failed()],
    "Perform failed with the receipt": [() => failed(receiptOf("destroyed"))],
    "Perform failed with the receipt, told twice": [
      () => failed(receiptOf("destroyed")),
      () => ticketFinish("destroyed"),
    ],
    "Perform succeeded, the destination could not start it": [() => performed("destroyed")],
    "the source took it back before its Perform is told": [
      () => ticketConfirm("destroyed"),
      () => performed("relayed"),
    ],
    "the source took it back while we relay": [() => performed("relayed"), () => ticketConfirm("destroyed")],
    "the source took it back after a cancel": [
      () => performed("relayed"),
      async () => void (await cancel()),
      () => ticketConfirm("destroyed"),
    ],
  };
  for (const [name, told] of Object.entries(back))
    test(`it is back: ${name}`, async () => {
      await upTo("perform");
      for (const tell of told) await tell();
      const state = await load();
      assert.deepEqual([state.step, state.epoch >= 2], ["restoring", true]);
      if (name.includes("cancel")) {
        await answer("source", "restore", one("restore"));
        await answer("destination", "unstage", one("unstage"));
        await restsWith("cancelled");
      } else await restored();
    });

  test("of a stranger, or of the other side's host, is nothing", async () => {
    await upTo("perform");
    const before = await load();
    await report("source", ticketCommandId(id, "finish", 1), finishedBody("started"));
    await report("destination", ticketCommandId(id, "confirm", 1), confirmedBody("started"));
    assert.deepEqual(await load(), before);
  });

  test("before Perform, or of a Finish that failed, is nothing", async () => {
    await upTo("prepare");
    const before = await load();
    await ticketFinish("started");
    assert.deepEqual(await load(), before);
    await fleet.serve({}, "perform");
    await report("destination", ticketCommandId(id, "finish", 1), broken);
    assert.deepEqual(await load(), before);
  });

  test("against a receipt that is known, it decides nothing (I7)", async () => {
    await upTo("perform");
    await ticketFinish("started");
    const before = await load();
    await ticketFinish("destroyed");
    await ticketConfirm("destroyed");
    assert.deepEqual(await load(), before);
  });

  test("its payload is stored before the state names it", async () => {
    await upTo("perform");
    await ticketFinish("started");
    const { D } = (await load()).blobs;
    assert.ok(D);
    assert.equal(Buffer.from((await fleet.ports.migrations.getBlob(id, D)) ?? []).toString(), "cookie");
    const wrong = { ...cookieBlob, sha256: "0".repeat(64) };
    const body = { ...finishedBody("started"), cookie: wrong } as ReportBody;
    await assert.rejects(report("destination", ticketCommandId(id, "finish", 2), body), Fault);
  });
});
