/**
 * `npm test`: every kind of test in order, cheapest first, in Node's own runner. Installs what the real-host tests need
 * when it may (root on Debian) and otherwise says loudly what was skipped and why. The last line counts everything.
 *
 * `npm test -- unit contract` runs only these kinds; `npm test -- test/unit/frame.test.ts` only these files.
 */
import { globSync } from "node:fs";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { installPrerequisites, missingPackages } from "#lab/prerequisites";

/** Real hosts share two cores: one file at a time. The cheap kinds run side by side. */
const kinds = [
  { name: "unit", concurrency: 2 },
  { name: "simulation", concurrency: 2 },
  { name: "golden", concurrency: 2 },
  { name: "contract", concurrency: 1 },
  { name: "e2e", concurrency: 1 },
] as const;
/** These boot real hosts, so they need root and Debian's packages. */
const real: ReadonlySet<string> = new Set(["contract", "e2e"]);

const wanted = process.argv.slice(2);
const counts = { passed: 0, failed: 0, skipped: 0 };
const skips: string[] = [];
const failures: string[] = [];

async function runFiles(files: string[], concurrency: number): Promise<void> {
  const events = run({ files, concurrency, isolation: "process" });
  events.on("test:pass", (event) => {
    if (event.details.type === "suite") return;
    if (event.skip === undefined || event.skip === false) counts.passed += 1;
    else {
      counts.skipped += 1;
      skips.push(`${event.name}${typeof event.skip === "string" ? `: ${event.skip}` : ""}`);
    }
  });
  events.on("test:fail", (event) => {
    if (event.details.type === "suite" && event.details.error.message.includes("subtest")) return;
    counts.failed += 1;
    failures.push(`${event.file ?? ""} ${event.name}`);
  });
  for await (const line of events.compose(new spec())) process.stdout.write(String(line));
}

async function prepare(): Promise<string | null> {
  if ((await missingPackages()).length === 0) return process.getuid?.() === 0 ? null : "real hosts need root";
  try {
    await installPrerequisites({ log: (line) => console.log(line) });
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

const named = wanted.filter((argument) => argument.endsWith(".ts"));
if (named.length > 0) await runFiles(named, 1);
else
  for (const { name, concurrency } of kinds) {
    if (wanted.length > 0 && !wanted.includes(name)) continue;
    const files = globSync(`test/${name}/**/*.test.ts`).sort();
    if (files.length === 0) continue;
    const lacking = real.has(name) ? await prepare() : null;
    if (lacking !== null) {
      counts.skipped += files.length;
      skips.push(`ALL ${files.length} files of test/${name}: ${lacking}`);
      continue;
    }
    console.log(`\n== ${name}: ${files.length} files`);
    await runFiles(files, concurrency);
  }

if (skips.length > 0) {
  console.log(`\n!!! SKIPPED, and so not proven by this run:`);
  for (const skip of skips) console.log(`!!!   ${skip}`);
}
if (failures.length > 0) {
  console.log("\nFailed:");
  for (const failure of failures) console.log(`  ${failure}`);
}
if (counts.passed + counts.failed === 0) {
  console.log("no test ran");
  process.exitCode = 1;
}
console.log(`\n${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
if (counts.failed > 0) process.exitCode = 1;
