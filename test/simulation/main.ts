/**
 * `npm run sim -- --seed N --runs N`: seeded swarms, from a seed on; prints figures, and every failure with the command that
 * replays it. `--pair` draws pairs of single faults instead, `--singles` does every single fault, `--fault` one of them.
 * `--trace` (one run) prints all that happened; `--mutation` takes a rule away first.
 */
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { type Batch, type Figures, merge, noFigures, type One, replayOf, runOne, textOf } from "./batch.ts";
import { allKinds, type PlannedFault } from "./fault-plan.ts";
import { mutations } from "./mutations.ts";
import { runOnThreads } from "./pool.ts";

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    runs: { type: "string", default: "1" },
    threads: { type: "string" },
    scenario: { type: "string", default: "tree" },
    fault: { type: "string" },
    mutation: { type: "string" },
    pair: { type: "boolean", default: false },
    singles: { type: "boolean", default: false },
    trace: { type: "boolean", default: false },
  },
});

const seed = whole(values.seed, "--seed");
const runs = whole(values.runs, "--runs");
const threads = values.threads === undefined ? availableParallelism() : whole(values.threads, "--threads");

function whole(text: string, what: string): number {
  const number = Number(text);
  if (Number.isSafeInteger(number) && number > 0) return number;
  console.error(`${what} must be a whole number above 0`);
  process.exit(64);
}

function faultOf(text: string): PlannedFault {
  const at = text.slice(0, text.lastIndexOf(" "));
  const kind = allKinds.find((each) => each === text.slice(at.length + 1));
  if (kind !== undefined) return { at, kind };
  console.error(`--fault: no kind in "${text}"; there are ${allKinds.join(", ")}`);
  process.exit(64);
}

function mutationOf(name: string | undefined) {
  if (name === undefined) return {};
  const mutation = mutations[name]?.mutation;
  if (mutation !== undefined) return { mutation };
  console.error(`--mutation: there are\n${Object.keys(mutations).join("\n")}`);
  process.exit(64);
}

/** The run that the arguments name. */
function named(): One {
  if (values.fault !== undefined)
    return { type: "single", seed, scenario: values.scenario, fault: faultOf(values.fault) };
  return { type: values.pair ? "pair" : "swarm", seed };
}

/** One run, told in full when it was asked for or when something is broken. */
async function tell(one: One): Promise<void> {
  const result = await runOne(one, { tracing: true, ...mutationOf(values.mutation) });
  if (values.trace || result.violations.length > 0) console.log(result.trace.join("\n"));
  console.log(
    `seed ${result.seed}, ${JSON.stringify(result.scenario)}: ${result.status} after ${result.events} events`,
  );
  for (const fault of result.injected) console.log(`  fault: ${textOf(fault)}`);
  for (const { invariant, text, atMs } of result.violations)
    console.log(`  BROKEN ${invariant} at ${atMs} ms: ${text}`);
  if (result.violations.length === 0) return;
  const mutation = values.mutation === undefined ? "" : ` --mutation '${values.mutation}'`;
  console.log(`  replay: npm run sim -- ${replayOf(one)}${mutation}`);
  process.exitCode = 1;
}

function print(figures: Figures, seconds: number): void {
  const line = (of: Record<string, number>) =>
    Object.entries(of)
      .sort(([, one], [, other]) => other - one)
      .map(([name, count]) => `${name} ${count}`)
      .join(", ");
  console.log(
    `${figures.runs} runs, ${figures.events} events in ${seconds.toFixed(1)} s: ${Math.round(figures.runs / seconds)} runs/s on ${threads} threads`,
  );
  console.log(`faults: ${line(figures.faults)}`);
  console.log(`ends: ${line(figures.ends)}; ${figures.stranded} were stranded meanwhile`);
  const known = figures.failures.filter(({ knownDefect }) => knownDefect !== null);
  const fresh = figures.failures.filter(({ knownDefect }) => knownDefect === null);
  for (const name of new Set(known.map(({ knownDefect }) => knownDefect))) {
    const of = known.filter(({ knownDefect }) => knownDefect === name);
    console.log(`known defect, ${of.length} runs, such as ${of.slice(0, 1).map(({ one }) => replayOf(one))}: ${name}`);
  }
  for (const { one, invariant, text, faults } of fresh)
    console.log(`BROKEN ${invariant}: ${text}\n  faults: ${faults}\n  replay: npm run sim -- ${replayOf(one)}`);
  if (fresh.length > 0) process.exitCode = 1;
}

if (!values.singles && runs === 1) await tell(named());
else {
  const startedMs = performance.now();
  const figures = noFigures();
  const batches: Batch[] = values.singles
    ? [{ type: "singles", seed, scenario: values.scenario }]
    : [{ type: values.pair ? "pairs" : "swarm", from: seed, runs }];
  for (const batch of batches) merge(figures, await runOnThreads(batch, threads));
  print(figures, (performance.now() - startedMs) / 1000);
  // The first one is told in full at once.
  const first = figures.failures.find(({ knownDefect }) => knownDefect === null);
  if (first !== undefined) await tell(first.one);
}
