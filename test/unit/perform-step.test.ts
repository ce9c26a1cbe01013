/** Perform and its abort over a fake libvirtd: what is called off when, whose job is whose, what is said of the source. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import { DomainState, ErrorCode, ErrorDomain } from "#libvirt/constants";
import { procedures as p } from "#libvirt/procedures";
import type { CommandOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { confirm } from "#shim/confirm";
import { abort, perform } from "#shim/perform";
import { StepFault } from "#shim/step-fault";
import { Refusal } from "#test/fake/libvirtd";
import { make } from "#test/fake/shim-process";
import { domainOfHost, StepHost } from "#test/fake/step-host";
import { signedReceipt, ticketFor } from "#test/fake/treaty";

const domain = { uuid: domainOfHost.uuid, name: domainOfHost.name };
const performing = (): CommandOf<"perform"> => {
  const command = { ...(make("perform") as CommandOf<"perform">), domain };
  return { ...command, ticket: ticketFor(command) };
};
const aborting = (): CommandOf<"abort"> => ({ ...(make("abort") as CommandOf<"abort">), domain });
const refused = (text: string) => new Refusal(ErrorCode.OPERATION_FAILED, ErrorDomain.QEMU, text);

let host: StepHost;
/** What Perform3 does; every call of it is in `host.calls`. */
let perform3: () => Promise<void>;
beforeEach(async () => {
  host = await StepHost.start();
  perform3 = async () => host.pauseByMigration();
  host.fake.answer(p.domainMigratePerform3Params, async () => {
    host.calls.push("perform");
    await perform3();
    return { cookieOut: new Uint8Array(0) };
  });
});
afterEach(() => host.stop());

async function failureOf(act: Promise<unknown>): Promise<StepFault> {
  const error = await act.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof StepFault, `no fault of a step: ${error}`);
  return error;
}

const until = async (holds: () => boolean) => {
  while (!holds()) await new Promise((done) => setImmediate(done));
};

describe("an abort is never lost", () => {
  test("while Perform still fetches its payloads: it does not begin", async () => {
    const fetching = Promise.withResolvers<Uint8Array>();
    host.readBlob = () => fetching.promise;
    const performed = failureOf(host.run(perform, performing()));
    assert.deepEqual(await host.run(abort, aborting()), { kind: "abort", aborted: true });
    fetching.resolve(new Uint8Array(0));
    const fault = await performed;
    assert.deepEqual([fault.code, fault.sourceState], ["migration.cancelled", "running"]);
    assert.deepEqual(host.calls, []);
  });

  test("after Perform was called and before its job is seen: the job is aborted as soon as it is", async () => {
    const aborted = () => host.calls.includes("abort");
    perform3 = async () => {
      await until(() => host.milestones().includes("abortAsked"));
      host.outgoing = true;
      await until(aborted);
      throw refused("operation aborted by client");
    };
    const performed = failureOf(host.run(perform, performing()));
    await until(() => host.calls.includes("perform"));
    await host.run(abort, aborting());
    const fault = await performed;
    assert.ok(aborted());
    assert.equal(fault.sourceState, "running");
  });

  test("the watch itself ends a Perform that was called off, and says so", async () => {
    perform3 = async () => {
      host.journal.push({ type: "milestone", at: "", commandId: "", name: "abortAsked", data: {} });
      host.outgoing = true;
      await until(() => host.calls.includes("abort"));
      throw refused("operation aborted by client");
    };
    assert.equal((await failureOf(host.run(perform, performing()))).code, "migration.cancelled");
  });

  test("after Perform has ended it is too late, and that is said", async () => {
    await host.run(perform, performing());
    assert.deepEqual(await host.run(abort, aborting()), { kind: "abort", aborted: false });
    assert.deepEqual(host.calls, ["perform"]);
  });
});

describe("somebody's own job", () => {
  test("begun after Begin: Perform is not called, and no job is aborted", async () => {
    host.outgoing = true;
    const fault = await failureOf(host.run(perform, performing()));
    assert.deepEqual([fault.code, fault.sourceState], ["domain.busy", "running"]);
    assert.deepEqual(await host.run(abort, aborting()), { kind: "abort", aborted: false });
    assert.deepEqual(host.calls, []);
    // Its pause is not ours to end either, whatever our own receipt says.
    host.outgoing = false;
    host.pauseByMigration();
    const command = make("confirm") as CommandOf<"confirm">;
    const destroyed = { ...command.receipt, outcome: "destroyed" as const };
    const receipt = signedReceipt(destroyed, { migrationId: command.migrationId, domain });
    const { ticket } = performing();
    const told = { ...command, domain, receipt, ticket };
    assert.deepEqual(await host.run(confirm, told), { kind: "confirm", source: "paused", receipt });
    assert.equal(host.state, DomainState.PAUSED);
  });

  test("a repeated Perform that never was begun aborts nothing", async () => {
    host.outgoing = true;
    const fault = await failureOf(host.run(perform, performing(), true));
    assert.deepEqual([fault.code, fault.sourceState], ["perform.failed", "running"]);
    assert.deepEqual(host.calls, []);
  });

  test("one that goes on after our Perform has failed is not waited for without end", async () => {
    perform3 = async () => {
      host.outgoing = true;
      throw refused("another job holds the domain");
    };
    const fault = await failureOf(host.run(perform, performing()));
    assert.deepEqual([fault.code, fault.sourceState], ["perform.failed", undefined]);
    assert.deepEqual(host.calls, ["perform"]);
  });
});

test("the connection lost right after Perform: the source is paused, and that is reported", async () => {
  host.fake.answer(p.domainListAllSnapshots, (_, client) => {
    client.drop();
    return { snapshots: [], ret: 0 };
  });
  const fault = await failureOf(host.run(perform, performing()));
  assert.equal(fault.sourceState, "paused");
  assert.ok(fault instanceof Fault && fault.code !== "internal");
});

test("what Confirm was refused with is kept, and said when the source cannot be resumed either", async () => {
  host.pauseByMigration();
  host.fake.answer(p.domainMigrateConfirm3Params, () => {
    throw refused("cannot confirm");
  });
  host.onCall = (call) => {
    if (call === "resume") throw refused("cannot resume");
  };
  const command = make("confirm") as CommandOf<"confirm">;
  const destroyed = { ...command.receipt, outcome: "destroyed" as const };
  const receipt = signedReceipt(destroyed, { migrationId: command.migrationId, domain });
  const { ticket } = performing();
  await assert.rejects(host.run(confirm, { ...command, domain, receipt, ticket }), (error) => {
    assert.ok(error instanceof Fault);
    assert.match(error.cause_, /Confirm was refused: .*cannot confirm.*cannot resume/s);
    return true;
  });
  assert.ok(host.milestones().includes("confirmRefused"));
});
