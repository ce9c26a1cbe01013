/** One domain as the fleet sees it, read from libvirt: a handful of calls that change nothing and take no job. */
import type { LibvirtConnection } from "#libvirt/client";
import { ErrorCode } from "#libvirt/constants";
import { isNoDomain, isUnsupported, LibvirtError } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import { procedures } from "#libvirt/procedures";
import type { DomainState } from "#protocol/command";
import { nameCharsMax } from "#protocol/limits";
import type { InventoryDomain } from "#protocol/message";
import { read } from "./probe.ts";
import { attributeOf, childrenOf, readXml, XmlError } from "./xml-reader.ts";

/** Namespace of labels in a domain's `<metadata>`:
 *  `<labels xmlns="https://vmferry.dev/labels/1"><label name="tier">db</label></labels>`. */
export const labelsUri = "https://vmferry.dev/labels/1";

/** Enough to select by, and 32 labels of the longest kind keep an entry below 11 KB, so it fits any message. */
const labelsMax = 32;
const labelNameCharsMax = 63;
const labelValueCharsMax = 255;

/** VIR_DOMAIN_METADATA_ELEMENT (libvirt-domain.h). */
const metadataElement = 2;

/** virDomainState, by number (libvirt-domain.h). */
const states: readonly DomainState[] = [
  "nostate",
  "running",
  "blocked",
  "paused",
  "shutdown",
  "shutoff",
  "crashed",
  "pmsuspended",
];

/** Null when it has gone in the meantime, or has a name that no message can carry. */
export async function readInventoryDomain(
  libvirt: LibvirtConnection,
  dom: RemoteDomain,
): Promise<InventoryDomain | null> {
  if (dom.name.length > nameCharsMax) return null;
  try {
    const [info, { persistent }, { autostart }, { num }, checkpoints, labels] = await Promise.all([
      read(libvirt, procedures.domainGetInfo, { dom }),
      read(libvirt, procedures.domainIsPersistent, { dom }),
      read(libvirt, procedures.domainGetAutostart, { dom }),
      read(libvirt, procedures.domainSnapshotNum, { dom, flags: 0 }),
      countCheckpoints(libvirt, dom),
      readLabels(libvirt, dom),
    ]);
    return {
      uuid: dom.uuid,
      name: dom.name,
      state: states[info.state] ?? "nostate",
      persistent,
      autostart,
      memoryKiB: info.maxMem,
      vcpus: info.nrVirtCpu,
      snapshots: num,
      checkpoints,
      labels,
    };
  } catch (error) {
    if (isNoDomain(error)) return null;
    throw error;
  }
}

/** Without results: libvirt only counts then. */
async function countCheckpoints(libvirt: LibvirtConnection, dom: RemoteDomain): Promise<number> {
  try {
    return (await read(libvirt, procedures.domainListAllCheckpoints, { dom, needResults: false, flags: 0 })).ret;
  } catch (error) {
    // A daemon or driver without checkpoints has none.
    if (isUnsupported(error)) return 0;
    throw error;
  }
}

export async function readLabels(libvirt: LibvirtConnection, dom: RemoteDomain): Promise<Record<string, string>> {
  try {
    const { metadata } = await read(libvirt, procedures.domainGetMetadata, {
      dom,
      type: metadataElement,
      uri: labelsUri,
      flags: 0,
    });
    return parseLabels(metadata);
  } catch (error) {
    if (error instanceof LibvirtError && error.code === ErrorCode.NO_DOMAIN_METADATA) return {};
    throw error;
  }
}

/** Labels that are too long, doubled, or too many are left out; an element that cannot be read has none. */
export function parseLabels(xml: string): Record<string, string> {
  try {
    const labels = new Map<string, string>();
    for (const label of childrenOf(readXml(xml), "label")) {
      const name = attributeOf(label, "name") ?? "";
      const fits = name.length > 0 && name.length <= labelNameCharsMax && label.text.length <= labelValueCharsMax;
      if (fits && !labels.has(name) && labels.size < labelsMax) labels.set(name, label.text);
    }
    return Object.fromEntries(labels);
  } catch (error) {
    if (error instanceof XmlError) return {};
    throw error;
  }
}
