/** How far a migration is, in one line: the step of the nine, and within a step that moves data, how much of it. */
import type { Progress } from "#protocol/message";
import type { Migration, StepWord } from "../http/migration-resource.ts";
import { sizeText } from "./terminal.ts";

const stepsForward: readonly StepWord[] = [
  "inspect",
  "export",
  "stage",
  "begin",
  "prepare",
  "perform",
  "finish",
  "confirm",
  "settle",
];
const barCells = 24;

/** What is done of the present step, 0 to 1; null when it moves nothing that is counted. */
export function fractionDone(step: StepWord, progress: Progress | null): number | null {
  if (progress === null) return null;
  if (step === "export" || step === "stage") {
    const { snapshots } = progress;
    return snapshots === undefined || snapshots.total === 0 ? null : Math.min(1, snapshots.done / snapshots.total);
  }
  if (step !== "perform") return null;
  const { memory, disk } = progress;
  const remaining = memory.remainingBytes + disk.remainingBytes;
  const processed = memory.processedBytes + disk.processedBytes;
  return processed + remaining === 0 ? null : processed / (processed + remaining);
}

function bar(fraction: number): string {
  const full = Math.round(fraction * barCells);
  return `[${"#".repeat(full)}${".".repeat(barCells - full)}] ${String(Math.floor(fraction * 100)).padStart(3)}%`;
}

/** The step with its place: "perform (6/9)", or the way back's own word. */
export function stepText(step: StepWord): string {
  const place = stepsForward.indexOf(step);
  return place === -1 ? step : `${step} (${place + 1}/${stepsForward.length})`;
}

/** The line of a progress bar. */
export function progressLine(migration: Pick<Migration, "domain" | "step">, progress: Progress | null): string {
  const parts = [migration.domain.name, stepText(migration.step)];
  const fraction = fractionDone(migration.step, progress);
  if (fraction !== null) parts.push(bar(fraction));
  if (migration.step === "perform" && progress !== null) {
    const { memory, disk } = progress;
    parts.push(`${sizeText(memory.remainingBytes + disk.remainingBytes)} left`);
    if (memory.bytesPerSecond > 0) parts.push(`${sizeText(memory.bytesPerSecond)}/s`);
    if (memory.iteration > 1) parts.push(`round ${memory.iteration}`);
  }
  if (progress?.snapshots !== undefined && migration.step !== "perform")
    parts.push(`${progress.snapshots.done} of ${progress.snapshots.total} snapshots`);
  return parts.join("  ");
}
