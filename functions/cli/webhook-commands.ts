/** `vmferry webhooks` and `vmferry webhook ...`: where events are posted, whether they arrive, and if not why. */
import {
  type WebhookRow,
  webhookRowSchema,
  webhookSecretMadeSchema,
  webhookTestedSchema,
  webhookWrittenSchema,
} from "../http/webhook-resource.ts";
import { type CommandContext, type Invocation, type Run, usageError } from "./command.ts";
import { exitCodes } from "./exit-code.ts";
import { printTable } from "./table.ts";
import type { Terminal } from "./terminal.ts";

const webhookPath = (name: string) => `/v1/webhooks/${encodeURIComponent(name)}`;

/** In one word. */
function stateOf({ paused, delivery }: WebhookRow): string {
  if (paused !== null) return "paused";
  return delivery.attempts > 0 ? "failing" : "active";
}

/** The last answer, or that there was none. */
function lastAnswer({ delivery: { lastAttemptAt, lastError, lastStatus } }: WebhookRow): string {
  if (lastAttemptAt === null) return "nothing was posted yet";
  return lastError ?? `it answered ${lastStatus}`;
}

export const listWebhooks: Run = async (context, invocation) => {
  const client = await context.connect();
  printTable(context.terminal, {
    json: invocation.flag("json"),
    items: await client.all("/v1/webhooks", webhookRowSchema),
    head: ["WEBHOOK", "STATE", "DELIVERED", "FAILED", "DROPPED", "TYPES", "LAST ANSWER"],
    row: (row) => [
      row.name,
      stateOf(row),
      String(row.delivery.delivered),
      String(row.delivery.failed),
      String(row.delivery.dropped),
      row.types.join(","),
      lastAnswer(row),
    ],
    empty: "There is no webhook yet: vmferry webhook set NAME --url URL.",
  });
  return exitCodes.ok;
};

/** Secrets go to the output alone, so that a script can take them; what is said of them does not. */
function showSecret(terminal: Terminal, name: string, secret: string): void {
  terminal.out(secret);
  terminal.err(`The secret of ${name}; it is not shown again. Its receiver verifies webhook-signature with it.`);
}

export const setWebhook: Run = async (context, invocation) => {
  const { terminal } = context;
  const name = invocation.positional("NAME");
  const url = invocation.required("url");
  const types = invocation.texts("type").flatMap((text) => text.split(","));
  const client = await context.connect();
  const written = await client.ask(webhookPath(name), webhookWrittenSchema, {
    method: "PUT",
    body: { url, ...(types.length === 0 ? {} : { types }) },
  });
  if (invocation.flag("json")) {
    terminal.json(written);
    return exitCodes.ok;
  }
  terminal.err(
    `${written.name}: ${written.changed ? "written" : "unchanged"}, posts ${written.types.join(", ")} to ${written.url}`,
  );
  if (written.secret !== null) showSecret(terminal, name, written.secret);
  if (written.paused !== null) terminal.err(`It is paused: ${written.paused.reason}. vmferry webhook resume ${name}`);
  else if (written.secret !== null) terminal.err(`Try it: vmferry webhook test ${name}`);
  return exitCodes.ok;
};

function show(terminal: Terminal, row: WebhookRow): void {
  const { delivery, paused } = row;
  terminal.out(`webhook    ${row.name}, by ${row.by} at ${row.changedAt}`);
  terminal.out(`url        ${row.url}`);
  terminal.out(`types      ${row.types.join(", ")}`);
  if (paused !== null) terminal.out(`paused     by ${paused.by} at ${paused.at}: ${paused.reason}`);
  for (const { id, createdAt, until } of row.secrets)
    terminal.out(`secret     ${id} since ${createdAt}${until === null ? "" : `, signs until ${until}`}`);
  terminal.out(
    `delivered  ${delivery.delivered}${delivery.deliveredAt === null ? "" : `, last at ${delivery.deliveredAt}`}`,
  );
  terminal.out(`failed     ${delivery.failed} attempts; ${lastAnswer(row)}`);
  if (delivery.failingSince !== null)
    terminal.out(
      `failing    since ${delivery.failingSince}, ${delivery.attempts} in a row${delivery.nextAttemptAt === null ? "" : `; next at ${delivery.nextAttemptAt}`}`,
    );
  if (delivery.pending !== null)
    terminal.out(
      `waits      ${delivery.pending.type} ${delivery.pending.eventId} of ${delivery.pending.writtenAt}, and all after it`,
    );
  if (delivery.lastDropped !== null)
    terminal.out(
      `dropped    ${delivery.dropped}, last ${delivery.lastDropped.type} ${delivery.lastDropped.eventId} at ${delivery.lastDropped.at}`,
    );
}

/** Asks for a webhook, by GET or by what changes it, and shows it as it is then. */
async function shown(
  { connect, terminal }: CommandContext,
  invocation: Invocation,
  suffix = "",
  body?: unknown,
): Promise<number> {
  const client = await connect();
  const path = `${webhookPath(invocation.positional("NAME"))}${suffix}`;
  const asked = suffix === "" ? {} : { method: "POST" as const, ...(body === undefined ? {} : { body }) };
  const row = await client.ask(path, webhookRowSchema, asked);
  if (invocation.flag("json")) terminal.json(row);
  else show(terminal, row);
  return exitCodes.ok;
}
export const showWebhook: Run = (context, invocation) => shown(context, invocation);
export const pauseWebhook: Run = (context, invocation) => shown(context, invocation, "/pause");
export const resumeWebhook: Run = (context, invocation) => shown(context, invocation, "/resume");

export const replayWebhook: Run = async (context, invocation) => {
  const text = invocation.required("since");
  const isDuration = /^\d+[smhd]$/.test(text);
  const sinceMs = isDuration ? Date.now() - (invocation.durationMs("since") ?? 0) : Date.parse(text);
  if (Number.isNaN(sinceMs))
    throw usageError(
      `--since takes a time such as 2026-11-23T08:00:00Z or a duration such as 2h, not ${text}.`,
      invocation.words,
    );
  return shown(context, invocation, "/replay", { since: new Date(sinceMs).toISOString() });
};

export const testWebhook: Run = async ({ connect, terminal }, invocation) => {
  const name = invocation.positional("NAME");
  const client = await connect();
  const tested = await client.ask(`${webhookPath(name)}/test`, webhookTestedSchema, { method: "POST" });
  if (invocation.flag("json")) terminal.json(tested);
  else {
    const answer = tested.status === null ? `no answer: ${tested.error}` : `it answered ${tested.status}`;
    terminal.out(`${name}: ${tested.taken ? "taken" : "not taken"}, ${answer} (${tested.ms} ms, ${tested.eventId})`);
  }
  return tested.taken ? exitCodes.ok : exitCodes.rolledBack;
};

export const rotateWebhook: Run = async ({ connect, terminal }, invocation) => {
  const name = invocation.positional("NAME");
  const overlapMs = invocation.flag("now") ? 0 : invocation.durationMs("overlap");
  const client = await connect();
  const made = await client.ask(`${webhookPath(name)}/secret`, webhookSecretMadeSchema, {
    method: "POST",
    body: overlapMs === undefined ? {} : { overlapMs },
  });
  if (invocation.flag("json")) {
    terminal.json(made);
    return exitCodes.ok;
  }
  showSecret(terminal, name, made.secret);
  const until = made.secrets.find((secret) => secret.until !== null)?.until;
  terminal.err(
    until === undefined ? "The former secret signs no longer." : `The former secret signs as well until ${until}.`,
  );
  return exitCodes.ok;
};

export const deleteWebhook: Run = async ({ connect, terminal }, invocation) => {
  const name = invocation.positional("NAME");
  const client = await connect();
  await client.tell(webhookPath(name), { method: "DELETE" });
  terminal.out(`${name}: deleted`);
  return exitCodes.ok;
};
