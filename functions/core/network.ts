/**
 * Networks of hosts: hosts that carry the same value of the label `network` share a line (`vmferry shim --label network=rack-b`). A migration touches the
 * network of its source and that of its destination; within one network it touches it once. A host without the label is on no network that anybody limits.
 */

/** The label of a host that names its network. */
const networkLabel = "network";

/** The network of a host by its labels; null: none was named. */
export function networkOf(labels: Readonly<Record<string, string>>): string | null {
  const value = Object.hasOwn(labels, networkLabel) ? labels[networkLabel] : undefined;
  return value === undefined || value === "" ? null : value;
}

/** The networks by the ids of their hosts; hosts without one are not in it. */
export type Networks = ReadonlyMap<string, string>;

/** What a migration between these hosts touches, each network once. */
export function touched(networks: Networks, sourceId: string, destinationId: string): string[] {
  const names = new Set<string>();
  for (const id of [sourceId, destinationId]) {
    const name = networks.get(id);
    if (name !== undefined) names.add(name);
  }
  return [...names];
}
