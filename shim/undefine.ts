/** Removes a domain's definition with its snapshot and checkpoint records, and nothing of its data. The caller has made
 *  sure that it is not active, or that the other copy is proven to run (I8). */
import type { LibvirtConnection } from "#libvirt/client";
import { ErrorCode, UndefineFlag } from "#libvirt/constants";
import { LibvirtError } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";

const metadataFlags = UndefineFlag.SNAPSHOTS_METADATA | UndefineFlag.CHECKPOINTS_METADATA | UndefineFlag.KEEP_NVRAM;

/** KEEP_TPM came with libvirt 8.9.0; an older one never deletes the TPM's state without being told to. */
export async function undefineDomain(libvirt: LibvirtConnection, dom: RemoteDomain): Promise<void> {
  try {
    await libvirt.call(procedures.domainUndefineFlags, { dom, flags: metadataFlags | UndefineFlag.KEEP_TPM });
  } catch (error) {
    const unknownFlag = error instanceof LibvirtError && error.code === ErrorCode.INVALID_ARG;
    if (!unknownFlag) throw error;
    await libvirt.call(procedures.domainUndefineFlags, { dom, flags: metadataFlags });
  }
}
