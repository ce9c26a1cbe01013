/** What `/metrics` keeps and counts, on AWS, apart from the rest of the wiring: the function of the shims' sockets has no use for it. */
import { createMetricCounter, type MetricCounter } from "../metric-counter.ts";
import type { MetricStore } from "../ports.ts";
import { DynamoMetrics } from "../store/dynamo-metrics.ts";
import type { AwsWiring } from "./aws-wiring.ts";

const made = new WeakMap<AwsWiring, { metrics: MetricStore; counter: MetricCounter }>();

/** Once per wiring. */
export function metricsOf(wiring: AwsWiring): { metrics: MetricStore; counter: MetricCounter } {
  const known = made.get(wiring);
  if (known !== undefined) return known;
  const metrics = new DynamoMetrics(wiring.table);
  const one = { metrics, counter: createMetricCounter({ ...wiring.ports, metrics }) };
  made.set(wiring, one);
  return one;
}
