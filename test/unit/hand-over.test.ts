/**
 * The source's part of the ticket over a real executor and journal, the real Perform and Confirm and a fake libvirtd: Perform
 * begins only when the destination is armed, and afterwards nothing moves the domain but a receipt that counts (I1, I2, I7).
 */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import { DomainState, ErrorCode, ErrorDomain } from "#libvirt/constants";
import type { CommandOf, Receipt } from "#protocol/command";
import { type PeerReply, resultSignedText } from "#protocol/ticket";
import { drainUntilIdle } from "#shim/drain";
import { verifyText } from "#shim/peer/seal";
import { Refusal } from "#test/fake/libvirtd";
import { id, make, type Process } from "#test/fake/shim-process";
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
  refused,
  SourceWorld,
  tick,
  ticket,
  ticketConfirmId,
  unreachable,
  until,
} from "#test/fake/source-world";
import { sealOf, signedReceipt, ticketFor } from "#test/fake/treaty";

let it: SourceWorld;
beforeEach(async () => {
  it = await SourceWorld.start();
});
afterEach(() => it.stop());

describe("without a destination that is armed Perform is not called, and the guest runs on", () => {
  const signed = (fields: Parameters<typeof ticketFor>[1]) => ({
    ...plainPerform,
    ticket: ticketFor(plainPerform, fields),
  });
  const cases: Record<string, [CommandOf<"perform">, () => PeerReply, string]> = {
    "no ticket": [plainPerform, () => ({ type: "armed" }), "ticket.refused"],
    "a forged ticket": [
      { ...plainPerform, ticket: { ...ticket, signature: "A".repeat(86) } },
      () => ({ type: "armed" }),
      "ticket.refused",
    ],
    "the ticket of another Prepare": [
      signed({ cookieSha256: "0".repeat(64) }),
      () => ({ type: "armed" }),
      "ticket.refused",
    ],
    "the ticket of another migration": [
      signed({ migrationId: "m_01JD0000000000000000000009" }),
      () => ({ type: "armed" }),
      "ticket.refused",
    ],
    "the ticket of another epoch": [signed({ epoch: 2 }), () => ({ type: "armed" }), "ticket.refused"],
    "an expired ticket": [
      signed({ expiresAt: "2026-11-22T09:00:00.000Z" }),
      () => ({ type: "armed" }),
      "ticket.refused",
    ],
    "a destination that refuses": [performing, () => refused("destination.lost"), "destination.lost"],
    "a destination that answers something else": [performing, () => finished("started"), "peer.unreachable"],
    "no answer": [
      performing,
      () => {
        throw unreachable();
      },
      "peer.unreachable",
    ],
  };
  for (const [name, [command, arm, code]] of Object.entries(cases))
    test(name, async () => {
      it.peers.arm = arm;
      const [process, watch] = await it.shim();
      await process.run(command);
      assert.deepEqual(failureOf(lastReport(process, performId)), [code, "running"]);
      assert.deepEqual(it.host.calls, []);
      await lookOnce(process, watch);
      assert.deepEqual(it.peers.handOvers, []);
      assert.equal(it.host.state, DomainState.RUNNING);
    });

  test("an armed ticket that expires during Perform holds", async () => {
    const command = signed({ expiresAt: "2026-11-22T10:00:00.000Z" });
    it.peers.handOver = () => finished("started");
    it.perform3 = () => {
      it.nowMs += 24 * 60 * 60_000;
      it.host.pauseByMigration();
    };
    const [process] = await it.shim();
    await process.run(command);
    assert.equal(endedOf(lastReport(process, performId))?.source, "gone");
  });
});

describe("Perform has ended", () => {
  test("well: the signed result goes over with cookie C, and the source goes by the receipt, each step on disk first", async () => {
    it.peers.handOver = () => finished("started");
    const [process] = await it.shim();
    await process.run(performing);
    const ended = endedOf(lastReport(process, performId));
    assert.deepEqual([ended?.receipt.outcome, ended?.source], ["started", "gone"]);
    assert.equal(it.host.present, false);
    assert.deepEqual(await milestones(process), ["armed", "performing", "handing", "receipt", "confirmed"]);
    const [asked] = it.peers.handOvers;
    assert.ok(asked);
    assert.equal(Buffer.from(asked.cookie ?? "", "base64").toString(), "cookie C");
    assert.ok(verifyText(sealOf("source").publicKey, resultSignedText(asked.result.text), asked.result.signature));
  });

  test("badly: the destination is asked to end its copy, and the source runs", async () => {
    it.peers.handOver = () => finished("destroyed");
    it.perform3 = () => {
      throw new Refusal(ErrorCode.OPERATION_FAILED, ErrorDomain.QEMU, "no room");
    };
    const [process] = await it.shim();
    await process.run(performing);
    const report = lastReport(process, performId);
    assert.deepEqual(failureOf(report), ["perform.failed", "running"]);
    assert.equal(!report.result.ok && report.result.receipt?.outcome, "destroyed");
    assert.equal(it.peers.handOvers[0]?.cookie, null);
    assert.match(it.peers.handOvers[0]?.result.text ?? "", /"outcome":"failed"/);
  });

  const noReceipts: Record<string, Receipt> = {
    unsigned: bareReceipt("destroyed"),
    "signed by the source": signedReceipt(bareReceipt("destroyed"), plainPerform, "source"),
    "signed by the control plane": signedReceipt(bareReceipt("destroyed"), plainPerform, "control"),
    "of another migration": signedReceipt(bareReceipt("destroyed"), {
      ...plainPerform,
      migrationId: "m_01JD0000000000000000000009",
    }),
    "turned round": { ...signedReceipt(bareReceipt("started"), plainPerform), outcome: "destroyed" },
  };
  for (const [name, receipt] of Object.entries(noReceipts))
    test(`a receipt that is ${name} is none: the source stays paused until one comes that counts`, async () => {
      it.peers.handOver = () => ({ type: "finished", receipt, cookie: null, fault: null });
      const [process, watch] = await it.parted();
      await lookOnce(process, watch);
      assert.equal(it.host.state, DomainState.PAUSED);
      assert.deepEqual(process.reports(ticketConfirmId), []);
      it.peers.handOver = () => finished("destroyed");
      await lookOnce(process, watch);
      assert.equal(it.host.state, DomainState.RUNNING);
    });

  test("a destination that is just starting is asked again at once", async () => {
    let starting = 3;
    it.peers.handOver = () => (starting-- > 0 ? refused("shim.restarted") : finished("started"));
    const [process] = await it.shim();
    await process.run(performing);
    assert.equal(endedOf(lastReport(process, performId))?.source, "gone");
  });

  test("a destination that states nothing is left to the functions at once", async () => {
    it.peers.handOver = () => refused("epoch.stale");
    const [process] = await it.parted();
    assert.equal(it.peers.handOvers.length, 1);
    assert.equal(process.reports(performId).length, 1);
  });
});

describe("what a receipt is signed by", () => {
  const cases: Record<string, [Receipt, Partial<CommandOf<"confirm">>, boolean, string?]> = {
    "a person's statement, by the control plane": [
      signedReceipt(bareReceipt("destroyed", "fenced"), plainPerform),
      {},
      true,
    ],
    "a person's statement, by the destination": [
      signedReceipt(bareReceipt("destroyed", "fenced"), plainPerform, "destination"),
      {},
      false,
    ],
    "a person's statement, by the source": [
      signedReceipt(bareReceipt("destroyed", "fenced"), plainPerform, "source"),
      {},
      false,
    ],
    "a person's statement, by nobody": [bareReceipt("destroyed", "fenced"), {}, false],
    "the destination's, by the destination": [signedReceipt(bareReceipt("destroyed"), plainPerform), {}, true],
    "the destination's, by the control plane": [
      signedReceipt(bareReceipt("destroyed"), plainPerform, "control"),
      {},
      false,
    ],
    "the destination's, without the ticket that names its key": [
      signedReceipt(bareReceipt("destroyed"), plainPerform),
      { ticket: null },
      false,
      "ticket.refused",
    ],
  };
  for (const [name, [receipt, fields, counts, code = "receipt.refused"]] of Object.entries(cases))
    test(`${name}: ${counts ? "counts" : "is refused, and nothing is touched"}`, async () => {
      const [process] = await it.parted();
      await process.run(confirming(receipt, { epoch: 2, ...fields }));
      const { result } = lastReport(process, `${id}:confirm:1`);
      assert.equal(result.ok ? "ok" : result.fault.code, counts ? "ok" : code);
      assert.equal(it.host.state, counts ? DomainState.RUNNING : DomainState.PAUSED);
    });
});

describe("SIGTERM", () => {
  /** Drains until the shim may end; what was said is returned with what was waited for at each look. */
  async function drained(process: Process, onLook: (look: number) => void | Promise<void>): Promise<string[]> {
    const said: string[] = [];
    let look = 0;
    await drainUntilIdle({
      executor: process.executor,
      signal: AbortSignal.abort(),
      clock: {
        now: () => "",
        monotonicMs: () => it.nowMs,
        random: () => 0,
        sleep: async (ms) => {
          it.nowMs += ms;
          look += 1;
          await onLook(look);
          await tick();
        },
      },
      say: (line) => void said.push(line),
      msMax: 60_000,
      armedMsMax: 60_000,
    });
    return said;
  }

  test("during Perform waits for the receipt and for Confirm, and for no acknowledgement", async () => {
    const running = Promise.withResolvers<void>();
    it.perform3 = async () => {
      await running.promise;
      it.host.pauseByMigration();
    };
    it.peers.handOver = () => finished("started");
    const [process] = await it.shim();
    process.executor.command(performing);
    await until(() => it.host.calls.includes("perform"));
    const said = await drained(process, async (look) => {
      if (look !== 2) return;
      running.resolve();
      await process.executor.idle();
    });
    assert.equal(said.length, 1);
    assert.equal(it.host.present, false);
    assert.equal(process.executor.record(id)?.unacknowledged().length, 1);
  });

  test("after a Perform that was refused waits for nobody: the guest runs, and the way back needs no hurry", async () => {
    it.peers.arm = () => refused("destination.lost");
    const [process] = await it.shim();
    await process.run(performing);
    assert.deepEqual(await drained(process, () => {}), []);
    assert.deepEqual(process.executor.armed(), []);
  });

  test("with the channel broken goes on asking, and ends once the source has confirmed", async () => {
    const [process, watch] = await it.parted();
    let looks = 0;
    await drained(process, async (look) => {
      looks = look;
      if (look === 3) it.peers.handOver = () => finished("destroyed");
      await lookOnce(process, watch);
    });
    assert.equal(looks, 3);
    assert.equal(it.host.state, DomainState.RUNNING);
  });

  test("with everything cut ends at its bound, and the next one takes it up", async () => {
    const [process] = await it.parted();
    const said = await drained(process, () => {});
    assert.match(said.at(-1) ?? "", /taken up at the next start/);
    await process.crash();
    it.peers.handOver = () => finished("started");
    const [next, watch] = await it.shim();
    await lookOnce(next, watch);
    assert.equal(it.host.present, false);
  });

  test("at its bound leaves what runs as a crash would: nothing is written or asked of libvirt any more", async () => {
    const perform = Promise.withResolvers<void>();
    it.perform3 = async () => {
      await perform.promise;
      it.host.pauseByMigration();
    };
    it.peers.handOver = () => finished("destroyed");
    const [process] = await it.shim();
    process.executor.command(performing);
    await until(() => it.host.calls.includes("perform"));
    process.executor.end();
    const written = (await process.entries()).length;
    perform.resolve();
    for (let turns = 0; turns < 50; turns += 1) await tick();
    assert.equal((await process.entries()).length, written);
    assert.deepEqual([it.host.calls, it.peers.handOvers], [["perform"], []]);
    // The next one takes it up.
    await process.crash();
    const [next] = await it.shim();
    await next.executor.idle();
    assert.equal(it.host.state, DomainState.RUNNING);
  });

  test("on the destination an armed migration is waited for until its receipt", async () => {
    const [process] = await it.shim();
    await process.run(make("prepare"));
    assert.deepEqual(process.executor.underWay(), [id]);
    await process.executor.milestone(id, `${id}:prepare:1`, "finished", {
      receipt: bareReceipt("started"),
      cookie: null,
    });
    assert.deepEqual(process.executor.underWay(), []);
  });
});
