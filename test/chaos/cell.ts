/**
 * One cell of the matrix: a migration, a fault in a moment of it, the healing, the end, the verdict. The guest moves on from wherever
 * the cell before has left it, which also proves that nothing of that one stands in the way.
 */
import type { Migration } from "../../functions/http/migration-resource.ts";
import { allowedFault, endOf, look, request } from "./asking.ts";
import type { ChaosScene } from "./chaos-scene.ts";
import type { Fault } from "./fault.ts";
import { type Moment, performMiBps } from "./moment.ts";
import { arm } from "./trigger.ts";
import { type Before, lookBefore, violations } from "./witness.ts";

/** A migration that has not ended so long after everything was healed will not end by itself: two of the functions' minute timers. */
const endMsMax = 150_000;

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
  const strike = await fault.prepare(scene);
  const before = await lookBefore(scene);
  let struckMs: number | null = null;
  let healing: Promise<void> = Promise.resolve();
  let unhealed: string | null = null;
  const trigger = await arm(scene, moment, () => {
    strike.inject();
    struckMs = performance.now();
    healing = strike.heal().catch((error: unknown) => {
      unhealed = `it does not heal: ${error instanceof Error ? error.message : String(error)}`;
    });
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
    cell.migrationId = await request(scene.world, {
      domain: scene.guest.uuid,
      destination: scene.destination.name,
      bandwidthMiBps: performMiBps,
    });
    const migration = await endOf(scene.world, cell.migrationId, endMsMax, () => unhealed !== null);
    const endedMs = performance.now();
    trigger.disarm();
    cell.struck = struckMs !== null;
    await healing;
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
  if (cell.violations.length > 0) return;
  const locked = await allowedFault(scene.world, { domain: scene.guest.uuid, destination: scene.destination.name });
  if (locked !== null) cell.violations.push(locked);
}

async function lastStep(scene: ChaosScene, { migrationId }: Cell): Promise<string> {
  const migration = await look(scene.world, migrationId);
  return migration === null ? "a step that nobody can tell" : `${migration.step} (${migration.status})`;
}
