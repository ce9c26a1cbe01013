/**
 * Holds what one release writes against what another one reads: every value that the writer's schema allows must be one that the
 * reader's schema takes. Schemas come as JSON Schema, in the part of it that ours are written in; anything else is an error, so
 * that nothing passes unseen. Unknown fields are passed over by readers and so are no gap.
 */
import * as z from "zod/mini";

const limits = {
  maxLength: z.optional(z.number()),
  minLength: z.optional(z.number()),
  maximum: z.optional(z.number()),
  minimum: z.optional(z.number()),
  maxItems: z.optional(z.number()),
  minItems: z.optional(z.number()),
};

const nodeSchema = z.strictObject({
  ...limits,
  $schema: z.optional(z.string()),
  $defs: z.optional(z.record(z.string(), z.unknown())),
  $ref: z.optional(z.string()),
  type: z.optional(z.union([z.string(), z.array(z.string())])),
  const: z.optional(z.unknown()),
  enum: z.optional(z.array(z.unknown())),
  pattern: z.optional(z.string()),
  allOf: z.optional(z.array(z.unknown())),
  anyOf: z.optional(z.array(z.unknown())),
  oneOf: z.optional(z.array(z.unknown())),
  properties: z.optional(z.record(z.string(), z.unknown())),
  required: z.optional(z.array(z.string())),
  additionalProperties: z.optional(z.unknown()),
  propertyNames: z.optional(z.unknown()),
  items: z.optional(z.unknown()),
  default: z.optional(z.unknown()),
});
type Node = z.infer<typeof nodeSchema>;

/** A schema with the definitions that its references name. */
export class Schema {
  readonly node: Node;
  readonly #definitions: Readonly<Record<string, unknown>>;

  constructor(value: unknown, definitions?: Readonly<Record<string, unknown>>) {
    const node = nodeSchema.parse(value);
    this.#definitions = definitions ?? node.$defs ?? {};
    const name = node.$ref?.slice("#/$defs/".length);
    const named = name === undefined ? undefined : this.#definitions[name];
    if (name !== undefined && named === undefined) throw new Error(`no definition ${node.$ref}`);
    this.node = named === undefined ? node : new Schema(named, this.#definitions).node;
  }

  of(value: unknown): Schema {
    return new Schema(value, this.#definitions);
  }

  /** The alternatives of a union, those of inner unions with them; the schema itself when it is none. */
  get alternatives(): Schema[] {
    const { anyOf, oneOf, type } = this.node;
    if (Array.isArray(type)) return type.map((each) => this.of({ ...this.node, type: each }));
    const inner = anyOf ?? oneOf;
    return inner === undefined ? [this] : inner.flatMap((each) => this.of(each).alternatives);
  }

  get literals(): readonly unknown[] | null {
    return "const" in this.node ? [this.node.const] : (this.node.enum ?? null);
  }
}

/** Where the reader would refuse what the writer may write, one line each; empty: nowhere. */
export function gaps(writer: Schema, reader: Schema, path = ""): string[] {
  return writer.alternatives.flatMap((written) => {
    const found = reader.alternatives.map((read) => between(written, read, path));
    if (found.some((each) => each.length === 0)) return [];
    // The nearest alternative says best what is missing: of one kind with the written one, if there is such.
    const nearest = found.toSorted((one, next) => farness(one) - farness(next))[0] ?? [`${path}: nothing is read`];
    return nearest.map((each) => each.replace(another, ""));
  });
}

/** The mark of a gap that only says that this is another member of the union. */
const another = " (another member)";
const farness = (found: readonly string[]) => (found.some((each) => each.endsWith(another)) ? 1 : 0);

function between(writer: Schema, reader: Schema, path: string): string[] {
  const [written, read] = [writer.node, reader.node];
  const literals = reader.literals;
  if (literals !== null) {
    const said = writer.literals;
    if (said === null) return [`${path}: any ${written.type} is not known, only ${literals.join(", ")}`];
    return said.filter((each) => !literals.includes(each)).map((each) => `${path}: ${String(each)} is not known`);
  }
  if (written.type !== read.type && !(written.type === "integer" && read.type === "number"))
    return read.type === undefined ? [] : [`${path}: ${written.type} is not known, it is to be ${read.type}`];
  if (writer.literals !== null) return [];
  switch (written.type) {
    case "object":
      return [...objects(writer, reader, path), ...entries(writer, reader, path)];
    case "array":
      return [...bounds(written, read, path), ...gaps(writer.of(written.items), reader.of(read.items), `${path}[]`)];
    default:
      return [...bounds(written, read, path), ...patterns(written, read, path)];
  }
}

/** The fields by which ours tell the members of a union apart. */
const discriminators = ["type", "kind", "op", "in", "ok", "reachable"];

function objects(writer: Schema, reader: Schema, path: string): string[] {
  const [written, read] = [writer.node, reader.node];
  // Another member of the union: what else it has or lacks is beside the point.
  const other = discriminators.flatMap((name) => {
    const [told, taken] = [written.properties?.[name], read.properties?.[name]];
    if (told === undefined || taken === undefined || !("const" in reader.of(taken).node)) return [];
    return gaps(writer.of(told), reader.of(taken), `${path}.${name}`);
  });
  if (other.length > 0) return other.map((each) => `${each}${another}`);
  const missing = (read.required ?? []).filter((name) => written.required?.includes(name) !== true);
  const known = Object.entries(read.properties ?? {}).flatMap(([name, value]) => {
    const told = written.properties?.[name];
    return told === undefined ? [] : gaps(writer.of(told), reader.of(value), `${path}.${name}`);
  });
  return [...missing.map((name) => `${path}: ${name} may be missing`), ...known];
}

/** Records: the values under names that nobody lists. */
function entries(writer: Schema, reader: Schema, path: string): string[] {
  const [told, taken] = [writer.node.additionalProperties, reader.node.additionalProperties];
  if (typeof taken !== "object" || taken === null || typeof told !== "object" || told === null) return [];
  return gaps(writer.of(told), reader.of(taken), `${path}.*`);
}

const upper = ["maxLength", "maximum", "maxItems"] as const;
const lower = ["minLength", "minimum", "minItems"] as const;

function bounds(written: Node, read: Node, path: string): string[] {
  const over = upper.filter(
    (name) => (written[name] ?? Number.POSITIVE_INFINITY) > (read[name] ?? Number.POSITIVE_INFINITY),
  );
  const under = lower.filter(
    (name) => (written[name] ?? Number.NEGATIVE_INFINITY) < (read[name] ?? Number.NEGATIVE_INFINITY),
  );
  return [...over, ...under].map((name) => `${path}: ${name} is ${written[name] ?? "none"}, ${read[name]} is read`);
}

function patterns(written: Node, read: Node, path: string): string[] {
  const of = (node: Node) => JSON.stringify([node.pattern ?? null, node.allOf ?? null]);
  if (of(read) === "[null,null]" || of(written) === of(read)) return [];
  return [`${path}: the pattern ${of(written)} is not ${of(read)}`];
}
