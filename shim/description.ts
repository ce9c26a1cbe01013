/** The answer to `describeDomain`: the domain, its tree and its labels, cut to what one message carries. */
import type { LibvirtConnection } from "#libvirt/client";
import type { DomainRef } from "#protocol/command";
import { messageBytesMax } from "#protocol/limits";
import type { DomainDescription } from "#protocol/message";
import { describeDomain } from "./domain-description.ts";
import { readLabels } from "./inventory-reader.ts";
import { mustLookUp } from "./probe.ts";

/** Room for the envelope. */
const bytesMax = messageBytesMax - 2_048;

/** Throws as `describeDomain`. `snapshotsTotal` says the truth when the tree was cut. */
export async function describeForQuery(libvirt: LibvirtConnection, domain: DomainRef): Promise<DomainDescription> {
  const description = await describeDomain(libvirt, domain);
  const labels = await readLabels(libvirt, await mustLookUp(libvirt, domain));
  return cutToFit({ ...description, domain: { ...description.domain, labels } });
}

/** Keeps the first nodes in topological order, so that every parent shown is there. */
export function cutToFit(description: DomainDescription): DomainDescription {
  const size = (value: unknown) => Buffer.byteLength(JSON.stringify(value)) + 1;
  let room = bytesMax - size({ ...description, snapshotTree: [] });
  const fits = description.snapshotTree.findIndex((node) => {
    room -= size(node);
    return room < 0;
  });
  return fits === -1 ? description : { ...description, snapshotTree: description.snapshotTree.slice(0, fits) };
}
