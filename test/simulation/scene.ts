/** What a run begins with: two hosts, a control plane, and on the source a guest with its tree. */
import { PausedReason, RunningReason } from "#libvirt/constants";
import { type SideName, sides } from "./fault-plan.ts";
import { SimBucket, SimBundleFiles } from "./sim-bundles.ts";
import { SimDisk } from "./sim-disk.ts";
import { SimDomain } from "./sim-domain.ts";
import { type FunctionsMutation, SimFunctions } from "./sim-functions.ts";
import { SimLibvirtd } from "./sim-libvirtd.ts";
import { Network } from "./sim-network.ts";
import { type ShimMutation, SimShim } from "./sim-shim.ts";
import { Streams } from "./sim-stream.ts";
import { Witness } from "./witness.ts";
import type { World } from "./world.ts";

export const migrationId = "m_01JD0000000000000000000000";
/** Another wish for the same domain. */
export const rivalId = "m_01JD0000000000000000000009";
export const domainRef = { uuid: "11111111-2222-3333-4444-555555555555", name: "web" };

export interface Scenario {
  snapshots: "none" | "chain" | "tree";
  guest: "running" | "paused" | "offline";
  autostart: boolean;
}

export const plainScenario: Scenario = { snapshots: "tree", guest: "running", autostart: true };

export interface Mutation {
  source?: ShimMutation;
  destination?: ShimMutation;
  functions?: FunctionsMutation;
}

export interface Scene {
  world: World;
  witness: Witness;
  daemons: Record<SideName, SimLibvirtd>;
  disks: Record<SideName, SimDisk>;
  files: Record<SideName, SimBundleFiles>;
  shims: Record<SideName, SimShim>;
  bucket: SimBucket;
  network: Network;
  functions: SimFunctions;
  streams: Streams;
  /** Snapshots that exist by their owner's will, by name. */
  owned: Map<string, { parent: string | null; createdAt: number; added: boolean }>;
  current: string | null;
}

export async function setUp(world: World, scenario: Scenario, mutation: Mutation): Promise<Scene> {
  const witness = new Witness(world);
  const streams = new Streams(world);
  const network = new Network(world);
  const bucket = new SimBucket(world);
  const of = <T>(make: (side: SideName) => T) => ({ source: make("source"), destination: make("destination") });
  const disks = of((side) => new SimDisk(world, side));
  const files = of((side) => new SimBundleFiles(world, disks[side]));
  const daemons = of((side) => new SimLibvirtd(world, side, witness, streams));
  witness.look({ daemons, files, bucket });
  const functions = new SimFunctions({ world, network, bucket, witness, mutate: mutation.functions ?? {} });
  network.functions = functions;
  const shims = of(
    (side) =>
      new SimShim({
        world,
        side,
        daemon: daemons[side],
        disk: disks[side],
        files: files[side],
        bucket,
        network,
        mutate: mutation[side] ?? {},
      }),
  );
  for (const side of sides) {
    disks[side].onEntry = (path, line) => witness.journalled(side, path, line);
    disks[side].onRemoved = (path) => witness.forgot(side, path);
  }
  await functions.begin();
  const scene: Scene = {
    world,
    witness,
    daemons,
    disks,
    files,
    shims,
    bucket,
    network,
    functions,
    streams,
    owned: new Map(),
    current: null,
  };
  placeGuest(scene, scenario);
  for (const side of sides) shims[side].start();
  return scene;
}

const trees: Record<Scenario["snapshots"], readonly [string, string | null][]> = {
  none: [],
  chain: [
    ["one", null],
    ["two", "one"],
  ],
  tree: [
    ["base", null],
    ["web", "base"],
    ["db", "base"],
    ["web-test", "web"],
  ],
};

function placeGuest({ daemons, witness, owned, ...scene }: Scene, { snapshots, guest, autostart }: Scenario): void {
  const daemon = daemons.source;
  const domain = new SimDomain(domainRef.name, domainRef.uuid, true);
  domain.autostart = autostart;
  daemon.domains.set(domain.uuid, domain);
  let createdAt = 1;
  for (const [name, parent] of trees[snapshots]) {
    domain.snapshots.records.set(name, { parent, createdAt });
    owned.set(name, { parent, createdAt, added: false });
    domain.snapshots.current = name;
    createdAt += 1;
  }
  scene.current = domain.snapshots.current;
  if (guest === "offline") return;
  witness.ownerPaused = guest === "paused";
  const cpu = guest === "paused" ? ("paused" as const) : ("running" as const);
  daemon.start(domain, witness.newLife(daemon), cpu, guest === "paused" ? PausedReason.USER : RunningReason.BOOTED);
}
