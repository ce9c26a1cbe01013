/**
 * What the simulation has found and nobody has repaired yet, each so narrowly that nothing else hides behind it. A defect
 * that is repaired is taken out here: `known-defects.test.ts` fails when its seed no longer shows it.
 */
import type { PlannedFault } from "./fault-plan.ts";
import type { RunResult } from "./run.ts";
import type { Violation } from "./world.ts";

export interface KnownDefect {
  name: string;
  /** A run that shows it. */
  shown: { seed: number; scenario: string; fault: PlannedFault };
  matches(result: RunResult, violation: Violation): boolean;
}

const hasKind = ({ injected }: RunResult, kind: string) => injected.some((fault) => fault.kind.startsWith(kind));

export const knownDefects: readonly KnownDefect[] = [
  {
    name: "the destination loses power between Finish and its receipt: the guest has run there, and its source goes on from before",
    shown: {
      seed: 1,
      scenario: "tree",
      fault: { at: "disk destination milestone finished#1", kind: "power:destination" },
    },
    matches: (result, { text }) =>
      hasKind(result, "power") && text.includes("from before the guest ran on the destination"),
  },
];

export function knownDefectOf(result: RunResult, violation: Violation): string | null {
  return knownDefects.find((defect) => defect.matches(result, violation))?.name ?? null;
}
