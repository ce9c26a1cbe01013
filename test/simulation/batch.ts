/** Many runs of one kind, and what they come to. A batch can be split among threads (pool.ts): each does every n-th run. */
import { type FaultKind, type PlannedFault, sides } from "./fault-plan.ts";
import { knownDefectOf } from "./known-defects.ts";
import { type RunResult, simulate } from "./run.ts";
import { type Mutation, plainScenario, type Scenario } from "./scene.ts";
import { runSingle, singleFaults } from "./singles.ts";
import { runSwarm } from "./swarm.ts";
import { Chance } from "./virtual-time.ts";

export const scenarios: Record<string, Scenario> = {
  tree: plainScenario,
  bare: { snapshots: "none", guest: "running", autostart: false },
  offline: { snapshots: "chain", guest: "offline", autostart: true },
  paused: { snapshots: "chain", guest: "paused", autostart: false },
  pausedAutostart: { snapshots: "chain", guest: "paused", autostart: true },
};

export type Batch =
  | { type: "swarm"; from: number; runs: number }
  /** Every single fault of the happy run of that seed. */
  | { type: "singles"; seed: number; scenario: string }
  /** Two single faults together, drawn by seed. */
  | { type: "pairs"; from: number; runs: number };

/** One run, by what decides it. */
export type One =
  | { type: "swarm" | "pair"; seed: number }
  | { type: "single"; seed: number; scenario: string; fault: PlannedFault };

/** The arguments of `npm run sim --` that play it again. */
export function replayOf(one: One): string {
  if (one.type === "single")
    return `--seed ${one.seed} --scenario ${one.scenario} --fault '${textOf(one.fault)}' --trace`;
  return `${one.type === "pair" ? "--pair " : ""}--seed ${one.seed} --trace`;
}

export function runOne(one: One, options: { tracing?: boolean; mutation?: Mutation } = {}): Promise<RunResult> {
  if (one.type === "single") return runSingle(one.seed, scenarios[one.scenario] ?? plainScenario, one.fault, options);
  return one.type === "pair" ? runPair(one.seed, options) : runSwarm(one.seed, options);
}

export interface Failure {
  one: One;
  invariant: string;
  text: string;
  faults: string;
  knownDefect: string | null;
}

export interface Figures {
  runs: number;
  events: number;
  faults: Record<string, number>;
  ends: Record<string, number>;
  stranded: number;
  failures: Failure[];
}

export const noFigures = (): Figures => ({ runs: 0, events: 0, faults: {}, ends: {}, stranded: 0, failures: [] });

export const textOf = ({ at, kind }: PlannedFault) => `${at} ${kind}`;

/** Does the runs number `first`, `first + step`, ... of a batch. */
export async function runBatch(batch: Batch, first = 0, step = 1): Promise<Figures> {
  const figures = noFigures();
  if (batch.type === "singles") {
    const scenario = scenarios[batch.scenario] ?? plainScenario;
    const faults = await singleFaults(batch.seed, scenario);
    for (let at = first; at < faults.length; at += step) {
      const fault = faults[at];
      if (fault === undefined) continue;
      await add(figures, { type: "single", seed: batch.seed, scenario: batch.scenario, fault });
    }
    return figures;
  }
  for (let at = first; at < batch.runs; at += step) {
    const seed = batch.from + at;
    await add(figures, { type: batch.type === "swarm" ? "swarm" : "pair", seed });
  }
  return figures;
}

const happyFaults = new Map<string, Promise<PlannedFault[]>>();
/** Happy runs from which pairs are drawn. */
const happySeeds = 4;

export async function runPair(
  seed: number,
  options: { tracing?: boolean; mutation?: Mutation } = {},
): Promise<RunResult> {
  const chance = new Chance(seed * 13 + 5);
  const name = chance.pick(["tree", "tree", "tree", "bare", "offline"]);
  const happySeed = chance.between(1, happySeeds);
  const scenario = scenarios[name] ?? plainScenario;
  const key = `${name} ${happySeed}`;
  const known = happyFaults.get(key) ?? singleFaults(happySeed, scenario);
  happyFaults.set(key, known);
  const all = await known;
  const faults = [chance.pick(all), chance.pick(all)];
  return simulate({ seed: happySeed, scenario, source: { type: "planned", faults }, ...options });
}

async function add(figures: Figures, one: One): Promise<void> {
  const result = await runOne(one);
  figures.runs += 1;
  figures.events += result.events;
  figures.ends[result.status] = (figures.ends[result.status] ?? 0) + 1;
  if (result.strandedMeanwhile) figures.stranded += 1;
  for (const { kind } of result.injected) {
    const name = nameOf(kind);
    figures.faults[name] = (figures.faults[name] ?? 0) + 1;
  }
  for (const violation of result.violations.slice(0, 1))
    figures.failures.push({
      one,
      invariant: violation.invariant,
      text: violation.text,
      faults: result.injected.map(textOf).join(", "),
      knownDefect: knownDefectOf(result, violation),
    });
}

/** A fault's kind without its side. */
function nameOf(kind: FaultKind): string {
  const [name, side] = kind.split(":");
  return sides.some((each) => each === side) ? (name ?? kind) : kind;
}

export function merge(into: Figures, from: Figures): void {
  into.runs += from.runs;
  into.events += from.events;
  into.stranded += from.stranded;
  for (const [name, count] of Object.entries(from.faults)) into.faults[name] = (into.faults[name] ?? 0) + count;
  for (const [name, count] of Object.entries(from.ends)) into.ends[name] = (into.ends[name] ?? 0) + count;
  into.failures.push(...from.failures);
}
