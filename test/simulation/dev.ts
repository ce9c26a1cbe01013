import { plainScenario } from "./run.ts";
import { runSingle, singleFaults } from "./singles.ts";
const faults = await singleFaults(1, plainScenario);
console.log(faults.length, "faults");
const t0 = performance.now();
const by = new Map<string, string[]>();
const ends = new Map<string, number>();
let n = 0;
const want = process.argv[2];
for (const fault of faults) {
  if (want !== undefined && `${fault.at} ${fault.kind}` !== want) continue;
  const t = performance.now();
  const r = await runSingle(1, plainScenario, fault, want !== undefined);
  if (performance.now() - t > 500) console.log("slow", fault, performance.now() - t, r.events);
  n++;
  ends.set(r.status, (ends.get(r.status) ?? 0) + 1);
  if (r.injected.length === 0) console.log("not injected", fault);
  for (const v of r.violations) {
    const k = `${v.invariant}: ${v.text}`.replace(/\d{4,}/g, "N");
    by.set(k, [...(by.get(k) ?? []), `${fault.at} ${fault.kind}`]);
  }
  if (want !== undefined) console.log(r.trace.join("\n"), r.violations, r.status);
}
console.log(n, "runs", performance.now() - t0, ends);
for (const [k, v] of [...by].sort((a, b) => b[1].length - a[1].length)) console.log(v.length, k, "\n      ", v.slice(0, 3).join("\n       "));
process.exit(0);
