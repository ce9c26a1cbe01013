/**
 * Who is meant: a host by name or id, a domain by name or UUID. The inventory is eventually consistent and serves to find
 * a candidate; the inspection on the hosts decides. The newest fact wins: where one domain stands on two hosts (a staged
 * definition, a row not yet swept), the running copy is the domain.
 */
import type { DomainState } from "#protocol/command";
import type { FaultBody } from "#protocol/fault";
import { protocolFeatures, protocolVersions } from "#protocol/message";
import type { HostRecord, PlacedDomain, Ports } from "../ports.ts";
import { isConnected } from "./host-resource.ts";
import { fault } from "./problem.ts";

const hostIdPattern = /^h_[0-9A-HJKMNP-TV-Z]{26}$/;

/** Finds a host. Throws `host.absent`. */
export async function hostNamed(ports: Ports, nameOrId: string): Promise<HostRecord> {
  const host = hostIdPattern.test(nameOrId) ? await ports.hosts.byId(nameOrId) : await ports.hosts.byName(nameOrId);
  if (host === null) throw fault("host.absent", `There is no host ${nameOrId}.`, "Look at: vmferry hosts.");
  return host;
}

export interface Placed {
  domain: PlacedDomain;
  host: HostRecord;
}

const activeStates: ReadonlySet<DomainState> = new Set(["running", "blocked", "paused", "shutdown", "pmsuspended"]);
const isActive = ({ domain }: Placed) => activeStates.has(domain.state);

/** Finds the one domain that is meant. Throws `domain.absent`, `domain.notUnique`. */
export async function placeDomain(ports: Ports, nameOrUuid: string, source: HostRecord | null): Promise<Placed> {
  if (source !== null) return onHost(ports, nameOrUuid, source);
  const placed = await known(ports, await ports.hosts.findDomains(nameOrUuid));
  const byUuid = placed.filter(({ domain }) => domain.uuid === nameOrUuid);
  const candidates = byUuid.length > 0 ? byUuid : placed;
  const [first] = candidates;
  if (first === undefined)
    throw fault(
      "domain.absent",
      `No host has a domain ${nameOrUuid}.`,
      "Look at: vmferry domains. A domain defined just now is seen within seconds.",
      "safe",
    );
  if (candidates.length === 1) return first;
  const oneDomain = candidates.every(({ domain }) => domain.uuid === first.domain.uuid);
  const active = candidates.filter(isActive);
  if (oneDomain && active.length === 1 && active[0] !== undefined) return active[0];
  const moving = oneDomain ? await movingFrom(ports, candidates) : undefined;
  if (moving !== undefined) return moving;
  const hosts = candidates.map(({ host, domain }) => `${host.name} (${domain.uuid}, ${domain.state})`).sort();
  throw fault(
    "domain.notUnique",
    `${nameOrUuid} is on more than one host: ${hosts.slice(0, 10).join(", ")}.`,
    "Name the source host (--from H), or use the UUID.",
  );
}

/** Where a domain is that a migration is moving: both sides may show it as active, and until Finish it is its source's. */
async function movingFrom(ports: Ports, candidates: readonly Placed[]): Promise<Placed | undefined> {
  const [first] = candidates;
  const lock = first === undefined ? null : await ports.migrations.domainLock(first.domain.uuid);
  const migration = lock === null ? null : await ports.migrations.load(lock.migrationId);
  return candidates.find(({ host }) => host.id === migration?.source.id);
}

async function onHost(ports: Ports, nameOrUuid: string, host: HostRecord): Promise<Placed> {
  const domains = await ports.hosts.domainsOf(host.id);
  const domain =
    domains.find((candidate) => candidate.uuid === nameOrUuid) ??
    domains.find((candidate) => candidate.name === nameOrUuid);
  if (domain === undefined)
    throw fault(
      "domain.absent",
      `Host ${host.name} has no domain ${nameOrUuid}.`,
      `Look at: vmferry domains --host ${host.name}.`,
      "safe",
    );
  return { domain, host };
}

/** Drops rows of hosts that were removed. */
async function known(ports: Ports, domains: PlacedDomain[]): Promise<Placed[]> {
  const placed = await Promise.all(
    domains.map(async (domain) => ({ domain, host: await ports.hosts.byId(domain.hostId) })),
  );
  return placed.flatMap(({ domain, host }) => (host === null ? [] : [{ domain, host }]));
}

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
