/** Findings of an inspection, in one place so that each has a cause and a next action and fits the treaty's bounds. */
import type { FaultCode, Finding } from "#protocol/fault";
import { textCharsMax } from "#protocol/limits";

/** What one report may carry (command.ts); the first ones are the blockers. */
const findingsMax = 200;

const order = { blocker: 0, risk: 1, note: 2 } as const;

export class Findings {
  readonly #list: Finding[] = [];

  blocker(code: FaultCode, cause: string, action: string): void {
    this.#add("blocker", code, cause, action);
  }

  risk(code: FaultCode, cause: string, action: string, count?: number): void {
    this.#add("risk", code, cause, action, count);
  }

  note(code: FaultCode, cause: string, action: string): void {
    this.#add("note", code, cause, action);
  }

  /** Blockers first, cut to what a report may carry. */
  list(): Finding[] {
    return this.#list.toSorted((one, other) => order[one.severity] - order[other.severity]).slice(0, findingsMax);
  }

  #add(severity: Finding["severity"], code: FaultCode, cause: string, action: string, count?: number): void {
    const cut = (text: string) => (text.length > textCharsMax ? `${text.slice(0, textCharsMax - 1)}…` : text);
    const counted = count === undefined ? {} : { count };
    this.#list.push({ severity, code, cause: cut(cause), action: cut(action), ...counted });
  }
}
