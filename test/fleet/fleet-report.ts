/** The tables of a fleet run in Markdown, as docs/figures.md has them. */
import { cpus } from "node:os";
import { type ProbedCall, type ProbeTimes, probedCalls } from "./api-probe.ts";
import type { Limits } from "./fleet.ts";
import type { EvacuationFigures, RunFigures, StoreUse } from "./fleet-run.ts";

const seconds = (ms: number) => `${(ms / 1_000).toFixed(1)} s`;
const KiB = (bytes: number) => `${(bytes / 1_024).toFixed(0)} KiB`;
const row = (...cells: (string | number)[]) => `| ${cells.join(" | ")} |`;
const share = (of: number) => `${(of * 100).toFixed(0)} %`;

const operations = ["Query", "GetItem", "PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"];

const use = ({ requests, bytes, byOperation }: StoreUse) => [
  requests.toFixed(1),
  KiB(bytes),
  ...operations.map((name) => (byOperation[name] ?? 0).toFixed(1)),
];

/** `runs`: from the smallest fleet to the largest. */
export function report(runs: readonly RunFigures[], options: { seed: number; limits: Limits }): string {
  const largest = runs.at(-1);
  if (largest === undefined) return "";
  const { limits } = options;
  const lines = [
    `${largest.hosts} hosts, ${largest.domains} domains, seed ${options.seed}; limits ${limits.outMax} out, ${limits.inMax} in, ${limits.fleetMax} in the fleet; ` +
      `Node ${process.versions.node}, ${cpus().length} cores (${cpus()[0]?.model ?? "?"}), shared by the control plane and the simulated hosts.`,
    "",
    row("connect storm", "hosts", "all connected", "median", "99th of 100", "a second", "best second"),
    row(...Array.from({ length: 7 }, () => "---")),
    ...runs.map(({ storm }) => stormRow("first", storm)),
    ...(largest.crash === null ? [] : [stormRow("after kill -9", largest.crash.reconnect)]),
    "",
    row("DynamoDB", "hosts", "requests", "bytes", ...operations),
    row(...Array.from({ length: 4 + operations.length }, () => "---")),
    ...runs.map(({ hosts, inventory }) => row("connect and inventory, together", hosts, ...use(inventory))),
    ...runs.map(({ hosts, idle }) => row("idle, a minute", hosts, ...use(idle))),
    ...runs.flatMap(({ hosts, one }) =>
      one.perMigration === null ? [] : [row("**one migration**, one host emptied", hosts, ...use(one.perMigration))],
    ),
    ...(largest.many?.perMigration == null
      ? []
      : [
          row(
            `one migration, ${largest.many.hosts} hosts emptied at once`,
            largest.hosts,
            ...use(largest.many.perMigration),
          ),
        ]),
    "",
    row(
      "evacuation",
      "fleet",
      "hosts",
      "moved",
      "took",
      "migrations a minute",
      "sustained",
      "at once: out, in, fleet",
      "ended",
    ),
    row(...Array.from({ length: 9 }, () => "---")),
    ...runs.map((run) => evacuationRow("one host", run.hosts, run.one)),
    ...(largest.many === null ? [] : [evacuationRow("many", largest.hosts, largest.many)]),
    ...(largest.crash === null ? [] : [evacuationRow("many, and kill -9", largest.hosts, largest.crash)]),
  ];
  if (largest.many !== null) {
    const { idleApi, busyApi, cpu } = largest.many;
    lines.push(
      "",
      row("API", "idle p50", "idle p99", "emptying p50", "emptying p99", "ratio p50", "ratio p99", "asked", "failed"),
      row(...Array.from({ length: 9 }, () => "---")),
      ...probedCalls.map((call) => apiRow(call, idleApi, busyApi)),
      "",
      row("CPU, of one core", "Node (dynalite, miniflare)", "workerd", "simulated hosts"),
      row("---", "---", "---", "---"),
      row("idle", share(largest.idleCpu.node), share(largest.idleCpu.workerd), share(largest.idleCpu.hosts)),
      row("emptying", share(cpu.node), share(cpu.workerd), share(cpu.hosts)),
    );
  }
  const { rss } = largest;
  lines.push(
    "",
    `Memory at the end: Node ${rss.node} MiB, workerd ${rss.workerd} MiB, simulated hosts ${rss.hosts} MiB. ` +
      `Invariants broken: ${runs.reduce((sum, { violations }) => sum + violations.length, 0)}.`,
  );
  const said = Object.entries(largest.said).sort(([, one], [, other]) => other - one);
  if (said.length > 0)
    lines.push("", "What the shims said:", ...said.slice(0, 20).map(([text, count]) => `- ${count} times ${text}`));
  return lines.join("\n");
}

const stormRow = (name: string, storm: RunFigures["storm"]) =>
  row(
    name,
    storm.hosts,
    seconds(storm.allMs),
    seconds(storm.p50Ms),
    seconds(storm.p99Ms),
    storm.perSecond.toFixed(0),
    storm.perSecondMax,
  );

const evacuationRow = (name: string, fleet: number, of: EvacuationFigures) =>
  row(
    name,
    fleet,
    of.hosts,
    `${of.moved} of ${of.domains}`,
    seconds(of.ms),
    of.migrationsPerMinute.toFixed(0),
    of.sustainedPerMinute.toFixed(0),
    `${of.peak.out}, ${of.peak.in}, ${of.peak.fleet}`,
    Object.entries(of.statuses)
      .map(([status, count]) => `${count} ${status}`)
      .join(", "),
  );

function apiRow(call: ProbedCall, idle: ProbeTimes, busy: ProbeTimes): string {
  const ms = (value: number) => `${value.toFixed(0)} ms`;
  const [one, other] = [idle[call], busy[call]];
  return row(
    call,
    ms(one.p50Ms),
    ms(one.p99Ms),
    ms(other.p50Ms),
    ms(other.p99Ms),
    (other.p50Ms / one.p50Ms).toFixed(1),
    (other.p99Ms / one.p99Ms).toFixed(1),
    other.count,
    one.failed + other.failed,
  );
}
