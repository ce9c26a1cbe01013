/** How long the API takes to answer, asked one by one like a patient client: the same calls on an idle fleet and on one that is being emptied. */
import { setTimeout as sleep } from "node:timers/promises";
import { Chance } from "#test/simulation/virtual-time";
import type { ControlPlane } from "./control-plane.ts";
import { quantile } from "./fleet.ts";
import { type FleetLayout, hostName } from "./fleet-layout.ts";

/** Between two calls: the probe is to see the load, not to be it. */
const pauseMs = 100;

export const probedCalls = ["GET /v1/hosts", "GET /v1/domains", "GET /v1/migrations", "POST /v1/checks"] as const;
export type ProbedCall = (typeof probedCalls)[number];

export interface CallTimes {
  count: number;
  p50Ms: number;
  p99Ms: number;
  /** Answers that were none of 2xx and 4xx, or did not come. */
  failed: number;
}
export type ProbeTimes = Record<ProbedCall, CallTimes>;

/** Asks each call `rounds` times at most, and no more once `signal` is aborted. */
export async function probe(
  control: ControlPlane,
  layout: FleetLayout,
  options: { rounds: number; seed: number; signal?: AbortSignal },
): Promise<ProbeTimes> {
  const chance = new Chance(options.seed);
  const domains = [...layout.domains.values()];
  const times = new Map<ProbedCall, number[]>(probedCalls.map((call) => [call, []]));
  const failed = new Map<ProbedCall, number>();
  for (let round = 0; round < options.rounds && options.signal?.aborted !== true; round += 1)
    for (const call of probedCalls) {
      const [method, path] = call.split(" ");
      const destination = hostName(chance.between(0, layout.hosts.length - 1));
      const body = { domain: chance.pick(domains).uuid, destination };
      const fromMs = performance.now();
      const status = await (method === "POST"
        ? control.ask("POST", path ?? "", body)
        : control.ask("GET", `${path}?limit=50`)
      ).then(
        (answer) => answer.status,
        () => 0,
      );
      times.get(call)?.push(performance.now() - fromMs);
      if (status < 200 || status >= 500) failed.set(call, (failed.get(call) ?? 0) + 1);
      await sleep(pauseMs);
    }
  const figures = (call: ProbedCall): CallTimes => {
    const sorted = [...(times.get(call) ?? [])].sort((one, other) => one - other);
    return {
      count: sorted.length,
      p50Ms: quantile(sorted, 0.5),
      p99Ms: quantile(sorted, 0.99),
      failed: failed.get(call) ?? 0,
    };
  };
  return {
    "GET /v1/hosts": figures("GET /v1/hosts"),
    "GET /v1/domains": figures("GET /v1/domains"),
    "GET /v1/migrations": figures("GET /v1/migrations"),
    "POST /v1/checks": figures("POST /v1/checks"),
  };
}
