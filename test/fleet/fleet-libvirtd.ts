/**
 * The libvirt of one host of a fleet: the simulated daemon (sim-libvirtd.ts), and beside it what a host is asked between migrations: its facts, its list of
 * domains, their sizes and labels, and events of what has changed. It tells `FleetTruth` where CPUs run and which migrations are on the host.
 */
import type { LibvirtConnection, Subscription } from "#libvirt/client";
import { DomainState, ErrorCode, LifecycleEvent } from "#libvirt/constants";
import type { RemoteDomain } from "#libvirt/handle";
import { type Procedure, procedures as p } from "#libvirt/procedures";
import { labelsUri } from "#shim/inventory-reader";
import { SimConnection } from "#test/simulation/sim-connection";
import { refusal, SimDomain } from "#test/simulation/sim-domain";
import { type Reply, SimLibvirtd } from "#test/simulation/sim-libvirtd";
import type { Life } from "#test/simulation/world";
import type { FleetLayout, LaidDomain, LaidHost } from "./fleet-layout.ts";
import type { FleetStreams } from "./fleet-streams.ts";
import { type FleetTruth, type HeldDomain, NoWitness } from "./fleet-truth.ts";
import type { RealWorld } from "./real-world.ts";

type Listener = Parameters<LibvirtConnection["onLifecycle"]>[0];
type Handler = (host: FleetLibvirtd, args: unknown) => unknown;

const asked = new Map<string, Handler>();

/** The procedure ties the arguments' type to the handler; the table cannot say so. */
function on<A, R>(procedure: Procedure<A, R>, handle: (host: FleetLibvirtd, args: A) => R): void {
  asked.set(procedure.name, (host, args) => handle(host, args as A));
}

on(p.connectGetHostname, (host) => ({ hostname: host.laid.name }));
on(p.connectGetUri, () => ({ uri: "qemu:///system" }));
on(p.connectGetLibVersion, () => ({ libVer: 9_000_000 }));
on(p.connectGetVersion, () => ({ hvVer: 7_002_000 }));
on(p.connectSupportsFeature, () => ({ supported: true }));
on(p.connectGetCapabilities, (host) => ({
  capabilities: `<capabilities><host><uuid>${host.laid.uuid}</uuid></host></capabilities>`,
}));
on(p.nodeGetInfo, ({ laid }) => ({
  model: "x86_64",
  memory: laid.memoryKiB,
  cpus: laid.cpus,
  mhz: 3_000,
  nodes: 1,
  sockets: 1,
  cores: laid.cpus,
  threads: 1,
}));
on(p.nodeGetFreeMemory, (host) => ({ freeMem: (host.laid.memoryKiB - host.memoryKiB()) * 1024 }));
on(p.connectListAllDomains, (host) => {
  const domains = [...host.domains.values()].map(({ handle }) => handle);
  return { domains, ret: domains.length };
});
on(p.domainGetInfo, (host, { dom }) => {
  const { state } = host.domain("domain_get_info", dom.uuid).state;
  const { memoryKiB, vcpus } = host.laidDomain(dom.uuid);
  return { state, maxMem: memoryKiB, memory: memoryKiB, nrVirtCpu: vcpus, cpuTime: 0n };
});
on(p.domainGetMetadata, (host, { dom, uri }) => {
  host.domain("domain_get_metadata", dom.uuid);
  if (uri !== labelsUri) throw refusal("domain_get_metadata", ErrorCode.NO_DOMAIN_METADATA, "no such metadata");
  const labels = Object.entries(host.laidDomain(dom.uuid).labels).map(
    ([name, value]) => `<label name="${name}">${value}</label>`,
  );
  return { metadata: `<labels>${labels.join("")}</labels>` };
});
on(p.domainSnapshotNum, (host, { dom }) => ({
  num: host.domain("domain_snapshot_num", dom.uuid).snapshots.records.size,
}));

/** After these the list of domains, or what is said of one, may differ. */
const changing: ReadonlySet<string> = new Set([
  p.domainDefineXmlFlags.name,
  p.domainUndefineFlags.name,
  p.domainSetAutostart.name,
  p.domainMigratePrepare3Params.name,
  p.domainMigrateFinish3Params.name,
  p.domainMigrateConfirm3Params.name,
]);

/** A migration leaves from Perform until its QEMU here has ended or goes on alone. */
const uuidIn = (args: unknown): string => (args as { dom: RemoteDomain }).dom.uuid;

export class FleetLibvirtd extends SimLibvirtd {
  readonly laid: LaidHost;
  readonly #layout: FleetLayout;
  readonly #truth: FleetTruth;
  readonly #listeners = new Set<Listener>();

  constructor(parts: {
    world: RealWorld;
    laid: LaidHost;
    layout: FleetLayout;
    truth: FleetTruth;
    streams: FleetStreams;
  }) {
    super(parts.world, "source", new NoWitness(parts.world), parts.streams);
    this.laid = parts.laid;
    this.#layout = parts.layout;
    this.#truth = parts.truth;
  }

  /** A running domain that has always been here. */
  place(laid: LaidDomain): void {
    const domain = new SimDomain(laid.name, laid.uuid, true);
    domain.autostart = true;
    for (let number = 1; number <= laid.snapshots; number += 1) domain.snapshots.take(`s${number}`, number);
    this.domains.set(laid.uuid, domain);
    this.start(domain, 1, "running", 1);
  }

  laidDomain(uuid: string): LaidDomain {
    const found = this.#layout.domains.get(uuid);
    if (found === undefined) throw new TypeError(`no such domain in this fleet: ${uuid}`);
    return found;
  }

  /** Of every QEMU that is there, incoming ones too. */
  memoryKiB(): number {
    let sum = 0;
    for (const { uuid, qemu } of this.domains.values()) if (qemu !== null) sum += this.laidDomain(uuid).memoryKiB;
    return sum;
  }

  held(): HeldDomain[] {
    return [...this.domains.values()].map((domain) => ({
      uuid: domain.uuid,
      name: domain.name,
      host: this.laid.index,
      state: domain.qemu?.cpu ?? "shutoff",
      persistent: domain.persistent,
      snapshots: domain.snapshots.digest(),
      life: domain.qemu?.life ?? null,
    }));
  }

  override async connect(life: Life): Promise<LibvirtConnection> {
    const connection = await super.connect(life);
    if (connection instanceof SimConnection)
      connection.onLifecycle = async (...[listener]: unknown[]): Promise<Subscription> => {
        const own = listener as Listener;
        this.#listeners.add(own);
        void connection.closed.then(() => this.#listeners.delete(own));
        return { callbackId: 1, cancel: async () => void this.#listeners.delete(own) };
      };
    return connection;
  }

  override execute(connection: SimConnection, name: string, args: unknown, refused: boolean, reply: Reply): void {
    const handler = asked.get(name);
    if (handler !== undefined) {
      reply.answer(handler(this, args));
      return;
    }
    if (name === p.domainMigratePerform3Params.name) this.#truth.begin("leaves", uuidIn(args), this.laid.index);
    super.execute(connection, name, args, refused, {
      answer: (value) => {
        if (name === p.domainMigratePrepare3Params.name) this.#arriving();
        if (name === p.domainMigratePerform3Params.name) this.#truth.counts.performs += 1;
        if (name === p.domainMigrateConfirm3Params.name) this.#truth.counts.confirmed += 1;
        reply.answer(value);
        if (changing.has(name)) this.#tell();
      },
      refuse: (error) => {
        if (name === p.domainMigratePerform3Params.name) {
          this.#truth.counts.broken += 1;
          this.#truth.end("leaves", uuidIn(args), this.laid.index);
        }
        reply.refuse(error);
      },
    });
  }

  #arriving(): void {
    for (const { uuid, job } of this.domains.values())
      if (job?.kind === "incoming") this.#truth.begin("arrives", uuid, this.laid.index);
    if (this.memoryKiB() > this.laid.memoryKiB)
      this.#truth.violate(`${this.laid.name} was given more memory than it has`);
  }

  override run(domain: SimDomain, reason: number, by: string): void {
    const ranBefore = domain.qemu?.cpu === "running";
    super.run(domain, reason, by);
    if (domain.qemu?.cpu !== "running" || ranBefore) return;
    const { uuid } = domain;
    this.#truth.begin("runs", uuid, this.laid.index);
    this.#truth.end("arrives", uuid, this.laid.index);
    // It goes on here: what was on its way has come back.
    if (by !== "start") this.#truth.end("leaves", uuid, this.laid.index);
    this.#tell();
  }

  override pause(domain: SimDomain, reason: number): void {
    super.pause(domain, reason);
    this.#truth.end("runs", domain.uuid, this.laid.index);
    this.#tell();
  }

  override kill(domain: SimDomain, reason: number, by: string): void {
    if (domain.qemu?.cpu === "running") this.#truth.violate(`${domain.name} was killed while it ran (${by})`);
    super.kill(domain, reason, by);
    for (const kind of ["runs", "leaves", "arrives"] as const) this.#truth.end(kind, domain.uuid, this.laid.index);
    this.#tell();
  }

  #tell(): void {
    for (const listener of this.#listeners)
      listener({
        callbackId: 1,
        msg: { dom: { name: "", uuid: "", id: -1 }, event: LifecycleEvent.DEFINED, detail: DomainState.NOSTATE },
      });
  }
}
