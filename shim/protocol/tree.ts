/**
 * The digest by which two hosts know that they hold the same snapshot tree: names, parents, which one is current, and
 * the XML of every snapshot and checkpoint (I3, I4). It does not depend on the order of the entries, so each side may
 * list them as its daemon gives them. Memory: one name and 32 bytes for each entry, never the XML.
 */
import { createHash } from "node:crypto";
import type { BundleEntry } from "./bundle.ts";
import { Fault } from "./fault.ts";

/** What of an entry is part of the tree. The domain's own XML is not: each daemon writes it in its own words. */
export type TreeEntry = Omit<BundleEntry, "kind"> & { kind: "snapshot" | "checkpoint" };

/** Takes out of an XML what may differ between two equal trees. Must be the same function on both sides. */
export type XmlNormaliser = (xml: string, kind: TreeEntry["kind"]) => string;

const asItIs: XmlNormaliser = (xml) => xml;

/** Collects entries one by one; `sha256()` gives the digest of those added so far. */
export class TreeDigest {
  readonly #normalise: XmlNormaliser;
  /** Key: kind and name. A Map, because names are the domain's own and may be `__proto__`. */
  readonly #entries = new Map<string, Buffer>();

  constructor(normalise: XmlNormaliser = asItIs) {
    this.#normalise = normalise;
  }

  /** Throws `Fault` `snapshot.mismatch` when an entry of that kind and name was added before. */
  add(entry: TreeEntry): void {
    const key = `${entry.kind}\n${entry.name}`;
    if (this.#entries.has(key))
      throw new Fault({
        code: "snapshot.mismatch",
        cause: `The ${entry.kind} "${entry.name}" is named twice in one tree.`,
        action: "List the snapshots again; libvirt itself never has two of one name.",
        retry: "person",
      });
    const hash = createHash("sha256");
    for (const part of [
      entry.kind,
      entry.name,
      entry.parent === null ? "root" : "child",
      entry.parent ?? "",
      entry.current ? "current" : "",
      this.#normalise(entry.xml, entry.kind),
    ])
      addPart(hash, part);
    this.#entries.set(key, hash.digest());
  }

  /** Lower-case hex. Does not end the collection. */
  sha256(): string {
    const hash = createHash("sha256").update("vmferry tree 1\n");
    const sorted = [...this.#entries].sort(([a], [b]) => (a < b ? -1 : 1));
    for (const [, digest] of sorted) hash.update(digest);
    return hash.digest("hex");
  }
}

/** The digest of a whole tree; entries of kind `domain` are passed over. Throws `Fault` `snapshot.mismatch` for a name given twice. */
export async function treeSha256(
  entries: AsyncIterable<BundleEntry> | Iterable<BundleEntry>,
  normalise: XmlNormaliser = asItIs,
): Promise<string> {
  const digest = new TreeDigest(normalise);
  for await (const { kind, ...rest } of entries) if (kind !== "domain") digest.add({ ...rest, kind });
  return digest.sha256();
}

/** Each part with its length in front, so that no two entries can be spelled alike. */
function addPart(hash: ReturnType<typeof createHash>, part: string): void {
  const bytes = Buffer.from(part, "utf8");
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.byteLength);
  hash.update(length).update(bytes);
}
