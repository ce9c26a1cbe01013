/**
 * Prometheus' text format 0.0.4: HELP and TYPE once for each family, one line for each series, label values escaped and bounded
 * (https://prometheus.io/docs/instrumenting/exposition_formats/).
 */
import {
  type CountedFamily,
  countedFamilies,
  type MetricFamily,
  type ObservedFamily,
  observedFamilies,
} from "./metric-family.ts";
import { type MetricTotals, seriesKey } from "./metric-totals.ts";

/** Of one label value, in UTF-16 units: names of hosts are at most as long; what is longer is cut, so that no line grows without end. */
export const labelCharsMax = 255;

/** `values`: of the family's labels, in their order. */
export interface MetricSeries {
  values: readonly string[];
  value: number;
}

/** A family with its series as they are now. */
export interface MetricSamples {
  family: MetricFamily;
  series: readonly MetricSeries[];
}

const escapedHelp = (text: string) => text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
const escapedValue = (text: string) => escapedHelp(text.slice(0, labelCharsMax).toWellFormed()).replaceAll('"', '\\"');

/** Numbers as Go reads them: JavaScript's own way but for what is endless. */
const numberText = (value: number): string =>
  value === Number.POSITIVE_INFINITY ? "+Inf" : value === Number.NEGATIVE_INFINITY ? "-Inf" : String(value);

function line(name: string, labels: readonly string[], values: readonly string[], value: number): string {
  const pairs = labels.map((label, index) => `${label}="${escapedValue(values[index] ?? "")}"`);
  return `${name}${pairs.length > 0 ? `{${pairs.join(",")}}` : ""} ${numberText(value)}`;
}

const head = ({ name, help, type }: MetricFamily): string[] => [
  `# HELP ${name} ${escapedHelp(help)}`,
  `# TYPE ${name} ${type}`,
];

/** Gauges and counters that are at hand. */
export function samplesText(samples: readonly MetricSamples[]): string {
  return samples
    .flatMap(({ family, series }) => [
      ...head(family),
      ...series.map(({ values, value }) => line(family.name, family.labels, values, value)),
    ])
    .map((text) => `${text}\n`)
    .join("");
}

/** Every family that is folded from the chronicle, those without an event at 0. */
export function totalsText(totals: MetricTotals): string {
  const lines = [
    ...Object.entries<CountedFamily>(countedFamilies).flatMap(([name, family]) => [
      ...head(family),
      ...keysOf(family, totals.counters[name]).map((key) =>
        line(family.name, family.labels, valuesOf(family, key), totals.counters[name]?.[key] ?? 0),
      ),
    ]),
    ...Object.entries<ObservedFamily>(observedFamilies).flatMap(([name, family]) => [
      ...head(family),
      ...keysOf(family, totals.histograms[name]).flatMap((key) =>
        histogramLines(family, valuesOf(family, key), totals.histograms[name]?.[key]),
      ),
    ]),
  ];
  return `${lines.join("\n")}\n`;
}

/** The known series first, then what came besides, by name. */
function keysOf({ known }: CountedFamily | ObservedFamily, series: Readonly<Record<string, unknown>> = {}): string[] {
  const first = known.map(seriesKey);
  return [
    ...first,
    ...Object.keys(series)
      .filter((key) => !first.includes(key))
      .sort(),
  ];
}

const valuesOf = ({ labels }: MetricFamily, key: string): string[] => (labels.length === 0 ? [] : key.split("|"));

function histogramLines(
  { name, labels, buckets }: ObservedFamily,
  values: readonly string[],
  { counts, sum }: { counts: readonly number[]; sum: number } = { counts: [], sum: 0 },
): string[] {
  let below = 0;
  const bounds = [...buckets, Number.POSITIVE_INFINITY];
  const lines = bounds.map((bound, index) => {
    below += counts[index] ?? 0;
    return line(`${name}_bucket`, [...labels, "le"], [...values, numberText(bound)], below);
  });
  return [...lines, line(`${name}_sum`, labels, values, sum), line(`${name}_count`, labels, values, below)];
}
