/**
 * A strict, bounded reader of libvirt's XML. XML is opaque to vmferry: it is carried byte for byte and never written
 * again; only a few facts are read, here. DOCTYPE, entity declarations and processing instructions are refused, so there
 * is nothing to expand; size, depth, elements and attributes are bounded, so a hostile document costs no more than a big one.
 */
import { SaxesParser } from "saxes";
import { xmlBytesMax } from "#protocol/limits";

/** libvirt's own documents are about ten deep; libxml2 refuses at 256. */
export const xmlDepthMax = 64;
/** 4 MiB of the shortest possible element, `<a/>`, are 1,048,576; a domain with 1 MiB of metadata stays below this. */
export const xmlElementsMax = 300_000;
/** libvirt's richest element, a disk's `<driver>`, has about 20. */
export const xmlAttributesMax = 256;

/** A document that is not what libvirt writes. The message never quotes the document: it may hold passwords (I9). */
export class XmlError extends Error {
  override readonly name = "XmlError";
}

export interface XmlElement {
  readonly name: string;
  readonly attributes: ReadonlyMap<string, string>;
  readonly children: readonly XmlElement[];
  /** The element's own text without its children's, untouched. */
  readonly text: string;
  /** The element as it stands in the document. */
  readonly raw: string;
}

interface Open {
  name: string;
  attributes: Map<string, string>;
  children: XmlElement[];
  text: string;
  start: number;
  kept: boolean;
}

export interface ReadOptions {
  /** Children of the root at which reading stops: what follows is neither read nor checked. */
  stopAt?: ReadonlySet<string>;
  /** Elements whose contents are checked for form but not kept. */
  skip?: ReadonlySet<string>;
}

class Stop extends Error {}

/** Where an element that has just been opened starts: saxes reports it once its tag is complete. */
function startOf(xml: string, end: number): number {
  return xml.lastIndexOf("<", end - 1);
}

/**
 * Reads a document to its root element. Throws `XmlError`. Attribute values hold no raw `<` in well-formed XML, so the
 * last `<` before a tag's end is its start.
 */
export function readXml(xml: string, options: ReadOptions = {}): XmlElement {
  if (Buffer.byteLength(xml) > xmlBytesMax) throw new XmlError(`a document of more than ${xmlBytesMax} bytes`);
  if (xml.charCodeAt(0) === 0xfeff) throw new XmlError("a document with a byte order mark");
  const parser = new SaxesParser({ position: true, xmlns: false });
  const open: Open[] = [];
  let elements = 0;
  let attributes = 0;
  let root: XmlElement | undefined;
  const fail = (message: string): never => {
    throw new XmlError(`${message} at line ${parser.line}`);
  };
  const close = (closed: Open, end: number): void => {
    const element: XmlElement = {
      name: closed.name,
      attributes: closed.attributes,
      children: closed.children,
      text: closed.text,
      raw: closed.kept ? xml.slice(closed.start, end) : "",
    };
    const parent = open.at(-1);
    if (parent === undefined) root = element;
    else if (closed.kept) parent.children.push(element);
  };
  parser.on("error", () => fail("a document that is not well-formed"));
  parser.on("doctype", () => fail("a DOCTYPE, which is refused,"));
  parser.on("processinginstruction", () => fail("a processing instruction, which is refused,"));
  parser.on("xmldecl", (declaration) => {
    const encoding = declaration.encoding?.toLowerCase();
    if (encoding !== undefined && encoding !== "utf-8") fail("an encoding other than UTF-8");
  });
  parser.on("opentagstart", (tag) => {
    elements += 1;
    if (elements > xmlElementsMax) fail(`more than ${xmlElementsMax} elements`);
    if (open.length >= xmlDepthMax) fail(`elements more than ${xmlDepthMax} deep`);
    attributes = 0;
    if (open.length === 1 && options.stopAt?.has(tag.name) === true) throw new Stop();
  });
  parser.on("attribute", () => {
    attributes += 1;
    if (attributes > xmlAttributesMax) fail(`more than ${xmlAttributesMax} attributes`);
  });
  parser.on("opentag", (tag) => {
    const parent = open.at(-1);
    const kept = parent === undefined || (parent.kept && options.skip?.has(parent.name) !== true);
    open.push({
      name: tag.name,
      attributes: kept ? new Map(Object.entries(tag.attributes)) : new Map(),
      children: [],
      text: "",
      start: kept ? startOf(xml, parser.position) : 0,
      kept,
    });
  });
  const addText = (text: string): void => {
    const current = open.at(-1);
    if (current?.kept === true && options.skip?.has(current.name) !== true) current.text += text;
  };
  parser.on("text", addText);
  parser.on("cdata", addText);
  parser.on("closetag", () => {
    const closed = open.pop();
    if (closed !== undefined) close(closed, parser.position);
  });
  try {
    parser.write(xml).close();
  } catch (error) {
    if (!(error instanceof Stop)) {
      if (error instanceof XmlError) throw error;
      throw new XmlError("a document that is not well-formed");
    }
    // What was read so far is whole: reading stops only between two children of the root.
    const [outer] = open;
    if (outer !== undefined) {
      open.length = 0;
      close(outer, outer.start);
    }
  }
  if (root === undefined) throw new XmlError("an empty document");
  return root;
}

/** The first element at a path of child names. */
export function elementAt(from: XmlElement, ...path: readonly string[]): XmlElement | undefined {
  let at: XmlElement | undefined = from;
  for (const name of path) at = at?.children.find((child) => child.name === name);
  return at;
}

/** All children of that name. */
export function childrenOf(from: XmlElement | undefined, name: string): readonly XmlElement[] {
  return from?.children.filter((child) => child.name === name) ?? [];
}

export function attributeOf(from: XmlElement | undefined, name: string): string | undefined {
  return from?.attributes.get(name);
}
