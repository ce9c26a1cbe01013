/**
 * Rules in DynamoDB. A version is an item of its own, written before the item that names it the current one and never changed; one whose writer died in
 * between is named by nobody and is left out of the history. `ttl` (epoch seconds) is the broom of what was heard before; what decides is the time in the item.
 *
 * Keys (pk / sk):
 *   RULES / name                 the current version        RULE#name / VERSION#number#sha256   a version
 *   RULESTATES / name            how its runs stand         RULE#name / CREDENTIAL#id           how its trigger's callers prove themselves
 *   DEDUP#sha256 / DEDUP         what was heard before
 */
import {
  type RuleCredential,
  type RuleRecord,
  type RuleState,
  ruleCredentialSchema,
  ruleRecordSchema,
  ruleStateSchema,
} from "#core/rule-state";
import type { Clock, CommitResult, DedupStore, RuleStore } from "../ports.ts";
import { type Condition, type DynamoTable, type Item, itemDoesNotExist, itemExists } from "./dynamo-table.ts";
import { sha256Hex } from "./sha256.ts";
import { bodyText, jsonOf } from "./stored-item.ts";

const currentKey = (name: string) => ({ pk: "RULES", sk: name });
const stateKey = (name: string) => ({ pk: "RULESTATES", sk: name });
const credentialKey = (name: string, id: string) => ({ pk: `RULE#${name}`, sk: `CREDENTIAL#${id}` });
/** Padded, so that the order of the keys is the order of the versions. */
const versionKey = ({ name, version, sha256 }: RuleRecord) => ({
  pk: `RULE#${name}`,
  sk: `VERSION#${String(version).padStart(10, "0")}#${sha256}`,
});

const isOneVersionAhead = (version: number): Condition =>
  version === 1
    ? itemDoesNotExist
    : {
        expression: "#version = :previous",
        names: { "#version": "version" },
        values: { ":previous": { N: String(version - 1) } },
      };

const always: Condition = { expression: "attribute_exists(pk) OR attribute_not_exists(pk)" };
/** The broom comes this long after the time is up: clocks differ. */
const ttlSlackMs = 60 * 60_000;
/** 72 random bits tell the claims on one key apart. */
const claimBytes = 9;

export class DynamoRules implements RuleStore {
  readonly #table: DynamoTable;

  constructor(table: DynamoTable) {
    this.#table = table;
  }

  async load(name: string): Promise<RuleRecord | null> {
    const what = `rule ${name}`;
    const item = await this.#table.get(what, currentKey(name));
    return item === null ? null : jsonOf(what, ruleRecordSchema, item, "body");
  }

  async commit(record: RuleRecord): Promise<CommitResult> {
    const what = `version ${record.version} of rule ${record.name}`;
    // Refused: it is there already, by the same writer's first try; its name holds its digest.
    await this.#table.put(what, withBody(what, versionKey(record), record), itemDoesNotExist);
    return this.#write(what, currentKey(record.name), record);
  }

  async #write(what: string, key: { pk: string; sk: string }, value: { version: number }): Promise<CommitResult> {
    const item = withBody(what, key, value);
    if ((await this.#table.put(what, item, isOneVersionAhead(value.version))) === "written") return "committed";
    // The refusal may come from our own first attempt whose answer was lost.
    return (await this.#table.get(what, key))?.body?.S === item.body?.S ? "committed" : "conflict";
  }

  async list(): Promise<RuleRecord[]> {
    const what = "the list of rules";
    return (await this.#table.partition(what, "RULES", "")).map((item) => jsonOf(what, ruleRecordSchema, item, "body"));
  }

  async versions(name: string): Promise<RuleRecord[]> {
    const what = `the versions of rule ${name}`;
    const items = await this.#table.partition(what, `RULE#${name}`, "VERSION#");
    const known = items.map((item) => jsonOf(what, ruleRecordSchema, item, "body")).reverse();
    const current = await this.load(name);
    const chain: RuleRecord[] = [];
    for (let sha256 = current?.sha256 ?? null; sha256 !== null; ) {
      const record = known.find((one) => one.sha256 === sha256);
      if (record === undefined) break;
      chain.push(record);
      sha256 = record.previousSha256;
    }
    return chain;
  }

  async state(name: string): Promise<RuleState | null> {
    const what = `the runs of rule ${name}`;
    const item = await this.#table.get(what, stateKey(name));
    return item === null ? null : jsonOf(what, ruleStateSchema, item, "body");
  }

  async states(): Promise<RuleState[]> {
    const what = "the runs of rules";
    const items = await this.#table.partition(what, "RULESTATES", "");
    return items.map((item) => jsonOf(what, ruleStateSchema, item, "body"));
  }

  commitState(state: RuleState): Promise<CommitResult> {
    return this.#write(`the runs of rule ${state.rule}`, stateKey(state.rule), state);
  }

  async credentials(name: string): Promise<RuleCredential[]> {
    const what = `the credentials of rule ${name}`;
    const items = await this.#table.partition(what, `RULE#${name}`, "CREDENTIAL#");
    return items.map((item) => jsonOf(what, ruleCredentialSchema, item, "body"));
  }

  async addCredential(credential: RuleCredential): Promise<void> {
    const what = `a credential of rule ${credential.rule}`;
    // Ids are random: one that exists already is our own first attempt.
    const item = withBody(what, credentialKey(credential.rule, credential.id), { ...credential, version: 1 });
    await this.#table.put(what, item, itemDoesNotExist);
  }

  async removeCredential(name: string, id: string): Promise<boolean> {
    const what = `a credential of rule ${name}`;
    if ((await this.#table.get(what, credentialKey(name, id))) === null) return false;
    await this.#table.delete(what, credentialKey(name, id), itemExists);
    return true;
  }
}

const withBody = (what: string, { pk, sk }: { pk: string; sk: string }, value: { version: number }): Item => ({
  pk: { S: pk },
  sk: { S: sk },
  version: { N: String(value.version) },
  body: { S: bodyText(what, value) },
});

export class DynamoDedup implements DedupStore {
  readonly #table: DynamoTable;
  readonly #clock: Clock;

  constructor(table: DynamoTable, clock: Clock) {
    this.#table = table;
    this.#clock = clock;
  }

  async first(key: string, untilMs: number): Promise<string | null> {
    const at = await keyOf(key);
    const claim = btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(claimBytes))));
    const written = await this.#table.put("what was heard before", claimed(at, untilMs, claim), {
      expression: "attribute_not_exists(pk) OR untilMs <= :now",
      values: { ":now": { N: String(Date.parse(this.#clock.now())) } },
    });
    if (written === "written") return claim;
    // An ambiguous write of our own stands there with our own claim.
    return (await this.#table.get("what was heard before", at))?.claim?.S === claim ? claim : null;
  }

  async keep(key: string, untilMs: number): Promise<void> {
    await this.#table.put("what was heard before", claimed(await keyOf(key), untilMs, ""), always);
  }

  async forget(key: string, claim: string): Promise<void> {
    await this.#table.delete("what was heard before", await keyOf(key), {
      expression: "#claim = :claim",
      names: { "#claim": "claim" },
      values: { ":claim": { S: claim } },
    });
  }
}

/** A digest: keys come from outside and may hold anything, of any length. */
const keyOf = async (key: string) => ({ pk: `DEDUP#${await sha256Hex(key)}`, sk: "DEDUP" });
const claimed = ({ pk, sk }: { pk: string; sk: string }, untilMs: number, claim: string): Item => ({
  pk: { S: pk },
  sk: { S: sk },
  untilMs: { N: String(untilMs) },
  claim: { S: claim },
  ttl: { N: String(Math.ceil((untilMs + ttlSlackMs) / 1000)) },
});
