/**
 * The steps act by the recovery table: what a restart of the shim, of libvirt's daemon or of a host leaves, and what
 * somebody else has done to the domain meanwhile.
 */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { DomainState, PausedReason } from "#libvirt/constants";
import { procedures as p } from "#libvirt/procedures";
import type { BundleRef } from "#protocol/blob";
import type { CommandOf, Receipt } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { type PeerReply, type PeerRequest, performResultSchema } from "#protocol/ticket";
import { confirm } from "#shim/confirm";
import { prepare, stage, unstage } from "#shim/destination";
import { finish } from "#shim/finish";
import { perform } from "#shim/perform";
import { restore } from "#shim/restore";
import { begin } from "#shim/source";
import { StepFault } from "#shim/step-fault";
import { make } from "#test/fake/shim-process";
import { bundleFile, domainOfHost, domainXml, StepHost, snapshotEntry } from "#test/fake/step-host";
import { signedReceipt, ticketFor } from "#test/fake/treaty";

const entries = [snapshotEntry("base", null), snapshotEntry("web", "base", true)];
const domain = { uuid: domainOfHost.uuid, name: domainOfHost.name };

let dir: string;
let bundle: BundleRef;
let host: StepHost;
before(async () => {
  dir = await mkdtemp(join(tmpdir(), "vmferry-recovery-"));
  bundle = await bundleFile(join(dir, "bundle"), entries);
});
after(() => rm(dir, { recursive: true }));
beforeEach(async () => {
  host = await StepHost.start();
  host.load(entries);
  host.bundles.set(bundle.sha256, join(dir, "bundle"));
  host.fake.answer(p.domainMigratePerform3Params, () => {
    host.calls.push("perform");
    host.pauseByMigration();
    return { cookieOut: Buffer.from("C") };
  });
  host.fake.answer(p.domainMigrateConfirm3Params, ({ cancelled }) => {
    host.calls.push(`confirm${cancelled ? " cancelled" : ""}`);
    host.outgoing = false;
    return {};
  });
  host.fake.answer(p.domainDestroyFlags, () => {
    host.calls.push("destroy");
    host.state = DomainState.SHUTOFF;
    return {};
  });
});
afterEach(() => host.stop());

async function faultOf(act: Promise<unknown>): Promise<Fault> {
  const error = await act.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof Fault, `no fault: ${error}`);
  return error;
}

const passed = (name: string, data = {}) => host.journal.push({ type: "milestone", at: "", commandId: "", name, data });
const asked = (kind: "begin" | "stage" | "perform") =>
  host.journal.push({ type: "intent", at: "", command: { ...make(kind), domain } });

const performing = (): CommandOf<"perform"> => {
  const command = { ...(make("perform") as CommandOf<"perform">), domain };
  return { ...command, ticket: ticketFor(command) };
};
const receiptOf = (outcome: Receipt["outcome"]) => {
  const { receipt, migrationId } = make("confirm") as CommandOf<"confirm">;
  return signedReceipt({ ...receipt, outcome }, { migrationId, domain });
};
const confirming = (outcome: Receipt["outcome"]): CommandOf<"confirm"> => ({
  ...(make("confirm") as CommandOf<"confirm">),
  domain,
  receipt: receiptOf(outcome),
  ticket: performing().ticket,
});
const restoring = (): CommandOf<"restore"> => ({ ...(make("restore") as CommandOf<"restore">), domain, bundle });
const unstaging = (): CommandOf<"unstage"> => ({ ...(make("unstage") as CommandOf<"unstage">), domain, bundle });
const finishing = (cancelled = false): CommandOf<"finish"> => ({
  ...(make("finish") as CommandOf<"finish">),
  domain,
  cancelled,
});

/** A destination that takes what it is handed: `told` is how Perform has ended by that. */
function destination(outcome: (told: "performed" | "failed") => Receipt["outcome"]) {
  const told: string[] = [];
  host.peers = {
    hold: () => () => {},
    ask: async (_, request: PeerRequest): Promise<PeerReply> => {
      if (request.type !== "handOver") return { type: "armed" };
      const result = performResultSchema.parse(JSON.parse(request.result.text));
      told.push(result.outcome);
      return { type: "finished", receipt: receiptOf(outcome(result.outcome)), cookie: null, fault: null };
    },
  };
  return told;
}
const honest = (told: "performed" | "failed") => (told === "performed" ? "started" : "destroyed");

/** Perform has ended and its result is on disk; then the shim died. */
function performed(): void {
  asked("begin");
  const { ticket } = performing();
  passed("armed", { signed: ticket });
  passed("performing");
  passed("handing", { outcome: "performed", cookie: "Qw==" });
  host.continuous = false;
  host.pauseByMigration();
}

describe("the source's shim is started again with a result that was kept", () => {
  test("paused by the migration: the result is handed over, and the receipt is done", async () => {
    performed();
    const told = destination(honest);
    const { ended } = await host.run(perform, performing(), true);
    assert.deepEqual([told, ended?.source, host.present], [["performed"], "gone", false]);
  });

  test("the host was rebooted meanwhile: the guest is lost here, and the destination still has it", async () => {
    performed();
    host.state = DomainState.SHUTOFF;
    const told = destination(honest);
    const { ended } = await host.run(perform, performing(), true);
    assert.deepEqual([told, ended?.source, host.present], [["performed"], "gone", false]);
  });

  test("its owner had paused it before: that is no sign of anything", async () => {
    performed();
    host.reason = PausedReason.USER;
    const told = destination(honest);
    await host.run(perform, performing(), true);
    assert.deepEqual(told, ["performed"]);
  });

  test("somebody has resumed it (I1): the result is withdrawn, the destination's copy ends, and the source runs on", async () => {
    performed();
    host.state = DomainState.RUNNING;
    const told = destination(honest);
    const fault = await faultOf(host.run(perform, performing(), true));
    assert.ok(fault instanceof StepFault);
    assert.deepEqual([told, fault.receipt?.outcome, fault.sourceState], [["failed"], "destroyed", "running"]);
    assert.match(fault.cause_, /Somebody let the domain run again on the source/);
    // Started once more, it is still withdrawn: it runs, or is paused by somebody by now.
    host.pauseByMigration();
    host.reason = PausedReason.USER;
    host.journal.splice(
      host.journal.findIndex((entry) => entry.type === "milestone" && entry.name === "receipt"),
      1,
    );
    await faultOf(host.run(perform, performing(), true));
    assert.deepEqual(told, ["failed", "failed"]);
  });

  test("somebody has resumed it, and the destination was started already: nothing is touched, and that is said", async () => {
    performed();
    host.state = DomainState.RUNNING;
    destination(() => "started");
    const fault = await faultOf(host.run(perform, performing(), true));
    assert.ok(fault instanceof StepFault);
    assert.deepEqual([fault.receipt?.outcome, host.calls], ["started", []]);
    const stranded = await faultOf(host.run(confirm, confirming("started")));
    assert.match(
      stranded.cause_,
      /the source's copy is running too.*This host, the source: running.*has stated: started/,
    );
    assert.match(stranded.action, new RegExp(`virsh destroy ${domain.uuid}`));
    assert.equal(host.state, DomainState.RUNNING);
    // The message is followed.
    host.state = DomainState.SHUTOFF;
    assert.equal((await host.run(confirm, confirming("started"))).source, "gone");
  });
});

describe("the source's shim is started again while Perform ran", () => {
  const cut = () => {
    asked("begin");
    passed("armed", { signed: performing().ticket });
    passed("performing");
    host.continuous = false;
  };

  test("the host was rebooted: the guest is lost, the destination's copy of half a memory is ended", async () => {
    cut();
    host.state = DomainState.SHUTOFF;
    const told = destination(honest);
    const fault = await faultOf(host.run(perform, performing(), true));
    assert.ok(fault instanceof StepFault);
    assert.deepEqual([told, fault.sourceState, fault.receipt?.outcome], [["failed"], "shutoff", "destroyed"]);
  });

  test("its job goes on: it is aborted, then the source goes on by the receipt", async () => {
    cut();
    host.outgoing = true;
    const told = destination(honest);
    const fault = await faultOf(host.run(perform, performing(), true));
    assert.ok(fault instanceof StepFault);
    assert.deepEqual([told, fault.sourceState, host.calls], [["failed"], "running", ["abort"]]);
  });
});

describe("what is not this migration's on the source", () => {
  test("paused by somebody's migration before Begin: it is not begun", async () => {
    host.pauseByMigration();
    const command = { ...(make("begin") as CommandOf<"begin">), domain, bundle };
    assert.equal((await faultOf(host.run(begin, command))).code, "domain.state");
    assert.deepEqual(host.calls, []);
  });

  test("shut off after Begin (its host was rebooted): Perform is not called, and nobody is armed", async () => {
    asked("begin");
    host.state = DomainState.SHUTOFF;
    const fault = await faultOf(host.run(perform, performing()));
    assert.ok(fault instanceof StepFault);
    assert.deepEqual([fault.code, fault.sourceState, host.calls], ["domain.state", "shutoff", []]);
    assert.deepEqual(host.milestones(), ["performRefused"]);
  });

  test("paused by somebody's migration when Perform was cut off before it was called: no receipt of ours resumes it", async () => {
    asked("begin");
    asked("perform");
    host.pauseByMigration();
    assert.equal((await host.run(confirm, confirming("destroyed"))).source, "paused");
    assert.equal(host.state, DomainState.PAUSED);
    assert.deepEqual(host.calls, []);
  });

  test("the same on the way back: the tree is whole, and the migration ends without a person", async () => {
    asked("begin");
    host.pauseByMigration();
    assert.deepEqual((await host.run(restore, restoring())).state, "paused");
    assert.deepEqual(host.calls, []);
  });

  test("paused by our own Perform with nobody's statement: stranded, and the message says what to type", async () => {
    asked("begin");
    passed("performing");
    host.pauseByMigration();
    const fault = await faultOf(host.run(restore, restoring()));
    assert.match(fault.cause_, /nobody stated.*This host, the source: paused by a migration.*was not armed/);
    assert.match(fault.action, /vmferry migration resolve m_\w+ --fenced/);
    assert.equal(host.state, DomainState.PAUSED);
  });

  test("a domain that is defined again after it was given up stays", async () => {
    passed("performing");
    passed("confirmed", { outcome: "started", source: "gone" });
    host.state = DomainState.SHUTOFF;
    assert.equal((await host.run(confirm, confirming("started"))).source, "gone");
    assert.deepEqual([host.calls, host.present], [[], true]);
  });

  test("a domain that comes back by another migration before Confirm is not destroyed", async () => {
    passed("performing");
    host.incoming = true;
    host.pauseByMigration();
    const fault = await faultOf(host.run(confirm, confirming("started")));
    assert.match(fault.cause_, /arriving on the source by another migration/);
    assert.deepEqual(host.calls, []);
  });
});

test("a guest that its owner paused: the job that Perform has left is ended on the way back, and it stays paused", async () => {
  asked("begin");
  passed("performing");
  host.pauseByMigration();
  host.reason = PausedReason.USER;
  host.outgoing = true;
  assert.equal((await host.run(confirm, confirming("destroyed"))).source, "paused");
  assert.deepEqual(host.calls, ["confirm cancelled"]);
});

describe("the destination", () => {
  test("its host was rebooted while the guest was incoming: only what was staged is left, and the receipt says so", async () => {
    host.present = false;
    const staging = { ...(make("stage") as CommandOf<"stage">), domain, bundle };
    await host.run(stage, staging);
    host.readBlob = async () => Buffer.from(domainXml);
    await host.run(prepare, { ...(make("prepare") as CommandOf<"prepare">), domain });
    host.continuous = false;
    host.incoming = false;
    host.state = DomainState.SHUTOFF;
    host.calls.length = 0;
    const { receipt } = await host.run(finish, finishing());
    assert.deepEqual([receipt.outcome, receipt.evidence, host.calls], ["destroyed", "probe", []]);
    assert.equal((await host.run(unstage, unstaging())).removed, true);
    assert.equal(host.present, false);
  });

  test("a guest that is on its way to a third host by now was started here", async () => {
    passed("finishing", { cancelled: false });
    host.continuous = false;
    host.outgoing = true;
    host.pauseByMigration();
    const { receipt } = await host.run(finish, finishing(), true);
    assert.deepEqual([receipt.outcome, host.calls], ["started", []]);
  });

  for (const [what, set] of [
    ["a running copy", () => {}],
    [
      "an incoming migration",
      () => {
        host.incoming = true;
        host.pauseByMigration();
      },
    ],
  ] as const)
    test(`${what} that this migration did not make is left alone, and its way back ends`, async () => {
      asked("stage");
      set();
      assert.equal((await host.run(unstage, unstaging())).removed, false);
      assert.deepEqual([host.calls, host.milestones()], [[], []]);
    });

  test("our own copy that runs although the way back is asked for: stranded, untouched, and the message is enough", async () => {
    asked("stage");
    passed("staging");
    const fault = await faultOf(host.run(unstage, unstaging()));
    assert.equal(fault.code, "destination.active");
    assert.match(fault.action, new RegExp(`virsh destroy ${domain.uuid}`));
    assert.deepEqual(host.calls, []);
    host.state = DomainState.SHUTOFF;
    assert.equal((await host.run(unstage, unstaging())).removed, true);
  });

  test("a domain that is not running was prepared, and Finish was never called: libvirt's job is ended, then it is swept", async () => {
    host.present = false;
    await host.run(stage, { ...(make("stage") as CommandOf<"stage">), domain, bundle });
    host.fake.answer(p.domainMigratePrepare3Params, () => ({ cookieOut: new Uint8Array(0), uriOut: null }));
    host.readBlob = async () => Buffer.from(domainXml);
    const preparing = make("prepare") as CommandOf<"prepare">;
    await host.run(prepare, { ...preparing, domain, options: { ...preparing.options, offline: true } });
    host.calls.length = 0;
    assert.equal((await host.run(unstage, unstaging())).removed, true);
    assert.deepEqual(host.calls, ["finish cancelled", "undefine"]);
  });
});
