import { mutations } from "./mutations.ts";
import { simulate, plainScenario } from "./run.ts";
import type { FaultKind } from "./fault-plan.ts";
const kinds = new Set<FaultKind>(["cancel", "delayed", "lost", "repeated", "socket:source", "socket:destination"]);
let hit = 0;
const max = Number(process.argv[2]);
for (let seed = 1; seed <= max; seed++) {
  const source = { type: "swarm", likelihood: 0.15, faultsMax: 10, kinds } as const;
  const r = await simulate({ seed, scenario: plainScenario, source, mutation: mutations["no epoch check"] });
  if (r.violations.length) { hit++; console.log(seed, r.violations[0], r.injected.map((f) => `${f.at} ${f.kind}`)); if (hit > 3) break; }
}
console.log(hit);
process.exit(0);
