/**
 * Shapes: what an XDR value looks like, as data. A shape reads and writes its value and carries its TypeScript type,
 * so that a procedure is a number and two shapes (procedures.ts) and nothing is written twice.
 *
 * `parts` lets others walk a shape (the golden vectors are annotated field by field this way).
 */
import { XdrError, XdrReader, XdrWriter } from "./xdr.ts";

export type Shape<T> = {
  readonly kind: string;
  /** The fields of a struct, in wire order. */
  readonly parts?: readonly (readonly [string, Shape<unknown>])[];
  /** The item of an array, or what a pointer points to. */
  readonly item?: Shape<unknown>;
  read(reader: XdrReader): T;
  write(writer: XdrWriter, value: T): void;
};

/** The TypeScript type of a shape's value. */
export type ValueOf<S> = S extends Shape<infer T> ? T : never;

/** Limit of every string (REMOTE_STRING_MAX), in bytes. Big enough for any XML, small enough to hold in memory. */
export const stringBytesMax = 4_194_304;

export const int: Shape<number> = {
  kind: "int",
  read: (reader) => reader.i32(),
  write: (writer, value) => writer.i32(value),
};

export const uint: Shape<number> = {
  kind: "unsigned int",
  read: (reader) => reader.u32(),
  write: (writer, value) => writer.u32(value),
};

/** A C `unsigned char` or `unsigned short`: four bytes on the wire, bounded by what the C type holds. */
export function smallUint(kind: "unsigned char" | "unsigned short"): Shape<number> {
  const max = kind === "unsigned char" ? 0xff : 0xffff;
  const check = (value: number, offset: number): number => {
    if (value > max) throw new XdrError("xdr.range", offset, `${value} does not fit an ${kind}`);
    return value;
  };
  return {
    kind,
    read: (reader) => check(reader.u32(), reader.offset - 4),
    write: (writer, value) => writer.u32(check(value, writer.offset)),
  };
}

/** libvirt writes yes and no as int 1 and 0. Anything else is refused: we would not know what it means. */
export const flag: Shape<boolean> = {
  kind: "int (yes or no)",
  read: (reader) => reader.bool(),
  write: (writer, value) => writer.bool(value),
};

export const uhyper: Shape<bigint> = {
  kind: "unsigned hyper",
  read: (reader) => reader.u64(),
  write: (writer, value) => writer.u64(value),
};

/** An unsigned hyper that is physically bounded below 2^53; refused beyond Number.MAX_SAFE_INTEGER. */
export const count: Shape<number> = {
  kind: "unsigned hyper (safe number)",
  read(reader) {
    const value = reader.u64();
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw new XdrError("xdr.range", reader.offset - 8, `${value} is beyond the safe integers`);
    }
    return Number(value);
  },
  write(writer, value) {
    if (!Number.isSafeInteger(value)) throw new XdrError("xdr.range", writer.offset, `${value} is no safe integer`);
    writer.u64(BigInt(value));
  },
};

export const string: Shape<string> = {
  kind: "string",
  read: (reader) => reader.string(stringBytesMax),
  write: (writer, value) => writer.string(value, stringBytesMax),
};

/** Text for people: read leniently (see XdrReader.message). */
export const message: Shape<string> = {
  kind: "string (message)",
  read: (reader) => reader.message(stringBytesMax),
  write: (writer, value) => writer.string(value, stringBytesMax),
};

export function opaque(bytesMax: number): Shape<Uint8Array> {
  return {
    kind: `opaque<${bytesMax}>`,
    read: (reader) => reader.opaque(bytesMax),
    write: (writer, value) => writer.opaque(value, bytesMax),
  };
}

/** XDR's `T *`: null is "not there", which for libvirt is not the same as empty. */
export function optional<T>(item: Shape<T>): Shape<T | null> {
  return {
    kind: "optional",
    item,
    read: (reader) => (reader.bool() ? item.read(reader) : null),
    write(writer, value) {
      writer.bool(value !== null);
      if (value !== null) item.write(writer, value);
    },
  };
}

/** `T<countMax>`. Items are read one by one, so a lying count costs nothing. */
export function array<T>(item: Shape<T>, countMax: number): Shape<readonly T[]> {
  return {
    kind: `array<${countMax}>`,
    item,
    read(reader) {
      const items: T[] = [];
      for (let left = reader.count(countMax); left > 0; left -= 1) items.push(item.read(reader));
      return items;
    },
    write(writer, value) {
      writer.count(value.length, countMax);
      for (const each of value) item.write(writer, each);
    },
  };
}

/**
 * A C `char` array, which libvirt sends as one int for each char: `fixed` always sends `charsMax` of them with NULs at
 * the end, otherwise a count goes in front, which includes the closing NUL. The text ends at the first NUL; only ASCII is expected (CPU and security
 * model names).
 */
export function chars(charsMax: number, fixed: boolean): Shape<string> {
  return {
    kind: fixed ? `char[${charsMax}]` : `char<${charsMax}>`,
    read(reader) {
      let text = "";
      let ended = false;
      for (let left = fixed ? charsMax : reader.count(charsMax); left > 0; left -= 1) {
        const code = reader.i32() & 0xff;
        if (code === 0) ended = true;
        if (!ended) text += String.fromCharCode(code);
      }
      return text;
    },
    write(writer, value) {
      if (value.length >= charsMax) {
        throw new XdrError("xdr.limit", writer.offset, `${value.length} chars and a NUL are over ${charsMax}`);
      }
      const written = fixed ? charsMax : value.length + 1;
      if (!fixed) writer.count(written, charsMax);
      for (let index = 0; index < written; index += 1) {
        const code = index < value.length ? value.charCodeAt(index) : 0;
        if (code > 0x7f) throw new XdrError("xdr.text", writer.offset, "only ASCII can be sent as char");
        writer.i32(code);
      }
    },
  };
}

/** A struct: its fields in the order written here, which is their order on the wire. */
export function struct<F extends Readonly<Record<string, Shape<unknown>>>>(
  fields: F,
): Shape<{ readonly [K in keyof F]: ValueOf<F[K]> }> {
  type Value = { readonly [K in keyof F]: ValueOf<F[K]> };
  const parts = Object.entries(fields);
  return {
    kind: "struct",
    parts,
    read(reader) {
      const value: Record<string, unknown> = {};
      for (const [name, shape] of parts) value[name] = shape.read(reader);
      // Built from exactly these fields by their own shapes; the compiler cannot follow the loop.
      return value as Value;
    },
    write(writer, value) {
      for (const [name, shape] of parts) shape.write(writer, value[name]);
    },
  };
}

/** No arguments, or a reply without a body. */
export const nothing: Shape<Readonly<Record<string, never>>> = {
  kind: "void",
  parts: [],
  read: () => ({}),
  write: () => {},
};

/** The whole payload as one value of `shape`. Throws XdrError, also for bytes left over. */
export function decodePayload<T>(shape: Shape<T>, payload: Uint8Array): T {
  const reader = new XdrReader(payload);
  const value = shape.read(reader);
  reader.end();
  return value;
}

/** `value` as a payload. Throws XdrError when it breaks a limit of the protocol. */
export function encodePayload<T>(shape: Shape<T>, value: T): Uint8Array {
  const writer = new XdrWriter();
  shape.write(writer, value);
  return writer.finish();
}
