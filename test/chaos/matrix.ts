/** The matrix of a run: for a terminal, and as Markdown for docs/chaos-matrix.md. */
import type { Cell } from "./cell.ts";
import { faults } from "./fault.ts";
import { moments } from "./moment.ts";

const endWords: Record<Cell["end"], string> = {
  completed: "completed",
  rolledBack: "rolled back",
  cancelled: "cancelled",
  refused: "refused",
  stranded: "stranded",
  running: "no end",
  none: "no end",
};

export const isSound = (cell: Cell): boolean => cell.violations.length === 0;
const seconds = (ms: number | null) => (ms === null ? "-" : `${(ms / 1000).toFixed(1)} s`);

/** One line when a cell is done. */
export function told(cell: Cell): string {
  const head = `${cell.fault} × ${cell.moment}`.padEnd(36);
  const end = `${endWords[cell.end].padEnd(11)} ${seconds(cell.endMs).padStart(7)}`;
  const why = cell.code === null ? "" : `  ${cell.code}`;
  const verdict = isSound(cell) ? "ok" : `VIOLATED\n    ${cell.violations.join("\n    ")}`;
  return `${head} ${end}  (${seconds(cell.totalMs)})  ${verdict}${isSound(cell) ? why : ""}`;
}

/** Rows are faults, columns moments; what was not run is a dash. */
export function table(cells: readonly Cell[]): string {
  // Of several runs of one cell the worst is shown.
  const of = (fault: string, moment: string) => {
    const same = cells.filter((cell) => cell.fault === fault && cell.moment === moment);
    return same.find((cell) => !isSound(cell)) ?? same.at(-1);
  };
  const columns = moments.filter(({ name }) => cells.some((cell) => cell.moment === name));
  const rows = faults.filter(({ name }) => cells.some((cell) => cell.fault === name));
  const words = (cell: Cell | undefined) => {
    if (cell === undefined) return "–";
    return `${endWords[cell.end]}, ${seconds(cell.endMs)}${isSound(cell) ? "" : " **VIOLATED**"}`;
  };
  return [
    `| fault \\ moment | ${columns.map(({ name }) => name).join(" | ")} |`,
    `|---|${columns.map(() => "---|").join("")}`,
    ...rows.map((row) => `| ${row.name} | ${columns.map((column) => words(of(row.name, column.name))).join(" | ")} |`),
  ].join("\n");
}

export function summary(cells: readonly Cell[], totalMs: number): string {
  const count = (end: Cell["end"]) => cells.filter((cell) => cell.end === end).length;
  const unsound = cells.filter((cell) => !isSound(cell)).length;
  return (
    `${cells.length} cells in ${(totalMs / 60_000).toFixed(1)} min: ${count("completed")} completed, ${count("rolledBack")} rolled back, ` +
    `${cells.length - count("completed") - count("rolledBack")} otherwise; ${unsound} with a violation`
  );
}

export interface Setting {
  at: string;
  command: string;
  versions: string;
}

/** The page for the docs. Ends that were not chosen are told with their causes. */
export function page(cells: readonly Cell[], totalMs: number, { at, command, versions }: Setting): string {
  const causes = cells
    .filter(({ end }) => end !== "completed")
    .map((cell) => `| ${cell.fault} | ${cell.moment} | ${cell.code ?? ""} | ${cell.cause ?? ""} |`);
  const broken = cells
    .filter((cell) => !isSound(cell))
    .map((cell) => `- ${cell.fault} × ${cell.moment}: ${cell.violations.join("; ")}`);
  return `# Chaos on real QEMU

Written by \`${command}\` at ${at} (${versions}). Do not edit by hand.

Each cell is one live migration of a real guest with a branching snapshot tree between two libvirtd, in which one fault falls at one
moment. It names how the migration ended and the time from the fault to that end. Killed processes come back after a second, what is
cut is healed after three. After every cell the outside witness reads both hosts' serial outputs, the guest's own file on its disk,
\`virsh\` on both sides, the process table and the shims' journals: one copy, the same life, every synced line once, the whole tree on
the host that has the domain, nothing on the other, the lock free. \`VIOLATED\` stands where one of these was not so.

${summary(cells, totalMs)}.

${table(cells)}

## The faults

${faults.map(({ name, what }) => `- **${name}**: ${what}`).join("\n")}

## The moments

${moments.map(({ name, what }) => `- **${name}**: ${what}`).join("\n")}

## Why some did not complete

${causes.length === 0 ? "All completed." : ["| fault | moment | code | cause |", "|---|---|---|---|", ...causes].join("\n")}
${broken.length === 0 ? "" : `\n## Violations\n\n${broken.join("\n")}\n`}`;
}
