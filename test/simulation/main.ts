/** placeholder */
import { simulate } from "./run.ts";
const result = await simulate({ seed: Number(process.argv[2] ?? 1), tracing: true });
console.log(result.trace.join("\n"));
console.log({ ...result, trace: result.trace.length });
process.exit(0);
