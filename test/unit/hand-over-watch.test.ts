/**
 * After Perform without a statement of the destination: whoever gets through first, the shims or the functions, ends the
 * migration, once, and whatever died on the way is taken up where it was (I2, I7, I10).
 */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import { DomainState, ErrorCode, ErrorDomain } from "#libvirt/constants";
import { procedures as p } from "#libvirt/procedures";
import type { Receipt } from "#protocol/command";
import type { PeerReply } from "#protocol/ticket";
import { Refusal } from "#test/fake/libvirtd";
import { id, make } from "#test/fake/shim-process";
import {
  bareReceipt,
  confirming,
  endedOf,
  failureOf,
  finished,
  lastReport,
  lookOnce,
  milestones,
  performId,
  performing,
  plainPerform,
  SourceWorld,
  tick,
  ticketConfirmId,
  until,
} from "#test/fake/source-world";
import { signedReceipt } from "#test/fake/treaty";

let it: SourceWorld;
beforeEach(async () => {
  it = await SourceWorld.start();
});
afterEach(() => it.stop());

describe("the channel is broken after Perform", () => {
  test("the functions are asked to relay, and when it heals the source ends it by itself", async () => {
    const [process, watch] = await it.parted();
    await lookOnce(process, watch);
    assert.equal(it.host.state, DomainState.PAUSED);
    it.peers.handOver = () => finished("started");
    await lookOnce(process, watch);
    assert.equal(it.host.present, false);
    const { result } = lastReport(process, ticketConfirmId);
    assert.ok(result.ok && result.body.kind === "confirm");
    assert.deepEqual([result.body.source, result.body.receipt.outcome], ["gone", "started"]);
    // Every asking was the same statement.
    assert.equal(new Set(it.peers.handOvers.map(({ result: { text } }) => text)).size, 1);
    const asked = it.peers.handOvers.length;
    await lookOnce(process, watch);
    assert.equal(it.peers.handOvers.length, asked);
  });

  test("the relay was quicker: nobody is asked any more", async () => {
    const [process, watch] = await it.parted();
    const asked = it.peers.asked.length;
    await process.run(confirming(signedReceipt(bareReceipt("started"), plainPerform)));
    assert.equal(it.host.present, false);
    await lookOnce(process, watch);
    assert.equal(it.peers.asked.length, asked);
    assert.deepEqual(process.reports(ticketConfirmId), []);
  });

  test("the relay gets through while the destination is being asked: it is confirmed once", async () => {
    const [process, watch] = await it.parted();
    const answer = Promise.withResolvers<PeerReply>();
    it.peers.handOver = () => answer.promise;
    const looking = watch.round();
    await process.run(confirming(signedReceipt(bareReceipt("destroyed"), plainPerform)));
    answer.resolve(finished("destroyed"));
    await looking;
    assert.deepEqual(process.reports(ticketConfirmId), []);
    assert.equal(it.host.calls.filter((call) => call.startsWith("confirm")).length, 1);
  });

  test("the watch gets through first: the functions' Confirm that comes after finds it done", async () => {
    const [process, watch] = await it.parted();
    it.peers.handOver = () => finished("destroyed");
    await lookOnce(process, watch);
    await process.run(confirming(signedReceipt(bareReceipt("destroyed"), plainPerform), { epoch: 2 }));
    const { result } = lastReport(process, `${id}:confirm:1`);
    assert.ok(result.ok && result.body.kind === "confirm");
    assert.equal(result.body.source, "running");
    assert.equal(it.host.calls.filter((call) => call.startsWith("confirm")).length, 1);
  });

  test("moved and acknowledged: the host has forgotten it, and a late Confirm of the functions is stale", async () => {
    const [process, watch] = await it.parted();
    it.peers.handOver = () => finished("started");
    await lookOnce(process, watch);
    await process.executor.acknowledged(ticketConfirmId);
    await process.executor.idle();
    assert.equal(process.executor.record(id), null);
    await process.run(confirming(signedReceipt(bareReceipt("started"), plainPerform)));
    assert.deepEqual(failureOf(lastReport(process, `${id}:confirm:1`)), ["epoch.stale", undefined]);
  });

  test("a Confirm that fails is tried again, with growing pauses, and nobody is asked again", async () => {
    const [process, watch] = await it.parted();
    it.peers.handOver = () => finished("started");
    // Somebody has started the source's copy by hand: it is not touched.
    it.host.state = DomainState.RUNNING;
    it.host.reason = 0;
    for (let seconds = 0; seconds < 60; seconds += 1) {
      await lookOnce(process, watch);
      it.nowMs += 1_000;
    }
    const tried = (await process.entries()).filter((entry) => entry.type === "intent").length - 1;
    assert.ok(tried >= 3 && tried <= 8, `${tried} commands in a minute`);
    assert.equal(it.peers.handOvers.filter((_, index) => index > 0).length > 0, true);
    const asked = it.peers.handOvers.length;
    it.host.pauseByMigration();
    it.nowMs += 10 * 60_000;
    await lookOnce(process, watch);
    assert.equal(it.host.present, false);
    assert.equal(it.peers.handOvers.length, asked);
  });

  test("a statement that the source could not act on at once is acted on without the functions", async () => {
    it.peers.handOver = () => finished("destroyed");
    let failing = true;
    it.host.fake.answer(p.domainMigrateConfirm3Params, () => {
      throw new Refusal(ErrorCode.OPERATION_FAILED, ErrorDomain.QEMU, "cannot confirm");
    });
    it.host.onCall = (call) => {
      if (failing && call === "resume") throw new Refusal(ErrorCode.OPERATION_FAILED, ErrorDomain.QEMU, "not now");
    };
    const [process, watch] = await it.shim();
    await process.run(performing);
    const ended = endedOf(lastReport(process, performId));
    assert.deepEqual([ended?.receipt.outcome, ended?.source], ["destroyed", "paused"]);
    failing = false;
    const asked = it.peers.asked.length;
    await lookOnce(process, watch);
    assert.equal(it.host.state, DomainState.RUNNING);
    assert.equal(it.peers.asked.length, asked);
  });

  test("a full disk keeps nothing for ever: with room again the source confirms", async () => {
    const [process, watch] = await it.parted();
    it.peers.handOver = () => finished("destroyed");
    process.diskFull = true;
    await lookOnce(process, watch);
    assert.equal(it.host.state, DomainState.PAUSED);
    process.diskFull = false;
    await lookOnce(process, watch);
    assert.equal(it.host.state, DomainState.RUNNING);
  });

  test("a source that was restored is asked about no more: what pauses it now is not this migration", async () => {
    it.perform3 = () => {
      throw new Refusal(ErrorCode.OPERATION_FAILED, ErrorDomain.QEMU, "no room");
    };
    const [process, watch] = await it.shim();
    await process.run(performing);
    await process.run(make("restore", { epoch: 2 }));
    assert.equal(it.peers.handOvers.length > 0, true);
    const asked = it.peers.asked.length;
    it.host.pauseByMigration();
    it.peers.handOver = () => finished("destroyed");
    await lookOnce(process, watch);
    assert.equal(it.peers.asked.length, asked);
    assert.equal(it.host.state, DomainState.PAUSED);
  });
});

describe("the source's shim dies", () => {
  async function dead(after: string): Promise<void> {
    const [process] = await it.shim(after);
    process.executor.command(performing);
    await until(async () => (await milestones(process).catch((): string[] => [])).includes(after));
    await tick();
  }

  test("armed, before Perform: it is not called, and the guest runs", async () => {
    await dead("armed");
    const [process] = await it.shim();
    await process.executor.idle();
    assert.deepEqual(failureOf(lastReport(process, performId)), ["perform.failed", "running"]);
    assert.deepEqual([it.host.calls, it.peers.handOvers], [[], []]);
  });

  test("during Perform: its answer is lost, so the destination is asked to end its copy", async () => {
    await dead("performing");
    it.host.pauseByMigration();
    it.peers.handOver = () => finished("destroyed");
    const [process] = await it.shim();
    await process.executor.idle();
    assert.deepEqual(failureOf(lastReport(process, performId)), ["perform.failed", "running"]);
    assert.match(it.peers.handOvers[0]?.result.text ?? "", /"outcome":"failed"/);
    assert.ok(!it.host.calls.includes("perform"));
  });

  test("after the result was kept: the same result is handed over again, and Perform is not", async () => {
    await dead("handing");
    it.peers.handOver = () => finished("started");
    const [process] = await it.shim();
    await process.executor.idle();
    assert.equal(endedOf(lastReport(process, performId))?.source, "gone");
    assert.equal(Buffer.from(it.peers.handOvers[0]?.cookie ?? "", "base64").toString(), "cookie C");
    assert.equal(it.host.calls.filter((call) => call === "perform").length, 1);
  });

  test("after the receipt: it is confirmed, and nobody is asked", async () => {
    it.peers.handOver = () => finished("started");
    await dead("receipt");
    const asked = it.peers.asked.length;
    const [process] = await it.shim();
    await process.executor.idle();
    assert.equal(endedOf(lastReport(process, performId))?.source, "gone");
    assert.equal(it.peers.asked.length, asked);
  });

  test("with what the watch was told: the next one confirms, and nobody is asked", async () => {
    const [first] = await it.parted();
    it.peers.handOver = () => finished("destroyed");
    // The receipt reaches the disk, what is to be done by it does not.
    const { executor } = first;
    const dying = it.watch({
      records: () => executor.records(),
      milestone: (...words) => executor.milestone(...words),
      carryOut: async () => {
        await first.crash();
        throw new Error("dead");
      },
    });
    await dying.round();
    assert.equal(it.host.state, DomainState.PAUSED);
    const asked = it.peers.asked.length;
    const [second, again] = await it.shim();
    await second.executor.idle();
    await lookOnce(second, again);
    assert.equal(it.host.state, DomainState.RUNNING);
    assert.equal(it.peers.asked.length, asked);
    assert.ok((await milestones(second)).includes("receipt"));
  });
});

describe("a receipt is never contradicted (I7)", () => {
  const others: Record<string, Receipt> = {
    "by the destination's own key": signedReceipt(bareReceipt("destroyed"), plainPerform),
    "by a person's statement": signedReceipt(bareReceipt("destroyed", "fenced"), plainPerform),
  };
  for (const [name, receipt] of Object.entries(others))
    test(`what the destination has stated to this host stands against another one ${name}`, async () => {
      const [process, watch] = await it.parted();
      it.peers.handOver = () => finished("started");
      // It cannot be done at once: the copy here runs, by somebody's hand.
      it.host.state = DomainState.RUNNING;
      it.host.reason = 0;
      await lookOnce(process, watch);
      assert.deepEqual(failureOf(lastReport(process, ticketConfirmId)), ["confirm.failed", undefined]);
      it.host.pauseByMigration();
      await process.run(confirming(receipt, { epoch: 2 }));
      assert.deepEqual(failureOf(lastReport(process, `${id}:confirm:1`)), ["receipt.refused", undefined]);
      assert.equal(it.host.state, DomainState.PAUSED);
      assert.deepEqual(it.host.calls, ["perform"]);
    });
});
