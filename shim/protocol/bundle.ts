/**
 * The bundle, format version 1: everything of a domain that libvirt keeps on one host only, in one file. Eric Blake's
 * second channel of 2011: the count, the length of each snapshot and its XML.
 *
 * Plain bytes, numbers big-endian:
 *
 *   header   "VMFB" · version u8 = 1 · flags u8 (1: a snapshot is current) · 0 u16 · snapshots u32 · checkpoints u32
 *   entry    kind u8 · flags u8 (1: current, 2: has a parent) · name u16 · parent u16 · xml u32 (lengths in bytes)
 *            then name, parent, XML in UTF-8
 *   trailer  SHA-256 over all bytes before it
 *
 * One entry of kind `domain` (the inactive XML) first, then the snapshots, then the checkpoints, parents before their
 * children. The whole is one gzip member. `bundle-writer.ts` and `bundle-reader.ts` stream it in constant memory.
 */
import { Fault } from "./fault.ts";
import { checkpointsMax, snapshotsMax, xmlBytesMax } from "./limits.ts";

export type BundleEntryKind = "domain" | "snapshot" | "checkpoint";

export interface BundleEntry {
  kind: BundleEntryKind;
  name: string;
  /** Name of the parent of the same kind; null for a root and for the domain. */
  parent: string | null;
  /** At most one snapshot is current; never a checkpoint or the domain. */
  current: boolean;
  xml: string;
}

/** What the header states before the first entry. */
export interface BundleCounts {
  snapshots: number;
  checkpoints: number;
  /** True when one of the snapshots is the current one. */
  hasCurrent: boolean;
}

export const bundleVersion = 1;
export const headerBytes = 16;
export const entryHeadBytes = 10;
export const trailerBytes = 32;

/** A name in UTF-8. libvirt stores each snapshot as NAME.xml, so its file system ends names at 255 bytes; four times that leaves room for one that does not. */
export const entryNameBytesMax = 1_020;

const magic = Buffer.from("VMFB", "latin1");
const kindNumbers: Record<BundleEntryKind, number> = { domain: 1, snapshot: 2, checkpoint: 3 };
const kindNames: ReadonlyMap<number, BundleEntryKind> = new Map([
  [1, "domain"],
  [2, "snapshot"],
  [3, "checkpoint"],
]);
const currentFlag = 1;
const parentFlag = 2;

/** The bytes are no bundle of this version. Reading them again will not help. */
export const malformedBundle = (cause: string, options?: { cause?: unknown }) =>
  new Fault(
    {
      code: "bundle.malformed",
      cause,
      action:
        "Export the domain again; keep this file if it is the only copy, and look at it with `vmferry bundle show`.",
      retry: "never",
    },
    options,
  );

/** The bytes are not the ones that were written. Nothing of them may be used. */
export const alteredBundle = (cause: string) =>
  new Fault({
    code: "bundle.altered",
    cause,
    action: "Nothing of it was used. Find out who can write to the bucket or the disk, then export the domain again.",
    retry: "person",
  });

/** Throws `bundle.malformed` for counts that libvirt itself could not have. */
export function encodeHeader(counts: BundleCounts): Buffer {
  checkCounts(counts);
  const header = Buffer.alloc(headerBytes);
  magic.copy(header);
  header.writeUInt8(bundleVersion, 4);
  header.writeUInt8(counts.hasCurrent ? currentFlag : 0, 5);
  header.writeUInt32BE(counts.snapshots, 8);
  header.writeUInt32BE(counts.checkpoints, 12);
  return header;
}

/** Throws `bundle.malformed`. */
export function decodeHeader(header: Buffer): BundleCounts {
  if (!header.subarray(0, 4).equals(magic)) throw malformedBundle("This is not a bundle: it does not begin with VMFB.");
  const version = header.readUInt8(4);
  if (version !== bundleVersion)
    throw malformedBundle(`The bundle has format version ${version}; this side reads version ${bundleVersion}.`);
  const flags = header.readUInt8(5);
  if (flags > currentFlag || header.readUInt16BE(6) !== 0)
    throw malformedBundle("The bundle's header has bits that version 1 does not know.");
  const counts = {
    snapshots: header.readUInt32BE(8),
    checkpoints: header.readUInt32BE(12),
    hasCurrent: flags === currentFlag,
  };
  checkCounts(counts);
  return counts;
}

function checkCounts(counts: BundleCounts): void {
  if (!Number.isInteger(counts.snapshots) || counts.snapshots < 0 || counts.snapshots > snapshotsMax)
    throw malformedBundle(`A bundle of ${counts.snapshots} snapshots is over libvirt's own limit of ${snapshotsMax}.`);
  if (!Number.isInteger(counts.checkpoints) || counts.checkpoints < 0 || counts.checkpoints > checkpointsMax)
    throw malformedBundle(
      `A bundle of ${counts.checkpoints} checkpoints is over libvirt's own limit of ${checkpointsMax}.`,
    );
  if (counts.hasCurrent && counts.snapshots === 0)
    throw malformedBundle("The bundle says that a snapshot is current but it has none.");
}

/** The lengths and flags in front of an entry. */
export interface EntryHead {
  kind: BundleEntryKind;
  current: boolean;
  hasParent: boolean;
  nameBytes: number;
  parentBytes: number;
  xmlBytes: number;
}

/** Head and body of an entry. Throws `bundle.malformed` when it breaks a limit. */
export function encodeEntry(entry: BundleEntry): Buffer {
  const name = Buffer.from(entry.name, "utf8");
  const parent = Buffer.from(entry.parent ?? "", "utf8");
  const xml = Buffer.from(entry.xml, "utf8");
  const head: EntryHead = {
    kind: entry.kind,
    current: entry.current,
    hasParent: entry.parent !== null,
    nameBytes: name.byteLength,
    parentBytes: parent.byteLength,
    xmlBytes: xml.byteLength,
  };
  checkHead(head);
  const bytes = Buffer.alloc(entryHeadBytes);
  bytes.writeUInt8(kindNumbers[entry.kind], 0);
  bytes.writeUInt8((entry.current ? currentFlag : 0) | (head.hasParent ? parentFlag : 0), 1);
  bytes.writeUInt16BE(head.nameBytes, 2);
  bytes.writeUInt16BE(head.parentBytes, 4);
  bytes.writeUInt32BE(head.xmlBytes, 6);
  return Buffer.concat([bytes, name, parent, xml]);
}

/** Throws `bundle.malformed`; a length beyond its limit is refused here, before anything is allocated for it. */
export function decodeEntryHead(bytes: Buffer): EntryHead {
  const kind = kindNames.get(bytes.readUInt8(0));
  if (kind === undefined) throw malformedBundle(`An entry of the bundle has the unknown kind ${bytes.readUInt8(0)}.`);
  const flags = bytes.readUInt8(1);
  if (flags > (currentFlag | parentFlag)) throw malformedBundle("An entry has bits that version 1 does not know.");
  const head: EntryHead = {
    kind,
    current: (flags & currentFlag) !== 0,
    hasParent: (flags & parentFlag) !== 0,
    nameBytes: bytes.readUInt16BE(2),
    parentBytes: bytes.readUInt16BE(4),
    xmlBytes: bytes.readUInt32BE(6),
  };
  checkHead(head);
  return head;
}

function checkHead(head: EntryHead): void {
  if (head.nameBytes === 0 || head.nameBytes > entryNameBytesMax)
    throw malformedBundle(`A ${head.kind}'s name has ${head.nameBytes} bytes; 1 to ${entryNameBytesMax} are allowed.`);
  if (head.parentBytes > entryNameBytesMax || head.parentBytes > 0 !== head.hasParent)
    throw malformedBundle(`A ${head.kind}'s parent has ${head.parentBytes} bytes, which does not fit its flags.`);
  if (head.xmlBytes === 0 || head.xmlBytes > xmlBytesMax)
    throw malformedBundle(
      `A ${head.kind}'s XML has ${head.xmlBytes} bytes; libvirt takes 1 to ${xmlBytesMax} in one string.`,
    );
  if (head.current && head.kind !== "snapshot") throw malformedBundle(`A ${head.kind} cannot be current.`);
  if (head.hasParent && head.kind === "domain") throw malformedBundle("The domain's own entry cannot have a parent.");
}

/**
 * The order and number of entries, checked alike by writer and reader. Keeps only the names (at most 32,768 of them).
 * Every method throws `bundle.malformed`.
 */
export class EntryOrder {
  readonly #counts: BundleCounts;
  readonly #names = { snapshot: new Set<string>(), checkpoint: new Set<string>() };
  #domain = false;
  #current = false;

  constructor(counts: BundleCounts) {
    this.#counts = counts;
  }

  add(entry: Pick<BundleEntry, "kind" | "name" | "parent" | "current">): void {
    if (entry.kind === "domain") {
      if (this.#domain) throw malformedBundle("The bundle holds two domains.");
      this.#domain = true;
      return;
    }
    if (!this.#domain) throw malformedBundle("The domain's own XML is not the first entry of the bundle.");
    const names = this.#names[entry.kind];
    if (entry.kind === "snapshot" && this.#names.checkpoint.size > 0)
      throw malformedBundle(`The snapshot "${entry.name}" comes after a checkpoint.`);
    if (names.has(entry.name)) throw malformedBundle(`The ${entry.kind} "${entry.name}" is in the bundle twice.`);
    if (entry.parent !== null && !names.has(entry.parent))
      throw malformedBundle(`The ${entry.kind} "${entry.name}" comes before its parent "${entry.parent}".`);
    names.add(entry.name);
    if (entry.current) {
      if (this.#current || !this.#counts.hasCurrent)
        throw malformedBundle(
          `The snapshot "${entry.name}" is marked current, which the header or another one denies.`,
        );
      this.#current = true;
    }
    const count = entry.kind === "snapshot" ? this.#counts.snapshots : this.#counts.checkpoints;
    if (names.size > count)
      throw malformedBundle(`The bundle holds more than the ${count} ${entry.kind}s that its header states.`);
  }

  /** True when every entry that the header states has been added. */
  get complete(): boolean {
    return (
      this.#domain &&
      this.#names.snapshot.size === this.#counts.snapshots &&
      this.#names.checkpoint.size === this.#counts.checkpoints
    );
  }

  end(): void {
    if (!this.complete)
      throw malformedBundle(
        `The bundle holds ${this.#names.snapshot.size} of ${this.#counts.snapshots} snapshots and ` +
          `${this.#names.checkpoint.size} of ${this.#counts.checkpoints} checkpoints${this.#domain ? "" : " and no domain"}.`,
      );
    if (this.#current !== this.#counts.hasCurrent)
      throw malformedBundle("The bundle's header says that a snapshot is current, but none is marked.");
  }
}
