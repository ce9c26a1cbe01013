/** How the Lambdas are bundled: one file each with everything inside, by the SDK's build for fetch, which Node's own fetch serves. */
import { join } from "node:path";
import type { BuildOptions, Plugin } from "esbuild";
import { sdkPlugins } from "./sdk-diet.ts";

/** The entries in functions/entry; each becomes dist/{name}.mjs with an export `handler`. */
export const lambdaNames = ["lambda-http", "lambda-socket", "lambda-timer"] as const;

/** What a cold function may have to read and compile; what brings a bundle over it has to be worth that. */
export const lambdaBytesMax = 400 * 1024;

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
