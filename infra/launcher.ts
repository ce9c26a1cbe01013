#!/usr/bin/env node
/**
 * The installed `vmferry`: makes sure that a Node that is new enough runs the program. A machine with an older one has
 * Node 24 in node_modules (npm's platform packages); without it the refusal says what to install. Nothing is imported
 * before the version is known, since a newer syntax would fail with less to say.
 */
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);

/** 22.12: what miniflare asks for. */
if (major > 22 || (major === 22 && minor >= 12)) await import("../functions/cli/main.ts");
else process.exitCode = elsewhere();

/** Runs the same command line under the Node that npm brought along; returns its exit code. */
function elsewhere(): number {
  let node: string;
  try {
    node = createRequire(import.meta.url).resolve(`node-${process.platform}-${process.arch}/bin/node`);
  } catch {
    console.error(`vmferry: node.old: Node ${process.versions.node} runs this; 22.12 or newer is needed.`);
    console.error("  next: install Node 24, or install vmferry with its optional dependencies.");
    return 69;
  }
  // Ctrl-C reaches the child as well: both are in the terminal's foreground group; we only wait for its end.
  for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, () => {});
  const { status, signal } = spawnSync(node, [fileURLToPath(import.meta.url), ...process.argv.slice(2)], {
    stdio: "inherit",
  });
  return status ?? (signal === null ? 70 : 130);
}
