/**
 * `vmferry evacuate`, and what every command that moves many domains shares: the plan of a dry run, or a request that is repeated until it is answered and
 * then followed to its end.
 */
import { type EvacuationPlan, evacuationPlanSchema, evacuationSchema } from "../http/evacuation-resource.ts";
import { acceptedCodes } from "./check-command.ts";
import type { ApiClient } from "./client.ts";
import type { CommandContext, Invocation, Run } from "./command.ts";
import { EvacuationView, printEvacuationEnd } from "./evacuation-view.ts";
import { exitCodes } from "./exit-code.ts";
import { leave, requestOnce } from "./migrate-command.ts";
import { count, planLines } from "./plan-text.ts";
import { followToEnd } from "./watch.ts";

/** Values of an option that may be repeated or separated by commas. */
export const listed = (texts: readonly string[]): string[] => acceptedCodes(texts);

/** What the options say of policy and deadline; what was not said is the server's default. */
export function wishes(invocation: Invocation): object {
  const parallel = invocation.count("parallel");
  const networkMax = invocation.count("network-parallel");
  const bandwidth = invocation.count("bandwidth");
  const accept = listed(invocation.texts("accept"));
  const deadline = invocation.text("deadline");
  // Said here for its form: the server says the same of the value.
  invocation.durationMs("deadline");
  return {
    policy: {
      ...(accept.length === 0 ? {} : { accept }),
      ...(bandwidth === undefined ? {} : { bandwidthMiBps: bandwidth }),
      ...(networkMax === undefined ? {} : { networkMax }),
      ...(parallel === undefined
        ? {}
        : { outMax: parallel, inMax: parallel, fleetMax: Math.max(parallel, fleetMaxDefault) }),
    },
    ...(deadline === undefined ? {} : { deadline }),
  };
}
/** As the server's own default: asking for more out of one host asks for as much of the fleet. */
const fleetMaxDefault = 5;

/** Exit code of a plan: 0 all go, 1 some stay, 3 none can go. */
export function exitOfPlan({ moves, blocked }: EvacuationPlan): number {
  if (blocked.length === 0) return exitCodes.ok;
  return moves.length > 0 ? exitCodes.rolledBack : exitCodes.blocked;
}

/** Plans or begins, and follows to the end unless it is left alone. */
export async function move(
  context: CommandContext,
  invocation: Invocation,
  { path, body }: { path: string; body: object },
): Promise<number> {
  const { terminal } = context;
  const json = invocation.flag("json");
  const client = await context.connect();
  if (invocation.flag("dry-run")) {
    terminal.status("asking the hosts ...");
    const plan = await client.ask(path, evacuationPlanSchema, { method: "POST", body: { ...body, dryRun: true } });
    terminal.status(null);
    if (json) terminal.json(plan);
    else for (const line of planLines(plan)) terminal.out(line);
    return exitOfPlan(plan);
  }
  terminal.status("asking the hosts ...");
  const evacuation = await requestOnce(context, client, { path, schema: evacuationSchema, body });
  terminal.status(null);
  if (invocation.flag("detach")) return leave(terminal, "evacuation", evacuation, json);
  terminal.err(
    `${evacuation.id}: ${evacuation.kind} ${evacuation.host}, ${count(evacuation.domains.length, "domain")}`,
  );
  return watchEvacuationToEnd(context, client, evacuation.id, json);
}

/** Follows it, prints how it ended, returns its exit code. Ctrl-C leaves it running and says so. */
export async function watchEvacuationToEnd(
  context: CommandContext,
  client: ApiClient,
  id: string,
  json: boolean,
): Promise<number> {
  const { terminal, pace, signal } = context;
  try {
    const ended = await followToEnd(
      client,
      {
        path: `/v1/evacuations/${id}`,
        schema: evacuationSchema,
        name: "evacuation",
        id,
        isOver: ({ endedAt }) => endedAt !== null,
      },
      { watcher: new EvacuationView(terminal), pace, signal },
    );
    return await printEvacuationEnd(terminal, client, ended, json);
  } catch (error) {
    if (!signal.aborted) throw error;
    terminal.status(null);
    terminal.err(`Left ${id} alone: it goes on without this terminal.`);
    terminal.err(`  watch:  vmferry evacuation watch ${id}`);
    terminal.err(`  cancel: vmferry evacuation cancel ${id}`);
    return exitCodes.interrupted;
  }
}

export const evacuate: Run = (context, invocation) => {
  const to = listed(invocation.texts("to"));
  const body = {
    host: invocation.positional("HOST"),
    ...(to.length === 0 ? {} : { to }),
    ...wishes(invocation),
  };
  return move(context, invocation, { path: "/v1/evacuations", body });
};
