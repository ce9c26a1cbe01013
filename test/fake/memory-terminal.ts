/** Runs a command line in this process and keeps what it wrote. */
import assert from "node:assert/strict";
import { type CliContext, runCli } from "#functions/cli/cli";
import { type Pace, paceDefault } from "#functions/cli/command";
import { streamTerminal } from "#functions/cli/terminal";

export interface Ran {
  exit: number;
  out: string;
  err: string;
}

export interface RunOptions {
  env?: Record<string, string | undefined>;
  pace?: Partial<Pace>;
  isTty?: boolean;
  signal?: AbortSignal;
  /** What a person types at each question. */
  typed?: readonly string[];
  /** Called with everything on stdout so far, each time something is written there. */
  onOut?: (out: string) => void;
  /** Called with everything on stderr so far, each time something is written there. */
  onErr?: (err: string) => void;
}

export async function run(argv: readonly string[], options: RunOptions = {}): Promise<Ran> {
  const typed = options.typed === undefined ? undefined : [...options.typed];
  const ran: Ran = { exit: -1, out: "", err: "" };
  const context: CliContext = {
    terminal: streamTerminal(
      {
        write: (text) => {
          ran.out += text;
          options.onOut?.(ran.out);
        },
      },
      {
        write: (text) => {
          ran.err += text;
          options.onErr?.(ran.err);
        },
        isTTY: options.isTty === true,
        columns: 100,
      },
      typed === undefined ? undefined : async () => typed.shift() ?? "",
    ),
    env: options.env ?? {},
    signal: options.signal ?? new AbortController().signal,
    pace: { ...paceDefault, retryMs: 2, retryMsMax: 5, pollMs: 2, ...options.pace },
    version: "0.0.0",
  };
  ran.exit = await runCli(argv, context);
  return ran;
}

/** How it exited, and that what it wrote, on stdout or stderr, matches each of these. */
export function says(ran: Ran, exit: number, ...patterns: RegExp[]): void {
  const all = `${ran.out}---\n${ran.err}`;
  assert.equal(ran.exit, exit, all);
  for (const pattern of patterns) assert.match(all, pattern);
}
