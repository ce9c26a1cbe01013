/**
 * XDR primitives (RFC 4506) as libvirt uses them: big-endian, everything padded to four bytes.
 *
 * The other side is a daemon with root's power, but a broken or hostile one must not be able to make us allocate
 * without bound or to slip a second meaning past us. So: every length is checked against the protocol's limit and
 * against the bytes that are really there *before* anything is allocated, padding must be zero, and a payload must end
 * where its shape ends.
 *
 * 64-bit policy: `u64`/`i64` are bigint; where a value is physically bounded far below 2^53 (versions, memory sizes,
 * bandwidths) `shape.ts` offers `count`, a number, which refuses anything beyond Number.MAX_SAFE_INTEGER.
 */

/** What was wrong; stable, for logs and tests. */
export type XdrCode =
  | "xdr.truncated"
  | "xdr.limit"
  | "xdr.padding"
  | "xdr.trailing"
  | "xdr.value"
  | "xdr.range"
  | "xdr.text";

/** A payload that is not what its shape says, or a value that cannot be put on the wire. */
export class XdrError extends Error {
  override readonly name = "XdrError";
  readonly code: XdrCode;
  /** Byte offset in the payload where it was noticed. */
  readonly offset: number;

  constructor(code: XdrCode, offset: number, detail: string) {
    super(`${code} at byte ${offset}: ${detail}`);
    this.code = code;
    this.offset = offset;
  }
}

/** Payload bytes one libvirt message can hold: VIR_NET_MESSAGE_PAYLOAD_MAX (32 MiB less the 24-byte header). */
export const payloadBytesMax = 33_554_408;

const u32Max = 0xffff_ffff;
const i32Min = -0x8000_0000;
const i32Max = 0x7fff_ffff;
const u64Max = 0xffff_ffff_ffff_ffffn;
const i64Min = -0x8000_0000_0000_0000n;
const i64Max = 0x7fff_ffff_ffff_ffffn;

const strictText = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const lenientText = new TextDecoder("utf-8", { fatal: false, ignoreBOM: true });
const textEncoder = new TextEncoder();

function paddingAfter(byteCount: number): number {
  return (4 - (byteCount % 4)) % 4;
}

/** Reads one payload from front to back. Never reads outside it, never allocates more than it holds. */
export class XdrReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #offset = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** Bytes consumed so far. */
  get offset(): number {
    return this.#offset;
  }

  #take(byteCount: number, what: string): number {
    const start = this.#offset;
    const left = this.#bytes.byteLength - start;
    if (byteCount > left) {
      throw new XdrError("xdr.truncated", start, `${what} needs ${byteCount} bytes, ${left} are left`);
    }
    this.#offset = start + byteCount;
    return start;
  }

  u32(): number {
    return this.#view.getUint32(this.#take(4, "an unsigned int"));
  }

  i32(): number {
    return this.#view.getInt32(this.#take(4, "an int"));
  }

  u64(): bigint {
    return this.#view.getBigUint64(this.#take(8, "an unsigned hyper"));
  }

  i64(): bigint {
    return this.#view.getBigInt64(this.#take(8, "a hyper"));
  }

  double(): number {
    return this.#view.getFloat64(this.#take(8, "a double"));
  }

  /** XDR bool: 0 or 1, nothing else (also used for the flag in front of a pointer). */
  bool(): boolean {
    const start = this.#offset;
    const value = this.u32();
    if (value > 1) throw new XdrError("xdr.value", start, `a bool is 0 or 1, not ${value}`);
    return value === 1;
  }

  /** Exactly `byteCount` bytes plus padding. The result is a copy: it outlives the socket's chunk. */
  fixedOpaque(byteCount: number): Uint8Array {
    const start = this.#take(byteCount, "an opaque");
    this.#padding(byteCount);
    // Not slice(): on a Buffer that is a view, and would keep a whole chunk alive for a 16-byte UUID.
    return new Uint8Array(this.#bytes.subarray(start, start + byteCount));
  }

  /** Counted bytes, at most `byteCountMax`. A copy. */
  opaque(byteCountMax: number): Uint8Array {
    return this.fixedOpaque(this.#count(byteCountMax, "opaque"));
  }

  /** Counted UTF-8 text, at most `byteCountMax` bytes. Bytes that are no UTF-8 are refused, so it re-encodes equal. */
  string(byteCountMax: number): string {
    const start = this.#offset;
    const bytes = this.#textBytes(byteCountMax);
    try {
      return strictText.decode(bytes);
    } catch {
      throw new XdrError("xdr.text", start, "the string is not UTF-8");
    }
  }

  /**
   * Text for people (error messages, which quote the output of QEMU and hooks): bytes that are no UTF-8 become U+FFFD,
   * because losing the whole error would be worse than losing one character.
   */
  message(byteCountMax: number): string {
    return lenientText.decode(this.#textBytes(byteCountMax));
  }

  /** Number of items of an array, at most `countMax`. Items are then read one by one; nothing is allocated ahead. */
  count(countMax: number): number {
    return this.#count(countMax, "array");
  }

  /** Call when the shape has been read: a payload with bytes left over is not the message we think it is. */
  end(): void {
    const left = this.#bytes.byteLength - this.#offset;
    if (left > 0) throw new XdrError("xdr.trailing", this.#offset, `${left} bytes follow the end of the message`);
  }

  #count(countMax: number, what: string): number {
    const start = this.#offset;
    const count = this.u32();
    if (count > countMax) {
      throw new XdrError("xdr.limit", start, `${what} of ${count} is over the protocol's limit of ${countMax}`);
    }
    return count;
  }

  #textBytes(byteCountMax: number): Uint8Array {
    const byteCount = this.#count(byteCountMax, "string");
    const start = this.#take(byteCount, "a string");
    this.#padding(byteCount);
    const bytes = this.#bytes.subarray(start, start + byteCount);
    // A C string ends at its first NUL: one inside would mean something else to libvirt than to us.
    if (bytes.includes(0)) throw new XdrError("xdr.text", start, "the string contains a NUL");
    return bytes;
  }

  #padding(byteCount: number): void {
    const padding = paddingAfter(byteCount);
    const start = this.#take(padding, "padding");
    for (let index = start; index < start + padding; index += 1) {
      if (this.#bytes[index] !== 0) throw new XdrError("xdr.padding", index, "padding is not zero");
    }
  }
}

/** Writes one payload. Grows by doubling, so writing n bytes copies O(n); refuses to grow past the message limit. */
export class XdrWriter {
  #bytes = new Uint8Array(256);
  #view = new DataView(this.#bytes.buffer);
  #offset = 0;

  get offset(): number {
    return this.#offset;
  }

  /** The payload written so far (a view: do not write on after taking it). */
  finish(): Uint8Array {
    return this.#bytes.subarray(0, this.#offset);
  }

  /** Makes room. It may replace #bytes and #view, so neither may be looked up before it returns. */
  #reserve(byteCount: number): number {
    const start = this.#offset;
    const end = start + byteCount;
    if (end > payloadBytesMax) {
      throw new XdrError("xdr.limit", start, `a message holds at most ${payloadBytesMax} bytes`);
    }
    if (end > this.#bytes.byteLength) {
      const grown = new Uint8Array(Math.min(Math.max(this.#bytes.byteLength * 2, end), payloadBytesMax));
      grown.set(this.#bytes.subarray(0, start));
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    this.#offset = end;
    return start;
  }

  #integer(value: number, min: number, max: number): void {
    if (!Number.isInteger(value) || value < min || value > max) {
      throw new XdrError("xdr.range", this.#offset, `${value} is not an integer from ${min} to ${max}`);
    }
  }

  u32(value: number): void {
    this.#integer(value, 0, u32Max);
    const start = this.#reserve(4);
    this.#view.setUint32(start, value);
  }

  i32(value: number): void {
    this.#integer(value, i32Min, i32Max);
    const start = this.#reserve(4);
    this.#view.setInt32(start, value);
  }

  u64(value: bigint): void {
    if (value < 0n || value > u64Max) {
      throw new XdrError("xdr.range", this.#offset, `${value} is not an unsigned 64-bit integer`);
    }
    const start = this.#reserve(8);
    this.#view.setBigUint64(start, value);
  }

  i64(value: bigint): void {
    if (value < i64Min || value > i64Max) {
      throw new XdrError("xdr.range", this.#offset, `${value} is not a signed 64-bit integer`);
    }
    const start = this.#reserve(8);
    this.#view.setBigInt64(start, value);
  }

  double(value: number): void {
    const start = this.#reserve(8);
    this.#view.setFloat64(start, value);
  }

  bool(value: boolean): void {
    this.u32(value ? 1 : 0);
  }

  /** Exactly `byteCount` bytes plus padding. */
  fixedOpaque(bytes: Uint8Array, byteCount: number): void {
    if (bytes.byteLength !== byteCount) {
      throw new XdrError("xdr.range", this.#offset, `${bytes.byteLength} bytes given where ${byteCount} belong`);
    }
    const padding = paddingAfter(byteCount);
    const start = this.#reserve(byteCount + padding);
    this.#bytes.set(bytes, start);
    this.#bytes.fill(0, start + byteCount, start + byteCount + padding);
  }

  opaque(bytes: Uint8Array, byteCountMax: number): void {
    this.count(bytes.byteLength, byteCountMax, "opaque");
    this.fixedOpaque(bytes, bytes.byteLength);
  }

  string(value: string, byteCountMax: number): void {
    if (!value.isWellFormed()) throw new XdrError("xdr.text", this.#offset, "the string has a lone surrogate");
    if (value.includes("\0")) throw new XdrError("xdr.text", this.#offset, "the string contains a NUL");
    // UTF-8 needs at least one byte for each UTF-16 unit: a hopeless string is refused before it is encoded.
    if (value.length > byteCountMax) this.count(value.length, byteCountMax, "string");
    this.opaque(textEncoder.encode(value), byteCountMax);
  }

  count(count: number, countMax: number, what = "array"): void {
    if (count > countMax) {
      throw new XdrError("xdr.limit", this.#offset, `${what} of ${count} is over the protocol's limit of ${countMax}`);
    }
    this.u32(count);
  }
}
