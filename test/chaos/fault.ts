/**
 * What is done to a migration: a process is killed and started again, a way is cut and healed. `inject` does its work before it
 * returns, so that the fault falls at its moment and not a few awaits later.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { Side } from "#protocol/command";
import type { ChaosScene } from "./chaos-scene.ts";

/** A killed process is back after this: systemd's RestartSec of a careful unit, and time enough for everybody to notice. */
const downMs = 1_000;
/** Longer than the first retries of everybody, shorter than the time after which a host counts as offline. */
const cutMs = 3_000;

export interface Fault {
  readonly name: string;
  readonly what: string;
  /** Takes what is needed to strike at once; called before the migration is asked for. */
  prepare(scene: ChaosScene): Promise<Strike>;
}

export interface Strike {
  inject(): void;
  /** Everything works again when it resolves. */
  heal(): Promise<void>;
}

const shimKilled = (side: Side): Fault => ({
  name: `${side} shim`,
  what: `kill -9 of the ${side}'s shim`,
  async prepare(scene) {
    const host = scene[side];
    const shim = scene.fleet.shim(host);
    return {
      inject: () => void shim.child.kill("SIGKILL"),
      async heal() {
        await shim.exited;
        await sleep(downMs);
        await scene.fleet.startShim(host);
      },
    };
  },
});

const daemonKilled = (side: Side): Fault => ({
  name: `${side} libvirtd`,
  what: `kill -9 of the ${side}'s libvirtd`,
  async prepare(scene) {
    const host = scene[side];
    const daemon = await host.daemon();
    if (daemon === undefined) throw new Error(`libvirtd of ${host.name} is down`);
    return {
      inject: () => void process.kill(daemon.pid, "SIGKILL"),
      async heal() {
        await sleep(downMs);
        await host.start();
      },
    };
  },
});

interface Cuttable {
  cut(): void;
  stall(): void;
  heal(): void;
}

const cut = (name: string, what: string, of: (scene: ChaosScene) => Cuttable): Fault => ({
  name,
  what: `cut of ${what} for ${cutMs / 1000} s`,
  async prepare(scene) {
    const proxy = of(scene);
    return {
      inject: () => proxy.cut(),
      async heal() {
        await sleep(cutMs);
        proxy.heal();
      },
    };
  },
});

/** What is sent meanwhile is taken and never arrives, and nobody is told: a cable that is pulled. Then the connections are reset. */
const silent = (name: string, what: string, of: (scene: ChaosScene) => Cuttable): Fault => ({
  name,
  what: `${what} swallows everything for ${cutMs / 1000} s`,
  async prepare(scene) {
    const proxy = of(scene);
    return {
      inject: () => proxy.stall(),
      async heal() {
        await sleep(cutMs);
        proxy.cut();
        proxy.heal();
      },
    };
  },
});

const plainBucketCut = cut("S3", "S3, for shims and functions", (scene) => scene.s3Proxy);
const bucketCut: Fault = {
  ...plainBucketCut,
  async prepare(scene) {
    // Another tree than before: a bundle that is in the bucket already would not be sent.
    await scene.source.virsh.snapshotCreate(scene.guest.name, `unsent-${randomUUID()}`);
    return plainBucketCut.prepare(scene);
  },
};

export const faults: readonly Fault[] = [
  shimKilled("source"),
  shimKilled("destination"),
  {
    name: "control plane",
    what: "kill -9 of the control plane",
    async prepare({ fleet }) {
      const controlPlane = fleet.controlPlane;
      if (controlPlane === undefined) throw new Error("no control plane");
      return {
        inject: () => void controlPlane.child.kill("SIGKILL"),
        async heal() {
          await controlPlane.exited;
          await sleep(downMs);
          await fleet.startControlPlane();
        },
      };
    },
  },
  daemonKilled("source"),
  daemonKilled("destination"),
  cut("source websocket", "the source's websocket", (scene) => scene.socketProxy(scene.source)),
  cut("destination websocket", "the destination's websocket", (scene) => scene.socketProxy(scene.destination)),
  cut("peer channel", "the channel between the shims", (scene) => scene.peerProxy(scene.destination)),
  silent("peer channel silent", "the channel between the shims", (scene) => scene.peerProxy(scene.destination)),
  bucketCut,
  cut("DynamoDB", "DynamoDB", (scene) => scene.dynamoProxy),
];
