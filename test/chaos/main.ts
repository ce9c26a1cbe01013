/**
 * `npm run chaos`: every fault at every moment of a migration, on real QEMU. Prints each cell as it ends and the matrix at the end;
 * exits 1 when a cell has a violated invariant or no end. Nothing is left running, whatever happens.
 *
 *   --fault A,B   only these faults      --step A,B   only these moments      --list   print the names and run nothing
 *   --runs N      each cell N times: where a fault falls between two lines of a journal is chance
 *   --json        the cells as JSON on stdout
 *   --write       also write docs/chaos-matrix.md
 *   --keep DIR    of each cell that is not sound, keep there what everybody said: journals, outputs, the migration, libvirtd's logs
 */
import { execFile } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs, promisify } from "node:util";
import { installPrerequisites, isRoot, LabRefusal } from "#lab/prerequisites";
import { type Cell, runCell } from "./cell.ts";
import { ChaosScene } from "./chaos-scene.ts";
import { keepEvidence } from "./evidence.ts";
import { type Fault, faults } from "./fault.ts";
import { isSound, page, summary, table, told } from "./matrix.ts";
import { type Moment, moments } from "./moment.ts";

const { values } = parseArgs({
  options: {
    fault: { type: "string" },
    step: { type: "string" },
    list: { type: "boolean", default: false },
    runs: { type: "string", default: "1" },
    json: { type: "boolean", default: false },
    write: { type: "boolean", default: false },
    keep: { type: "string" },
  },
});
const say = (line: string) => console.error(line);
const pagePath = join(import.meta.dirname, "../../docs/chaos-matrix.md");

/** The named ones of a list, all when none is named. Throws for a name that is not in it. */
function chosen<T extends { name: string }>(all: readonly T[], names: string | undefined): T[] {
  if (names === undefined) return [...all];
  return names.split(",").map((name) => {
    const found = all.find((each) => each.name === name.trim());
    if (found === undefined)
      throw new Error(`there is no ${name}; there are ${all.map((each) => each.name).join(", ")}`);
    return found;
  });
}

/** Runs the cells in one scene as long as they are sound; after one that is not, the next begins in a fresh scene. */
async function runAll(cells: readonly { fault: Fault; moment: Moment }[], stopping: AbortSignal): Promise<Cell[]> {
  const done: Cell[] = [];
  let scene: ChaosScene | undefined;
  try {
    for (const [index, { fault, moment }] of cells.entries()) {
      if (stopping.aborted) break;
      scene ??= await ChaosScene.start({ log: (line) => say(`   ${line}`) });
      const cell = await runCell(scene, fault, moment);
      done.push(cell);
      say(`${String(index + 1).padStart(3)}/${cells.length} ${told(cell)}`);
      if (isSound(cell)) continue;
      sayLogs(scene);
      if (values.keep !== undefined) await keepEvidence(scene, cell, join(values.keep, String(index + 1)));
      await scene.stop();
      scene = undefined;
    }
    return done;
  } finally {
    await scene?.stop();
  }
}

/** What everybody said last, for whoever has to find out why. */
function sayLogs({ fleet, store }: ChaosScene): void {
  for (const running of [fleet.controlPlane, ...fleet.shims.values(), store]) {
    if (running === undefined) continue;
    say(`    -- ${running.label}`);
    for (const line of running.output.trimEnd().split("\n").slice(-12)) say(`    ${line.slice(0, 400)}`);
  }
}

async function versions(): Promise<string> {
  const run = promisify(execFile);
  const of = async (program: string) =>
    /\d+\.\d+\.\d+/.exec((await run(program, ["--version"])).stdout)?.[0] ?? "unknown";
  return `libvirt ${await of("virsh")}, QEMU ${await of("qemu-system-x86_64")}, Node ${process.versions.node}`;
}

/** The options that chose the cells, as they were given. */
const choice = (): string[] => [
  ...(values.fault === undefined ? [] : [`--fault "${values.fault}"`]),
  ...(values.step === undefined ? [] : [`--step "${values.step}"`]),
  ...(values.runs === "1" ? [] : [`--runs ${values.runs}`]),
];

async function main(): Promise<void> {
  const runs = Number(values.runs);
  if (!Number.isInteger(runs) || runs < 1) throw new Error(`--runs ${values.runs} is no number of runs`);
  const cells = chosen(faults, values.fault).flatMap((fault) =>
    chosen(moments, values.step).flatMap((moment) => Array.from({ length: runs }, () => ({ fault, moment }))),
  );
  if (values.list) {
    for (const { fault, moment } of cells)
      console.log(`${fault.name} × ${moment.name}: ${fault.what} as ${moment.what}`);
    return;
  }
  await installPrerequisites({ log: say });
  if (!isRoot())
    throw new LabRefusal("libvirt hosts on one machine need mount namespaces, so root", "sudo npm run chaos");
  const stop = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.once(signal, () => {
      say("ending after this cell");
      stop.abort();
    });
  const fromMs = performance.now();
  const done = await runAll(cells, stop.signal);
  const totalMs = performance.now() - fromMs;
  if (values.json) console.log(JSON.stringify(done, null, 2));
  else console.log(`\n${table(done)}\n`);
  console.log(values.json ? "" : summary(done, totalMs));
  if (values.write) {
    const command = ["npm run chaos --", ...choice(), "--write"].join(" ");
    await mkdir(join(pagePath, ".."), { recursive: true });
    await writeFile(
      pagePath,
      page(done, totalMs, { at: new Date().toISOString(), command, versions: await versions() }),
    );
  }
  if (done.length < cells.length || !done.every(isSound)) process.exitCode = 1;
}

try {
  await main();
} catch (error) {
  if (!(error instanceof LabRefusal)) throw error;
  console.error(error.message);
  process.exitCode = 69;
}
