/**
 * `npm run infra:check`: the infrastructure without a cloud. Fetches SST's sources once, checks sst.config.ts and infra/
 * against SST's own types, and lets test/infra look at every resource that a deployment would ask for.
 */
import { globSync } from "node:fs";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { installPlatform, root } from "./platform.ts";
import { typeErrors } from "./types.ts";

installPlatform();

const errors = typeErrors();
for (const error of errors) console.log(error);
console.log(errors.length === 0 ? "types: ok" : `types: ${errors.length} errors`);

const counts = { passed: 0, failed: 0 };
const files = globSync("test/infra/*.test.ts", { cwd: root }).sort();
if (files.length === 0) throw new Error("test/infra has no tests");
const events = run({ files, cwd: root, concurrency: 2, isolation: "process" });
events.on("test:pass", ({ details }) => {
  if (details.type !== "suite") counts.passed += 1;
});
events.on("test:fail", ({ details }) => {
  if (details.type !== "suite") counts.failed += 1;
});
for await (const line of events.compose(new spec())) process.stdout.write(String(line));
console.log(`${counts.passed} passed, ${counts.failed} failed, types ${errors.length === 0 ? "ok" : "NOT ok"}`);
if (errors.length > 0 || counts.failed > 0 || counts.passed === 0) process.exitCode = 1;
