/** The destination's steps over a fake libvirtd: what is verified, what is its owner's, what is decided, what is swept. */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { DomainState } from "#libvirt/constants";
import type { BundleRef } from "#protocol/blob";
import type { CommandOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { prepare, settle, stage, unstage } from "#shim/destination";
import { finish } from "#shim/finish";
import { make } from "#test/fake/shim-process";
import { bundleFile, domainOfHost, domainXml, StepHost, snapshotEntry } from "#test/fake/step-host";

const entries = [snapshotEntry("base", null), snapshotEntry("web", "base", true), snapshotEntry("db", "base")];
const domain = { uuid: domainOfHost.uuid, name: domainOfHost.name };

let dir: string;
let bundle: BundleRef;
let host: StepHost;
before(async () => {
  dir = await mkdtemp(join(tmpdir(), "vmferry-destination-"));
  bundle = await bundleFile(join(dir, "bundle"), entries);
});
after(() => rm(dir, { recursive: true }));
beforeEach(async () => {
  host = await StepHost.start();
  host.bundles.set(bundle.sha256, join(dir, "bundle"));
});
afterEach(() => host.stop());

const staging = (): CommandOf<"stage"> => ({ ...(make("stage") as CommandOf<"stage">), domain, bundle });
const unstaging = (): CommandOf<"unstage"> => ({ ...(make("unstage") as CommandOf<"unstage">), domain, bundle });
const settling = (): CommandOf<"settle"> => ({ ...(make("settle") as CommandOf<"settle">), domain, bundle });

async function faultOf(act: () => Promise<unknown>): Promise<Fault> {
  const error = await act().then(
    () => null,
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof Fault, `no fault: ${error}`);
  return error;
}

/** Staged, prepared, and Finish done. */
async function arrive(): Promise<void> {
  host.present = false;
  await host.run(stage, staging());
  const preparing = make("prepare") as CommandOf<"prepare">;
  host.readBlob = async () => Buffer.from(domainXml);
  await host.run(prepare, { ...preparing, domain });
  await host.run(finish, { ...(make("finish") as CommandOf<"finish">), domain });
  host.calls.length = 0;
}

describe("settle", () => {
  test("the tree as it was staged is verified, and no bucket is asked", async () => {
    await arrive();
    host.bundles.clear();
    const body = await host.run(settle, settling());
    assert.equal(body.tree.treeSha256, bundle.treeSha256);
    assert.equal(body.changedByOwner, undefined);
  });

  test("a snapshot that its owner deleted after the arrival stays deleted, and that is said", async () => {
    await arrive();
    host.records.delete("db");
    const body = await host.run(settle, settling());
    assert.deepEqual([body.tree.snapshots, body.changedByOwner], [2, true]);
    assert.deepEqual(host.calls, ["autostart false"]);
  });

  test("all of them deleted stay deleted", async () => {
    await arrive();
    host.records.clear();
    host.current = null;
    const body = await host.run(settle, settling());
    assert.deepEqual([body.tree.snapshots, body.changedByOwner], [0, true]);
  });

  test("a revert after the arrival keeps its current snapshot", async () => {
    await arrive();
    host.current = "base";
    const body = await host.run(settle, settling());
    assert.equal(body.changedByOwner, true);
    assert.equal(host.current, "base");
  });

  test("a snapshot taken after the arrival is its owner's too", async () => {
    await arrive();
    host.take("theirs");
    const body = await host.run(settle, settling());
    assert.deepEqual([body.tree.snapshots, body.changedByOwner], [4, true]);
    assert.equal(host.current, "theirs");
  });

  test("a tree that libvirt did not take over comes from the bundle", async () => {
    assert.deepEqual(host.records.size, 0);
    const body = await host.run(settle, settling());
    assert.equal(body.tree.treeSha256, bundle.treeSha256);
    assert.equal(body.changedByOwner, undefined);
  });

  test("a tree that cannot be made the bundle's is snapshot.mismatch, not a success", async () => {
    host.onCall = (call) => {
      // libvirt forgets one as soon as it has it: no redefine makes this tree whole.
      if (call.startsWith("redefine web")) host.records.delete("db");
      if (call === "redefine db") queueMicrotask(() => host.records.delete("db"));
    };
    const fault = await faultOf(() => host.run(settle, settling()));
    assert.equal(fault.code, "snapshot.mismatch");
    assert.match(fault.cause_, /"db" is missing/);
  });

  test("a guest that powered itself off since is settled as what it is", async () => {
    await arrive();
    host.state = DomainState.SHUTOFF;
    assert.equal((await host.run(settle, settling())).state, "shutoff");
  });
});

describe("Finish and cookie C", () => {
  const finishing = (cancelled = false): CommandOf<"finish"> => {
    const cookie = { in: "bucket", key: "payloads/c", sha256: "b".repeat(64), bytes: 30_000 } as const;
    return { ...(make("finish") as CommandOf<"finish">), domain, cookie, cancelled };
  };
  const altered = new Fault({ code: "cookie.altered", cause: "other bytes", action: "look", retry: "person" });

  test("a cookie that is altered or gone decides nothing, and the other decision is still free", async () => {
    host.incoming = true;
    host.pauseByMigration();
    host.readBlob = async () => {
      throw altered;
    };
    assert.equal((await faultOf(() => host.run(finish, finishing()))).code, "cookie.altered");
    assert.deepEqual([host.milestones(), host.calls], [[], []]);
    // The way back needs no cookie.
    const body = await host.run(finish, finishing(true));
    assert.equal(body.receipt.outcome, "destroyed");
    assert.deepEqual(host.calls, ["finish cancelled"]);
  });

  test("once decided, the domain answers before the cookie is asked for", async () => {
    host.journal.push({ type: "milestone", at: "", commandId: "", name: "finishing", data: { cancelled: false } });
    host.readBlob = async () => {
      throw altered;
    };
    const body = await host.run(finish, finishing(), true);
    assert.deepEqual([body.receipt.outcome, body.receipt.evidence], ["started", "probe"]);
  });
});

describe("what is swept from the destination", () => {
  test("a definition that was there before ours could be is left alone", async () => {
    host.state = DomainState.SHUTOFF;
    assert.equal((await faultOf(() => host.run(stage, staging()))).code, "destination.defined");
    assert.equal((await host.run(unstage, unstaging())).removed, false);
    assert.deepEqual(host.calls, []);
  });

  test("without a journal, a definition without records is nobody's that we know", async () => {
    host.state = DomainState.SHUTOFF;
    assert.equal((await host.run(unstage, unstaging())).removed, false);
    host.load(entries.slice(0, 2));
    assert.equal((await host.run(unstage, unstaging())).removed, false);
    assert.deepEqual(host.calls, []);
  });

  test("without a journal, one that holds the whole bundle is ours", async () => {
    host.state = DomainState.SHUTOFF;
    host.load(entries);
    assert.equal((await host.run(unstage, unstaging())).removed, true);
  });

  test("libvirt goes away after the define: the step takes its own definition over and goes on", async () => {
    host.present = false;
    let lost = false;
    host.onCall = (call) => {
      if (call !== "redefine web current" || lost) return;
      lost = true;
      for (const client of host.fake.clients) client.drop();
    };
    const body = await host.run(stage, staging());
    assert.equal(lost, true);
    assert.equal(body.tree.treeSha256, bundle.treeSha256);
    assert.equal((await host.run(unstage, unstaging())).removed, true);
  });
});
