/**
 * Where failures are staged: two real hosts, a counting guest with a branching tree, and every shim behind a proxy of its own.
 *
 * What a test wants to hit is found by the message itself: the control plane's commands pass the proxy as plain text. How it
 * ended is witnessed by the exit code, virsh, the guest's serial port and the shims' folders. The guest moves to and fro: after
 * each failure the next migration of the same guest must complete, else something was left behind.
 */
import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type FleetOptions, freePort, type Running } from "#lab/fleet";
import { bootGuest, type Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import { takeBranchingTree } from "#lab/snapshot-tree";
import { startTcpProxy, type TcpProxy } from "#lab/tcp-proxy";
import type { SnapshotRecord } from "#lab/virsh";
import type { CommandKind } from "#protocol/command";
import type { FaultCode } from "#protocol/fault";
import type { Migration, MigrationRow } from "../../functions/http/migration-resource.ts";
import { eventually, rows, treeOf, World } from "./world.ts";

/** Beside other tests on two cores everything takes longer; nothing here is measured. */
const tickMs = 120_000;
/** Slow enough for a Perform to outlast whatever is done to it: the guest's 75 MiB take more than a minute. */
export const slowly = ["--bandwidth", "1"] as const;
/** An end takes seconds once everything is healed, and the timer that finds what was overdue comes each minute. */
const endMsMax = 240_000;
/** MiB/s that end a slowed Perform at once. */
const unboundMiBps = 8_000;

/** A migration asked for at the command line, and the command that watches it. */
export interface Attempt {
  readonly id: string;
  readonly cli: Running;
  /** The source's tree before, by virsh. */
  readonly before: readonly SnapshotRecord[];
}

/** How a migration that did not complete is to have ended. */
export interface Ended {
  readonly exit: number;
  readonly status: MigrationRow["status"];
  readonly code: FaultCode | readonly FaultCode[];
  /** In the cause, so that a person knows what it was about. */
  readonly names?: RegExp;
}

interface PeerWay {
  readonly proxy: TcpProxy;
  /** Where the shim itself listens. */
  readonly port: number;
}

async function peerWay(): Promise<PeerWay> {
  const port = await freePort();
  return { port, proxy: await startTcpProxy({ targetPort: port }) };
}

/** The mark of a command in the text that carries it to a shim. */
export const commandMark = (kind: CommandKind) => `"kind":"${kind}"`;

export class FailureScene {
  readonly world: World;
  readonly guest: Guest;
  readonly #proxies: Map<string, TcpProxy>;
  readonly #peers: Map<string, PeerWay>;
  readonly #running = new Set<Running>();
  /** Where the guest is, and where it goes next. */
  source: Host;
  destination: Host;

  constructor(world: World, guest: Guest, proxies: Map<string, TcpProxy>, peers: Map<string, PeerWay>) {
    this.world = world;
    this.guest = guest;
    this.#proxies = proxies;
    this.#peers = peers;
    this.source = world.lab.host(0);
    this.destination = world.lab.host(1);
  }

  static async start(options: Omit<FleetOptions, "hosts" | "shimUrl"> = {}): Promise<FailureScene> {
    const proxies = new Map<string, TcpProxy>();
    const shimUrl = async (port: number, host: Host) => {
      const proxy = proxies.get(host.name) ?? (await startTcpProxy({ targetPort: port }));
      proxies.set(host.name, proxy);
      return `http://127.0.0.1:${proxy.port}`;
    };
    const peers = new Map<string, PeerWay>();
    const shim = async (host: Host) => {
      const way = peers.get(host.name) ?? (await peerWay());
      peers.set(host.name, way);
      return {
        words: ["--peer-listen", `127.0.0.1:${way.port}`],
        env: { VMFERRY_PEER_ADVERTISE: `127.0.0.1:${way.proxy.port}` },
      };
    };
    const closePeers = () => Promise.all([...peers.values()].map(({ proxy }) => proxy.close()));
    const world = await World.start({ hosts: 2 }, { ...options, shimUrl, shim });
    try {
      const host = world.lab.host(0);
      const guest = await bootGuest(host);
      await takeBranchingTree(host, guest);
      await world.heardOf(guest.name, [host]);
      return new FailureScene(world, guest, proxies, peers);
    } catch (error) {
      await world.stop();
      await Promise.all([...proxies.values()].map((proxy) => proxy.close()));
      await closePeers();
      throw error;
    }
  }

  async stop(): Promise<void> {
    await Promise.all([...this.#running].map((running) => running.kill()));
    await this.guest.witness.stop();
    await this.world.stop();
    await Promise.all([...this.#proxies.values()].map((proxy) => proxy.close()));
    await Promise.all([...this.#peers.values()].map(({ proxy }) => proxy.close()));
  }

  /** For `beforeEach`: mends what a failed test may have left broken, and looks where the guest is. */
  async ready(): Promise<void> {
    const { lab, fleet } = this.world;
    for (const proxy of this.#proxies.values()) {
      proxy.disarm();
      proxy.heal();
    }
    for (const { proxy } of this.#peers.values()) proxy.heal();
    if (fleet.controlPlane?.alive !== true) await fleet.startControlPlane();
    for (const host of lab.hosts) {
      if ((await host.daemon()) === undefined) await host.start();
      if (!fleet.shim(host).alive) await fleet.startShim(host);
      if ((await host.qemus(this.guest.name)).length > 0) this.source = host;
    }
    this.destination = this.#other(this.source);
    this.guest.witness.reset();
  }

  /** Between the host's shim and the control plane, for its websocket and its way to the bucket. */
  proxy(host: Host): TcpProxy {
    const proxy = this.#proxies.get(host.name);
    assert.ok(proxy !== undefined);
    return proxy;
  }

  /** In front of the peer channel of the host: what another shim dials. */
  peerProxy(host: Host): TcpProxy {
    const way = this.#peers.get(host.name);
    assert.ok(way !== undefined);
    return way.proxy;
  }

  /** A migration whose shims lose each other between arming and the end of Perform: the functions have to relay. */
  async relayed(words: readonly string[] = []): Promise<Attempt> {
    const attempt = await this.migrate([...slowly, ...words]);
    await this.performing(attempt);
    this.peerProxy(this.destination).cut();
    return attempt;
  }

  #other(host: Host): Host {
    const other = this.world.lab.hosts.find(({ name }) => name !== host.name);
    assert.ok(other !== undefined);
    return other;
  }

  /** Starts a command of the command line that is ended with the scene. */
  cli(words: readonly string[]): Running {
    const running = this.world.fleet.start(words);
    this.#running.add(running);
    return running;
  }

  /** Asks for the guest's next migration. */
  async migrate(words: readonly string[] = []): Promise<Attempt> {
    const { name } = this.guest;
    await this.world.heardOf(name, [this.source]);
    // After a long outage of the store a host counts as offline until its next heartbeat is stored.
    await eventually("both hosts count as connected", async () =>
      rows(await this.world.get("/v1/hosts")).every(({ connected }) => connected === true),
    );
    const before = await treeOf(this.source, name);
    const cli = this.cli(["migrate", name, "--to", this.destination.name, ...words]);
    await cli.says(/\bm_[0-9A-Z]{26}: /);
    const [id = ""] = /\bm_[0-9A-Z]{26}/.exec(cli.output) ?? [];
    return { id, cli, before };
  }

  /** Waits until memory flows from the source to the destination. */
  async performing(attempt: Attempt): Promise<void> {
    await eventually(
      () => `the guest's memory is under way\n${attempt.cli.output}`,
      async () => {
        assert.ok(attempt.cli.alive, `it ended before it performed:\n${attempt.cli.output}`);
        const info = await this.source.virsh.run(["domjobinfo", this.guest.name]).catch(() => "");
        return /Operation: +Outgoing migration/.test(info) && /Memory processed: +[1-9]/.test(info);
      },
    );
  }

  /** Lets a slowed Perform end. */
  async hurry(): Promise<void> {
    await this.source.virsh.migrateSetspeed(this.guest.name, unboundMiBps);
  }

  /** Whether the host's shim has written down that it was given that command. */
  async wasGiven(host: Host, attempt: Attempt, kind: CommandKind): Promise<boolean> {
    return (await this.#journal(host, attempt)).includes(`"id":"${attempt.id}:${kind}:`);
  }

  /** Whether the host's shim has written down how that command ended. */
  async hasReported(host: Host, attempt: Attempt, kind: CommandKind): Promise<boolean> {
    return (await this.#journal(host, attempt)).includes(`"report":{"commandId":"${attempt.id}:${kind}:`);
  }

  #journal(host: Host, { id }: Attempt): Promise<string> {
    const path = join(this.world.fleet.dir, `shim-${host.name}`, "journal", `${id}.jsonl`);
    return readFile(path, "utf8").catch(() => "");
  }

  /** The exit code of the command that watches; fails with what everybody said when the migration does not end. */
  async exitOf({ cli }: Attempt): Promise<number> {
    const stuck = new AbortController();
    const exit = await Promise.race([cli.exited, sleep(endMsMax, undefined, { signal: stuck.signal })]);
    stuck.abort();
    if (exit !== undefined) return exit;
    const { fleet } = this.world;
    const said = [cli, fleet.controlPlane, ...fleet.shims.values()].map((one) => `${one?.label}:\n${one?.output}`);
    return assert.fail(`the migration does not end\n${said.join("\n")}`);
  }

  /** It did not complete: exit code and code as said, the source as it was, nothing left on the destination. */
  async rolledBack(attempt: Attempt, ended: Ended, tree: readonly SnapshotRecord[] = attempt.before): Promise<void> {
    const exit = await this.exitOf(attempt);
    const story = attempt.cli.output;
    assert.equal(exit, ended.exit, story);
    const migration = await this.world.migration(attempt.id);
    assert.equal(migration.status, ended.status, story);
    assertFault(migration, ended, story);
    await this.isOn(this.source, tree);
  }

  /** It completed: the guest and its whole tree are on the destination, nothing is left on the source. Turns the scene round. */
  async completed(attempt: Attempt): Promise<Migration> {
    assert.equal(await this.exitOf(attempt), 0, attempt.cli.output);
    return this.arrived(attempt);
  }

  /** As `completed`, whatever became of the command that watched. */
  async arrived(attempt: Attempt): Promise<Migration> {
    const migration = await this.world.migration(attempt.id);
    assert.equal(migration.status, "completed", attempt.cli.output);
    [this.source, this.destination] = [this.destination, this.source];
    await this.isOn(this.source, attempt.before);
    return migration;
  }

  /** The guest runs on this host alone, counts without a tick lost or doubled, and has exactly this tree; the other host has nothing. */
  async isOn(host: Host, tree: readonly SnapshotRecord[]): Promise<void> {
    await this.world.assertNothingOn(this.#other(host), this.guest.name);
    await this.world.assertJournalsEmpty(host);
    await this.runsAgain(host, tree);
  }

  /** As `isOn`, without a look at the other host: it may be off. */
  async runsAgain(host: Host, tree: readonly SnapshotRecord[]): Promise<void> {
    const { name, witness } = this.guest;
    assert.equal(await host.virsh.domstate(name), "running");
    assert.deepEqual(await treeOf(host, name), tree);
    await witness.waitForTicks(5, tickMs);
    assert.deepEqual(witness.violations, []);
    assert.equal(witness.diskErrors, 0);
  }

  /** The same guest can be migrated at once: nothing stands in the way. */
  async nextCompletes(): Promise<void> {
    for (const { proxy } of this.#peers.values()) proxy.heal();
    await this.completed(await this.migrate());
  }
}

function assertFault({ error }: Migration, { code, names }: Ended, story: string): void {
  const codes: readonly string[] = typeof code === "string" ? [code] : code;
  assert.ok(error !== null && codes.includes(error.code), `${error?.code} is not ${codes.join(" or ")}:\n${story}`);
  // What the command line says is what the resource says.
  assert.ok(story.includes(`vmferry: ${error.code}: `), story);
  assert.match(error.action, /\S/);
  if (names !== undefined) assert.match(error.cause, names);
}

/** Files below a folder, with their paths; none when there is no folder. */
export async function filesBelow(dir: string): Promise<string[]> {
  const entries = await readdir(dir, { recursive: true, withFileTypes: true }).catch(() => []);
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}
