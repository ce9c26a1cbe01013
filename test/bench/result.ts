/** What a run of the bench says: computed from the crossings, written as JSON, printed as a table for the README. */
import type { Crossing, ScriptCrossing, VmferryCrossing } from "./crossing.ts";
import type { Footprint } from "./footprint.ts";
import { type Figure, figure, median, type Ratio, ratio } from "./statistics.ts";
import { type StoreCount, type StoreCounts, totalOf } from "./store-requests.ts";

/** Crossings of one size, round by round, both ways in each. */
export interface Rounds {
  /** 0: the guest has no snapshots and the other way is `virsh migrate`. */
  snapshots: number;
  vmferry: VmferryCrossing[];
  other: (Crossing | ScriptCrossing)[];
}

export interface Comparison {
  snapshots: number;
  other: "virsh migrate" | "usual script";
  /** vmferry by the other way; below 1 is faster. */
  total: Ratio;
  totalMs: { vmferry: Figure; other: Figure };
  /** From the POST to the end, by the other's process. */
  request: Ratio;
  /** Without the memory transfer: vmferry less its Perform, the script less its `virsh migrate`. Null for `virsh migrate`. */
  besideTransfer: Ratio | null;
  besideTransferMs: { vmferry: Figure; other: Figure } | null;
  /** Like for like: `virsh migrate` is all of libvirt's phases, so vmferry less its Prepare, Perform, Finish and Confirm. */
  besidePhases: Ratio | null;
  besidePhasesMs: { vmferry: Figure; other: Figure } | null;
  blackout: Ratio;
  /** `observerMs`: how blind the reader of the serial port was; a gap is known to that only. */
  blackoutMs: { vmferry: Figure; other: Figure; observerMs: number };
  libvirtDowntimeMs: Figure | null;
  /** Medians of what the shims spent in each step. */
  stepsMs: Record<string, number>;
  bundle: { bytes: number; plainBytes: number };
  dynamodb: StoreCount;
  s3: StoreCount;
  /** Medians by operation. */
  operations: Record<string, number>;
}

export interface Result {
  at: string;
  command: string;
  quick: boolean;
  rounds: number;
  machine: { cores: number; cpu: string; node: string; libvirt: string; qemu: string; guestMemoryMiB: number };
  /** Requests of an idle fleet of two hosts in a minute. */
  backgroundPerMinute: { dynamodb: number; s3: number };
  comparisons: Comparison[];
  footprint: Footprint;
}

export function compare({ snapshots, vmferry, other }: Rounds): Comparison {
  const of = <T>(crossings: readonly T[], value: (crossing: T) => number) => crossings.map(value);
  const totals = { vmferry: of(vmferry, (each) => each.totalMs), other: of(other, (each) => each.totalMs) };
  const blackouts = { vmferry: of(vmferry, (each) => each.blackout.ms), other: of(other, (each) => each.blackout.ms) };
  const scripts = other.filter((each): each is ScriptCrossing => "migrateMs" in each);
  const beside =
    scripts.length === 0
      ? null
      : {
          vmferry: of(vmferry, (each) => each.totalMs - each.performMs),
          other: of(scripts, (each) => each.totalMs - each.migrateMs),
        };
  const phases = beside === null ? null : { vmferry: of(vmferry, outsidePhases), other: beside.other };
  const downtimes = vmferry.flatMap(({ libvirtDowntimeMs }) => (libvirtDowntimeMs === null ? [] : [libvirtDowntimeMs]));
  return {
    snapshots,
    other: scripts.length === 0 ? "virsh migrate" : "usual script",
    total: ratio(totals.vmferry, totals.other),
    totalMs: figures(totals),
    request: ratio(
      of(vmferry, (each) => each.requestToEndMs),
      totals.other,
    ),
    besideTransfer: beside === null ? null : ratio(beside.vmferry, beside.other),
    besideTransferMs: beside === null ? null : figures(beside),
    besidePhases: phases === null ? null : ratio(phases.vmferry, phases.other),
    besidePhasesMs: phases === null ? null : figures(phases),
    blackout: ratio(blackouts.vmferry, blackouts.other),
    blackoutMs: {
      ...figures(blackouts),
      observerMs: Math.max(...of([...vmferry, ...other], (each) => each.blackout.observerMs)),
    },
    libvirtDowntimeMs: downtimes.length === 0 ? null : figure(downtimes),
    stepsMs: stepMedians(vmferry),
    bundle: {
      bytes: median(of(vmferry, (each) => each.bundleBytes)),
      plainBytes: median(of(vmferry, (each) => each.bundlePlainBytes)),
    },
    dynamodb: medianCount(vmferry, (stores) => totalOf(stores, "dynamodb")),
    s3: medianCount(vmferry, (stores) => totalOf(stores, "s3")),
    operations: operationMedians(vmferry),
  };
}

const figures = ({ vmferry, other }: { vmferry: number[]; other: number[] }) => ({
  vmferry: figure(vmferry),
  other: figure(other),
});

const phaseSteps: ReadonlySet<string> = new Set(["prepare", "perform", "finish", "confirm"]);

function outsidePhases({ totalMs, steps }: VmferryCrossing): number {
  return steps.reduce((left, { step, ms }) => (phaseSteps.has(step) ? left - ms : left), totalMs);
}

function stepMedians(crossings: readonly VmferryCrossing[]): Record<string, number> {
  const samples = new Map<string, number[]>();
  for (const { steps } of crossings)
    for (const { step, side, ms } of steps) {
      const key = `${step} ${side ?? ""}`.trim();
      samples.set(key, [...(samples.get(key) ?? []), ms]);
    }
  return Object.fromEntries([...samples].map(([key, values]) => [key, median(values)]));
}

function medianCount(crossings: readonly VmferryCrossing[], of: (stores: StoreCounts) => StoreCount): StoreCount {
  const counts = crossings.map(({ stores }) => of(stores));
  return {
    requests: median(counts.map(({ requests }) => requests)),
    sentBytes: median(counts.map(({ sentBytes }) => sentBytes)),
    receivedBytes: median(counts.map(({ receivedBytes }) => receivedBytes)),
  };
}

function operationMedians(crossings: readonly VmferryCrossing[]): Record<string, number> {
  const keys = new Set(crossings.flatMap(({ stores }) => [...stores.keys()]));
  const requests = (key: string) => median(crossings.map(({ stores }) => stores.get(key)?.requests ?? 0));
  return Object.fromEntries([...keys].sort().map((key) => [key, Math.round(requests(key) * 10) / 10]));
}

const times = ({ ratio: value, min, max }: Ratio) => `**${value.toFixed(2)}** (${min.toFixed(2)}–${max.toFixed(2)})`;
const faster = ({ ratio: value, min, max }: Ratio) =>
  `**${(1 / value).toFixed(1)} times** (${(1 / max).toFixed(1)}–${(1 / min).toFixed(1)})`;
const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`;
const kib = (bytes: number) => `${(bytes / 1024).toFixed(0)} KiB`;
const mib = (bytes: number) => `${(bytes / 1024 / 1024).toFixed(1)} MiB`;

/** The tables, ready for the README. */
export function markdown(result: Result): string {
  const { comparisons, footprint, machine, rounds } = result;
  const both = (pair: { vmferry: Figure; other: Figure }) =>
    `${seconds(pair.vmferry.median)} / ${seconds(pair.other.median)}`;
  const lines = [
    `${result.quick ? "A smoke test, one round: these figures prove nothing. " : ""}Medians of ${rounds} rounds, both ways in turn in each, in one run; in brackets the rounds' extremes. ` +
      `${machine.cores} cores (${machine.cpu}), plain emulation, a guest of ${machine.guestMemoryMiB} MiB, ` +
      `libvirt ${machine.libvirt}, QEMU ${machine.qemu}, Node ${machine.node}. Of the snapshots one is real, the others are records of it without data of their own in the image ` +
      `(\`--accept snapshot.incomplete\`). \`${result.command}\``,
    "",
    "| vmferry against | total time, ratio | vmferry / other | beside Perform | beside all of libvirt's phases | vmferry / other | blackout, ratio |",
    "|---|---|---|---|---|---|---|",
    ...comparisons.map((each) =>
      row([
        each.snapshots === 0 ? "`virsh migrate`, no snapshots" : `the usual script, ${each.snapshots} snapshots`,
        times(each.total),
        both(each.totalMs),
        each.besideTransfer === null ? "" : `${faster(each.besideTransfer)} faster`,
        each.besidePhases === null ? "" : `${faster(each.besidePhases)} faster`,
        each.besidePhasesMs === null ? "" : both(each.besidePhasesMs),
        `${times(each.blackout)}, ${each.blackoutMs.vmferry.median.toFixed(0)} ms (seen to ${each.blackoutMs.observerMs.toFixed(0)} ms)`,
      ]),
    ),
    "",
    "| one migration | DynamoDB requests, and for the inventory | sent / received | S3 requests | sent / received | bundle, plain |",
    "|---|---|---|---|---|---|",
    ...comparisons.map(({ snapshots, dynamodb, s3, bundle, operations }) =>
      row([
        `${snapshots} snapshots`,
        `**${(dynamodb.requests - inventoryRequests(operations)).toFixed(0)}** and ${inventoryRequests(operations).toFixed(0)}`,
        `${kib(dynamodb.sentBytes)} / ${kib(dynamodb.receivedBytes)}`,
        s3.requests.toFixed(0),
        `${kib(s3.sentBytes)} / ${kib(s3.receivedBytes)}`,
        bundle.bytes === 0 ? "" : `${kib(bundle.bytes)}, ${kib(bundle.plainBytes)}`,
      ]),
    ),
    "",
    `Two idle hosts cause ${result.backgroundPerMinute.dynamodb.toFixed(0)} DynamoDB and ${result.backgroundPerMinute.s3.toFixed(0)} S3 requests a minute beside that (taken off above).`,
    "",
    "| the shim | |",
    "|---|---|",
    row(["bundle", `${kib(footprint.bundleBytes)}, ${kib(footprint.bundleGzipBytes)} gzip`]),
    row(["start to connected, by `node -e 0`", `${times(footprint.start)}, ${seconds(footprint.startMs.median)}`]),
    row(["idle RSS, started as the systemd unit does", mib(footprint.idleRssBytes)]),
    row([
      "RSS after all migrations of this run, without the unit's options",
      footprint.usedRssBytes.map(mib).join(", "),
    ]),
    "",
  ];
  return lines.join("\n");
}

/** Batches are written by the inventory, which follows what the domain does, and twice for a migration's hosts (point, unpoint). */
const inventoryRequests = (operations: Readonly<Record<string, number>>) =>
  Math.max(0, (operations["dynamodb BatchWriteItem"] ?? 0) - 2);

const row = (cells: readonly string[]) => `| ${cells.join(" | ")} |`;
