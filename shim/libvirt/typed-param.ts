/**
 * Typed parameters (remote_typed_param): the named, typed values that migration calls take and job statistics give.
 * The same name may stand more than once (`migrate_disks`), so a list stays a list.
 *
 * 64-bit values are bigint here, always: job statistics hold 2^64-1 for "unknown", and a number would round it.
 */
import { flag, int, message, type Shape, stringBytesMax, uhyper, uint } from "./shape.ts";
import { XdrError } from "./xdr.ts";

export type TypedParam = { readonly field: string } & (
  | { readonly type: "int"; readonly value: number }
  | { readonly type: "uint"; readonly value: number }
  | { readonly type: "llong"; readonly value: bigint }
  | { readonly type: "ullong"; readonly value: bigint }
  | { readonly type: "double"; readonly value: number }
  | { readonly type: "boolean"; readonly value: boolean }
  | { readonly type: "string"; readonly value: string }
);

/** VIR_TYPED_PARAM_*: the discriminant of the union on the wire. */
const wireType = { int: 1, uint: 2, llong: 3, ullong: 4, double: 5, boolean: 6, string: 7 } as const;

export const typedParam: Shape<TypedParam> = {
  kind: "typed param",
  read(reader) {
    const field = reader.string(stringBytesMax);
    const type = reader.i32();
    switch (type) {
      case wireType.int:
        return { field, type: "int", value: int.read(reader) };
      case wireType.uint:
        return { field, type: "uint", value: uint.read(reader) };
      case wireType.llong:
        return { field, type: "llong", value: reader.i64() };
      case wireType.ullong:
        return { field, type: "ullong", value: uhyper.read(reader) };
      case wireType.double:
        return { field, type: "double", value: reader.double() };
      case wireType.boolean:
        return { field, type: "boolean", value: flag.read(reader) };
      case wireType.string:
        // Job statistics carry QEMU's own words in `errmsg`: read as text for people.
        return { field, type: "string", value: message.read(reader) };
      default:
        throw new XdrError("xdr.value", reader.offset - 4, `unknown type ${type} of typed parameter "${field}"`);
    }
  },
  write(writer, param) {
    writer.string(param.field, stringBytesMax);
    writer.i32(wireType[param.type]);
    switch (param.type) {
      case "int":
        return int.write(writer, param.value);
      case "uint":
        return uint.write(writer, param.value);
      case "llong":
        return writer.i64(param.value);
      case "ullong":
        return uhyper.write(writer, param.value);
      case "double":
        return writer.double(param.value);
      case "boolean":
        return flag.write(writer, param.value);
      case "string":
        return message.write(writer, param.value);
    }
  },
};

export function intParam(field: string, value: number): TypedParam {
  return { field, type: "int", value };
}

export function ullongParam(field: string, value: bigint | number): TypedParam {
  return { field, type: "ullong", value: BigInt(value) };
}

export function stringParam(field: string, value: string): TypedParam {
  return { field, type: "string", value };
}

/** The first numeric parameter of that name, of any width, as a number; undefined when absent or beyond 2^53. */
export function numberOf(params: readonly TypedParam[], field: string): number | undefined {
  const value = params.find((param) => param.field === field)?.value;
  if (typeof value === "number") return value;
  if (typeof value !== "bigint") return undefined;
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : undefined;
}

/** The first string parameter of that name. */
export function stringOf(params: readonly TypedParam[], field: string): string | undefined {
  const value = params.find((param) => param.field === field)?.value;
  return typeof value === "string" ? value : undefined;
}
