/**
 * `npm run bench`: vmferry, as it is shipped, against `virsh migrate` and against the usual script, on two real libvirt
 * hosts, in one run. Both ways move the same guest in turn, so the machine's mood falls on both; figures are ratios of
 * medians. Writes test/bench/results.json and prints the tables for the README. Nothing is left running, whatever happens.
 *
 *   --runs N        rounds of each comparison, default 5
 *   --sizes 5,100   numbers of snapshots, default 5,100,1000
 *   --quick         one round, 5 snapshots: does it work at all
 *   --no-build      measure what is in dist/ already
 */
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { cpus } from "node:os";
import { join } from "node:path";
import { isDeepStrictEqual, parseArgs, promisify } from "node:util";
import { type Fleet, startFleet } from "#lab/fleet";
import { bootGuest, defaultMemoryMiB } from "#lab/guest";
import { type Lab, startLab } from "#lab/lab";
import { installPrerequisites, isRoot, LabRefusal } from "#lab/prerequisites";
import { type Bench, byScript, byVirsh, byVmferry, type Crossing, whereIs } from "./crossing.ts";
import { measureFootprint } from "./footprint.ts";
import { growTree, recordsOnly } from "./grown-tree.ts";
import { compare, markdown, type Result, type Rounds } from "./result.ts";
import { measureBackground, totalOf } from "./store-requests.ts";

const say = (line: string) => console.error(line);
const root = join(import.meta.dirname, "../..");
const resultsPath = join(import.meta.dirname, "results.json");
const sizesDefault = "5,100,1000";

const { values } = parseArgs({
  options: {
    runs: { type: "string", default: "5" },
    sizes: { type: "string", default: sizesDefault },
    quick: { type: "boolean", default: false },
    "no-build": { type: "boolean", default: false },
  },
});
const rounds = values.quick ? 1 : count(values.runs);
const sizes = values.quick ? [5] : values.sizes.split(",").map(count);

function count(text: string): number {
  const number = Number(text);
  if (!Number.isInteger(number) || number < 1) throw new Error(`"${text}" is not a number of rounds or snapshots`);
  return number;
}

/** Both ways in turn, each round in the other order, after one of each that is not counted. */
async function measure(bench: Bench, snapshots: number, other: () => Promise<Crossing>): Promise<Rounds> {
  const measured: Rounds = { snapshots, vmferry: [], other: [] };
  const label = `${snapshots} snapshots`;
  for (let round = 0; round <= rounds; round += 1) {
    const warming = round === 0;
    const byUs = async () => {
      const crossing = await equalTree(bench, warming, () => byVmferry(bench, snapshots > 0 ? [recordsOnly] : []));
      if (!warming) measured.vmferry.push(crossing);
      say(`   ${label}, ${warming ? "warming" : `round ${round}`}: vmferry ${told(crossing)}`);
      if (process.env.BENCH_STEPS === "1")
        say(`      ${crossing.steps.map(({ step, ms }) => `${step} ${ms}`).join(", ")}`);
    };
    const byThem = async () => {
      const crossing = await equalTree(bench, warming, other);
      if (!warming) measured.other.push(crossing);
      say(`   ${label}, ${warming ? "warming" : `round ${round}`}: the other ${told(crossing)}`);
    };
    for (const way of round % 2 === 0 ? [byThem, byUs] : [byUs, byThem]) await way();
  }
  return measured;
}

const told = ({ totalMs, blackout }: Crossing) =>
  `${(totalMs / 1000).toFixed(2)} s, silent ${blackout.ms.toFixed(0)} ms (seen to ${blackout.observerMs.toFixed(0)} ms)`;

/** Holds a way to leave the tree as it was; once for each size, since it is the same work every time. */
async function equalTree<T>(bench: Bench, check: boolean, cross: () => Promise<T>): Promise<T> {
  if (!check) return cross();
  const { guest } = bench;
  // libvirt lists siblings in no certain order.
  const tree = async () =>
    new Map((await (await whereIs(bench)).source.virsh.snapshotTree(guest.name)).map((each) => [each.name, each]));
  const before = await tree();
  const crossing = await cross();
  const after = await tree();
  const different = [...new Set([...before.keys(), ...after.keys()])].filter(
    (name) => !isDeepStrictEqual(before.get(name), after.get(name)),
  );
  assert.deepEqual(different, [], "these snapshots are others after the move");
  return crossing;
}

async function measureAll(lab: Lab, fleet: Fleet): Promise<Result> {
  const hosts = [lab.host(0), lab.host(1)] as const;
  say("== a guest boots; the idle fleet is watched");
  const guest = await bootGuest(hosts[0]);
  try {
    const bench: Bench = { fleet, guest, hosts, background: await measureBackground(fleet) };
    say("== without snapshots, against virsh migrate");
    const measured = [await measure(bench, 0, () => byVirsh(bench))];
    for (const size of sizes) {
      say(`== ${size} snapshots, against the usual script`);
      await growTree((await whereIs(bench)).source, guest, size);
      measured.push(await measure(bench, size, () => byScript(bench)));
    }
    say("== what the shim costs its host");
    const { idle, idleMs } = bench.background;
    const perMinute = (store: "dynamodb" | "s3") => (totalOf(idle, store).requests * 60_000) / idleMs;
    return {
      at: new Date().toISOString(),
      command: `npm run bench${process.argv.length > 2 ? ` -- ${process.argv.slice(2).join(" ")}` : ""}`,
      quick: values.quick,
      rounds,
      machine: { ...(await machine()), guestMemoryMiB: defaultMemoryMiB },
      backgroundPerMinute: { dynamodb: perMinute("dynamodb"), s3: perMinute("s3") },
      comparisons: measured.map(compare),
      footprint: await measureFootprint(fleet, hosts, rounds),
    };
  } finally {
    await guest.witness.stop();
  }
}

async function machine() {
  const run = promisify(execFile);
  const version = async (program: string) =>
    /\d+\.\d+\.\d+/.exec((await run(program, ["--version"])).stdout)?.[0] ?? "unknown";
  return {
    cores: cpus().length,
    cpu: cpus()[0]?.model ?? "unknown",
    node: process.versions.node,
    libvirt: await version("virsh"),
    qemu: await version("qemu-system-x86_64"),
  };
}

async function build(): Promise<void> {
  const child = spawn(process.execPath, [join(root, "infra/build.ts")], { stdio: ["ignore", 2, 2] });
  const code = await new Promise((resolve, reject) => child.once("exit", resolve).once("error", reject));
  if (code !== 0) throw new Error("the build failed");
}

async function main(): Promise<void> {
  await installPrerequisites({ log: say });
  if (!isRoot())
    throw new LabRefusal("libvirt hosts on one machine need mount namespaces, so root", "sudo npm run bench");
  if (!values["no-build"]) await build();
  let lab: Lab | undefined;
  let fleet: Fleet | undefined;
  const stop = async () => {
    await fleet?.stop();
    await lab?.stop();
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.once(signal, () => {
      stop().finally(() => process.exit(130));
    });
  try {
    lab = await startLab({ hosts: 2, log: (line) => say(`   ${line}`) });
    fleet = await startFleet({ hosts: lab.hosts, built: true, log: (line) => say(`   ${line}`) });
    const result = await measureAll(lab, fleet);
    if (!values.quick) await writeFile(resultsPath, `${JSON.stringify(result, null, 2)}\n`);
    process.stdout.write(markdown(result));
  } finally {
    await stop();
  }
}

try {
  await main();
} catch (error) {
  if (!(error instanceof LabRefusal)) throw error;
  console.error(error.message);
  process.exitCode = 69;
}
