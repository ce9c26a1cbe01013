/**
 * A host's complete list of domains comes in parts (message.ts), and what it does not name is gone. The store is told of the
 * whole list at once: told of the first part alone, it would forget the domains of the others until they come.
 *
 * Kept in memory. Whoever has lost the first parts takes the rest as the changes they look like; what is gone since is
 * found by the next complete list.
 */
import type { UpMessage } from "#protocol/message";

export type Inventory = Extract<UpMessage, { type: "inventory" }>;

/** Domains of one host that are collected: far above what a host runs, a few MiB in memory. */
const collectedMax = 20_000;

export class InventoryParts {
  #collected: Inventory | null = null;

  /** What is to be stored now: a change, a whole list, or nothing yet. */
  take(part: Inventory): Inventory | null {
    if (part.full) this.#collected = { ...part, domains: [], gone: [] };
    const collected = this.#collected;
    if (collected === null) return part;
    collected.domains.push(...part.domains);
    if (part.last) {
      this.#collected = null;
      return { ...collected, last: true };
    }
    if (collected.domains.length < collectedMax) return null;
    // More than any host has: stored as it comes, and nothing is taken for gone.
    this.#collected = null;
    return { ...collected, full: false };
  }

  /** A new session says everything anew. */
  clear(): void {
    this.#collected = null;
  }
}
