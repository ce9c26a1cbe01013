/**
 * Where chaos is made: two real hosts, a counting guest with a branching tree, one control plane, two shims; and every way between
 * them through a proxy that can be cut: each shim's websocket, each shim's peer channel, S3, DynamoDB. The guest moves to and fro.
 */
import { mkdtemp, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Fleet, freePort, Running, startFleet } from "#lab/fleet";
import { bootGuest, type Guest, type GuestOptions } from "#lab/guest";
import type { Host } from "#lab/host";
import { type Lab, startLab } from "#lab/lab";
import { takeBranchingTree } from "#lab/snapshot-tree";
import { startTcpProxy, type TcpProxy } from "#lab/tcp-proxy";
import { World } from "../e2e/world.ts";
import { readyText } from "./store-text.ts";

export interface ChaosSceneOptions {
  readonly log?: (line: string) => void;
  readonly guest?: GuestOptions;
}

/** A host's ways. */
interface Ways {
  socket: TcpProxy;
  peer: TcpProxy;
  peerPort: number;
}

interface Parts {
  lab: Lab;
  fleet: Fleet;
  guest: Guest;
  ways: Map<string, Ways>;
  s3: TcpProxy;
  dynamo: TcpProxy;
  store: Running;
}

export class ChaosScene {
  readonly world: World;
  readonly fleet: Fleet;
  readonly guest: Guest;
  readonly s3Proxy: TcpProxy;
  readonly dynamoProxy: TcpProxy;
  readonly store: Running;
  readonly #ways: Map<string, Ways>;
  readonly #close: () => Promise<void>;
  /** Where the guest is, and where it goes next. */
  source: Host;
  destination: Host;

  constructor({ lab, fleet, guest, ways, s3, dynamo, store }: Parts, close: () => Promise<void>) {
    this.world = new World(lab, fleet);
    this.fleet = fleet;
    this.guest = guest;
    this.s3Proxy = s3;
    this.dynamoProxy = dynamo;
    this.store = store;
    this.#ways = ways;
    this.#close = close;
    this.source = lab.host(0);
    this.destination = lab.host(1);
  }

  /** Starts everything; on failure nothing is left. */
  static async start(options: ChaosSceneOptions = {}): Promise<ChaosScene> {
    const { log = () => {} } = options;
    const opened: (() => Promise<unknown>)[] = [];
    const close = async () => {
      for (let end = opened.pop(); end !== undefined; end = opened.pop()) await end();
    };
    try {
      const lab = await startLab({ hosts: 2, log });
      opened.push(() => lab.stop());
      const proxied = async (targetPort: number) => {
        const proxy = await startTcpProxy({ targetPort });
        opened.push(() => proxy.close());
        return proxy;
      };
      const store = await startStore(opened);
      const dynamo = await proxied(store.port);
      const ways = new Map<string, Ways>();
      let s3: TcpProxy | undefined;
      const fleet = await startFleet({
        hosts: lab.hosts,
        log,
        up: async (port) => {
          s3 ??= await proxied(port);
          return ["--dynamodb", `http://127.0.0.1:${dynamo.port}`, "--s3", `http://127.0.0.1:${s3.port}/s3`];
        },
        shimUrl: async (port, { name }) => {
          if (!ways.has(name)) {
            const peerPort = await freePort();
            ways.set(name, { socket: await proxied(port), peer: await proxied(peerPort), peerPort });
          }
          return `http://127.0.0.1:${ways.get(name)?.socket.port}`;
        },
        shim: async ({ name }) => {
          const { peer, peerPort } = ways.get(name) ?? {};
          return {
            words: ["--peer-listen", `127.0.0.1:${peerPort}`],
            env: { VMFERRY_PEER_ADVERTISE: `127.0.0.1:${peer?.port}` },
          };
        },
      });
      opened.push(() => fleet.stop());
      if (s3 === undefined) throw new Error("the control plane was started without its S3");
      const host = lab.host(0);
      const guest = await bootGuest(host, { serialCopies: true, ...options.guest });
      opened.push(() => guest.witness.stop());
      await takeBranchingTree(host, guest);
      // On: a source that is booted again while its domain is away must not start it, and the arrived one must have it.
      await host.virsh.run(["autostart", guest.name]);
      guest.witness.reset();
      // What was counted before a revert is counted again after it.
      await truncate(guest.serialCopyOn(host));
      log(`${guest.name} counts on ${host.name}, with its tree`);
      return new ChaosScene({ lab, fleet, guest, ways, s3, dynamo, store: store.running }, close);
    } catch (error) {
      await close();
      throw error;
    }
  }

  /** Ends every process, whatever state it is in. */
  stop(): Promise<void> {
    return this.#close();
  }

  socketProxy(host: Host): TcpProxy {
    return this.#waysOf(host).socket;
  }

  /** In front of the host's peer channel: what other shims dial. */
  peerProxy(host: Host): TcpProxy {
    return this.#waysOf(host).peer;
  }

  #waysOf(host: Host): Ways {
    const found = this.#ways.get(host.name);
    if (found === undefined) throw new Error(`${host.name} has no proxies`);
    return found;
  }

  /** The state folder of the host's shim. */
  stateOf(host: Host): string {
    return join(this.fleet.dir, `shim-${host.name}`);
  }

  /** After a migration that completed. */
  turn(): void {
    [this.source, this.destination] = [this.destination, this.source];
  }
}

async function startStore(opened: (() => Promise<unknown>)[]): Promise<{ running: Running; port: number }> {
  const folder = await mkdtemp(join(tmpdir(), "vmferry-chaos-store-"));
  opened.push(() => rm(folder, { recursive: true, force: true }));
  const program = join(import.meta.dirname, "store-process.ts");
  const running = new Running("store", [process.execPath, program, folder], {});
  opened.push(() => running.stop());
  await running.says(readyText);
  const endpoint = running.output.split(readyText)[1]?.split("\n")[0] ?? "";
  return { running, port: Number(new URL(endpoint).port) };
}
