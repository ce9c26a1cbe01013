/**
 * `vmferry migrate`: asks for a migration and follows it. The request carries a fresh Idempotency-Key and is repeated until
 * it is answered, so a control plane that restarts in between neither loses it nor makes two.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type * as z from "zod/mini";
import { type Migration, migrationSchema } from "../http/migration-resource.ts";
import { acceptedCodes } from "./check-command.ts";
import { type ApiClient, mayPass } from "./client.ts";
import type { CommandContext, Run } from "./command.ts";
import { exitCodes } from "./exit-code.ts";
import { MigrationView, printOutcome } from "./migration-view.ts";
import type { Terminal } from "./terminal.ts";
import { follow } from "./watch.ts";

/** Tries of the request; with the waits between them about half a minute, the time a control plane takes to restart. */
const requestTriesMax = 8;

const request = (context: CommandContext, client: ApiClient, body: unknown): Promise<Migration> =>
  requestOnce(context, client, { path: "/v1/migrations", schema: migrationSchema, body });

/** A request that makes something, repeated under one key until it is answered. */
export async function requestOnce<T>(
  context: CommandContext,
  client: ApiClient,
  { path, schema, body }: { path: string; schema: z.ZodMiniType<T>; body: unknown },
): Promise<T> {
  const idempotencyKey = randomUUID();
  for (
    let tries = 1, waitMs = context.pace.retryMs;
    ;
    tries += 1, waitMs = Math.min(waitMs * 2, context.pace.retryMsMax)
  )
    try {
      return await client.ask(path, schema, { method: "POST", body, idempotencyKey });
    } catch (error) {
      if (!mayPass(error) || tries >= requestTriesMax) throw error;
      context.terminal.err(`${client.url} does not answer; asking again.`);
      await sleep(waitMs, undefined, { signal: context.signal });
    }
}

/** Follows a migration, prints how it ended, returns its exit code. Ctrl-C leaves it running and says so. */
export async function watchToEnd(
  context: CommandContext,
  client: ApiClient,
  id: string,
  json: boolean,
): Promise<number> {
  const { terminal, pace, signal } = context;
  try {
    const ended = await follow(client, id, { watcher: new MigrationView(terminal), pace, signal });
    return printOutcome(terminal, ended, json);
  } catch (error) {
    if (!signal.aborted) throw error;
    terminal.status(null);
    terminal.err(`Left ${id} alone: it goes on without this terminal.`);
    terminal.err(`  watch:  vmferry migration watch ${id}`);
    terminal.err(`  cancel: vmferry migration cancel ${id}`);
    return exitCodes.interrupted;
  }
}

/** What `--detach` prints: the id alone on stdout, or the resource. */
export function leave(
  terminal: Terminal,
  what: "migration" | "evacuation",
  begun: { id: string },
  json: boolean,
): number {
  if (json) terminal.json(begun);
  else {
    terminal.out(begun.id);
    terminal.err(`It runs. Watch it: vmferry ${what} watch ${begun.id}`);
  }
  return exitCodes.ok;
}

export const migrate: Run = async (context, invocation) => {
  const { terminal } = context;
  const from = invocation.text("from");
  const bandwidth = invocation.count("bandwidth");
  const body = {
    domain: invocation.positional("DOMAIN"),
    destination: invocation.required("to"),
    ...(from === undefined ? {} : { source: from }),
    accept: acceptedCodes(invocation.texts("accept")),
    autoConverge: invocation.flag("auto-converge"),
    ...(bandwidth === undefined ? {} : { bandwidthMiBps: bandwidth }),
  };
  const json = invocation.flag("json");
  const client = await context.connect();
  const migration = await request(context, client, body);
  if (invocation.flag("detach")) return leave(terminal, "migration", migration, json);
  terminal.err(`${migration.id}: ${migration.domain.name} from ${migration.source} to ${migration.destination}`);
  return watchToEnd(context, client, migration.id, json);
};
