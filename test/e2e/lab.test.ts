/**
 * The lab itself, on real libvirtd and QEMU: what other end-to-end tests take for granted is shown here.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { labDown, labUp } from "#lab/command";
import { bootGuest, destroyGuest, type Guest, imageSnapshots } from "#lab/guest";
import type { Host } from "#lab/host";
import { type Lab, openLab, startLab, sweepAbandonedLabs } from "#lab/lab";
import { LabRefusal, labSkipReason } from "#lab/prerequisites";
import { processesOf } from "#lab/process-table";
import { redefineManySnapshots, revertAndSee, takeBranchingTree } from "#lab/snapshot-tree";
import { VirshError } from "#lab/virsh";

const skip = await labSkipReason();
const tickTimeoutMs = 30_000;

/** Mounts of this machine's own namespace that name a lab folder. */
async function mountsOf(dir: string): Promise<string[]> {
  return (await readFile("/proc/self/mountinfo", "utf8")).split("\n").filter((line) => line.includes(dir));
}

/** Processes whose command line names the folder: found another way than the lab itself does. */
async function commandsNaming(dir: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir("/proc")).filter((entry) => /^\d+$/.test(entry))) {
    const command = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    if (command.includes(dir) && /qemu-system|libvirtd|unshare/.test(command))
      found.push(command.replaceAll("\0", " "));
  }
  return found;
}

async function assertNothingLeft(dir: string, hosts: readonly Host[]): Promise<void> {
  for (const host of hosts) assert.deepEqual(await processesOf(join(host.dir, "run")), []);
  assert.deepEqual(await commandsNaming(dir), []);
  assert.deepEqual(await mountsOf(dir), []);
  assert.equal(await stat(dir).catch(() => undefined), undefined, `${dir} is still there`);
}

describe("a lab of two hosts with a guest", { skip, timeout: 240_000 }, () => {
  let lab: Lab;
  let source: Host;
  let destination: Host;
  let guest: Guest;

  before(async () => {
    lab = await startLab({ hosts: 2 });
    source = lab.host("h1");
    destination = lab.host(1);
    guest = await bootGuest(source, { metadata: "<l:lab xmlns:l='urn:vmferry:lab'>kept &amp; carried</l:lab>" });
  });
  after(async () => {
    await guest?.witness.stop();
    await lab?.stop();
  });

  test("hosts are libvirt hosts of their own", async () => {
    for (const host of lab.hosts) {
      assert.equal((await host.virsh.run(["hostname"])).trim(), host.name);
      assert.match(await host.virsh.run(["capabilities"]), new RegExp(`<uuid>${host.uuid}</uuid>`));
    }
    assert.notEqual(source.uuid, destination.uuid);
    assert.deepEqual(await destination.virsh.domains(), []);
  });

  test("the guest counts without a gap in its numbers, and writes to its disk", async () => {
    guest.witness.reset();
    const first = guest.witness.current ?? 0;
    const last = await guest.witness.waitForTicks(150, tickTimeoutMs);
    assert.ok(last >= first + 150);
    assert.deepEqual(guest.witness.violations, []);
    assert.ok((await guest.witness.waitForDiskAfter(0, tickTimeoutMs)) >= 100);
    assert.equal(guest.witness.diskErrors, 0);
    assert.equal(guest.witness.boots, 1);
  });

  test("virsh moves it without snapshots, with no migrate URI, and it goes on counting", async () => {
    guest.witness.reset();
    await source.virsh.migrate(guest.name, destination.uri, { persistent: true, undefineSource: true });
    await guest.witness.waitForTicks(50, tickTimeoutMs);
    assert.deepEqual(guest.witness.violations, []);
    assert.equal(guest.witness.boots, 1);
    assert.ok((guest.witness.largestGap?.ms ?? 0) > 0);
    assert.equal(await source.virsh.domstate(guest.name), undefined);
    assert.equal(await destination.virsh.domstate(guest.name), "running");
    assert.match(await destination.virsh.domainXml(guest.name), /kept &amp; carried/);
    assert.deepEqual(await source.qemus(), []);
    assert.equal((await destination.qemus(guest.name)).length, 1);
  });

  test("a branching tree is taken live, virsh will not move it, and a revert makes the count jump back", async () => {
    const taken = await takeBranchingTree(destination, guest);
    const tree = await destination.virsh.snapshotTree(guest.name);
    assert.ok(tree.length >= 5);
    const parents = (list: readonly { name: string; parent: string | undefined }[]) =>
      Object.fromEntries(list.map(({ name, parent }) => [name, parent]));
    assert.deepEqual(parents(tree), parents(taken.snapshots));
    const current = tree.find((record) => record.current);
    assert.equal(current?.name, taken.current);
    assert.ok(
      tree.some((record) => record.parent === taken.current),
      "the current one is a leaf",
    );
    assert.deepEqual((await imageSnapshots(guest.disk)).sort(), tree.map((record) => record.name).sort());

    await assert.rejects(destination.virsh.migrate(guest.name, source.uri), (error: unknown) => {
      assert.ok(error instanceof VirshError);
      assert.match(error.stderr, new RegExp(`cannot migrate domain with ${tree.length} snapshots`));
      return true;
    });

    const base = taken.snapshots.find((snapshot) => snapshot.name === "base");
    assert.ok(base !== undefined);
    const { before: tickBefore, after: tickAfter } = await revertAndSee(destination, guest, "base");
    assert.ok(tickBefore > base.tickMax);
    assert.ok(
      tickAfter >= base.tickMin && tickAfter <= base.tickMax + 1,
      `${tickAfter} is not in ${JSON.stringify(base)}`,
    );
    assert.equal(await destination.virsh.snapshotCurrent(guest.name), "base");
  });

  test("the guest outlives a killed and a restarted libvirtd, which finds it again with its tree", async () => {
    // Sorted: siblings come in any order, and in another one after a restart.
    const names = (await destination.virsh.snapshotNames(guest.name)).sort();
    await destination.kill9();
    assert.equal(await destination.daemon(), undefined);
    await assert.rejects(destination.virsh.run(["list"]), VirshError);
    await guest.witness.waitForTicks(20, tickTimeoutMs);
    await destination.start();
    assert.equal(await destination.virsh.domstate(guest.name), "running");
    await destination.restart();
    assert.equal(await destination.virsh.domstate(guest.name), "running");
    assert.deepEqual((await destination.virsh.snapshotNames(guest.name)).sort(), names);
    await guest.witness.waitForTicks(20, tickTimeoutMs);
  });

  test("a thousand records are made over one real snapshot, in the shape asked for", async () => {
    const idle = await bootGuest(source, { name: "many", inactive: true });
    try {
      await source.virsh.snapshotCreate(idle.name, "real");
      const names = await redefineManySnapshots(source, idle.name, 1000, "binary");
      const tree = await source.virsh.snapshotTree(idle.name);
      assert.equal(tree.length, 1000);
      assert.deepEqual(tree.map((record) => record.name).sort(), [...names].sort());
      const children = new Map<string | undefined, number>();
      for (const { parent } of tree) children.set(parent, (children.get(parent) ?? 0) + 1);
      assert.equal(children.get(undefined), 1);
      assert.equal(Math.max(...children.values()), 2);
      assert.equal(tree.filter((record) => record.current).length, 1);
    } finally {
      await destroyGuest(idle, [source]);
    }
    assert.deepEqual(await source.virsh.domains(), []);
  });

  test("a killed QEMU is seen as a shut off domain", async () => {
    assert.equal(await destination.killQemu(guest.name), 1);
    // libvirt notices on the monitor socket, a moment later.
    for (let tries = 0; tries < 100 && (await destination.virsh.domstate(guest.name)) !== "shut off"; tries += 1) {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    assert.equal(await destination.virsh.domstateWithReason(guest.name), "shut off (crashed)");
  });
});

describe("start and end", { skip, timeout: 120_000 }, () => {
  test("twice in a row in one folder, and nothing is left", async () => {
    const dir = `/var/tmp/vmferry-lab-twice-${process.pid}`;
    for (let round = 0; round < 2; round += 1) {
      const lab = await startLab({ hosts: 2, dir });
      await bootGuest(lab.host(0), { name: "short", inactive: true }).then(({ witness }) => witness.stop());
      await lab.host(0).virsh.start("short");
      assert.equal((await lab.host(0).qemus("short")).length, 1);
      await assert.rejects(startLab({ hosts: 1, dir }), LabRefusal, "a lab in use was taken over");
      await lab.stop();
      await lab.stop();
      await assertNothingLeft(dir, lab.hosts);
    }
  });

  for (const then of ["started again", "swept"] as const) {
    test(`after kill -9 of its starter it is cleared when ${then}`, async () => {
      const dir = `/var/tmp/vmferry-lab-killed-${process.pid}-${then.length}`;
      const script = `
        const { startLab } = await import(${JSON.stringify(import.meta.resolve("#lab/lab"))});
        const { bootGuest } = await import(${JSON.stringify(import.meta.resolve("#lab/guest"))});
        const lab = await startLab({ hosts: 2, dir: ${JSON.stringify(dir)} });
        await bootGuest(lab.host(0), { inactive: true });
        await lab.host(0).virsh.start("guest");
        console.log("up");
        setInterval(() => {}, 1000);`;
      const holder = spawn(process.execPath, ["--input-type=module", "-e", script], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      await once(holder.stdout, "data");
      holder.kill("SIGKILL");
      await once(holder, "exit");
      const orphan = await openLab(dir);
      assert.ok(orphan !== undefined, "the hosts ended with their starter; there is nothing to clear");
      const orphans = (await Promise.all(orphan.hosts.map((host) => host.processes()))).flat();
      assert.equal(orphans.length, 3, "two libvirtd and one QEMU");

      if (then === "swept") assert.ok((await sweepAbandonedLabs()).includes(dir));
      else {
        const again = await startLab({ hosts: 2, dir });
        assert.deepEqual(await again.host(0).virsh.domains(), []);
        assert.deepEqual(await again.host(0).qemus(), []);
        await again.stop();
      }
      for (const { pid, command } of orphans) {
        const now = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
        assert.notEqual(now.replaceAll("\0", " ").trim(), command);
      }
      await assertNothingLeft(dir, orphan.hosts);
    });
  }

  test("a folder that is not a lab's is neither used nor deleted", async () => {
    const dir = await mkdtemp(join(tmpdir(), "not-a-lab-"));
    try {
      await writeFile(join(dir, "letter.txt"), "dear");
      await assert.rejects(startLab({ hosts: 1, dir }), LabRefusal);
      assert.equal(await readFile(join(dir, "letter.txt"), "utf8"), "dear");
    } finally {
      await rm(dir, { recursive: true });
    }
  });

  test("two hosts with one UUID: libvirt takes them for the same host", async () => {
    const uuid = randomUUID();
    const lab = await startLab({ hosts: [{ uuid }, { uuid }] });
    const guest = await bootGuest(lab.host(0), { inactive: true });
    try {
      await lab.host(0).virsh.start(guest.name);
      await assert.rejects(lab.host(0).virsh.migrate(guest.name, lab.host(1).uri), /migrate guest to the same host/);
    } finally {
      await guest.witness.stop();
      await lab.stop();
    }
  });
});

describe("vmferry lab", { skip, timeout: 120_000 }, () => {
  test("up describes the hosts, is safe to repeat, and down ends them", async () => {
    const dir = `/var/tmp/vmferry-lab-command-${process.pid}`;
    const printed: string[] = [];
    const said: string[] = [];
    const output = { out: (line: string) => printed.push(line), err: (line: string) => said.push(line) };
    try {
      assert.equal(await labUp({ ...output, dir, hosts: 2, json: true }), 0, said.join("\n"));
      const first: unknown = JSON.parse(printed.join("\n"));
      printed.length = 0;
      assert.equal(await labUp({ ...output, dir, json: true }), 0);
      assert.deepEqual(JSON.parse(printed.join("\n")), first);
      assert.notEqual(await labUp({ ...output, dir, hosts: 3 }), 0);
      assert.match(said.at(-1) ?? "", /2 hosts is up .*\nNext: vmferry lab down/);
      printed.length = 0;
      assert.equal(await labUp({ ...output, dir }), 0);
      assert.match(printed.join("\n"), new RegExp(`virsh -c 'qemu:///system\\?socket=${dir}/h2/run/libvirt-sock'`));
    } finally {
      assert.equal(await labDown({ ...output, dir }), 0);
    }
    assert.equal(await labDown({ ...output, dir }), 0);
    assert.equal(printed.at(-1), `no lab in ${dir}`);
    await assertNothingLeft(dir, []);
  });
});
