/** Which lines of the chronicle somebody wants. */
import { type ChronicleEvent, chronicleTypes } from "../core/chronicle-event.ts";
import { fault } from "./problem.ts";

const typePrefix = "dev.vmferry.";

export interface Wanted {
  /** Comma list of types or of their beginnings, with or without `dev.vmferry.`: `migration`, `rule.run.ended`. */
  types?: string | undefined;
  /** What the events are about. */
  subject?: string | undefined;
}

/** Throws `request.malformed` for a type that there is not: nobody would ever be told of it. */
export function filterOf({ types, subject }: Wanted): (event: ChronicleEvent) => boolean {
  const wanted = types === undefined ? null : new Set(types.split(",").flatMap(typesOf));
  return (event) => (wanted === null || wanted.has(event.type)) && (subject === undefined || event.subject === subject);
}

/** Whole words only: `host` is no beginning of `hostile`. */
function typesOf(text: string): ChronicleEvent["type"][] {
  const word = text.trim().replace(/[.*]+$/, "");
  const whole = word.startsWith(typePrefix) ? word : `${typePrefix}${word}`;
  const found = chronicleTypes.filter((type) => type === whole || type.startsWith(`${whole}.`));
  if (found.length === 0)
    throw fault(
      "request.malformed",
      `There is no event of the type ${text.slice(0, 64)}.`,
      `Take some of: ${chronicleTypes.map((type) => type.slice(typePrefix.length)).join(", ")}; or a beginning, such as migration.`,
    );
  return found;
}
