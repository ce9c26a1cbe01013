/** A simulated fleet under the real local control plane: begun, connected, settled, emptied host by host, killed, and judged at the end by what really happened. */
import { randomUUID } from "node:crypto";
import { existsSync, realpathSync, rmSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type * as z from "zod/mini";
import { makeMemoryFolder, removeMemoryFolder } from "#lab/memory-folder";
import type { EvacuationPolicy } from "../../functions/core/evacuation-state.ts";
import { evacuationRowSchema, evacuationSchema } from "../../functions/http/evacuation-resource.ts";
import { domainSchema } from "../../functions/http/host-resource.ts";
import { pageOf } from "../../functions/http/page-query.ts";
import { ControlPlane } from "./control-plane.ts";
import { type FleetLayout, fleetLayout, hostName } from "./fleet-layout.ts";
import { machineMs } from "./fleet-truth.ts";
import { HostPool } from "./host-pool.ts";
import type { Look } from "./host-process.ts";

const pollMs = 500;
/** Of one request that has no answer or that a store's trouble refuses: a restart takes some seconds. */
const requestTriesMax = 30;
const chosenParts = 3;
/** Nothing new was written for so long: the inventories have settled. */
const settledMs = 4_000;

export interface FleetOptions {
  hosts: number;
  domains: number;
  processes: number;
  seed: number;
  /** Of the control plane's timer. */
  timerMs: number;
}

export type Limits = Pick<EvacuationPolicy, "outMax" | "inMax" | "fleetMax">;
type Evacuation = z.infer<typeof evacuationSchema>;
type Domain = z.infer<typeof domainSchema>;

export interface Storm {
  hosts: number;
  /** From the order to dial to the last welcome. */
  allMs: number;
  p50Ms: number;
  p99Ms: number;
  /** The best second. */
  perSecondMax: number;
  perSecond: number;
  /** What shims said meanwhile, by text. */
  said: Record<string, number>;
}

export class Fleet {
  readonly options: FleetOptions;
  readonly layout: FleetLayout;
  readonly control: ControlPlane;
  readonly pool: HostPool;
  /** Requests without an answer, or answered with 503, that were repeated under their key, as a patient client does. */
  repeated = 0;
  readonly #folder: string;

  private constructor(options: FleetOptions, parts: { control: ControlPlane; pool: HostPool; folder: string }) {
    this.options = options;
    this.layout = fleetLayout(options);
    this.control = parts.control;
    this.pool = parts.pool;
    this.#folder = parts.folder;
  }

  /** A control plane on an empty folder and every host enrolled, none connected. */
  static async start(options: FleetOptions): Promise<Fleet> {
    const folder = await mkdtemp(join(tmpdir(), "vmferry-fleet-"));
    const states = join(folder, "shims");
    await makeMemoryFolder(states);
    // An interrupted run leaves no shims' folders in the machine's memory.
    process.once("exit", () => existsSync(states) && rmSync(realpathSync(states), { recursive: true, force: true }));
    let control: ControlPlane | null = null;
    let pool: HostPool | null = null;
    try {
      control = await ControlPlane.start(folder, options.timerMs);
      const joinToken = await control.joinToken(options.hosts);
      const { hosts, domains, seed, processes } = options;
      pool = HostPool.start({ hosts, domains, seed, processes, url: control.url, joinToken, folder: states });
      await pool.open();
      return new Fleet(options, { control, pool, folder });
    } catch (error) {
      await pool?.end();
      await control?.end();
      await removeMemoryFolder(states);
      await rm(folder, { recursive: true, force: true });
      throw error;
    }
  }

  async end(): Promise<void> {
    await this.pool.end();
    await this.control.end();
    await removeMemoryFolder(join(this.#folder, "shims"));
    await rm(this.#folder, { recursive: true, force: true });
  }

  /** All dial at once; resolves when all are connected. */
  async storm(): Promise<Storm> {
    const fromMs = machineMs();
    await this.pool.connect();
    return this.reconnected(fromMs);
  }

  /** Waits until every host has a session that was opened after `fromMs`. */
  async reconnected(fromMs: number): Promise<Storm> {
    let looks = await this.pool.look("count");
    while (
      !looks.every(({ hosts }) => hosts.every((host) => host.connected && (host.sessions.at(-1) ?? 0) >= fromMs))
    ) {
      await sleep(pollMs);
      looks = await this.pool.look("count");
    }
    const afterMs = looks
      .flatMap(({ hosts }) => hosts.map(({ sessions }) => (sessions.find((at) => at >= fromMs) ?? 0) - fromMs))
      .sort((one, other) => one - other);
    const seconds = new Map<number, number>();
    for (const ms of afterMs) seconds.set(Math.floor(ms / 1_000), (seconds.get(Math.floor(ms / 1_000)) ?? 0) + 1);
    const allMs = afterMs.at(-1) ?? 0;
    return {
      hosts: afterMs.length,
      allMs,
      p50Ms: quantile(afterMs, 0.5),
      p99Ms: quantile(afterMs, 0.99),
      perSecondMax: Math.max(0, ...seconds.values()),
      perSecond: afterMs.length / (allMs / 1_000),
      said: said(looks),
    };
  }

  /** Waits until no inventory is written any more. Returns how often it has asked for the counts, which costs requests as well. */
  async settled(): Promise<number> {
    let writes = -1;
    let polls = 0;
    let sinceMs = performance.now();
    while (performance.now() - sinceMs < settledMs) {
      const { byOperation } = await this.control.storeCounts();
      const now = byOperation.BatchWriteItem ?? 0;
      if (now !== writes) sinceMs = performance.now();
      writes = now;
      polls += 1;
      await sleep(2 * pollMs);
    }
    return polls;
  }

  /** The inventory as the API tells it. */
  async inventory(): Promise<Domain[]> {
    const page = pageOf(domainSchema);
    const found: Domain[] = [];
    let cursor: string | null = "";
    while (cursor !== null) {
      const after: string = cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`;
      const read: z.infer<typeof page> = await this.control.get(`/v1/domains?limit=200${after}`, page);
      found.push(...read.items);
      cursor = read.cursor;
    }
    return found;
  }

  /** Names of hosts, spread over the fleet. Two choices of one count with different parts (0 to 2) have no host in common. */
  chosen(count: number, part = 0): string[] {
    const step = Math.floor(this.options.hosts / (chosenParts * count));
    return Array.from({ length: count }, (_, index) => hostName((index * chosenParts + part) * step));
  }

  /** Asks for the evacuations, all at once. Returns their ids. */
  async evacuate(names: readonly string[], limits: Limits): Promise<string[]> {
    return Promise.all(
      names.map(async (host) => {
        const body = { host, policy: limits };
        const key = randomUUID();
        for (let tries = 1; ; tries += 1) {
          // No answer: the control plane was killed over it, and is on its way back.
          const answer = await this.control.ask("POST", "/v1/evacuations", body, key).catch(() => null);
          if (answer?.status === 202) return evacuationSchema.parse(JSON.parse(answer.text)).id;
          if ((answer !== null && answer.status !== 503) || tries >= requestTriesMax)
            throw new Error(`the evacuation of ${host}: ${answer === null ? "no answer" : answer.text}`);
          this.repeated += 1;
          await sleep(2 * pollMs);
        }
      }),
    );
  }

  /** Waits until none is active; while the control plane is away nobody can tell. */
  async evacuationsEnded(ids: readonly string[], msMax: number): Promise<Evacuation[]> {
    const untilMs = performance.now() + msMax;
    const page = pageOf(evacuationRowSchema);
    for (;;) {
      const active = await this.control.get("/v1/evacuations?active=true&limit=200", page).catch(() => null);
      if (active !== null && active.items.length === 0) break;
      if (performance.now() > untilMs)
        throw new Error(`evacuations do not end: ${JSON.stringify(active?.items ?? "no answer")}`);
      await sleep(2 * pollMs);
    }
    const ended: Evacuation[] = [];
    for (const id of ids) ended.push(await this.control.get(`/v1/evacuations/${id}`, evacuationSchema));
    return ended;
  }
}

/** Of sorted values. */
export function quantile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
}

/** What all shims said, by text. */
export function said(looks: readonly Look[]): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const look of looks) for (const [text, count] of Object.entries(look.said)) sum[text] = (sum[text] ?? 0) + count;
  return sum;
}
