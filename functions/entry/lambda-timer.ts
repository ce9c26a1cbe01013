/**
 * The minute's timer: looks after what is overdue and after what has drifted. EventBridge Scheduler calls it at least once a minute, at times
 * twice or late; each look is a read and conditional writes, so that harms nothing.
 */
import { everyMinute } from "../minute.ts";
import { createReconciler } from "../reconciler.ts";
import { metricsOf } from "./aws-metrics.ts";
import { rulesOf } from "./aws-rules.ts";
import { webhooksOf } from "./aws-webhooks.ts";
import { invoked, wireAws } from "./aws-wiring.ts";

export async function handler(_event: unknown, context?: { awsRequestId?: string }): Promise<{ looked: number }> {
  invoked(context?.awsRequestId);
  const wiring = wireAws(process.env);
  let looked = 0;
  const count = async (active: Promise<number>) => {
    looked += await active;
  };
  const { ports } = wiring;
  const { metrics, counter } = metricsOf(wiring);
  const tasks = {
    migrations: () => count(wiring.runner.tick()),
    evacuations: () => count(wiring.evacuations.tick()),
    rules: () => rulesOf(wiring).runner.tick(),
    drift: () => createReconciler(ports, metrics).tick(),
    metrics: () => counter.tick(),
    webhooks: () => webhooksOf(wiring).runner.tick(),
  };
  await everyMinute(ports.log, tasks, (done) => metrics.succeeded(done, ports.clock.now()));
  return { looked };
}
