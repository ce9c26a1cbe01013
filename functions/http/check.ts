/**
 * A preflight: asks both shims what stands in the way and changes nothing. Without a destination it asks every host, so
 * that the answer to "where could it go?" comes with causes.
 */
import type { Blob } from "#protocol/blob";
import { Fault, type FaultBody, type Finding } from "#protocol/fault";
import type { Query } from "#protocol/message";
import type { HostRecord, Ports } from "../ports.ts";
import { busyRefusal, hostRefusals, pairRefusals } from "../refusals.ts";
import type { Check, CheckFinding } from "./check-resource.ts";
import type { Placed } from "./fleet.ts";
import { checkHostsAtOnce, checkWaitMs } from "./limits.ts";

type Side = CheckFinding["side"];
interface Found {
  blockers: CheckFinding[];
  risks: CheckFinding[];
  notes: CheckFinding[];
}

const nothing = (): Found => ({ blockers: [], risks: [], notes: [] });
const blocking = (side: Side, bodies: FaultBody[]): Found => ({
  ...nothing(),
  blockers: bodies.map(({ code, cause, action }) => ({ code, side, cause, action })),
});
const plus = (one: Found, other: Found): Found => ({
  blockers: [...one.blockers, ...other.blockers],
  risks: [...one.risks, ...other.risks],
  notes: [...one.notes, ...other.notes],
});

function sorted(side: Side, findings: readonly Finding[], accept: ReadonlySet<string>): Found {
  const found = nothing();
  for (const { severity, code, cause, action } of findings) {
    const kind = severity === "risk" && accept.has(code) ? "note" : severity;
    (kind === "blocker" ? found.blockers : kind === "risk" ? found.risks : found.notes).push({
      code,
      side,
      cause,
      action,
    });
  }
  return found;
}

const verdict = (found: Found) => ({ ...found, allowed: found.blockers.length === 0 && found.risks.length === 0 });

/** Asks one host; silence is a blocker, never an answer (I2). `untilMs`: Unix time by which the whole check has to be answered. */
async function ask(ports: Ports, host: HostRecord, side: Side, query: Query, untilMs: number) {
  const waitMs = Math.min(checkWaitMs, untilMs - Date.parse(ports.clock.now()));
  const answer = waitMs <= 0 ? null : await ports.sockets.query(host.id, query, waitMs);
  if (answer === null)
    return {
      body: null,
      found: blocking(side, [
        {
          code: "host.offline",
          cause:
            waitMs <= 0
              ? `The ${side} ${host.name} was not asked: others took all the time that this answer may take.`
              : `The ${side} ${host.name} did not answer within ${waitMs / 1000} s.`,
          action:
            waitMs <= 0
              ? `Check it alone: vmferry check DOMAIN --to ${host.name}.`
              : `Look at the shim on ${host.name} (journalctl -u vmferry-shim).`,
          retry: "safe",
        },
      ]),
    };
  if (!answer.ok) return { body: null, found: blocking(side, [answer.fault]) };
  if (answer.body.kind !== query.kind)
    throw new Error(`host ${host.id} answered ${query.kind} with ${answer.body.kind}`);
  return { body: answer.body, found: nothing() };
}

/** Runs a check of a placed domain. `destination` null: every other host. `untilMs` as in `ask`. */
export async function runCheck(
  ports: Ports,
  placed: Placed,
  destination: HostRecord | null,
  accepted: readonly string[],
  untilMs = Number.POSITIVE_INFINITY,
): Promise<Check> {
  const { domain, host: source } = placed;
  const accept = new Set(accepted);
  const ref = { uuid: domain.uuid, name: domain.name };

  const busy = await busyRefusal(ports, ref);
  let sourceFound = blocking("source", [...hostRefusals(source, "source", ports), ...(busy === null ? [] : [busy])]);
  let facts: Blob | null = null;
  let carries: Check["carries"] = null;
  if (sourceFound.blockers.every(({ code }) => code === "domain.busy")) {
    const asked = await ask(ports, source, "source", { kind: "inspectSource", domain: ref }, untilMs);
    sourceFound = plus(sourceFound, asked.found);
    if (asked.body?.kind === "inspectSource") {
      facts = asked.body.facts;
      carries = asked.body.carries;
      sourceFound = plus(sourceFound, sorted("source", asked.body.findings, accept));
    }
  }

  const candidates =
    destination !== null ? [destination] : (await ports.hosts.list()).filter(({ id }) => id !== source.id);
  const destinations: Check["destinations"] = [];
  for (let start = 0; start < candidates.length; start += checkHostsAtOnce)
    destinations.push(
      ...(await Promise.all(
        candidates.slice(start, start + checkHostsAtOnce).map(async (candidate) => ({
          host: candidate.name,
          ...verdict(await inspectDestination(ports, { source, candidate, ref, facts, accept, untilMs })),
        })),
      )),
    );

  const named = destination === null ? undefined : destinations[0];
  const whole = plus(sourceFound, named ?? nothing());
  const own = verdict(whole);
  return {
    ...own,
    allowed: own.allowed && (destination !== null || destinations.some(({ allowed }) => allowed)),
    domain: ref,
    source: source.name,
    destination: destination?.name ?? null,
    carries,
    destinations: destinations.sort((one, other) => (one.host < other.host ? -1 : 1)),
  };
}

async function inspectDestination(
  ports: Ports,
  want: {
    source: HostRecord;
    candidate: HostRecord;
    ref: { uuid: string; name: string };
    facts: Blob | null;
    accept: ReadonlySet<string>;
    untilMs: number;
  },
): Promise<Found> {
  const { source, candidate, ref, facts, accept, untilMs } = want;
  const found = blocking("destination", [
    ...pairRefusals(source, candidate),
    ...hostRefusals(candidate, "destination", ports),
  ]);
  // A cordoned host can still say what else stands in the way; one that is away, unfit or the source itself cannot.
  const askable = found.blockers.every(({ code }) => code === "host.cordoned");
  if (!askable || facts === null) return found;
  const [asked, parted] = await Promise.all([
    ask(ports, candidate, "destination", { kind: "inspectDestination", domain: ref, facts }, untilMs),
    partedRefusal(ports, source, candidate, untilMs),
  ]);
  const both = plus(found, blocking("source", parted === null ? [] : [parted]));
  if (asked.body?.kind !== "inspectDestination") return plus(both, asked.found);
  return plus(both, sorted("destination", asked.body.findings, accept));
}

/**
 * Why the source's shim cannot reach the destination's; null when it can, and when nobody can say: Perform is not begun in
 * any case without it, this only says so before anything is touched.
 */
export async function partedRefusal(
  ports: Ports,
  source: HostRecord,
  destination: HostRecord,
  untilMs = Number.POSITIVE_INFINITY,
): Promise<FaultBody | null> {
  const address = destination.facts?.peer;
  if (address == null) return null;
  const peer = { hostId: destination.id, name: destination.name, publicKey: destination.publicKey, address };
  const waitMs = Math.min(checkWaitMs, untilMs - Date.parse(ports.clock.now()));
  if (waitMs <= 0) return null;
  const answer = await ports.sockets.query(source.id, { kind: "reachPeer", peer }, waitMs);
  return answer === null || answer.ok ? null : answer.fault;
}

/** The first refusal of a request as a fault to throw; nothing happens when there is none. */
export function refuse(refusals: readonly FaultBody[]): void {
  const [first] = refusals;
  if (first !== undefined) throw new Fault(first);
}
