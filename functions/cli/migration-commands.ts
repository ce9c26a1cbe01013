/** `vmferry migrations` and `vmferry migration show/watch`. */
import { migrationSchema, migrationSummarySchema } from "../http/migration-resource.ts";
import type { Run } from "./command.ts";
import { exitCodes } from "./exit-code.ts";
import { watchToEnd } from "./migrate-command.ts";
import { storyLines } from "./migration-story.ts";
import { printTable } from "./table.ts";

export const migrationPath = (id: string) => `/v1/migrations/${encodeURIComponent(id)}`;

export const listMigrations: Run = async (context, invocation) => {
  const client = await context.connect();
  printTable(context.terminal, {
    json: invocation.flag("json"),
    items: await client.all(`/v1/migrations${invocation.flag("active") ? "?active=true" : ""}`, migrationSummarySchema),
    head: ["MIGRATION", "DOMAIN", "SOURCE", "DESTINATION", "STATUS", "STEP", "BEGAN", "ENDED"],
    row: ({ id, domain, source, destination, status, step, createdAt, endedAt }) => [
      id,
      domain.name,
      source,
      destination,
      status,
      step,
      createdAt,
      endedAt ?? "-",
    ],
    empty: invocation.flag("active") ? "No migration is active." : "There was no migration yet.",
  });
  return exitCodes.ok;
};

export const showMigration: Run = async (context, invocation) => {
  const client = await context.connect();
  const migration = await client.ask(migrationPath(invocation.positional("ID")), migrationSchema);
  if (invocation.flag("json")) context.terminal.json(migration);
  else for (const line of storyLines(migration)) context.terminal.out(line);
  return exitCodes.ok;
};

export const watchMigration: Run = async (context, invocation) => {
  const client = await context.connect();
  const { id } = await client.ask(migrationPath(invocation.positional("ID")), migrationSchema);
  return watchToEnd(context, client, id, invocation.flag("json"));
};
