/**
 * The minute's timer: looks after what is overdue and after what has drifted. EventBridge Scheduler calls it at least once a minute, at times
 * twice or late; each look is a read and conditional writes, so that harms nothing.
 */
import { invoked, wireAws } from "./aws-wiring.ts";

export async function handler(_event: unknown, context?: { awsRequestId?: string }): Promise<{ looked: number }> {
  invoked(context?.awsRequestId);
  const { runner, evacuations, ruleRunner, reconciler } = wireAws(process.env);
  const looked = (await runner.tick()) + (await evacuations.tick());
  await ruleRunner.tick();
  await reconciler.tick();
  return { looked };
}
