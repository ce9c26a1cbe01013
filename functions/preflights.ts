/**
 * What hosts answer to "may this domain move there", asked side by side within bounds and remembered for a while in this isolate. Answers are kept
 * as they were given; what they mean depends on the risks that somebody accepts. Silence is no answer and is not remembered: the planner is told
 * that it does not know (I2). Nothing hangs on what is remembered: the migration inspects both hosts anew before it touches anything.
 */
import type { Blob } from "#protocol/blob";
import type { FaultBody, Finding } from "#protocol/fault";
import type { Query } from "#protocol/message";
import type { Verdict } from "./core/placement-view.ts";
import type { HostRecord, PlacedDomain, Ports } from "./ports.ts";
import { pairRefusals } from "./refusals.ts";

/** For a host that inspects: a handful of reads, and four at a time of all that is asked of it. */
export const preflightWaitMs = 10_000;
/** An answer older than this is asked again before a domain is started by it; CPU models and disks do not change in between. */
export const preflightAgeMsMax = 10 * 60_000;
/** A refusal older than this is asked again: a block job ends, a disk comes back, and a domain must not wait for what is over. */
export const refusalAgeMsMax = 45_000;
/** Questions under way at once: their answers pass through one isolate, and a shim answers four at a time. */
export const preflightsAtOnce = 24;
/** Answers remembered in one isolate, of about 1 KiB each; the oldest go first. */
export const preflightsKeptMax = 20_000;

export interface PreflightWish {
  domain: PlacedDomain;
  source: HostRecord;
  destinations: readonly HostRecord[];
}

/** What one isolate remembers; it outlives the wiring of a single object or request. */
export interface PreflightMemory {
  sources: Map<string, KeptSource>;
  pairs: Map<string, Kept>;
}
export const preflightMemory = (): PreflightMemory => ({ sources: new Map(), pairs: new Map() });

interface Kept {
  atMs: number;
  findings: readonly Finding[];
}
interface KeptSource extends Kept {
  /** Null: the source refused to say more than the findings. */
  facts: Blob | null;
}

const sourceKey = (uuid: string, sourceId: string) => `${uuid} ${sourceId}`;
const pairKey = (uuid: string, sourceId: string, destinationId: string) => `${uuid} ${sourceId} ${destinationId}`;

const blocking = ({ code, cause, action }: FaultBody): Finding => ({ severity: "blocker", code, cause, action });

export class Preflights {
  readonly #ports: Pick<Ports, "clock" | "pace" | "sockets">;
  readonly #sources: PreflightMemory["sources"];
  readonly #pairs: PreflightMemory["pairs"];

  constructor(ports: Pick<Ports, "clock" | "pace" | "sockets">, memory: PreflightMemory) {
    this.#ports = ports;
    this.#sources = memory.sources;
    this.#pairs = memory.pairs;
  }

  /** What is known of this move, not older than `preflightAgeMsMax`; null: nothing. `accept`: codes of risks. */
  verdict(uuid: string, sourceId: string, destinationId: string, accept: ReadonlySet<string>): Verdict | null {
    const source = this.#fresh(this.#sources.get(sourceKey(uuid, sourceId)));
    if (source === null) return null;
    const against = speaking(source.findings, accept);
    if (against.length > 0 || source.facts === null) return { allowed: false, atMs: source.atMs, blockers: against };
    const pair = this.#fresh(this.#pairs.get(pairKey(uuid, sourceId, destinationId)));
    if (pair === null) return null;
    const blockers = speaking(pair.findings, accept);
    return blockers.length === 0 ? { allowed: true, atMs: pair.atMs } : { allowed: false, atMs: pair.atMs, blockers };
  }

  /**
   * Asks for every pair whose answer is unknown or from before `sinceMs`, until `untilMs` (Unix times); what is not answered by then stays unknown.
   * Never rejects for a host.
   */
  async ask(wishes: readonly PreflightWish[], options: { sinceMs: number; untilMs: number }): Promise<void> {
    const refusedSinceMs = this.#nowMs() - refusalAgeMsMax;
    const isOld = (kept: Kept | undefined) =>
      kept === undefined || kept.atMs < options.sinceMs || (isRefusal(kept) && kept.atMs < refusedSinceMs);
    await inParts(wishes, async ({ domain, source }) => {
      if (isOld(this.#sources.get(sourceKey(domain.uuid, source.id))))
        await this.#askSource(domain, source, options.untilMs);
    });
    const pairs = wishes.flatMap(({ domain, source, destinations }) =>
      destinations.flatMap((destination) =>
        isOld(this.#pairs.get(pairKey(domain.uuid, source.id, destination.id)))
          ? [{ domain, source, destination }]
          : [],
      ),
    );
    await inParts(pairs, ({ domain, source, destination }) =>
      this.#askPair(domain, source, destination, options.untilMs),
    );
  }

  async #askSource(domain: PlacedDomain, source: HostRecord, untilMs: number): Promise<void> {
    const ref = { uuid: domain.uuid, name: domain.name };
    const answer = await this.#query(source, { kind: "inspectSource", domain: ref }, untilMs);
    if (answer === null) return;
    const key = sourceKey(domain.uuid, source.id);
    const atMs = this.#nowMs();
    if (!answer.ok) keep(this.#sources, key, { atMs, findings: [blocking(answer.fault)], facts: null });
    else if (answer.body.kind === "inspectSource")
      keep(this.#sources, key, { atMs, findings: answer.body.findings, facts: answer.body.facts });
  }

  async #askPair(domain: PlacedDomain, source: HostRecord, destination: HostRecord, untilMs: number): Promise<void> {
    const facts = this.#fresh(this.#sources.get(sourceKey(domain.uuid, source.id)))?.facts ?? null;
    if (facts === null) return;
    const key = pairKey(domain.uuid, source.id, destination.id);
    const refused = pairRefusals(source, destination);
    if (refused.length > 0) return keep(this.#pairs, key, { atMs: this.#nowMs(), findings: refused.map(blocking) });
    const ref = { uuid: domain.uuid, name: domain.name };
    const address = destination.facts?.peer;
    const [answer, reached] = await Promise.all([
      this.#query(destination, { kind: "inspectDestination", domain: ref, facts }, untilMs),
      // A domain that is off needs no ticket, so its hosts need not reach each other.
      address == null || domain.state === "shutoff"
        ? null
        : this.#query(
            source,
            {
              kind: "reachPeer",
              peer: { hostId: destination.id, name: destination.name, publicKey: destination.publicKey, address },
            },
            untilMs,
          ),
    ]);
    if (answer === null) return;
    const parted = reached === null || reached.ok ? [] : [blocking(reached.fault)];
    const atMs = this.#nowMs();
    if (!answer.ok) keep(this.#pairs, key, { atMs, findings: [blocking(answer.fault), ...parted] });
    else if (answer.body.kind === "inspectDestination")
      keep(this.#pairs, key, { atMs, findings: [...answer.body.findings, ...parted] });
  }

  async #query(host: HostRecord, query: Query, untilMs: number) {
    const waitMs = Math.min(preflightWaitMs, untilMs - this.#nowMs());
    return waitMs <= 0 ? null : this.#ports.sockets.query(host.id, query, waitMs);
  }

  #fresh<T extends Kept>(kept: T | undefined): T | null {
    return kept !== undefined && kept.atMs >= this.#nowMs() - preflightAgeMsMax ? kept : null;
  }

  #nowMs(): number {
    return Date.parse(this.#ports.clock.now());
  }
}

const isRefusal = ({ findings }: Kept): boolean => findings.some(({ severity }) => severity === "blocker");

/** What stands in the way: blockers, and risks that nobody accepted. */
const speaking = (findings: readonly Finding[], accept: ReadonlySet<string>) =>
  findings.flatMap(({ severity, code, cause, action }) => {
    if (severity === "blocker") return [{ code, cause, action }];
    return severity === "risk" && !accept.has(code)
      ? [{ code, cause, action: `${action} Or accept this risk: --accept ${code}.` }]
      : [];
  });

/** A map keeps the order of insertion, so its first key is the oldest. */
function keep<T>(map: Map<string, T>, key: string, value: T): void {
  map.delete(key);
  map.set(key, value);
  const [oldest] = map.keys();
  if (map.size > preflightsKeptMax && oldest !== undefined) map.delete(oldest);
}

/** Some at a time: the next begins when one is done, not when all of a round are. */
export async function inParts<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  let next = 0;
  const lane = async () => {
    for (let item = items[next++]; item !== undefined; item = items[next++]) await work(item);
  };
  await Promise.all(Array.from({ length: Math.min(preflightsAtOnce, items.length) }, lane));
}
