/**
 * `vmferry migration resolve`: a person states that a host is fenced. Nothing else ends the wait for a host that is gone for
 * good, and a wrong statement can make two running copies, so what it does is said before, the host's name is typed once
 * more, and what became of it is said after.
 */
import { type Migration, migrationSchema } from "../http/migration-resource.ts";
import { CliError } from "./cli-error.ts";
import { type CommandContext, type Run, usageError } from "./command.ts";
import { exitCodes } from "./exit-code.ts";
import { watchToEnd } from "./migrate-command.ts";
import { migrationPath } from "./migration-commands.ts";

export const resolveMigration: Run = async (context, invocation) => {
  const { terminal } = context;
  const fenced = invocation.required("fenced");
  const reason = invocation.required("reason").trim();
  if (reason === "") throw usageError("--reason says nothing.", invocation.words);
  const json = invocation.flag("json");
  const client = await context.connect();
  const path = migrationPath(invocation.positional("ID"));
  const before = await client.ask(path, migrationSchema);
  for (const line of consequence(before, fenced)) terminal.err(line);
  if (!invocation.flag("yes")) await confirmed(context, fenced, invocation.words);
  const after = await client.ask(`${path}/resolve`, migrationSchema, { method: "POST", body: { fenced, reason } });
  terminal.err(`${after.id}: recorded by ${after.fenced?.by ?? "you"}: ${fenced} is fenced: ${reason}`);
  if (!invocation.flag("no-wait")) return watchToEnd(context, client, after.id, json);
  if (json) terminal.json(after);
  else terminal.out(`${after.id}: ${after.status}, ${after.step}`);
  return exitCodes.ok;
};

async function confirmed({ terminal, signal }: CommandContext, fenced: string, words: readonly string[]) {
  const typed = await terminal.question(`Type the host's name to state that it is fenced (${fenced}):`);
  signal.throwIfAborted();
  if (typed === null) throw usageError("Nobody can be asked here; --yes states it without being asked again.", words);
  if (typed !== fenced)
    throw new CliError({
      code: "resolve.notConfirmed",
      cause: "Another name was typed. Nothing was stated.",
      action: `Look at which host it is, then say it again: vmferry hosts.`,
      exit: exitCodes.usage,
    });
}

/** What the statement does at this step. The control plane decides; these words only say it beforehand. */
function consequence(migration: Migration, fenced: string): string[] {
  const { id, domain, source, destination, step, status } = migration;
  const head = `${id}: ${domain.name} from ${source} to ${destination}, ${status}, ${step}`;
  const warning = `If ${fenced} still runs ${domain.name}, or can start it again by itself, this may make two running copies on the same disks. Power it off first.`;
  const does = fenced === destination ? ofDestination(migration) : fenced === source ? ofSource(migration) : null;
  return [head, ...(does === null ? [] : [does]), warning];
}

function ofDestination({ domain, source, destination, step }: Migration): string {
  if (step === "settle")
    return `It ends as stranded: ${domain.name} had arrived on ${destination}, and nobody can look at it there.`;
  if (step === "unstage") return `It ends now; what was staged on ${destination} is swept when it returns.`;
  return `${destination} is taken to hold no running copy: ${domain.name} goes on on ${source}, as it is there.`;
}

function ofSource({ domain, source, destination, step, receipt }: Migration): string {
  if (receipt?.outcome === "started" || step === "confirm" || step === "settle")
    return `${domain.name} stays on ${destination}; ${source} gives its copy up when it returns.`;
  if (step === "perform" || step === "finish" || step === "abort")
    return `${destination} is asked whether it has started ${domain.name}. If it has, it stays there; if not, ${domain.name} stays defined on ${source}, not running.`;
  return `It ends without ${source}; what is left there is mended when it returns.`;
}
