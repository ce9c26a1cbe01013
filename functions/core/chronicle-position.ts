/** Where a moment stands in the chronicle, whose positions are ULIDs: their first ten characters are milliseconds in Crockford's base 32. */
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const timeChars = 10;

/** Of a ULID. */
export const positionPattern = /^[0-9A-HJKMNP-TV-Z]{26}$/;

/** Lies before everything that was written down in this millisecond or later, and after all that was written before. */
export function positionAt(atMs: number): string {
  let text = "";
  for (let left = Math.max(0, Math.floor(atMs)), digit = 0; digit < timeChars; digit += 1, left = Math.floor(left / 32))
    text = `${alphabet[left % 32]}${text}`;
  return text;
}

/** When something was written down, in Unix time (ms). */
export function positionMs(at: string): number {
  let ms = 0;
  for (const char of at.slice(0, timeChars)) ms = ms * 32 + Math.max(0, alphabet.indexOf(char));
  return ms;
}
