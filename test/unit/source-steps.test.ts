/** The source's steps over a fake libvirtd: what a migration takes away there, and how it comes back. */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { DomainState } from "#libvirt/constants";
import type { BundleRef } from "#protocol/blob";
import type { CommandOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { confirm } from "#shim/confirm";
import { restore } from "#shim/restore";
import { begin } from "#shim/source";
import { readLiveTree } from "#shim/tree-reader";
import { make } from "#test/fake/shim-process";
import { bundleFile, domainOfHost, StepHost, snapshotEntry } from "#test/fake/step-host";
import { signedReceipt, ticketFor } from "#test/fake/treaty";

const entries = [snapshotEntry("base", null), snapshotEntry("web", "base", true), snapshotEntry("db", "base")];
const domain = { uuid: domainOfHost.uuid, name: domainOfHost.name };

let dir: string;
let bundle: BundleRef;
let host: StepHost;
before(async () => {
  dir = await mkdtemp(join(tmpdir(), "vmferry-source-"));
  bundle = await bundleFile(join(dir, "bundle"), entries);
});
after(() => rm(dir, { recursive: true }));
beforeEach(async () => {
  host = await StepHost.start();
  host.load(entries);
  host.bundles.set(bundle.sha256, join(dir, "bundle"));
});
afterEach(() => host.stop());

const beginning = (): CommandOf<"begin"> => ({ ...(make("begin") as CommandOf<"begin">), domain, bundle });
const restoring = (autostart = false): CommandOf<"restore"> => ({
  ...(make("restore") as CommandOf<"restore">),
  domain,
  bundle,
  autostart,
});
const exported = () => host.journal.push({ type: "intent", at: "", command: { ...make("export"), domain } });
const treeSha256 = async () => (await readLiveTree(host.libvirt, domainOfHost)).treeSha256;

async function faultOf(act: () => Promise<unknown>): Promise<Fault> {
  const error = await act().then(
    () => null,
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof Fault, `no fault: ${error}`);
  return error;
}

describe("autostart of the source (I1)", () => {
  test("Begin takes it off, journalled before, and the way back puts it on again", async () => {
    host.autostart = true;
    let journalled: string[] = [];
    host.onCall = (call) => {
      if (call === "autostart false") journalled = host.milestones();
    };
    await host.run(begin, beginning());
    assert.deepEqual(journalled, ["autostartCleared"]);
    assert.equal(host.autostart, false);
    assert.ok(host.calls.indexOf("autostart false") < host.calls.indexOf("begin"));
    await host.run(restore, restoring());
    assert.equal(host.autostart, true);
  });

  test("one that was off stays off, and nothing is asked to change", async () => {
    await host.run(begin, beginning());
    await host.run(restore, restoring(true));
    assert.equal(host.autostart, false);
    assert.ok(host.calls.every((call) => !call.startsWith("autostart")));
  });

  test("a lost journal: the inspection's word puts it back", async () => {
    await host.run(restore, restoring(true));
    assert.equal(host.autostart, true);
  });

  test("a transient domain has none to take off", async () => {
    host.persistent = false;
    host.autostart = true;
    await host.run(begin, beginning());
    assert.ok(host.calls.every((call) => !call.startsWith("autostart")));
  });

  test("taken back by a receipt, it is on again with the guest", async () => {
    host.autostart = true;
    await host.run(begin, beginning());
    host.journal.push({ type: "milestone", at: "", commandId: "", name: "performing", data: {} });
    host.pauseByMigration();
    host.continuous = false;
    const command = make("confirm") as CommandOf<"confirm">;
    const destroyed = { ...command.receipt, outcome: "destroyed" as const };
    const receipt = signedReceipt(destroyed, { migrationId: command.migrationId, domain });
    const ticket = ticketFor({ ...(make("perform") as CommandOf<"perform">), domain });
    const told = { ...command, domain, receipt, ticket };
    assert.deepEqual(await host.run(confirm, told), { kind: "confirm", source: "running", receipt });
    assert.equal(host.autostart, true);
  });
});

describe("somebody takes a snapshot around the strip", () => {
  /** Parent and current of a record, as the host has it now. */
  const theirs = () => [host.records.get("theirs")?.parent, host.current];

  test("between the comparison and the strip: it is refused, and nothing was touched", async () => {
    const push = host.journal.push.bind(host.journal);
    host.journal.push = (...given) => {
      if (given.some((entry) => entry.type === "milestone" && entry.name === "stripping")) host.take("theirs");
      return push(...given);
    };
    const fault = await faultOf(() => host.run(begin, beginning()));
    assert.equal(fault.code, "snapshot.changed");
    assert.match(fault.cause_, /Nothing was touched/);
    assert.deepEqual(host.calls, []);
    assert.deepEqual(host.milestones(), ["stripping", "redefined"]);
    assert.deepEqual(theirs(), ["web", "theirs"]);
  });

  for (const during of ["delete db", "delete web", "delete base", "begin"])
    test(`during "${during}": it keeps its parent and stays current, and the tree is whole`, async () => {
      host.onCall = (call) => {
        if (call === during && !host.records.has("theirs")) host.take("theirs");
      };
      const fault = await faultOf(() => host.run(begin, beginning()));
      assert.deepEqual([fault.code, fault.retry], ["snapshot.changed", "safe"]);
      assert.match(fault.cause_, /"theirs" was added while Begin was called.*kept where its owner put it/);
      assert.deepEqual(theirs(), ["web", "theirs"]);
      assert.equal(host.records.size, entries.length + 1);
      assert.equal((await host.run(restore, restoring())).tree.snapshots, entries.length + 1);
      assert.deepEqual(theirs(), ["web", "theirs"]);
    });

  test("a link that cannot be mended is named", async () => {
    host.onCall = (call) => {
      if (call === "begin") host.take("theirs");
      // libvirt refuses this one record.
      if (call.startsWith("redefine theirs")) throw new Error("refused");
    };
    const fault = await faultOf(() => host.run(begin, beginning()));
    assert.match(fault.cause_, /"theirs" lost the link to its parent/);
    assert.deepEqual(theirs(), [null, "theirs"]);
  });

  test("a shim that died in the strip: the way back mends it too", async () => {
    host.journal.push({ type: "milestone", at: "", commandId: "", name: "stripping", data: {} });
    host.records.delete("db");
    host.records.delete("web");
    host.current = "base";
    host.take("theirs");
    assert.equal((await host.run(restore, restoring())).tree.snapshots, entries.length + 1);
    assert.deepEqual(theirs(), ["web", "theirs"]);
  });
});

describe("restore", () => {
  test("a domain that somebody took away is a fact: nothing is left to restore", async () => {
    host.present = false;
    const body = await host.run(restore, restoring());
    assert.deepEqual([body.absent, body.state, body.tree.snapshots], [true, "nostate", 0]);
  });

  test("taken away while its tree is being completed, it is absent too", async () => {
    host.journal.push({ type: "milestone", at: "", commandId: "", name: "stripping", data: {} });
    host.records.delete("db");
    host.onCall = (call) => {
      if (call === "redefine db") host.present = false;
    };
    assert.equal((await host.run(restore, restoring())).absent, true);
  });

  test("with its journal lost, records that are missing come back from the bundle", async () => {
    host.load(entries.slice(0, 1));
    const body = await host.run(restore, restoring());
    assert.equal(body.tree.treeSha256, bundle.treeSha256);
    assert.equal(await treeSha256(), bundle.treeSha256);
  });

  test("with its journal lost and the tree whole, no bucket is asked", async () => {
    host.bundles.clear();
    assert.equal((await host.run(restore, restoring())).tree.treeSha256, bundle.treeSha256);
  });

  test("with its journal lost and a tree that has only grown, nothing is redefined", async () => {
    host.take("theirs");
    assert.equal((await host.run(restore, restoring())).tree.snapshots, entries.length + 1);
    assert.deepEqual(host.calls, []);
  });

  test("with a journal that shows no strip, what the owner deleted stays deleted, and no bucket is asked", async () => {
    exported();
    host.load(entries.slice(0, 2));
    host.bundles.clear();
    assert.equal((await host.run(restore, restoring())).tree.snapshots, 2);
    assert.deepEqual(host.calls, []);
  });

  test("a domain that is still paused by the migration is not touched", async () => {
    host.pauseByMigration();
    assert.equal((await faultOf(() => host.run(restore, restoring(true)))).code, "confirm.failed");
    assert.equal(host.state, DomainState.PAUSED);
    assert.deepEqual(host.calls, []);
  });
});
