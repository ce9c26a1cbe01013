/**
 * One host's shim: the real executor, journal, steps, peer desk and hand-over watch over a simulated host. It may die at
 * any instant and is started again, as systemd does.
 */
import { procedures } from "#libvirt/procedures";
import type { DownMessage, UpMessage } from "#protocol/message";
import type { PeerReply, PeerRequest } from "#protocol/ticket";
import type { Clock } from "#shim/clock";
import { Executor } from "#shim/executor";
import { HandOverWatch } from "#shim/hand-over-watch";
import { openJournal } from "#shim/journal";
import { MigrationConnections } from "#shim/migration-connections";
import { PeerDesk } from "#shim/peer/desk";
import type { Journal, Peers, Step, Steps } from "#shim/ports";
import { probeDomain } from "#shim/probe";
import { SharedConnection } from "#shim/shared-connection";
import { steps as realSteps } from "#shim/steps";
import { listTree } from "#shim/tree-reader";
import type { SideName } from "./fault-plan.ts";
import { type SimBucket, type SimBundleFiles, simPayloads } from "./sim-bundles.ts";
import type { SimDisk } from "./sim-disk.ts";
import { sealOf } from "./sim-keys.ts";
import type { SimLibvirtd } from "./sim-libvirtd.ts";
import type { Network, ShimEnd } from "./sim-network.ts";
import { Life, type World } from "./world.ts";

export interface ShimParts {
  world: World;
  side: SideName;
  daemon: SimLibvirtd;
  disk: SimDisk;
  files: SimBundleFiles;
  bucket: SimBucket;
  network: Network;
  /** What a mutation changes. */
  mutate: ShimMutation;
}

export interface ShimMutation {
  steps?: (steps: Steps) => Steps;
  journal?: (journal: Journal, clock: Clock) => Journal;
  peers?: (peers: Peers) => Peers;
  executor?: (executor: Executor) => void;
}

const heartbeatMs = 10_000;
const resendMs = 5_000;
const noSignal = new AbortController().signal;
const silent = { write() {} };

export class SimShim {
  readonly #parts: ShimParts;
  /** Null while it is down. */
  #process: ShimProcess | null = null;
  /** False: nobody starts it again (its host has no power). */
  mayRun = true;

  constructor(parts: ShimParts) {
    this.#parts = parts;
  }

  get isUp(): boolean {
    return this.#process?.life.isAlive === true;
  }

  start(): void {
    if (!this.mayRun || this.isUp) return;
    const { world, side, network } = this.#parts;
    const life = new Life(side);
    world.note(`${side} shim starts`);
    life.onEnd(() => {
      world.note(`${side} shim died`);
      network.cutSocket(side);
      world.time.after(world.chance.between(500, 5_000), () => this.start());
    });
    const process = new ShimProcess(this.#parts, life);
    this.#process = process;
    network.shims[side] = process;
    void process.run();
  }

  crash(): void {
    this.#process?.life.end();
  }
}

class ShimProcess implements ShimEnd {
  readonly life: Life;
  readonly #parts: ShimParts;
  #executor: Executor | null = null;
  #desk: PeerDesk | null = null;

  constructor(parts: ShimParts, life: Life) {
    this.#parts = parts;
    this.life = life;
  }

  async run(): Promise<void> {
    const { world, side, daemon, disk, files, bucket, network, mutate } = this.#parts;
    const { life } = this;
    const clock = world.clockOf(life);
    const opened = await openJournal("/state", disk.seenBy(life));
    const journal = mutate.journal?.(opened, clock) ?? opened;
    files.sweep(await journal.list());
    const connect = () => daemon.connect(life);
    const shared = new SharedConnection({ connect, onOpened() {}, clock, log: silent, signal: noSignal });
    const seal = { ...sealOf(side), bootId: `boot ${daemon.boots}` };
    const channel: Peers = {
      ask: (_to, request, patienceMs) => network.ask(life, seal.publicKey, request, patienceMs),
      hold: () => () => {},
    };
    const peers = mutate.peers?.(channel) ?? channel;
    const send = (message: UpMessage) => life.isAlive && network.up(side, message);
    const steps: Steps = { ...realSteps, inspectSource, inspectDestination };
    const executor = new Executor({
      journal,
      steps: mutate.steps?.(steps) ?? steps,
      connections: new MigrationConnections(connect, (id, cause) => executor.connectionLost(id, cause)),
      inventory: () => shared.get(),
      payloadsFor: ({ migrationId }) => simPayloads({ world, life, side, bucket, files, clock, migrationId }),
      peers,
      seal,
      bundles: files.seenBy(life),
      migrationAddress: null,
      allowPaths: [],
      send,
      clock,
      log: silent,
    });
    mutate.executor?.(executor);
    await executor.start();
    this.#executor = executor;
    this.#desk = new PeerDesk({ executor, seal, now: clock.now });
    void new HandOverWatch({ executor, peers, seal, clock, log: silent, signal: noSignal }).run();
    network.dial(side, this);
    for (;;) {
      await clock.sleep(resendMs);
      if (network.isOpen(side)) executor.resend();
      await clock.sleep(heartbeatMs - resendMs);
      send({ type: "heartbeat" });
      if (network.isOpen(side)) executor.resend();
    }
  }

  connected(): void {
    this.#executor?.resend();
  }

  received(message: DownMessage): void {
    if (!this.life.isAlive) return;
    if (message.type === "command") this.#executor?.command(message.command);
    else if (message.type === "acknowledged")
      // One that cannot be journalled comes again, because the report is sent again.
      void this.#executor?.acknowledged(message.commandId).catch(() => {});
  }

  answer(peerKey: string, request: PeerRequest): Promise<PeerReply> {
    const fault = { code: "shim.restarted", cause: "Starting.", action: "Ask again.", retry: "safe" } as const;
    return this.#desk === null ? Promise.resolve({ type: "refused", fault }) : this.#desk.answer(peerKey, request);
  }
}

/** Inspections look at files and processes of a real host; here they look at the simulated libvirt alone. */
const inspectSource: Step<"inspectSource"> = async (work) => {
  const libvirt = await work.inventory();
  const probe = await probeDomain(libvirt, work.command.domain.uuid);
  const findings =
    !probe.present || probe.pausedByMigration || probe.job !== "none"
      ? [{ severity: "blocker" as const, code: "domain.state" as const, cause: "It cannot be moved.", action: "Look." }]
      : [];
  const { name, uuid } = work.command.domain;
  const dom = probe.present ? probe.dom : { name, uuid, id: -1 };
  const { snapshots } = probe.present ? await listTree(libvirt, dom) : { snapshots: [] };
  const { autostart } = probe.present
    ? await libvirt.call(procedures.domainGetAutostart, { dom })
    : { autostart: false };
  return {
    kind: "inspectSource",
    facts: await work.payloads.write(Buffer.from("facts")),
    findings,
    carries: { snapshots: snapshots.length, checkpoints: 0 },
    domain: { name, state: probe.present ? probe.state : "nostate", memoryKiB: 1_024, vcpus: 1, autostart },
  };
};

const inspectDestination: Step<"inspectDestination"> = async (work) => {
  const probe = await probeDomain(await work.inventory(), work.command.domain.uuid);
  const code = probe.present && probe.active ? ("destination.active" as const) : ("destination.defined" as const);
  const findings = probe.present
    ? [{ severity: "blocker" as const, code, cause: "It is here already.", action: "Look." }]
    : [];
  return { kind: "inspectDestination", findings, storageProven: true };
};
