/**
 * A domain as one libvirtd keeps it: its definition, its snapshot records, its QEMU. Rules as in reference/libvirt.md,
 * section 9: parents first, who deletes a parent's record hands its children on, redefining replaces.
 */
import { DomainState, ErrorCode, ErrorDomain, ShutoffReason } from "#libvirt/constants";
import { LibvirtError } from "#libvirt/error";
import type { RemoteDomain } from "#libvirt/handle";
import type { SimConnection } from "./sim-connection.ts";

export const nothingElse = { level: 2, dom: null, str1: null, str2: null, str3: null, int1: 0, int2: 0, net: null };

/** libvirt's refusal. */
export const refusal = (procedure: string, code: number, message: string, domain: number = ErrorDomain.QEMU) =>
  new LibvirtError(procedure, { code, domain, message, ...nothingElse });

export interface SnapshotRecord {
  parent: string | null;
  /** Tells one snapshot from another of the same name. */
  createdAt: number;
}

export const snapshotXml = (name: string, { parent, createdAt }: SnapshotRecord, uuid: string) =>
  `<domainsnapshot><name>${name}</name>${parent === null ? "" : `<parent><name>${parent}</name></parent>`}` +
  `<creationTime>${createdAt}</creationTime><state>running</state><domain><uuid>${uuid}</uuid></domain></domainsnapshot>`;

export const domainXml = ({ name, uuid }: { name: string; uuid: string }) =>
  `<domain type='kvm'><name>${name}</name><uuid>${uuid}</uuid><memory>1024</memory><vcpu>1</vcpu></domain>`;

const element = (xml: string, name: string) => new RegExp(`<${name}>([^<]*)</${name}>`).exec(xml)?.[1];

export class SnapshotRecords {
  readonly records = new Map<string, SnapshotRecord>();
  current: string | null = null;

  redefine(procedure: string, xml: string, uuid: string, makesCurrent: boolean): string {
    const parent = element(/<parent>.*?<\/parent>/s.exec(xml)?.[0] ?? "", "name") ?? null;
    const name = element(xml.replace(/<parent>.*?<\/parent>/s, ""), "name") ?? "";
    if (element(xml, "uuid") !== uuid)
      throw refusal(procedure, ErrorCode.INVALID_ARG, `definition for snapshot ${name} must use uuid ${uuid}`);
    if (parent !== null && !this.records.has(parent))
      throw refusal(procedure, ErrorCode.INVALID_ARG, `parent ${parent} for moment ${name} not found`);
    this.records.set(name, { parent, createdAt: Number(element(xml, "creationTime") ?? 0) });
    if (makesCurrent) this.current = name;
    return name;
  }

  /** What `virsh snapshot-create` does: a child of the current one, and current. */
  take(name: string, createdAt: number): void {
    this.records.set(name, { parent: this.current, createdAt });
    this.current = name;
  }

  delete(procedure: string, name: string): void {
    const gone = this.#known(procedure, name);
    for (const [other, record] of this.records)
      if (record.parent === name) this.records.set(other, { ...record, parent: gone.parent });
    if (this.current === name) this.current = gone.parent;
    this.records.delete(name);
  }

  xml(procedure: string, name: string, uuid: string): string {
    return snapshotXml(name, this.#known(procedure, name), uuid);
  }

  /** Parents first. */
  topological(): string[] {
    const names = new Set<string>();
    const add = (name: string): void => {
      if (names.has(name)) return;
      const parent = this.records.get(name)?.parent ?? null;
      if (parent !== null && this.records.has(parent)) add(parent);
      names.add(name);
    };
    for (const name of this.records.keys()) add(name);
    return [...names];
  }

  /** One text for equal trees, current one included. */
  digest(): string {
    const lines = [...this.records].map(([name, { parent, createdAt }]) => `${name}<${parent ?? ""}@${createdAt}`);
    return `${lines.sort().join(" ")} *${this.current ?? ""}`;
  }

  #known(procedure: string, name: string): SnapshotRecord {
    const record = this.records.get(name);
    if (record !== undefined) return record;
    const text = `no domain snapshot with matching name '${name}'`;
    throw refusal(procedure, ErrorCode.NO_DOMAIN_SNAPSHOT, text, ErrorDomain.DOMAIN_SNAPSHOT);
  }
}

/** A QEMU process. `life` numbers the guest's life that is in its memory; null: nothing has arrived yet. */
export interface Qemu {
  life: number | null;
  cpu: "running" | "paused";
  reason: number;
}

export type Job =
  | { kind: "incoming"; token: string; connection: SimConnection | null; paused: boolean }
  | {
      kind: "outgoing";
      phase: "performing" | "switching" | "done";
      token: string;
      connection: SimConnection | null;
      wasRunning: boolean;
    };

export class SimDomain {
  readonly name: string;
  readonly uuid: string;
  persistent: boolean;
  autostart = false;
  shutoffReason: number = ShutoffReason.UNKNOWN;
  readonly snapshots = new SnapshotRecords();
  qemu: Qemu | null = null;
  job: Job | null = null;
  id = -1;

  constructor(name: string, uuid: string, persistent: boolean) {
    this.name = name;
    this.uuid = uuid;
    this.persistent = persistent;
  }

  get handle(): RemoteDomain {
    return { name: this.name, uuid: this.uuid, id: this.qemu === null ? -1 : this.id };
  }

  get state(): { state: number; reason: number } {
    if (this.qemu === null) return { state: DomainState.SHUTOFF, reason: this.shutoffReason };
    const state = this.qemu.cpu === "running" ? DomainState.RUNNING : DomainState.PAUSED;
    return { state, reason: this.qemu.reason };
  }
}
