/**
 * Snapshot trees, made through libvirt itself.
 *
 * A real branching tree of live internal snapshots for what must be proven, and a tree of a thousand records over the
 * data of one real snapshot for what must be measured: libvirt checks a record's form, not that its data exists.
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Guest } from "./guest.ts";
import type { Host } from "./host.ts";
import { escapeXml } from "./virsh.ts";

/** Ticks between two snapshots: enough for their counters to differ visibly. */
const ticksBetween = 15;
/** A snapshot of 70 MiB takes 0.5 s alone and several seconds beside other guests; the guest stands still in it. */
const tickTimeoutMs = 60_000;

export interface TakenSnapshot {
  readonly name: string;
  readonly parent: string | undefined;
  /** The guest's count was in this range when it was taken: where a revert to it goes on. */
  readonly tickMin: number;
  readonly tickMax: number;
}

export interface TakenTree {
  /** Parents before children. */
  readonly snapshots: readonly TakenSnapshot[];
  /** Name of the current one; it has children. */
  readonly current: string;
}

/**
 * Takes this tree on a running guest, by creating and reverting, and leaves `web` current with the guest running:
 *
 *     base ── web ── web-test ── web-done
 *       └──── db ──── db-test
 */
export async function takeBranchingTree(host: Host, guest: Guest): Promise<TakenTree> {
  const snapshots: TakenSnapshot[] = [];
  const take = async (name: string, parent: string | undefined) => {
    const tickMin = await guest.witness.waitForTicks(ticksBetween, tickTimeoutMs);
    await host.virsh.snapshotCreate(guest.name, name);
    const tickMax = await guest.witness.waitForTicks(1, tickTimeoutMs);
    snapshots.push({ name, parent, tickMin, tickMax });
  };
  await take("base", undefined);
  await take("web", "base");
  await take("web-test", "web");
  await take("web-done", "web-test");
  await revertAndSee(host, guest, "base");
  await take("db", "base");
  await take("db-test", "db");
  await revertAndSee(host, guest, "web");
  return { snapshots, current: "web" };
}

/** Reverts a running guest and waits until it counts from there; returns the ticks before and after the jump. */
export async function revertAndSee(host: Host, guest: Guest, name: string): Promise<{ before: number; after: number }> {
  const jump = guest.witness.waitForJumpBack(tickTimeoutMs);
  const [{ before, after }] = await Promise.all([jump, host.virsh.snapshotRevert(guest.name, name)]);
  return { before, after };
}

/** chain: each is the child of the one before; star: all are children of the first; binary: two children each. */
export type TreeShape = "chain" | "star" | "binary";

/**
 * Adds metadata records until the domain has `count` of them: copies of its one real snapshot's XML under other names,
 * parents and times, redefined in a few virsh processes (1,000 take some seconds). The middle one becomes current; in a
 * chain or binary tree it is not a leaf. Takes the real snapshot, `real`, when the domain has none.
 * Returns the names, parents first.
 */
export async function redefineManySnapshots(
  host: Host,
  domain: string,
  count: number,
  shape: TreeShape = "chain",
): Promise<string[]> {
  const { virsh } = host;
  if ((await virsh.snapshotNames(domain)).length === 0) await virsh.snapshotCreate(domain, "real");
  const existing = await virsh.snapshotTree(domain);
  const root = existing[0];
  if (root === undefined) throw new Error(`${domain} has no snapshot to copy`);
  const names = [root.name];
  const dir = await mkdtemp(join(tmpdir(), "vmferry-snapshots-"));
  try {
    const commands: string[][] = [];
    const middle = Math.floor((count - existing.length) / 2);
    for (let index = 1; index <= count - existing.length; index += 1) {
      const name = `s${String(index).padStart(5, "0")}`;
      const parent = names[parentIndex(index, shape)] ?? root.name;
      const path = join(dir, `${name}.xml`);
      await writeFile(path, copyOf(root.xml, { name, parent, secondsLater: index }), { mode: 0o600 });
      const current = index === middle ? ["--current"] : [];
      commands.push(["snapshot-create", domain, path, "--redefine", ...current]);
      names.push(name);
    }
    await virsh.batch(commands);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
  return names;
}

function parentIndex(index: number, shape: TreeShape): number {
  if (shape === "chain") return index - 1;
  return shape === "star" ? 0 : Math.floor((index - 1) / 2);
}

/** A snapshot XML under another name, parent and time. Only the head is changed; the embedded domain stays as it is. */
export function copyOf(xml: string, to: { name: string; parent: string; secondsLater: number }): string {
  const cut = xml.search(/<domain[\s>]/);
  if (cut < 0) throw new Error("a snapshot XML without <domain> cannot be redefined");
  const head = xml
    .slice(0, cut)
    .replace(/<parent>[\s\S]*?<\/parent>\s*/, "")
    .replace(/<name>[^<]*<\/name>/, `<name>${escapeXml(to.name)}</name>`)
    .replace(/<creationTime>(\d+)</, (_, at: string) => `<creationTime>${Number(at) + to.secondsLater}<`)
    .replace(/<\/creationTime>/, `</creationTime><parent><name>${escapeXml(to.parent)}</name></parent>`);
  return head + xml.slice(cut);
}
