/** The requests that this isolate has answered. Another isolate has its own count, so each says whose it is: `isolate` is a name drawn when it began. */
import type { MetricFamily } from "../core/metric-family.ts";
import type { MetricSamples } from "../core/metric-text.ts";

const family: MetricFamily = {
  name: "vmferry_http_requests_total",
  help: "Requests that this isolate has answered since it began.",
  type: "counter",
  labels: ["method", "path", "status", "isolate"],
};

export class RequestCounts {
  readonly #counts = new Map<string, { values: readonly string[]; value: number }>();

  /** `path` is the route's pattern, never what was asked: names in a label would grow without bound. */
  count(method: string, path: string, status: number): void {
    const key = `${method} ${path} ${status}`;
    const known = this.#counts.get(key);
    if (known === undefined) this.#counts.set(key, { values: [method, path, String(status)], value: 1 });
    else known.value += 1;
  }

  samples(isolate: string): MetricSamples {
    const series = [...this.#counts.values()].map(({ values, value }) => ({ values: [...values, isolate], value }));
    return { family, series };
  }
}
