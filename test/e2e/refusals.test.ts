/**
 * What is refused, end to end: by `vmferry check`, which changes nothing, and by `vmferry migrate`, which must say the same.
 * Each refusal has its exit code, its code, a cause that names the thing and a next action; and each time virsh tells that
 * the source is byte for byte as it was and the destination got nothing, while the guest goes on counting.
 *
 * The shims run inside their hosts' namespaces, as on machines of their own, so a mount can hide a disk from one of them.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { open, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { bootGuest, destroyGuest, type Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import { copyOf, takeBranchingTree } from "#lab/snapshot-tree";
import { checkSchema } from "../../functions/http/check-resource.ts";
import { migrationSchema } from "../../functions/http/migration-resource.ts";
import { eventually, refusalOf, treeOf, World } from "./world.ts";

const run = promisify(execFile);
const timeout = 900_000;
const tickMs = 60_000;
/** Exit codes of interface.md. */
const [rolledBack, risks, blocked] = [1, 2, 3];

describe("refusals", { timeout }, () => {
  let world: World;
  let h1: Host;
  let h2: Host;
  /** Has the same host UUID as h1. */
  let h3: Host;
  /** Its shim is stopped at once: a host is offline when it was not heard of for a while. */
  let h4: Host;
  let guest: Guest;

  before(async () => {
    const uuid = randomUUID();
    world = await World.start({ hosts: [{ uuid }, {}, { uuid }, {}] }, { inside: () => true });
    [h1, h2, h3, h4] = [world.lab.host(0), world.lab.host(1), world.lab.host(2), world.lab.host(3)];
    await world.fleet.shim(h4).stop();
    guest = await bootGuest(h1);
    await takeBranchingTree(h1, guest);
    await world.heardOf(guest.name, [h1]);
  });
  after(async () => {
    if (guest !== undefined) await destroyGuest(guest, [h1, h2]);
    await world?.stop();
  });

  const all = async () =>
    Object.fromEntries(await Promise.all(world.lab.hosts.map(async (on) => [on.name, await world.seen(on)])));

  interface Expected {
    code: string;
    cause: RegExp;
    exit?: number;
    /** The check answers by a problem, because it knows neither domain nor host. */
    problem?: boolean;
  }

  /** Both commands refuse, for the same cause, and change nothing on any host. */
  async function refused(
    words: readonly string[],
    { code, cause, exit = blocked, problem = false }: Expected,
  ): Promise<void> {
    const before = await all();
    const check = await world.json(["check", ...words]);
    assert.equal(check.finished.code, exit, `check: ${check.finished.stdout}${check.finished.stderr}`);
    if (problem) {
      const refusal = refusalOf(check.finished);
      assert.equal(refusal.code, code);
      assert.match(refusal.cause, cause);
    } else {
      const found = checkSchema.parse(check.value);
      assert.equal(found.allowed, false);
      const same = [...found.blockers, ...found.risks].filter((finding) => finding.code === code);
      assert.ok(same.length > 0, `check found ${JSON.stringify([...found.blockers, ...found.risks])}`);
      assert.ok(
        same.some((finding) => cause.test(finding.cause)),
        `check says ${same.map((finding) => finding.cause).join(" ")}`,
      );
      for (const finding of same) assert.notEqual(finding.action, "");
      assert.equal(exit, found.blockers.length > 0 ? blocked : risks);
    }
    assert.deepEqual(await all(), before, "the check changed something");

    const migrate = await world.fleet.run(["migrate", ...words]);
    assert.equal(migrate.code, exit, `migrate: ${migrate.stdout}${migrate.stderr}`);
    const refusal = refusalOf(migrate);
    // Of a risk the code says what is to be done; the risks are named below it.
    if (exit === risks) assert.equal(refusal.code, "risk.notAccepted");
    else assert.equal(refusal.code, code);
    assert.match(exit === risks ? migrate.stderr : refusal.cause, cause);
    assert.deepEqual(await all(), before, "the refused migration changed something");
    guest.witness.reset();
    await guest.witness.waitForTicks(5, tickMs);
    assert.deepEqual(guest.witness.violations, []);
  }

  test("an unknown domain", () =>
    refused(["nobody", "--to", h2.name], { code: "domain.absent", cause: /nobody/, problem: true }));

  test("an unknown domain on a host that was named", () =>
    refused([guest.name, "--from", h2.name, "--to", h1.name], {
      code: "domain.absent",
      cause: /h2.*guest/,
      problem: true,
    }));

  test("an unknown host", () =>
    refused([guest.name, "--to", "h9"], { code: "host.absent", cause: /h9/, problem: true }));

  test("the host where it is", () =>
    refused([guest.name, "--to", h1.name], { code: "destination.sameHost", cause: /h1/ }));

  test("a host with the source's host UUID", () =>
    refused([guest.name, "--to", h3.name], { code: "destination.duplicateUuid", cause: new RegExp(h1.uuid) }));

  test("a cordoned host, until it is uncordoned", async () => {
    await world.fleet.mustRun(["host", "cordon", h2.name]);
    try {
      await refused([guest.name, "--to", h2.name], { code: "host.cordoned", cause: /h2/ });
    } finally {
      await world.fleet.mustRun(["host", "uncordon", h2.name]);
    }
    const check = await world.fleet.run(["check", guest.name, "--to", h2.name]);
    assert.equal(check.code, 0, check.stdout + check.stderr);
  });

  test("a name that two domains have, and then the name that is taken over there", async () => {
    const { uuid } = await world.define(h2, guest.name, { diskName: "namesake" });
    try {
      await world.heardOf(guest.name, [h1, h2]);
      await refused([guest.name, "--to", h2.name], { code: "domain.notUnique", cause: /h1.*h2/, problem: true });
      await refused([guest.name, "--from", h1.name, "--to", h2.name], {
        code: "destination.nameTaken",
        cause: new RegExp(`${guest.name}.*${uuid}`),
      });
      await refused([guest.uuid, "--to", h2.name], { code: "destination.nameTaken", cause: new RegExp(uuid) });
    } finally {
      await world.forget(guest.name, [h2]);
      await world.heardOf(guest.name, [h1]);
    }
  });

  test("a stale definition of it over there", async () => {
    await world.define(h2, guest.name, { uuid: guest.uuid, diskName: "stale" });
    try {
      await world.heardOf(guest.name, [h1, h2]);
      await refused([guest.name, "--to", h2.name], { code: "destination.defined", cause: /guest/ });
    } finally {
      await world.forget(guest.name, [h2]);
      await world.heardOf(guest.name, [h1]);
    }
  });

  test("a copy that runs over there", async () => {
    await world.define(h2, guest.name, { uuid: guest.uuid, diskName: "copy", paused: true });
    try {
      await world.heardOf(guest.name, [h1, h2]);
      await refused([guest.name, "--to", h2.name], { code: "domain.notUnique", cause: /h1.*h2/, problem: true });
      await refused([guest.name, "--from", h1.name, "--to", h2.name], {
        code: "destination.active",
        cause: /guest.*paused/,
      });
    } finally {
      await world.forget(guest.name, [h2]);
      await world.heardOf(guest.name, [h1]);
    }
  });

  test("a disk that is not there on the destination", async () => {
    const daemon = await h2.daemon();
    assert.ok(daemon);
    const inside = (words: string[]) =>
      run("nsenter", ["--target", String(daemon.pid), "--mount", "--root", "--", ...words]);
    await inside(["mount", "-t", "tmpfs", "tmpfs", h2.storageDir]);
    try {
      await refused([guest.name, "--to", h2.name], { code: "storage.unreachable", cause: new RegExp(guest.disk) });
    } finally {
      await inside(["umount", h2.storageDir]);
    }
  });

  test("a disk that is another file on the destination", async () => {
    const daemon = await h2.daemon();
    assert.ok(daemon);
    const inside = (words: string[]) =>
      run("nsenter", ["--target", String(daemon.pid), "--mount", "--root", "--", ...words]);
    const other = join(world.lab.storageDir, "other.qcow2");
    await run("cp", ["--sparse=always", guest.disk, other]);
    await inside(["mount", "--bind", other, guest.disk]);
    try {
      await refused([guest.name, "--to", h2.name], { code: "storage.notShared", cause: new RegExp(guest.disk) });
    } finally {
      await inside(["umount", guest.disk]);
    }
  });

  test("a libvirt job under way", async () => {
    // A dump into a pipe that nobody reads lasts until somebody does.
    const pipe = join(world.lab.dir, "dump.pipe");
    await run("mkfifo", [pipe]);
    const reader = await open(pipe, "r+");
    const dump = h1.virsh.run(["dump", guest.name, pipe, "--live"]);
    dump.catch(() => {});
    try {
      await eventually("the dump runs", async () => !/None/.test(await h1.virsh.run(["domjobinfo", guest.name])));
      await refused([guest.name, "--to", h2.name], { code: "domain.busy", cause: /job/ });
    } finally {
      await h1.virsh.run(["domjobabort", guest.name]);
      await reader.close();
      await dump.catch(() => {});
    }
  });

  test("another migration of it under way, which is cancelled and leaves all as it was", async () => {
    const before = await all();
    const slow = await world.json(["migrate", guest.name, "--to", h2.name, "--bandwidth", "1", "--detach"]);
    assert.equal(slow.finished.code, 0, slow.finished.stderr);
    const { id } = migrationSchema.parse(slow.value);
    await eventually("it performs", async () => (await world.migration(id)).step === "perform");
    const check = await world.json(["check", guest.name, "--to", h2.name]);
    assert.equal(check.finished.code, blocked);
    const busy = checkSchema.parse(check.value).blockers.find(({ code }) => code === "domain.busy");
    assert.match(busy?.cause ?? "", new RegExp(id));
    const second = await world.fleet.run(["migrate", guest.name, "--to", h2.name]);
    assert.equal(second.code, blocked);
    assert.equal(refusalOf(second).code, "domain.busy");
    assert.match(refusalOf(second).cause, new RegExp(id));

    await world.fleet.mustRun(["migration", "cancel", id]);
    const watched = await world.fleet.run(["migration", "watch", id]);
    assert.equal(watched.code, rolledBack, watched.stdout + watched.stderr);
    assert.equal(refusalOf(watched).code, "migration.cancelled");
    assert.equal((await world.migration(id)).status, "cancelled");
    await world.assertNothingOn(h2, guest.name);
    await world.assertJournalsEmpty(h1);
    assert.deepEqual(await all(), before);
    guest.witness.reset();
    await guest.witness.waitForTicks(5, tickMs);
    assert.deepEqual(guest.witness.violations, []);
    await world.heardOf(guest.name, [h1]);
  });

  test("a managed save image", async () => {
    await world.define(h1, "saved", { paused: true });
    try {
      await h1.virsh.run(["managedsave", "saved"]);
      await world.heardOf("saved", [h1]);
      await refused(["saved", "--to", h2.name], { code: "domain.managedSave", cause: /managed save/ });
    } finally {
      await world.forget("saved");
    }
  });

  test("a snapshot record whose data is in no image is a risk, and moves as it is once accepted", async () => {
    await world.define(h1, "hollow");
    try {
      await h1.virsh.snapshotCreate("hollow", "real");
      const [real] = await treeOf(h1, "hollow");
      assert.ok(real);
      await h1.virsh.snapshotRedefine("hollow", copyOf(real.xml, { name: "ghost", parent: "real", secondsLater: 1 }));
      const tree = await treeOf(h1, "hollow");
      await world.heardOf("hollow", [h1]);
      const code = "snapshot.incomplete";
      await refused(["hollow", "--to", h2.name], { code, cause: /hollow\.qcow2.*ghost/, exit: risks });
      const migration = await world.migrate(["hollow", "--to", h2.name, "--accept", code]);
      assert.equal(migration.snapshots.verified, 2);
      assert.deepEqual(await treeOf(h2, "hollow"), tree);
      await world.assertNothingOn(h1, "hollow");
    } finally {
      await world.forget("hollow");
    }
  });

  test("a risk: exit 2 until its code is accepted, and only that code helps", async () => {
    await world.define(h1, "risky", { paused: true, cpuXml: "<cpu mode='maximum' check='none' migratable='on'/>" });
    try {
      await world.heardOf("risky", [h1]);
      const code = "destination.cpu";
      await refused(["risky", "--to", h2.name], { code, cause: /maximum/, exit: risks });
      await refused(["risky", "--to", h2.name, "--accept", "storage.cacheMode"], {
        code,
        cause: /maximum/,
        exit: risks,
      });
      const check = await world.fleet.run(["check", "risky", "--to", h2.name, "--accept", code]);
      assert.equal(check.code, 0, check.stdout + check.stderr);
      const migration = await world.migrate(["risky", "--to", h2.name, "--accept", code]);
      assert.deepEqual(migration.accept, [code]);
      assert.equal(await h2.virsh.domstate("risky"), "paused");
      await world.assertNothingOn(h1, "risky");
    } finally {
      await world.forget("risky");
    }
  });

  test("a risk code that does not exist, and options that do not", async () => {
    const before = await all();
    for (const words of [
      ["migrate", guest.name, "--to", h2.name, "--accept", "everything"],
      ["migrate", guest.name, "--to", h2.name, "--force"],
      ["migrate", guest.name],
      ["migrate"],
    ]) {
      const finished = await world.fleet.run(words);
      assert.equal(finished.code, 64, `${words.join(" ")} exited ${finished.code}`);
      refusalOf(finished);
    }
    assert.deepEqual(await all(), before);
  });

  test("a CPU that the destination cannot run", async () => {
    // What libvirt over there believes of its CPU is what it remembers of QEMU's answer; taken away, it lacks the feature.
    await world.fleet.shim(h2).stop();
    await h2.stopDaemon();
    await lackFeature(h2, "sse4.1");
    await h2.start();
    await world.fleet.startShim(h2);
    const cpuXml =
      "<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model><feature policy='require' name='sse4.1'/></cpu>";
    await world.define(h1, "modern", { paused: true, cpuXml });
    try {
      await world.heardOf("modern", [h1]);
      await refused(["modern", "--to", h2.name], { code: "destination.cpu", cause: /CPU.*sse4\.1/ });
    } finally {
      await world.forget("modern");
    }
  });

  test("an offline host", async () => {
    await eventually("h4 counts as offline", async () => {
      const { value } = await world.json(["host", "show", h4.name]);
      return typeof value === "object" && value !== null && "connected" in value && value.connected === false;
    });
    await refused([guest.name, "--to", h4.name], { code: "host.offline", cause: /h4/ });
  });
});

/** Takes a feature out of the emulated CPU that a host's libvirt remembers; the daemon must be down. */
async function lackFeature(host: Host, feature: string): Promise<void> {
  const dir = join(host.dir, "cache", "qemu", "capabilities");
  let changed = 0;
  for (const name of await readdir(dir)) {
    const path = join(dir, name);
    const text = await readFile(path, "utf8");
    const less = text.replace(/<hostCPU type='tcg'[\s\S]*?<\/hostCPU>/g, (cpu) =>
      cpu.replace(
        new RegExp(`(<property name='${feature.replace(".", "\\.")}' type='boolean' value=)'true'`, "g"),
        "$1'false'",
      ),
    );
    if (less === text) continue;
    await writeFile(path, less);
    changed += 1;
  }
  assert.ok(changed > 0, `libvirt of ${host.name} does not remember ${feature}`);
}
