/** One event in one line: when, what kind, and in words what it was about and who or what asked for it. */
import type { ChronicleEvent } from "../core/chronicle-event.ts";
import { count } from "./plan-text.ts";
import { durationText } from "./terminal.ts";

/** The type without what all have in common. */
export const typeWord = ({ type }: ChronicleEvent): string => type.slice("dev.vmferry.".length);

/** As wide as the longest type, so that lines that come one by one stand in columns. */
const typeChars = 22;

export const eventLine = (event: ChronicleEvent): string =>
  `${event.time}  ${typeWord(event).padEnd(typeChars)}  ${eventWords(event)}`;

type MigrationOrigin = Extract<ChronicleEvent, { type: "dev.vmferry.migration.started" }>["data"]["origin"];

/** A rule asks in its own name, an evacuation in its asker's. */
const askedBy = (origin: MigrationOrigin): string =>
  origin === null ? "" : `, asked by ${origin.by}${origin.evacuation === null ? "" : ` through ${origin.evacuation}`}`;

const why = (error: { code: string; cause: string } | null): string =>
  error === null ? "" : `; ${error.code}: ${error.cause}`;

export function eventWords(event: ChronicleEvent): string {
  switch (event.type) {
    case "dev.vmferry.migration.started": {
      const { domain, source, destination, id, origin } = event.data;
      return `${domain.name} from ${source.name} to ${destination.name} (${id})${askedBy(origin)}`;
    }
    case "dev.vmferry.migration.stranded":
    case "dev.vmferry.migration.ended": {
      const { domain, source, destination, id, status, durationMs, blackoutMs, snapshots, error, origin } = event.data;
      const tree = snapshots.total === 0 ? "" : `, ${snapshots.verified} of ${snapshots.total} snapshots verified`;
      const blackout = blackoutMs === null ? "" : `, blackout ${durationText(blackoutMs)}`;
      const way = `${domain.name} from ${source.name} to ${destination.name}`;
      const detail = status === "completed" ? `${blackout}${tree}` : why(error);
      return `${way}: ${status} after ${durationText(durationMs)}${detail} (${id})${askedBy(origin)}`;
    }
    case "dev.vmferry.evacuation.started": {
      const { kind, host, domains, id, origin, deadlineAt } = event.data;
      const until = deadlineAt === null ? "" : `, until ${deadlineAt}`;
      return `${kind} ${host.name}, ${count(domains, "domain")}${until} (${id}), asked by ${byOf(origin)}`;
    }
    case "dev.vmferry.evacuation.ended": {
      const { kind, host, status, durationMs, counts, id, error, origin } = event.data;
      const { moved, stays, failed } = counts;
      const told = `${moved} moved, ${stays} stay, ${failed} failed`;
      return `${kind} ${host.name}: ${status} after ${durationText(durationMs)}, ${told}${why(error)} (${id}), asked by ${byOf(origin)}`;
    }
    case "dev.vmferry.rule.run.started": {
      const { rule, ruleVersion, id, trigger, awaitsApproval } = event.data;
      const waits = awaitsApproval ? ", waits for an approval" : "";
      return `${rule} version ${ruleVersion}: ${hostsOf(event.data)}${waits} (${id}), set off by ${triggerText(trigger)}`;
    }
    case "dev.vmferry.rule.run.ended": {
      const { rule, id, durationMs, approvedBy } = event.data;
      const approved = approvedBy === null ? "" : `, approved by ${approvedBy}`;
      return `${rule}: ${hostsOf(event.data)} after ${durationText(durationMs)}${approved} (${id})`;
    }
    case "dev.vmferry.host.enrolled": {
      const { host, joinToken } = event.data;
      return `${host.name} (${host.id})${joinToken === null ? "" : ` with the join token ${joinToken}`}`;
    }
    case "dev.vmferry.host.shutdownRequested":
      return `${event.data.host.name} is to be shut down, as it says itself`;
    case "dev.vmferry.request.received": {
      const { by, method, path, requestId } = event.data;
      return `${by} asked: ${method} ${path} (${requestId})`;
    }
  }
}

const byOf = ({ by, run }: { by: string; run?: string | undefined }): string =>
  run === undefined ? by : `${by} through ${run}`;

const triggerText = ({ type, id, source }: { type: string; id: string; source: string }): string =>
  `${type.replace("dev.vmferry.trigger.", "")} ${id} of ${source}`;

/** How each host stands, most of them alike. */
function hostsOf({
  hosts,
  hostsLeftOut = 0,
}: {
  hosts: readonly { host: { name: string }; state: string }[];
  hostsLeftOut?: number | undefined;
}): string {
  const byState = new Map<string, string[]>();
  for (const { host, state } of hosts) byState.set(state, [...(byState.get(state) ?? []), host.name]);
  const told = [...byState].map(([state, names]) => `${names.join(" ")} ${state}`);
  return [...told, ...(hostsLeftOut === 0 ? [] : [`${hostsLeftOut} more`])].join(", ");
}
