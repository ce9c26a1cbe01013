/**
 * What the shim says: single JSON lines, or short lines for people when stderr is a terminal. Never a secret, an XML, a
 * cookie or a presigned URL (I9): callers pass codes, ids and counts.
 */
export type LogLevel = "debug" | "info" | "warn" | "error";

export interface Log {
  write(level: LogLevel, message: string, fields?: Record<string, unknown>): void;
}

/** `human`: one short line; otherwise one JSON object a line. `debug` is written only when asked for. */
export function lineLog(options: {
  /** Takes one line without its newline. */
  write: (line: string) => void;
  now: () => string;
  human: boolean;
  debug: boolean;
}): Log {
  return {
    write(level, message, fields = {}) {
      if (level === "debug" && !options.debug) return;
      if (!options.human) {
        options.write(`${JSON.stringify({ at: options.now(), level, message, ...fields })}`);
        return;
      }
      const details = Object.entries(fields)
        .map(([key, value]) => ` ${key}=${typeof value === "string" ? value : JSON.stringify(value)}`)
        .join("");
      options.write(`${level === "info" ? "" : `${level}: `}${message}${details}`);
    },
  };
}
