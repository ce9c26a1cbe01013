/** Inventory messages: whole lists and changes, cut to what a transport carries; labels as people wrote them. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { decodeUp, encode } from "#protocol/codec";
import { inventoryDomainsMax } from "#protocol/limits";
import { cutToFit } from "#shim/description";
import { inventoryMessages, toldFirst } from "#shim/inventory";
import { labelsUri, parseLabels } from "#shim/inventory-reader";
import type { Steps, Work } from "#shim/ports";
import { steps } from "#shim/steps";
import { inventoryDomain, inventoryDomains, uuidOf } from "#test/fake/inventory-domain";

describe("inventory messages", () => {
  test("no change is no message; an empty host still says so when all is wanted", () => {
    assert.deepEqual(inventoryMessages({ full: false, domains: [], gone: [] }), []);
    assert.deepEqual(inventoryMessages({ full: true, domains: [], gone: [] }), [
      { type: "inventory", full: true, last: true, domains: [], gone: [] },
    ]);
  });

  test("nothing is lost or doubled at any size, and only the first is full and only the last is last", () => {
    for (const count of [1, inventoryDomainsMax - 1, inventoryDomainsMax, inventoryDomainsMax + 1, 1_000]) {
      const gone = Array.from({ length: count }, (_, index) => uuidOf(10_000 + index));
      const messages = inventoryMessages({ full: true, domains: inventoryDomains(count), gone });
      for (const message of messages) assert.deepEqual(decodeUp(encode(message)), message);
      assert.deepEqual(
        messages.flatMap((message) => message.domains),
        inventoryDomains(count),
      );
      assert.deepEqual(
        messages.flatMap((message) => message.gone),
        gone,
      );
      assert.deepEqual(
        messages.map((message) => message.full),
        messages.map((_, index) => index === 0),
      );
      assert.deepEqual(
        messages.map((message) => message.last),
        messages.map((_, index) => index === messages.length - 1),
      );
    }
  });

  test("a complete list of several messages names itself in each, so that any order will do; nothing else does", () => {
    const long = inventoryMessages({ full: true, domains: inventoryDomains(450), gone: [], series: "s1" });
    assert.deepEqual(
      long.map(({ series }) => series),
      long.map((_, part) => ({ id: "s1", part, parts: long.length })),
    );
    const [one, other] = [1, 2].map(
      () => inventoryMessages({ full: true, domains: inventoryDomains(450), gone: [] })[0]?.series?.id,
    );
    assert.notEqual(one, other);
    for (const messages of [
      inventoryMessages({ full: true, domains: inventoryDomains(3), gone: [] }),
      inventoryMessages({ full: false, domains: inventoryDomains(450), gone: [] }),
    ])
      assert.ok(messages.every(({ series }) => series === undefined));
  });

  test("long labels in UTF-8 stay below the message's limit", () => {
    const labels = Object.fromEntries(Array.from({ length: 32 }, (_, index) => [`label-${index}`, "é".repeat(255)]));
    const domains = Array.from({ length: 50 }, (_, index) => inventoryDomain(index, labels));
    const messages = inventoryMessages({ full: true, domains, gone: [] });
    assert.ok(messages.length > 1);
    for (const message of messages) encode(message);
  });
});

describe("the steps that end a side's part", () => {
  test("tell what became of the domain before their report; a failed one tells nothing", async () => {
    const said: string[] = [];
    const settled = {
      kind: "settle",
      tree: { snapshots: 0, checkpoints: 0, treeSha256: "0".repeat(64) },
      state: "running",
      autostart: false,
    } as const;
    const inventory = {
      async lookAt(which: string) {
        said.push(`look ${which}`);
      },
    };
    const given: Steps = {
      ...steps,
      async settle() {
        said.push("settle");
        return settled;
      },
      confirm: () => Promise.reject(new Error("not confirmed")),
    };
    const told = toldFirst(given, inventory);
    // Only the domain is looked at; the rest of what a step is given does not matter here.
    const work = { command: { domain: { uuid: uuidOf(1), name: "one" } } };
    await told.settle(work as unknown as Work<"settle">).then(() => said.push("report"));
    await assert.rejects(told.confirm(work as unknown as Work<"confirm">), /not confirmed/);
    assert.deepEqual(said, ["settle", `look ${uuidOf(1)}`, "report"]);
  });
});

describe("labels", () => {
  test("are read from the element that libvirt gives back", () => {
    const xml = `<labels xmlns="${labelsUri}"><label name="tier">db</label><label name="team">a &amp; b</label></labels>`;
    assert.deepEqual(parseLabels(xml), { tier: "db", team: "a & b" });
  });

  test("what breaks a bound or cannot be read is left out", () => {
    const label = (name: string, value: string) => `<label name="${name}">${value}</label>`;
    const wrap = (inner: string) => `<labels xmlns="${labelsUri}">${inner}</labels>`;
    assert.deepEqual(parseLabels(wrap(label("x".repeat(64), "1") + label("a", "y".repeat(256)) + label("b", "2"))), {
      b: "2",
    });
    assert.deepEqual(parseLabels(wrap(`${label("a", "1") + label("a", "2")}<label>3</label>`)), { a: "1" });
    const hundred = wrap(Array.from({ length: 100 }, (_, index) => label(`l${index}`, "v")).join(""));
    assert.equal(Object.keys(parseLabels(hundred)).length, 32);
    assert.deepEqual(parseLabels("<labels"), {});
  });
});

describe("description", () => {
  test("a tree that is too large for a message keeps its first nodes and its true total", () => {
    const node = { parent: null, current: false, state: "running", createdAt: null };
    const snapshotTree = Array.from({ length: 500 }, (_, index) => ({ ...node, name: `${index}-${"é".repeat(250)}` }));
    const whole = { kind: "describeDomain" as const, domain: inventoryDomain(1), snapshotTree, snapshotsTotal: 700 };
    const cut = cutToFit(whole);
    encode({ type: "answered", queryId: "q".repeat(64), answer: { ok: true, body: cut } });
    assert.ok(cut.snapshotTree.length > 100 && cut.snapshotTree.length < 500);
    assert.deepEqual(cut.snapshotTree, snapshotTree.slice(0, cut.snapshotTree.length));
    assert.equal(cut.snapshotsTotal, 700);
    const small = { ...whole, snapshotTree: snapshotTree.slice(0, 5) };
    assert.deepEqual(cutToFit(small), small);
  });
});
