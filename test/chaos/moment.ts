/**
 * The instants at which a fault falls: each a line in a shim's journal, or what the source's libvirtd says of the guest. Between
 * two neighbours in this list nothing else is written down, so a fault at one of them stands for all instants up to the next.
 */
import type { Side } from "#protocol/command";
import type { SeenEntry } from "./journal-watch.ts";

/** A milestone's name, `intent KIND` or `report KIND`. */
type Mark = string;

export interface Moment {
  readonly name: string;
  /** What is going on then. */
  readonly what: string;
  /** `libvirt`: the source's guest has stopped, its memory's last part is on its way. */
  readonly at: { readonly side: Side; readonly marks: readonly Mark[]; readonly afterMs?: number } | "guestStopped";
}

/** Long enough for the memory to flow, far shorter than a Perform at `performMiBps`. */
const midwayMs = 400;
/** MiB/s of every migration here: the guest's 75 MiB take about two seconds, so that Perform has a beginning and an end. */
export const performMiBps = 40;

export const moments: readonly Moment[] = [
  { name: "exporting", what: "the source writes the bundle", at: { side: "source", marks: ["intent export"] } },
  { name: "staging", what: "the destination defines domain and tree", at: { side: "destination", marks: ["staging"] } },
  { name: "stripping", what: "the source's metadata goes", at: { side: "source", marks: ["stripping"] } },
  { name: "stripped", what: "Begin runs, the source has no metadata", at: { side: "source", marks: ["stripped"] } },
  { name: "preparing", what: "Prepare starts the other QEMU", at: { side: "destination", marks: ["preparing"] } },
  { name: "arming", what: "the destination keeps the ticket", at: { side: "destination", marks: ["armed"] } },
  {
    name: "performing",
    what: "memory flows",
    at: { side: "source", marks: ["performing"], afterMs: midwayMs },
  },
  { name: "stopped", what: "the guest stands, its last memory flows", at: "guestStopped" },
  { name: "performed", what: "the source hands over", at: { side: "source", marks: ["handing", "performed"] } },
  { name: "finishing", what: "the destination has decided", at: { side: "destination", marks: ["finishing"] } },
  { name: "finished", what: "the guest runs over there", at: { side: "destination", marks: ["finished"] } },
  { name: "confirming", what: "the source gives its copy up", at: { side: "source", marks: ["receipt"] } },
  { name: "settling", what: "the destination proves the tree", at: { side: "destination", marks: ["intent settle"] } },
];

/** The mark that an entry of a journal bears. */
export function markOf(entry: SeenEntry): Mark {
  if (entry.type === "intent") return `intent ${entry.command.kind}`;
  if (entry.type === "milestone") return entry.name;
  return `${entry.type} ${(entry.type === "report" ? entry.report.commandId : entry.commandId).split(":")[1] ?? ""}`;
}
