#!/usr/bin/env node
/** The `vmferry` program: streams, signals and the exit code around `runCli`. */
import { runCli } from "./cli.ts";
import { paceDefault } from "./command.ts";
import { exitCodes } from "./exit-code.ts";
import { streamTerminal } from "./terminal.ts";
import { version } from "./version.ts";

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

process.exitCode = await runCli(process.argv.slice(2), {
  terminal: streamTerminal(process.stdout, process.stderr),
  env: process.env,
  signal: stop.signal,
  pace: paceDefault,
  version,
});
