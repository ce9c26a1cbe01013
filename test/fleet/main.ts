/**
 * `npm run fleet`: a fleet of simulated hosts under the real local control plane, measured; prints a table as docs/figures.md has it, and ends with 1 when an
 * invariant was broken.
 *
 *   npm run fleet -- --hosts 1000 --domains 10000 --evacuate 50 --processes 2 --seed 1 --crash --flat 10,100 --json figures.json
 */
import { writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { report } from "./fleet-report.ts";
import { fleetRun, type RunFigures } from "./fleet-run.ts";

const { values } = parseArgs({
  options: {
    hosts: { type: "string", default: "1000" },
    domains: { type: "string", default: "10000" },
    evacuate: { type: "string", default: "50" },
    processes: { type: "string", default: "2" },
    seed: { type: "string", default: "1" },
    /** Smaller fleets measured before it, with as many domains on a host: sizes with commas, empty for none. */
    flat: { type: "string", default: "10,100" },
    out: { type: "string", default: "4" },
    in: { type: "string", default: "4" },
    fleet: { type: "string", default: "100" },
    idle: { type: "string", default: "60" },
    crash: { type: "boolean", default: false },
    json: { type: "string" },
  },
});

// An interrupted run ends its processes: they go with this one, by the kernel and by their channel.
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(130));

const hosts = Number(values.hosts);
const domains = Number(values.domains);
const common = {
  seed: Number(values.seed),
  limits: { outMax: Number(values.out), inMax: Number(values.in), fleetMax: Number(values.fleet) },
  timerMs: 60_000,
  idleMs: Number(values.idle) * 1_000,
};
const beganMs = performance.now();
const say = (size: number) => (line: string) =>
  console.error(`[${((performance.now() - beganMs) / 1_000).toFixed(0)} s] ${size} hosts: ${line}`);

const runs: RunFigures[] = [];
const small = values.flat === "" ? [] : values.flat.split(",").map(Number);
for (const size of small)
  runs.push(
    await fleetRun({
      ...common,
      hosts: size,
      domains: Math.round((size * domains) / hosts),
      processes: 1,
      evacuate: 0,
      crash: false,
      say: say(size),
    }),
  );
runs.push(
  await fleetRun({
    ...common,
    hosts,
    domains,
    processes: Number(values.processes),
    evacuate: Number(values.evacuate),
    crash: values.crash,
    say: say(hosts),
  }),
);

console.log(report(runs, common));
if (values.json !== undefined) await writeFile(values.json, `${JSON.stringify({ options: values, runs }, null, 1)}\n`);
const violations = runs.flatMap((run) => run.violations);
for (const violation of violations) console.error(`BROKEN: ${violation}`);
process.exitCode = violations.length === 0 ? 0 : 1;
