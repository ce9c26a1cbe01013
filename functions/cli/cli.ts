/** The command line as a function: words -> exit code. Every way out says its code, cause and next action on stderr. */
import { CliError } from "./cli-error.ts";
import { type CommandContext, type CommandSpec, parseInvocation, usageError, usageLines } from "./command.ts";
import { commands } from "./command-table.ts";
import { exitCodes } from "./exit-code.ts";

export type CliContext = Omit<CommandContext, "connect">;

/** Runs one command line. Never rejects. */
export async function runCli(argv: readonly string[], context: CliContext): Promise<number> {
  const { terminal, signal } = context;
  try {
    return await dispatch(argv, context);
  } catch (error) {
    terminal.status(null);
    if (error instanceof CliError) for (const line of error.lines()) terminal.err(line);
    else if (signal.aborted) return exitCodes.interrupted;
    else {
      const fault = await faultLines(error);
      for (const line of fault.lines) terminal.err(line);
      return fault.exit;
    }
    return error.exit;
  }
}

async function dispatch(argv: readonly string[], context: CliContext): Promise<number> {
  const { terminal } = context;
  const [first] = argv;
  if (first === "--version" || first === "-V") {
    terminal.out(context.version);
    return exitCodes.ok;
  }
  if (first === undefined || first === "--help" || first === "-h" || first === "help") {
    const print = first === undefined ? terminal.err : terminal.out;
    for (const line of overview()) print(line);
    return first === undefined ? exitCodes.usage : exitCodes.ok;
  }
  const spec = find(argv);
  if (spec === null) {
    const group = commands.filter(({ words }) => words[0] === first);
    if (group.length > 0 && (argv.length === 1 || argv[1] === "--help" || argv[1] === "-h")) {
      const print = argv.length === 1 ? terminal.err : terminal.out;
      for (const line of group.flatMap(usageLines)) print(line);
      return argv.length === 1 ? exitCodes.usage : exitCodes.ok;
    }
    throw usageError(`There is no command "${group.length > 0 ? argv.slice(0, 2).join(" ") : first}".`, []);
  }
  let invocation: ReturnType<typeof parseInvocation>;
  try {
    invocation = parseInvocation(spec, argv.slice(spec.words.length));
  } catch (error) {
    for (const line of usageLines(spec)) terminal.err(line);
    throw error;
  }
  if (invocation === "help") {
    for (const line of usageLines(spec)) terminal.out(line);
    return exitCodes.ok;
  }
  const run = await spec.load();
  return run({ ...context, connect: () => connect(context) }, invocation);
}

const find = (argv: readonly string[]): CommandSpec | null =>
  commands.find(({ words }) => words.every((word, index) => argv[index] === word)) ?? null;

async function connect(context: CliContext) {
  const [{ loadConfig }, { ApiClient }] = await Promise.all([import("./config.ts"), import("./client.ts")]);
  return new ApiClient(await loadConfig(context.env), context.signal);
}

function overview(): string[] {
  const texts = commands.map(({ words, positionals, summary }) => [[...words, ...positionals].join(" "), summary]);
  const width = Math.max(...texts.map(([text = ""]) => text.length));
  return [
    "usage: vmferry COMMAND ...",
    ...texts.map(([text = "", summary = ""]) => `  ${text.padEnd(width)}  ${summary}`),
    "`vmferry COMMAND --help` says more. VMFERRY_URL and VMFERRY_TOKEN name the control plane, or the file that `vmferry up` wrote.",
  ];
}

/** A fault of a local part (shim, bundle reader), or a defect. */
async function faultLines(error: unknown): Promise<{ lines: string[]; exit: number }> {
  const [{ Fault }, { exitOf }] = await Promise.all([import("#protocol/fault"), import("./exit-code.ts")]);
  if (error instanceof Fault) {
    const { code, cause, action } = error.toBody();
    return { lines: [`vmferry: ${code}: ${cause}`, `  next: ${action}`], exit: exitOf(code) };
  }
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return {
    lines: [
      ...`vmferry: internal: ${text}`.split("\n"),
      "  next: This is a defect of vmferry; report it with these lines.",
    ],
    exit: exitCodes.internal,
  };
}
