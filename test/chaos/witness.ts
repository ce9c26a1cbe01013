/**
 * The outside witness of a cell. It asks nobody of vmferry about the guest: it reads both hosts' serial outputs, the guest's own file
 * on its disk, virsh on both sides, the process table and the shims' folders, and holds them against I1 to I4, I8 and I10.
 */
import { execFile } from "node:child_process";
import { readFile, rm } from "node:fs/promises";
import { isDeepStrictEqual, promisify } from "node:util";
import type { Host } from "#lab/host";
import type { SnapshotRecord } from "#lab/virsh";
import { treeOf } from "../e2e/world.ts";
import type { ChaosScene } from "./chaos-scene.ts";

/** A guest that does not count in this time on two loaded cores does not run. */
const tickMs = 45_000;
const ticksAfter = 10;
/** One line on the disk for each. */
const diskTicks = 100;

export interface Before {
  readonly tree: readonly SnapshotRecord[];
  readonly autostart: boolean;
  readonly tick: number;
}

export async function lookBefore(scene: ChaosScene): Promise<Before> {
  const { source, guest } = scene;
  guest.witness.reset();
  return {
    tree: await treeOf(source, guest.name),
    autostart: await autostartOf(source, guest.name),
    tick: guest.witness.current ?? 0,
  };
}

/** Everything that is wrong with a guest that should be on `host` alone, as it was; empty when nothing is. */
export async function violations(scene: ChaosScene, host: Host, before: Before): Promise<string[]> {
  const { guest, world } = scene;
  const other = host === scene.source ? scene.destination : scene.source;
  const found: string[] = [];
  const hold = async (what: string, isSo: () => Promise<string | null>): Promise<boolean> => {
    const wrong = await isSo().catch((error: unknown) => (error instanceof Error ? error.message : String(error)));
    if (wrong !== null) found.push(`${what}: ${wrong.split("\n", 3).join(" ")}`);
    return wrong === null;
  };
  await hold("I1 one copy", async () => {
    const counts = (await Promise.all([host.qemus(guest.name), other.qemus(guest.name)])).map(({ length }) => length);
    return isDeepStrictEqual(counts, [1, 0]) ? null : `QEMU processes on ${host.name}, ${other.name}: ${counts}`;
  });
  const runs = await hold("runs", async () => {
    const state = await host.virsh.domstateWithReason(guest.name);
    return state?.startsWith("running") === true ? null : `it is ${state ?? "unknown"} on ${host.name}`;
  });
  if (runs) {
    await hold("counts on", async () => {
      await guest.witness.waitForTickAfter(before.tick + ticksAfter, tickMs);
      await guest.witness.waitForTicks(ticksAfter, tickMs);
      return null;
    });
    await hold("disk", async () => diskFault(scene, host));
  }
  await hold("same life", async () => lifeFault(scene));
  await hold("I1 serial ports", async () => countedTwice(await ticksOf(scene, host), await ticksOf(scene, other)));
  await hold("I4 tree", async () => {
    const tree = await treeOf(host, guest.name);
    if (isDeepStrictEqual(tree, before.tree)) return null;
    return `${namesOf(tree)} is not, or not in all its XML, ${namesOf(before.tree)}`;
  });
  await hold("definition", async () => {
    const info = await host.virsh.run(["dominfo", guest.name]);
    if (!/^Persistent: +yes$/m.test(info)) return "it is transient";
    return (await autostartOf(host, guest.name)) === before.autostart ? null : `autostart is not ${before.autostart}`;
  });
  await hold("I4 nothing left", async () => {
    await world.assertNothingOn(other, guest.name);
    await world.assertJournalsEmpty(host);
    return null;
  });
  return found;
}

const namesOf = (tree: readonly SnapshotRecord[]) => tree.map(({ name }) => name).join(" ");

function lifeFault({ guest: { witness } }: ChaosScene): string | null {
  const [first] = witness.violations;
  if (first !== undefined) return `${witness.violations.length} counts out of order, first ${JSON.stringify(first)}`;
  if (witness.boots !== 1) return `it has booted ${witness.boots} times`;
  return witness.diskErrors === 0 ? null : `${witness.diskErrors} writes failed`;
}

async function autostartOf(host: Host, domain: string): Promise<boolean> {
  return /^Autostart: +enable/m.test(await host.virsh.run(["dominfo", domain]));
}

/** The counts that this host's QEMUs have printed since the guest's tree was made. */
async function ticksOf(scene: ChaosScene, host: Host): Promise<Set<number>> {
  const text = await readFile(scene.guest.serialCopyOn(host), "latin1").catch(() => "");
  // A host's output may begin and end within a line: what is not a whole one is nobody's count.
  const lines = text.slice(text.indexOf("\n") + 1, text.lastIndexOf("\n")).split("\n");
  return new Set(lines.flatMap((line) => /^tick (\d+)\r?$/.exec(line)?.[1] ?? []).map(Number));
}

function countedTwice(one: ReadonlySet<number>, other: ReadonlySet<number>): string | null {
  const both = [...one].filter((count) => other.has(count));
  return both.length === 0 ? null : `both hosts printed ${both.length} counts, such as ${both[0]}`;
}

/**
 * Each count once, in order, none lost that was synced. The guest is suspended for the moment of the reading: QEMU then flushes all it
 * holds into the image, so what is read is what a power cut would leave.
 */
async function diskFault(scene: ChaosScene, host: Host): Promise<string | null> {
  const { guest } = scene;
  await guest.witness.waitForTicks(1, tickMs);
  await host.virsh.run(["suspend", guest.name]);
  const synced = guest.witness.diskCount ?? 0;
  let lines: number[];
  try {
    lines = await counterLog(guest.disk);
  } finally {
    await host.virsh.run(["resume", guest.name]);
  }
  const wrong = lines.findIndex((line, index) => line !== (index + 1) * diskTicks);
  if (wrong >= 0) return `line ${wrong + 1} is ${lines[wrong]}`;
  const last = lines.at(-1) ?? 0;
  return last >= synced ? null : `${synced} was synced, the last line is ${last}`;
}

async function counterLog(image: string): Promise<number[]> {
  const run = promisify(execFile);
  const raw = `${image}.witness`;
  try {
    await run("qemu-img", ["convert", "-U", "-O", "raw", image, raw]);
    const { stdout } = await run("debugfs", ["-R", "cat /counter.log", raw], { maxBuffer: 16 * 1024 * 1024 });
    return stdout.split("\n").filter(Boolean).map(Number);
  } finally {
    await rm(raw, { force: true });
  }
}
