/** Hosts and domains as the API shows them: sizes in bytes, times in RFC 3339, liveness from the last heartbeat. */
import * as z from "zod/mini";
import { domainStateSchema } from "#protocol/command";
import { hostFactsSchema, snapshotNodeSchema } from "#protocol/message";
import type { HostRecord, PlacedDomain, Ports } from "../ports.ts";
import { isConnected, isShutting } from "../refusals.ts";

export const hostSchema = z.object({
  id: z.string(),
  name: z.string(),
  /** Heard of within the last 35 s. */
  connected: z.boolean(),
  cordoned: z.boolean(),
  /** Somebody has asked this host to shut down, and until then it surely runs: it takes no domains. Null, or absent of an older one: nobody has. */
  shuttingUntil: z.optional(z.nullable(z.string())),
  enrolledAt: z.string(),
  lastSeenAt: z.nullable(z.string()),
  protocol: z.nullable(z.int()),
  features: z.array(z.string()),
  /** As its shim was started with (`--label`). */
  labels: z.record(z.string(), z.string()),
  /** What the shim said at its last hello; null before the first. */
  facts: z.nullable(hostFactsSchema),
  /** Null while libvirt is not reachable there. */
  capacity: z.nullable(z.object({ cpus: z.int(), memoryBytes: z.number(), freeMemoryBytes: z.number() })),
});
export type Host = z.infer<typeof hostSchema>;

export const domainSchema = z.object({
  uuid: z.string(),
  name: z.string(),
  host: z.string(),
  state: domainStateSchema,
  persistent: z.boolean(),
  autostart: z.boolean(),
  memoryBytes: z.number(),
  vcpus: z.int(),
  snapshots: z.int(),
  checkpoints: z.int(),
  labels: z.record(z.string(), z.string()),
});
export type Domain = z.infer<typeof domainSchema>;

export const hostDetailSchema = z.object({ ...hostSchema.shape, domains: z.array(domainSchema) });

export const domainDetailSchema = z.object({
  ...domainSchema.shape,
  /** In topological order, at most 500; null when the host did not answer and only the inventory is known. */
  snapshotTree: z.nullable(z.array(snapshotNodeSchema)),
  snapshotsTotal: z.int(),
});
export type DomainDetail = z.infer<typeof domainDetailSchema>;

export function hostResource(host: HostRecord, ports: Pick<Ports, "clock" | "pace">): Host {
  const libvirt = host.facts?.libvirt;
  return {
    id: host.id,
    name: host.name,
    connected: isConnected(host, ports),
    cordoned: host.cordoned,
    shuttingUntil: isShutting(host, ports) ? (host.shuttingUntil ?? null) : null,
    enrolledAt: host.enrolledAt,
    lastSeenAt: host.lastSeenAt,
    protocol: host.protocol,
    features: host.features,
    labels: host.facts?.labels ?? {},
    facts: host.facts,
    capacity:
      libvirt?.reachable === true
        ? {
            cpus: libvirt.cpus,
            memoryBytes: libvirt.memoryKiB * 1024,
            freeMemoryBytes: libvirt.freeMemoryKiB * 1024,
          }
        : null,
  };
}

/** `hostName`: the inventory names the host by id, people by name. */
export function domainResource(domain: Omit<PlacedDomain, "hostId">, hostName: string): Domain {
  return {
    uuid: domain.uuid,
    name: domain.name,
    host: hostName,
    state: domain.state,
    persistent: domain.persistent,
    autostart: domain.autostart,
    memoryBytes: domain.memoryKiB * 1024,
    vcpus: domain.vcpus,
    snapshots: domain.snapshots,
    checkpoints: domain.checkpoints,
    labels: domain.labels,
  };
}
