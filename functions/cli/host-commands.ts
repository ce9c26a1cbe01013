/** `vmferry hosts` and `vmferry host show/cordon/uncordon/remove`. */
import { type Host, hostDetailSchema, hostSchema } from "../http/host-resource.ts";
import type { CommandContext, Run } from "./command.ts";
import { domainHead, domainRow } from "./domain-rows.ts";
import { exitCodes } from "./exit-code.ts";
import { printTable, tableLines } from "./table.ts";
import { sizeText } from "./terminal.ts";

const connection = ({ connected, cordoned, lastSeenAt, shuttingUntil = null }: Host) =>
  `${connected ? "connected" : lastSeenAt === null ? "never seen" : "offline"}${cordoned ? ", cordoned" : ""}${shuttingUntil === null ? "" : `, shuts down (held until ${shuttingUntil} at most)`}`;

const labelText = ({ labels }: Host) =>
  Object.entries(labels)
    .map(([key, value]) => `${key}=${value}`)
    .sort()
    .join(",") || "-";

const hostPath = (name: string) => `/v1/hosts/${encodeURIComponent(name)}`;

export const listHosts: Run = async (context, invocation) => {
  const client = await context.connect();
  printTable(context.terminal, {
    json: invocation.flag("json"),
    items: await client.all("/v1/hosts", hostSchema),
    head: ["HOST", "STATE", "LIBVIRT", "QEMU", "CPUS", "MEMORY", "FREE", "LABELS", "LAST SEEN"],
    row: (host) => {
      const libvirt = host.facts?.libvirt;
      const reachable = libvirt?.reachable === true ? libvirt : null;
      return [
        host.name,
        connection(host),
        reachable?.libvirtVersion ?? (libvirt === undefined ? "-" : "unreachable"),
        reachable?.hypervisorVersion ?? "-",
        host.capacity === null ? "-" : String(host.capacity.cpus),
        host.capacity === null ? "-" : sizeText(host.capacity.memoryBytes),
        host.capacity === null ? "-" : sizeText(host.capacity.freeMemoryBytes),
        labelText(host),
        host.lastSeenAt ?? "-",
      ];
    },
    empty: "There is no host yet: vmferry join-token create, then vmferry shim on the host.",
  });
  return exitCodes.ok;
};

export const showHost: Run = async (context, invocation) => {
  const { terminal } = context;
  const client = await context.connect();
  const host = await client.ask(hostPath(invocation.positional("HOST")), hostDetailSchema);
  if (invocation.flag("json")) {
    terminal.json(host);
    return exitCodes.ok;
  }
  const { facts } = host;
  terminal.out(`host       ${host.name} (${host.id})`);
  terminal.out(`state      ${connection(host)}, last seen ${host.lastSeenAt ?? "never"}, enrolled ${host.enrolledAt}`);
  terminal.out(`labels     ${labelText(host)}`);
  terminal.out(`protocol   ${host.protocol ?? "-"}  ${host.features.join(" ")}`);
  if (facts !== null) {
    terminal.out(`shim       ${facts.shimVersion} on Node ${facts.nodeVersion}`);
    terminal.out(`receives   ${facts.migrationAddress ?? "where libvirt decides (its hostname)"}`);
    if (facts.libvirt.reachable) {
      terminal.out(
        `libvirt    ${facts.libvirt.libvirtVersion}, QEMU ${facts.libvirt.hypervisorVersion}, ${facts.libvirt.uri}`,
      );
      terminal.out(`uuid       ${facts.libvirt.hostUuid}`);
    } else terminal.out(`libvirt    unreachable: ${facts.libvirt.cause}`);
  }
  if (host.capacity !== null)
    terminal.out(
      `capacity   ${host.capacity.cpus} CPUs, ${sizeText(host.capacity.freeMemoryBytes)} of ${sizeText(host.capacity.memoryBytes)} free`,
    );
  terminal.out(`domains    ${host.domains.length}`);
  if (host.domains.length > 0)
    for (const line of tableLines(domainHead, host.domains.map(domainRow))) terminal.out(`  ${line}`);
  return exitCodes.ok;
};

async function setCordoned(context: CommandContext, name: string, cordoned: boolean): Promise<number> {
  const client = await context.connect();
  const host = await client.ask(hostPath(name), hostSchema, { method: "PATCH", body: { cordoned } });
  context.terminal.out(`${host.name}: ${connection(host)}`);
  return exitCodes.ok;
}

export const cordonHost: Run = (context, invocation) => setCordoned(context, invocation.positional("HOST"), true);
export const uncordonHost: Run = (context, invocation) => setCordoned(context, invocation.positional("HOST"), false);

export const removeHost: Run = async (context, invocation) => {
  const name = invocation.positional("HOST");
  const client = await context.connect();
  await client.tell(hostPath(name), { method: "DELETE" });
  context.terminal.out(`${name}: removed; its domains were not touched`);
  return exitCodes.ok;
};
