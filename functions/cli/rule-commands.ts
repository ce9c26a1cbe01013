/** `vmferry rules` and `vmferry rule ...`: written from files, shown with their next windows and runs, run, paused, approved by hand. */
import { readFile } from "node:fs/promises";
import {
  mintedCredentialSchema,
  type RuleDetail,
  type RuleRow,
  ruleDetailSchema,
  ruleRowSchema,
  ruleRunReplySchema,
  ruleVersionSchema,
  ruleWrittenSchema,
} from "../http/rule-resource.ts";
import { CliError } from "./cli-error.ts";
import type { CommandContext, Run } from "./command.ts";
import { exitCodes } from "./exit-code.ts";
import { readRuleFile } from "./rule-file.ts";
import { printTable, tableLines } from "./table.ts";
import type { Terminal } from "./terminal.ts";

const rulePath = (name: string) => `/v1/rules/${encodeURIComponent(name)}`;

/** When it acts, in one line. */
function whenText({ when }: RuleRow["rule"]): string {
  if (when.kind !== "schedule") {
    const matchers = Object.entries(when.matchers).map(([label, value]) => `${label}=${[value].flat().join("|")}`);
    return [when.kind, ...matchers].join(" ");
  }
  return `${when.cron} ${when.timeZone} ${when.window === undefined ? `until ${when.until}` : `for ${when.window}`}`;
}

function whichText({ which }: RuleRow["rule"]): string {
  const { fromTrigger } = which;
  return [
    ...(which.names ?? []),
    ...Object.entries(which.labels ?? {}).map(([label, value]) => `${label}=${value}`),
    ...(fromTrigger === undefined ? [] : [`trigger's ${fromTrigger.label}`]),
  ].join(" ");
}

export const listRules: Run = async (context, invocation) => {
  const client = await context.connect();
  printTable(context.terminal, {
    json: invocation.flag("json"),
    items: await client.all("/v1/rules", ruleRowSchema),
    head: ["RULE", "VERSION", "STATE", "WHEN", "WHICH", "NEXT WINDOW"],
    row: ({ name, version, paused, rule, nextWindows }) => [
      name,
      String(version),
      paused ? "paused" : "active",
      whenText(rule),
      whichText(rule),
      nextWindows[0]?.opensAt ?? "-",
    ],
    empty: "There is no rule yet: vmferry rule apply -f FILE.",
  });
  return exitCodes.ok;
};

function showDecision(
  terminal: Terminal,
  {
    hosts,
    refusals,
    approval,
  }: { hosts: string[]; refusals: { host: string | null; cause: string }[]; approval: boolean },
  verb: string,
): void {
  const waits = approval ? ", after an approval" : "";
  if (hosts.length > 0) terminal.out(`${verb}  ${hosts.join(" ")}${waits}`);
  for (const { host, cause } of refusals) terminal.out(`not  ${host === null ? "" : `${host}: `}${cause}`);
}

export const applyRule: Run = async (context, invocation) => {
  const { terminal } = context;
  const dryRun = invocation.flag("dry-run");
  const version = invocation.text("version");
  const { name, document } = await readRuleFile(invocation.required("file"));
  const query = new URLSearchParams({
    ...(dryRun ? { dryRun: "true" } : {}),
    ...(version === undefined ? {} : { version }),
  });
  const client = await context.connect();
  const path = `${rulePath(name)}${query.size > 0 ? `?${query}` : ""}`;
  const written = await client.ask(path, ruleWrittenSchema, { method: "PUT", body: document });
  if (invocation.flag("json")) {
    terminal.json(written);
    return exitCodes.ok;
  }
  const what = written.changed ? (dryRun ? "would be written" : "written") : "unchanged";
  terminal.out(`${written.name}: ${what}, version ${written.version}${written.paused ? ", paused" : ""}`);
  for (const { opensAt, closesAt } of written.nextWindows) terminal.out(`window  ${opensAt} to ${closesAt}`);
  if (written.now !== null) showDecision(terminal, written.now, "a run now would evacuate");
  const { kind } = written.rule.when;
  if (!dryRun && (kind === "webhook" || kind === "alertmanager" || kind === "aws-health"))
    terminal.err(
      `Its trigger is ${client.url}${triggerPath(written)}; vmferry rule credential add ${name} makes what its sender needs.`,
    );
  return exitCodes.ok;
};

const triggerPath = ({ name, rule }: RuleRow): string =>
  `/v1/triggers/${name}${rule.when.kind === "webhook" ? "" : `/${rule.when.kind}`}`;

function showRuns(terminal: Terminal, rule: RuleDetail): void {
  for (const run of [...(rule.run === null ? [] : [rule.run]), ...rule.past]) {
    const ended = run.endedAt === null ? "open" : `ended ${run.endedAt}`;
    terminal.out(`run      ${run.id} ${run.createdAt} by ${run.event.source}, ${ended}`);
    const rows = run.hosts.map(({ host, state, at, evacuationId, reason }) => [
      host.name,
      state,
      at,
      evacuationId ?? "-",
      reason ?? "",
    ]);
    for (const line of tableLines(["HOST", "STATE", "SINCE", "EVACUATION", ""], rows)) terminal.out(`  ${line}`);
  }
  for (const { host, away } of rule.restores)
    terminal.out(
      `restore  ${host.name} ${away ? "when it answers again" : "when it was away and answers again, or is uncordoned"}`,
    );
  for (const { at, host, cause } of rule.refusals)
    terminal.out(`not      ${at} ${host === null ? "" : `${host}: `}${cause}`);
}

export const showRule: Run = async (context, invocation) => {
  const { terminal } = context;
  const client = await context.connect();
  const rule = await client.ask(rulePath(invocation.positional("NAME")), ruleDetailSchema);
  if (invocation.flag("json")) {
    terminal.json(rule);
    return exitCodes.ok;
  }
  terminal.out(
    `rule     ${rule.name}, version ${rule.version} by ${rule.by} at ${rule.at}${rule.paused ? ", paused" : ""}`,
  );
  if (rule.rule.description !== "") terminal.out(`         ${rule.rule.description}`);
  terminal.out(`when     ${whenText(rule.rule)}`);
  terminal.out(`which    ${whichText(rule.rule)}`);
  const { approval, coolDown, hostsAtOnce } = rule.rule.how;
  terminal.out(
    `how      approval ${approval}, cool-down ${coolDown}, ${hostsAtOnce} at once; restore ${rule.rule.after.restore}`,
  );
  for (const { opensAt, closesAt } of rule.nextWindows) terminal.out(`window   ${opensAt} to ${closesAt}`);
  for (const { id, kind, createdAt, by } of rule.credentials)
    terminal.out(`sender   ${kind} ${id} since ${createdAt} by ${by}`);
  showRuns(terminal, rule);
  return exitCodes.ok;
};

export const listRuleVersions: Run = async (context, invocation) => {
  const client = await context.connect();
  printTable(context.terminal, {
    json: invocation.flag("json"),
    items: await client.all(`${rulePath(invocation.positional("NAME"))}/versions`, ruleVersionSchema),
    head: ["VERSION", "AT", "BY", "STATE", "WHEN"],
    row: ({ version, at, by, paused, deleted, rule }) => [
      String(version),
      at,
      by,
      deleted ? "deleted" : paused ? "paused" : "active",
      whenText(rule),
    ],
    empty: "There is no version.",
  });
  return exitCodes.ok;
};

export const runRule: Run = async (context, invocation) => {
  const { terminal } = context;
  const name = invocation.positional("NAME");
  const hosts = invocation.texts("host").flatMap((text) => text.split(","));
  const dryRun = invocation.flag("dry-run");
  const client = await context.connect();
  const ran = await client.ask(`${rulePath(name)}/run`, ruleRunReplySchema, {
    method: "POST",
    body: { dryRun, ...(hosts.length === 0 ? {} : { hosts }) },
    ...(dryRun ? {} : { idempotencyKey: crypto.randomUUID() }),
  });
  if (invocation.flag("json")) terminal.json(ran);
  else {
    showDecision(terminal, ran, dryRun ? "would evacuate" : "evacuates");
    for (const { host, evacuationId, state } of ran.run?.hosts ?? [])
      terminal.out(`  ${host.name}: ${evacuationId === null ? state : `vmferry evacuation watch ${evacuationId}`}`);
  }
  return ran.hosts.length > 0 ? exitCodes.ok : exitCodes.blocked;
};

async function setPaused(context: CommandContext, name: string, paused: boolean): Promise<number> {
  const client = await context.connect();
  const rule = await client.ask(rulePath(name), ruleRowSchema, { method: "PATCH", body: { paused } });
  context.terminal.out(`${rule.name}: ${rule.paused ? "paused" : "active"}, version ${rule.version}`);
  return exitCodes.ok;
}
export const pauseRule: Run = (context, invocation) => setPaused(context, invocation.positional("NAME"), true);
export const resumeRule: Run = (context, invocation) => setPaused(context, invocation.positional("NAME"), false);

export const deleteRule: Run = async (context, invocation) => {
  const name = invocation.positional("NAME");
  const client = await context.connect();
  await client.tell(rulePath(name), { method: "DELETE" });
  context.terminal.out(`${name}: deleted; its versions stay (vmferry rule versions ${name})`);
  return exitCodes.ok;
};

async function decide(context: CommandContext, name: string, word: "approve" | "refuse"): Promise<number> {
  const client = await context.connect();
  const { run } = await client.ask(rulePath(name), ruleDetailSchema);
  if (run === null || !run.hosts.some(({ state }) => state === "awaitingApproval"))
    throw new CliError({
      code: "request.conflict",
      cause: `Nothing of ${name} waits for an approval.`,
      action: `Look at it: vmferry rule show ${name}.`,
      exit: exitCodes.blocked,
    });
  const path = `${rulePath(name)}/runs/${encodeURIComponent(run.id)}/${word}`;
  showRuns(context.terminal, await client.ask(path, ruleDetailSchema, { method: "POST" }));
  return exitCodes.ok;
}
export const approveRule: Run = (context, invocation) => decide(context, invocation.positional("NAME"), "approve");
export const refuseRule: Run = (context, invocation) => decide(context, invocation.positional("NAME"), "refuse");

export const addCredential: Run = async (context, invocation) => {
  const { terminal } = context;
  const name = invocation.positional("NAME");
  const file = invocation.text("value-file");
  // From a file, so that a secret is in no process list and no shell's history.
  const value = file === undefined ? undefined : (await readFile(file, "utf8")).trim();
  const client = await context.connect();
  const made = await client.ask(`${rulePath(name)}/credentials`, mintedCredentialSchema, {
    method: "POST",
    body: value === undefined ? {} : { value },
  });
  if (invocation.flag("json")) terminal.json(made);
  else {
    if (made.value !== null) terminal.out(made.value);
    terminal.err(`${made.kind} ${made.id} of ${name}${made.value === null ? "" : "; it is not shown again"}.`);
  }
  return exitCodes.ok;
};

export const removeCredential: Run = async (context, invocation) => {
  const [name, id] = [invocation.positional("NAME"), invocation.positional("CREDENTIAL")];
  const client = await context.connect();
  await client.tell(`${rulePath(name)}/credentials/${encodeURIComponent(id)}`, { method: "DELETE" });
  context.terminal.out(`${id}: removed from ${name}`);
  return exitCodes.ok;
};
