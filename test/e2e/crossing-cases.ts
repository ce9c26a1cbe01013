/**
 * The crossing, end to end: the command line, the control plane and two shims as processes of their own, two real libvirt
 * hosts, a real guest that counts. What must be true is told by virsh, by the guest's serial port, by the bytes in the
 * bucket and by the guest's own file on its disk. One list of cases, whatever the control plane runs in.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { DynamoDBClient, QueryCommand } from "@aws-sdk/client-dynamodb";
import { bootGuest, destroyGuest, type Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import { revertAndSee, type TakenTree, takeBranchingTree } from "#lab/snapshot-tree";
import { readBundle } from "#protocol/bundle-reader";
import { inlineBytesMax } from "#protocol/limits";
import { openDynalite } from "../../functions/cli/up-dynalite.ts";
import type { Migration } from "../../functions/http/migration-resource.ts";
import { diskLines, eventually, treeOf, type World } from "./world.ts";

const timeout = 900_000;
const tickMs = 60_000;

/** Starts a lab of two hosts with a control plane and a shim on each. */
export type StartWorld = () => Promise<World>;

export function guestCrossings(under: string, startWorld: StartWorld): void {
  describe(`a running guest with a branching snapshot tree, ${under}`, { timeout }, () => {
    let world: World;
    let h1: Host;
    let h2: Host;
    let guest: Guest;
    let taken: TakenTree;
    let first: Migration;

    before(async () => {
      world = await startWorld();
      [h1, h2] = [world.lab.host(0), world.lab.host(1)];
      guest = await bootGuest(h1);
      taken = await takeBranchingTree(h1, guest);
      await world.heardOf(guest.name, [h1]);
    });
    after(async () => {
      if (guest !== undefined) await destroyGuest(guest, [h1, h2]);
      await world?.stop();
    });

    /** Moves the guest and holds everything that can be seen of it against what was there before. */
    async function cross(from: Host, to: Host): Promise<Migration> {
      const before = await world.seen(from);
      const autostart = before[guest.name]?.autostart;
      const ticks = guest.witness.current ?? 0;
      guest.witness.reset();
      const migration = await world.migrate([guest.name, "--to", to.name]);
      assert.equal(migration.status, "completed");
      assert.equal(await to.virsh.domstate(guest.name), "running");
      assert.deepEqual(await treeOf(to, guest.name), before[guest.name]?.tree, "the tree differs");
      assert.equal((await world.seen(to))[guest.name]?.autostart, autostart);
      await world.assertNothingOn(from, guest.name);
      await world.assertJournalsEmpty(to);
      await guest.witness.waitForTickAfter(ticks, tickMs);
      await guest.witness.waitForTicks(20, tickMs);
      assert.deepEqual(guest.witness.violations, [], "the guest lost or repeated a count");
      assert.equal(guest.witness.boots, 1);
      return migration;
    }

    test("moves by one command: tree equal, nothing left behind, no count lost or doubled", async () => {
      assert.ok(
        taken.snapshots.some(({ parent }) => parent === taken.current),
        "the current snapshot has children",
      );
      await h1.virsh.run(["autostart", guest.name]);
      first = await cross(h1, h2);
      assert.equal(first.source, h1.name);
      assert.equal(first.destination, h2.name);
      assert.equal(first.error, null);
      assert.deepEqual(first.snapshots, {
        total: taken.snapshots.length,
        staged: taken.snapshots.length,
        verified: taken.snapshots.length,
      });
    });

    test("migration show tells every step, the cookies A to D and the receipt", async () => {
      const steps = [...new Set(first.timeline.map(({ step }) => step))];
      const expected = [
        "inspect",
        "export",
        "stage",
        "begin",
        "prepare",
        "perform",
        "finish",
        "confirm",
        "settle",
      ] as const;
      assert.deepEqual(
        steps.filter((step) => step !== "ended"),
        [...expected],
      );
      for (const step of expected)
        assert.ok(
          first.timeline.some((entry) => entry.step === step && entry.side !== null && entry.ms !== null),
          `${step} has no entry with a side and a duration`,
        );
      assert.deepEqual(
        first.cookies.map(({ cookie, phase, in: where }) => [cookie, phase, where]),
        [
          ["A", "begin", "item"],
          ["B", "prepare", "item"],
          ["C", "perform", "item"],
          ["D", "finish", "item"],
        ],
      );
      for (const { bytes } of first.cookies) assert.ok(bytes > 0 && bytes <= inlineBytesMax);
      assert.equal(first.receipt?.outcome, "started");
      assert.ok((first.progress.transferredBytes ?? 0) > 0);
      assert.ok(first.progress.blackoutMs !== null);
      const text = (await world.fleet.mustRun(["migration", "show", first.id])).stdout;
      for (const { sha256 } of first.cookies)
        assert.ok(text.includes(sha256), "the text does not name a cookie's digest");
      for (const step of expected) assert.match(text, new RegExp(`\\b${step}\\b`));
    });

    test("the bundle is in the bucket under its digest and holds this very tree", async () => {
      const { bundle } = first;
      assert.ok(bundle);
      assert.equal(bundle.snapshots, taken.snapshots.length);
      assert.equal(bundle.count, taken.snapshots.length);
      const bytes = await world.object(bundle.key);
      assert.equal(bytes.byteLength, bundle.bytes);
      assert.equal(createHash("sha256").update(bytes).digest("hex"), bundle.sha256);
      assert.ok(bundle.key.endsWith(bundle.sha256), `${bundle.key} is not named by its digest`);
      const path = join(world.fleet.dir, "fetched.bundle");
      await writeFile(path, bytes);
      const names: string[] = [];
      for await (const { kind, name, current } of readBundle(path)) {
        if (kind === "snapshot") names.push(name);
        if (current) assert.equal(name, taken.current);
      }
      assert.deepEqual(names.sort(), taken.snapshots.map(({ name }) => name).sort());
    });

    test("reverts on the destination to a snapshot taken on the source", async () => {
      const target = taken.snapshots.find(({ name }) => name === "db-test");
      assert.ok(target);
      const { before, after } = await revertAndSee(h2, guest, target.name);
      assert.ok(after < before);
      assert.ok(
        after >= target.tickMin && after <= target.tickMax + 1,
        `${after} is not where ${target.name} was taken`,
      );
      assert.equal(await h2.virsh.snapshotCurrent(guest.name), target.name);
    });

    test("goes back at once, and both ways a second time, with its autostart", async () => {
      await world.heardOf(guest.name, [h2]);
      await cross(h2, h1);
      await cross(h1, h2);
      await h2.virsh.run(["autostart", guest.name, "--disable"]);
      await cross(h2, h1);
      const { snapshots } = taken;
      assert.equal((await treeOf(h1, guest.name)).length, snapshots.length);
      assert.equal(await h1.virsh.snapshotCurrent(guest.name), "db-test");
    });

    test("moves without any snapshot: no bundle, no staging", async () => {
      for (const { name } of [...taken.snapshots].reverse())
        await h1.virsh.run(["snapshot-delete", guest.name, name, "--metadata"]);
      const migration = await cross(h1, h2);
      assert.equal(migration.bundle, null);
      assert.deepEqual(migration.snapshots, { total: 0, staged: 0, verified: 0 });
      assert.ok(!migration.timeline.some(({ step }) => step === "export" || step === "stage"));
    });

    test("lost and doubled nothing on its disk in all of this", async () => {
      const synced = guest.witness.diskCount ?? 0;
      await guest.witness.waitForDiskAfter(synced, tickMs);
      assert.equal(guest.witness.diskErrors, 0);
      await h2.virsh.destroy(guest.name);
      const lines = await diskLines(guest.disk);
      assert.ok(lines.length > 1);
      assert.ok((lines.at(-1) ?? 0) >= synced);
      assert.deepEqual(
        lines,
        lines.map((_, index) => (index + 1) * 100),
      );
    });

    test("left its cookies A to D in DynamoDB, as they were told", async () => {
      await world.fleet.controlPlane?.stop();
      const blobs = await storedBlobs(join(world.fleet.dir, "data"), first.id);
      for (const { cookie, bytes, sha256 } of first.cookies) {
        const stored = blobs.find(({ name }) => name === `${cookie}#${sha256}`);
        assert.ok(stored, `cookie ${cookie} is not among ${blobs.map(({ name }) => name).join(", ")}`);
        assert.equal(stored.bytes.byteLength, bytes);
        assert.equal(createHash("sha256").update(stored.bytes).digest("hex"), sha256);
      }
    });
  });
}

/** Every payload of a migration as it lies in DynamoDB: the text after `BLOB#` in its key, and its bytes. */
async function storedBlobs(dataDir: string, migrationId: string): Promise<{ name: string; bytes: Uint8Array }[]> {
  const store = await openDynalite(join(dataDir, "dynamodb"));
  const client = new DynamoDBClient({
    endpoint: store.endpoint,
    region: "us-east-1",
    credentials: { accessKeyId: "local", secretAccessKey: "local" },
  });
  try {
    const { Items = [] } = await client.send(
      new QueryCommand({
        TableName: "vmferry",
        KeyConditionExpression: "pk = :pk AND begins_with(sk, :blob)",
        ExpressionAttributeValues: { ":pk": { S: `MIG#${migrationId}` }, ":blob": { S: "BLOB#" } },
      }),
    );
    return Items.map((item) => {
      const bytes = Object.values(item).flatMap((value) => (value.B === undefined ? [] : [value.B]))[0];
      return { name: item.sk?.S?.slice("BLOB#".length) ?? "", bytes: bytes ?? new Uint8Array() };
    });
  } finally {
    client.destroy();
    await store.close();
  }
}

export function otherCrossings(under: string, startWorld: StartWorld): void {
  describe(`domains of other kinds, ${under}`, { timeout }, () => {
    let world: World;
    let h1: Host;
    let h2: Host;

    before(async () => {
      world = await startWorld();
      [h1, h2] = [world.lab.host(0), world.lab.host(1)];
    });
    after(() => world?.stop());

    /** Moves a domain that is not running; all that virsh tells of it must be the same afterwards. */
    async function carry(name: string): Promise<Migration> {
      await world.heardOf(name, [h1]);
      const before = (await world.seen(h1))[name];
      const migration = await world.migrate([name, "--to", h2.name]);
      assert.equal(migration.status, "completed");
      const after = (await world.seen(h2))[name];
      // The live XML names ids that each libvirtd gives anew.
      assert.deepEqual({ ...after, liveXml: "" }, { ...before, liveXml: "" });
      await world.assertNothingOn(h1, name);
      return migration;
    }

    test("a paused domain stays paused", async () => {
      await world.define(h1, "paused", { paused: true });
      await h1.virsh.snapshotCreate("paused", "one");
      await h1.virsh.snapshotCreate("paused", "two");
      await h1.virsh.run(["autostart", "paused"]);
      await carry("paused");
      assert.equal(await h2.virsh.domstate("paused"), "paused");
      await h2.virsh.snapshotRevert("paused", "one", ["--paused"]);
      assert.equal(await h2.virsh.snapshotCurrent("paused"), "one");
      await world.forget("paused");
    });

    test("one that arrived paused is not sent on before it has run: its QEMU would die of it", async () => {
      await world.define(h1, "waiting", { paused: true });
      await carry("waiting");
      await world.heardOf("waiting", [h2]);
      const before = await world.seen(h2);
      for (const command of ["check", "migrate"]) {
        const finished = await world.fleet.run([command, "waiting", "--to", h1.name]);
        assert.equal(finished.code, 3, finished.stdout + finished.stderr);
        assert.match(finished.stdout + finished.stderr, /domain\.state.*arrived here paused/);
      }
      assert.deepEqual(await world.seen(h2), before);
      await h2.virsh.run(["resume", "waiting"]);
      await eventually("it has run enough", async () => {
        await h2.virsh.run(["suspend", "waiting"]);
        if ((await world.fleet.run(["check", "waiting", "--to", h1.name])).code === 0) return true;
        await h2.virsh.run(["resume", "waiting"]);
        return false;
      });
      await world.migrate(["waiting", "--to", h1.name]);
      assert.equal(await h1.virsh.domstate("waiting"), "paused");
      await world.forget("waiting");
    });

    test("a shut-off domain moves with its branching tree, and reverts there", async () => {
      await world.define(h1, "still");
      for (const [from, name] of [
        [undefined, "base"],
        [undefined, "left"],
        ["base", "right"],
      ] as const) {
        if (from !== undefined) await h1.virsh.snapshotRevert("still", from);
        await h1.virsh.snapshotCreate("still", name);
      }
      await h1.virsh.snapshotRevert("still", "base");
      const migration = await carry("still");
      assert.equal(migration.options.offline, true);
      assert.ok(!migration.timeline.some(({ step }) => step === "perform"));
      await h2.virsh.snapshotRevert("still", "left");
      await world.forget("still");
    });

    test("a domain is sent on at the very moment it has arrived", async () => {
      await world.define(h1, "restless", { memoryMiB: 128 });
      await h1.virsh.start("restless");
      await h1.virsh.snapshotCreate("restless", "one");
      await world.heardOf("restless", [h1]);
      const tree = await treeOf(h1, "restless");
      for (const to of [h2, h1, h2, h1]) {
        const migration = await world.migrate(["restless", "--to", to.name]);
        assert.equal(migration.destination, to.name);
      }
      assert.deepEqual(await treeOf(h1, "restless"), tree);
      await world.assertNothingOn(h2, "restless");
      await world.forget("restless");
    });

    test("a domain whose XML is 1 MB moves with snapshots: large payloads take the way over the bucket", async () => {
      const element = `<v:note xmlns:v="https://vmferry.example/note">${"a line of a large note; ".repeat(44_000)}</v:note>`;
      assert.ok(element.length > 1_000_000);
      await world.define(h1, "large", { paused: true, metadata: element });
      await h1.virsh.snapshotCreate("large", "one");
      await h1.virsh.snapshotCreate("large", "two");
      const migration = await carry("large");
      const carried = [...migration.cookies, ...(migration.xml === null ? [] : [migration.xml])];
      assert.ok(
        carried.some(({ bytes }) => bytes > 400 * 1024),
        "nothing was above the 400 KB of an item",
      );
      for (const { bytes, in: where } of carried) assert.equal(where, bytes > inlineBytesMax ? "bucket" : "item");
      for (const { bytes, sha256, in: where } of carried) {
        if (where === "item") continue;
        const object = await world.object(`cookies/${sha256}`);
        assert.equal(object.byteLength, bytes);
        assert.equal(createHash("sha256").update(object).digest("hex"), sha256);
      }
      assert.ok(
        migration.cookies.some(({ bytes, in: where }) => where === "bucket" && bytes > 400 * 1024),
        `no cookie was large: ${JSON.stringify(migration.cookies)}`,
      );
      await world.forget("large");
    });

    test("a domain whose XML is over 24 KiB and under 400 KB takes the same way", async () => {
      const element = `<v:note xmlns:v="https://vmferry.example/note">${"a line of a note; ".repeat(4_000)}</v:note>`;
      await world.define(h1, "middling", { metadata: element });
      await h1.virsh.snapshotCreate("middling", "one");
      const migration = await carry("middling");
      assert.ok(migration.xml !== null && migration.xml.bytes > inlineBytesMax && migration.xml.bytes < 400 * 1024);
      assert.equal(migration.xml.in, "bucket");
      await world.forget("middling");
    });
  });
}
