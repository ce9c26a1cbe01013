/**
 * What a store of rules and of what was heard before must do, as one list of cases: on the fake, on the embedded DynamoDB and, where there is Java, on
 * Amazon's own.
 */
import assert from "node:assert/strict";
import { before, describe, test } from "node:test";
import { ruleSchema } from "#core/rule";
import { newRuleState, type RuleRecord } from "#core/rule-state";
import type { DedupStore, RuleStore } from "#functions/ports";
import { createRuleBook } from "#functions/rule-book";
import { cronerCron } from "#functions/schedule/croner-cron";
import { DynamoDedup, DynamoRules } from "#functions/store/dynamo-rules";
import { createDynamoClient, DynamoTable } from "#functions/store/dynamo-table";
import { MemoryDedup, MemoryRules } from "#test/fake/memory-rules";
import { rackRule } from "#test/fake/rule-world";
import { onEachDynamo } from "./dynamo-endpoints.ts";
import { sha256, ulid } from "./store-cases.ts";
import { makeTable, type TestClock, testClock } from "./store-dynamo.ts";

interface Stores {
  rules: RuleStore;
  dedup: DedupStore;
  clock: TestClock;
}

const name = () => `rule-${ulid().toLowerCase()}`;
const record = (rule: string, version: number, before: RuleRecord | null, description = ""): RuleRecord => ({
  name: rule,
  version,
  previousSha256: before?.sha256 ?? null,
  sha256: sha256(`${rule} ${version} ${description}`),
  at: "2026-11-01T00:00:00.000Z",
  by: "test",
  paused: false,
  deleted: false,
  rule: ruleSchema.parse({ ...rackRule, name: rule, description }),
});

const cases: Record<string, (stores: Stores) => Promise<void>> = {
  "a version becomes the current one over the one before only; the same again is our own": async ({ rules }) => {
    const rule = name();
    assert.equal(await rules.load(rule), null);
    const first = record(rule, 1, null);
    assert.equal(await rules.commit(first), "committed");
    assert.equal(await rules.commit(first), "committed");
    assert.equal(await rules.commit(record(rule, 1, null, "other")), "conflict");
    assert.equal(await rules.commit(record(rule, 3, first)), "conflict");
    assert.deepEqual(await rules.load(rule), first);
  },
  "every version that was current is kept, newest first; one that lost is not among them": async ({ rules }) => {
    const rule = name();
    const first = record(rule, 1, null);
    const second = record(rule, 2, first, "second");
    await rules.commit(first);
    await rules.commit(second);
    assert.equal(await rules.commit(record(rule, 2, first, "lost")), "conflict");
    const third = record(rule, 3, second, "third");
    await rules.commit(third);
    assert.deepEqual(await rules.versions(rule), [third, second, first]);
    assert.deepEqual(await rules.versions(name()), []);
  },
  "of many that change a rule at once each gets its version": async ({ rules, clock }) => {
    const rule = name();
    const book = createRuleBook({ clock, rules, cron: cronerCron() });
    const wanted = ["a", "b", "c", "d"];
    await Promise.all(
      wanted.map((description) => book.put(ruleSchema.parse({ ...rackRule, name: rule, description }), "test", null)),
    );
    const versions = await rules.versions(rule);
    assert.deepEqual(
      versions.map(({ version }) => version),
      [4, 3, 2, 1],
    );
    assert.deepEqual(versions.map((each) => each.rule.description).sort(), wanted);
  },
  "the list has each rule once, at its current version": async ({ rules }) => {
    const rule = name();
    const first = record(rule, 1, null);
    await rules.commit(first);
    await rules.commit({ ...record(rule, 2, first), deleted: true });
    const listed = (await rules.list()).filter((each) => each.name === rule);
    assert.deepEqual(
      listed.map(({ version, deleted }) => [version, deleted]),
      [[2, true]],
    );
  },
  "a state is written over the version before only": async ({ rules }) => {
    const state = { ...newRuleState(name()), version: 1 };
    assert.equal(await rules.state(state.rule), null);
    assert.equal(await rules.commitState(state), "committed");
    assert.equal(await rules.commitState(state), "committed");
    assert.equal(await rules.commitState({ ...state, lastOpeningAt: "x" }), "conflict");
    assert.equal(await rules.commitState({ ...state, version: 2, lastOpeningAt: "y" }), "committed");
    assert.equal((await rules.state(state.rule))?.lastOpeningAt, "y");
    assert.ok((await rules.states()).some((each) => each.rule === state.rule && each.version === 2));
  },
  "credentials are a rule's own": async ({ rules }) => {
    const rule = name();
    const credential = { id: ulid(), rule, kind: "token" as const, value: sha256("x"), createdAt: "now", by: "test" };
    await rules.addCredential(credential);
    await rules.addCredential(credential);
    await rules.addCredential({ ...credential, rule: name() });
    assert.deepEqual(await rules.credentials(rule), [credential]);
    assert.deepEqual(await rules.versions(rule), []);
    assert.equal(await rules.removeCredential(rule, credential.id), true);
    assert.equal(await rules.removeCredential(rule, credential.id), false);
    assert.deepEqual(await rules.credentials(rule), []);
  },
  "of a hundred who claim a key at once one is the first, until its time is over": async ({ dedup, clock }) => {
    clock.at = "2026-11-01T00:00:00.000Z";
    const nowMs = Date.parse(clock.at);
    const key = `${ulid()} ${"x".repeat(3_000)}`;
    const claims = await Promise.all(Array.from({ length: 100 }, () => dedup.first(key, nowMs + 60_000)));
    assert.equal(claims.filter((claim) => claim !== null).length, 1);
    clock.at = "2026-11-01T00:00:59.999Z";
    assert.equal(await dedup.first(key, nowMs + 120_000), null);
    clock.at = "2026-11-01T00:01:00.000Z";
    assert.notEqual(await dedup.first(key, nowMs + 120_000), null);
  },
  "a claim is let go by who made it": async ({ dedup, clock }) => {
    clock.at = "2026-11-01T00:00:00.000Z";
    const untilMs = Date.parse(clock.at) + 60_000;
    const key = ulid();
    const claim = await dedup.first(key, untilMs);
    assert.ok(claim !== null);
    await dedup.forget(key, claim);
    await dedup.forget(key, claim);
    assert.notEqual(await dedup.first(key, untilMs), null);
  },
  "who comes late lets go of nobody else's claim, and of nothing that is kept": async ({ dedup, clock }) => {
    clock.at = "2026-11-01T00:00:00.000Z";
    const nowMs = Date.parse(clock.at);
    const key = ulid();
    const first = await dedup.first(key, nowMs + 60_000);
    clock.at = "2026-11-01T00:01:00.000Z";
    const second = await dedup.first(key, nowMs + 120_000);
    assert.ok(first !== null && second !== null);
    await dedup.forget(key, first);
    assert.equal(await dedup.first(key, nowMs + 120_000), null);
    await dedup.keep(key, nowMs + 600_000);
    await dedup.forget(key, second);
    clock.at = "2026-11-01T00:05:00.000Z";
    assert.equal(await dedup.first(key, nowMs + 600_000), null);
  },
};

describe("rules in memory", () => {
  const clock = testClock();
  const stores = { rules: new MemoryRules(), dedup: new MemoryDedup(clock), clock };
  for (const [title, run] of Object.entries(cases)) test(title, () => run(stores));
});

await onEachDynamo("rules", (started) => {
  before(() => makeTable(started.endpoint));
  for (const [name, run] of Object.entries(cases))
    test(name, () => {
      const clock = testClock();
      const credentials = { accessKeyId: "local", secretAccessKey: "local" };
      const client = createDynamoClient({ region: "local", endpoint: started.endpoint, credentials });
      const table = new DynamoTable(client, "vmferry");
      return run({ rules: new DynamoRules(table), dedup: new DynamoDedup(table, clock), clock });
    });
});
