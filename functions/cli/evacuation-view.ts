/** What a watcher of an evacuation prints: a line for each thing that happened, a bar below on a terminal; and how it ended, with its exit code. */
import type { Evacuation } from "../http/evacuation-resource.ts";
import { migrationSchema } from "../http/migration-resource.ts";
import { CliError } from "./cli-error.ts";
import type { ApiClient } from "./client.ts";
import { exitCodes } from "./exit-code.ts";
import type { Terminal } from "./terminal.ts";
import type { WatcherOf } from "./watch.ts";

const barCells = 24;

/** The line of a bar: how many of all have a result, what is moving, what waits. */
export function evacuationLine({ kind, host, counts, domains, held }: Evacuation): string {
  const all = domains.length;
  const done = counts.moved + counts.stays + counts.failed;
  const fraction = all === 0 ? 1 : done / all;
  const full = Math.round(fraction * barCells);
  const moving = domains.filter(({ state }) => state === "moving").map(({ domain }) => domain.name);
  return [
    `${kind} ${host}`,
    `[${"#".repeat(full)}${".".repeat(barCells - full)}] ${done}/${all}`,
    `${counts.moved} moved`,
    ...(counts.stays > 0 ? [`${counts.stays} stay`] : []),
    ...(counts.failed > 0 ? [`${counts.failed} failed`] : []),
    ...(held === null ? [] : [`held: ${held.cause}`]),
    ...(moving.length > 0 ? [`moving ${moving.join(", ")}`] : []),
  ].join("  ");
}

export class EvacuationView implements WatcherOf<Evacuation> {
  readonly #terminal: Terminal;
  #shown: { at: string; domain: string | null; note: string } | null = null;
  #newest: Evacuation | null = null;
  #doneShown = -1;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  changed(evacuation: Evacuation): void {
    this.#newest = evacuation;
    const names = new Map(evacuation.domains.map(({ domain }) => [domain.uuid, domain.name]));
    const { timeline } = evacuation;
    // The story may have lost lines in its middle: what follows the last one that was shown is new.
    const last = timeline.findLastIndex((line) => sameLine(line, this.#shown));
    for (const { at, domain, note } of timeline.slice(last + 1))
      this.#terminal.err(`${at}  ${domain === null ? "" : `${names.get(domain) ?? domain}  `}${note}`);
    this.#shown = timeline.at(-1) ?? null;
    this.#draw();
  }

  progressed(): void {}

  notice(line: string): void {
    this.#terminal.err(line);
    this.#draw();
  }

  #draw(): void {
    const evacuation = this.#newest;
    if (evacuation === null || evacuation.endedAt !== null) {
      this.#terminal.status(null);
      return;
    }
    if (this.#terminal.isTty) {
      this.#terminal.status(evacuationLine(evacuation));
      return;
    }
    const { moved, stays, failed } = evacuation.counts;
    const done = moved + stays + failed;
    if (done > this.#doneShown) this.#terminal.err(evacuationLine(evacuation));
    this.#doneShown = Math.max(done, this.#doneShown);
  }
}

const sameLine = (one: { at: string; domain: string | null; note: string }, other: typeof one | null): boolean =>
  other !== null && one.at === other.at && one.domain === other.domain && one.note === other.note;

/** Of those that failed: the migrations that wait for a person. One that cannot be read is not taken for stranded. */
async function strandedOf(client: ApiClient, { domains }: Evacuation): Promise<string[]> {
  const ids = domains.flatMap(({ state, migration }) => (state === "failed" && migration !== null ? [migration] : []));
  const stranded: string[] = [];
  for (const id of ids)
    try {
      const migration = await client.ask(`/v1/migrations/${id}`, migrationSchema);
      if (migration.status === "stranded") stranded.push(id);
    } catch (error) {
      if (!(error instanceof CliError)) throw error;
    }
  return stranded;
}

/** 0 completed, 1 partly, failed or cancelled, 3 nothing could be moved, 4 something is stranded. */
export function exitOfEvacuation({ status, counts }: Evacuation, stranded: number): number {
  if (stranded > 0) return exitCodes.stranded;
  if (status === "completed" || status === "running" || status === "ending") return exitCodes.ok;
  return status === "partial" && counts.moved === 0 && counts.failed === 0 ? exitCodes.blocked : exitCodes.rolledBack;
}

/** How it ended: the result on stdout, each domain that did not move on stderr with its cause and the next step. */
export async function printEvacuationEnd(
  terminal: Terminal,
  client: ApiClient,
  evacuation: Evacuation,
  json: boolean,
): Promise<number> {
  terminal.status(null);
  const { id, kind, host, status, counts, domains, stopped } = evacuation;
  const stranded = await strandedOf(client, evacuation);
  if (json) terminal.json(evacuation);
  else
    terminal.out(
      `${status}: ${kind} ${host}: ${counts.moved} moved, ${counts.stays} stay, ${counts.failed} failed (${id})`,
    );
  for (const { domain, home, reason } of domains.filter(({ state }) => state === "stays" || state === "failed")) {
    terminal.err(
      `vmferry: ${reason?.code ?? "internal"}: ${domain.name} on ${home}: ${reason?.cause ?? "no cause is known."}`,
    );
    if (reason !== null) terminal.err(`  next: ${reason.action}`);
  }
  if (stopped !== null) {
    terminal.err(`stopped early: ${stopped.code}: ${stopped.cause}`);
    terminal.err(`  next: ${stopped.action}`);
  }
  for (const migration of stranded) terminal.err(`A person is needed: vmferry migration show ${migration}`);
  if (counts.moved > 0 && kind === "evacuate") terminal.err(`To bring them back: vmferry evacuation undo ${id}`);
  return exitOfEvacuation(evacuation, stranded.length);
}
