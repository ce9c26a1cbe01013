/**
 * What the records alone say against a request, before any host is asked: the same for a person's migration, a bundle's and an evacuation's.
 */

import type { FaultBody } from "#protocol/fault";
import { protocolFeatures, protocolVersions } from "#protocol/message";
import { isShuttingDown } from "./core/host-shutdown.ts";
import type { HostRecord, Ports } from "./ports.ts";

/** Whether a host was heard of recently enough to ask anything of it. */
export function isConnected(
  { lastSeenAt }: Pick<HostRecord, "lastSeenAt">,
  { clock, pace }: Pick<Ports, "clock" | "pace">,
): boolean {
  return lastSeenAt !== null && Date.parse(clock.now()) - Date.parse(lastSeenAt) <= pace.offlineAfterMs;
}

/** Whether somebody has asked a host to shut down and has not taken it back. */
export const isShutting = (
  { shuttingUntil }: Pick<HostRecord, "shuttingUntil">,
  { clock }: Pick<Ports, "clock">,
): boolean => shuttingUntil !== undefined && isShuttingDown(shuttingUntil, Date.parse(clock.now()));

const body = (
  code: FaultBody["code"],
  cause: string,
  action: string,
  retry: FaultBody["retry"] = "safe",
): FaultBody => ({
  code,
  cause,
  action,
  retry,
});

/** What the records alone say against using this host now, worst first. */
export function hostRefusals(
  host: HostRecord,
  side: "source" | "destination",
  ports: Pick<Ports, "clock" | "pace">,
): FaultBody[] {
  const refusals: FaultBody[] = [];
  if (!isConnected(host, ports))
    refusals.push(
      body(
        "host.offline",
        host.lastSeenAt === null
          ? `The ${side} ${host.name} has never connected.`
          : `The ${side} ${host.name} was last heard of at ${host.lastSeenAt}.`,
        `Start the shim on ${host.name} (systemctl status vmferry-shim).`,
      ),
    );
  if (side === "destination" && host.cordoned)
    refusals.push(
      body(
        "host.cordoned",
        `The destination ${host.name} is cordoned: it takes no new domains.`,
        `Uncordon it (vmferry host uncordon ${host.name}) or choose another host.`,
      ),
    );
  if (side === "destination" && isShutting(host, ports))
    refusals.push(
      body(
        "host.cordoned",
        `The destination ${host.name} is asked to shut down: it takes no new domains.`,
        `Choose another host; ${host.name} takes domains again when the shutdown is taken back (shutdown -c) or over.`,
      ),
    );
  const missing = protocolFeatures.filter((feature) => !host.features.includes(feature));
  const { protocol } = host;
  if (protocol !== null && (protocol < protocolVersions.min || protocol > protocolVersions.max || missing.length > 0))
    refusals.push(
      body(
        "shim.incompatible",
        `The shim on the ${side} ${host.name} speaks protocol ${protocol}` +
          `${missing.length > 0 ? ` and does not know ${missing.join(", ")}` : ""}.`,
        `Update the shim on ${host.name} (${protocolVersions.min} to ${protocolVersions.max} is spoken here).`,
        "never",
      ),
    );
  return refusals;
}

/** What the records say against this pair of hosts. */
export function pairRefusals(source: HostRecord, destination: HostRecord): FaultBody[] {
  if (source.id === destination.id)
    return [
      body("destination.sameHost", `The domain is on ${source.name} already.`, "Choose another destination.", "never"),
    ];
  const one = source.facts?.libvirt;
  const other = destination.facts?.libvirt;
  if (one?.reachable === true && other?.reachable === true && one.hostUuid === other.hostUuid)
    return [
      body(
        "destination.duplicateUuid",
        `${source.name} and ${destination.name} report the same host UUID ${one.hostUuid}; libvirt would take them for one host.`,
        "Set a host_uuid of its own in libvirtd.conf of one of them and restart its daemon.",
        "never",
      ),
    ];
  return [];
}

/**
 * Who works on a domain already, as a refusal; null when nobody does, or only `own`: the same request, sent twice at once,
 * finds the lock that its twin has taken meanwhile.
 */
export async function busyRefusal(
  ports: Ports,
  domain: { uuid: string; name: string },
  own: string | null = null,
): Promise<FaultBody | null> {
  const lock = await ports.migrations.domainLock(domain.uuid);
  if (lock === null || lock.migrationId === own) return null;
  return body(
    "domain.busy",
    `Domain ${domain.name} is already being worked on by ${lock.migrationId}.`,
    `Wait for its end: vmferry migration watch ${lock.migrationId}.`,
  );
}
