/** The job of a domain, as shim/probe.ts reads it. */
import type { LibvirtConnection } from "#libvirt/client";
import type { RemoteDomain } from "#libvirt/handle";
import { type DomainJob, probeDomain } from "#shim/probe";

export async function jobOf(libvirt: LibvirtConnection, dom: RemoteDomain): Promise<DomainJob | "absent"> {
  const probe = await probeDomain(libvirt, dom.uuid);
  return probe.present ? probe.job : "absent";
}
