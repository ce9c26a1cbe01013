/**
 * `vmferry migration cancel`: asks, waits for what became of it and says that, not what was hoped for. From Perform on the
 * two hosts decide which came first, so the answer to the request is not yet the outcome.
 */
import { type Migration, migrationSchema } from "../http/migration-resource.ts";
import { CliError } from "./cli-error.ts";
import type { CommandContext, Run } from "./command.ts";
import { exitCodes } from "./exit-code.ts";
import { migrationPath } from "./migration-commands.ts";
import { MigrationView, printOutcome } from "./migration-view.ts";
import { durationText } from "./terminal.ts";
import { follow } from "./watch.ts";

/** On these steps the source gives the domain up for good, or has: nothing turns that round. */
const decidedSteps: ReadonlySet<Migration["step"]> = new Set(["confirm", "settle"]);

export const cancelMigration: Run = async (context, invocation) => {
  const { terminal, pace, signal } = context;
  const json = invocation.flag("json");
  const client = await context.connect();
  const path = migrationPath(invocation.positional("ID"));
  const { migration, refusal } = await asked();
  if (migration.endedAt !== null) return verdict(context, migration, json);
  if (refusal !== null && migration.cancel?.outcome !== "pending" && decidedSteps.has(migration.step)) {
    if (json) terminal.json(migration);
    else
      terminal.out(
        `too late: ${migration.destination} has stated that it runs ${migration.domain.name} (${migration.id})`,
      );
    terminal.err(`See how it ends: vmferry migration watch ${migration.id}`);
    return exitCodes.rolledBack;
  }
  if (invocation.flag("no-wait")) {
    if (json) terminal.json(migration);
    else terminal.out(`${migration.id}: cancelling in ${migration.step}; whether it came in time is not known yet`);
    terminal.err(`See how it ends: vmferry migration watch ${migration.id}`);
    return exitCodes.ok;
  }
  const patience = AbortSignal.timeout(pace.verdictMsMax);
  try {
    const watcher = new MigrationView(terminal);
    const ended = await follow(client, migration.id, { watcher, pace, signal: AbortSignal.any([signal, patience]) });
    return verdict(context, ended, json);
  } catch (error) {
    if (signal.aborted || !patience.aborted) throw error;
    throw new CliError({
      code: "cancel.undecided",
      cause: `What became of the cancel is not known after ${durationText(pace.verdictMsMax)}; the wish stands and the migration goes on to its end.`,
      action: `See how it ends: vmferry migration watch ${migration.id}`,
      exit: exitCodes.lostSight,
    });
  }

  /** A refusal is not the last word: it may be turning back already, by this wish sent twice or another's. */
  async function asked(): Promise<{ migration: Migration; refusal: CliError | null }> {
    try {
      return { migration: await client.ask(`${path}/cancel`, migrationSchema, { method: "POST" }), refusal: null };
    } catch (error) {
      if (!(error instanceof CliError && error.code === "request.conflict")) throw error;
      return { migration: await client.ask(path, migrationSchema), refusal: error };
    }
  }
};

/** What the wish has come to, from how the migration stands at its end. */
function verdict({ terminal }: CommandContext, migration: Migration, json: boolean): number {
  const { id, domain, source, destination, status, error } = migration;
  if (status === "stranded") return printOutcome(terminal, migration, json);
  terminal.status(null);
  if (json) terminal.json(migration);
  switch (status) {
    case "completed":
      if (!json) terminal.out(`too late: ${domain.name} is on ${destination} (${id})`);
      terminal.err(`To have it back: vmferry migrate ${domain.uuid} --from ${destination} --to ${source}`);
      return exitCodes.rolledBack;
    case "cancelled":
      if (!json) terminal.out(`cancelled: ${domain.name} stays on ${source} (${id})`);
      return exitCodes.ok;
    default:
      // Nobody's wish, but what was wished for.
      if (!json) terminal.out(`${status}: ${domain.name} stays on ${source}, though not by this cancel (${id})`);
      if (error !== null) terminal.err(`vmferry: ${error.code}: ${error.cause}`);
      return exitCodes.ok;
  }
}
