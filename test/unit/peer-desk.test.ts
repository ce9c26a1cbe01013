/**
 * The destination's desk over a real executor and journal, the real Finish and a fake libvirtd: whatever comes in whatever
 * order, once or often, before or after a crash, Finish is called at most once and every answer is the same one (I6, I7).
 */
import assert from "node:assert/strict";
import { createHash, generateKeyPairSync } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { ErrorCode, ErrorDomain } from "#libvirt/constants";
import { procedures as p } from "#libvirt/procedures";
import type { CommandOf } from "#protocol/command";
import {
  type PeerReply,
  type PeerRequest,
  type PerformResult,
  receiptSignedText,
  resultSignedText,
  type Ticket,
} from "#protocol/ticket";
import { finish } from "#shim/finish";
import { PeerDesk } from "#shim/peer/desk";
import { publicKeyOf, verifyText } from "#shim/peer/seal";
import type { Steps } from "#shim/ports";
import { Refusal } from "#test/fake/libvirtd";
import { bodies, id, make, Process, processes } from "#test/fake/shim-process";
import { StepHost } from "#test/fake/step-host";
import { sealOf, ticketFor } from "#test/fake/treaty";

const source = sealOf("source");
const seal = sealOf("destination");
const command = make("perform") as CommandOf<"perform">;
const ticket = ticketFor(command);
const now = "2026-11-22T10:00:00.000Z";
const sha256 = (data: string | Uint8Array) => createHash("sha256").update(data).digest("hex");
const cookieC = Buffer.from("cookie C");

const armBy = (signed = ticket): PeerRequest => ({ type: "arm", ticket: signed });

/** What the source sends when Perform has ended so; `fields` is what it lies about, under its own signature. */
function handOverOf(
  outcome: PerformResult["outcome"] = "performed",
  fields: Partial<PerformResult> = {},
  signed = ticket,
): Extract<PeerRequest, { type: "handOver" }> {
  const performed = outcome === "performed";
  const text = JSON.stringify({
    migrationId: id,
    epoch: 1,
    ticketSha256: sha256(signed.text),
    outcome,
    cookieSha256: performed ? sha256(cookieC) : null,
    ...fields,
  } satisfies PerformResult);
  const result = { text, signature: source.sign(resultSignedText(text)) };
  return { type: "handOver", ticket: signed, result, cookie: performed ? cookieC.toString("base64") : null };
}

let root: string;
let state: string;
let round = 0;
let host: StepHost;
/** Cookies that libvirt's Finish was given, one for each call of it. */
let finishes: { cancelled: boolean; cookie: string }[];

before(async () => {
  root = await mkdtemp(join(tmpdir(), "vmferry-desk-"));
});
beforeEach(async () => {
  round += 1;
  state = join(root, `state${round}`);
  finishes = [];
  host = await StepHost.start();
  host.incoming = true;
  host.pauseByMigration();
  onFinish(() => {});
});
afterEach(async () => {
  for (const process of processes.splice(0)) await process.crash();
  await host.stop();
});
after(() => rm(root, { recursive: true, force: true }));

/** libvirt's Finish, with what goes before it. */
function onFinish(before: () => void | Promise<void>): void {
  host.fake.answer(p.domainMigrateFinish3Params, async ({ cancelled, cookieIn }) => {
    finishes.push({ cancelled, cookie: Buffer.from(cookieIn).toString() });
    await before();
    host.incoming = false;
    host.state = cancelled ? 5 : 1;
    host.reason = 0;
    if (cancelled) throw new Refusal(ErrorCode.MIGRATE_FINISH_OK, ErrorDomain.QEMU, "finished ok");
    return { dom: { name: "web", uuid: command.domain.uuid, id: 1 }, cookieOut: Buffer.from("cookie D") };
  });
}

/** A destination's shim whose Finish is the real one; `after` a milestone of it, it may die. */
async function shim(dieAfter: string | null = null, steps: Partial<Steps> = {}): Promise<[PeerDesk, Process]> {
  const process: Process = await Process.start(state, {
    // libvirt binds the incoming domain to the connection that Prepare came on.
    prepare: async (work) => {
      await work.connection();
      return bodies.prepare;
    },
    finish: (work) =>
      finish({
        ...work,
        seal,
        connection: async () => ({ libvirt: host.libvirt, continuous: (await work.connection()).continuous }),
        payloads: {
          ...work.payloads,
          read: async (blob) => Buffer.from("base64" in blob ? blob.base64 : "", "base64"),
          write: async (bytes) => {
            const base64 = Buffer.from(bytes).toString("base64");
            return { in: "inline", base64, sha256: sha256(bytes), bytes: bytes.byteLength };
          },
        },
        milestone: async (name, data) => {
          await work.milestone(name, data);
          if (name !== dieAfter) return;
          await process.crash();
          await new Promise(() => {});
        },
      }),
    ...steps,
  });
  return [new PeerDesk({ executor: process.executor, seal, now: () => now }), process];
}

const ask = (desk: PeerDesk, request: PeerRequest) => desk.answer(source.publicKey, request);
const codeOf = (reply: PeerReply) => (reply.type === "refused" ? reply.fault.code : reply.type);

/** Prepared and armed. */
async function armed(dieAfter: string | null = null): Promise<[PeerDesk, Process]> {
  const [desk, process] = await shim(dieAfter);
  await process.run(make("prepare"));
  assert.deepEqual(await ask(desk, armBy()), { type: "armed" });
  return [desk, process];
}

const milestones = async (process: Process, name: string) =>
  (await process.entries()).filter((entry) => entry.type === "milestone" && entry.name === name);

describe("arm", () => {
  test("is kept in the journal before it is answered, once however often it is asked for", async () => {
    const [desk, process] = await armed();
    assert.deepEqual(await ask(desk, armBy()), { type: "armed" });
    assert.equal((await milestones(process, "armed")).length, 1);
  });

  test("before Prepare there is nothing to arm", async () => {
    const [desk] = await shim();
    assert.equal(codeOf(await ask(desk, armBy())), "destination.lost");
  });

  test("of another Prepare, another host, another key, or somebody else's connection is refused", async () => {
    const [desk, process] = await shim();
    await process.run(make("prepare"));
    const other = generateKeyPairSync("ed25519").privateKey;
    const named = JSON.parse(ticket.text) as Ticket;
    const stranger = { ...named.destination, publicKey: publicKeyOf(other) };
    assert.equal(
      codeOf(await ask(desk, armBy(ticketFor(command, { cookieSha256: "0".repeat(64) })))),
      "destination.lost",
    );
    assert.equal(codeOf(await ask(desk, armBy(ticketFor(command, { destination: stranger })))), "ticket.refused");
    assert.equal(codeOf(await ask(desk, armBy({ ...ticket, signature: "A".repeat(86) }))), "ticket.refused");
    assert.equal(codeOf(await desk.answer(publicKeyOf(other), armBy())), "ticket.refused");
    assert.equal(codeOf(await desk.answer(seal.publicKey, armBy())), "ticket.refused");
    assert.deepEqual(await milestones(process, "armed"), []);
  });

  test("expired: it cannot be armed any more, but what is armed holds until the end", async () => {
    const late = ticketFor(command, { expiresAt: "2026-11-22T09:00:00.000Z" });
    const [desk, process] = await shim();
    await process.run(make("prepare"));
    assert.equal(codeOf(await ask(desk, armBy(late))), "ticket.refused");
    const early = new PeerDesk({ executor: process.executor, seal, now: () => "2026-11-22T08:59:00.000Z" });
    assert.equal(codeOf(await ask(early, armBy(late))), "armed");
    assert.equal(codeOf(await ask(desk, armBy(late))), "armed");
    assert.equal(codeOf(await ask(desk, handOverOf("performed", {}, late))), "finished");
  });

  test("of an epoch that was overtaken is refused", async () => {
    const [desk, process] = await shim();
    await process.run(make("prepare", { epoch: 2 }));
    assert.equal(codeOf(await ask(desk, armBy())), "epoch.stale");
  });

  test("a second ticket for the same Prepare is not taken: the first one stands", async () => {
    const [desk] = await armed();
    const second = ticketFor(command, { expiresAt: "2127-01-01T00:00:00.000Z" });
    assert.equal(codeOf(await ask(desk, armBy(second))), "destination.lost");
    assert.equal(codeOf(await ask(desk, handOverOf("performed", {}, second))), "destination.lost");
    assert.equal(codeOf(await ask(desk, handOverOf())), "finished");
  });

  test("repeated after Finish was decided it promises nothing any more", async () => {
    const [desk] = await armed();
    await ask(desk, handOverOf("failed"));
    assert.equal(codeOf(await ask(desk, armBy())), "destination.lost");
  });

  test("that the disk refuses is refused, and may be tried again", async () => {
    const [desk, process] = await shim();
    await process.run(make("prepare"));
    process.diskFull = true;
    assert.equal(codeOf(await ask(desk, armBy())), "internal");
    process.diskFull = false;
    assert.equal(codeOf(await ask(desk, armBy())), "armed");
  });
});

describe("handOver", () => {
  test("decides, calls Finish with cookie C, and answers with a receipt of this host's key", async () => {
    const [desk, process] = await armed();
    const reply = await ask(desk, handOverOf());
    assert.ok(reply.type === "finished", codeOf(reply));
    assert.deepEqual(finishes, [{ cancelled: false, cookie: "cookie C" }]);
    assert.equal(reply.receipt.outcome, "started");
    const text = receiptSignedText({ migrationId: id, domainUuid: command.domain.uuid, receipt: reply.receipt });
    assert.ok(verifyText(seal.publicKey, text, reply.receipt.signature ?? ""));
    assert.equal(Buffer.from(reply.cookie ?? "", "base64").toString(), "cookie D");
    // The functions learn of it as of any command.
    assert.equal(process.reports(`${id}:ticketFinish:1`).length, 1);
  });

  test("of a failed Perform ends the copy", async () => {
    const [desk] = await armed();
    const reply = await ask(desk, handOverOf("failed"));
    assert.ok(reply.type === "finished");
    assert.equal(reply.receipt.outcome, "destroyed");
    assert.deepEqual(finishes, [{ cancelled: true, cookie: "" }]);
  });

  test("repeated, it is answered alike and Finish is called once", async () => {
    const [desk] = await armed();
    const first = await ask(desk, handOverOf());
    assert.deepEqual(await ask(desk, handOverOf()), first);
    // Another result for the same ticket does not turn round what stands.
    assert.deepEqual(await ask(desk, handOverOf("failed")), { ...first, fault: null });
    assert.equal(finishes.length, 1);
  });

  test("twice at once, it is one Finish and one answer", async () => {
    const [desk] = await armed();
    const [first, second] = await Promise.all([ask(desk, handOverOf()), ask(desk, handOverOf())]);
    assert.deepEqual(first, second);
    assert.equal(codeOf(first), "finished");
    assert.equal(finishes.length, 1);
  });

  test("two results at once: one decision, and whoever asked for it is told so", async () => {
    const [desk, process] = await armed();
    const [performed, failed] = await Promise.all([ask(desk, handOverOf()), ask(desk, handOverOf("failed"))]);
    assert.ok(performed.type === "finished", codeOf(performed));
    assert.equal(performed.receipt.outcome, "started");
    assert.equal(codeOf(failed), "command.conflict");
    assert.equal(finishes.length, 1);
    assert.equal((await milestones(process, "finishing")).length, 1);
    const again = await ask(desk, handOverOf("failed"));
    assert.ok(again.type === "finished" && again.receipt.outcome === "started");
  });

  const lies: Record<string, [PeerRequest, string]> = {
    "a cookie that was altered": [
      { ...handOverOf(), cookie: Buffer.from("cookie X").toString("base64") },
      "cookie.altered",
    ],
    "no cookie although Perform succeeded": [{ ...handOverOf(), cookie: null }, "cookie.altered"],
    "success without a cookie": [{ ...handOverOf("performed", { cookieSha256: null }) }, "cookie.altered"],
    "a result that nobody signed": [
      { ...handOverOf(), result: { ...handOverOf().result, signature: "A".repeat(86) } },
      "ticket.refused",
    ],
    "a result of another ticket": [handOverOf("performed", { ticketSha256: "0".repeat(64) }), "ticket.refused"],
    "a result of another epoch": [handOverOf("performed", { epoch: 2 }), "ticket.refused"],
    "a ticket of another control key": [
      { ...handOverOf(), ticket: { ...ticket, signature: "A".repeat(86) } },
      "ticket.refused",
    ],
  };
  for (const [name, [request, code]] of Object.entries(lies))
    test(`with ${name} decides nothing, and the true one is still taken`, async () => {
      const [desk, process] = await armed();
      assert.equal(codeOf(await ask(desk, request)), code);
      assert.deepEqual(finishes, []);
      assert.deepEqual(await milestones(process, "finishing"), []);
      assert.equal(codeOf(await ask(desk, handOverOf())), "finished");
    });

  test("by somebody else's connection is refused, though everything is signed", async () => {
    const [desk] = await armed();
    assert.equal(codeOf(await desk.answer(seal.publicKey, handOverOf())), "ticket.refused");
    assert.deepEqual(finishes, []);
  });

  test("before arm decides nothing", async () => {
    const [desk, process] = await shim();
    await process.run(make("prepare"));
    assert.equal(codeOf(await ask(desk, handOverOf())), "destination.lost");
    assert.deepEqual(finishes, []);
  });

  test("after the migration was forgotten states nothing", async () => {
    const [desk, process] = await armed();
    await ask(desk, handOverOf());
    await process.run(make("settle"));
    await process.executor.acknowledged(`${id}:settle:1`);
    await process.executor.idle();
    assert.equal(codeOf(await ask(desk, handOverOf())), "destination.lost");
    assert.equal(finishes.length, 1);
  });

  test("whose Finish failed is tried again as a command of its own, and nothing but the journal decides", async () => {
    const [desk, process] = await armed();
    let failures = 1;
    host.onSleep = () => {};
    onFinish(() => {
      if (failures-- > 0) throw new Refusal(ErrorCode.OPERATION_FAILED, ErrorDomain.QEMU, "not now");
    });
    assert.equal(codeOf(await ask(desk, handOverOf())), "finish.failed");
    assert.equal(codeOf(await ask(desk, handOverOf())), "finished");
    const ids = (await process.entries()).flatMap((entry) => (entry.type === "intent" ? [entry.command.id] : []));
    assert.deepEqual(ids.slice(1), [`${id}:ticketFinish:1`, `${id}:ticketFinish:2`]);
    assert.equal((await milestones(process, "finishing")).length, 1);
  });

  test("that the disk refused is taken when the disk has room again", async () => {
    const [desk, process] = await armed();
    process.diskFull = true;
    assert.equal(codeOf(await ask(desk, handOverOf())), "internal");
    assert.deepEqual(finishes, []);
    process.diskFull = false;
    assert.equal(codeOf(await ask(desk, handOverOf())), "finished");
  });
});

describe("the arbiter between the ticket and the functions", () => {
  test("the functions' abort came first: the source is told that, whatever it brings", async () => {
    const [desk, process] = await armed();
    await process.run({ ...(make("finish", { epoch: 2 }) as CommandOf<"finish">), cancelled: true });
    const reply = await ask(desk, handOverOf());
    assert.ok(reply.type === "finished", codeOf(reply));
    assert.equal(reply.receipt.outcome, "destroyed");
    assert.deepEqual(
      finishes.map(({ cancelled }) => cancelled),
      [true],
    );
  });

  test("the functions' abort is being carried out: the ticket is overtaken, and asked again it is told the outcome", async () => {
    const [desk, process] = await armed();
    const gate = Promise.withResolvers<void>();
    onFinish(() => gate.promise);
    process.executor.command({ ...(make("finish", { epoch: 2 }) as CommandOf<"finish">), cancelled: true });
    assert.equal(codeOf(await ask(desk, handOverOf())), "epoch.stale");
    gate.resolve();
    await process.executor.idle();
    const reply = await ask(desk, handOverOf());
    assert.ok(reply.type === "finished" && reply.receipt.outcome === "destroyed");
    assert.equal(finishes.length, 1);
  });

  test("the ticket came first: the functions' abort is told that it runs here", async () => {
    const [desk, process] = await armed();
    const told = await ask(desk, handOverOf());
    await process.run({ ...(make("finish", { epoch: 2 }) as CommandOf<"finish">), cancelled: true });
    const [report] = process.reports(`${id}:finish:1`);
    assert.ok(report?.result.ok === true && report.result.body.kind === "finish" && told.type === "finished");
    assert.deepEqual(report.result.body.receipt, told.receipt);
    assert.equal(finishes.length, 1);
  });

  test("the functions relay what the source could not: the ticket is told the same receipt", async () => {
    const [desk, process] = await armed();
    await process.run(make("finish"));
    const reply = await ask(desk, handOverOf());
    const [report] = process.reports(`${id}:finish:1`);
    assert.ok(report?.result.ok === true && report.result.body.kind === "finish" && reply.type === "finished");
    assert.deepEqual(reply.receipt, report.result.body.receipt);
    assert.equal(finishes.length, 1);
  });
});

describe("the destination's shim dies", () => {
  test("armed, before the result came: the incoming domain went with it, and the receipt says so", async () => {
    const [, first] = await armed();
    await first.crash();
    host.incoming = false;
    host.present = false;
    const [desk] = await shim();
    const reply = await ask(desk, handOverOf());
    assert.ok(reply.type === "finished", codeOf(reply));
    assert.deepEqual([reply.receipt.outcome, reply.receipt.evidence], ["destroyed", "probe"]);
    assert.deepEqual(finishes, []);
  });

  test("between its decision and Finish: the next one looks, and says what it sees", async () => {
    const [desk, first] = await armed("finishing");
    void ask(desk, handOverOf());
    while ((await milestones(first, "finishing").catch(() => [])).length === 0)
      await new Promise((done) => setImmediate(done));
    host.incoming = false;
    host.present = false;
    const [next, second] = await shim();
    const reply = await ask(next, handOverOf());
    assert.ok(reply.type === "finished", codeOf(reply));
    assert.deepEqual([reply.receipt.outcome, reply.receipt.evidence], ["destroyed", "probe"]);
    assert.deepEqual(finishes, []);
    assert.deepEqual(second.begun, [`${id}:ticketFinish:1`]);
  });

  test("after Finish, before that was journalled: the domain itself says that it runs", async () => {
    const [desk, first] = await armed();
    onFinish(() => first.crash());
    void ask(desk, handOverOf());
    while (host.incoming) await new Promise((done) => setImmediate(done));
    const [next] = await shim();
    const reply = await ask(next, handOverOf());
    assert.ok(reply.type === "finished", codeOf(reply));
    assert.deepEqual([reply.receipt.outcome, reply.receipt.evidence], ["started", "probe"]);
    assert.equal(finishes.length, 1);
  });

  test("after the receipt, before the answer: the next one gives the very same receipt", async () => {
    const [desk, first] = await armed("finished");
    void ask(desk, handOverOf());
    let kept = await milestones(first, "finished");
    while (kept.length === 0) {
      await new Promise((done) => setImmediate(done));
      kept = await milestones(first, "finished");
    }
    const [next] = await shim();
    const reply = await ask(next, handOverOf());
    assert.ok(reply.type === "finished" && kept[0]?.type === "milestone");
    assert.deepEqual(reply.receipt, kept[0].data.receipt);
    assert.equal(finishes.length, 1);
  });
});
