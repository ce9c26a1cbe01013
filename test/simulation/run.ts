/**
 * One run: a guest with its tree on one host, a wish to move it, faults on the way, then a world that heals, and an end
 * that has to be reached (I10) and to be whole (I4).
 */
import type { MigrationState } from "#core/state";
import { type FaultSource, type PlannedFault, type Point, sides } from "./fault-plan.ts";
import { requestSoon, watchAsPerson } from "./persons.ts";
import { endFaults } from "./run-end.ts";
import { type Mutation, migrationId, plainScenario, rivalId, type Scenario, type Scene, setUp } from "./scene.ts";
import { powerOn, strike } from "./strikes.ts";
import { type Violation, World } from "./world.ts";

export interface RunOptions {
  seed: number;
  scenario?: Scenario;
  source?: FaultSource;
  tracing?: boolean;
  recording?: boolean;
  mutation?: Mutation;
  /** Somebody else asks for the same domain's migration then. */
  rivalAtMs?: number;
}

export interface RunResult {
  seed: number;
  scenario: Scenario;
  status: MigrationState["status"] | "none";
  /** What became of the other wish for the same domain. */
  rival: MigrationState | null;
  strandedMeanwhile: boolean;
  injected: readonly PlannedFault[];
  points: readonly { at: string; point: Point }[];
  violations: readonly Violation[];
  events: number;
  endedAtMs: number;
  trace: readonly string[];
}

/** Faults cease then, and what is broken is repaired. */
const healAtMs = 20 * 60_000;
/** From then on an end is overdue: retries of a failing step are at most 15 minutes apart. */
const endByMs = healAtMs + 4 * 60 * 60_000;
/** After the end: what is still on its way arrives; what somebody kept for long arrives too. */
const quietMs = 1_500;
const slowMs = 61_000;
const lateMs = 6 * 60_000 + 5_000;
/** What has ended is forgotten everywhere within some heartbeats and ticks of a healed world. */
const forgottenMs = 10 * 60_000;

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
  const made = await setUp(world, scenario, options.mutation ?? {});
  scene = made;
  world.onHeal(() => {
    for (const side of sides) powerOn(made, side);
  });
  const { witness } = made;
  let wasStranded = false;
  let endedAtMs = -1;
  world.time.after(healAtMs, () => world.heal());
  requestSoon(made, migrationId, 6_000);
  if (options.rivalAtMs !== undefined) requestSoon(made, rivalId, options.rivalAtMs);
  watchAsPerson(made);
  await world.time.run(endByMs, () => {
    const state = witness.states.get(migrationId);
    if (state?.status === "stranded") wasStranded = true;
    if (world.violations.length > 0) return true;
    if (state?.step !== "ended") return false;
    if (endedAtMs < 0) endedAtMs = world.time.nowMs;
    const isLate = world.faults.injected.some(({ kind }) => kind === "stale");
    const isSlow = world.faults.injected.some(({ kind }) => kind === "delayed" || kind === "repeated");
    const ms = isLate ? lateMs : isSlow ? slowMs : quietMs;
    return world.time.nowMs > endedAtMs + ms && isQuiet(made, endedAtMs);
  });
  const state = witness.states.get(migrationId) ?? null;
  if (world.violations.length === 0)
    for (const { invariant, text } of await endFaults(made, state, scenario)) world.violate(invariant, text);
  return {
    seed,
    scenario,
    status: state?.status ?? "none",
    rival: witness.states.get(rivalId) ?? null,
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
