/** A complete list of domains that comes in parts is stored as one. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { type Inventory, InventoryParts } from "#functions/socket/inventory-parts";
import { inventoryMessages } from "#shim/inventory";
import { inventoryDomains } from "#test/fake/inventory-domain";

const domains = inventoryDomains(450);
const stored = (parts: InventoryParts, messages: readonly Inventory[]) =>
  messages.map((message) => parts.take(message)).filter((each) => each !== null);

describe("the parts of an inventory", () => {
  test("a complete list of more domains than a message carries is stored at its end, whole", () => {
    const messages = inventoryMessages({ full: true, domains, gone: [] });
    assert.ok(messages.length > 1);
    const [whole, ...more] = stored(new InventoryParts(), messages);
    assert.deepEqual(more, []);
    assert.deepEqual([whole?.full, whole?.last], [true, true]);
    assert.deepEqual(whole?.domains, domains);
  });

  test("a list in one message, and a change, are stored as they come", () => {
    const parts = new InventoryParts();
    const [list] = inventoryMessages({ full: true, domains: domains.slice(0, 2), gone: [] });
    const [change] = inventoryMessages({ full: false, domains: domains.slice(2, 3), gone: [domains[0]?.uuid ?? ""] });
    assert.ok(list !== undefined && change !== undefined);
    assert.deepEqual(stored(parts, [list, change]), [list, change]);
  });

  test("who has lost the first parts takes the rest as changes: nothing is taken for gone", () => {
    const rest = inventoryMessages({ full: true, domains, gone: [] }).slice(1);
    const found = stored(new InventoryParts(), rest);
    assert.ok(found.every((message) => !message.full));
    assert.deepEqual(found, rest);
  });

  test("a list cut short is given up for the next one, and for a new session's", () => {
    const messages = inventoryMessages({ full: true, domains, gone: [] });
    const parts = new InventoryParts();
    assert.deepEqual(stored(parts, [...messages.slice(0, 1), ...messages])[0]?.domains, domains);
    parts.take(messages[0] as Inventory);
    parts.clear();
    const change = inventoryMessages({ full: false, domains: domains.slice(0, 1), gone: [] });
    assert.deepEqual(stored(parts, change), change);
  });

  test("without an end it is not collected for ever", () => {
    const [part] = inventoryMessages({ full: true, domains, gone: [] });
    assert.ok(part !== undefined);
    const parts = new InventoryParts();
    let given: Inventory | null = parts.take(part);
    for (let count = 0; given === null && count < 1_000; count += 1) given = parts.take({ ...part, full: false });
    assert.equal(given?.full, false);
  });
});
