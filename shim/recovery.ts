/**
 * What a row of the recovery tables is (source-recovery.ts, destination-recovery.ts), how one is looked up, and the fault
 * of a row that needs a person. The tables are the one place where it stands what follows from a moment of the journal and
 * what libvirt shows; the steps look their row up and do what it says.
 *
 * I10: a row ends by itself, or is `strand`: with the facts of both sides and the exact next command. I1, I2, I8: a row that
 * the facts rule out touches nothing.
 */
import type { DomainRef, Side } from "#protocol/command";
import { Fault, type FaultCode } from "#protocol/fault";
import { textCharsMax } from "#protocol/limits";
import { armedOf, handedOf, statedOf } from "./hand-over.ts";
import {
  type DestinationMoment,
  decisionOf,
  destinationMoments,
  type Found,
  finishedOf,
  founds,
  type SourceMoment,
  sourceMoments,
} from "./moment.ts";
import type { JournalEntry } from "./ports.ts";

/** How the migration ends by this row: moved, as it was on the source, or either, by what the other side says. */
export type Ends = "completed" | "rolledBack" | "either";

export interface Automatic<A extends string> {
  do: A;
  why: string;
  ends: Ends;
  /** It is looked again for so long; when nothing has changed by then, `otherwise` is done. */
  patienceMs?: number;
  otherwise?: A;
}

export interface Stranded {
  do: "strand";
  /** Starts the fault's cause; the facts of both sides follow. */
  cause: string;
  /** The exact next command: UUID, NAME and MIGRATION are filled in. */
  action: string;
}

export type Row<A extends string> = Automatic<A> | Stranded;
/** A row for everything that can be found. */
export type Rows<A extends string> = Readonly<Record<Found, Row<A>>>;

/** What the fault of a stranded row is made of. */
export interface StrandFacts {
  code: FaultCode;
  side: Side;
  moment: SourceMoment | DestinationMoment;
  found: Found;
  domain: DomainRef;
  migrationId: string;
  history: readonly JournalEntry[];
  /** Said after the facts: what libvirt answered, for one. */
  also?: string;
}

/** A person is needed: the cause first, then what both sides are known to be, then the command to type. */
export function strandFault(row: Stranded, facts: StrandFacts): Fault {
  const { code, side, moment, found, domain, migrationId, history, also = "" } = facts;
  const fill = (text: string) =>
    text.replaceAll("UUID", domain.uuid).replaceAll("NAME", domain.name).replaceAll("MIGRATION", migrationId);
  const here = `This host, the ${side}: ${founds[found]}; ${momentText(side, moment)}.`;
  return new Fault({
    code,
    cause: cut(`${fill(row.cause)} ${here} ${otherSide(side, history)}${also}`),
    action: cut(fill(row.action)),
    retry: "person",
  });
}

const cut = (text: string) => (text.length > textCharsMax ? `${text.slice(0, textCharsMax - 1)}…` : text);

function momentText(side: Side, moment: SourceMoment | DestinationMoment): string {
  const texts: Readonly<Record<string, string>> = side === "source" ? sourceMoments : destinationMoments;
  return texts[moment] ?? moment;
}

/** What this host's journal knows of the other one. */
function otherSide(side: Side, history: readonly JournalEntry[]): string {
  if (side === "source") {
    const stated = statedOf(history)?.receipt;
    if (stated !== undefined)
      return `The destination has stated: ${stated.outcome} (${stated.evidence}, ${stated.at}).`;
    const handed = handedOf(history);
    if (handed !== null)
      return `The destination was told that Perform has ${handed.outcome}; no receipt of it is here.`;
    return armedOf(history) === null
      ? "The destination was not armed."
      : "The destination is armed and was told nothing.";
  }
  const finished = finishedOf(history)?.receipt;
  if (finished !== undefined) return `The source can have this host's receipt: ${finished.outcome} (${finished.at}).`;
  const decided = decisionOf(history);
  if (decided !== null)
    return `The source has no receipt; here ${decided.cancelled ? "giving up" : "Finish"} was decided.`;
  return "The source has no receipt; here nothing was decided.";
}

/** The row's end of patience: what is done when it has stayed as it is; null: it is to be looked at again. */
export function overdue<A extends string>(row: Automatic<A>, waitedMs: number): A | null {
  return row.otherwise !== undefined && waitedMs >= (row.patienceMs ?? 0) ? row.otherwise : null;
}
