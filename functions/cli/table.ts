/** Tables for people: columns as wide as their widest cell, two spaces between, the last one as long as it likes. */
import { printable, type Terminal } from "./terminal.ts";

/** Lines of a table. Cells are shown as they are but for control characters. */
export function tableLines(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const cells = [head, ...rows].map((row) => row.map(printable));
  const widths = head.map((_, column) => Math.max(...cells.map((row) => [...(row[column] ?? "")].length)));
  return cells.map((row) =>
    row
      .map((cell, column) =>
        column === row.length - 1 ? cell : cell + " ".repeat((widths[column] ?? 0) - [...cell].length),
      )
      .join("  ")
      .trimEnd(),
  );
}

/** Prints a table, or the items themselves with `--json`. */
export function printTable<T>(
  terminal: Terminal,
  print: {
    json: boolean;
    items: readonly T[];
    head: readonly string[];
    row: (item: T) => readonly string[];
    empty: string;
  },
): void {
  if (print.json) terminal.json(print.items);
  else if (print.items.length === 0) terminal.err(print.empty);
  else for (const line of tableLines(print.head, print.items.map(print.row))) terminal.out(line);
}
