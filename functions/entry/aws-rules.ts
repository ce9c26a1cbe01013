/** Rules on AWS, apart from the rest of the wiring: the function of the shims' sockets has no use for them, and a smaller bundle starts sooner. */
import { createRules } from "../rule-fleet.ts";
import type { AwsWiring } from "./aws-wiring.ts";
import { ruleStoresOf } from "./rule-stores.ts";

const made = new WeakMap<AwsWiring, ReturnType<typeof createRules>>();

/** Once per wiring. */
export function rulesOf(wiring: AwsWiring): ReturnType<typeof createRules> {
  const known = made.get(wiring);
  if (known !== undefined) return known;
  const rules = createRules(wiring.ports, ruleStoresOf(wiring.table), wiring.evacuations);
  made.set(wiring, rules);
  return rules;
}
