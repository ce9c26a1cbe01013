/**
 * The shim: wires journal, executor, libvirt and the session together, and carries them to a clean end. `runShim` is what
 * the command line calls; started by itself, this file reads the same options from arguments and environment.
 */
import { existsSync, realpathSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { hostname } from "node:os";
import { isAbsolute, resolve } from "node:path";
import { LibvirtAddressError, parseLibvirtAddress } from "#libvirt/address";
import { connectLibvirt } from "#libvirt/client";
import { Fault, type FaultBody } from "#protocol/fault";
import type { DownMessage, UpMessage } from "#protocol/message";
import { BundleFiles } from "./bundle-files.ts";
import { systemClock } from "./clock.ts";
import { runFromArguments } from "./command-line.ts";
import type { Session } from "./connection.ts";
import { describeForQuery } from "./description.ts";
import { ControlPlaneDoor } from "./door.ts";
import { drainArmedMsMax, drainMsMax, drainUntilIdle } from "./drain.ts";
import { type Identity, identify } from "./enrolment.ts";
import { Executor } from "./executor.ts";
import { Grants } from "./grants.ts";
import { HandOverWatch } from "./hand-over-watch.ts";
import { startHeartbeat } from "./heartbeat.ts";
import { answerQuery } from "./inspection-desk.ts";
import { Inventory, toldFirst } from "./inventory.ts";
import { openJournal } from "./journal.ts";
import { messageOf } from "./libvirt-fault.ts";
import { type Log, lineLog } from "./log.ts";
import { MigrationConnections } from "./migration-connections.ts";
import { sayOpenJournals } from "./open-journals.ts";
import { payloadsOf } from "./payloads.ts";
import { openPeerSide, type PeerSide } from "./peer-side.ts";
import { ProgressGate } from "./progress-gate.ts";
import { readHostFacts } from "./session-facts.ts";
import { SharedConnection } from "./shared-connection.ts";
import { ShutdownWatch, shutdownBudgetMsDefault } from "./shutdown-watch.ts";
import { Slots } from "./slots.ts";
import { controlPlaneOrigin } from "./socket-address.ts";
import { lockState } from "./state-lock.ts";
import { steps } from "./steps.ts";
import { Supervisor } from "./supervisor.ts";

export const stateDirectoryDefault = "/var/lib/vmferry-shim";

/** Queries answered at once; each is a handful of reads. */
const queriesAtOnceMax = 4;

export interface ShimOptions {
  url: string;
  /** Only for the first time. */
  joinToken?: string;
  name?: string;
  stateDir?: string;
  /** Socket path or URI; absent: the usual sockets. */
  libvirt?: string;
  migrationAddress?: string;
  /** Where other shims reach this one, ADDR:PORT; absent: port 16515 on every address. */
  peerListen?: string;
  /** What they are told, ADDR:PORT, where an address is translated on the way; absent: this host's own addresses. */
  peerAdvertise?: string;
  allowPaths?: readonly string[];
  /** What its owner says of this host, for selectors and limits. */
  labels?: Readonly<Record<string, string>>;
  /** How long a shutdown of this host that is due is held at most; 0: it is told and not held. */
  shutdownBudgetMs?: number;
  /** The lock that refuses a shutdown while something is here; `block-weak` (systemd 257 and newer) lets root pass, whom `delay` then holds. */
  shutdownLock?: "block" | "block-weak";
  /** One line, without its newline. */
  out(line: string): void;
  err(line: string): void;
  /** Asks for a clean end: migrations under way are waited for. */
  signal: AbortSignal;
}

/** Runs until stopped. Resolves with an exit code: 0 ended as asked, 1 cannot run (said on `err`), 64 wrong options. */
export async function runShim(options: ShimOptions): Promise<number> {
  const log = lineLog({
    write: options.err,
    now: systemClock.now,
    human: process.stderr.isTTY,
    debug: process.env.VMFERRY_DEBUG === "1",
  });
  try {
    const fault = await serve(options, log);
    if (fault === null) return 0;
    sayFault(options.err, fault);
    return 1;
  } catch (error) {
    if (error instanceof LibvirtAddressError) {
      options.err(`vmferry shim: usage: --libvirt: ${error.message}`);
      return 64;
    }
    if (!(error instanceof Fault)) throw error;
    sayFault(options.err, error.toBody());
    return error.code === "request.malformed" ? 64 : 1;
  }
}

const sayFault = (err: (line: string) => void, { code, cause, action }: FaultBody) => {
  err(`vmferry shim: ${code}: ${cause}`);
  err(`  next: ${action}`);
};

async function serve(options: ShimOptions, log: Log): Promise<FaultBody | null> {
  const origin = controlPlaneOrigin(options.url);
  const clock = systemClock;
  // Both are asked now so that a wrong option is an answer at once and not a log line later.
  const libvirtAddress = () => parseLibvirtAddress(options.libvirt, existsSync);
  libvirtAddress();
  const allowPaths = (options.allowPaths ?? []).map(absolutePath);
  const stateDirectory = resolve(options.stateDir ?? stateDirectoryDefault);
  const migrationAddress = options.migrationAddress ?? null;
  const labels = options.labels ?? {};
  await makeStateDirectory(stateDirectory);
  const unlock = await lockState(stateDirectory);
  const stop = new AbortController();
  let peerSide: PeerSide | undefined;
  try {
    const identity = await identify({
      stateDirectory,
      origin,
      joinToken: options.joinToken,
      name: options.name ?? hostname(),
    });
    const { peerListen: listen, peerAdvertise: advertise } = options;
    peerSide = await openPeerSide({ identity, listen, advertise, clock, log });
    const { seal, peers } = peerSide;
    const journal = await openJournal(stateDirectory);
    const bundles = await BundleFiles.open(stateDirectory, await journal.list());
    const connect = () => connectLibvirt({ ...libvirtAddress(), onEventFault: (fault) => eventFault(log, fault) });
    const gate = new ProgressGate(clock);
    const send = (message: UpMessage): boolean => !gate.passes(message) || supervisor.send(message);
    const shared = new SharedConnection({
      connect,
      onOpened: (libvirt) => void inventory.listen(libvirt),
      clock,
      log,
      signal: stop.signal,
    });
    const libvirt = () => shared.get();
    const inventory = new Inventory({
      libvirt,
      send,
      onDomains: (domains) => shutdown.seen(domains),
      clock,
      log,
      signal: stop.signal,
    });
    const connections = new MigrationConnections(connect, (id, cause) => executor.connectionLost(id, cause));
    const grants = new Grants(send);
    const parts = {
      journal,
      steps: toldFirst(steps, inventory),
      connections,
      inventory: libvirt,
      payloadsFor: (command: { id: string; migrationId: string }) =>
        payloadsOf({ grants, command, bundlePath: bundles.path(command.migrationId), clock, log }),
      bundles,
      peers,
      seal,
      migrationAddress,
      allowPaths,
      send,
      clock,
      log,
    };
    const executor = new Executor(parts);
    const shutdown = new ShutdownWatch({
      host: identity.name,
      budgetMs: options.shutdownBudgetMs ?? shutdownBudgetMsDefault,
      lock: options.shutdownLock ?? "block",
      records: () => executor.records(),
      send,
      clock,
      log,
      // A shim that ends holds nothing, whatever it still waits for.
      signal: AbortSignal.any([options.signal, stop.signal]),
    });
    const querySlots = new Slots(queriesAtOnceMax);
    const facts = () => readHostFacts({ libvirt, migrationAddress, peer: seal.peerAddress(), labels });
    let stopHeartbeat = () => {};
    let stopJournals = () => {};

    const answer = async (message: Extract<DownMessage, { type: "query" }>): Promise<void> => {
      const given = await answerQuery(parts, querySlots, message.query, async (domain) =>
        describeForQuery(await libvirt(), domain),
      );
      send({ type: "answered", queryId: message.queryId, answer: given });
    };
    const door = new ControlPlaneDoor({
      origin,
      hostId: identity.hostId,
      signConnect: (claim) => identity.signConnect(claim),
      clock,
      signal: stop.signal,
    });
    const supervisor = new Supervisor({
      door,
      hostId: identity.hostId,
      sign: (nonce) => identity.sign(nonce),
      facts,
      clock,
      log,
      signal: stop.signal,
      onSession: ({ welcome }: Session, renewed) => {
        if (!renewed) options.out(`vmferry shim: connected as ${welcome.name}`);
        gate.everyMs = welcome.progressMs ?? 0;
        if (welcome.controlKey !== undefined) void pin(identity, welcome.controlKey, log);
        stopHeartbeat();
        stopHeartbeat = startHeartbeat({ send, facts, clock }, welcome.heartbeatMs);
        stopJournals();
        stopJournals = sayOpenJournals({ send, records: () => executor.records() }, welcome.features);
        executor.resend();
        grants.resend();
        inventory.welcome();
        shutdown.welcome(welcome.features);
      },
      onResend: () => {
        executor.resend();
        grants.resend();
        shutdown.resend();
      },
      onRefused: (fault) => sayFault(options.err, fault),
      onMessage: (message) => {
        if (message.type === "command") executor.command(message.command);
        else if (message.type === "acknowledged") void acknowledge(executor, message.commandId, log);
        else if (message.type === "granted") grants.granted(message);
        else if (message.type === "grantRefused") grants.refused(message);
        else if (message.type === "query") void answer(message);
        else if (message.type === "shutdownHeard") shutdown.heard(message.requestId, message.state);
      },
    });

    await executor.start();
    peerSide.open(executor);
    const watch = new HandOverWatch({ executor, ...peerSide, clock, log, signal: stop.signal });
    const refused = new AbortController();
    const ended = drainUntilIdle({
      executor,
      signal: AbortSignal.any([options.signal, refused.signal]),
      clock,
      say: (line) => options.err(`vmferry shim: ${line}`),
      msMax: drainMsMax,
      armedMsMax: drainArmedMsMax,
    }).then(() => stop.abort());
    const running = [shared.keep(), inventory.run(), watch.run(), shutdown.run()];
    const fault = await supervisor.run();
    // Whoever cannot speak to the control plane any more still ends what is armed: by its ticket it needs nobody.
    refused.abort();
    await ended;
    stopHeartbeat();
    stopJournals();
    await Promise.all(running);
    executor.end();
    await connections.closeAll();
    await shared.close();
    await journal.close();
    return fault;
  } finally {
    stop.abort();
    await peerSide?.close();
    unlock();
  }
}

/** A host keeps the first key it was told; what it is told otherwise is for a person to see. */
async function pin(identity: Identity, controlKey: string, log: Log): Promise<void> {
  try {
    await identity.pinControlKey(controlKey);
  } catch (error) {
    const fault = error instanceof Fault ? { code: error.code, action: error.action } : {};
    log.write("error", "the control plane's key was not taken", { cause: messageOf(error), ...fault });
  }
}

/** An acknowledgement that cannot be journalled comes again, because the report is sent again. */
async function acknowledge(executor: Executor, commandId: string, log: Log): Promise<void> {
  try {
    await executor.acknowledged(commandId);
  } catch (error) {
    log.write("error", "an acknowledgement cannot be journalled", { command: commandId, cause: messageOf(error) });
  }
}

function eventFault(log: Log, fault: unknown): void {
  log.write("warn", "an event of libvirt was not understood", { cause: messageOf(fault) });
}

/** For what was printed last to reach a pipe. */
const lastWordsMs = 500;

async function makeStateDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw new Fault({
      code: "request.malformed",
      cause: `The state directory ${path} cannot be made: ${messageOf(error)}.`,
      action: "Start the shim as root, or give a directory that it may write with --state.",
      retry: "person",
    });
  }
}

function absolutePath(path: string): string {
  if (isAbsolute(path)) return resolve(path);
  throw new Fault({
    code: "request.malformed",
    cause: `--allow-path ${path} is not an absolute path.`,
    action: "Give the directory below which disks may lie, as in --allow-path /srv/images.",
    retry: "never",
  });
}

if (process.argv[1] !== undefined && existsSync(process.argv[1])) {
  if (realpathSync(process.argv[1]) === import.meta.filename) {
    process.exitCode = await runFromArguments(runShim);
    // A step that the drain has not waited for must not keep the process; what was printed is out by then.
    setTimeout(() => process.exit(), lastWordsMs).unref();
  }
}
