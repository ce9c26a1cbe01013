/**
 * The stores in memory, for the simulation and for tests of what stands on them. They pass the same contract cases as
 * DynamoDB (test/contract/store.test.ts). Values are copied in and out: a fake that shares objects hides lost updates.
 */
import { createHash } from "node:crypto";
import type { BundleTask } from "#core/bundle-task";
import { type EvacuationState, type EvacuationSummary, evacuationSummary } from "#core/evacuation-state";
import type { MigrationState, StoredBlob } from "#core/state";
import type {
  BundleTaskStore,
  Clock,
  CommitResult,
  EvacuationStore,
  HostRecord,
  HostStore,
  MigrationStore,
  MigrationSummary,
  Page,
  PlacedDomain,
  TokenRecord,
  TokenStore,
} from "#functions/ports";
import { Fault } from "#protocol/fault";
import type { InventoryDomain } from "#protocol/message";

const keyMsLife = 24 * 60 * 60_000;
const copy = <T>(value: T): T => structuredClone(value);
const same = (left: unknown, right: unknown) => JSON.stringify(left) === JSON.stringify(right);

export class MemoryMigrations implements MigrationStore {
  readonly #clock: Clock;
  readonly #states = new Map<string, MigrationState>();
  readonly #blobs = new Map<string, Uint8Array>();
  readonly #locks = new Map<string, { migrationId: string; source: string; destination: string }>();
  readonly #pointers = new Map<string, Set<string>>();
  readonly #keys = new Map<string, { bodySha256: string; resource: string; expiresAtMs: number }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  async create(state: MigrationState): Promise<CommitResult> {
    return this.#write(state, this.#states.get(state.id) === undefined);
  }

  async commit(state: MigrationState): Promise<CommitResult> {
    const standing = this.#states.get(state.id);
    const holds = standing !== undefined && standing.version === state.version - 1 && standing.epoch <= state.epoch;
    return this.#write(state, holds);
  }

  #write(state: MigrationState, holds: boolean): CommitResult {
    if (JSON.stringify(state).length > 390_000)
      throw new Fault({
        code: "message.tooLarge",
        cause: `migration ${state.id} has grown too large.`,
        action: "Nothing was written.",
        retry: "never",
      });
    if (!holds) return same(this.#states.get(state.id), state) ? "committed" : "conflict";
    this.#states.set(state.id, copy(state));
    return "committed";
  }

  async load(id: string): Promise<MigrationState | null> {
    return copy(this.#states.get(id) ?? null);
  }

  async list(page: { limit: number; cursor: string | null; active: boolean }): Promise<Page<MigrationSummary>> {
    const { cursor } = page;
    const rows = [...this.#states.values()]
      .filter((state) => !page.active || state.status === "running" || state.status === "stranded")
      .filter((state) => cursor === null || state.id < cursor)
      .sort((left, right) => (left.id < right.id ? 1 : -1))
      .slice(0, page.limit)
      .map(({ id, domain, source, destination, status, step, createdAt, endedAt }) =>
        copy({ id, domain, source, destination, status, step, createdAt, endedAt }),
      );
    return { items: rows, cursor: rows.length < page.limit ? null : (rows.at(-1)?.id ?? null) };
  }

  async putBlob(id: string, name: string, bytes: Uint8Array, sha256: string): Promise<StoredBlob> {
    checkDigest(bytes, sha256);
    const key = `BLOB#${name}#${sha256}`;
    if (!this.#blobs.has(`${id} ${key}`)) this.#blobs.set(`${id} ${key}`, Uint8Array.from(bytes));
    return { in: "item", key, sha256, bytes: bytes.byteLength };
  }

  async getBlob(id: string, blob: StoredBlob): Promise<Uint8Array | null> {
    const bytes = this.#blobs.get(`${id} ${blob.key}`);
    if (blob.in !== "item" || bytes === undefined) return null;
    checkDigest(bytes, blob.sha256);
    return Uint8Array.from(bytes);
  }

  async lockDomain(lock: {
    domainUuid: string;
    migrationId: string;
    source: string;
    destination: string;
  }): Promise<boolean> {
    const { domainUuid, ...held } = lock;
    const holder = this.#locks.get(domainUuid);
    if (holder !== undefined && holder.migrationId !== lock.migrationId) return false;
    this.#locks.set(domainUuid, held);
    return true;
  }

  async domainLock(domainUuid: string): Promise<{ migrationId: string } | null> {
    const held = this.#locks.get(domainUuid);
    return held === undefined ? null : { migrationId: held.migrationId };
  }

  async unlockDomain(domainUuid: string, migrationId: string): Promise<void> {
    if (this.#locks.get(domainUuid)?.migrationId === migrationId) this.#locks.delete(domainUuid);
  }

  async activeMigrations() {
    return [...this.#locks].map(([domainUuid, held]) => ({ domainUuid, ...held }));
  }

  async point(hostIds: readonly string[], migrationId: string): Promise<void> {
    for (const hostId of hostIds) {
      const pointers = this.#pointers.get(hostId) ?? new Set<string>();
      this.#pointers.set(hostId, pointers.add(migrationId));
    }
  }

  async unpoint(hostIds: readonly string[], migrationId: string): Promise<void> {
    for (const hostId of hostIds) this.#pointers.get(hostId)?.delete(migrationId);
  }

  async migrationsOf(hostId: string): Promise<string[]> {
    return [...(this.#pointers.get(hostId) ?? [])].sort();
  }

  async bindKey(want: { owner: string; key: string; bodySha256: string; resource: string }) {
    const at = JSON.stringify([want.owner, want.key]);
    const nowMs = Date.parse(this.#clock.now());
    const bound = this.#keys.get(at);
    if (bound !== undefined && bound.expiresAtMs >= nowMs)
      return { bodySha256: bound.bodySha256, resource: bound.resource };
    const { bodySha256, resource } = want;
    this.#keys.set(at, { bodySha256, resource, expiresAtMs: nowMs + keyMsLife });
    return { bodySha256, resource };
  }
}

/** At once and not by WebCrypto: a simulated run waits for nothing but its own queue. */
function checkDigest(bytes: Uint8Array, sha256: string): void {
  if (createHash("sha256").update(bytes).digest("hex") === sha256) return;
  throw new Fault({ code: "cookie.altered", cause: "The digest differs.", action: "Send it again.", retry: "safe" });
}

export class MemoryBundleTasks implements BundleTaskStore {
  readonly #tasks = new Map<string, BundleTask>();

  async create(task: BundleTask): Promise<CommitResult> {
    return this.#write(task, !this.#tasks.has(task.id));
  }

  async commit(task: BundleTask): Promise<CommitResult> {
    return this.#write(task, this.#tasks.get(task.id)?.version === task.version - 1);
  }

  #write(task: BundleTask, holds: boolean): CommitResult {
    if (!holds) return same(this.#tasks.get(task.id), task) ? "committed" : "conflict";
    this.#tasks.set(task.id, copy(task));
    return "committed";
  }

  async load(id: string): Promise<BundleTask | null> {
    return copy(this.#tasks.get(id) ?? null);
  }
}

export class MemoryEvacuations implements EvacuationStore {
  readonly #clock: Clock;
  readonly #states = new Map<string, EvacuationState>();
  readonly #claims = new Map<string, { evacuationId: string; at: string }>();
  #turn: { holder: string; expiresAtMs: number } | null = null;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  async create(state: EvacuationState): Promise<CommitResult> {
    return this.#write(state, !this.#states.has(state.id));
  }

  async commit(state: EvacuationState): Promise<CommitResult> {
    return this.#write(state, this.#states.get(state.id)?.version === state.version - 1);
  }

  #write(state: EvacuationState, holds: boolean): CommitResult {
    if (!holds) return same(this.#states.get(state.id), state) ? "committed" : "conflict";
    this.#states.set(state.id, copy(state));
    return "committed";
  }

  async load(id: string): Promise<EvacuationState | null> {
    return copy(this.#states.get(id) ?? null);
  }

  async list(page: { limit: number; cursor: string | null; active: boolean }): Promise<Page<EvacuationSummary>> {
    const { cursor } = page;
    const items = [...this.#states.values()]
      .filter(({ endedAt }) => !page.active || endedAt === null)
      .filter(({ id }) => cursor === null || id < cursor)
      .sort((left, right) => (left.id < right.id ? 1 : -1))
      .slice(0, page.limit)
      .map((state) => copy(evacuationSummary(state)));
    return { items, cursor: items.length < page.limit ? null : (items.at(-1)?.id ?? null) };
  }

  async claim(hostId: string, evacuationId: string): Promise<{ evacuationId: string; at: string }> {
    const standing = this.#claims.get(hostId) ?? { evacuationId, at: this.#clock.now() };
    this.#claims.set(hostId, standing);
    return { ...standing };
  }

  async unclaim(hostId: string, evacuationId: string): Promise<void> {
    if (this.#claims.get(hostId)?.evacuationId === evacuationId) this.#claims.delete(hostId);
  }

  async claims() {
    return [...this.#claims].map(([hostId, claim]) => ({ hostId, ...claim }));
  }

  async takeTurn(holder: string, lifeMs: number): Promise<"first" | "again" | null> {
    const nowMs = Date.parse(this.#clock.now());
    const isMine = this.#turn?.holder === holder;
    if (this.#turn !== null && !isMine && this.#turn.expiresAtMs >= nowMs) return null;
    this.#turn = { holder, expiresAtMs: nowMs + lifeMs };
    return isMine ? "again" : "first";
  }

  async endTurn(holder: string): Promise<void> {
    if (this.#turn?.holder === holder) this.#turn = { holder, expiresAtMs: 0 };
  }
}

export class MemoryHosts implements HostStore {
  readonly #hosts = new Map<string, HostRecord>();
  readonly #domains = new Map<string, Map<string, InventoryDomain>>();

  async create(host: HostRecord): Promise<CommitResult> {
    const standing = (await this.byName(host.name)) ?? this.#hosts.get(host.id);
    if (standing !== undefined && standing !== null)
      return standing.id === host.id && standing.publicKey === host.publicKey ? "committed" : "conflict";
    this.#hosts.set(host.id, copy(host));
    return "committed";
  }

  async byId(id: string): Promise<HostRecord | null> {
    return copy(this.#hosts.get(id) ?? null);
  }

  async byName(name: string): Promise<HostRecord | null> {
    return copy([...this.#hosts.values()].find((host) => host.name === name) ?? null);
  }

  async list(): Promise<HostRecord[]> {
    return [...this.#hosts.values()].sort((left, right) => (left.id < right.id ? -1 : 1)).map(copy);
  }

  async seen(id: string, seen: Parameters<HostStore["seen"]>[1]): Promise<void> {
    const host = this.#hosts.get(id);
    if (host === undefined) return;
    host.lastSeenAt = seen.at;
    if (seen.protocol !== undefined) host.protocol = seen.protocol;
    if (seen.features !== undefined) host.features = copy(seen.features);
    if (seen.facts !== undefined) host.facts = copy(seen.facts);
    if (seen.shuttingUntil === null) delete host.shuttingUntil;
    else if (seen.shuttingUntil !== undefined) host.shuttingUntil = seen.shuttingUntil;
    if (seen.openJournals !== undefined) host.openJournals = { at: seen.at, journals: copy(seen.openJournals) };
  }

  async setCordoned(id: string, cordoned: boolean): Promise<boolean> {
    const host = this.#hosts.get(id);
    if (host === undefined) return false;
    host.cordoned = cordoned;
    return true;
  }

  async remove(id: string): Promise<boolean> {
    this.#domains.delete(id);
    return this.#hosts.delete(id);
  }

  async putInventory(
    hostId: string,
    change: { full: boolean; domains: InventoryDomain[]; gone: string[] },
  ): Promise<void> {
    const domains = change.full ? new Map<string, InventoryDomain>() : (this.#domains.get(hostId) ?? new Map());
    for (const domain of change.domains) domains.set(domain.uuid, copy(domain));
    if (!change.full) for (const uuid of change.gone) domains.delete(uuid);
    this.#domains.set(hostId, domains);
  }

  async domainsOf(hostId: string): Promise<PlacedDomain[]> {
    const domains = [...(this.#domains.get(hostId)?.values() ?? [])];
    return domains.sort((left, right) => (left.uuid < right.uuid ? -1 : 1)).map((one) => ({ ...copy(one), hostId }));
  }

  async findDomains(nameOrUuid: string): Promise<PlacedDomain[]> {
    const all = await Promise.all([...this.#domains.keys()].map((hostId) => this.domainsOf(hostId)));
    return all.flat().filter((one) => one.name === nameOrUuid || one.uuid === nameOrUuid.toLowerCase());
  }
}

export class MemoryTokens implements TokenStore {
  readonly #tokens = new Map<string, TokenRecord>();

  async create(token: TokenRecord): Promise<void> {
    if (!this.#tokens.has(token.id)) this.#tokens.set(token.id, copy(token));
  }

  async byId(id: string): Promise<TokenRecord | null> {
    return copy(this.#tokens.get(id) ?? null);
  }

  async list(kind: TokenRecord["kind"]): Promise<TokenRecord[]> {
    return [...this.#tokens.values()].filter((token) => token.kind === kind).map(copy);
  }

  async remove(id: string): Promise<boolean> {
    return this.#tokens.delete(id);
  }

  async use(id: string, at: string): Promise<boolean> {
    const token = this.#tokens.get(id);
    if (token === undefined || token.usesLeft === null || token.usesLeft <= 0 || token.expiresAt <= at) return false;
    token.usesLeft -= 1;
    return true;
  }
}
