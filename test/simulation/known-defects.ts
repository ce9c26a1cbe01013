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

export const knownDefects: readonly KnownDefect[] = [];

/** What it has found and was repaired since, by the run that showed it. */
/** Seeds of swarms that showed one. */
export const repairedSeeds: readonly { name: string; seed: number }[] = [
  {
    name: "an earlier settle had succeeded, its report came late and was taken for history: the host forgot it, and the next was refused for ever",
    seed: 1_000_554,
  },
  {
    name: "Perform confirmed in its own run after a restart of the shim, and did not know that its call held libvirt's job",
    seed: 1_026_484,
  },
  {
    name: "a process died with a receipt written and not synced; the next one answered by it before it was on the disk",
    seed: 2_027_728,
  },
];

export const repairedDefects: readonly Pick<KnownDefect, "name" | "shown">[] = [
  {
    name: "the destination loses power between Finish and its receipt: the guest has run there, and its source went on from before",
    shown: {
      seed: 1,
      scenario: "tree",
      fault: { at: "disk destination milestone finished#1", kind: "power:destination" },
    },
  },
  {
    name: "a guest that its owner paused: Confirm was not called on the way back, so libvirt's job stayed and restore waited for it",
    shown: {
      seed: 3,
      scenario: "pausedAutostart",
      fault: { at: "libvirt destination domain_migrate_finish3_params#1", kind: "refused" },
    },
  },
  {
    name: "a Prepare of an offline domain that is not followed by Finish: libvirt's job stayed, and unstage waited for it",
    shown: {
      seed: 3,
      scenario: "offline",
      fault: { at: "disk destination milestone adopted#1", kind: "diskFull" },
    },
  },
];

export function knownDefectOf(result: RunResult, violation: Violation): string | null {
  return knownDefects.find((defect) => defect.matches(result, violation))?.name ?? null;
}
