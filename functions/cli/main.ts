#!/usr/bin/env node
import { version } from "../version.ts";
/** The `vmferry` program: streams, signals and the exit code around `runCli`. */
import { runCli } from "./cli.ts";
import { paceDefault } from "./command.ts";
import { exitCodes } from "./exit-code.ts";
import { streamTerminal } from "./terminal.ts";

const stop = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const)
  process.on(name, () => {
    // The second one means now.
    if (stop.signal.aborted) process.exit(exitCodes.interrupted);
    stop.abort();
  });
// `vmferry ... | head` is no failure.
process.stdout.on("error", (error: Error & { code?: string }) => {
  if (error.code === "EPIPE") process.exit(exitCodes.ok);
  throw error;
});

/** One line of stdin; empty when it ends or Ctrl-C comes first. */
async function readLine(): Promise<string> {
  const { createInterface } = await import("node:readline");
  const reader = createInterface({ input: process.stdin, signal: stop.signal });
  try {
    return await new Promise<string>((resolve) => {
      reader.once("line", resolve);
      reader.once("close", () => resolve(""));
    });
  } finally {
    reader.close();
  }
}

process.exitCode = await runCli(process.argv.slice(2), {
  terminal: streamTerminal(process.stdout, process.stderr, process.stdin.isTTY ? readLine : undefined),
  env: process.env,
  signal: stop.signal,
  pace: paceDefault,
  version,
});
