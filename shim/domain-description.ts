/** What `vmferry domain show` prints: a domain and its snapshot tree, read at once and changed by nothing. */
import type { LibvirtConnection } from "#libvirt/client";
import { procedures } from "#libvirt/procedures";
import type { DomainRef } from "#protocol/command";
import type { DomainDescription } from "#protocol/message";
import { faultOf } from "./libvirt-fault.ts";
import { mustLookUp, probeDomain, read } from "./probe.ts";
import { readMomentHead } from "./snapshot-xml.ts";
import { dumpTree, listTree } from "./tree-reader.ts";

/** What one message may carry. */
const nodesMax = 500;

/** Throws `domain.absent`, `libvirt.failed`. `labels` are the inventory's own. */
export async function describeDomain(libvirt: LibvirtConnection, domain: DomainRef): Promise<DomainDescription> {
  try {
    return await describe(libvirt, domain);
  } catch (error) {
    throw faultOf(error, {
      code: "libvirt.failed",
      what: "The domain could not be described",
      action: "Look at what libvirt names; nothing was changed.",
      retry: "safe",
    });
  }
}

async function describe(libvirt: LibvirtConnection, domain: DomainRef): Promise<DomainDescription> {
  const dom = await mustLookUp(libvirt, domain);
  const [probe, info, { autostart }, listing] = await Promise.all([
    probeDomain(libvirt, domain.uuid),
    read(libvirt, procedures.domainGetInfo, { dom }),
    read(libvirt, procedures.domainGetAutostart, { dom }),
    listTree(libvirt, dom),
  ]);
  const shown = { ...listing, snapshots: listing.snapshots.slice(0, nodesMax), checkpoints: [] };
  const snapshotTree: DomainDescription["snapshotTree"] = [];
  for await (const { name, parent, current, xml } of dumpTree(libvirt, shown)) {
    const { state, createdAtSeconds } = readMomentHead(xml);
    const createdAt = createdAtSeconds === null ? null : new Date(createdAtSeconds * 1000).toISOString();
    snapshotTree.push({ name, parent, current, state: state ?? "", createdAt });
  }
  return {
    kind: "describeDomain",
    domain: {
      uuid: dom.uuid,
      name: dom.name,
      state: probe.present ? probe.state : "nostate",
      persistent: probe.present && probe.persistent,
      autostart,
      memoryKiB: info.memory,
      vcpus: info.nrVirtCpu,
      snapshots: listing.snapshots.length,
      checkpoints: listing.checkpoints.length,
      labels: {},
    },
    snapshotTree,
    snapshotsTotal: listing.snapshots.length,
  };
}
