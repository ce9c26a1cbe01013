/**
 * `npm run demo`: the whole thing, seen. Two libvirt hosts on this machine, a running guest with a branching tree of live
 * snapshots, one command that moves it, the tree compared by virsh, and a revert to an earlier snapshot over there.
 *
 * `npm run demo -- --keep` leaves everything up to play with. Otherwise nothing is left running, whatever happens.
 */
import assert from "node:assert/strict";
import { isDeepStrictEqual } from "node:util";
import { type Fleet, startFleet } from "#lab/fleet";
import { bootGuest } from "#lab/guest";
import { type Lab, startLab } from "#lab/lab";
import { installPrerequisites, isRoot, LabRefusal } from "#lab/prerequisites";
import { revertAndSee, takeBranchingTree } from "#lab/snapshot-tree";
import type { SnapshotRecord } from "#lab/virsh";

const keep = process.argv.includes("--keep");
/** A guest whose serial port is silent for this long after a migration does not run. */
const tickTimeoutMs = 60_000;

const say = (line: string) => console.log(line);
const heading = (line: string) => say(`\n== ${line}`);

function drawTree(records: readonly SnapshotRecord[], parent?: string, indent = "   "): void {
  for (const record of records) {
    if (record.parent !== parent) continue;
    say(`${indent}${record.name}${record.current ? "   <- current" : ""}`);
    drawTree(records, record.name, `${indent}  `);
  }
}

async function crossing(lab: Lab, fleet: Fleet): Promise<void> {
  const [source, destination] = [lab.host(0), lab.host(1)];
  heading("a guest that counts on its serial port and appends to a file on its disk");
  const guest = await bootGuest(source);
  say(`   ${guest.name} runs on ${source.name} and has counted to ${guest.witness.current}`);

  heading("six live snapshots in a branching tree, the current one not a leaf");
  const tree = await takeBranchingTree(source, guest);
  const before = await source.virsh.snapshotTree(guest.name);
  drawTree(before);

  heading("what libvirt itself says to moving it");
  const refusal = await source.virsh.migrate(guest.name, destination.uri, { live: true }).then(
    () => "it moved, which it never did before",
    (error: unknown) => (error instanceof Error ? error.message : String(error)),
  );
  say(`   ${refusal.split("\n").find((line) => line.includes("error:")) ?? refusal}`);

  heading(`vmferry migrate ${guest.name} --to ${destination.name}`);
  const ticks = guest.witness.current ?? 0;
  guest.witness.reset();
  const moved = await fleet.run(["migrate", guest.name, "--to", destination.name]);
  process.stdout.write(moved.stdout.replaceAll(/^/gm, "   "));
  process.stderr.write(moved.stderr);
  assert.equal(moved.code, 0, "the migration did not complete");
  await guest.witness.waitForTickAfter(ticks, tickTimeoutMs);

  heading("seen from outside, by virsh and by the reader of the serial port");
  const after = await destination.virsh.snapshotTree(guest.name);
  drawTree(after);
  assert.equal(await source.virsh.domstate(guest.name), undefined, "the source still knows the domain");
  assert.equal(await destination.virsh.domstate(guest.name), "running");
  // By name: libvirt lists siblings in no order of its own.
  const byName = (records: readonly SnapshotRecord[]) => records.toSorted((a, b) => a.name.localeCompare(b.name));
  const differing = before.filter(
    (record) =>
      !isDeepStrictEqual(
        record,
        after.find(({ name }) => name === record.name),
      ),
  );
  assert.deepEqual(
    differing.map(({ name }) => name),
    [],
    "these snapshots differ on the destination",
  );
  assert.deepEqual(
    byName(after).map(({ name }) => name),
    byName(before).map(({ name }) => name),
  );
  say(`   ${after.length} snapshots: names, parents, current and every byte of XML are equal`);
  assert.deepEqual(guest.witness.violations, []);
  const gap = guest.witness.largestGap;
  say(
    `   it goes on counting: ${guest.witness.current}, none lost, none twice; silent for ${Math.round(gap?.ms ?? 0)} ms at most`,
  );

  heading("virsh snapshot-revert to an earlier snapshot, on the destination");
  const target = tree.snapshots.find((snapshot) => snapshot.name === "base");
  assert.ok(target);
  const jump = await revertAndSee(destination, guest, target.name);
  say(`   the guest's own counter jumps from ${jump.before} back to ${jump.after}`);
  assert.ok(
    jump.after >= target.tickMin && jump.after <= target.tickMax + 1,
    "it did not go back to the snapshot's state",
  );

  heading("vmferry migration show");
  const migrations = await fleet.mustRun(["migrations", "--json"]);
  const id = /m_[0-9A-HJKMNP-TV-Z]{26}/.exec(migrations.stdout)?.[0];
  assert.ok(id);
  process.stdout.write((await fleet.mustRun(["migration", "show", id])).stdout);
  await guest.witness.stop();
}

async function main(): Promise<void> {
  await installPrerequisites({ log: say });
  if (!isRoot())
    throw new LabRefusal("libvirt hosts on one machine need mount namespaces, so root", "sudo npm run demo");
  const startedAt = performance.now();
  let lab: Lab | undefined;
  let fleet: Fleet | undefined;
  const stop = async () => {
    await fleet?.stop();
    await lab?.stop();
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.once(signal, () => {
      stop().finally(() => process.exit(130));
    });
  try {
    heading("two libvirt hosts, the control plane, a shim on each host");
    lab = await startLab({ hosts: 2, detached: keep, log: (line) => say(`   ${line}`) });
    fleet = await startFleet({ hosts: lab.hosts, log: (line) => say(`   ${line}`) });
    await crossing(lab, fleet);
    if (keep) await rest(lab, fleet);
  } finally {
    await stop();
  }
  say(`\nDone in ${Math.round((performance.now() - startedAt) / 1000)} s; nothing is left running.`);
}

/** Leaves all up until Ctrl-C, and says how to play with it. */
async function rest(lab: Lab, fleet: Fleet): Promise<void> {
  heading("kept up; Ctrl-C ends everything");
  say(`   export VMFERRY_CONFIG=${fleet.env.VMFERRY_CONFIG}`);
  say("   npm run vmferry -- domains");
  say(`   npm run vmferry -- migrate guest --to ${lab.host(0).name}`);
  for (const host of lab.hosts) say(`   virsh -c '${host.uri}' list --all`);
  await new Promise<never>(() => setInterval(() => undefined, 60_000));
}

try {
  await main();
} catch (error) {
  if (!(error instanceof LabRefusal)) throw error;
  console.error(error.message);
  process.exitCode = 69;
}
