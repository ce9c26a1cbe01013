/**
 * The source's part of the ticket over a real executor and journal, the real Perform and Confirm and a fake libvirtd: Perform
 * begins only when the destination is armed, and afterwards nothing moves the domain but a receipt that counts (I1, I2, I7).
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { DomainState, ErrorCode, ErrorDomain } from "#libvirt/constants";
import { procedures as p } from "#libvirt/procedures";
import type { CommandKind, CommandOf, Receipt, Report } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { type PeerReply, type PeerRequest, resultSignedText } from "#protocol/ticket";
import { confirm } from "#shim/confirm";
import { drainUntilIdle } from "#shim/drain";
import { HandOverWatch } from "#shim/hand-over-watch";
import { verifyText } from "#shim/peer/seal";
import { perform } from "#shim/perform";
import type { Peers, Step, Work } from "#shim/ports";
import { Refusal } from "#test/fake/libvirtd";
import { id, make, Process, processes } from "#test/fake/shim-process";
import { StepHost } from "#test/fake/step-host";
import { sealOf, signedReceipt, ticketFor } from "#test/fake/treaty";

const seal = sealOf("source");
const plain = make("perform") as CommandOf<"perform">;
const ticket = ticketFor(plain);
const performing: CommandOf<"perform"> = { ...plain, ticket };
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
const cookieC = Buffer.from("cookie C");
const tick = () => new Promise<void>((done) => setImmediate(done));

const bare = (outcome: Receipt["outcome"], evidence: Receipt["evidence"] = "finish") =>
  ({ outcome, evidence, at: "2026-11-22T10:00:01.000Z" }) as const;
const finished = (outcome: Receipt["outcome"]): PeerReply => ({
  type: "finished",
  receipt: signedReceipt(bare(outcome), plain),
  cookie: null,
  fault: null,
});
const refused = (code: "destination.lost" | "epoch.stale" | "shim.restarted"): PeerReply => ({
  type: "refused",
  fault: { code, cause: "No.", action: "Wait.", retry: "safe" },
});
const unreachable = () => new Fault({ code: "peer.unreachable", cause: "Cut.", action: "Wait.", retry: "safe" });

/** The destination as the source sees it: every answer is the test's. */
class ScriptedPeers implements Peers {
  readonly asked: PeerRequest[] = [];
  arm: () => PeerReply | Promise<PeerReply> = () => ({ type: "armed" });
  handOver: () => PeerReply | Promise<PeerReply> = () => {
    throw unreachable();
  };
  async ask(_: unknown, request: PeerRequest): Promise<PeerReply> {
    this.asked.push(request);
    return request.type === "arm" ? this.arm() : this.handOver();
  }
  hold(): () => void {
    return () => {};
  }
  get handOvers() {
    return this.asked.flatMap((request) => (request.type === "handOver" ? [request] : []));
  }
}

let root: string;
let state: string;
let round = 0;
let host: StepHost;
let peers: ScriptedPeers;
let nowMs: number;
/** What Perform3 does. */
let perform3: () => void | Promise<void>;

before(async () => {
  root = await mkdtemp(join(tmpdir(), "vmferry-hand-over-"));
});
beforeEach(async () => {
  round += 1;
  state = join(root, `state${round}`);
  nowMs = Date.parse("2026-11-22T10:00:00.000Z");
  peers = new ScriptedPeers();
  host = await StepHost.start();
  perform3 = () => host.pauseByMigration();
  host.fake.answer(p.domainMigratePerform3Params, async () => {
    host.calls.push("perform");
    await perform3();
    return { cookieOut: cookieC };
  });
  host.fake.answer(p.domainMigrateConfirm3Params, ({ cancelled }) => {
    host.calls.push(`confirm${cancelled ? " cancelled" : ""}`);
    if (cancelled) host.state = DomainState.RUNNING;
    else host.present = false;
    host.reason = 0;
    return {};
  });
  host.fake.answer(p.domainDestroyFlags, () => {
    host.calls.push("destroy");
    host.state = DomainState.SHUTOFF;
    return {};
  });
});
afterEach(async () => {
  for (const process of processes.splice(0)) await process.crash();
  await host.stop();
});
after(() => rm(root, { recursive: true, force: true }));

/** A source's shim with the real steps; after a milestone of that name it dies. */
async function shim(dieAfter: string | null = null): Promise<[Process, HandOverWatch]> {
  const real =
    <K extends CommandKind>(step: Step<K>): Step<K> =>
    (work: Work<K>) =>
      step({
        ...work,
        peers,
        connection: async () => ({ libvirt: host.libvirt, continuous: (await work.connection()).continuous }),
        inventory: async () => host.libvirt,
        payloads: {
          ...work.payloads,
          read: async () => new Uint8Array(0),
          write: async (bytes) => {
            const base64 = Buffer.from(bytes).toString("base64");
            return { in: "inline", base64, sha256: sha256(bytes), bytes: bytes.byteLength };
          },
        },
        sleep: async (ms) => {
          nowMs += ms;
          await tick();
        },
        now: () => new Date(nowMs).toISOString(),
        milestone: async (name, data) => {
          await work.milestone(name, data);
          if (name !== dieAfter) return;
          await process.crash();
          await new Promise(() => {});
        },
      });
  const process: Process = await Process.start(state, { perform: real(perform), confirm: real(confirm) });
  const watch = new HandOverWatch({
    executor: process.executor,
    peers,
    seal,
    clock: { now: () => "", monotonicMs: () => nowMs, sleep: async () => {}, random: () => 0 },
    log: { write() {} },
    signal: new AbortController().signal,
  });
  return [process, watch];
}

async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await holds())) await tick();
}

/** One round of the watch, to the end of what it began. */
async function lookOnce(process: Process, watch: HandOverWatch): Promise<void> {
  await watch.round();
  await process.executor.idle();
}

const milestones = async (process: Process) =>
  (await process.entries()).flatMap((entry) =>
    entry.type === "milestone" && entry.name !== "connected" ? [entry.name] : [],
  );
const last = (process: Process, commandId: string): Report => {
  const report = process.reports(commandId).at(-1);
  assert.ok(report, `no report of ${commandId}`);
  return report;
};
const failureOf = (report: Report) => (report.result.ok ? null : [report.result.fault.code, report.result.sourceState]);
function endedOf({ result }: Report) {
  assert.ok(result.ok && result.body.kind === "perform", JSON.stringify(result));
  return result.body.ended;
}
const performId = `${id}:perform:1`;
const ticketConfirmId = `${id}:ticketConfirm:1`;

/** Performed, and the destination gave no statement. */
async function parted(): Promise<[Process, HandOverWatch]> {
  const [process, watch] = await shim();
  await process.run(performing);
  assert.equal(endedOf(last(process, performId)), null);
  assert.equal(host.state, DomainState.PAUSED);
  return [process, watch];
}

const confirming = (receipt: Receipt, fields: Partial<CommandOf<"confirm">> = {}): CommandOf<"confirm"> => ({
  ...(make("confirm") as CommandOf<"confirm">),
  ticket,
  receipt,
  ...fields,
});

describe("without a destination that is armed Perform is not called, and the guest runs on", () => {
  const signed = (fields: Parameters<typeof ticketFor>[1]) => ({ ...plain, ticket: ticketFor(plain, fields) });
  const cases: Record<string, [CommandOf<"perform">, () => PeerReply, string]> = {
    "no ticket": [plain, () => ({ type: "armed" }), "ticket.refused"],
    "a forged ticket": [
      { ...plain, ticket: { ...ticket, signature: "A".repeat(86) } },
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
      peers.arm = arm;
      const [process, watch] = await shim();
      await process.run(command);
      assert.deepEqual(failureOf(last(process, performId)), [code, "running"]);
      assert.deepEqual(host.calls, []);
      await lookOnce(process, watch);
      assert.deepEqual(peers.handOvers, []);
      assert.equal(host.state, DomainState.RUNNING);
    });

  test("an armed ticket that expires during Perform holds", async () => {
    const command = signed({ expiresAt: "2026-11-22T10:00:00.000Z" });
    peers.handOver = () => finished("started");
    perform3 = () => {
      nowMs += 24 * 60 * 60_000;
      host.pauseByMigration();
    };
    const [process] = await shim();
    await process.run(command);
    assert.equal(endedOf(last(process, performId))?.source, "gone");
  });
});

describe("Perform has ended", () => {
  test("well: the signed result goes over with cookie C, and the source goes by the receipt, each step on disk first", async () => {
    peers.handOver = () => finished("started");
    const [process] = await shim();
    await process.run(performing);
    const ended = endedOf(last(process, performId));
    assert.deepEqual([ended?.receipt.outcome, ended?.source], ["started", "gone"]);
    assert.equal(host.present, false);
    assert.deepEqual(await milestones(process), ["armed", "performing", "handing", "receipt", "confirmed"]);
    const [asked] = peers.handOvers;
    assert.ok(asked);
    assert.equal(Buffer.from(asked.cookie ?? "", "base64").toString(), "cookie C");
    assert.ok(verifyText(seal.publicKey, resultSignedText(asked.result.text), asked.result.signature));
  });

  test("badly: the destination is asked to end its copy, and the source runs", async () => {
    peers.handOver = () => finished("destroyed");
    perform3 = () => {
      throw new Refusal(ErrorCode.OPERATION_FAILED, ErrorDomain.QEMU, "no room");
    };
    const [process] = await shim();
    await process.run(performing);
    const report = last(process, performId);
    assert.deepEqual(failureOf(report), ["perform.failed", "running"]);
    assert.equal(!report.result.ok && report.result.receipt?.outcome, "destroyed");
    assert.equal(peers.handOvers[0]?.cookie, null);
    assert.match(peers.handOvers[0]?.result.text ?? "", /"outcome":"failed"/);
  });

  const noReceipts: Record<string, Receipt> = {
    unsigned: bare("destroyed"),
    "signed by the source": signedReceipt(bare("destroyed"), plain, "source"),
    "signed by the control plane": signedReceipt(bare("destroyed"), plain, "control"),
    "of another migration": signedReceipt(bare("destroyed"), { ...plain, migrationId: "m_01JD0000000000000000000009" }),
    "turned round": { ...signedReceipt(bare("started"), plain), outcome: "destroyed" },
  };
  for (const [name, receipt] of Object.entries(noReceipts))
    test(`a receipt that is ${name} is none: the source stays paused until one comes that counts`, async () => {
      peers.handOver = () => ({ type: "finished", receipt, cookie: null, fault: null });
      const [process, watch] = await parted();
      await lookOnce(process, watch);
      assert.equal(host.state, DomainState.PAUSED);
      assert.deepEqual(process.reports(ticketConfirmId), []);
      peers.handOver = () => finished("destroyed");
      await lookOnce(process, watch);
      assert.equal(host.state, DomainState.RUNNING);
    });

  test("a destination that is just starting is asked again at once", async () => {
    let starting = 3;
    peers.handOver = () => (starting-- > 0 ? refused("shim.restarted") : finished("started"));
    const [process] = await shim();
    await process.run(performing);
    assert.equal(endedOf(last(process, performId))?.source, "gone");
  });

  test("a destination that states nothing is left to the functions at once", async () => {
    peers.handOver = () => refused("epoch.stale");
    const [process] = await parted();
    assert.equal(peers.handOvers.length, 1);
    assert.equal(process.reports(performId).length, 1);
  });
});

describe("the channel is broken after Perform", () => {
  test("the functions are asked to relay, and when it heals the source ends it by itself", async () => {
    const [process, watch] = await parted();
    await lookOnce(process, watch);
    assert.equal(host.state, DomainState.PAUSED);
    peers.handOver = () => finished("started");
    await lookOnce(process, watch);
    assert.equal(host.present, false);
    const { result } = last(process, ticketConfirmId);
    assert.ok(result.ok && result.body.kind === "confirm");
    assert.deepEqual([result.body.source, result.body.receipt.outcome], ["gone", "started"]);
    // Every asking was the same statement.
    assert.equal(new Set(peers.handOvers.map(({ result: { text } }) => text)).size, 1);
    const asked = peers.handOvers.length;
    await lookOnce(process, watch);
    assert.equal(peers.handOvers.length, asked);
  });

  test("the relay was quicker: nobody is asked any more", async () => {
    const [process, watch] = await parted();
    const asked = peers.asked.length;
    await process.run(confirming(signedReceipt(bare("started"), plain)));
    assert.equal(host.present, false);
    await lookOnce(process, watch);
    assert.equal(peers.asked.length, asked);
    assert.deepEqual(process.reports(ticketConfirmId), []);
  });

  test("the relay gets through while the destination is being asked: it is confirmed once", async () => {
    const [process, watch] = await parted();
    const answer = Promise.withResolvers<PeerReply>();
    peers.handOver = () => answer.promise;
    const looking = watch.round();
    await process.run(confirming(signedReceipt(bare("destroyed"), plain)));
    answer.resolve(finished("destroyed"));
    await looking;
    assert.deepEqual(process.reports(ticketConfirmId), []);
    assert.equal(host.calls.filter((call) => call.startsWith("confirm")).length, 1);
  });

  test("the watch gets through first: the functions' Confirm that comes after finds it done", async () => {
    const [process, watch] = await parted();
    peers.handOver = () => finished("destroyed");
    await lookOnce(process, watch);
    await process.run(confirming(signedReceipt(bare("destroyed"), plain), { epoch: 2 }));
    const { result } = last(process, `${id}:confirm:1`);
    assert.ok(result.ok && result.body.kind === "confirm");
    assert.equal(result.body.source, "running");
    assert.equal(host.calls.filter((call) => call.startsWith("confirm")).length, 1);
  });

  test("moved and acknowledged: the host has forgotten it, and a late Confirm of the functions is stale", async () => {
    const [process, watch] = await parted();
    peers.handOver = () => finished("started");
    await lookOnce(process, watch);
    await process.executor.acknowledged(ticketConfirmId);
    await process.executor.idle();
    assert.equal(process.executor.record(id), null);
    await process.run(confirming(signedReceipt(bare("started"), plain)));
    assert.deepEqual(failureOf(last(process, `${id}:confirm:1`)), ["epoch.stale", undefined]);
  });

  test("a Confirm that fails is tried again, with growing pauses, and nobody is asked again", async () => {
    const [process, watch] = await parted();
    peers.handOver = () => finished("started");
    // Somebody has started the source's copy by hand: it is not touched.
    host.state = DomainState.RUNNING;
    host.reason = 0;
    for (let seconds = 0; seconds < 60; seconds += 1) {
      await lookOnce(process, watch);
      nowMs += 1_000;
    }
    const tried = (await process.entries()).filter((entry) => entry.type === "intent").length - 1;
    assert.ok(tried >= 3 && tried <= 8, `${tried} commands in a minute`);
    assert.equal(peers.handOvers.filter((_, index) => index > 0).length > 0, true);
    const asked = peers.handOvers.length;
    host.pauseByMigration();
    nowMs += 10 * 60_000;
    await lookOnce(process, watch);
    assert.equal(host.present, false);
    assert.equal(peers.handOvers.length, asked);
  });

  test("a statement that the source could not act on at once is acted on without the functions", async () => {
    peers.handOver = () => finished("destroyed");
    let failing = true;
    host.fake.answer(p.domainMigrateConfirm3Params, () => {
      throw new Refusal(ErrorCode.OPERATION_FAILED, ErrorDomain.QEMU, "cannot confirm");
    });
    host.onCall = (call) => {
      if (failing && call === "resume") throw new Refusal(ErrorCode.OPERATION_FAILED, ErrorDomain.QEMU, "not now");
    };
    const [process, watch] = await shim();
    await process.run(performing);
    const ended = endedOf(last(process, performId));
    assert.deepEqual([ended?.receipt.outcome, ended?.source], ["destroyed", "paused"]);
    failing = false;
    const asked = peers.asked.length;
    await lookOnce(process, watch);
    assert.equal(host.state, DomainState.RUNNING);
    assert.equal(peers.asked.length, asked);
  });

  test("a full disk keeps nothing for ever: with room again the source confirms", async () => {
    const [process, watch] = await parted();
    peers.handOver = () => finished("destroyed");
    process.diskFull = true;
    await lookOnce(process, watch);
    assert.equal(host.state, DomainState.PAUSED);
    process.diskFull = false;
    await lookOnce(process, watch);
    assert.equal(host.state, DomainState.RUNNING);
  });

  test("a source that was restored is asked about no more: what pauses it now is not this migration", async () => {
    perform3 = () => {
      throw new Refusal(ErrorCode.OPERATION_FAILED, ErrorDomain.QEMU, "no room");
    };
    const [process, watch] = await shim();
    await process.run(performing, make("restore", { epoch: 2 }));
    const asked = peers.asked.length;
    host.pauseByMigration();
    peers.handOver = () => finished("destroyed");
    await lookOnce(process, watch);
    assert.equal(peers.asked.length, asked);
    assert.equal(host.state, DomainState.PAUSED);
  });
});

describe("the source's shim dies", () => {
  async function dead(after: string): Promise<void> {
    const [process] = await shim(after);
    process.executor.command(performing);
    await until(async () => (await milestones(process).catch((): string[] => [])).includes(after));
    await tick();
  }

  test("armed, before Perform: it is not called, and the guest runs", async () => {
    await dead("armed");
    const [process] = await shim();
    await process.executor.idle();
    assert.deepEqual(failureOf(last(process, performId)), ["perform.failed", "running"]);
    assert.deepEqual([host.calls, peers.handOvers], [[], []]);
  });

  test("during Perform: its answer is lost, so the destination is asked to end its copy", async () => {
    await dead("performing");
    host.pauseByMigration();
    peers.handOver = () => finished("destroyed");
    const [process] = await shim();
    await process.executor.idle();
    assert.deepEqual(failureOf(last(process, performId)), ["perform.failed", "running"]);
    assert.match(peers.handOvers[0]?.result.text ?? "", /"outcome":"failed"/);
    assert.ok(!host.calls.includes("perform"));
  });

  test("after the result was kept: the same result is handed over again, and Perform is not", async () => {
    await dead("handing");
    peers.handOver = () => finished("started");
    const [process] = await shim();
    await process.executor.idle();
    assert.equal(endedOf(last(process, performId))?.source, "gone");
    assert.equal(Buffer.from(peers.handOvers[0]?.cookie ?? "", "base64").toString(), "cookie C");
    assert.equal(host.calls.filter((call) => call === "perform").length, 1);
  });

  test("after the receipt: it is confirmed, and nobody is asked", async () => {
    peers.handOver = () => finished("started");
    await dead("receipt");
    const asked = peers.asked.length;
    const [process] = await shim();
    await process.executor.idle();
    assert.equal(endedOf(last(process, performId))?.source, "gone");
    assert.equal(peers.asked.length, asked);
  });

  test("with what the watch was told: the next one confirms, and nobody is asked", async () => {
    const [first] = await parted();
    peers.handOver = () => finished("destroyed");
    // The receipt reaches the disk, what is to be done by it does not.
    const { executor } = first;
    const dying = new HandOverWatch({
      executor: {
        records: () => executor.records(),
        milestone: (...words) => executor.milestone(...words),
        carryOut: async () => {
          await first.crash();
          throw new Error("dead");
        },
      },
      peers,
      seal,
      clock: { now: () => "", monotonicMs: () => nowMs, sleep: async () => {}, random: () => 0 },
      log: { write() {} },
      signal: new AbortController().signal,
    });
    await dying.round();
    assert.equal(host.state, DomainState.PAUSED);
    const asked = peers.asked.length;
    const [second, again] = await shim();
    await second.executor.idle();
    await lookOnce(second, again);
    assert.equal(host.state, DomainState.RUNNING);
    assert.equal(peers.asked.length, asked);
    assert.ok((await milestones(second)).includes("receipt"));
  });
});

describe("a receipt is never contradicted (I7)", () => {
  const others: Record<string, Receipt> = {
    "by the destination's own key": signedReceipt(bare("destroyed"), plain),
    "by a person's statement": signedReceipt(bare("destroyed", "fenced"), plain),
  };
  for (const [name, receipt] of Object.entries(others))
    test(`what the destination has stated to this host stands against another one ${name}`, async () => {
      const [process, watch] = await parted();
      peers.handOver = () => finished("started");
      // It cannot be done at once: the copy here runs, by somebody's hand.
      host.state = DomainState.RUNNING;
      host.reason = 0;
      await lookOnce(process, watch);
      assert.deepEqual(failureOf(last(process, ticketConfirmId)), ["confirm.failed", undefined]);
      host.pauseByMigration();
      await process.run(confirming(receipt, { epoch: 2 }));
      assert.deepEqual(failureOf(last(process, `${id}:confirm:1`)), ["receipt.refused", undefined]);
      assert.equal(host.state, DomainState.PAUSED);
      assert.deepEqual(host.calls, ["perform"]);
    });
});

describe("what a receipt is signed by", () => {
  const cases: Record<string, [Receipt, Partial<CommandOf<"confirm">>, boolean, string?]> = {
    "a person's statement, by the control plane": [signedReceipt(bare("destroyed", "fenced"), plain), {}, true],
    "a person's statement, by the destination": [
      signedReceipt(bare("destroyed", "fenced"), plain, "destination"),
      {},
      false,
    ],
    "a person's statement, by the source": [signedReceipt(bare("destroyed", "fenced"), plain, "source"), {}, false],
    "a person's statement, by nobody": [bare("destroyed", "fenced"), {}, false],
    "the destination's, by the destination": [signedReceipt(bare("destroyed"), plain), {}, true],
    "the destination's, by the control plane": [signedReceipt(bare("destroyed"), plain, "control"), {}, false],
    "the destination's, without the ticket that names its key": [
      signedReceipt(bare("destroyed"), plain),
      { ticket: null },
      false,
      "ticket.refused",
    ],
  };
  for (const [name, [receipt, fields, counts, code = "receipt.refused"]] of Object.entries(cases))
    test(`${name}: ${counts ? "counts" : "is refused, and nothing is touched"}`, async () => {
      const [process] = await parted();
      await process.run(confirming(receipt, { epoch: 2, ...fields }));
      const { result } = last(process, `${id}:confirm:1`);
      assert.equal(result.ok ? "ok" : result.fault.code, counts ? "ok" : code);
      assert.equal(host.state, counts ? DomainState.RUNNING : DomainState.PAUSED);
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
        monotonicMs: () => nowMs,
        random: () => 0,
        sleep: async (ms) => {
          nowMs += ms;
          look += 1;
          await onLook(look);
          await tick();
        },
      },
      say: (line) => void said.push(line),
      msMax: 60_000,
    });
    return said;
  }

  test("during Perform waits for the receipt and for Confirm, and for no acknowledgement", async () => {
    const running = Promise.withResolvers<void>();
    perform3 = async () => {
      await running.promise;
      host.pauseByMigration();
    };
    peers.handOver = () => finished("started");
    const [process] = await shim();
    process.executor.command(performing);
    await until(() => host.calls.includes("perform"));
    const said = await drained(process, async (look) => {
      if (look !== 2) return;
      running.resolve();
      await process.executor.idle();
    });
    assert.equal(said.length, 1);
    assert.equal(host.present, false);
    assert.equal(process.executor.record(id)?.unacknowledged().length, 1);
  });

  test("with the channel broken goes on asking, and ends once the source has confirmed", async () => {
    const [process, watch] = await parted();
    let looks = 0;
    await drained(process, async (look) => {
      looks = look;
      if (look === 3) peers.handOver = () => finished("destroyed");
      await lookOnce(process, watch);
    });
    assert.equal(looks, 3);
    assert.equal(host.state, DomainState.RUNNING);
  });

  test("with everything cut ends at its bound, and the next one takes it up", async () => {
    const [process] = await parted();
    const said = await drained(process, () => {});
    assert.match(said.at(-1) ?? "", /taken up at the next start/);
    await process.crash();
    peers.handOver = () => finished("started");
    const [next, watch] = await shim();
    await lookOnce(next, watch);
    assert.equal(host.present, false);
  });

  test("at its bound leaves what runs as a crash would: nothing is written or asked of libvirt any more", async () => {
    const perform = Promise.withResolvers<void>();
    perform3 = async () => {
      await perform.promise;
      host.pauseByMigration();
    };
    peers.handOver = () => finished("destroyed");
    const [process] = await shim();
    process.executor.command(performing);
    await until(() => host.calls.includes("perform"));
    process.executor.end();
    const written = (await process.entries()).length;
    perform.resolve();
    for (let turns = 0; turns < 50; turns += 1) await tick();
    assert.equal((await process.entries()).length, written);
    assert.deepEqual([host.calls, peers.handOvers], [["perform"], []]);
    // The next one takes it up.
    await process.crash();
    const [next] = await shim();
    await next.executor.idle();
    assert.equal(host.state, DomainState.RUNNING);
  });

  test("on the destination an armed migration is waited for until its receipt", async () => {
    const [process] = await shim();
    await process.run(make("prepare"));
    assert.deepEqual(process.executor.underWay(), [id]);
    await process.executor.milestone(id, `${id}:prepare:1`, "finished", { receipt: bare("started"), cookie: null });
    assert.deepEqual(process.executor.underWay(), []);
  });
});
