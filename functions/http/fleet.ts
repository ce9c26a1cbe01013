/**
 * Who is meant: a host by name or id, a domain by name or UUID. The inventory is eventually consistent and serves to find
 * a candidate; the inspection on the hosts decides. The newest fact wins: where one domain stands on two hosts (a staged
 * definition, a row not yet swept), the running copy is the domain.
 */
import type { DomainState } from "#protocol/command";
import type { HostRecord, PlacedDomain, Ports } from "../ports.ts";
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
