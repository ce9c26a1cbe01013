/**
 * One host of a simulated fleet: a shim put together as shim/main.ts does it (identity by enrolment, journal and bundles on a disk, executor with the
 * real steps, peer channel over TLS, door, websocket, supervisor with its backoff, heartbeat, inventory), over a simulated libvirt. Only the two
 * inspections are not the shim's own, because they look at files and processes of a real host.
 */
import { mkdir } from "node:fs/promises";
import { procedures } from "#libvirt/procedures";
import type { DownMessage, UpMessage } from "#protocol/message";
import { BundleFiles } from "#shim/bundle-files";
import { systemClock } from "#shim/clock";
import { describeForQuery } from "#shim/description";
import { ControlPlaneDoor } from "#shim/door";
import { identify } from "#shim/enrolment";
import { Executor } from "#shim/executor";
import { Grants } from "#shim/grants";
import { HandOverWatch } from "#shim/hand-over-watch";
import { startHeartbeat } from "#shim/heartbeat";
import { answerQuery } from "#shim/inspection-desk";
import { Inventory, toldFirst } from "#shim/inventory";
import { openJournal } from "#shim/journal";
import type { Log } from "#shim/log";
import { MigrationConnections } from "#shim/migration-connections";
import { sayOpenJournals } from "#shim/open-journals";
import { payloadsOf } from "#shim/payloads";
import { openPeerSide } from "#shim/peer-side";
import type { Step, Steps } from "#shim/ports";
import { probeDomain } from "#shim/probe";
import { ProgressGate } from "#shim/progress-gate";
import { readHostFacts } from "#shim/session-facts";
import { SharedConnection } from "#shim/shared-connection";
import { Slots } from "#shim/slots";
import { steps as realSteps } from "#shim/steps";
import { Supervisor } from "#shim/supervisor";
import { listTree } from "#shim/tree-reader";
import { Life } from "#test/simulation/world";
import type { FleetLibvirtd } from "./fleet-libvirtd.ts";

/** As shim/main.ts. */
const queriesAtOnceMax = 4;

export interface FleetHostParts {
  daemon: FleetLibvirtd;
  stateDirectory: string;
  origin: URL;
  joinToken: string;
  log: Log;
  /** A session has opened. */
  onSession(): void;
}

export interface FleetHost {
  readonly hostId: string;
  /** Keeps a session with the control plane from now on. */
  connect(): void;
  readonly isConnected: boolean;
}

/** Enrols (once; the identity is on disk then) and opens everything but the session. */
export async function openFleetHost(parts: FleetHostParts): Promise<FleetHost> {
  const { daemon, stateDirectory, origin, joinToken, log } = parts;
  const clock = systemClock;
  await mkdir(stateDirectory, { recursive: true, mode: 0o700 });
  // It ends with its process.
  const { signal } = new AbortController();
  const life = new Life(daemon.laid.name);
  const identity = await identify({ stateDirectory, origin, joinToken, name: daemon.laid.name });
  const peerSide = await openPeerSide({ identity, listen: "127.0.0.1:0", advertise: undefined, clock, log });
  const { seal, peers } = peerSide;
  const journal = await openJournal(stateDirectory);
  const bundles = await BundleFiles.open(stateDirectory, await journal.list());
  const connect = () => daemon.connect(life);
  const gate = new ProgressGate(clock);
  const send = (message: UpMessage): boolean => !gate.passes(message) || supervisor.send(message);
  const shared = new SharedConnection({
    connect,
    onOpened: (libvirt) => void inventory.listen(libvirt),
    clock,
    log,
    signal,
  });
  const libvirt = () => shared.get();
  const inventory = new Inventory({ libvirt, send, clock, log, signal });
  const connections = new MigrationConnections(connect, (id, cause) => executor.connectionLost(id, cause));
  const grants = new Grants(send);
  const steps: Steps = { ...realSteps, inspectSource: inspectSource(daemon), inspectDestination };
  const executorParts = {
    journal,
    steps: toldFirst(steps, inventory),
    connections,
    inventory: libvirt,
    payloadsFor: (command: { id: string; migrationId: string }) =>
      payloadsOf({ grants, command, bundlePath: bundles.path(command.migrationId), clock, log }),
    bundles,
    peers,
    seal,
    migrationAddress: null,
    allowPaths: [],
    send,
    clock,
    log,
  };
  const executor = new Executor(executorParts);
  const querySlots = new Slots(queriesAtOnceMax);
  const labels = daemon.laid.labels;
  const facts = () => readHostFacts({ libvirt, migrationAddress: null, peer: seal.peerAddress(), labels });
  const resend = () => {
    executor.resend();
    grants.resend();
  };
  const answer = async ({ query, queryId }: Extract<DownMessage, { type: "query" }>): Promise<void> => {
    const given = await answerQuery(executorParts, querySlots, query, async (domain) =>
      describeForQuery(await libvirt(), domain),
    );
    send({ type: "answered", queryId, answer: given });
  };
  let stopHeartbeat = () => {};
  let stopJournals = () => {};
  const supervisor = new Supervisor({
    door: new ControlPlaneDoor({
      origin,
      hostId: identity.hostId,
      signConnect: (claim) => identity.signConnect(claim),
      clock,
      signal,
    }),
    hostId: identity.hostId,
    sign: (nonce) => identity.sign(nonce),
    facts,
    clock,
    log,
    signal,
    onSession: ({ welcome }) => {
      gate.everyMs = welcome.progressMs ?? 0;
      if (welcome.controlKey !== undefined) void identity.pinControlKey(welcome.controlKey);
      stopHeartbeat();
      stopHeartbeat = startHeartbeat({ send, facts, clock }, welcome.heartbeatMs);
      stopJournals();
      stopJournals = sayOpenJournals({ send, records: () => executor.records() }, welcome.features);
      resend();
      inventory.welcome();
      parts.onSession();
    },
    onResend: resend,
    onRefused: ({ code, cause }) => log.write("error", "the control plane refused this host", { code, cause }),
    onMessage: (message) => {
      if (message.type === "command") executor.command(message.command);
      else if (message.type === "acknowledged") void acknowledge(message.commandId);
      else if (message.type === "granted") grants.granted(message);
      else if (message.type === "grantRefused") grants.refused(message);
      else if (message.type === "query") void answer(message);
    },
  });
  const acknowledge = async (commandId: string): Promise<void> => {
    try {
      await executor.acknowledged(commandId);
    } catch (error) {
      log.write("error", "an acknowledgement cannot be journalled", { cause: String(error) });
    }
  };

  await executor.start();
  peerSide.open(executor);
  const watch = new HandOverWatch({ executor, ...peerSide, clock, log, signal });
  void shared.keep();
  void watch.run();
  return {
    hostId: identity.hostId,
    connect: () => {
      void supervisor.run();
      void inventory.run();
    },
    get isConnected() {
      return supervisor.isConnected;
    },
  };
}

/** Of the simulated libvirt alone; what stands in the way there stands in the way here. */
const inspectSource =
  (daemon: FleetLibvirtd): Step<"inspectSource"> =>
  async (work) => {
    const libvirt = await work.inventory();
    const { name, uuid } = work.command.domain;
    const probe = await probeDomain(libvirt, uuid);
    const isFree = probe.present && !probe.pausedByMigration && probe.job === "none";
    const { snapshots } = probe.present ? await listTree(libvirt, probe.dom) : { snapshots: [] };
    const { autostart } = probe.present
      ? await libvirt.call(procedures.domainGetAutostart, { dom: probe.dom })
      : { autostart: false };
    const { memoryKiB, vcpus } = daemon.laidDomain(uuid);
    return {
      kind: "inspectSource",
      facts: await work.payloads.write(Buffer.from("facts")),
      findings: isFree ? [] : [blocker("domain.state", "It cannot be moved now.")],
      carries: { snapshots: snapshots.length, checkpoints: 0 },
      domain: { name, state: probe.present ? probe.state : "nostate", memoryKiB, vcpus, autostart },
    };
  };

const inspectDestination: Step<"inspectDestination"> = async (work) => {
  const probe = await probeDomain(await work.inventory(), work.command.domain.uuid);
  const code = probe.present && probe.active ? ("destination.active" as const) : ("destination.defined" as const);
  return {
    kind: "inspectDestination",
    findings: probe.present ? [blocker(code, "It is here already.")] : [],
    storageProven: true,
  };
};

const blocker = <C extends string>(code: C, cause: string) => ({
  severity: "blocker" as const,
  code,
  cause,
  action: "Look at the domain.",
});
