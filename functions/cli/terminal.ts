/**
 * Where a command writes. Names and texts come from hosts, so control characters are replaced before they reach a
 * terminal: a domain's name cannot move the cursor or set a title.
 */
export interface Terminal {
  /** Results. */
  out(line: string): void;
  /** Progress and refusals. */
  err(line: string): void;
  /** A JSON document on stdout. */
  json(value: unknown): void;
  /** A line on stderr that the next one replaces; nothing where stderr is no terminal. */
  status(line: string | null): void;
  /** A line that a person types; null where nobody sits: stdin or stderr is no terminal. */
  question(prompt: string): Promise<string | null>;
  /** Whether stderr is a terminal. */
  readonly isTty: boolean;
  /** Width of stderr in characters. */
  readonly columns: number;
}

/** Replaces what a terminal would obey: C0, DEL, C1 and the bidirectional overrides. */
export const printable = (text: string): string => text.replaceAll(/[\p{Cc}\u202a-\u202e\u2066-\u2069]/gu, "\ufffd");

const columnsDefault = 80;

/** Sizes as people read them: binary units, one decimal below ten. */
export function sizeText(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 10 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** Durations as people read them, from ms. */
export function durationText(ms: number): string {
  if (ms < 1) return `${ms.toFixed(1)} ms`;
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes} min ${Math.round((ms % 60_000) / 1_000)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A terminal over two streams; `readLine` reads what a person types, and is absent where nobody does. */
export function streamTerminal(
  stdout: { write(text: string): unknown },
  stderr: { write(text: string): unknown; isTTY?: boolean; columns?: number },
  readLine?: () => Promise<string>,
): Terminal {
  let standing = false;
  const isTty = stderr.isTTY === true;
  const clear = () => {
    if (standing) stderr.write("\r\u001b[2K");
    standing = false;
  };
  return {
    isTty,
    get columns() {
      return stderr.columns ?? columnsDefault;
    },
    out(line) {
      clear();
      stdout.write(`${line.split("\n").map(printable).join("\n")}\n`);
    },
    err(line) {
      clear();
      stderr.write(`${line.split("\n").map(printable).join("\n")}\n`);
    },
    async question(prompt) {
      if (!isTty || readLine === undefined) return null;
      clear();
      stderr.write(`${printable(prompt)} `);
      return (await readLine()).trim();
    },
    json(value) {
      clear();
      stdout.write(`${JSON.stringify(value, null, 2)}\n`);
    },
    status(line) {
      if (!isTty) return;
      clear();
      if (line === null) return;
      stderr.write(printable(line).slice(0, Math.max(1, (stderr.columns ?? columnsDefault) - 1)));
      standing = true;
    },
  };
}
