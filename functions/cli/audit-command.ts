/**
 * `vmferry audit`: who or what started each thing. Of one thing the whole chain: the rule's run and what set it off, the evacuations that it asked for, the
 * migrations that those asked for, and how each ended. A host's, a domain's, a rule's or a person's name finds every line that names it.
 */
import type { ChronicleEvent } from "../core/chronicle-event.ts";
import { eventLineSchema } from "../http/event-resource.ts";
import { CliError } from "./cli-error.ts";
import type { ApiClient } from "./client.ts";
import type { Run } from "./command.ts";
import { readChronicle, sinceOf } from "./event-commands.ts";
import { eventLine } from "./event-text.ts";
import { exitCodes } from "./exit-code.ts";

/** What tells who asked: requests, beginnings, hosts. */
const beginnings = "request,migration.started,evacuation.started,rule.run.started,host";
/** Without `--since`: what fits on a screen. */
const linesDefault = 50;
/** Lines looked through for a chain or a name; a week of a busy fleet. */
const linesMax = 20_000;

type EventOf<T extends ChronicleEvent["type"]> = Extract<ChronicleEvent, { type: T }>;
interface Link {
  event: ChronicleEvent;
  /** How far it is from what started everything. */
  depth: number;
}

export const audit: Run = async (context, invocation) => {
  const { terminal } = context;
  const subject = invocation.optional();
  const since = sinceOf(invocation, Date.now());
  const client = await context.connect();
  const links =
    subject === undefined
      ? await linesOf(client, { since, max: since === undefined ? linesDefault : linesMax, types: beginnings })
      : /^[mer]_[0-9A-HJKMNP-TV-Z]{26}$/.test(subject)
        ? await chainOf(client, subject)
        : await linesOf(client, { since, max: linesMax, names: subject });
  if (links.length === 0)
    throw new CliError({
      code: "request.notFound",
      cause: subject === undefined ? "Nothing is written down." : `No line of the chronicle tells of ${subject}.`,
      action: "Look at: vmferry events --since 1d.",
      exit: exitCodes.notFound,
    });
  if (invocation.flag("json")) terminal.json(links.map(({ event }) => event));
  else for (const { event, depth } of links) terminal.out(`${"  ".repeat(depth)}${eventLine(event)}`);
  return exitCodes.ok;
};

async function linesOf(
  client: ApiClient,
  wanted: { since: string | undefined; max: number; types?: string; names?: string },
): Promise<Link[]> {
  const { since, max, types, names } = wanted;
  const found: Link[] = [];
  let looked = 0;
  await readChronicle(client, { order: "newest", since, types }, (event) => {
    looked += 1;
    if (names === undefined || isNamed(event, names)) found.push({ event, depth: 0 });
    return looked >= max ? "enough" : "more";
  });
  return found.reverse();
}

/** Whether any text of an event is this very one. */
const isNamed = (value: unknown, name: string): boolean =>
  value === name ||
  (typeof value === "object" && value !== null && Object.values(value).some((each) => isNamed(each, name)));

/** One event by its id; null: it is not written down. */
async function find(client: ApiClient, id: string): Promise<ChronicleEvent | null> {
  try {
    return (await client.ask(`/v1/events/${id}`, eventLineSchema)).event;
  } catch (error) {
    if (error instanceof CliError && error.code === "request.notFound") return null;
    throw error;
  }
}

/** From what started it down to what it started, in the order of time below each. */
async function chainOf(client: ApiClient, id: string): Promise<Link[]> {
  const [started, ended] = await Promise.all([find(client, `${id}-started`), find(client, `${id}-ended`)]);
  const own = [started, ended].filter((event) => event !== null);
  const first = own[0];
  if (first === undefined) return [];
  const above = await causesOf(client, first);
  const depth = above.length;
  const below = started === null ? [] : await startedBy(client, started, ended?.time ?? null, depth + 1);
  return [
    ...above.map((event, at) => ({ event, depth: at })),
    ...(started === null ? [] : [{ event: started, depth }]),
    ...below,
    ...(ended === null ? [] : [{ event: ended, depth }]),
  ];
}

/** What asked for it, and what asked for that; the first cause first. */
async function causesOf(client: ApiClient, event: ChronicleEvent): Promise<ChronicleEvent[]> {
  const id = causeOf(event);
  const cause = id === null ? null : await find(client, `${id}-started`);
  return cause === null ? [] : [...(await causesOf(client, cause)), cause];
}

function causeOf(event: ChronicleEvent): string | null {
  switch (event.type) {
    case "dev.vmferry.migration.started":
    case "dev.vmferry.migration.stranded":
    case "dev.vmferry.migration.ended":
      return event.data.origin?.evacuation ?? null;
    case "dev.vmferry.evacuation.started":
    case "dev.vmferry.evacuation.ended":
      return event.data.origin.run ?? null;
    default:
      return null;
  }
}

/** What began because of it, each with its end and with what it started itself. */
async function startedBy(
  client: ApiClient,
  cause: ChronicleEvent,
  until: string | null,
  depth: number,
): Promise<Link[]> {
  const { subject: id } = cause;
  const kind = cause.type === "dev.vmferry.rule.run.started" ? "evacuation" : "migration";
  if (cause.type !== "dev.vmferry.rule.run.started" && cause.type !== "dev.vmferry.evacuation.started") return [];
  const began: (EventOf<"dev.vmferry.evacuation.started"> | EventOf<"dev.vmferry.migration.started">)[] = [];
  const ends = new Map<string, ChronicleEvent>();
  let looked = 0;
  await readChronicle(client, { order: "oldest", since: cause.time, types: kind }, (event) => {
    looked += 1;
    if (causeOf(event) === id) {
      if (event.type === "dev.vmferry.evacuation.started" || event.type === "dev.vmferry.migration.started")
        began.push(event);
      else ends.set(event.subject, event);
    }
    const isPast = until !== null && event.time > until && began.every(({ subject }) => ends.has(subject));
    return looked >= linesMax || isPast ? "enough" : "more";
  });
  const links: Link[] = [];
  for (const event of began) {
    const end = ends.get(event.subject);
    links.push({ event, depth }, ...(await startedBy(client, event, end?.time ?? null, depth + 1)));
    if (end !== undefined) links.push({ event: end, depth });
  }
  return links;
}
