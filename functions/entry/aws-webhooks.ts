/** Webhooks on AWS, apart from the rest of the wiring: the function of the shims' sockets has no use for them. The minute's timer delivers them. */
import { DynamoWebhooks } from "../store/dynamo-webhooks.ts";
import { createWebhooks, type WebhookFace } from "../webhook-face.ts";
import { nodePoster } from "../webhook-post-node.ts";
import type { AwsWiring } from "./aws-wiring.ts";

/** So many receivers may be slow at once without another waiting for them; Lambda itself has no such bound. */
const postsAtOnce = 16;

const made = new WeakMap<AwsWiring, WebhookFace>();

/** Once per wiring. */
export function webhooksOf(wiring: AwsWiring): WebhookFace {
  const known = made.get(wiring);
  if (known !== undefined) return known;
  const { ports, table, webhookTargets: targets } = wiring;
  const post = nodePoster(targets);
  const face = createWebhooks(ports, new DynamoWebhooks(table), { post, targets, postsAtOnce, random: Math.random });
  made.set(wiring, face);
  return face;
}
