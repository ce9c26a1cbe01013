/** `vmferry domains` and `vmferry domain show`. */
import { type Domain, domainDetailSchema, domainSchema } from "../http/host-resource.ts";
import { CliError } from "./cli-error.ts";
import type { ApiClient } from "./client.ts";
import type { Run } from "./command.ts";
import { domainHead, domainRow } from "./domain-rows.ts";
import { exitCodes } from "./exit-code.ts";
import { treeLines } from "./snapshot-tree.ts";
import { printTable } from "./table.ts";
import { sizeText } from "./terminal.ts";

export const listDomains: Run = async (context, invocation) => {
  const host = invocation.text("host");
  const client = await context.connect();
  printTable(context.terminal, {
    json: invocation.flag("json"),
    items: await client.all(
      `/v1/domains${host === undefined ? "" : `?host=${encodeURIComponent(host)}`}`,
      domainSchema,
    ),
    head: domainHead,
    row: domainRow,
    empty: host === undefined ? "No host has a domain." : `${host} has no domain.`,
  });
  return exitCodes.ok;
};

/** Where the domain is, when no host was named: it must be one place. */
async function findHost(client: ApiClient, nameOrUuid: string): Promise<string> {
  const domains = await client.all("/v1/domains", domainSchema);
  const found = domains.filter(({ name, uuid }) => name === nameOrUuid || uuid === nameOrUuid);
  const [only] = found;
  if (found.length === 1 && only !== undefined) return only.host;
  const running = found.filter(({ state }: Domain) => state === "running" || state === "paused");
  const sameUuid = new Set(found.map(({ uuid }) => uuid)).size === 1;
  if (sameUuid && running.length === 1 && running[0] !== undefined) return running[0].host;
  throw new CliError(
    only === undefined
      ? {
          code: "domain.absent",
          cause: `No host has a domain ${nameOrUuid}.`,
          action: "vmferry domains",
          exit: exitCodes.blocked,
        }
      : {
          code: "domain.notUnique",
          cause: `${nameOrUuid} is on ${found.map(({ host }) => host).join(", ")}.`,
          action: `vmferry domain show ${nameOrUuid} --host ${only.host}`,
          exit: exitCodes.blocked,
        },
  );
}

export const showDomain: Run = async (context, invocation) => {
  const { terminal } = context;
  const name = invocation.positional("DOMAIN");
  const client = await context.connect();
  const host = invocation.text("host") ?? (await findHost(client, name));
  const domain = await client.ask(
    `/v1/hosts/${encodeURIComponent(host)}/domains/${encodeURIComponent(name)}`,
    domainDetailSchema,
  );
  if (invocation.flag("json")) {
    terminal.json(domain);
    return exitCodes.ok;
  }
  terminal.out(`domain       ${domain.name} (${domain.uuid})`);
  terminal.out(`host         ${domain.host}`);
  terminal.out(
    `state        ${domain.state}${domain.persistent ? "" : ", transient"}${domain.autostart ? ", autostart" : ""}`,
  );
  terminal.out(`size         ${domain.vcpus} vCPUs, ${sizeText(domain.memoryBytes)}`);
  for (const [label, value] of Object.entries(domain.labels)) terminal.out(`label        ${label}=${value}`);
  terminal.out(`checkpoints  ${domain.checkpoints}`);
  terminal.out(`snapshots    ${domain.snapshotsTotal}`);
  if (domain.snapshotTree === null) terminal.err(`${domain.host} did not answer: the snapshot tree is not known now.`);
  else {
    for (const line of treeLines(domain.snapshotTree)) terminal.out(`  ${line}`);
    const hidden = domain.snapshotsTotal - domain.snapshotTree.length;
    if (hidden > 0) terminal.out(`  ... and ${hidden} more`);
  }
  return exitCodes.ok;
};
