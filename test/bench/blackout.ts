/**
 * `node test/bench/blackout.ts`: how long the guest stands still, seen from outside, by vmferry and by `virsh migrate --live`, side by
 * side in one run: each round moves the same guest once in every way, so the machine's mood falls on all. vmferry carries the guest's
 * snapshot tree; for virsh, which refuses one, its metadata is taken off before and put back after.
 *
 *   --rounds N   default 10        --json   the figures as JSON      --no-build   measure what is in dist/ already
 */
import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { type Fleet, startFleet } from "#lab/fleet";
import { bootGuest, type Guest } from "#lab/guest";
import type { Host } from "#lab/host";
import { startLab } from "#lab/lab";
import { isRoot, LabRefusal } from "#lab/prerequisites";
import { takeBranchingTree } from "#lab/snapshot-tree";
import { startTcpProxy, type TcpProxy } from "#lab/tcp-proxy";
import { endOf, request } from "../chaos/asking.ts";
import { JournalWatch } from "../chaos/journal-watch.ts";
import { markOf } from "../chaos/moment.ts";
import { World } from "../e2e/world.ts";
import { type Blackout, blackoutOf, gapMsMin, outputEnd } from "./handover.ts";
import { figure, ratio } from "./statistics.ts";

const say = (line: string) => console.error(line);
const root = join(import.meta.dirname, "../..");
/** The guest's pause between two counts; with the loop's own work it counts about every 3 ms. */
const tickPauseMs = 2;
/** A sync about every three seconds: a disk that is written all the time would make gaps of its own. */
const diskTicks = 1_000;
const pollMs = 1;
const tickTimeoutMs = 60_000;
const ticksAround = 100;
const endMsMax = 120_000;
/** A gap that was seen worse than this, in ms, is measured again, whatever it was: the machine kept the reader from looking. */
const seenToMsMax = 12;
const triesMax = 4;
/** What a stop and go of shims, inventory and emulated caches needs before the next way is measured. */
const restMs = 500;

interface Bench {
  world: World;
  guest: Guest;
  proxies: readonly TcpProxy[];
  source: Host;
  destination: Host;
}

interface Way {
  name: string;
  move(bench: Bench): Promise<void>;
  /** What has to be done when the guest runs over there; not measured. */
  after?(bench: Bench): Promise<void>;
}

async function byVirsh({ guest, source, destination }: Bench): Promise<void> {
  const tree = await source.virsh.snapshotTree(guest.name);
  const names = tree.map(({ name }) => name).toReversed();
  await source.virsh.batch(names.map((name) => ["snapshot-delete", guest.name, name, "--metadata"]));
  await source.virsh.migrate(guest.name, destination.uri, { persistent: true, undefineSource: true });
  for (const { xml, current } of tree) await destination.virsh.snapshotRedefine(guest.name, xml, { current });
}

async function byVmferry(bench: Bench): Promise<void> {
  const { world, guest, destination } = bench;
  const id = await request(world, { domain: guest.uuid, destination: destination.name });
  await mustComplete(world, id);
}

async function mustComplete(world: World, id: string): Promise<void> {
  const migration = await endOf(world, id, endMsMax);
  if (migration?.status !== "completed")
    throw new Error(`the migration is ${migration?.status ?? "without an end"}: ${JSON.stringify(migration?.error)}`);
}

const delayed = (roundTripMs: number): Way => ({
  name: `vmferry, control plane ${roundTripMs} ms away`,
  async move(bench) {
    for (const proxy of bench.proxies) proxy.delay(roundTripMs / 2);
    try {
      await byVmferry(bench);
    } finally {
      for (const proxy of bench.proxies) proxy.delay(0);
    }
  },
});

/** Killed as Perform is called; it is started again only when the guest has run over there for a while. */
function withoutControlPlane(): Way {
  let id = "";
  return {
    name: "vmferry, control plane killed at Perform",
    async move({ world, guest, source, destination }) {
      const { fleet } = world;
      const watch = new JournalWatch(join(fleet.dir, `shim-${source.name}`), (_, entry) => {
        if (markOf(entry) === "performing") fleet.controlPlane?.child.kill("SIGKILL");
      });
      try {
        id = await request(world, { domain: guest.uuid, destination: destination.name });
        await fleet.controlPlane?.exited;
        for (const untilMs = performance.now() + endMsMax; ; await sleep(100)) {
          if ((await destination.virsh.domstate(guest.name)) === "running") return;
          if (performance.now() > untilMs) throw new Error("the guest does not run without the control plane");
        }
      } finally {
        watch.close();
      }
    },
    async after({ world }) {
      if (world.fleet.controlPlane?.alive !== false) throw new Error("the control plane was not killed");
      await world.fleet.startControlPlane();
      await mustComplete(world, id);
    },
  };
}

const reference = "virsh migrate --live";
const ways: readonly Way[] = [
  { name: reference, move: byVirsh },
  { name: "vmferry", move: byVmferry },
  delayed(50),
  delayed(200),
  withoutControlPlane(),
];

/** All that tells a copy that ran beside another one from memory that came over stale: who printed what, and where the silence was. */
async function outOfOrder({ guest, source, destination }: Bench): Promise<string> {
  const { violations, gaps } = guest.witness;
  const [first] = violations;
  const ends = await Promise.all(
    [source, destination].map(async (host) => {
      const lines = (await readFile(guest.serialCopyOn(host), "latin1")).split("\n");
      const near = lines.flatMap((line, index) => (line.trim() === `tick ${first?.after}` ? [index] : []));
      return `${host.name} printed that count at line ${near} of ${lines.length}, its last whole line is ${lines.at(-2)?.trim()}`;
    }),
  );
  const told = [violations.slice(0, 5), gaps.slice(-10)].map((each) => JSON.stringify(each)).join(", gaps ");
  return `the guest did not count on, ${violations.length} times: ${told}; ${ends.join("; ")}`;
}

async function measured(bench: Bench, way: Way): Promise<Blackout> {
  const { guest, source, destination } = bench;
  await guest.witness.waitForTicks(ticksAround, tickTimeoutMs);
  const from = await outputEnd(guest, destination);
  guest.witness.reset();
  await way.move(bench);
  await guest.witness.waitForTicks(ticksAround, tickTimeoutMs);
  const blackout = await blackoutOf(guest, destination, from);
  if (guest.witness.violations.length > 0) throw new Error(`${way.name}: ${await outOfOrder(bench)}`);
  await way.after?.(bench);
  if ((await source.virsh.domstate(guest.name)) !== undefined) throw new Error(`${way.name} left it on ${source.name}`);
  [bench.source, bench.destination] = [destination, source];
  await sleep(restMs);
  return blackout;
}

/** One that was seen well; of as many as it takes, within reason. */
async function seenWell(bench: Bench, way: Way): Promise<Blackout> {
  for (let tries = 1; ; tries += 1) {
    const blackout = await measured(bench, way);
    if (blackout.observerMs <= seenToMsMax || tries >= triesMax) return blackout;
    say(`   ${way.name}: ${told(blackout)}; that is not seen well enough, once more`);
  }
}

async function measureAll(bench: Bench, rounds: number): Promise<Map<string, Blackout[]>> {
  const found = new Map<string, Blackout[]>(ways.map(({ name }) => [name, []]));
  // Each way's first move of this fleet pays for caches.
  for (const way of ways) say(`   warming, ${way.name}: ${told(await measured(bench, way))}`);
  for (let round = 1; round <= rounds; round += 1) {
    // Turned by one each round, so that none is always behind the same other one.
    const order = ways.map((_, index) => ways[(index + round) % ways.length]).filter((way) => way !== undefined);
    for (const way of order) {
      const blackout = await seenWell(bench, way);
      found.get(way.name)?.push(blackout);
      say(`   round ${round}/${rounds}, ${way.name}: ${told(blackout)}`);
    }
  }
  return found;
}

const told = ({ ms, observerMs }: Blackout) => `${ms.toFixed(1)} ms (seen to ${observerMs.toFixed(1)} ms)`;

function table(found: ReadonlyMap<string, Blackout[]>, paceMs: number): string {
  const virsh = (found.get(reference) ?? []).map(({ ms }) => ms);
  const rows = [...found].map(([name, blackouts]) => {
    const values = blackouts.map(({ ms }) => ms);
    const { median, min, max } = figure(values);
    const by = ratio(values, virsh);
    const seenTo = figure(blackouts.map(({ observerMs }) => observerMs)).median;
    const spread = `${by.min.toFixed(2)}–${by.max.toFixed(2)}`;
    return `| ${name} | ${median.toFixed(1)} ms | ${min.toFixed(1)}–${max.toFixed(1)} ms | **${by.ratio.toFixed(2)}** (${spread}) | ${seenTo.toFixed(1)} ms |`;
  });
  return [
    `| way | blackout, median of ${virsh.length} | min–max | by \`${reference}\` (rounds' extremes) | seen to |`,
    "|---|---|---|---|---|",
    ...rows,
    "",
    `The guest counts every ${paceMs.toFixed(1)} ms; a blackout holds at most one such pause that is not its own.`,
  ].join("\n");
}

/** What one count takes, undisturbed. */
async function paceOf({ witness }: Guest): Promise<number> {
  const fromMs = performance.now();
  await witness.waitForTicks(1_000, tickTimeoutMs);
  return (performance.now() - fromMs) / 1_000;
}

async function build(): Promise<void> {
  const child = spawn(process.execPath, [join(root, "infra/build.ts")], { stdio: ["ignore", 2, 2] });
  const code = await new Promise((resolve, reject) => child.once("exit", resolve).once("error", reject));
  if (code !== 0) throw new Error("the build failed");
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      rounds: { type: "string", default: "10" },
      json: { type: "boolean", default: false },
      "no-build": { type: "boolean", default: false },
    },
  });
  const rounds = Number(values.rounds);
  if (!Number.isInteger(rounds) || rounds < 1) throw new Error(`--rounds ${values.rounds} is no number of rounds`);
  if (!isRoot()) throw new LabRefusal("libvirt hosts on one machine need mount namespaces, so root", "run it as root");
  if (!values["no-build"]) await build();
  const opened: (() => Promise<unknown>)[] = [];
  const close = async () => {
    for (let end = opened.pop(); end !== undefined; end = opened.pop()) await end();
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.once(signal, () => void close().finally(() => process.exit(130)));
  try {
    const lab = await startLab({ hosts: 2, log: (line) => say(`   ${line}`) });
    opened.push(() => lab.stop());
    const proxies = new Map<string, TcpProxy>();
    const fleet: Fleet = await startFleet({
      hosts: lab.hosts,
      built: true,
      log: (line) => say(`   ${line}`),
      shimUrl: async (port, { name }) => {
        const proxy = proxies.get(name) ?? (await startTcpProxy({ targetPort: port }));
        if (!proxies.has(name)) opened.push(() => proxy.close());
        proxies.set(name, proxy);
        return `http://127.0.0.1:${proxy.port}`;
      },
      // Of its own for each, as on machines of their own.
      shim: async ({ migrationAddress }) => ({ words: ["--peer-listen", `${migrationAddress}:16515`], env: {} }),
    });
    opened.push(() => fleet.stop());
    const [source, destination] = [lab.host(0), lab.host(1)];
    const guest = await bootGuest(source, {
      serialCopies: true,
      tickPauseMs,
      diskTicks,
      witness: { pollMs, gapMsMin },
    });
    opened.push(() => guest.witness.stop());
    await takeBranchingTree(source, guest);
    const paceMs = await paceOf(guest);
    say(`   ${guest.name} counts every ${paceMs.toFixed(2)} ms on ${source.name}`);
    const bench: Bench = {
      world: new World(lab, fleet),
      guest,
      proxies: [...proxies.values()],
      source,
      destination,
    };
    const found = await measureAll(bench, rounds);
    console.log(values.json ? JSON.stringify([...found], null, 2) : table(found, paceMs));
  } finally {
    await close();
  }
}

try {
  await main();
} catch (error) {
  if (!(error instanceof LabRefusal)) throw error;
  console.error(error.message);
  process.exitCode = 69;
}
