/**
 * One cell of the matrix: a migration, a fault in a moment of it, the healing, the end, the verdict. The guest moves on from wherever
 * the cell before has left it, which also proves that nothing of that one stands in the way.
 */
import { setTimeout as sleep } from "node:timers/promises";
import * as z from "zod/mini";
import { type Migration, migrationSchema } from "../../functions/http/migration-resource.ts";
import { problemSchema } from "../../functions/http/problem.ts";
import type { ChaosScene } from "./chaos-scene.ts";
import type { Fault } from "./fault.ts";
import { type Moment, performMiBps } from "./moment.ts";
import { arm } from "./trigger.ts";
import { type Before, lookBefore, violations } from "./witness.ts";

/** A migration that has not ended so long after everything was healed will not end by itself: two of the functions' minute timers. */
const endMsMax = 150_000;
/** Inventory, hearts and sockets are back within a heartbeat of ten seconds; a lock that is not free by then is not freed. */
const startMsMax = 60_000;
const pollMs = 100;

export type End = Migration["status"] | "none";

export interface Cell {
  fault: string;
  moment: string;
  /** False: the migration ended before its moment came, so nothing was proven. */
  struck: boolean;
  migrationId: string;
  /** `none`: it did not end. */
  end: End;
  /** Why it did not complete. */
  code: string | null;
  cause: string | null;
  /** From the fault to the end. */
  endMs: number | null;
  /** The whole cell. */
  totalMs: number;
  /** Longest silence of the guest, in ms. */
  silentMs: number | null;
  /** Empty: the cell is sound. */
  violations: string[];
}

/** Runs the cell; where it is sound the scene is ready for the next one. */
export async function runCell(scene: ChaosScene, fault: Fault, moment: Moment): Promise<Cell> {
  const fromMs = performance.now();
  const before = await lookBefore(scene);
  const strike = await fault.prepare(scene);
  let struckMs: number | null = null;
  let healing: Promise<string | null> = Promise.resolve(null);
  const trigger = await arm(scene, moment, () => {
    strike.inject();
    struckMs = performance.now();
    healing = strike.heal().then(
      () => null,
      (error: unknown) => `it does not heal: ${error instanceof Error ? error.message : String(error)}`,
    );
  });
  const cell: Cell = {
    fault: fault.name,
    moment: moment.name,
    struck: false,
    migrationId: "",
    end: "none",
    code: null,
    cause: null,
    endMs: null,
    totalMs: 0,
    silentMs: null,
    violations: [],
  };
  try {
    cell.migrationId = await startMigration(scene);
    const migration = await endOf(scene, cell.migrationId);
    const endedMs = performance.now();
    trigger.disarm();
    cell.struck = struckMs !== null;
    const unhealed = await healing;
    if (unhealed !== null) cell.violations.push(unhealed);
    if (!cell.struck) cell.violations.push("its moment never came");
    else cell.endMs = endedMs - (struckMs ?? endedMs);
    if (migration === null)
      cell.violations.push(`I10 no end: after ${endMsMax} ms it is at ${await lastStep(scene, cell)}`);
    else await judge(scene, before, cell, migration);
  } catch (error) {
    cell.violations.push(error instanceof Error ? error.message : String(error));
  } finally {
    trigger.disarm();
    await healing;
    cell.totalMs = performance.now() - fromMs;
  }
  return cell;
}

async function judge(scene: ChaosScene, before: Before, cell: Cell, migration: Migration): Promise<void> {
  cell.end = migration.status;
  cell.code = migration.error?.code ?? null;
  cell.cause = migration.error?.cause ?? null;
  const completed = migration.status === "completed";
  if (!completed && migration.status !== "rolledBack") cell.violations.push(`it ended ${migration.status}`);
  if (!completed && (cell.cause ?? "") === "") cell.violations.push("it says no cause");
  if (completed) scene.turn();
  cell.violations.push(...(await violations(scene, scene.source, before)));
  cell.silentMs = scene.guest.witness.largestGap?.ms ?? null;
  const locked = await lockFault(scene);
  if (locked !== null) cell.violations.push(locked);
}

/** Asks for the guest's next migration; whatever is not back yet after the last fault is waited for. Returns its id. */
export async function startMigration(scene: ChaosScene): Promise<string> {
  const body = JSON.stringify({
    domain: scene.guest.uuid,
    destination: scene.destination.name,
    bandwidthMiBps: performMiBps,
  });
  let refusal = "";
  for (const untilMs = performance.now() + startMsMax; performance.now() < untilMs; await sleep(pollMs)) {
    const response = await scene.world
      .ask("/v1/migrations", { method: "POST", body, headers: { "content-type": "application/json" } })
      .catch(() => null);
    if (response === null) continue;
    const answer: unknown = await response.json();
    if (response.status === 202) return migrationSchema.parse(answer).id;
    const problem = problemSchema.safeParse(answer);
    refusal = problem.success ? `${problem.data.code}: ${problem.data.cause}` : `status ${response.status}`;
  }
  throw new Error(`no migration can be started: ${refusal}`);
}

/** The migration once it has ended and everything was healed; null when it does not end. A control plane that is away is waited for. */
async function endOf(scene: ChaosScene, id: string): Promise<Migration | null> {
  for (const untilMs = performance.now() + endMsMax; performance.now() < untilMs; await sleep(pollMs)) {
    const migration = await look(scene, id);
    if (migration !== null && migration.status !== "running") return migration;
  }
  return null;
}

export async function look(scene: ChaosScene, id: string): Promise<Migration | null> {
  try {
    const response = await scene.world.ask(`/v1/migrations/${id}`);
    return response.status === 200 ? migrationSchema.parse(await response.json()) : null;
  } catch {
    return null;
  }
}

async function lastStep(scene: ChaosScene, { migrationId }: Cell): Promise<string> {
  const migration = await look(scene, migrationId);
  return migration === null ? "a step that nobody can tell" : `${migration.step} (${migration.status})`;
}

const checkSchema = z.object({
  allowed: z.boolean(),
  blockers: z.array(z.object({ code: z.string(), cause: z.string() })),
});

/** The way back is free: a check finds no lock and no host that is away. */
async function lockFault(scene: ChaosScene): Promise<string | null> {
  const body = JSON.stringify({ domain: scene.guest.uuid, destination: scene.destination.name });
  let blockers = "no answer";
  for (const untilMs = performance.now() + startMsMax; performance.now() < untilMs; await sleep(pollMs)) {
    const response = await scene.world
      .ask("/v1/checks", { method: "POST", body, headers: { "content-type": "application/json" } })
      .catch(() => null);
    const check = checkSchema.safeParse(await response?.json().catch(() => null));
    if (!check.success) continue;
    if (check.data.allowed) return null;
    blockers = check.data.blockers.map(({ code, cause }) => `${code} ${cause}`).join(", ");
  }
  return `the next migration is not allowed: ${blockers}`;
}
