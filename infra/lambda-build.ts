/** How the Lambdas are bundled: one file each with everything inside, by the SDK's build for fetch, which Node's own fetch serves. */
import { join } from "node:path";
import type { BuildOptions, Plugin } from "esbuild";
import { sdkPlugins } from "./sdk-diet.ts";

/** The entries in functions/entry; each becomes dist/{name}.mjs with an export `handler`. */
export const lambdaNames = ["lambda-http", "lambda-socket", "lambda-timer"] as const;

/**
 * Raw bytes of each, so that a dependency that slips in is noticed: what it has now and a tenth. The aim was 400 KB for each; the planner, the rules and
 * their cron library took the API and the timer beyond it, the chronicle with its webhooks and counters once more.
 */
export const lambdaBytesMax: Record<(typeof lambdaNames)[number], number> = {
  "lambda-http": 670 * 1024,
  "lambda-socket": 400 * 1024,
  "lambda-timer": 525 * 1024,
};

/** A router that is ready with the first request, in place of one that compiles all routes first: a cold function is asked once. */
const quickRouter: Plugin = {
  name: "hono-quick",
  setup(build) {
    build.onResolve({ filter: /^hono$/ }, ({ importer, resolveDir }) =>
      build.resolve("hono/quick", { importer, resolveDir, kind: "import-statement" }),
    );
  },
};

/** `root` is the repository. */
export const lambdaBuild = (root: string): BuildOptions => ({
  absWorkingDir: root,
  entryPoints: Object.fromEntries(lambdaNames.map((name) => [name, join(root, "functions/entry", `${name}.ts`)])),
  bundle: true,
  minify: true,
  platform: "browser",
  mainFields: ["browser", "module", "main"],
  conditions: ["browser"],
  format: "esm",
  target: "node24",
  outExtension: { ".js": ".mjs" },
  external: ["node:*"],
  plugins: [...sdkPlugins, quickRouter],
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
});
