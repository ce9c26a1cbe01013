/**
 * The minute's timer: looks after what is overdue and after what has drifted. EventBridge Scheduler calls it at least once a minute, at times
 * twice or late; each look is a read and conditional writes, so that harms nothing.
 */
import { createReconciler } from "../reconciler.ts";
import { rulesOf } from "./aws-rules.ts";
import { invoked, wireAws } from "./aws-wiring.ts";

export async function handler(_event: unknown, context?: { awsRequestId?: string }): Promise<{ looked: number }> {
  invoked(context?.awsRequestId);
  const wiring = wireAws(process.env);
  const looked = (await wiring.runner.tick()) + (await wiring.evacuations.tick());
  await rulesOf(wiring).runner.tick();
  await createReconciler(wiring.ports).tick();
  return { looked };
}
