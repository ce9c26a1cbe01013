/**
 * A command as data: words, usage, options; its code is loaded only when it runs, so that `vmferry --help` and short
 * commands start fast. Options are parsed strictly: what is not known is a usage error of that command.
 */
import { type ParseArgsConfig, parseArgs } from "node:util";
import { CliError } from "./cli-error.ts";
import type { ApiClient } from "./client.ts";
import { exitCodes } from "./exit-code.ts";
import type { Terminal } from "./terminal.ts";

export interface OptionSpec {
  /** What stands for the value in the usage; absent: a flag. */
  value?: string;
  summary: string;
  short?: string;
  /** May be given more than once. */
  multiple?: boolean;
}

export interface CommandSpec {
  words: readonly string[];
  /** Names of positional arguments, all required. */
  positionals: readonly string[];
  /** One more, which may be left out. */
  optional?: string;
  options: Readonly<Record<string, OptionSpec>>;
  summary: string;
  load(): Promise<Run>;
}

/** How patient a command is; tests are less so. */
export interface Pace {
  /** First wait before the control plane is asked again; doubles up to `retryMsMax`. */
  retryMs: number;
  retryMsMax: number;
  /** A stream that says nothing for this long is taken for broken (the server speaks every 5 s). */
  silenceMsMax: number;
  /** Not reached for this long: sight of the migration is lost. */
  lostSightMs: number;
  /** Between two looks at a bundle task. */
  pollMs: number;
  /** The outcome of a cancel is waited for this long: the way back of a large tree takes a minute. */
  verdictMsMax: number;
}
export const paceDefault: Pace = {
  retryMs: 500,
  retryMsMax: 10_000,
  silenceMsMax: 30_000,
  lostSightMs: 10 * 60_000,
  pollMs: 500,
  verdictMsMax: 5 * 60_000,
};

export interface CommandContext {
  terminal: Terminal;
  env: Readonly<Record<string, string | undefined>>;
  /** Aborted by Ctrl-C and SIGTERM. */
  signal: AbortSignal;
  pace: Pace;
  version: string;
  /** The API, with address and token from the environment or the configuration file. */
  connect(): Promise<ApiClient>;
}

export type Run = (context: CommandContext, invocation: Invocation) => Promise<number>;

export const usageError = (cause: string, words: readonly string[]) =>
  new CliError({
    code: "usage",
    cause,
    action: `vmferry ${[...words, "--help"].join(" ")}`,
    exit: exitCodes.usage,
  });

/** What was typed, parsed. */
export class Invocation {
  readonly words: readonly string[];
  readonly #values: Readonly<Record<string, unknown>>;
  readonly #positionals: readonly string[];
  readonly #names: readonly string[];

  constructor(spec: CommandSpec, values: Readonly<Record<string, unknown>>, positionals: readonly string[]) {
    this.words = spec.words;
    this.#values = values;
    this.#positionals = positionals;
    this.#names = spec.positionals;
  }

  /** The one that may be left out. */
  optional(): string | undefined {
    return this.#positionals[this.#names.length];
  }

  positional(name: string): string {
    const value = this.#positionals[this.#names.indexOf(name)];
    if (value === undefined) throw usageError(`${name} is missing.`, this.words);
    return value;
  }

  flag(name: string): boolean {
    return this.#values[name] === true;
  }

  text(name: string): string | undefined {
    const value = this.#values[name];
    return typeof value === "string" ? value : undefined;
  }

  required(name: string): string {
    const value = this.text(name);
    if (value === undefined) throw usageError(`--${name} is missing.`, this.words);
    return value;
  }

  /** Every value of a repeatable option. */
  texts(name: string): string[] {
    const value = this.#values[name];
    return Array.isArray(value) ? value.filter((item) => typeof item === "string") : [];
  }

  /** A whole number from 1. */
  count(name: string): number | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    const value = Number(text);
    if (!Number.isSafeInteger(value) || value < 1)
      throw usageError(`--${name} takes a whole number from 1, not ${text}.`, this.words);
    return value;
  }

  /** A duration such as 30s, 90m, 24h, 7d, in ms. */
  durationMs(name: string): number | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    const [, digits, unit] = /^([1-9][0-9]{0,8})(s|m|h|d)$/.exec(text) ?? [];
    const unitMs = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };
    if (digits === undefined || (unit !== "s" && unit !== "m" && unit !== "h" && unit !== "d"))
      throw usageError(`--${name} takes a duration such as 30s, 90m, 24h or 7d, not ${text}.`, this.words);
    return Number(digits) * unitMs[unit];
  }
}

/** Parses what follows a command's words. Throws `usage`. */
export function parseInvocation(spec: CommandSpec, argv: readonly string[]): Invocation | "help" {
  const options: NonNullable<ParseArgsConfig["options"]> = { help: { type: "boolean", short: "h" } };
  for (const [name, { value, short, multiple }] of Object.entries(spec.options))
    options[name] = {
      type: value === undefined ? "boolean" : "string",
      ...(short === undefined ? {} : { short }),
      ...(multiple === true ? { multiple } : {}),
    };
  let parsed: { values: Record<string, unknown>; positionals: string[] };
  try {
    parsed = parseArgs({ args: [...argv], options, allowPositionals: true, strict: true });
  } catch (error) {
    const text = error instanceof Error ? error.message : "these arguments are not understood";
    throw usageError(`${text.split(". ")[0]}.`, spec.words);
  }
  if (parsed.values.help === true) return "help";
  const { length } = parsed.positionals;
  if (length < spec.positionals.length) throw usageError(`${spec.positionals[length]} is missing.`, spec.words);
  const most = spec.positionals.length + (spec.optional === undefined ? 0 : 1);
  if (length > most) throw usageError(`"${parsed.positionals[most]}" is one argument too many.`, spec.words);
  return new Invocation(spec, parsed.values, parsed.positionals);
}

/** The usage of one command. */
export function usageLines(spec: CommandSpec): string[] {
  const entries = Object.entries(spec.options);
  const optionText = ([name, { value, short }]: [string, OptionSpec]) =>
    `${short === undefined ? "" : `-${short}, `}--${name}${value === undefined ? "" : ` ${value}`}`;
  const width = Math.max(0, ...entries.map((entry) => optionText(entry).length));
  return [
    `usage: vmferry ${[...spec.words, ...spec.positionals, ...(spec.optional === undefined ? [] : [`[${spec.optional}]`])].join(" ")}${entries.length > 0 ? " [OPTIONS]" : ""}`,
    `  ${spec.summary}`,
    ...entries.map((entry) => `  ${optionText(entry).padEnd(width)}  ${entry[1].summary}`),
  ];
}
