/**
 * Records how a release's own core, runner and shims carry migrations to their ends: every event, every state as it was
 * committed, every command and report. It runs inside a checkout of that release (record.ts puts it there), so everything
 * it imports is that release's; it only uses what release 0.1.0 had already.
 *
 *   node test/releases/history-recorder.ts FOLDER
 *
 * Some histories are told by name; the others are picked out of a swarm, greedily, until no run adds a way that was not gone yet.
 */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { MigrationEvent } from "#core/event";
import type { MigrationState } from "#core/state";
import { transition } from "#core/transition";
import type { Ports } from "#functions/ports";
import { receive } from "#functions/session";
import type { DownMessage, UpMessage } from "#protocol/message";
import { allKinds, type FaultKind, type FaultSource, type PlannedFault } from "#test/simulation/fault-plan";
import { simulate } from "#test/simulation/run";
import { migrationId, plainScenario, rivalId, type Scenario } from "#test/simulation/scene";
import { hosts } from "#test/simulation/sim-keys";

type Line =
  | { created: MigrationState }
  | { event: MigrationEvent; state: MigrationState }
  /** Changed nothing. */
  | { event: MigrationEvent }
  | { blob: { name: string; base64: string; sha256: string } }
  | { down: DownMessage; side: string }
  | { up: UpMessage; side: string };

interface Plan {
  name: string;
  seed: number;
  scenario: Scenario;
  source: FaultSource;
  rivalAtMs?: number;
}

interface History {
  plan: Plan;
  status: string;
  stranded: boolean;
  injected: readonly PlannedFault[];
  lines: Line[];
  rival: Line[];
}

const sideOf = (hostId: string) => (hostId === hosts.source.id ? "source" : "destination");

/** One migration's lines, without what is said twice. */
class Book {
  readonly lines: Line[] = [];
  readonly #said = new Set<string>();
  readonly #decided = new WeakMap<MigrationState, MigrationEvent>();
  #version = 0;
  /** False: a commit was seen by the store and not by us; such a run is not kept. */
  whole = true;

  decided(state: MigrationState, event: MigrationEvent, next: MigrationState): void {
    if (next !== state) this.#decided.set(next, event);
    // A tick that finds nothing is the same whenever it is; what else changes nothing is told once for each state.
    else
      this.#once(
        { event },
        `${state.version} ${event.type === "ticked" ? "ticked" : JSON.stringify({ ...event, at: "" })}`,
      );
  }

  created(state: MigrationState): void {
    this.lines.push({ created: structuredClone(state) });
    this.#version = state.version;
  }

  committed(state: MigrationState): void {
    const event = this.#decided.get(state);
    if (event === undefined || state.version !== this.#version + 1) this.whole = false;
    else this.lines.push({ event, state: structuredClone(state) });
    this.#version = state.version;
  }

  say(line: Line): void {
    this.#once(line, JSON.stringify(line));
  }

  #once(line: Line, key: string): void {
    if (this.#said.has(key)) return;
    this.#said.add(key);
    this.lines.push(line);
  }
}

const migrationOf = (message: UpMessage | DownMessage): string | null => {
  if (message.type === "command") return message.command.migrationId;
  if (message.type === "report") return message.report.migrationId;
  return "migrationId" in message ? message.migrationId : null;
};

async function play(plan: Plan): Promise<History | null> {
  const books = new Map([migrationId, rivalId].map((id) => [id, new Book()]));
  const say = (message: UpMessage | DownMessage, line: Line) => books.get(migrationOf(message) ?? "")?.say(line);
  const result = await simulate({
    seed: plan.seed,
    scenario: plan.scenario,
    source: plan.source,
    ...(plan.rivalAtMs === undefined ? {} : { rivalAtMs: plan.rivalAtMs }),
    mutation: {
      functions: {
        decide(state, event) {
          const next = transition(state, event);
          books.get(state.id)?.decided(state, event, next.state);
          return next;
        },
        ports: (ports) => heard(ports, books, say),
        async receive(ports, runner, session, message) {
          say(message, { up: message, side: sideOf(session.hostId) });
          const reaction = await receive(ports, runner, session, message);
          for (const down of reaction.replies) say(down, { down, side: sideOf(session.hostId) });
          return reaction;
        },
      },
    },
  });
  const book = books.get(migrationId);
  if (book === undefined || !book.whole || result.violations.length > 0) return null;
  return {
    plan,
    status: result.status,
    stranded: result.strandedMeanwhile,
    injected: result.injected,
    lines: book.lines,
    rival: books.get(rivalId)?.lines ?? [],
  };
}

function heard(ports: Ports, books: Map<string, Book>, say: (message: DownMessage, line: Line) => void): Ports {
  const { migrations, sockets } = ports;
  return {
    ...ports,
    migrations: {
      ...migrations,
      async create(state) {
        const result = await migrations.create(state);
        if (result === "committed") books.get(state.id)?.created(state);
        return result;
      },
      async commit(state) {
        const result = await migrations.commit(state);
        if (result === "committed") books.get(state.id)?.committed(state);
        return result;
      },
      async putBlob(id, name, bytes, sha256) {
        books.get(id)?.say({ blob: { name, base64: Buffer.from(bytes).toString("base64"), sha256 } });
        return migrations.putBlob(id, name, bytes, sha256);
      },
    },
    sockets: {
      ...sockets,
      async push(hostId, message) {
        say(message, { down: message, side: sideOf(hostId) });
        return sockets.push(hostId, message);
      },
    },
  };
}

const none: FaultSource = { type: "none" };
const planned = (...faults: [string, FaultKind][]): FaultSource => ({
  type: "planned",
  faults: faults.map(([at, kind]) => ({ at, kind })),
});
const perform = "libvirt source domain_migrate_perform3_params#1";

const told: readonly (Pick<Plan, "name" | "source"> & { scenario?: Scenario })[] = [
  { name: "crossing", source: none },
  { name: "crossing-without-snapshots", source: none, scenario: { ...plainScenario, snapshots: "none" } },
  { name: "crossing-of-a-paused-guest", source: none, scenario: { ...plainScenario, guest: "paused" } },
  { name: "crossing-offline", source: none, scenario: { ...plainScenario, guest: "offline", autostart: false } },
  { name: "perform-refused", source: planned([perform, "refused"]) },
  { name: "cancelled-before-perform", source: planned(["store functions commit staging#1", "cancel"]) },
  { name: "cancelled-during-perform", source: planned([perform, "cancel"]) },
  { name: "destination-killed", source: planned([perform, "crash:destination"]) },
  { name: "destination-daemon-restarted", source: planned([perform, "daemon:destination"]) },
  { name: "source-killed", source: planned([perform, "crash:source"]) },
  { name: "source-without-power", source: planned([perform, "power:source"]) },
  { name: "destination-stays-away", source: planned([perform, "powerLong:destination"]) },
  { name: "source-stays-away", source: planned([perform, "powerLong:source"]) },
  { name: "finish-relayed", source: planned([perform, "peerCut"]) },
  { name: "functions-away", source: planned([perform, "functionsAway"]) },
];
const named: readonly Plan[] = told.map((plan) => ({ seed: 1, scenario: plainScenario, ...plan }));

/** The ways gone in a history: from where, by what, to where. */
function ways(lines: readonly Line[]): Set<string> {
  const found = new Set<string>();
  let from = "";
  for (const line of lines) {
    const state = "created" in line ? line.created : "state" in line ? line.state : null;
    const to = state === null ? from : `${state.status} ${state.step} ${state.pending.map(({ kind }) => kind)}`;
    if ("event" in line) found.add(`${from} | ${nameOf(line.event)} | ${to}`);
    from = to;
  }
  return found;
}

function nameOf(event: MigrationEvent): string {
  if (event.type !== "reported") return event.type;
  const { result, commandId } = event.report;
  return `${commandId.split(":")[1]} ${result.ok ? "done" : result.fault.code}`;
}

/** Faults of the store's own answer hide a commit from this recorder. */
const hidden: ReadonlySet<FaultKind> = new Set<FaultKind>(["ambiguous", "crashAfter", "crashBefore"]);
const swarmRuns = 600;
/** A history is kept for so many ways that no other has gone. */
const newWaysMin = 2;

async function swarm(gone: Set<string>): Promise<History[]> {
  const runs: History[] = [];
  const kinds = new Set(allKinds.filter((kind) => !hidden.has(kind)));
  for (let seed = 1; seed <= swarmRuns; seed += 1) {
    const source: FaultSource = {
      type: "swarm",
      likelihood: 0.02,
      faultsMax: 1 + (seed % 4),
      kinds,
      afterPoints: (seed * 7) % 120,
    };
    const snapshots = seed % 5 === 0 ? ("none" as const) : ("chain" as const);
    const run = await play({ name: `swarm-${seed}`, seed, scenario: { ...plainScenario, snapshots }, source });
    if (run !== null) runs.push(run);
  }
  const kept: History[] = [];
  for (;;) {
    const left = (run: History) => [...ways(run.lines)].filter((way) => !gone.has(way)).length;
    const best = runs.reduce<{ run: History | null; left: number }>(
      (one, run) => (left(run) > one.left ? { run, left: left(run) } : one),
      { run: null, left: newWaysMin - 1 },
    );
    if (best.run === null) return kept;
    for (const way of ways(best.run.lines)) gone.add(way);
    kept.push(best.run);
  }
}

/**
 * A history's lines as they are kept: of a state only the fields that are not as in the state before, and of the timeline only
 * what was added. Throws when the state as stored could not be put together again from that, to the letter.
 */
function written(lines: readonly Line[]): string[] {
  let before: MigrationState | null = null;
  return lines.map((line) => {
    if ("created" in line) before = line.created;
    if (!("state" in line) || before === null) return JSON.stringify(line);
    const { event, state } = line;
    const { timeline, ...fields } = state;
    const told: number = before.timeline.length;
    const standing = new Map(Object.entries(before).map(([name, value]) => [name, JSON.stringify(value)]));
    const changed = Object.fromEntries(
      Object.entries(fields).filter(([name, value]) => standing.get(name) !== JSON.stringify(value)),
    );
    const added = timeline.slice(told);
    const again = { ...before, ...changed, timeline: [...before.timeline, ...added] };
    before = state;
    // To the letter, the order of its fields with it; a state that cannot be told so is kept whole.
    if (JSON.stringify(again) !== JSON.stringify(state)) return JSON.stringify(line);
    return JSON.stringify({ event, changed, added });
  });
}

async function main(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  const gone = new Set<string>();
  const kept: History[] = [];
  for (const plan of named) {
    const run = await play(plan);
    if (run === null) throw new Error(`${plan.name} could not be recorded whole`);
    if (plan.source.type === "planned" && run.injected.length === 0) throw new Error(`${plan.name} reached no fault`);
    for (const way of ways(run.lines)) gone.add(way);
    kept.push(run);
  }
  kept.push(...(await swarm(gone)));
  const rival = await play({ name: "refused", seed: 1, scenario: plainScenario, source: none, rivalAtMs: 6_500 });
  if (rival === null || rival.rival.length === 0) throw new Error("the rival was not recorded");
  const all = [...kept, { ...rival, status: "refused", lines: rival.rival }];
  for (const { plan, status, stranded, injected, lines } of all) {
    const head = { name: plan.name, status, stranded, seed: plan.seed, scenario: plan.scenario, injected };
    const text = [JSON.stringify(head), ...written(lines)].map((line) => `${line}\n`).join("");
    await writeFile(join(folder, `${plan.name}.jsonl`), text);
    console.log(
      `${plan.name}: ${status}${stranded ? ", stranded meanwhile" : ""}, ${lines.length} lines, ${text.length} bytes`,
    );
  }
}

const [folder] = process.argv.slice(2);
if (folder === undefined) throw new Error("name the folder to write into");
await main(folder);
