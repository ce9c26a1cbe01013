/** The phases of a measured run, in order: storm, inventory, idle, one host emptied, many at once under a probe of the API, and a death of the control plane. */
import { setTimeout as sleep } from "node:timers/promises";
import { type ProbeTimes, probe } from "./api-probe.ts";
import type { ControlCpu, StoreCounts } from "./control-plane.ts";
import { Fleet, type FleetOptions, type Limits, type Storm, said } from "./fleet.ts";
import { machineMs, type Span } from "./fleet-truth.ts";
import { peaks, verdict } from "./referee.ts";

/** Rounds of the probe on the idle fleet: enough for a p99 that is more than the worst. */
const idleRounds = 50;
/** How often the cost of reading the counts is measured. */
const pollsMeasured = 4;
/** No evacuation of a run takes longer; what does is a finding. */
const endMsMax = 40 * 60_000;

export interface RunOptions extends FleetOptions {
  /** Hosts emptied at once; 0: only the one. */
  evacuate: number;
  limits: Limits;
  idleMs: number;
  /** Once more as many hosts, with the control plane killed in the middle. */
  crash: boolean;
  say(line: string): void;
}

export interface StoreUse {
  requests: number;
  bytes: number;
  byOperation: Record<string, number>;
}

export interface EvacuationFigures {
  hosts: number;
  domains: number;
  moved: number;
  statuses: Record<string, number>;
  /** From the first request to the end of the last one. */
  ms: number;
  /** How long the requests themselves took, the slowest. */
  requestMsMax: number;
  migrationsPerMinute: number;
  /** Between a tenth and nine tenths of the migrations. */
  sustainedPerMinute: number;
  peak: { out: number; in: number; fleet: number };
  /** Of one migration; what the idle fleet and the polls cost meanwhile is taken off. */
  perMigration: StoreUse | null;
}

export interface RunFigures {
  hosts: number;
  domains: number;
  enrolledPerSecond: number;
  storm: Storm;
  /** From the first dial until nothing was written any more; four seconds of that are the proof that nothing was. */
  settledMs: number;
  inventory: StoreUse;
  /** A minute of the idle fleet. */
  idle: StoreUse;
  idleCpu: CpuShare;
  one: EvacuationFigures;
  many: (EvacuationFigures & { cpu: CpuShare; idleApi: ProbeTimes; busyApi: ProbeTimes }) | null;
  crash: (EvacuationFigures & { reconnect: Storm }) | null;
  /** Resident memory at the end, MiB. */
  rss: { node: number; workerd: number; hosts: number };
  said: Record<string, number>;
  /** Empty: every invariant held. */
  violations: string[];
}

/** Shares of one core. */
export interface CpuShare {
  node: number;
  workerd: number;
  hosts: number;
}

export async function fleetRun(options: RunOptions): Promise<RunFigures> {
  const { say } = options;
  const beganMs = performance.now();
  const fleet = await Fleet.start(options);
  try {
    const { control, pool } = fleet;
    const enrolledPerSecond = options.hosts / ((performance.now() - beganMs) / 1_000);
    say(`${options.hosts} hosts enrolled, ${enrolledPerSecond.toFixed(0)} a second`);

    const beforeStorm = await control.storeCounts();
    const stormMs = performance.now();
    const storm = await fleet.storm();
    say(`connected in ${(storm.allMs / 1_000).toFixed(1)} s; shims said ${JSON.stringify(storm.said)}`);
    const polls = await fleet.settled();
    const settledMs = performance.now() - stormMs;
    const afterStorm = await control.storeCounts();
    say(`settled in ${(settledMs / 1_000).toFixed(1)} s`);

    const meter = await CpuMeter.start(fleet);
    const beforeIdle = await control.storeCounts();
    await sleep(options.idleMs);
    const idle = scaled(usedBetween(beforeIdle, await control.storeCounts()), 60_000 / options.idleMs);
    const idleCpu = await meter.stop();
    // Asking for the counts costs requests itself; each window below has one such question in it.
    const pollMs = performance.now();
    const beforePolls = await control.storeCounts();
    for (let poll = 0; poll < pollsMeasured; poll += 1) await control.storeCounts();
    const polled = usedBetween(beforePolls, await control.storeCounts());
    const onePoll = scaled(less(polled, scaled(idle, (performance.now() - pollMs) / 60_000)), 1 / (pollsMeasured + 1));
    const inventory = less(
      usedBetween(beforeStorm, afterStorm),
      // Heartbeats of those who were connected already: of half of them while the storm lasted.
      plus(scaled(onePoll, polls + 1), scaled(idle, (settledMs - storm.allMs / 2) / 60_000)),
    );
    say(`idle: ${idle.requests.toFixed(0)} requests a minute`);

    const ids: string[] = [];
    /** `beside`: what else was asked of the store meanwhile, by the end of it. */
    const empty = async (
      names: readonly string[],
      during: () => Promise<void> = async () => {},
      beside: () => Promise<StoreUse> = async () => nothing,
    ) => {
      const before = await control.storeCounts();
      const fromMs = machineMs();
      const [own] = await Promise.all([fleet.evacuate(names, options.limits), during()]);
      const requestMsMax = machineMs() - fromMs;
      const ended = await fleet.evacuationsEnded(own, endMsMax);
      const ms = machineMs() - fromMs;
      ids.push(...own);
      const after = await control.storeCounts();
      const other = await beside();
      const spans = (await pool.look()).flatMap((look) => look.spans).filter((span) => span.fromMs >= fromMs);
      const domains = ended.flatMap((each) => each.domains);
      const moved = domains.filter(({ state }) => state === "moved").length;
      const statuses: Record<string, number> = {};
      for (const { status } of ended) statuses[status] = (statuses[status] ?? 0) + 1;
      const figures: EvacuationFigures = {
        hosts: names.length,
        domains: domains.length,
        moved,
        statuses,
        ms,
        requestMsMax,
        migrationsPerMinute: (moved * 60_000) / ms,
        sustainedPerMinute: sustained(spans),
        peak: peaks(spans),
        perMigration:
          after.requests < before.requests || moved === 0
            ? null
            : scaled(
                less(usedBetween(before, after), plus(onePoll, plus(scaled(idle, ms / 60_000), other))),
                1 / moved,
              ),
      };
      say(`emptied ${names.length}: ${moved} of ${domains.length} moved in ${(ms / 1_000).toFixed(1)} s`);
      return figures;
    };

    const one = await empty(fleet.chosen(1));
    let many: RunFigures["many"] = null;
    let crash: RunFigures["crash"] = null;
    if (options.evacuate > 0) {
      const { layout } = fleet;
      const [beforeProbe, probeMs] = [await control.storeCounts(), performance.now()];
      const idleApi = await probe(control, layout, { rounds: idleRounds, seed: options.seed });
      const withIdle = usedBetween(beforeProbe, await control.storeCounts());
      const probeRound = scaled(
        less(withIdle, scaled(idle, (performance.now() - probeMs) / 60_000)),
        1 / idleApi["GET /v1/hosts"].count,
      );
      const enough = new AbortController();
      const busy = await CpuMeter.start(fleet);
      const probing = probe(control, layout, {
        rounds: Number.POSITIVE_INFINITY,
        seed: options.seed,
        signal: enough.signal,
      });
      const figures = await empty(fleet.chosen(options.evacuate, 1), undefined, async () => {
        enough.abort();
        return scaled(probeRound, (await probing)["GET /v1/hosts"].count);
      });
      many = { ...figures, cpu: await busy.stop(), idleApi, busyApi: await probing };
    }
    const broken: string[] = [];
    if (options.crash && options.evacuate > 0) {
      let reconnect: Storm | null = null;
      const before = await confirmed(fleet);
      const killed = async () => {
        while ((await confirmed(fleet)) < before + options.evacuate) await sleep(100);
        const killedMs = machineMs();
        await control.kill();
        await control.begin();
        reconnect = await fleet.reconnected(killedMs);
        say(`connected again ${((machineMs() - killedMs) / 1_000).toFixed(1)} s after kill -9`);
      };
      try {
        const figures = await empty(fleet.chosen(options.evacuate, 2), killed);
        if (reconnect !== null) crash = { ...figures, reconnect };
      } catch (error) {
        // The other figures stand.
        broken.push(`the run with kill -9 did not come to its end: ${String(error)}`);
      }
    }

    await fleet.settled();
    const looks = await pool.look();
    const evacuations = await fleet.evacuationsEnded(ids, endMsMax);
    const violations = broken.concat(
      verdict({
        layout: fleet.layout,
        looks,
        inventory: await fleet.inventory(),
        evacuations,
        limits: options.limits,
      }),
    );
    const { nodeRssBytes, workerdRssBytes } = await control.cpu();
    const MiB = (bytes: number) => Math.round(bytes / 1024 / 1024);
    return {
      hosts: options.hosts,
      domains: options.domains,
      enrolledPerSecond,
      storm,
      settledMs,
      inventory,
      idle,
      idleCpu,
      one,
      many,
      crash,
      rss: {
        node: MiB(nodeRssBytes),
        workerd: MiB(workerdRssBytes),
        hosts: MiB(looks.reduce((sum, { rssBytes }) => sum + rssBytes, 0)),
      },
      said: said(looks),
      violations,
    };
  } finally {
    await fleet.end();
  }
}

const confirmed = async (fleet: Fleet): Promise<number> =>
  (await fleet.pool.look("count")).reduce((sum, { counts }) => sum + counts.confirmed, 0);

class CpuMeter {
  readonly #fleet: Fleet;
  readonly #fromMs = performance.now();
  readonly #control: ControlCpu;
  readonly #hostsMs: number;

  private constructor(fleet: Fleet, control: ControlCpu, hostsMs: number) {
    this.#fleet = fleet;
    this.#control = control;
    this.#hostsMs = hostsMs;
  }

  static async start(fleet: Fleet): Promise<CpuMeter> {
    return new CpuMeter(fleet, await fleet.control.cpu(), await hostsMs(fleet));
  }

  async stop(): Promise<CpuShare> {
    const [control, hosts] = [await this.#fleet.control.cpu(), await hostsMs(this.#fleet)];
    const ms = performance.now() - this.#fromMs;
    return {
      node: (control.nodeMs - this.#control.nodeMs) / ms,
      workerd: (control.workerdMs - this.#control.workerdMs) / ms,
      hosts: (hosts - this.#hostsMs) / ms,
    };
  }
}

const hostsMs = async (fleet: Fleet): Promise<number> =>
  (await fleet.pool.look("count")).reduce((sum, { cpuMs }) => sum + cpuMs, 0);

const bytesOf = ({ sentBytes, receivedBytes }: StoreCounts) => sentBytes + receivedBytes;

function usedBetween(before: StoreCounts, after: StoreCounts): StoreUse {
  const operations = Object.entries(after.byOperation).map(
    ([name, count]) => [name, count - (before.byOperation[name] ?? 0)] as const,
  );
  return {
    requests: after.requests - before.requests,
    bytes: bytesOf(after) - bytesOf(before),
    byOperation: Object.fromEntries(operations),
  };
}

function less(use: StoreUse, other: StoreUse): StoreUse {
  const names = new Set([...Object.keys(use.byOperation), ...Object.keys(other.byOperation)]);
  const operations = [...names].map(
    (name) => [name, (use.byOperation[name] ?? 0) - (other.byOperation[name] ?? 0)] as const,
  );
  return {
    requests: use.requests - other.requests,
    bytes: use.bytes - other.bytes,
    byOperation: Object.fromEntries(operations),
  };
}

const plus = (one: StoreUse, other: StoreUse): StoreUse => less(one, scaled(other, -1));

const nothing: StoreUse = { requests: 0, bytes: 0, byOperation: {} };

const scaled = ({ requests, bytes, byOperation }: StoreUse, by: number): StoreUse => ({
  requests: requests * by,
  bytes: bytes * by,
  byOperation: Object.fromEntries(Object.entries(byOperation).map(([name, count]) => [name, count * by])),
});

/** Migrations a minute between the end of the first tenth and the end of the ninth. */
function sustained(spans: readonly Span[]): number {
  const ends = spans
    .flatMap(({ kind, toMs }) => (kind === "leaves" && toMs !== null ? [toMs] : []))
    .sort((one, other) => one - other);
  const [from, to] = [Math.floor(ends.length * 0.1), Math.ceil(ends.length * 0.9) - 1];
  const ms = (ends[to] ?? 0) - (ends[from] ?? 0);
  return ms <= 0 ? 0 : ((to - from) * 60_000) / ms;
}
