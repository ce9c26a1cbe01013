/**
 * What a migration's journal says, as questions with one answer each. Pure: entries in, facts out; the executor writes the
 * journal and keeps this beside it.
 */
import * as z from "zod/mini";
import { type Command, type CommandKind, finalCommands, type Report } from "#protocol/command";
import { performRefused } from "./perform-watch.ts";
import type { JournalEntry } from "./ports.ts";

/** Milestone by which a command states that it holds a libvirt connection, and which one. */
export const connectedMilestone = "connected";
const connectedSchema = z.object({ generation: z.int() });

/** Commands whose effect libvirt ties to the connection they came on: it undoes them when that connection closes. */
const bindingKinds: ReadonlySet<CommandKind> = new Set(["begin", "prepare", "perform"]);

/** Milestones that are written right before such a call. */
const callMilestones: ReadonlySet<string> = new Set(["preparing", "performing"]);

export class MigrationRecord {
  readonly migrationId: string;
  readonly #entries: JournalEntry[];
  readonly #intents = new Map<string, Command>();
  readonly #reports = new Map<string, Report>();
  readonly #acknowledged = new Set<string>();

  constructor(migrationId: string, entries: readonly JournalEntry[] = []) {
    this.migrationId = migrationId;
    this.#entries = [];
    for (const entry of entries) this.add(entry);
  }

  add(entry: JournalEntry): void {
    this.#entries.push(entry);
    if (entry.type === "intent") this.#intents.set(entry.command.id, entry.command);
    if (entry.type === "report") this.#reports.set(entry.report.commandId, entry.report);
    if (entry.type === "acknowledged") this.#acknowledged.add(entry.commandId);
  }

  /** The entries so far; later ones do not appear in it. */
  history(): readonly JournalEntry[] {
    return [...this.#entries];
  }

  /** True once there is a milestone of that name. */
  happened(name: string): boolean {
    return this.#entries.some((entry) => entry.type === "milestone" && entry.name === name);
  }

  /** The highest epoch that was acted on; 0 before the first (I5). */
  get epoch(): number {
    return Math.max(0, ...[...this.#intents.values()].map((command) => command.epoch));
  }

  intent(commandId: string): Command | undefined {
    return this.#intents.get(commandId);
  }

  /** When the command was first begun. */
  begunAt(commandId: string): string | undefined {
    return this.#entries.find((entry) => entry.type === "intent" && entry.command.id === commandId)?.at;
  }

  report(commandId: string): Report | undefined {
    return this.#reports.get(commandId);
  }

  isAcknowledged(commandId: string): boolean {
    return this.#acknowledged.has(commandId);
  }

  /** Every command that was begun, in order. */
  intents(): Command[] {
    return [...this.#intents.values()];
  }

  /** The command of the Prepare that made the cookie B of that digest; null when the last Prepare made another one. */
  prepared(cookieSha256: string): string | null {
    const last = this.intents().findLast((command) => command.kind === "prepare");
    const result = last === undefined ? undefined : this.#reports.get(last.id)?.result;
    const body = result?.ok === true && result.body.kind === "prepare" ? result.body : null;
    return body?.cookie.sha256 === cookieSha256 ? (last?.id ?? null) : null;
  }

  /** Commands whose end is not known, in the order they were begun. */
  unreported(): Command[] {
    return [...this.#intents.values()].filter((command) => !this.#reports.has(command.id));
  }

  unacknowledged(): Report[] {
    return [...this.#reports.values()].filter((report) => !this.#acknowledged.has(report.commandId));
  }

  /** True once the functions have stored the report that ends this host's part; nothing will be asked of it again. */
  get hasEnded(): boolean {
    for (const id of this.#acknowledged) {
      const command = this.#intents.get(id);
      const report = this.#reports.get(id);
      if (command !== undefined && report !== undefined && endsMigration(command, report)) return true;
    }
    return false;
  }

  /** True from Begin or Prepare on, until libvirt holds nothing any more for this migration: this side has finished or
   *  confirmed, or has refused Perform, or its part has ended. What is left then (a report, settling) a later process does as well. */
  get isInHandshake(): boolean {
    if (this.hasEnded || this.happened("finished") || this.happened("confirmed") || this.happened(performRefused))
      return false;
    return [...this.#intents.values()].some((command) => bindingKinds.has(command.kind));
  }

  /** True while this host holds an incoming domain: prepared, and Finish not begun. It dies with the connection. */
  get holdsIncoming(): boolean {
    let holds = false;
    for (const entry of this.#entries) {
      if (entry.type === "intent" && (entry.command.kind === "finish" || entry.command.kind === "unstage"))
        holds = false;
      if (entry.type === "report" && entry.report.result.ok && entry.report.result.body.kind === "prepare")
        holds = true;
    }
    return holds;
  }

  /** True for a command whose effect libvirt ties to the connection it came on. */
  binds(commandId: string): boolean {
    const command = this.#intents.get(commandId);
    return command !== undefined && bindingKinds.has(command.kind);
  }

  /** Its binding call was about to be made: Perform goes on to confirm in the same run. */
  #hasCalled(commandId: string): boolean {
    return this.#entries.some(
      (entry) => entry.type === "milestone" && entry.commandId === commandId && callMilestones.has(entry.name),
    );
  }

  /** The number of the newest connection that this migration had; 0 before the first. */
  get generation(): number {
    return Math.max(0, ...this.#entries.map((entry) => generationOf(entry) ?? 0));
  }

  /**
   * The connection to which libvirt has bound what this migration did last (Begin, Prepare, Perform); null when nothing
   * was bound. A command that runs now has bound nothing yet, unless it is resumed or has made its call.
   */
  boundGeneration(running: { commandId: string; resumed: boolean }): number | null {
    const binding = [...this.#intents.values()].filter(
      (command) =>
        bindingKinds.has(command.kind) &&
        (command.id !== running.commandId || running.resumed || this.#hasCalled(command.id)),
    );
    for (const { id } of binding.reverse()) {
      const uses = this.#entries.filter((entry) => generationOf(entry) !== null && commandIdOf(entry) === id);
      // One that has ended was carried through on the last connection that it used; one that runs again began on the first.
      const bound = id === running.commandId ? uses[0] : uses.at(-1);
      if (bound !== undefined) return generationOf(bound);
    }
    return null;
  }
}

/** The report after which this host forgets the migration. A failed one ends only a task of one command (`b_`): the
 *  functions issue the others again. The source of a moved domain ends with its Confirm. */
export function endsMigration(command: Command, report: Report): boolean {
  if (command.migrationId.startsWith("b_")) return true;
  if (!report.result.ok) return false;
  if (command.kind === "confirm") return command.receipt.outcome === "started";
  const { body } = report.result;
  if (body.kind === "perform") return body.ended?.receipt.outcome === "started" && body.ended.source === "gone";
  return finalCommands.has(command.kind);
}

function generationOf(entry: JournalEntry): number | null {
  if (entry.type !== "milestone" || entry.name !== connectedMilestone) return null;
  const result = connectedSchema.safeParse(entry.data);
  return result.success ? result.data.generation : null;
}

function commandIdOf(entry: JournalEntry): string | null {
  return entry.type === "milestone" ? entry.commandId : null;
}
