import { simulate } from "./run.ts";
const t0 = performance.now();
let ev = 0;
for (let i = 1; i <= 300; i++) { const r = await simulate({ seed: i }); ev += r.events; if (r.violations.length) console.log(i, r.violations); }
console.log((performance.now() - t0) / 300, "ms per run", ev / 300);
process.exit(0);
