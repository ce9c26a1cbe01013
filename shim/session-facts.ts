/** What a hello and a heartbeat say of this host: versions, capacity, what its libvirt can do. Not reachable is a fact too. */
import type { LibvirtConnection } from "#libvirt/client";
import { procedures } from "#libvirt/procedures";
import { formatVersion } from "#libvirt/version";
import { textCharsMax } from "#protocol/limits";
import type { HostFacts } from "#protocol/message";
import type { PeerAddress } from "#protocol/peer-address";
import { readLibvirtHost } from "./host-facts.ts";
import { messageOf } from "./libvirt-fault.ts";
import { read } from "./probe.ts";
import { shimVersion } from "./shim-version.ts";

/** virDrvFeature numbers asked for (driver.h): V3, typed parameters as strings, offline, parameters, events. */
const featuresAsked = [6, 7, 9, 11, 12, 13, 14] as const;

/** A hello must not wait for a daemon that hangs: the session matters more than its facts. */
const factsMsMax = 3_000;

export interface FactsParts {
  libvirt(): Promise<LibvirtConnection>;
  migrationAddress: string | null;
  peer: PeerAddress | null;
  labels: Readonly<Record<string, string>>;
}

/** Never rejects. */
export async function readHostFacts({ libvirt, migrationAddress, peer, labels }: FactsParts): Promise<HostFacts> {
  return {
    shimVersion,
    nodeVersion: process.version,
    migrationAddress,
    peer,
    ...(Object.keys(labels).length === 0 ? {} : { labels: { ...labels } }),
    libvirt: await libvirtFacts(libvirt),
  };
}

async function libvirtFacts(open: () => Promise<LibvirtConnection>): Promise<HostFacts["libvirt"]> {
  const overdue = Promise.withResolvers<never>();
  const timer = setTimeout(
    () => overdue.reject(new Error(`libvirt's daemon did not answer within ${factsMsMax} ms`)),
    factsMsMax,
  );
  try {
    return await Promise.race([readFacts(open), overdue.promise]);
  } catch (error) {
    return { reachable: false, cause: messageOf(error).slice(0, textCharsMax) };
  } finally {
    clearTimeout(timer);
  }
}

async function readFacts(open: () => Promise<LibvirtConnection>): Promise<HostFacts["libvirt"]> {
  const libvirt = await open();
  const [host, { hostname }, { uri }, node, { freeMem }, ...supported] = await Promise.all([
    readLibvirtHost(libvirt),
    read(libvirt, procedures.connectGetHostname, {}),
    read(libvirt, procedures.connectGetUri, {}),
    read(libvirt, procedures.nodeGetInfo, {}),
    read(libvirt, procedures.nodeGetFreeMemory, {}),
    ...featuresAsked.map((feature) => read(libvirt, procedures.connectSupportsFeature, { feature })),
  ]);
  return {
    reachable: true,
    hostUuid: host.uuid,
    hostname,
    uri,
    libvirtVersion: formatVersion(host.libvirtVersion),
    hypervisorVersion: formatVersion(host.hypervisorVersion),
    arch: node.model,
    cpus: node.cpus,
    memoryKiB: node.memory,
    freeMemoryKiB: Math.floor(freeMem / 1024),
    features: featuresAsked.filter((_, index) => supported[index]?.supported === true),
  };
}
