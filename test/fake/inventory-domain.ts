/** Domains of an inventory by their number, for tests of what carries them. */
import type { InventoryDomain } from "#protocol/message";

export const uuidOf = (index: number) => `00000000-0000-0000-0000-${index.toString(16).padStart(12, "0")}`;

export const inventoryDomain = (index: number, labels: Record<string, string> = {}): InventoryDomain => ({
  uuid: uuidOf(index),
  name: `domain-${index}`,
  state: "running",
  persistent: true,
  autostart: false,
  memoryKiB: 1,
  vcpus: 1,
  snapshots: 0,
  checkpoints: 0,
  labels,
});

export const inventoryDomains = (count: number, labels: Record<string, string> = {}): InventoryDomain[] =>
  Array.from({ length: count }, (_, index) => inventoryDomain(index, labels));
