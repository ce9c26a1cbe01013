/** Every single fault: each kind that a point can have, at each point that a run without faults reaches. */
import { ownKindsOf, type PlannedFault, worldKinds } from "./fault-plan.ts";
import { type RunResult, simulate } from "./run.ts";
import type { Mutation, Scenario } from "./scene.ts";

/** All of them for a scenario, in the order of the happy run. */
export async function singleFaults(seed: number, scenario: Scenario): Promise<PlannedFault[]> {
  const happy = await simulate({ seed, scenario, recording: true });
  return happy.points.flatMap(({ at, point }) => {
    if (point.class === "look") return [];
    return [...ownKindsOf(point), ...worldKinds].map((kind) => ({ at, kind }));
  });
}

export function runSingle(
  seed: number,
  scenario: Scenario,
  fault: PlannedFault,
  options: { tracing?: boolean; mutation?: Mutation } = {},
): Promise<RunResult> {
  return simulate({ seed, scenario, source: { type: "planned", faults: [fault] }, ...options });
}
