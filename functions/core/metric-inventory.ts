/**
 * How many domains there are, by state and by host. Counting reads every host's inventory: where the hosts are few it is done when somebody asks, where they are
 * many the reconciler does it on its way and writes the counts down with their time.
 */
import * as z from "zod/mini";
import { type DomainState, domainStateSchema } from "#protocol/command";
import { hostIdSchema } from "#protocol/identity";

/** Hosts in one count: some 40 bytes each, so the item that keeps it stays at half of what DynamoDB holds. */
export const inventoryHostsMax = 5_000;

/** Up to so many hosts the inventories are read for each scrape: as many requests as hosts, all at once. */
export const freshInventoryHostsMax = 10;

export const inventoryCountSchema = z.object({
  /** When the inventories were read. */
  at: z.string(),
  /** Domains of the whole fleet by state. A domain that is moving is known to two hosts and counts on both. */
  states: z.record(z.string(), z.int()),
  /** Host id and how many domains it has; of the first hosts when there are more than a count holds. */
  hosts: z.array(z.tuple([hostIdSchema, z.int()])).check(z.maxLength(inventoryHostsMax)),
});
export type InventoryCount = z.infer<typeof inventoryCountSchema>;

export function countInventory(
  at: string,
  hosts: readonly { id: string; domains: readonly { state: DomainState }[] }[],
): InventoryCount {
  const states: Record<string, number> = Object.fromEntries(domainStateSchema.options.map((state) => [state, 0]));
  for (const { domains } of hosts) for (const { state } of domains) states[state] = (states[state] ?? 0) + 1;
  return {
    at,
    states,
    hosts: hosts.slice(0, inventoryHostsMax).map(({ id, domains }) => [id, domains.length]),
  };
}
