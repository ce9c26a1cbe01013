/**
 * What the functions need of the world, as narrow as it is used. Adapters (store/, bundle/, socket/) implement them; fakes
 * in test/fake pass the same contract tests. Every write is a single-item conditional write; nothing here is a transaction.
 */
import type {
  Answer,
  DownMessage,
  HostFacts,
  InventoryDomain,
  OpenJournal,
  Progress,
  Query,
  UpMessage,
} from "#protocol/message";
import type { BundleTask } from "./core/bundle-task.ts";
import type { ChronicleEntry, ChronicleEvent } from "./core/chronicle-event.ts";
import type { EvacuationState, EvacuationSummary } from "./core/evacuation-state.ts";
import type { HostShutdown } from "./core/host-shutdown.ts";
import type { InventoryCount } from "./core/metric-inventory.ts";
import type { MetricRecord } from "./core/metric-totals.ts";
import type { RuleCredential, RuleRecord, RuleState } from "./core/rule-state.ts";
import type { MigrationState, StoredBlob } from "./core/state.ts";
import type { WebhookRecord } from "./core/webhook.ts";
import type { WebhookDelivery } from "./core/webhook-delivery.ts";

export interface Clock {
  /** RFC 3339 UTC with milliseconds. */
  now(): string;
}

export interface Ids {
  /** A ULID: 26 characters of Crockford base 32, time first. */
  ulid(): string;
  /** Random bytes as base64url. */
  secret(bytes: number): string;
}

/** `conflict`: somebody else wrote first; load again. */
export type CommitResult = "committed" | "conflict";

export type MigrationSummary = Pick<
  MigrationState,
  "id" | "domain" | "source" | "destination" | "status" | "step" | "createdAt" | "endedAt"
>;

export interface Page<T> {
  items: T[];
  cursor: string | null;
}

export interface MigrationStore {
  /** Writes a new item (version 1); `conflict` when the id exists. */
  create(state: MigrationState): Promise<CommitResult>;
  /** Strongly consistent. */
  load(id: string): Promise<MigrationState | null>;
  /** One conditional write: only over `version - 1` and an epoch not above the state's (I5). An ambiguous commit that was
   *  in fact our own (the same `version` and content stands there) counts as `committed`. */
  commit(state: MigrationState): Promise<CommitResult>;
  /** Newest first. */
  list(page: { limit: number; cursor: string | null; active: boolean }): Promise<Page<MigrationSummary>>;
  /** Immutable; written before the state that names it. Returns where it is. Writing the same again is no error. */
  putBlob(id: string, name: string, bytes: Uint8Array, sha256: string): Promise<StoredBlob>;
  /** The bytes of an item blob, digest checked; null when absent. */
  getBlob(id: string, blob: StoredBlob): Promise<Uint8Array | null>;

  /** Takes the lock of a domain for a migration; false when another one holds it. Taking it again is no error. */
  lockDomain(lock: { domainUuid: string; migrationId: string; source: string; destination: string }): Promise<boolean>;
  /** Who holds the lock of a domain; null when free. */
  domainLock(domainUuid: string): Promise<{ migrationId: string } | null>;
  /** Frees it if this migration holds it. */
  unlockDomain(domainUuid: string, migrationId: string): Promise<void>;
  /** Every lock held: the active migrations, for the timer. */
  activeMigrations(): Promise<{ migrationId: string; domainUuid: string; source: string; destination: string }[]>;

  /** Names the migration at these hosts so that hello and heartbeat find its pending commands. May be repeated. */
  point(hostIds: readonly string[], migrationId: string): Promise<void>;
  unpoint(hostIds: readonly string[], migrationId: string): Promise<void>;
  /** Strongly consistent: the migrations that a host takes part in. */
  migrationsOf(hostId: string): Promise<string[]>;

  /** Binds an idempotency key to a request once; returns what it is bound to (this request's values or an earlier one's). */
  bindKey(key: {
    owner: string;
    key: string;
    bodySha256: string;
    resource: string;
  }): Promise<{ bodySha256: string; resource: string }>;
}

export interface BundleTaskStore {
  create(task: BundleTask): Promise<CommitResult>;
  load(id: string): Promise<BundleTask | null>;
  /** One conditional write over `version - 1`. */
  commit(task: BundleTask): Promise<CommitResult>;
}

export interface EvacuationStore {
  /** Writes a new item (version 1); `conflict` when the id exists with another content. */
  create(state: EvacuationState): Promise<CommitResult>;
  /** Strongly consistent. */
  load(id: string): Promise<EvacuationState | null>;
  /** One conditional write over `version - 1`. An ambiguous commit that was in fact our own counts as `committed`. */
  commit(state: EvacuationState): Promise<CommitResult>;
  /** Newest first; `active`: those that have not ended. Eventually consistent. */
  list(page: { limit: number; cursor: string | null; active: boolean }): Promise<Page<EvacuationSummary>>;
  /** Makes it the one evacuation of this host unless another is; says which is, and since when it is asked for. Again changes nothing. */
  claim(hostId: string, evacuationId: string): Promise<{ evacuationId: string; at: string }>;
  /** Frees the host if it is this evacuation's. */
  unclaim(hostId: string, evacuationId: string): Promise<void>;
  /** Every host that an evacuation has; strongly consistent: by these the timer finds what is active. */
  claims(): Promise<{ hostId: string; evacuationId: string; at: string }[]>;
  /**
   * Takes the one turn in which an evacuation decides what to start; null while another holder has it. `again`: nobody else has had it since this holder's
   * last one, also where that was ended or has lapsed. Ends by itself after `lifeMs`.
   */
  takeTurn(holder: string, lifeMs: number): Promise<"first" | "again" | null>;
  endTurn(holder: string): Promise<void>;
}

export interface RuleStore {
  /** The current version, also of a rule that was deleted; null: there never was one. Strongly consistent. */
  load(name: string): Promise<RuleRecord | null>;
  /** Makes a version the current one, if the one before it is (`version - 1`); the version itself is kept for good. */
  commit(record: RuleRecord): Promise<CommitResult>;
  /** Current versions, deleted rules among them, by name. */
  list(): Promise<RuleRecord[]>;
  /** Every version that ever was current, newest first. */
  versions(name: string): Promise<RuleRecord[]>;

  /** How its runs stand; null: nothing ever happened. */
  state(name: string): Promise<RuleState | null>;
  states(): Promise<RuleState[]>;
  /** One conditional write over `version - 1`; 1 is the first. */
  commitState(state: RuleState): Promise<CommitResult>;

  credentials(name: string): Promise<RuleCredential[]>;
  addCredential(credential: RuleCredential): Promise<void>;
  removeCredential(name: string, id: string): Promise<boolean>;
}

/** Outgoing webhooks and how their deliveries stand. Strongly consistent. Each write is one conditional write over `version - 1`; 1 is the first. */
export interface WebhookStore {
  load(name: string): Promise<WebhookRecord | null>;
  /** By name. */
  list(): Promise<WebhookRecord[]>;
  commit(record: WebhookRecord): Promise<CommitResult>;
  /** Only this version of it. One that is gone already is removed. */
  remove(record: WebhookRecord): Promise<CommitResult>;

  /** Of a webhook's id; null: nothing was delivered yet. */
  delivery(webhookId: string): Promise<WebhookDelivery | null>;
  deliveries(): Promise<WebhookDelivery[]>;
  commitDelivery(delivery: WebhookDelivery): Promise<CommitResult>;
  /** Whatever its version: for a webhook that is gone. */
  removeDelivery(webhookId: string): Promise<void>;
}

/** What was heard before. A claim that is past its time is as none. */
export interface DedupStore {
  /** For the first who claims this key its claim; null: another has it. It is held until `untilMs` (Unix time). */
  first(key: string, untilMs: number): Promise<string | null>;
  /** Holds a key until `untilMs`, whoever claimed it. */
  keep(key: string, untilMs: number): Promise<void>;
  /** Lets go of one's own claim: what it stood for did not happen. Another's, and what is kept, stays. */
  forget(key: string, claim: string): Promise<void>;
}

/** What hosts say of being shut down, for as long as it matters. Once withdrawn stays withdrawn, in whatever order the two are heard. */
export interface ShutdownStore {
  /** All that stands for its host then; null: not kept, its host has said too many lately. */
  keep(shutdown: HostShutdown): Promise<HostShutdown[] | null>;
  list(): Promise<HostShutdown[]>;
  /** Its shim has begun anew: what was not withdrawn stands from now on only if it is said again. */
  doubt(hostId: string, at: string): Promise<void>;
  forget(shutdown: Pick<HostShutdown, "hostId" | "requestId">): Promise<void>;
}

/**
 * What happened, written down once each, kept for over a year, read in the order in which it was written down. Readers are eventually consistent and writers'
 * clocks differ a little: what is younger than `chronicleSettleMs` may still be joined by something older.
 */
export interface Chronicle {
  /** Writes it down unless an event of that id stands there; true: it is new. Throws `Fault` `store.unreachable`. */
  append(event: ChronicleEvent): Promise<boolean>;
  /** One line by the event's id; null: it is not written down. Strongly consistent. */
  find(id: string): Promise<ChronicleEntry | null>;
  /** Oldest first, after `at` (null: from the beginning), up to and without `until` (null: to the newest). */
  after(page: { at: string | null; until: string | null; limit: number }): Promise<ChronicleEntry[]>;
  /** Newest first, before `at` (null: from the newest). */
  before(page: { at: string | null; limit: number }): Promise<ChronicleEntry[]>;
}

/** What `/metrics` keeps: totals of the chronicle, and what would be too dear to find out at each scrape. */
export interface MetricStore {
  /** All of it in one request, strongly consistent: what was committed before is in it. */
  load(): Promise<MetricsKept>;
  /** One conditional write over `version - 1`; 1 is the first. The same again is our own. */
  commit(record: MetricRecord): Promise<CommitResult>;
  putInventory(count: InventoryCount): Promise<void>;
  /** These tasks of the timer have done their work, at this time. */
  succeeded(tasks: readonly string[], at: string): Promise<void>;
}

export interface MetricsKept {
  /** Null: nothing was ever counted. */
  record: MetricRecord | null;
  /** Null: the inventories were never counted. */
  inventory: InventoryCount | null;
  /** When each of the timer's tasks has done its work last. */
  tasks: Record<string, string>;
}

export interface HostRecord {
  id: string;
  name: string;
  /** Ed25519 public key, raw 32 bytes, base64url. */
  publicKey: string;
  cordoned: boolean;
  enrolledAt: string;
  /** From the last hello or heartbeat. */
  lastSeenAt: string | null;
  protocol: number | null;
  features: string[];
  facts: HostFacts | null;
  /** The journals that its shim said are open there, and when; absent: it never said (an older shim). */
  openJournals?: { at: string; journals: OpenJournal[] } | undefined;
  /** Somebody has asked this host to shut down, and until then it surely runs, after which it shuts down; absent: nobody has, or it was taken back. */
  shuttingUntil?: string | undefined;
}

export interface PlacedDomain extends InventoryDomain {
  hostId: string;
}

export interface HostStore {
  /** `conflict`: a host of that name exists. */
  create(host: HostRecord): Promise<CommitResult>;
  byId(id: string): Promise<HostRecord | null>;
  byName(name: string): Promise<HostRecord | null>;
  list(): Promise<HostRecord[]>;
  /** What a session says of its host; null when the host was removed. */
  seen(
    id: string,
    seen: {
      at: string;
      protocol?: number;
      features?: string[];
      facts?: HostFacts;
      openJournals?: OpenJournal[];
      /** Null: not any more. */
      shuttingUntil?: string | null;
    },
  ): Promise<void>;
  setCordoned(id: string, cordoned: boolean): Promise<boolean>;
  remove(id: string): Promise<boolean>;

  /** Replaces (`full`) or changes what is known of a host's domains; writes only what differs. */
  putInventory(hostId: string, change: { full: boolean; domains: InventoryDomain[]; gone: string[] }): Promise<void>;
  domainsOf(hostId: string): Promise<PlacedDomain[]>;
  /** By name or UUID over the fleet, eventually consistent: for finding a candidate, never for a decision. */
  findDomains(nameOrUuid: string): Promise<PlacedDomain[]>;
}

export interface TokenRecord {
  id: string;
  kind: "join" | "api";
  /** SHA-256 of the secret, hex: the secret itself is never stored (I9). */
  secretSha256: string;
  name: string | null;
  createdAt: string;
  expiresAt: string;
  /** Remaining uses; null: unlimited (API tokens). */
  usesLeft: number | null;
}

export interface TokenStore {
  create(token: TokenRecord): Promise<void>;
  byId(id: string): Promise<TokenRecord | null>;
  list(kind: TokenRecord["kind"]): Promise<TokenRecord[]>;
  remove(id: string): Promise<boolean>;
  /** Takes one use of a join token by a conditional write; false when none is left or it is gone or expired at `at`. */
  use(id: string, at: string): Promise<boolean>;
}

export interface Grant {
  method: "GET" | "PUT";
  url: string;
  headers: Record<string, string>;
  key: string;
  present: boolean;
}

/** Presigned access to the bucket. `publicUrl` is the address under which the asking shim reaches us, for local storage behind our own port. */
export interface BundleStore {
  grantPut(want: { purpose: "bundle" | "cookie"; sha256: string; bytes: number; publicUrl: string }): Promise<Grant>;
  grantGet(want: { key: string; publicUrl: string }): Promise<Grant>;
  /** Size in the bucket; null when absent. Used before a key is named in a state (I3). */
  head(key: string): Promise<{ bytes: number } | null>;
  remove(key: string): Promise<void>;
}

/** Delivery to shims. Pushes are best effort: what must arrive is redelivered on hello and heartbeat. */
export interface HostSockets {
  /** True when a socket took it. */
  push(hostId: string, message: DownMessage): Promise<boolean>;
  /** Asks and waits; null is no answer (offline or too late), which is no statement about anything (I2). */
  query(hostId: string, query: Query, waitMs: number): Promise<Answer | null>;
  /** The newest progress of a migration that passed through the host's socket; null when none. */
  progress(hostId: string, migrationId: string): Promise<Progress | null>;
  /** Closes a host's socket (removed or re-enrolled). */
  drop(hostId: string, cause: string): Promise<void>;
}

/** A shim's connection at a carrier that keeps nothing for us but an address (API Gateway): who is at its other end. */
export interface Link {
  connectionId: string;
  hostId: string;
  /** The key that proved itself when it was opened: a host that has another one now has no power over it. */
  publicKey: string;
  /** Of the connect proof; the hello signs it once more. */
  nonce: string;
  /** Null until the hello. */
  session: string | null;
  /** Unix time at the carrier: which of two connections of a host is the newer. */
  openedAtMs: number;
  /** Unix time after which the carrier has cut it for certain. */
  expiresAtMs: number;
}

/** What functions that keep nothing in memory must share about the sockets of hosts. All reads are strongly consistent; what is
 *  past its time counts as absent, whether it was swept or not. */
export interface LinkStore {
  /** True once for each nonce of a host; the same connection asking again (a retried write) is no second use. */
  useNonce(use: { hostId: string; nonce: string; connectionId: string; untilMs: number }): Promise<boolean>;

  open(link: Link): Promise<void>;
  byConnection(connectionId: string): Promise<Link | null>;
  /** Every connection of a host that is known, proved or not. */
  of(hostId: string): Promise<Link[]>;
  /** The hello was heard; false when the connection is gone meanwhile. */
  prove(connectionId: string, session: string): Promise<boolean>;
  /** Makes this connection the one that its host is reached by; false when a newer one is that already. */
  bind(link: Pick<Link, "connectionId" | "hostId" | "openedAtMs" | "expiresAtMs">): Promise<boolean>;
  /** The connection that a host is reached by. */
  current(hostId: string): Promise<string | null>;
  /** Forgets this connection and no other; a host reached by it is away then. Again, or late, it changes nothing. */
  close(link: Pick<Link, "connectionId" | "hostId">): Promise<void>;

  /** Opens a question to a host. */
  ask(question: { hostId: string; queryId: string; untilMs: number }): Promise<void>;
  /** Only to an open question of that same host, and only once; false otherwise. */
  answer(hostId: string, queryId: string, answer: Answer): Promise<boolean>;
  /** Null: none yet. */
  answerTo(hostId: string, queryId: string): Promise<Answer | null>;
  withdraw(hostId: string, queryId: string): Promise<void>;

  /** Keeps the newest by `atMs`, the carrier's time of the message; within one millisecond, by its own count. */
  putProgress(hostId: string, migrationId: string, progress: Progress, atMs: number): Promise<void>;
  progress(hostId: string, migrationId: string): Promise<Progress | null>;

  /** Keeps a part of a complete list; the whole list (`atMs`: of its newest part) for whoever brings the last missing part, null for the others. */
  collect(hostId: string, part: Inventory, atMs: number): Promise<{ list: Inventory; atMs: number } | null>;
  /**
   * Asks leave to store what a host said of its domains at `atMs`, since messages overtake each other: `except` names the domains (`all`: the whole
   * message) of which something newer was said. `disordered`: a complete list is older than changes that were stored, so it must be said anew.
   */
  orderInventory(
    hostId: string,
    said: { atMs: number; full: boolean; uuids: readonly string[] },
  ): Promise<{ except: readonly string[] | "all" } | "disordered">;
  /** Whether a change was given leave that was said after `atMs`; asked when a complete list is stored, for leave is not the writing itself. */
  changedSince(hostId: string, atMs: number): Promise<boolean>;
}
export type Inventory = Extract<UpMessage, { type: "inventory" }>;

/** Tells consoles and watchers that something changed. What is lost they read from the store. */
export interface Feed {
  publish(topic: string, event: FeedEvent): Promise<void>;
  /** Ends when `signal` aborts. */
  subscribe(topic: string, signal: AbortSignal): AsyncIterable<FeedEvent>;
}
export type FeedEvent =
  /** `state` is the one that was just committed, so that no watcher has to load it: a request less for each and each step. */
  { type: "changed"; version: number; state?: MigrationState | undefined } | { type: "progress"; progress: Progress };

/** The control key (functions/ticket-signer.ts). */
export interface TicketSigner {
  /** Ed25519, raw 32 bytes, base64url. */
  publicKey(): Promise<string>;
  /** Over the UTF-8 bytes of the text, base64url. */
  sign(text: string): Promise<string>;
}

/** How often hosts say that they live, and after how much silence they count as offline: about three and a half times that. */
export interface Pace {
  heartbeatMs: number;
  offlineAfterMs: number;
}

/** Three heartbeats and a bit. */
export const paceOf = (heartbeatMs: number): Pace => ({ heartbeatMs, offlineAfterMs: Math.round(heartbeatMs * 3.5) });

export interface Log {
  /** One JSON line; never a secret, an XML or a cookie (I9). */
  write(level: "debug" | "info" | "warn" | "error", message: string, fields?: Record<string, unknown>): void;
}

export interface Ports {
  clock: Clock;
  ids: Ids;
  migrations: MigrationStore;
  tasks: BundleTaskStore;
  evacuations: EvacuationStore;
  chronicle: Chronicle;
  shutdowns: ShutdownStore;
  hosts: HostStore;
  tokens: TokenStore;
  bundles: BundleStore;
  sockets: HostSockets;
  feed: Feed;
  tickets: TicketSigner;
  pace: Pace;
  log: Log;
}
