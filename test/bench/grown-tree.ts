/**
 * A tree of any size on the bench's guest: one real live snapshot, and records redefined from it. Each record has an
 * internal snapshot of its own name in the image, taken through QEMU's monitor, because the inspection refuses records
 * without data (`snapshot.dataUnreachable`). Those hold the disk, not the memory: they are there to be counted.
 */
import * as z from "zod/mini";
import { type Guest, imageSnapshots } from "#lab/guest";
import type { Host } from "#lab/host";
import { redefineManySnapshots } from "#lab/snapshot-tree";

const blocksSchema = z.object({
  return: z.array(
    z.object({ inserted: z.optional(z.object({ file: z.string(), "node-name": z.optional(z.string()) })) }),
  ),
});

const monitor = (guest: Guest, command: unknown) => ["qemu-monitor-command", guest.name, JSON.stringify(command)];

/** Makes the domain's tree one of exactly `count` records, two children each; what another size left goes first. */
export async function growTree(host: Host, guest: Guest, count: number): Promise<void> {
  const { virsh } = host;
  const names = await virsh.snapshotNames(guest.name);
  await virsh.batch(
    names
      .slice(1)
      .toReversed()
      .map((name) => ["snapshot-delete", guest.name, name, "--metadata"]),
  );
  const wanted = await redefineManySnapshots(host, guest.name, count, "binary");
  const held = new Set(await imageSnapshots(guest.disk));
  const node = await nodeOf(host, guest);
  const execute = "blockdev-snapshot-internal-sync";
  const missing = wanted.filter((name) => !held.has(name));
  const answers = await virsh.batch(
    missing.map((name) => monitor(guest, { execute, arguments: { device: node, name } })),
  );
  const refusal = answers.find((answer) => /"error"/.test(answer));
  if (refusal !== undefined) throw new Error(`QEMU took no snapshot: ${refusal}`);
}

async function nodeOf(host: Host, guest: Guest): Promise<string> {
  const [text = ""] = await host.virsh.batch([monitor(guest, { execute: "query-block" })]);
  const blocks = blocksSchema.parse(JSON.parse(text)).return;
  const node = blocks.find(({ inserted }) => inserted?.file === guest.disk)?.inserted?.["node-name"];
  if (node === undefined) throw new Error(`QEMU has no drive on ${guest.disk}: ${text}`);
  return node;
}
