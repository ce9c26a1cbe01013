/**
 * What goes wrong before the guest's memory moves: the tree changes under the export, the bundle is altered, a record is refused,
 * the bucket is away, Prepare fails. In each the source is as it was and the destination has nothing.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import type { Host } from "#lab/host";
import { facePath } from "../../functions/bundle/s3-bundles.ts";
import { commandMark, FailureScene, filesBelow } from "./failure-scene.ts";
import { eventually, rows, treeOf } from "./world.ts";

describe("failures before Perform", { timeout: 900_000 }, () => {
  let scene: FailureScene;
  before(async () => {
    scene = await FailureScene.start();
  });
  after(() => scene?.stop());
  beforeEach(() => scene.ready());

  test("shims that do not reach each other block it before anything is touched; parted later, the guest never stops", async () => {
    const { source, destination, guest, world } = scene;
    const cut = () => scene.peerProxy(destination).cut();
    cut();
    const checked = await world.fleet.run(["check", guest.name, "--to", destination.name]);
    assert.equal(checked.code, 3, checked.stdout);
    assert.match(checked.stdout + checked.stderr, /peer\.unreachable/);
    const asked = await world.fleet.run(["migrate", guest.name, "--to", destination.name]);
    assert.equal(asked.code, 3, asked.stdout);
    assert.match(asked.stderr, /peer\.unreachable: [\s\S]*next: \S/);
    assert.deepEqual(await world.get("/v1/migrations?active=true").then((page) => rows(page)), []);

    // After the request, so that only the arming finds it.
    scene.peerProxy(destination).heal();
    const held = scene.proxy(destination).stallWhen(commandMark("prepare"), { direction: "down" });
    const attempt = await scene.migrate();
    await held;
    cut();
    scene.proxy(destination).heal();
    await scene.rolledBack(attempt, {
      exit: 1,
      status: "rolledBack",
      code: "peer.unreachable",
      names: /gave no answer/,
    });
    assert.equal(await source.virsh.domstate(guest.name), "running");
    await scene.nextCompletes();
  });

  test("a snapshot taken between export and begin is snapshot.changed, and is kept", async () => {
    const { source, destination, guest } = scene;
    const held = scene.proxy(destination).stallWhen(commandMark("stage"), { direction: "down" });
    const attempt = await scene.migrate();
    await held;
    await source.virsh.snapshotCreate(guest.name, "meanwhile");
    const tree = await treeOf(source, guest.name);
    assert.equal(tree.length, attempt.before.length + 1);
    scene.proxy(destination).heal();
    await scene.rolledBack(
      attempt,
      { exit: 1, status: "rolledBack", code: "snapshot.changed", names: /meanwhile/ },
      tree,
    );
    await scene.nextCompletes();
  });

  test("a bundle altered in the bucket is bundle.altered, and the next export is whole again", async () => {
    const { destination } = scene;
    const held = scene.proxy(destination).stallWhen(commandMark("stage"), { direction: "down" });
    const attempt = await scene.migrate();
    await held;
    const { bundle } = await scene.world.migration(attempt.id);
    assert.ok(bundle !== null);
    const path = await fileOfDigest(join(scene.world.fleet.dir, "data"), bundle.sha256);
    const bytes = await readFile(path);
    bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1;
    await writeFile(path, bytes);
    scene.proxy(destination).heal();
    await scene.rolledBack(attempt, { exit: 1, status: "rolledBack", code: "bundle.altered", names: /digest/ });
    await scene.nextCompletes();
  });

  test("a record that libvirt refuses to redefine is snapshot.refused and is named", async () => {
    const { source, guest } = scene;
    const path = join(source.snapshotDir, guest.name, "db-test.xml");
    const sound = await readFile(path, "utf8");
    // A loading daemon takes it as it is; REDEFINE compares the UUID (virDomainSnapshotRedefinePrep).
    const strange = sound.replaceAll(guest.uuid, "00000000-1111-4222-8333-444444444444");
    assert.notEqual(strange, sound);
    await source.stopDaemon();
    await writeFile(path, strange);
    await source.start();
    try {
      const attempt = await scene.migrate();
      await scene.rolledBack(attempt, { exit: 1, status: "rolledBack", code: "snapshot.refused", names: /db-test/ });
    } finally {
      await source.stopDaemon();
      await writeFile(path, sound);
      await source.start();
    }
    await scene.nextCompletes();
  });

  test("a Prepare that finds no free port is prepare.failed", async () => {
    const { destination } = scene;
    const servers = await takePorts(destination);
    try {
      const attempt = await scene.migrate();
      await scene.rolledBack(attempt, { exit: 1, status: "rolledBack", code: "prepare.failed", names: /port/ });
    } finally {
      for (const server of servers) server.close();
    }
    await scene.nextCompletes();
  });

  test("a bucket that is away at the export is bundle.unreachable", async () => {
    const { source, guest } = scene;
    // Another tree than before: an object that is in the bucket already is not sent again.
    await source.virsh.snapshotCreate(guest.name, "unsent");
    const refusal = scene.proxy(source).refuse(`PUT ${facePath}/`);
    const attempt = await scene.migrate();
    await scene.rolledBack(attempt, { exit: 1, status: "rolledBack", code: "bundle.unreachable", names: /bundle/ });
    assert.ok(refusal.count() > 1, "it was tried again before it was given up");
    refusal.end();
    await scene.nextCompletes();
  });

  test("a bucket that is away at the export and comes back is waited for", async () => {
    await scene.source.virsh.snapshotCreate(scene.guest.name, "another");
    const refusal = scene.proxy(scene.source).refuse(`PUT ${facePath}/`);
    const attempt = await scene.migrate();
    await eventually("the bucket was asked for", async () => refusal.count() > 0);
    refusal.end();
    await scene.completed(attempt);
  });

  // The command is on its way when the migration is given up: it arrives late, before or beside those of the way back.
  for (const { kind, side } of [
    { kind: "export", side: "source" },
    { kind: "stage", side: "destination" },
    { kind: "begin", side: "source" },
    { kind: "prepare", side: "destination" },
  ] as const)
    test(`a cancel while ${kind} is on its way: cancelled, and what arrives late leaves nothing behind`, async () => {
      const proxy = scene.proxy(scene[side]);
      const held = proxy.stallWhen(commandMark(kind), { direction: "down" });
      const attempt = await scene.migrate();
      await held;
      // Its verdict waits for a host that is told nothing until the line is healed.
      const cancelled = await scene.world.fleet.run(["migration", "cancel", attempt.id, "--no-wait"]);
      assert.equal(cancelled.code, 0, cancelled.stderr);
      proxy.heal();
      await scene.rolledBack(attempt, { exit: 1, status: "cancelled", code: "migration.cancelled" });
      await scene.nextCompletes();
    });
});

/** The file that has exactly this content: where the embedded store keeps an object. */
async function fileOfDigest(dir: string, sha256: string): Promise<string> {
  for (const path of await filesBelow(dir)) {
    const bytes = await readFile(path);
    if (createHash("sha256").update(bytes).digest("hex") === sha256) return path;
  }
  return assert.fail(`no file below ${dir} has the digest ${sha256}`);
}

/** Listens on every port that the host may use for incoming migrations. */
async function takePorts(host: Host): Promise<Server[]> {
  const conf = await readFile(join(host.dir, "etc", "qemu.conf"), "utf8");
  const bound = (name: string) => Number(new RegExp(`^migration_port_${name} = (\\d+)$`, "m").exec(conf)?.[1]);
  const servers: Server[] = [];
  for (let port = bound("min"); port <= bound("max"); port += 1) {
    const server = createServer();
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(port, "0.0.0.0", resolve);
    });
    servers.push(server);
  }
  assert.ok(servers.length > 0);
  return servers;
}
