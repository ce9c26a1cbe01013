/**
 * The stripped moment (I3): the shim dies at every call and every journal line of strip and redefine, and whatever of this
 * host or around it is away then, the source has its whole tree again as soon as it is back, by itself.
 */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { procedures as p } from "#libvirt/procedures";
import type { BundleRef } from "#protocol/blob";
import type { CommandOf } from "#protocol/command";
import { Fault } from "#protocol/fault";
import { restore } from "#shim/restore";
import { begin } from "#shim/source";
import { readLiveTree } from "#shim/tree-reader";
import { make } from "#test/fake/shim-process";
import { bundleFile, domainOfHost, StepHost, snapshotEntry } from "#test/fake/step-host";

const entries = [snapshotEntry("base", null), snapshotEntry("web", "base", true), snapshotEntry("db", "base")];
const domain = { uuid: domainOfHost.uuid, name: domainOfHost.name };

let dir: string;
let bundle: BundleRef;
let host: StepHost;
before(async () => {
  dir = await mkdtemp(join(tmpdir(), "vmferry-stripped-"));
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
const restoring = (): CommandOf<"restore"> => ({ ...(make("restore") as CommandOf<"restore">), domain, bundle });
const treeSha256 = async () => (await readLiveTree(host.libvirt, domainOfHost)).treeSha256;

class Died extends Error {}

/** Everything that Begin changes or journals, in its order: where the shim may die. */
const points = [
  "journal stripping",
  "delete db",
  "delete web",
  "delete base",
  "journal stripped",
  "begin",
  "redefine base",
  "redefine web current",
  "redefine db",
  "journal redefined",
];
type Side = "before" | "after";

/** Runs Begin, which dies at that point: nothing more is written, and its libvirt connection is gone. */
async function dieAt(point: string, side: Side, also: (call: string) => void = () => {}): Promise<void> {
  let died = false;
  const die = () => {
    died = true;
    for (const client of host.fake.clients) client.drop();
  };
  const write = host.journal.push.bind(host.journal);
  host.journal.push = (...given) => {
    const name = given[0]?.type === "milestone" ? given[0].name : "";
    if (died) throw new Died();
    if (`journal ${name}` !== point) return write(...given);
    if (side === "after") write(...given);
    die();
    throw new Died();
  };
  host.onCall = (call) => {
    if (died) throw new Died();
    also(call);
    if (call !== point) return;
    die();
    if (side === "before") throw new Died();
  };
  host.onSleep = () => {
    if (died) throw new Died();
  };
  await assert.rejects(host.run(begin, beginning()), Died);
  assert.ok(died, `the shim never came to ${point}`);
  host.journal.push = write;
  host.onCall = () => {};
  host.onSleep = () => {};
  host.calls.length = 0;
}

test("these are all points of Begin", async () => {
  const seen: string[] = [];
  host.onCall = (call) => seen.push(call);
  const write = host.journal.push.bind(host.journal);
  host.journal.push = (...given) => {
    if (given[0]?.type === "milestone") seen.push(`journal ${given[0].name}`);
    return write(...given);
  };
  await host.run(begin, beginning());
  assert.deepEqual(seen, points);
});

const everywhere = points.flatMap((point) => (["before", "after"] as const).map((side) => [point, side] as const));

/** What of the tree is missing when Begin is taken up, by the first call that it makes. */
const firstCall = () => host.calls[0] ?? "";

describe("the shim dies, and is started again", () => {
  for (const [point, side] of everywhere)
    test(`${side} "${point}": the tree is put back before anything else, then Begin goes on`, async () => {
      await dieAt(point, side);
      const missing = host.records.size < entries.length;
      let whole = !missing;
      const write = host.journal.push.bind(host.journal);
      host.journal.push = (...given) => {
        if (given[0]?.type === "milestone" && given[0].name === "redefined") whole ||= host.records.size === 3;
        if (given[0]?.type === "milestone" && given[0].name === "stripping") assert.ok(whole);
        return write(...given);
      };
      assert.equal((await host.run(begin, beginning(), true)).kind, "begin");
      if (missing) assert.match(firstCall(), /^redefine/);
      assert.equal(await treeSha256(), bundle.treeSha256);
      assert.equal(host.milestones().at(-1), "redefined");
    });

  for (const [point, side] of everywhere)
    test(`${side} "${point}": the way back puts it back too`, async () => {
      await dieAt(point, side);
      assert.equal((await host.run(restore, restoring())).tree.treeSha256, bundle.treeSha256);
      assert.equal(await treeSha256(), bundle.treeSha256);
    });

  for (const [point, side] of everywhere)
    test(`${side} "${point}", and again while the tree is put back: it is whole in the end`, async () => {
      await dieAt(point, side);
      for (const again of ["redefine base", "redefine web current", "redefine db", "journal redefined"])
        for (const at of ["before", "after"] as const) {
          const stillThere = host.milestones().at(-1) !== "redefined" || points.indexOf(again) > 4;
          if (!stillThere) continue;
          host.journal.push({ type: "milestone", at: "", commandId: "", name: "connected", data: {} });
          await dieAt(again, at).catch((error: unknown) => {
            // That record was there already: this time Begin came through.
            if (!(error instanceof assert.AssertionError)) throw error;
            host.onCall = () => {};
            host.onSleep = () => {};
          });
        }
      await host.run(begin, beginning(), true);
      assert.equal(await treeSha256(), bundle.treeSha256);
    });
});

describe("what is needed is away", () => {
  const away = (code: "bundle.unreachable" | "libvirt.unreachable") =>
    new Fault({ code, cause: "away", action: "wait", retry: "safe" });

  test("the bundle's file is gone from the disk: it comes from the bucket", async () => {
    await dieAt("delete base", "after");
    let asked = 0;
    host.onDownload = () => {
      asked += 1;
    };
    await host.run(begin, beginning(), true);
    assert.equal(asked, 1);
    assert.equal(await treeSha256(), bundle.treeSha256);
  });

  test("the bucket is away too, for an hour: Begin does not end while the tree is missing, and puts it back then", async () => {
    await dieAt("begin", "before");
    let failing = 720;
    host.onDownload = () => {
      if (failing > 0) throw away("bundle.unreachable");
    };
    host.onSleep = () => {
      failing -= 1;
    };
    await host.run(begin, beginning(), true);
    assert.equal(await treeSha256(), bundle.treeSha256);
  });

  test("libvirt's daemon is away for longer than a step has patience: the same", async () => {
    await dieAt("delete web", "after");
    let failing = 620;
    host.fake.answer(p.domainListAllCheckpoints, (_, client) => {
      failing -= 1;
      if (failing > 0) client.drop();
      return { checkpoints: [], ret: 0 };
    });
    await host.run(begin, beginning(), true);
    assert.ok(failing <= 0);
    assert.equal(await treeSha256(), bundle.treeSha256);
  });

  test("with the tree whole, a bucket that is away ends Begin at once: nobody lacks anything", async () => {
    host.onDownload = () => {
      throw away("bundle.unreachable");
    };
    await assert.rejects(host.run(begin, beginning()), /bundle.unreachable/);
    assert.deepEqual(host.calls, []);
  });

  test("a bundle that was altered is said, and does not hold the way back up", async () => {
    await dieAt("begin", "before");
    host.onDownload = () => {
      throw new Fault({ code: "bundle.altered", cause: "other bytes", action: "look", retry: "person" });
    };
    await assert.rejects(host.run(begin, beginning(), true), /bundle.altered/);
  });

  test("the host was rebooted meanwhile: the tree of the domain, shut off now, is whole, and Begin is refused", async () => {
    await dieAt("delete web", "after");
    host.state = 5;
    const error = await host.run(begin, beginning(), true).catch((thrown: unknown) => thrown);
    assert.ok(error instanceof Fault && error.code === "domain.state", String(error));
    assert.equal(await treeSha256(), bundle.treeSha256);
  });
});

describe("somebody takes a snapshot, and the shim dies", () => {
  const theirs = () => [host.records.get("theirs")?.parent, host.current];
  const takenAt = ["delete db", "delete web", "delete base", "begin"];
  const takeAt = (during: string) => (call: string) => {
    if (call === during && !host.records.has("theirs")) host.take("theirs");
  };

  for (const during of takenAt)
    for (const [point, side] of everywhere.slice(everywhere.findIndex(([name]) => name === during)))
      test(`taken during "${during}", died ${side} "${point}": it is there, below its parent, and the tree is whole`, async () => {
        // What somebody took keeps the current mark, so the bundle's one is redefined without it.
        const at = point === "redefine web current" ? "redefine web" : point;
        await dieAt(at, side, takeAt(during));
        const taken = host.records.has("theirs");
        const error = await host.run(begin, beginning(), true).catch((thrown: unknown) => thrown);
        if (taken) assert.ok(error instanceof Fault && error.code === "snapshot.changed", String(error));
        const { tree } = await host.run(restore, restoring());
        assert.equal(tree.snapshots, entries.length + (taken ? 1 : 0));
        if (taken) assert.deepEqual(theirs(), ["web", "theirs"]);
        else assert.equal(await treeSha256(), bundle.treeSha256);
      });
});
