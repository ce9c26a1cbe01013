/**
 * Autostart of the source during a migration. I1: from Begin on the source's definition must not start by itself, for after
 * Finish the guest runs elsewhere, and a source host that boots before its Confirm would start the stale one beside it.
 */
import type { LibvirtConnection } from "#libvirt/client";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import type { JournalEntry, Work } from "./ports.ts";
import { read } from "./probe.ts";

const clearedMilestone = "autostartCleared";

/** Takes autostart off, journalled before. A transient domain has none: it is gone after a boot. */
export async function clearAutostart(
  work: Pick<Work, "milestone">,
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
): Promise<void> {
  if (!(await read(libvirt, procedures.domainIsPersistent, { dom })).persistent) return;
  if (!(await read(libvirt, procedures.domainGetAutostart, { dom })).autostart) return;
  await work.milestone(clearedMilestone);
  await libvirt.call(procedures.domainSetAutostart, { dom, autostart: false });
}

/** Puts it back when this migration took it off, by its journal or, where that is lost, by `wasOn`. May be repeated. */
export async function putAutostartBack(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
  history: readonly JournalEntry[],
  wasOn = false,
): Promise<void> {
  const cleared = history.some((entry) => entry.type === "milestone" && entry.name === clearedMilestone);
  if (!cleared && !wasOn) return;
  if ((await read(libvirt, procedures.domainGetAutostart, { dom })).autostart) return;
  await libvirt.call(procedures.domainSetAutostart, { dom, autostart: true });
}
