/**
 * One process of a simulated fleet: its share of the hosts in one event loop. It is forked by host-pool.ts and told by messages what to do; memory of
 * migrations to hosts of other processes goes through the parent.
 */
import { join } from "node:path";
import * as z from "zod/mini";
import type { Log } from "#shim/log";
import { type FleetHost, openFleetHost } from "./fleet-host.ts";
import { fleetLayout } from "./fleet-layout.ts";
import { FleetLibvirtd } from "./fleet-libvirtd.ts";
import { FleetStreams, type StreamMessage } from "./fleet-streams.ts";
import { FleetTruth, type HeldDomain, machineMs, type Span } from "./fleet-truth.ts";
import { RealWorld } from "./real-world.ts";

/** Enrolments under way in one process: each is a request and some files. */
const enrolmentsAtOnce = 8;

export const hostProcessOptionsSchema = z.object({
  hosts: z.int(),
  domains: z.int(),
  seed: z.int(),
  process: z.int(),
  processes: z.int(),
  url: z.string(),
  joinToken: z.string(),
  folder: z.string(),
});
export type HostProcessOptions = z.infer<typeof hostProcessOptionsSchema>;

/** `stream` is passed on to the process it names; the others are orders, answered under their number. */
export type ToProcess = { type: "stream"; message: StreamMessage } | { type: "order"; number: number; order: Order };

/** `count`: as `look`, without domains and spans, which are many. */
export type Order = "open" | "connect" | "count" | "look";

export type FromProcess =
  | { type: "stream"; to: number; message: StreamMessage }
  | { type: "done"; number: number; look: Look | null; error: string | null };

/** What a process knows of its hosts. Times: `machineMs`. */
export interface Look {
  process: number;
  hosts: { index: number; hostId: string; connected: boolean; sessions: number[] }[];
  domains: HeldDomain[];
  spans: Span[];
  violations: string[];
  counts: FleetTruth["counts"];
  /** What the shims said, counted by level and text. */
  said: Record<string, number>;
  cpuMs: number;
  rssBytes: number;
}

function serve(options: HostProcessOptions): void {
  const layout = fleetLayout(options);
  const world = new RealWorld(options.seed + options.process);
  const truth = new FleetTruth();
  const said = new Map<string, number>();
  const log: Log = {
    write(level, message, fields) {
      if (level === "debug" || level === "info") return;
      const text = `${level}: ${message}${fields?.cause === undefined ? "" : ` (${String(fields.cause).replaceAll(/\d+/g, "N")})`}`;
      said.set(text, (said.get(text) ?? 0) + 1);
    },
  };
  const tell = (message: FromProcess) => process.send?.(message);
  const streams: FleetStreams = new FleetStreams(world, {
    process: options.process,
    takesMs: (uuid) => layout.domains.get(uuid)?.performMs ?? 0,
    send: (to, message) => {
      if (to === options.process) setImmediate(() => streams.take(message));
      else tell({ type: "stream", to, message });
    },
  });
  const own = layout.hosts.filter(({ index }) => index % options.processes === options.process);
  const daemons = own.map((laid) => new FleetLibvirtd({ world, laid, layout, truth, streams }));
  const byIndex = new Map(daemons.map((daemon) => [daemon.laid.index, daemon]));
  for (const domain of layout.domains.values()) byIndex.get(domain.home)?.place(domain);
  const hosts = new Map<number, FleetHost>();
  const sessions = new Map<number, number[]>(own.map(({ index }) => [index, []]));

  async function open(): Promise<void> {
    const left = [...daemons];
    const lane = async () => {
      for (let daemon = left.shift(); daemon !== undefined; daemon = left.shift()) {
        const { index, name } = daemon.laid;
        const host = await openFleetHost({
          daemon,
          stateDirectory: join(options.folder, name),
          origin: new URL(options.url),
          joinToken: options.joinToken,
          log,
          onSession: () => sessions.get(index)?.push(machineMs()),
        });
        hosts.set(index, host);
      }
    };
    await Promise.all(Array.from({ length: enrolmentsAtOnce }, lane));
  }

  function look(): Look {
    const { user, system } = process.cpuUsage();
    return {
      process: options.process,
      hosts: own.map(({ index }) => ({
        index,
        hostId: hosts.get(index)?.hostId ?? "",
        connected: hosts.get(index)?.isConnected ?? false,
        sessions: sessions.get(index) ?? [],
      })),
      domains: daemons.flatMap((daemon) => daemon.held()),
      spans: truth.spans,
      violations: truth.violations,
      counts: truth.counts,
      said: Object.fromEntries(said),
      cpuMs: (user + system) / 1_000,
      rssBytes: process.memoryUsage.rss(),
    };
  }

  async function obey(order: Order): Promise<Look | null> {
    if (order === "open") await open();
    if (order === "connect") for (const host of hosts.values()) host.connect();
    if (order === "count") return { ...look(), domains: [], spans: [] };
    return order === "look" ? look() : null;
  }

  process.on("message", (message: ToProcess) => {
    if (message.type === "stream") {
      streams.take(message.message);
      return;
    }
    const { number, order } = message;
    obey(order).then(
      (found) => tell({ type: "done", number, look: found, error: null }),
      (error: unknown) => tell({ type: "done", number, look: null, error: String(error) }),
    );
  });
  // The parent is gone: nobody asks for anything any more.
  process.on("disconnect", () => process.exit(1));
}

serve(hostProcessOptionsSchema.parse(JSON.parse(process.argv[2] ?? "")));
