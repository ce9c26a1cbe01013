/**
 * The manual way and the looking, through the command line on real hosts: bundles out to a file and back into libvirt, the
 * lists of hosts and domains, the tree of one domain, and the doctor. virsh tells what is true.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import * as z from "zod/mini";
import type { Host } from "#lab/host";
import { redefineManySnapshots } from "#lab/snapshot-tree";
import type { SnapshotRecord } from "#lab/virsh";
import { bundleTaskResourceSchema } from "../../functions/http/bundle-resource.ts";
import { domainDetailSchema, domainSchema, hostDetailSchema, hostSchema } from "../../functions/http/host-resource.ts";
import { refusalOf, treeOf, World } from "./world.ts";

const timeout = 600_000;
const name = "keeper";
const [ok, usage, blocked, notFound] = [0, 64, 3, 66];

describe("bundles by hand, and looking", { timeout }, () => {
  let world: World;
  let h1: Host;
  let h2: Host;
  let uuid: string;
  let tree: SnapshotRecord[];
  let file: string;

  before(async () => {
    world = await World.start({ hosts: 2 });
    [h1, h2] = [world.lab.host(0), world.lab.host(1)];
    ({ uuid } = await world.define(h1, name));
    for (const [from, snapshot] of [
      [undefined, "base"],
      [undefined, "web <1>"],
      [undefined, "web & db"],
      ["base", "übung"],
    ] as const) {
      if (from !== undefined) await h1.virsh.snapshotRevert(name, from);
      await h1.virsh.snapshotCreate(name, snapshot);
    }
    await h1.virsh.snapshotRevert(name, "web <1>");
    tree = await treeOf(h1, name);
    assert.equal(tree.length, 4);
    await world.heardOf(name, [h1]);
    file = join(world.fleet.dir, "keeper.bundle");
  });
  after(() => world?.stop());

  const names = (records: readonly { name: string }[]) => records.map((record) => record.name).sort();

  test("export writes a file whose digest is the bundle's, and changes nothing", async () => {
    const before = await world.seen(h1);
    const { finished, value } = await world.json(["bundle", "export", name, "-o", file]);
    assert.equal(finished.code, ok, finished.stderr);
    const task = bundleTaskResourceSchema.parse(value);
    assert.equal(task.status, "completed");
    assert.equal(task.host, h1.name);
    assert.deepEqual(task.domain, { uuid, name });
    assert.equal(task.bundle?.snapshots, tree.length);
    const bytes = await readFile(file);
    assert.equal(createHash("sha256").update(bytes).digest("hex"), task.bundle?.sha256);
    assert.equal(bytes.byteLength, task.bundle?.bytes);
    assert.equal((await stat(file)).mode & 0o077, 0, "others may read snapshot metadata");
    assert.deepEqual(await world.seen(h1), before);
  });

  test("export does not overwrite, and refuses what is not there", async () => {
    const before = await readFile(file);
    const again = await world.fleet.run(["bundle", "export", name, "-o", file]);
    assert.equal(again.code, usage);
    assert.match(refusalOf(again).cause, /exists already/);
    assert.deepEqual(await readFile(file), before);
    const absent = await world.fleet.run(["bundle", "export", "nobody", "-o", join(world.fleet.dir, "none")]);
    assert.equal(absent.code, blocked);
    assert.equal(refusalOf(absent).code, "domain.absent");
    const elsewhere = await world.fleet.run([
      "bundle",
      "export",
      name,
      "--host",
      "h9",
      "-o",
      join(world.fleet.dir, "none"),
    ]);
    assert.equal(elsewhere.code, blocked);
    assert.equal(refusalOf(elsewhere).code, "host.absent");
    await assert.rejects(stat(join(world.fleet.dir, "none")));
  });

  test("show tells what is in it, and needs no control plane for it", async () => {
    const { finished, value } = await world.json(["bundle", "show", file]);
    assert.equal(finished.code, ok);
    const shown = z
      .object({
        snapshots: z.int(),
        sha256: z.string(),
        entries: z.array(
          z.object({ kind: z.string(), name: z.string(), parent: z.nullable(z.string()), current: z.boolean() }),
        ),
      })
      .parse(value);
    assert.equal(shown.snapshots, tree.length);
    const entries = shown.entries.filter(({ kind }) => kind === "snapshot");
    assert.deepEqual(
      entries.map((entry) => [entry.name, entry.parent ?? undefined, entry.current]).sort(),
      tree.map((record) => [record.name, record.parent, record.current]).sort(),
    );
    const seenNames = new Set<string>();
    for (const entry of entries) {
      assert.ok(entry.parent === null || seenNames.has(entry.parent), `${entry.name} stands before its parent`);
      seenNames.add(entry.name);
    }
    const text = (await world.fleet.mustRun(["bundle", "show", file])).stdout;
    for (const record of tree) assert.ok(text.includes(record.name), `${record.name} is not drawn`);
    assert.match(text, /<- current/);
  });

  test("an altered bundle is refused before a byte of it is sent or restored", async () => {
    const bytes = await readFile(file);
    const before = await world.seen(h1);
    for (const [what, altered] of [
      ["flipped", bytes.map((byte, index) => (index === bytes.length >> 1 ? byte ^ 1 : byte))],
      ["cut", bytes.subarray(0, bytes.length - 1)],
      ["longer", Buffer.concat([bytes, Buffer.from([0])])],
      ["other", Buffer.from("<domainsnapshot/>")],
    ] as const) {
      const path = join(world.fleet.dir, `${what}.bundle`);
      await writeFile(path, altered);
      for (const words of [
        ["bundle", "show", path],
        ["bundle", "restore", path, "--host", h1.name],
      ]) {
        const finished = await world.fleet.run(words);
        assert.notEqual(finished.code, ok, `${what}: ${words.join(" ")}`);
        assert.match(refusalOf(finished).code, /^bundle\.(altered|malformed)$/);
      }
    }
    const absent = await world.fleet.run(["bundle", "show", join(world.fleet.dir, "none.bundle")]);
    assert.equal(absent.code, notFound);
    assert.deepEqual(await world.seen(h1), before);
  });

  test("restore brings back what was lost, and the tree is the same", async () => {
    // A parent in the middle and a leaf: the record of what is left still names the lost one.
    await h1.virsh.run(["snapshot-delete", name, "web & db", "--metadata"]);
    await h1.virsh.run(["snapshot-delete", name, "übung", "--metadata"]);
    assert.deepEqual(names(await treeOf(h1, name)), ["base", "web <1>"]);
    const { finished, value } = await world.json(["bundle", "restore", file, "--host", h1.name]);
    assert.equal(finished.code, ok, finished.stderr);
    assert.equal(bundleTaskResourceSchema.parse(value).status, "completed");
    assert.deepEqual(await treeOf(h1, name), tree);
    await world.assertJournalsEmpty(h1);
  });

  test("restore brings back a whole tree, and once more is no change", async () => {
    for (const record of ["web & db", "web <1>", "übung", "base"])
      await h1.virsh.run(["snapshot-delete", name, record, "--metadata"]);
    assert.deepEqual(await treeOf(h1, name), []);
    for (let round = 0; round < 2; round += 1) {
      const finished = await world.fleet.mustRun(["bundle", "restore", file, "--host", h1.name]);
      assert.match(finished.stdout, /4 snapshots/);
      assert.deepEqual(await treeOf(h1, name), tree);
    }
    // The data was never touched: libvirt reverts to what was restored.
    await h1.virsh.snapshotRevert(name, "übung");
    await h1.virsh.snapshotRevert(name, "web <1>");
  });

  test("restore to a host that does not have the domain is refused, and leaves nothing there", async () => {
    const finished = await world.fleet.run(["bundle", "restore", file, "--host", h2.name]);
    assert.equal(finished.code, blocked, finished.stdout + finished.stderr);
    assert.equal(refusalOf(finished).code, "domain.absent");
    await world.assertNothingOn(h2, name);
    const unknown = await world.fleet.run(["bundle", "restore", file, "--host", "h9"]);
    assert.equal(unknown.code, blocked);
    assert.equal(refusalOf(unknown).code, "host.absent");
  });

  test("hosts and host show tell what libvirt there says of itself", async () => {
    const hosts = z.array(hostSchema).parse((await world.json(["hosts"])).value);
    assert.deepEqual(names(hosts), [h1.name, h2.name]);
    for (const [index, host] of hosts.entries()) {
      assert.equal(host.connected, true);
      assert.equal(host.cordoned, false);
      const libvirt = host.facts?.libvirt;
      assert.ok(libvirt?.reachable === true);
      assert.equal(libvirt.hostUuid, world.lab.host(host.name).uuid);
      const versions = await world.lab.host(index).virsh.run(["version"]);
      assert.ok(versions.includes(`library: libvirt ${libvirt.libvirtVersion}`), versions);
      assert.ok(versions.includes(`hypervisor: QEMU ${libvirt.hypervisorVersion}`), versions);
    }
    const shown = hostDetailSchema.parse((await world.json(["host", "show", h1.name])).value);
    assert.deepEqual(names(shown.domains), [name]);
    const text = (await world.fleet.mustRun(["hosts"])).stdout;
    for (const host of [h1, h2]) assert.match(text, new RegExp(`^${host.name} +connected`, "m"));
    assert.match((await world.fleet.mustRun(["host", "show", h1.name])).stdout, new RegExp(h1.uuid));
    const absent = await world.fleet.run(["host", "show", "h9"]);
    assert.equal(absent.code, blocked);
    assert.equal(refusalOf(absent).code, "host.absent");
  });

  test("domains and domain show tell what virsh tells", async () => {
    const [domain, ...others] = z.array(domainSchema).parse((await world.json(["domains"])).value);
    assert.deepEqual(others, []);
    assert.ok(domain);
    const { state, autostart, snapshots, persistent } = domain;
    assert.deepEqual(
      { ...{ state, autostart, snapshots, persistent }, uuid: domain.uuid, host: domain.host },
      { state: "shutoff", autostart: false, snapshots: 4, persistent: true, uuid, host: h1.name },
    );
    for (const which of [name, uuid]) {
      const shown = domainDetailSchema.parse((await world.json(["domain", "show", which])).value);
      assert.equal(shown.snapshotsTotal, 4);
      assert.deepEqual(
        shown.snapshotTree?.map((node) => [node.name, node.parent ?? undefined, node.current]).sort(),
        tree.map((record) => [record.name, record.parent, record.current]).sort(),
      );
    }
    const text = (await world.fleet.mustRun(["domain", "show", name, "--host", h1.name])).stdout;
    assert.match(text, /└─ base/);
    assert.match(text, /web <1>.*<- current/);
    const none = await world.fleet.mustRun(["domains", "--host", h2.name]);
    assert.equal(none.stdout, "");
    assert.match(none.stderr, /h2 has no domain/);
    const absent = await world.fleet.run(["domain", "show", "nobody"]);
    assert.equal(absent.code, blocked);
    assert.equal(refusalOf(absent).code, "domain.absent");
  });

  test("a tree of 510 is restored whole, and domain show says what it leaves out", async () => {
    const many = 510;
    await redefineManySnapshots(h1, name, many, "binary");
    const before = await treeOf(h1, name);
    assert.equal(before.length, many);
    const large = join(world.fleet.dir, "large.bundle");
    await world.fleet.mustRun(["bundle", "export", name, "-o", large]);
    await h1.virsh.batch(before.map((record) => ["snapshot-delete", name, record.name, "--metadata"]));
    assert.deepEqual(await treeOf(h1, name), []);
    await world.fleet.mustRun(["bundle", "restore", large, "--host", h1.name]);
    assert.deepEqual(await treeOf(h1, name), before);
    const shown = domainDetailSchema.parse((await world.json(["domain", "show", name, "--host", h1.name])).value);
    assert.equal(shown.snapshotsTotal, many);
    assert.equal(shown.snapshotTree?.length, 500);
    assert.match((await world.fleet.mustRun(["domain", "show", name, "--host", h1.name])).stdout, /and 10 more/);
  });

  test("the doctor finds a lab host fit, and a socket without a daemon not", async () => {
    const checks = z.object({
      fit: z.boolean(),
      checks: z.array(z.object({ check: z.string(), verdict: z.string(), says: z.string(), action: z.string() })),
    });
    const words = [
      "doctor",
      "--libvirt",
      h1.socket,
      "--migration-address",
      h1.migrationAddress,
      "--dir",
      world.lab.storageDir,
    ];
    const { finished, value } = await world.json(words);
    const found = checks.parse(value);
    assert.equal(finished.code, ok, finished.stdout);
    assert.equal(found.fit, true);
    const verdictOf = (check: string) => found.checks.find((entry) => entry.check === check);
    assert.equal(verdictOf("libvirt")?.verdict, "ok");
    assert.equal(verdictOf("QEMU")?.verdict, "ok");
    assert.match(verdictOf("host UUID")?.says ?? "", new RegExp(h1.uuid));

    const none = await world.json(["doctor", "--libvirt", join(world.lab.dir, "no.sock")]);
    assert.equal(none.finished.code, 1);
    const unfit = checks.parse(none.value);
    assert.equal(unfit.fit, false);
    const failed = unfit.checks.find((entry) => entry.check === "libvirt");
    assert.equal(failed?.verdict, "fail");
    assert.notEqual(failed?.action, "");
    assert.ok(unfit.checks.length > 3, "the other checks were not made after the first that failed");
  });
});
