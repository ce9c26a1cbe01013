/**
 * sst.config.ts and infra/ against SST's generated types. SST's own sources come along and do not pass our strict rules;
 * only what is found in our files counts. That a fault would be found is proven by planted-errors.ts in the same run.
 */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { root } from "./platform.ts";

const isForeign = (line: string) => /^(?:\.\.\/)*(?:\.sst|node_modules)\//.test(line);

/** What the compiler finds in our files, one line each. Throws when it did not do its work. */
export function typeErrors(): string[] {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(root, "node_modules/typescript/bin/tsc"), "--noEmit", "--pretty", "false", "-p", "infra/check/tsconfig.json"],
    { cwd: root, encoding: "utf8", maxBuffer: 256 * 1024 * 1024 },
  );
  // 0: no errors at all; 1 and 2: errors were found.
  if (status === null || status > 2) throw new Error(`tsc ended with ${status}:\n${stdout}${stderr}`);
  const found = stdout.split("\n").filter((line) => /error TS\d+:/.test(line));
  // An error without a file is one of the configuration: nothing was checked.
  return found.filter((line) => !isForeign(line));
}
