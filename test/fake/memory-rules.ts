/** Rules and what was heard before, in memory; they pass the same cases as DynamoDB's (test/contract/rule-cases.ts). */
import type { RuleCredential, RuleRecord, RuleState } from "#core/rule-state";
import type { Clock, CommitResult, DedupStore, RuleStore } from "#functions/ports";

export class MemoryRules implements RuleStore {
  readonly #versions = new Map<string, RuleRecord[]>();
  readonly #states = new Map<string, RuleState>();
  readonly #credentials: RuleCredential[] = [];
  /** Writes of states, for tests that count them. */
  stateWrites = 0;

  async load(name: string): Promise<RuleRecord | null> {
    return structuredClone(this.#versions.get(name)?.at(-1) ?? null);
  }

  async commit(record: RuleRecord): Promise<CommitResult> {
    const versions = this.#versions.get(record.name) ?? [];
    const current = versions.at(-1);
    if (JSON.stringify(current) === JSON.stringify(record)) return "committed";
    if ((current?.version ?? 0) !== record.version - 1) return "conflict";
    this.#versions.set(record.name, [...versions, structuredClone(record)]);
    return "committed";
  }

  async list(): Promise<RuleRecord[]> {
    const names = [...this.#versions.keys()].sort();
    return names.flatMap((name) => structuredClone(this.#versions.get(name)?.slice(-1) ?? []));
  }

  async versions(name: string): Promise<RuleRecord[]> {
    return structuredClone((this.#versions.get(name) ?? []).toReversed());
  }

  async state(name: string): Promise<RuleState | null> {
    return structuredClone(this.#states.get(name) ?? null);
  }

  async states(): Promise<RuleState[]> {
    return structuredClone([...this.#states.values()]);
  }

  async commitState(state: RuleState): Promise<CommitResult> {
    const standing = this.#states.get(state.rule);
    if (JSON.stringify(standing) === JSON.stringify(state)) return "committed";
    if ((standing?.version ?? 0) !== state.version - 1) return "conflict";
    this.#states.set(state.rule, structuredClone(state));
    this.stateWrites += 1;
    return "committed";
  }

  async credentials(name: string): Promise<RuleCredential[]> {
    return this.#credentials.filter(({ rule }) => rule === name);
  }

  async addCredential(credential: RuleCredential): Promise<void> {
    if (!this.#credentials.some(({ id, rule }) => id === credential.id && rule === credential.rule))
      this.#credentials.push(credential);
  }

  async removeCredential(name: string, id: string): Promise<boolean> {
    const at = this.#credentials.findIndex((credential) => credential.id === id && credential.rule === name);
    if (at >= 0) this.#credentials.splice(at, 1);
    return at >= 0;
  }
}

export class MemoryDedup implements DedupStore {
  readonly #held = new Map<string, { untilMs: number; claim: string }>();
  readonly #clock: Clock;
  #claims = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  async first(key: string, untilMs: number): Promise<string | null> {
    if ((this.#held.get(key)?.untilMs ?? 0) > Date.parse(this.#clock.now())) return null;
    this.#claims += 1;
    const claim = `claim ${this.#claims}`;
    this.#held.set(key, { untilMs, claim });
    return claim;
  }

  async keep(key: string, untilMs: number): Promise<void> {
    this.#held.set(key, { untilMs, claim: "" });
  }

  async forget(key: string, claim: string): Promise<void> {
    if (this.#held.get(key)?.claim === claim) this.#held.delete(key);
  }
}
