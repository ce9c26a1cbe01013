/** Reads the heads of websocket frames out of a client's bytes as they come (RFC 6455, 5.2): libraries tell of messages only. */
export class FrameSizes {
  /** Bytes of a head that is not complete yet. */
  #head: number[] = [];
  /** Bytes of the frame that are still to come. */
  #left = 0;

  /** The payload of the largest frame whose head was completed by these bytes; 0: none was. */
  read(chunk: Uint8Array): number {
    let largest = 0;
    for (let at = 0; at < chunk.byteLength; ) {
      if (this.#left > 0) {
        const skipped = Math.min(this.#left, chunk.byteLength - at);
        this.#left -= skipped;
        at += skipped;
        continue;
      }
      this.#head.push(chunk[at] ?? 0);
      at += 1;
      const size = sizeOf(this.#head);
      if (size === null) continue;
      largest = Math.max(largest, size);
      this.#left = size;
      this.#head = [];
    }
    return largest;
  }
}

/** Null while the head is incomplete: two bytes, the longer lengths' two or eight, the mask's four. */
function sizeOf(head: readonly number[]): number | null {
  const [, second] = head;
  if (second === undefined) return null;
  const short = second & 0x7f;
  const lengthBytes = short === 127 ? 8 : short === 126 ? 2 : 0;
  const maskBytes = (second & 0x80) === 0 ? 0 : 4;
  if (head.length < 2 + lengthBytes + maskBytes) return null;
  if (lengthBytes === 0) return short;
  return head.slice(2, 2 + lengthBytes).reduce((length, byte) => length * 256 + byte, 0);
}
