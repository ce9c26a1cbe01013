/**
 * `node test/bench/bundles.ts`: what the functions' bundles weigh, what is in them, and how long a cold function needs to load one, as a ratio to
 * a bare Hono app that is bundled by the same settings. Every load is in a fresh process; all bundles take turns in each round, so the
 * machine's mood falls on all of them.
 *
 *   --rounds N   loads of each bundle, default 15
 */
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs, promisify } from "node:util";
import { build } from "esbuild";
import { workerBuild } from "#functions/cli/up-worker";
import { contentsOf, contentsText, type Weight, weigh } from "../../infra/bundle-contents.ts";
import { lambdaBuild, lambdaNames } from "../../infra/lambda-build.ts";
import { type Figure, figure, type Ratio, ratio } from "./statistics.ts";

const root = join(import.meta.dirname, "../..");
/** The median of fewer is a matter of luck on a busy machine. */
const roundsMin = 11;

export interface BundleFigures {
  name: string;
  weight: Weight;
  contents: string;
  /** Null: not a module that Node loads. */
  load: { ms: Figure; byBare: Ratio } | null;
}

const bareSource = `
  import { Hono } from "hono";
  import { handle } from "hono/aws-lambda";
  const app = new Hono();
  app.get("/healthz", (context) => context.json({ status: "ok" }));
  export const handler = handle(app);`;

const bare = "bare Hono app";

/** Time from the first line of a fresh process's program until the module is there, in ms. */
async function loadMs(path: string): Promise<number> {
  const program = `
    const began = performance.now();
    const { handler } = await import(${JSON.stringify(pathToFileURL(path).href)});
    const ms = performance.now() - began;
    if (typeof handler !== "function") throw new Error("no handler");
    process.stdout.write(String(ms));`;
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "--eval", program]);
  const ms = Number(stdout);
  if (!(ms > 0)) throw new Error(`loading ${path} was not measured: ${stdout}`);
  return ms;
}

/** Builds all bundles into a folder of its own and measures them. */
export async function measureBundles(rounds: number): Promise<BundleFigures[]> {
  const folder = await mkdtemp(join(tmpdir(), "vmferry-bundles-"));
  try {
    const { entryPoints: _, ...settings } = lambdaBuild(root);
    await writeFile(join(folder, "bare.ts"), bareSource);
    const built = [
      await build({
        ...settings,
        stdin: { contents: bareSource, resolveDir: root, sourcefile: "bare.ts", loader: "ts" },
        outfile: join(folder, "bare.mjs"),
      }),
      await build({ ...lambdaBuild(root), outdir: folder }),
      await build({ ...workerBuild(root), minify: true, metafile: true, outfile: join(folder, "worker.mjs") }),
    ];
    const contents = new Map<string, string>();
    for (const { metafile } of built)
      for (const output of Object.keys(metafile?.outputs ?? {}))
        if (metafile !== undefined)
          contents.set(output.replace(/^.*\//, ""), contentsText(contentsOf(metafile, output)));

    const loaded = [{ name: bare, file: "bare.mjs" }, ...lambdaNames.map((name) => ({ name, file: `${name}.mjs` }))];
    const samples = new Map<string, number[]>(loaded.map(({ name }) => [name, []]));
    for (let round = 0; round <= rounds; round += 1)
      for (const index of loaded.keys()) {
        // Nobody is always first; the first round fills the caches and is not counted.
        const turn = loaded[(index + round) % loaded.length];
        if (turn === undefined) continue;
        const ms = await loadMs(join(folder, turn.file));
        if (round > 0) samples.get(turn.name)?.push(ms);
      }
    const bareSamples = samples.get(bare) ?? [];
    const figures: BundleFigures[] = [];
    for (const { name, file } of [...loaded, { name: "worker", file: "worker.mjs" }]) {
      const times = samples.get(name);
      figures.push({
        name,
        weight: await weigh(join(folder, file)),
        contents: contents.get(file) ?? "",
        load: times === undefined ? null : { ms: figure(times), byBare: ratio(times, bareSamples) },
      });
    }
    return figures;
  } finally {
    await rm(folder, { recursive: true });
  }
}

const kib = (bytes: number) => `${(bytes / 1024).toFixed(0)} KiB`;

/** Rows for a person, and for the README. */
export const bundleTable = (figures: readonly BundleFigures[]): string =>
  [
    "| bundle | raw | gzip | load, median (min to max) | by a bare Hono app (single rounds) | in it |",
    "|---|---|---|---|---|---|",
    ...figures.map(({ name, weight, contents, load }) => {
      const times =
        load === null
          ? "not loaded by Node | "
          : `${load.ms.median.toFixed(1)} ms (${load.ms.min.toFixed(1)} to ${load.ms.max.toFixed(1)}) | ${load.byBare.ratio.toFixed(2)} (${load.byBare.min.toFixed(2)} to ${load.byBare.max.toFixed(2)})`;
      return `| ${name} | ${kib(weight.rawBytes)} | ${kib(weight.gzipBytes)} | ${times} | ${contents} |`;
    }),
  ].join("\n");

if (import.meta.main) {
  const { values } = parseArgs({ options: { rounds: { type: "string", default: "15" } } });
  const rounds = Number(values.rounds);
  if (!Number.isInteger(rounds) || rounds < roundsMin)
    throw new Error(`--rounds takes a whole number, at least ${roundsMin}`);
  console.log(bundleTable(await measureBundles(rounds)));
  console.log(`\n${rounds} rounds, Node ${process.version}, ${cpus().length} CPUs (${cpus()[0]?.model ?? "unknown"})`);
}
