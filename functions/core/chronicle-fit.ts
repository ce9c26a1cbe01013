/**
 * Cuts an event to what one line of the chronicle may hold. What happened is told in any case: long words lose their ends first, then a long list of hosts
 * loses its tail and says how many are missing. Ids, codes and numbers are shorter than any cut.
 */
import { type ChronicleEvent, chronicleEventBytesMax, chronicleEventSchema } from "./chronicle-event.ts";

/** Characters that stay of each text, tried in turn. The shortest is longer than every id, name and code. */
const textCharsMax = [1_000, 500, 300] as const;

export const eventBytes = (event: ChronicleEvent): number => new TextEncoder().encode(JSON.stringify(event)).byteLength;

/** The event, cut as far as it must be to have no more than `chronicleEventBytesMax` as JSON. */
export function fitted(event: ChronicleEvent): ChronicleEvent {
  let fit = event;
  for (const charsMax of textCharsMax) {
    if (eventBytes(fit) <= chronicleEventBytesMax) return fit;
    fit = textsCut(fit, charsMax);
  }
  while (eventBytes(fit) > chronicleEventBytesMax) {
    const fewer = fewerHosts(fit);
    if (fewer === null) break;
    fit = fewer;
  }
  return fit;
}

/** As it is stored. Throws for an event that readers would refuse: one such line would hold up whoever reads on, for good. */
export function lineText(event: ChronicleEvent): string {
  const text = JSON.stringify(fitted(event));
  const read = chronicleEventSchema.safeParse(JSON.parse(text));
  if (read.success) return text;
  const issue = read.error.issues[0];
  throw new Error(`the event cannot be written down: ${issue?.path.join(".")}: ${issue?.message ?? "mismatch"}`);
}

const textsCut = <T>(value: T, charsMax: number): T =>
  JSON.parse(JSON.stringify(value), (_, each: unknown) =>
    typeof each === "string" && each.length > charsMax ? `${each.slice(0, charsMax - 1)}…` : each,
  );

/** Leaves out a quarter of the hosts; null: there are none to leave out. */
function fewerHosts(event: ChronicleEvent): ChronicleEvent | null {
  if (event.type !== "dev.vmferry.rule.run.started" && event.type !== "dev.vmferry.rule.run.ended") return null;
  const { hosts, hostsLeftOut = 0 } = event.data;
  if (hosts.length === 0) return null;
  const kept = Math.floor(hosts.length * 0.75);
  const fewer = { hosts: hosts.slice(0, kept), hostsLeftOut: hostsLeftOut + hosts.length - kept };
  return event.type === "dev.vmferry.rule.run.started"
    ? { ...event, data: { ...event.data, ...fewer } }
    : { ...event, data: { ...event.data, ...fewer } };
}
