/**
 * The few facts of a snapshot's or checkpoint's XML. The head (name, parent, state, memory, disks) stands before the
 * embedded `<domain>`, so a thousand snapshots are listed without reading a thousand domains.
 */
import { type DiskImage, type DomainFacts, domainFacts, imageOf } from "./domain-xml.ts";
import { attributeOf, childrenOf, elementAt, readXml, type XmlElement, XmlError } from "./xml-reader.ts";

export interface MomentHead {
  name: string;
  parent: string | null;
  /** `running`, `paused`, `shutoff`, `disk-snapshot`; null for a checkpoint. */
  state: string | null;
  /** Seconds since 1970; null when the XML does not say. */
  createdAtSeconds: number | null;
  memory: { mode: string; file: string | null };
  disks: { target: string; mode: string; image: DiskImage | null }[];
}

const body: ReadonlySet<string> = new Set(["domain", "inactiveDomain", "revertDisks", "cookie"]);
const metadata: ReadonlySet<string> = new Set(["metadata", "description"]);

/** Reads what stands before the embedded domain. Throws `XmlError`. */
export function readMomentHead(xml: string): MomentHead {
  return headOf(readXml(xml, { stopAt: body }));
}

/** Reads all of it: the head and the domain as it was. Throws `XmlError`. */
export function readMoment(xml: string): MomentHead & { domain: DomainFacts | null } {
  const root = readXml(xml, { skip: metadata });
  const domain = elementAt(root, "domain");
  return { ...headOf(root), domain: domain === undefined ? null : domainFacts(domain) };
}

/** A record with another parent, everything else as it was: only the head is edited, and read again. Null when that does not
 *  give exactly this; then the record is better left alone. Throws `XmlError` for what is no record. */
export function withParent(xml: string, parent: string): string | null {
  const before = readMomentHead(xml);
  const end = xml.search(/<(?:domain|inactiveDomain|revertDisks|cookie)[\s/>]/);
  const head = (end < 0 ? xml : xml.slice(0, end)).replace(/\s*<parent>[^<]*<name>[^<]*<\/name>[^<]*<\/parent>/, "");
  const escaped = parent.replace(/[&<>'"]/g, (char) => `&#${char.codePointAt(0)};`);
  // A function, so that nothing in a name is taken for a pattern of the replacement.
  const edited = head.replace("</name>", () => `</name><parent><name>${escaped}</name></parent>`);
  const made = edited + (end < 0 ? "" : xml.slice(end));
  const after = readMomentHead(made);
  return JSON.stringify({ ...before, parent }) === JSON.stringify(after) ? made : null;
}

function headOf(root: XmlElement): MomentHead {
  const name = elementAt(root, "name")?.text ?? "";
  if (name === "") throw new XmlError("a snapshot without a name");
  const memory = elementAt(root, "memory");
  const seconds = Number(elementAt(root, "creationTime")?.text ?? Number.NaN);
  return {
    name,
    parent: elementAt(root, "parent", "name")?.text ?? null,
    state: elementAt(root, "state")?.text ?? null,
    createdAtSeconds: Number.isSafeInteger(seconds) ? seconds : null,
    memory: { mode: attributeOf(memory, "snapshot") ?? "no", file: attributeOf(memory, "file") ?? null },
    disks: childrenOf(elementAt(root, "disks"), "disk").map((disk) => ({
      target: attributeOf(disk, "name") ?? "",
      mode: attributeOf(disk, "snapshot") ?? attributeOf(disk, "checkpoint") ?? "",
      image: imageOf(disk, attributeOf(elementAt(disk, "driver"), "type") ?? null),
    })),
  };
}
