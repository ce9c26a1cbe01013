/** A run whose scenario and faults are all drawn from its seed: a likelihood, a number and a mix of kinds for each. */
import { allKinds, type FaultKind } from "./fault-plan.ts";
import { type RunResult, simulate } from "./run.ts";
import type { Mutation, Scenario } from "./scene.ts";
import { Chance } from "./virtual-time.ts";

export function scenarioOf(chance: Chance): Scenario {
  const guest = chance.is(0.84) ? "running" : chance.pick(["paused", "offline"] as const);
  return { snapshots: chance.pick(["none", "chain", "tree", "tree"] as const), guest, autostart: chance.is(0.6) };
}

export function runSwarm(seed: number, options: { tracing?: boolean; mutation?: Mutation } = {}): Promise<RunResult> {
  const chance = new Chance(seed * 7 + 3);
  const scenario = scenarioOf(chance);
  // Few kinds at a time find what all of them together hide.
  const kinds = new Set<FaultKind>();
  const share = chance.pick([0.08, 0.2, 0.5, 1]);
  for (const kind of allKinds) if (chance.is(share)) kinds.add(kind);
  const likelihood = chance.pick([0.01, 0.03, 0.08, 0.2]);
  const faultsMax = chance.between(1, 8);
  // A happy run has about 130 points; the handshake itself is in their second half.
  const afterPoints = chance.pick([0, chance.between(0, 60), chance.between(40, 140), chance.between(60, 130)]);
  return simulate({ seed, scenario, source: { type: "swarm", likelihood, faultsMax, kinds, afterPoints }, ...options });
}
