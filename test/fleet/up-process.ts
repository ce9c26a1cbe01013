/** `vmferry up` as a process of its own, with a timer that a bounded test may quicken: arguments are the data folder, the port and the timer's ms.
 * VMFERRY_FLEET_LOG names a file to which everything that it says is added. */
import { createWriteStream, mkdirSync } from "node:fs";
import { join } from "node:path";
import { startUp } from "../../functions/cli/up.ts";

const [folder = "", port = "0", timerMs = "60000"] = process.argv.slice(2);
const home = join(folder, "home");
mkdirSync(home, { recursive: true });
const logPath = process.env.VMFERRY_FLEET_LOG;
const log = logPath === undefined ? null : createWriteStream(logPath, { flags: "a" });
const say = (line: string) => {
  if (log === null) console.error(line);
  else log.write(`${new Date().toISOString()} ${line}\n`);
};
const up = await startUp({
  dataDir: join(folder, "data"),
  listen: `127.0.0.1:${port}`,
  timerMs: Number(timerMs),
  // The client's own configuration of whoever runs this stays as it is.
  env: { ...process.env, HOME: home, XDG_CONFIG_HOME: home },
  out: say,
  err: say,
});
process.on("SIGTERM", () => void up.close().then(() => process.exit(0)));
console.log(`ready ${up.url}`);
