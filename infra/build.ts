/**
 * `npm run build`: everything that is shipped, as data. The command line in pieces so that short commands load little, the
 * Worker as one module, each Lambda as one file, the shim as one file that needs nothing beside Node.
 */
import { existsSync } from "node:fs";
import { chmod, rm, stat } from "node:fs/promises";
import { isBuiltin } from "node:module";
import { join } from "node:path";
import { type BuildOptions, build, type Plugin } from "esbuild";
import { workerBuild } from "../functions/cli/up-worker.ts";
import { contentsOf, contentsText, weigh } from "./bundle-contents.ts";
import { lambdaBuild, lambdaNames } from "./lambda-build.ts";

const root = join(import.meta.dirname, "..");
const dist = join(root, "dist");

/** CommonJS inside an ES module asks for `require`; Node gives one on request. */
const requireBanner =
  'import { createRequire as makeRequire } from "node:module"; const require = makeRequire(import.meta.url);';

const forNode = {
  absWorkingDir: root,
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node22",
  mainFields: ["module", "main"],
  outExtension: { ".js": ".mjs" },
  banner: { js: requireBanner },
  logLevel: "warning",
} satisfies BuildOptions;

/**
 * Takes Node's own modules as objects instead of by `import`. An import reads every export, lazy ones included: node:http
 * holds WebSocket, which loads all of Node's fetch, 12 MiB in each idle shim.
 */
const builtinsAsObjects: Plugin = {
  name: "builtins-as-objects",
  setup(build) {
    const namespace = "builtin";
    build.onResolve({ filter: /./ }, ({ path }) => {
      const id = path.replace(/^node:/, "");
      return isBuiltin(path) && id !== "module" ? { path: id, namespace } : undefined;
    });
    build.onLoad({ filter: /./, namespace }, ({ path }) => ({
      contents: `module.exports = process.getBuiltinModule(${JSON.stringify(`node:${path}`)});`,
      loader: "js",
    }));
  },
};

/** Not written yet: what needs it is left out, and says so. */
const shimMain = join(root, "shim/main.ts");
const missing = existsSync(shimMain) ? [] : ["#shim/main"];

interface Target {
  name: string;
  /** Its main file in dist. */
  file: string;
  options: BuildOptions;
}

const targets: Target[] = [
  {
    name: "command line",
    file: "vmferry.mjs",
    options: {
      ...forNode,
      entryPoints: { vmferry: join(root, "infra/launcher.ts") },
      outdir: dist,
      // Beside the launcher, where up-worker.ts looks for worker.mjs.
      splitting: true,
      chunkNames: "[name]-[hash]",
      // They bring binaries or files of their own; they stay what npm installed.
      external: ["miniflare", "dynalite", "esbuild", "workerd", "@aws-sdk/*", ...missing],
    },
  },
  {
    name: "Worker",
    file: "worker.mjs",
    options: { ...workerBuild(root), minify: true, outfile: join(dist, "worker.mjs") },
  },
  {
    name: "shim",
    file: "shim.mjs",
    options: {
      ...forNode,
      entryPoints: { shim: shimMain },
      outdir: dist,
      minify: true,
      plugins: [builtinsAsObjects],
      // ws asks for these two only if they are installed; it has the same in JavaScript.
      external: ["bufferutil", "utf-8-validate"],
    },
  },
];

const kib = (bytes: number) => (bytes / 1024).toFixed(0);

await rm(dist, { recursive: true, force: true });
for (const { name, file, options } of targets) {
  if (file === "shim.mjs" && missing.length > 0) {
    console.error("shim: SKIPPED, shim/main.ts does not exist; `vmferry shim` will fail in this build");
    continue;
  }
  await build(options);
  const path = join(dist, file);
  await chmod(path, 0o755);
  console.log(`${name}: dist/${file} ${kib((await stat(path)).size)} KiB`);
}

const { metafile } = await build({ ...lambdaBuild(root), outdir: dist });
if (metafile === undefined) throw new Error("esbuild wrote no metafile");
for (const name of lambdaNames) {
  const output = `dist/${name}.mjs`;
  const { rawBytes, gzipBytes } = await weigh(join(root, output));
  console.log(
    `${name}: ${output} ${kib(rawBytes)} KiB, gzip ${kib(gzipBytes)} KiB: ${contentsText(contentsOf(metafile, output))}`,
  );
}
