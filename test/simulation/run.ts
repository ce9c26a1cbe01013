/**
 * One run: a guest with its tree on one host, a wish to move it, faults on the way, then a world that heals, and an end
 * that has to be reached (I10) and to be whole (I4).
 */
import type { MigrationState } from "#core/state";
import { PausedReason, RunningReason } from "#libvirt/constants";
import type { FaultSource, PlannedFault, SideName, WorldKind } from "./fault-plan.ts";
import { sides } from "./fault-plan.ts";
import { endFaults } from "./run-end.ts";
import { SimBucket, SimBundleFiles } from "./sim-bundles.ts";
import { SimDisk } from "./sim-disk.ts";
import { SimDomain } from "./sim-domain.ts";
import { type FunctionsMutation, SimFunctions } from "./sim-functions.ts";
import { hosts } from "./sim-keys.ts";
import { SimLibvirtd } from "./sim-libvirtd.ts";
import { Network } from "./sim-network.ts";
import { type ShimMutation, SimShim } from "./sim-shim.ts";
import { Streams } from "./sim-stream.ts";
import { Witness } from "./witness.ts";
import { type Violation, World } from "./world.ts";

export const migrationId = "m_01JD0000000000000000000000";
export const domainRef = { uuid: "11111111-2222-3333-4444-555555555555", name: "web" };

export interface Scenario {
  snapshots: "none" | "chain" | "tree";
  guest: "running" | "paused" | "offline";
  autostart: boolean;
}

export const plainScenario: Scenario = { snapshots: "tree", guest: "running", autostart: true };

export interface RunOptions {
  seed: number;
  scenario?: Scenario;
  source?: FaultSource;
  tracing?: boolean;
  recording?: boolean;
  mutation?: Mutation;
}

export interface Mutation {
  source?: ShimMutation;
  destination?: ShimMutation;
  functions?: FunctionsMutation;
}

export interface RunResult {
  seed: number;
  scenario: Scenario;
  status: MigrationState["status"] | "none";
  strandedMeanwhile: boolean;
  injected: readonly PlannedFault[];
  points: readonly { at: string; point: import("./fault-plan.ts").Point }[];
  violations: readonly Violation[];
  events: number;
  endedAtMs: number;
  trace: readonly string[];
}

/** Faults cease then, and what is broken is repaired. */
const healAtMs = 25 * 60_000;
/** From then on an end is overdue: retries of a failing step are at most 15 minutes apart. */
const endByMs = healAtMs + 4 * 60 * 60_000;
/** After the end: what is still on its way arrives; what somebody kept for long arrives too. */
const quietMs = 1_500;
const slowMs = 61_000;
const lateMs = 6 * 60_000 + 5_000;
/** What has ended is forgotten everywhere within some heartbeats and ticks of a healed world. */
const forgottenMs = 10 * 60_000;

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

export async function simulate(options: RunOptions): Promise<RunResult> {
  const { seed, scenario = plainScenario, source = { type: "none" }, tracing = false } = options;
  let scene: Scene | null = null;
  const world = new World({
    seed,
    source,
    tracing,
    onWorld: (kind) => {
      world.note(`*** ${kind}`);
      world.time.after(0, () => {
        if (scene !== null) strike(scene, kind);
      });
    },
  });
  world.faults.recording = options.recording === true;
  scene = await setUp(world, scenario, options.mutation ?? {});
  const { witness } = scene;
  let wasStranded = false;
  let endedAtMs = -1;
  world.time.after(healAtMs, () => world.heal());
  requestSoon(scene);
  watchAsPerson(scene);
  await world.time.run(endByMs, () => {
    const { state } = witness;
    if (state?.status === "stranded") wasStranded = true;
    if (world.violations.length > 0) return true;
    if (state?.step !== "ended") return false;
    if (endedAtMs < 0) endedAtMs = world.time.nowMs;
    const isLate = world.faults.injected.some(({ kind }) => kind === "stale");
    const isSlow = world.faults.injected.some(({ kind }) => kind === "delayed" || kind === "repeated");
    const ms = isLate ? lateMs : isSlow ? slowMs : quietMs;
    return world.time.nowMs > endedAtMs + ms && isQuiet(scene, endedAtMs);
  });
  const { state } = witness;
  if (world.violations.length === 0)
    for (const { invariant, text } of await endFaults(scene, state, scenario)) world.violate(invariant, text);
  return {
    seed,
    scenario,
    status: state?.status ?? "none",
    strandedMeanwhile: wasStranded,
    injected: world.faults.injected,
    points: world.faults.points,
    violations: world.violations,
    events: world.time.events,
    endedAtMs,
    trace: world.trace,
  };
}

/** Nobody has anything left to do: both hosts run and have forgotten the migration. */
function isQuiet({ daemons, shims, disks, world, functions }: Scene, endedAtMs: number): boolean {
  if (world.healed && world.time.nowMs > Math.max(endedAtMs, healAtMs) + forgottenMs) return true;
  if (functions.held.size > 0) return false;
  return sides.every(
    (side) => daemons[side].hasPower && shims[side].isUp && disks[side].names("/state/journal/").length === 0,
  );
}

async function setUp(world: World, scenario: Scenario, mutation: Mutation): Promise<Scene> {
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
  world.onHeal(() => {
    for (const side of sides) powerOn(scene, side);
  });
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

/** Somebody asks for the migration, and again when no answer came. */
function requestSoon({ world, functions, witness }: Scene): void {
  const ask = (): void => {
    functions.invoke((runner) =>
      runner.request({
        id: migrationId,
        domain: domainRef,
        source: { ...hosts.source },
        destination: { ...hosts.destination },
        options: { offline: false, unsafe: false, autoConverge: false, bandwidthMiBps: null },
        accept: [],
      }),
    );
    world.time.after(30_000, () => {
      if (witness.state === null) ask();
    });
  };
  world.time.after(6_000, ask);
}

/** A person who does what a stranded migration says: states that a host is fenced when it is off, and nothing else. */
function watchAsPerson(scene: Scene): void {
  const { world, functions, daemons, witness } = scene;
  const look = (): void => {
    const { state } = witness;
    for (const side of sides) {
      if (state?.status !== "stranded" || daemons[side].hasPower || witness.fenced.has(side)) continue;
      if (!state.failure?.action.includes(`--fenced ${hosts[side].name}`)) continue;
      world.note(`a person states that the ${side} is fenced`);
      functions.invoke((runner) => runner.resolve(migrationId, { by: "person", reason: "it is off", fenced: side }));
      witness.fenced.add(side);
    }
    world.time.after(2 * 60_000, look);
  };
  world.time.after(16 * 60_000, look);
}

const isSide = (text: string | undefined): text is SideName => text === "source" || text === "destination";

function strike(scene: Scene, kind: WorldKind): void {
  const { world, shims, daemons, disks, network, functions, bucket, streams } = scene;
  const { chance, time } = world;
  const [what, where] = kind.split(":");
  const side = isSide(where) ? where : "source";
  switch (what) {
    case "cancel":
      functions.invoke((runner) => runner.cancel(migrationId, "person"));
      return;
    case "snapshot":
      takeSnapshot(scene);
      return;
    case "crash":
      shims[side].crash();
      return;
    case "daemon":
      daemons[side].restart();
      return;
    case "power":
    case "powerLong": {
      powerOff(scene, side);
      const ms = what === "power" ? chance.between(20_000, 5 * 60_000) : healAtMs;
      time.after(ms, () => powerOn(scene, side));
      return;
    }
    case "socket":
      network.cutSocket(side);
      return;
    case "peerCut":
      network.cutPeerFor(chance.between(500, 10 * 60_000));
      return;
    case "streamCut":
      streams.cutFor(chance.between(500, 60_000));
      return;
    case "functionsAway":
      functions.awayFor(chance.between(5_000, 30 * 60_000));
      return;
    case "bucketAway":
      bucket.awayFor(chance.between(5_000, 10 * 60_000));
      return;
    case "diskFull":
      disks[side].fillFor(chance.between(1_000, 5 * 60_000));
  }
}

function powerOff({ daemons, shims, disks, world }: Scene, side: SideName): void {
  if (!daemons[side].hasPower) return;
  shims[side].mayRun = false;
  daemons[side].losePower();
  shims[side].crash();
  disks[side].losePower();
  world.note(`${side} has no power`);
}

function powerOn({ daemons, shims, world }: Scene, side: SideName): void {
  if (daemons[side].hasPower) return;
  daemons[side].regainPower();
  shims[side].mayRun = true;
  world.time.after(world.chance.between(500, 5_000), () => shims[side].start());
}

/** Its owner takes a snapshot where the guest runs, if libvirt lets them. */
function takeSnapshot({ daemons, world, owned }: Scene): void {
  for (const side of sides) {
    const domain = daemons[side].domains.get(domainRef.uuid);
    if (domain === undefined || domain.qemu?.cpu !== "running" || domain.job !== null || !daemons[side].isUp) continue;
    const name = `theirs${owned.size}`;
    const createdAt = 100 + owned.size;
    domain.snapshots.take(name, createdAt);
    owned.set(name, { parent: domain.snapshots.records.get(name)?.parent ?? null, createdAt, added: true });
    world.note(`${side} its owner takes a snapshot "${name}"`);
    return;
  }
}
