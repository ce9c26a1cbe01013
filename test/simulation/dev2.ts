import { runSwarm } from "./swarm.ts";
const from = Number(process.argv[2] ?? 1);
const count = Number(process.argv[3] ?? 1);
const t0 = performance.now();
const by = new Map<string, string[]>();
const ends = new Map<string, number>();
let ev = 0, inj = 0;
for (let seed = from; seed < from + count; seed++) {
  const t = performance.now();
  const r = await runSwarm(seed, { tracing: count === 1 });
  if (performance.now() - t > 1500) console.log("slow", seed, performance.now() - t, r.events, r.injected.map((f) => `${f.at} ${f.kind}`));
  ev += r.events; inj += r.injected.length;
  const key = `${r.status}`;
  ends.set(key, (ends.get(key) ?? 0) + 1);
  for (const v of r.violations) {
    const k = `${v.invariant}: ${v.text}`.replace(/\d{4,}/g, "N");
    by.set(k, [...(by.get(k) ?? []), `${seed}: ${r.scenario.snapshots} ${r.scenario.guest}: ${r.injected.map((f) => `${f.at} ${f.kind}`).join(", ")}`]);
  }
  if (count === 1) console.log(r.trace.join("\n"), r.violations, r.status, r.scenario);
}
console.log(count, "runs", (performance.now() - t0) / count, "ms each", ev / count, "events", inj / count, "faults", ends);
for (const [k, v] of [...by].sort((a, b) => b[1].length - a[1].length)) console.log(v.length, k, "\n      ", v.sort((a, b) => a.length - b.length).slice(0, 3).join("\n       "));
process.exit(0);
