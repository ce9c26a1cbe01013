/**
 * Reads Prometheus' text format back, character by character and by its specification, knowing nothing of how ours is written. It refuses what Prometheus
 * refuses and what `promtool check metrics` finds fault with.
 */
import assert from "node:assert/strict";

export interface ParsedFamily {
  help: string;
  type: string;
  samples: { name: string; labels: Record<string, string>; value: number }[];
}

const nameStart = /[a-zA-Z_:]/;
const nameRest = /[a-zA-Z0-9_:]/;

class LineReader {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  get done(): boolean {
    return this.#at >= this.#text.length;
  }

  peek(): string {
    return this.#text[this.#at] ?? "";
  }

  take(expected?: string): string {
    const char = this.peek();
    assert.ok(char !== "" && (expected === undefined || char === expected), `expected ${expected} in ${this.#text}`);
    this.#at += 1;
    return char;
  }

  name(): string {
    let name = "";
    while (name === "" ? nameStart.test(this.peek()) : nameRest.test(this.peek())) name += this.take();
    assert.notEqual(name, "", `a name is missing in ${this.#text}`);
    return name;
  }

  quoted(): string {
    this.take('"');
    let text = "";
    for (;;) {
      const char = this.take();
      if (char === '"') return text;
      if (char !== "\\") text += char;
      else {
        const escaped = this.take();
        assert.ok(["\\", '"', "n"].includes(escaped), `\\${escaped} is no escape`);
        text += escaped === "n" ? "\n" : escaped;
      }
    }
  }

  rest(): string {
    const rest = this.#text.slice(this.#at);
    this.#at = this.#text.length;
    return rest;
  }
}

function numberOf(text: string): number {
  if (text === "+Inf") return Number.POSITIVE_INFINITY;
  if (text === "-Inf") return Number.NEGATIVE_INFINITY;
  assert.match(text, /^[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?$/, `${text} is no number`);
  return Number(text);
}

function sampleOf(text: string) {
  const reader = new LineReader(text);
  const name = reader.name();
  const labels: Record<string, string> = {};
  if (reader.peek() === "{") {
    reader.take("{");
    while (reader.peek() !== "}") {
      const label = reader.name();
      reader.take("=");
      assert.ok(!Object.hasOwn(labels, label), `${label} stands twice in ${text}`);
      labels[label] = reader.quoted();
      if (reader.peek() === ",") reader.take(",");
    }
    reader.take("}");
  }
  reader.take(" ");
  return { name, labels, value: numberOf(reader.rest()) };
}

/** Families by name. Fails on what is not of the format, or against Prometheus' conventions. */
export function parsedMetrics(text: string): Map<string, ParsedFamily> {
  assert.ok(text.endsWith("\n"), "the last line ends");
  const families = new Map<string, ParsedFamily>();
  const known = new Set<string>();
  let current: [string, ParsedFamily] | null = null;
  for (const line of text.split("\n").slice(0, -1)) {
    const [, kind, name = "", rest = ""] = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line) ?? [];
    if (kind === "HELP") {
      assert.ok(!families.has(name), `${name} comes twice`);
      current = [name, { help: rest, type: "", samples: [] }];
      families.set(...current);
    } else if (kind === "TYPE") {
      assert.equal(current?.[0], name, `TYPE of ${name} stands elsewhere`);
      assert.ok(current !== null && current[1].samples.length === 0);
      current[1].type = rest;
    } else {
      const sample = sampleOf(line);
      assert.ok(current !== null, `${line} is of no family`);
      const [family, { type, samples }] = current;
      const suffixes = type === "histogram" ? ["_bucket", "_sum", "_count"] : [""];
      assert.ok(suffixes.map((suffix) => family + suffix).includes(sample.name), `${line} is not of ${family}`);
      const key = JSON.stringify([sample.name, Object.entries(sample.labels).sort()]);
      assert.ok(!known.has(key), `${line} comes twice`);
      known.add(key);
      samples.push(sample);
    }
  }
  for (const [name, family] of families) conventional(name, family);
  return families;
}

function conventional(name: string, { help, type, samples }: ParsedFamily): void {
  assert.match(name, /^vmferry_[a-z0-9_]+$/, "snake case, and ours");
  assert.ok(help.length > 0, `${name} has no help`);
  assert.ok(["counter", "gauge", "histogram"].includes(type), `${name} is a ${type}`);
  assert.equal(name.endsWith("_total"), type === "counter", `_total is for counters: ${name}`);
  assert.doesNotMatch(name, /_(ms|milliseconds|minutes|kib|mib|kilobytes|count|sum|bucket|info_total)$/, "base units");
  for (const { labels, value } of samples) {
    for (const label of Object.keys(labels)) assert.match(label, /^[a-z][a-z0-9_]*$/, `${name} has a label ${label}`);
    if (type !== "gauge") assert.ok(value >= 0, `${name} is below nothing`);
  }
  if (type === "histogram") wholeHistograms(name, samples);
}

/** Each series of a histogram has rising buckets that end with +Inf, which is the count, and a sum. */
function wholeHistograms(name: string, samples: ParsedFamily["samples"]): void {
  const series = new Map<string, { buckets: [number, number][]; sum?: number; count?: number }>();
  for (const { name: sample, labels, value } of samples) {
    const { le, ...others } = labels;
    const key = JSON.stringify(Object.entries(others).sort());
    const one = series.get(key) ?? { buckets: [] };
    series.set(key, one);
    if (sample === `${name}_bucket`) one.buckets.push([numberOf(le ?? ""), value]);
    else if (sample === `${name}_sum`) one.sum = value;
    else one.count = value;
  }
  for (const { buckets, sum, count } of series.values()) {
    assert.equal(buckets.at(-1)?.[0], Number.POSITIVE_INFINITY, `${name} ends with +Inf`);
    assert.equal(buckets.at(-1)?.[1], count);
    assert.notEqual(sum, undefined);
    for (const [index, [bound, below]] of buckets.entries()) {
      const [earlier, fewer] = buckets[index - 1] ?? [Number.NEGATIVE_INFINITY, 0];
      assert.ok(bound > earlier && below >= fewer, `${name} has buckets that do not rise`);
    }
  }
}

/** The value of one series; undefined when there is none. Labels that are not given do not matter. */
export function seriesValue(
  families: ReadonlyMap<string, ParsedFamily>,
  name: string,
  labels: Record<string, string> = {},
): number | undefined {
  const family = families.get(name) ?? families.get(name.replace(/_(bucket|sum|count)$/, ""));
  const found = family?.samples.filter(
    (sample) => sample.name === name && Object.entries(labels).every(([label, text]) => sample.labels[label] === text),
  );
  assert.ok(found === undefined || found.length <= 1, `${name} ${JSON.stringify(labels)} is ${found?.length} series`);
  return found?.[0]?.value;
}

/** Every counter, and every part of a histogram, by its name and labels. */
export function risingValues(families: ReadonlyMap<string, ParsedFamily>): Map<string, number> {
  const values = new Map<string, number>();
  for (const { type, samples } of families.values())
    if (type !== "gauge")
      for (const { name, labels, value } of samples) values.set(`${name}${JSON.stringify(labels)}`, value);
  return values;
}
