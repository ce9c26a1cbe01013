/** `vmferry up` as a process of its own, with the options that the command line does not show; JSON in the first argument. */
import * as z from "zod/mini";
import { CliError } from "#functions/cli/cli-error";
import { runUp } from "#functions/cli/up";

const optionsSchema = z.object({
  listen: z.string(),
  dataDir: z.string(),
  dynamodb: z.optional(z.string()),
  s3: z.optional(z.string()),
});

const options = optionsSchema.parse(JSON.parse(process.argv[2] ?? ""));
const stop = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, () => stop.abort());
try {
  process.exitCode = await runUp({
    listen: options.listen,
    dataDir: options.dataDir,
    ...(options.dynamodb === undefined ? {} : { dynamodb: options.dynamodb }),
    ...(options.s3 === undefined ? {} : { s3: options.s3 }),
    signal: stop.signal,
    out: (line) => console.log(line),
    err: (line) => console.error(line),
  });
} catch (error) {
  if (!(error instanceof CliError)) throw error;
  for (const line of error.lines()) console.error(line);
  process.exitCode = error.exit;
}
