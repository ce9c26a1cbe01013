/** What a watcher of a migration prints: a bar on a terminal, plain lines elsewhere; and how it ended, with its exit code. */
import type { Progress } from "#protocol/message";
import type { Migration } from "../http/migration-resource.ts";
import { exitCodes } from "./exit-code.ts";
import { fractionDone, progressLine, stepText } from "./progress-bar.ts";
import { durationText, type Terminal } from "./terminal.ts";
import type { Watcher } from "./watch.ts";

/** The exit code of an ended migration. */
export function exitOfMigration({ status, error }: Migration): number {
  switch (status) {
    case "completed":
    case "running":
      return exitCodes.ok;
    case "rolledBack":
    case "cancelled":
      return exitCodes.rolledBack;
    case "refused":
      return error?.code === "risk.notAccepted" ? exitCodes.risks : exitCodes.blocked;
    case "stranded":
      return exitCodes.stranded;
  }
}

/** Prints a line for each timeline entry that is new, and keeps the bar below them. */
export class MigrationView implements Watcher {
  readonly #terminal: Terminal;
  #newest: Migration | null = null;
  #progress: Progress | null = null;
  #entriesShown = 0;
  /** Tenths of a step that were printed where there is no terminal. */
  #tenthShown = -1;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  changed(migration: Migration): void {
    if (this.#newest?.step !== migration.step) {
      this.#progress = null;
      this.#tenthShown = -1;
    }
    this.#newest = migration;
    // The server keeps the newest entries of a very long timeline.
    if (migration.timeline.length < this.#entriesShown) this.#entriesShown = 0;
    for (const { step, side, ms, note } of migration.timeline.slice(this.#entriesShown))
      this.#terminal.err(
        `${step.padEnd(8)} ${(side ?? "").padEnd(11)} ${(ms === null ? "" : durationText(ms)).padStart(9)}  ${note}`,
      );
    this.#entriesShown = migration.timeline.length;
    this.#draw();
  }

  progressed(progress: Progress): void {
    this.#progress = progress;
    this.#draw();
  }

  notice(line: string): void {
    this.#terminal.err(line);
    this.#draw();
  }

  #draw(): void {
    const migration = this.#newest;
    if (migration === null || migration.endedAt !== null) {
      this.#terminal.status(null);
      return;
    }
    if (this.#terminal.isTty) {
      this.#terminal.status(progressLine(migration, this.#progress));
      return;
    }
    const fraction = fractionDone(migration.step, this.#progress);
    const tenth = fraction === null ? -1 : Math.floor(fraction * 10);
    if (tenth > this.#tenthShown) this.#terminal.err(progressLine(migration, this.#progress));
    this.#tenthShown = Math.max(tenth, this.#tenthShown);
  }
}

/** How it ended: the good news on stdout, a failure on stderr with cause and action. */
export function printOutcome(terminal: Terminal, migration: Migration, json: boolean): number {
  terminal.status(null);
  const exit = exitOfMigration(migration);
  const { domain, source, destination, status, error, progress, snapshots } = migration;
  if (json) terminal.json(migration);
  else if (status === "completed") {
    const blackout = progress.blackoutMs === null ? "" : `, blackout ${durationText(progress.blackoutMs)}`;
    const tree = snapshots.total > 0 ? ` with ${snapshots.verified} of ${snapshots.total} snapshots verified` : "";
    terminal.out(`completed: ${domain.name} is on ${destination}${tree}${blackout} (${migration.id})`);
  } else
    terminal.out(
      `${status}: ${domain.name} ${status === "stranded" ? "needs a person" : `stays on ${source}`} (${migration.id})`,
    );
  const { fenced, sweep } = migration;
  if (!json && fenced !== null && sweep.length > 0)
    terminal.err(
      `When ${fenced.host} is back, its shim sweeps what it keeps of this by itself; do not start ${domain.name} there.`,
    );
  if (exit !== exitCodes.ok && error !== null) {
    terminal.err(`vmferry: ${error.code}: ${error.cause}`);
    terminal.err(`  where: ${stepText(error.phase)}${error.side === null ? "" : ` on the ${error.side}`}`);
    for (const { code, cause } of [...error.blockers, ...(status === "refused" ? error.risks : [])])
      if (code !== error.code) terminal.err(`  also: ${code}: ${cause}`);
    terminal.err(`  next: ${error.action}`);
  }
  return exit;
}
