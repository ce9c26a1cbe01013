import { mutations } from "./mutations.ts";
import { runSwarm } from "./swarm.ts";
const max = Number(process.argv[2] ?? 600);
for (const [name, mutation] of Object.entries(mutations)) {
  if (process.argv[3] !== undefined && !name.includes(process.argv[3])) continue;
  const t0 = performance.now();
  let found = "";
  let seed = 0;
  for (seed = 1; seed <= max && found === ""; seed++) {
    const r = await runSwarm(seed, { mutation });
    const v = r.violations[0];
    if (v !== undefined) found = `${v.invariant}: ${v.text}`;
  }
  console.log(`${name}: ${found === "" ? "SURVIVES" : `seed ${seed - 1}`} ${Math.round(performance.now() - t0)} ms  ${found}`);
}
process.exit(0);
