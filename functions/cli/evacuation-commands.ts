/** `vmferry evacuations` and `vmferry evacuation show/watch/cancel/undo`. */
import { type Evacuation, evacuationRowSchema, evacuationSchema } from "../http/evacuation-resource.ts";
import { CliError } from "./cli-error.ts";
import type { Run } from "./command.ts";
import { move, watchEvacuationToEnd, wishes } from "./evacuate-command.ts";
import { exitCodes } from "./exit-code.ts";
import { limitsText } from "./plan-text.ts";
import { printTable, tableLines } from "./table.ts";

const evacuationPath = (id: string) => `/v1/evacuations/${encodeURIComponent(id)}`;

export const listEvacuations: Run = async (context, invocation) => {
  const client = await context.connect();
  const active = invocation.flag("active");
  printTable(context.terminal, {
    json: invocation.flag("json"),
    items: await client.all(`/v1/evacuations${active ? "?active=true" : ""}`, evacuationRowSchema),
    head: ["EVACUATION", "KIND", "HOST", "STATUS", "MOVED", "MOVING", "WAITING", "STAY", "FAILED", "BEGAN", "ENDED"],
    row: ({ id, kind, host, status, counts, createdAt, endedAt }) => [
      id,
      kind,
      host,
      status,
      String(counts.moved),
      String(counts.moving),
      String(counts.waiting),
      String(counts.stays),
      String(counts.failed),
      createdAt,
      endedAt ?? "-",
    ],
    empty: active ? "No evacuation is active." : "There was no evacuation yet.",
  });
  return exitCodes.ok;
};

function storyLines(evacuation: Evacuation): string[] {
  const { id, kind, host, status, undoes, origin, deadlineAt, createdAt, endedAt, counts, policy } = evacuation;
  const names = new Map(evacuation.domains.map(({ domain }) => [domain.uuid, domain.name]));
  const by = [origin.by, ...(origin.rule === null ? [] : [`rule ${origin.rule}`]), ...(origin.trigger ?? [])].join(
    ", ",
  );
  return [
    `evacuation   ${id}`,
    `what         ${kind} ${host}${undoes === null ? "" : `, takes back ${undoes}`}`,
    `status       ${status}: ${counts.moved} moved, ${counts.moving} moving, ${counts.waiting} waiting, ${counts.stays} stay, ${counts.failed} failed`,
    `asked by     ${by}`,
    `began        ${createdAt}`,
    ...(endedAt === null ? [] : [`ended        ${endedAt}`]),
    `deadline     ${deadlineAt ?? "none"}`,
    `limits       ${limitsText(policy)}, ${policy.attemptsMax} tries of each, stops after ${policy.breakerFailures} failures in a row`,
    ...(policy.to === null ? [] : [`only to      ${policy.to.join(", ")}`]),
    ...(evacuation.held === null ? [] : [`held         ${evacuation.held.cause}`]),
    ...(evacuation.stopped === null ? [] : [`stopped      ${evacuation.stopped.code}: ${evacuation.stopped.cause}`]),
    "",
    ...tableLines(
      ["DOMAIN", "STATE", "FROM", "TO", "TRIES", "MIGRATION", "BECAUSE"],
      evacuation.domains.map((each) => [
        each.domain.name,
        each.state,
        each.home,
        each.destination ?? "-",
        String(each.attempts),
        each.migration ?? "-",
        each.reason === null ? "" : `${each.reason.code}: ${each.reason.cause} Next: ${each.reason.action}`,
      ]),
    ),
    "",
    ...evacuation.timeline.map(
      ({ at, domain, note }) => `${at}  ${domain === null ? "" : `${names.get(domain) ?? domain}  `}${note}`,
    ),
  ];
}

export const showEvacuation: Run = async (context, invocation) => {
  const client = await context.connect();
  const evacuation = await client.ask(evacuationPath(invocation.positional("ID")), evacuationSchema);
  if (invocation.flag("json")) context.terminal.json(evacuation);
  else for (const line of storyLines(evacuation)) context.terminal.out(line);
  return exitCodes.ok;
};

export const watchEvacuation: Run = async (context, invocation) => {
  const client = await context.connect();
  const { id } = await client.ask(evacuationPath(invocation.positional("ID")), evacuationSchema);
  return watchEvacuationToEnd(context, client, id, invocation.flag("json"));
};

/** Says what the wish came to: exit 0 when it is cancelled, 1 when it had ended otherwise. */
export const cancelEvacuation: Run = async (context, invocation) => {
  const { terminal } = context;
  const client = await context.connect();
  const path = evacuationPath(invocation.positional("ID"));
  const json = invocation.flag("json");
  let evacuation: Evacuation;
  try {
    evacuation = await client.ask(`${path}/cancel`, evacuationSchema, { method: "POST" });
  } catch (error) {
    if (!(error instanceof CliError && error.code === "request.conflict")) throw error;
    evacuation = await client.ask(path, evacuationSchema);
    if (evacuation.endedAt === null) throw error;
  }
  if (evacuation.endedAt === null && !invocation.flag("no-wait")) {
    terminal.err(`${evacuation.id}: nothing more is started; ${evacuation.counts.moving} are let end.`);
    await watchEvacuationToEnd(context, client, evacuation.id, json);
    const ended = await client.ask(path, evacuationSchema);
    return ended.status === "cancelled" ? exitCodes.ok : exitCodes.rolledBack;
  }
  if (json) terminal.json(evacuation);
  else
    terminal.out(
      `${evacuation.id}: ${evacuation.endedAt === null ? "cancelling" : evacuation.status}, ${evacuation.counts.moved} moved`,
    );
  if (evacuation.endedAt !== null && evacuation.status !== "cancelled") {
    terminal.err(`too late: it had ended. To bring back what it moved: vmferry evacuation undo ${evacuation.id}`);
    return exitCodes.rolledBack;
  }
  return exitCodes.ok;
};

export const undoEvacuation: Run = (context, invocation) =>
  move(context, invocation, {
    path: `${evacuationPath(invocation.positional("ID"))}/undo`,
    body: wishes(invocation),
  });
