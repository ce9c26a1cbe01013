/**
 * `npm run model [-- --faults N]`: the handshake explored exhaustively for one domain and two hosts with N bounded faults
 * (2 unless said). Prints bounds, states, transitions, depth and time; a violation with its shortest story, and exit 1.
 */
import { parseArgs } from "node:util";
import { explore } from "./explorer.ts";
import { FunctionsSide } from "./functions-side.ts";
import { allRules } from "./rules.ts";
import { allFaults, type FaultKind, knownFaults } from "./successors.ts";
import { firstWorld } from "./world.ts";

const { values } = parseArgs({
  options: { faults: { type: "string", default: "2" }, kinds: { type: "string" }, "states-max": { type: "string", default: "60000000" } },
});
const faults = Number(values.faults);
const kinds = [...allFaults, ...knownFaults].filter((kind) => values.kinds === undefined ? allFaults.includes(kind) : values.kinds.split(",").includes(kind));
const faultKinds: ReadonlySet<FaultKind> = new Set(kinds);

console.log(`model check: one domain, two hosts, at most ${faults} faults of: ${kinds.join(", ")}`);
const leftOut = knownFaults.filter((kind) => !faultKinds.has(kind));
if (leftOut.length > 0) console.log(`left out, because known to break a rule: ${leftOut.join(", ")} (see test/model/successors.ts)`);
console.log("messages may be lost, repeated and reordered without bound; the functions are the real transition()");
const functions = new FunctionsSide();
const first = firstWorld(functions.begin(), faults);
const found = explore(first, { functions, rules: allRules, faults: faultKinds }, {
  statesMax: Number(values["states-max"]),
  onLevel: ({ depth, states, transitions }) => {
    if (depth % 5 === 0) console.log(`  depth ${depth}: ${states} states, ${transitions} transitions`);
  },
});
console.log(
  `${found.states} states (${found.functionsStates} of the functions, ${found.ends} ends), ${found.transitions} transitions, depth ${found.depth}, ${(found.ms / 1000).toFixed(1)} s, ${Math.round(process.memoryUsage().rss / 2 ** 20)} MiB`,
);
if (found.isCut) {
  console.log("CUT: the bound of states was met, so nothing is proven");
  process.exitCode = 1;
}
if (found.violation === null) {
  if (!found.isCut) console.log("no invariant is broken, and an end can be reached from every state");
} else {
  console.log(`VIOLATION of ${found.violation.rule}`);
  for (const [index, line] of found.violation.story.entries()) console.log(`  ${index + 1}. ${line}`);
  process.exitCode = 1;
}
