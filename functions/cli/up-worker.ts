/** The Worker's bundle: built in memory from a checkout, read from beside us when we are a bundle ourselves. */
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { BuildOptions } from "esbuild";
import { sdkPlugins } from "../../infra/sdk-diet.ts";

/** How the Worker must be bundled; the platform and the conditions are those that the SDK works with in workerd. */
export const workerBuild = (root: string): BuildOptions => ({
  entryPoints: [join(root, "functions/entry/worker.ts")],
  absWorkingDir: root,
  bundle: true,
  platform: "browser",
  mainFields: ["browser", "module", "main"],
  conditions: ["workerd", "worker", "browser"],
  format: "esm",
  target: "es2024",
  external: ["cloudflare:*", "node:*"],
  plugins: sdkPlugins,
  logLevel: "warning",
});

/** The text of the Worker's module. */
export async function workerScript(): Promise<string> {
  const self = fileURLToPath(import.meta.url);
  if (!self.endsWith(".ts")) return readFile(join(dirname(self), "worker.mjs"), "utf8");
  const { build } = await import("esbuild");
  const result = await build({ ...workerBuild(join(dirname(self), "../..")), write: false });
  const script = result.outputFiles?.[0]?.text;
  if (script === undefined) throw new Error("the Worker was bundled to nothing");
  return script;
}

/** Where the workerd binary is that belongs to our miniflare. */
export function workerdPath(): string {
  const require = createRequire(createRequire(import.meta.url).resolve("miniflare"));
  const found: unknown = require("workerd");
  const path = typeof found === "object" && found !== null && "default" in found ? found.default : found;
  if (typeof path !== "string") throw new Error("the package workerd names no binary");
  return path;
}
