/**
 * `npm run model`: the handshake explored exhaustively for one domain and two hosts, in two bounds: two faults of every kind,
 * three of those that a host survives. Prints bounds, states, transitions, depth and time, then what the checker says when a
 * rule is removed. A violation is printed with its shortest story, and the exit code is 1.
 *
 * `npm run model -- --faults N [--kinds KIND,...]` explores one bound.
 */
import { parseArgs } from "node:util";
import { type Bound, backedUp, check, mutants, tale } from "./mutants.ts";
import { allFaults, type FaultKind, knownFaults } from "./successors.ts";

/** A state takes about 100 bytes when it is visited and 2 KB while its successors are not: 30 million are a few GB. */
const statesMax = 30_000_000;

/** Faults that leave both hosts with their power and their guests. */
const survived = allFaults.filter(
  (kind) => !["powerSource", "powerDestination", "guestEnds", "endsAtFinish"].includes(kind),
);

function exploreBound(bound: Bound): void {
  const kinds = bound.kinds ?? allFaults;
  console.log(`\nat most ${bound.faults} faults of: ${kinds.join(", ")}`);
  const leftOut = knownFaults.filter((kind) => !kinds.includes(kind));
  if (leftOut.length > 0)
    console.log(`left out, known to break a rule: ${leftOut.join(", ")} (see test/model/successors.ts)`);
  const found = check(bound, undefined, ({ depth, states, transitions }) => {
    if (depth % 10 === 0) console.log(`  depth ${depth}: ${states} states, ${transitions} transitions`);
  });
  const { states, transitions, depth, ms, functionsStates, ends, statuses } = found;
  const memoryMiB = Math.round(process.memoryUsage().rss / 2 ** 20);
  console.log(
    `${states} states (${functionsStates} of the functions), ${transitions} transitions, depth ${depth}, ${(ms / 1000).toFixed(1)} s, ${memoryMiB} MiB`,
  );
  console.log(
    `${ends} ends: ${Object.entries(statuses)
      .map(([status, count]) => `${status} ${count}`)
      .join(", ")}`,
  );
  if (found.isCut) console.log("CUT: the bound of states was met, so nothing is proven");
  else console.log(tale(found));
  if (found.isCut || found.violation !== null) process.exitCode = 1;
}

function removeRules(): void {
  console.log("\nwith one rule removed:");
  for (const mutant of mutants) {
    const { states, violation } = check({ faults: mutant.faults, statesMax }, mutant);
    const verdict = violation === null ? "NOT FOUND" : `${violation.rule} (${violation.story.length} steps)`;
    console.log(`  ${mutant.name}: ${verdict}, ${states} states`);
    if (violation === null) process.exitCode = 1;
  }
  for (const mutant of backedUp) {
    const { states, violation } = check({ faults: mutant.faults, statesMax }, mutant);
    console.log(`  ${mutant.name}: ${violation?.rule ?? "another rule stands behind it"}, ${states} states`);
  }
}

const { values } = parseArgs({ options: { faults: { type: "string" }, kinds: { type: "string" } } });
console.log(
  "model check of the handshake: one domain, two hosts, from Begin on; the functions are the real transition()",
);
console.log("messages may be lost, repeated and reordered without bound");
const named = values.kinds?.split(",");
const kinds: FaultKind[] = [...allFaults, ...knownFaults].filter((kind) =>
  named === undefined ? allFaults.includes(kind) : named.includes(kind),
);
if (named !== undefined && kinds.length < named.length) {
  console.error(`--kinds takes some of: ${[...allFaults, ...knownFaults].join(", ")}`);
  process.exit(64);
}
if (values.faults !== undefined || named !== undefined)
  exploreBound({ faults: Number(values.faults ?? 2), kinds, statesMax });
else {
  exploreBound({ faults: 2, statesMax });
  exploreBound({ faults: 3, kinds: survived, statesMax });
  removeRules();
}
