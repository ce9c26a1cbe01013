/**
 * Cuts the fixtures of a release (docs/releases.md says when and how): its bundles, and what its code records of itself.
 *
 *   node test/releases/record.ts --checkout DIR [--without-lab]
 *
 * DIR is a throw-away checkout of the release's commit with its dependencies beside it; the recorders are put into it, so that
 * what they import is the release's. `--without-lab` leaves the recorded messages as they are: the rest needs no libvirt.
 */
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { brotliCompressSync, constants } from "node:zlib";
import { type BuildOptions, build } from "esbuild";
import * as z from "zod/mini";

const here = import.meta.dirname;
const recorders = [
  "history-recorder.ts",
  "store-recorder.ts",
  "message-recorder.ts",
  "recording-proxy.ts",
  "schema-recorder.ts",
];

const { values } = parseArgs({
  options: { checkout: { type: "string" }, "without-lab": { type: "boolean", default: false } },
});
if (values.checkout === undefined) {
  console.error("usage: node test/releases/record.ts --checkout DIR [--without-lab]");
  process.exit(64);
}
const checkout = resolve(values.checkout);
const { version } = z
  .object({ version: z.string() })
  .parse(JSON.parse(readFileSync(join(checkout, "package.json"), "utf8")));
const commit = execFileSync("git", ["-C", checkout, "rev-parse", "HEAD"], { encoding: "utf8" }).trim();

const inCheckout = (...words: string[]) =>
  execFileSync(process.execPath, words, { cwd: checkout, stdio: ["ignore", "inherit", "inherit"] });

/** One module each, small: they are kept in the repository. */
const forNode: BuildOptions = {
  absWorkingDir: checkout,
  bundle: true,
  minify: true,
  platform: "node",
  format: "esm",
  target: "node22",
  mainFields: ["module", "main"],
  banner: {
    js: 'import { createRequire as makeRequire } from "node:module"; const require = makeRequire(import.meta.url);',
  },
};

async function keepBundles(): Promise<void> {
  const made = mkdtempSync(join(tmpdir(), "vmferry-release-"));
  const folder = join(here, version);
  mkdirSync(folder, { recursive: true });
  try {
    inCheckout("infra/build.ts");
    for (const name of ["shim.mjs", "worker.mjs"]) cpSync(join(checkout, "dist", name), join(made, name));
    await build({
      ...forNode,
      entryPoints: [join(checkout, "functions/cli/main.ts")],
      outfile: join(made, "vmferry.mjs"),
      // As in dist; the shim is a bundle of its own.
      external: ["miniflare", "dynalite", "esbuild", "workerd", "@aws-sdk/*", "#shim/main"],
    });
    await build({
      ...forNode,
      stdin: { contents: 'export * from "#protocol/codec";', resolveDir: join(checkout, "shim"), loader: "ts" },
      outfile: join(made, "protocol.mjs"),
    });
    for (const name of ["shim.mjs", "worker.mjs", "vmferry.mjs", "protocol.mjs"]) {
      const plain = readFileSync(join(made, name));
      const packed = brotliCompressSync(plain, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } });
      writeFileSync(join(folder, `${name}.br`), packed);
      console.log(`${name}: ${plain.byteLength} bytes, ${packed.byteLength} as kept`);
    }
  } finally {
    rmSync(made, { recursive: true });
  }
}

function recordItself(): void {
  mkdirSync(join(checkout, "test/releases"), { recursive: true });
  for (const name of recorders) cpSync(join(here, name), join(checkout, "test/releases", name));
  const folder = join(here, "../golden/histories", version);
  rmSync(join(folder, "migrations"), { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  inCheckout("test/releases/history-recorder.ts", join(folder, "migrations"));
  inCheckout("test/releases/store-recorder.ts", folder);
  inCheckout("test/releases/schema-recorder.ts", folder);
  if (!values["without-lab"]) inCheckout("test/releases/message-recorder.ts", folder);
}

recordItself();
await keepBundles();
writeFileSync(
  join(here, version, "README.md"),
  `# vmferry ${version}

The bundles of release ${version}, commit \`${commit}\`, packed with brotli, for the tests of version skew. Made by
\`node test/releases/record.ts --checkout DIR\`; the recorded histories of the same commit are in
\`test/golden/histories/${version}\`. \`release.ts\` unpacks them; docs/releases.md says how long they are kept.

- \`shim.mjs\`, \`worker.mjs\`: as \`npm run build\` makes them in that commit.
- \`vmferry.mjs\`: its command line in one minified module. What it does not bundle (miniflare, dynalite, the SDK) is the present tree's.
- \`protocol.mjs\`: its codec and message schemas, to decode what the present code says.
`,
);
console.log(`recorded ${version} of ${commit}`);
