/**
 * A tree of any size on the bench's guest: one real live snapshot, and records redefined from it. The records have no data
 * in the image, which the inspection calls a risk; the bench accepts it, as `recordsOnly` says.
 */
import type { Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import { redefineManySnapshots } from "#lab/snapshot-tree";

/** What `vmferry migrate --accept` has to take for such a tree. */
export const recordsOnly = "snapshot.incomplete";

/** Makes the domain's tree one of exactly `count` records, two children each; what another size left goes first. */
export async function growTree(host: Host, guest: Guest, count: number): Promise<void> {
  const { virsh } = host;
  const names = await virsh.snapshotNames(guest.name);
  const deletions = names.slice(1).toReversed();
  await virsh.batch(deletions.map((name) => ["snapshot-delete", guest.name, name, "--metadata"]));
  await redefineManySnapshots(host, guest.name, count, "binary");
}
