/**
 * Migrations in DynamoDB: the one item that holds a migration's whole state, its immutable payloads, the locks of domains,
 * the pointers at hosts and the idempotency keys. Each call is one request on its normal path; after a refused condition
 * the item is read again, because the refusal may have been caused by our own earlier attempt whose answer was lost.
 * Upholds I5: `version` rises by one, `epoch` never falls.
 */
import * as z from "zod/mini";
import { type MigrationState, migrationStateSchema, type StoredBlob } from "#core/state";
import { Fault } from "#protocol/fault";
import type { Clock, CommitResult, MigrationStore, MigrationSummary, Page } from "../ports.ts";
import { type Condition, type DynamoTable, type Item, itemDoesNotExist } from "./dynamo-table.ts";
import { sha256Hex } from "./sha256.ts";
import { bodyText, jsonOf, textOf } from "./stored-item.ts";

/** An item blob: what a shim sends inline is at most 24 KiB; anything near DynamoDB's 400 KB belongs into the bucket. */
export const blobBytesMax = 350 * 1024;
/** How long an idempotency key binds: a day covers every retry of a script, and keys do not pile up. */
const keyMsLife = 24 * 60 * 60_000;

const summarySchema = z.pick(migrationStateSchema, {
  id: true,
  domain: true,
  source: true,
  destination: true,
  status: true,
  step: true,
  createdAt: true,
  endedAt: true,
});

const stateKey = (id: string) => ({ pk: `MIG#${id}`, sk: "STATE" });
const lockKey = (domainUuid: string) => ({ pk: "ACTIVE", sk: domainUuid });
const pointerKey = (hostId: string, migrationId: string) => ({ pk: `HOST#${hostId}`, sk: `MIG#${migrationId}` });
const key = ({ pk, sk }: { pk: string; sk: string }): Item => ({ pk: { S: pk }, sk: { S: sk } });

const isOneVersionAhead = (state: MigrationState): Condition => ({
  expression: "#version = :previous AND #epoch <= :epoch",
  names: { "#version": "version", "#epoch": "epoch" },
  values: { ":previous": { N: String(state.version - 1) }, ":epoch": { N: String(state.epoch) } },
});
const isFreeOrOurs = (migrationId: string): Condition => ({
  expression: "attribute_not_exists(pk) OR migrationId = :migrationId",
  values: { ":migrationId": { S: migrationId } },
});
const isOurs = (migrationId: string): Condition => ({
  expression: "migrationId = :migrationId",
  values: { ":migrationId": { S: migrationId } },
});
const isUnboundOrExpired = (nowMs: number): Condition => ({
  expression: "attribute_not_exists(pk) OR expiresAtMs < :now",
  values: { ":now": { N: String(nowMs) } },
});

export class DynamoMigrations implements MigrationStore {
  readonly #table: DynamoTable;
  readonly #clock: Clock;

  constructor(table: DynamoTable, clock: Clock) {
    this.#table = table;
    this.#clock = clock;
  }

  create(state: MigrationState): Promise<CommitResult> {
    return this.#write(state, itemDoesNotExist);
  }

  commit(state: MigrationState): Promise<CommitResult> {
    return this.#write(state, isOneVersionAhead(state));
  }

  async #write(state: MigrationState, condition: Condition): Promise<CommitResult> {
    const what = `migration ${state.id}`;
    const body = bodyText(what, state);
    // A stranded migration is terminal only until a person acts: it stays in the list of those that need one.
    const active = state.status === "running" || state.status === "stranded";
    const item: Item = {
      ...key(stateKey(state.id)),
      version: { N: String(state.version) },
      epoch: { N: String(state.epoch) },
      body: { S: body },
      row: { S: JSON.stringify(summaryOf(state)) },
      newestOf: { S: "MIGRATIONS" },
      newestSort: { S: state.id },
      ...(active ? { activeOf: { S: "MIGRATIONS" } } : {}),
    };
    if ((await this.#table.put(what, item, condition)) === "written") return "committed";
    const standing = await this.#table.get(what, stateKey(state.id));
    return standing?.body?.S === body ? "committed" : "conflict";
  }

  async load(id: string): Promise<MigrationState | null> {
    const what = `migration ${id}`;
    const item = await this.#table.get(what, stateKey(id));
    return item === null ? null : jsonOf(what, migrationStateSchema, item, "body");
  }

  async list(page: { limit: number; cursor: string | null; active: boolean }): Promise<Page<MigrationSummary>> {
    const what = "the list of migrations";
    const items = await this.#table.index(
      what,
      { name: page.active ? "active" : "newest", hash: "MIGRATIONS" },
      { limit: page.limit, before: page.cursor },
    );
    const rows = items.map((item) => jsonOf(what, summarySchema, item, "row"));
    // The cursor is the last id shown: ids sort by time, so a page never depends on what was deleted meanwhile.
    return { items: rows, cursor: rows.length < page.limit ? null : (rows.at(-1)?.id ?? null) };
  }

  async putBlob(id: string, name: string, bytes: Uint8Array, sha256: string): Promise<StoredBlob> {
    const what = `payload ${name} of migration ${id}`;
    if (bytes.byteLength > blobBytesMax)
      throw new Fault({
        code: "cookie.tooLarge",
        cause: `The ${what} has ${bytes.byteLength} bytes; an item holds ${blobBytesMax}.`,
        action: "Payloads above 24 KiB go to the bucket; this is a defect of the sender.",
        retry: "never",
      });
    await checkDigest(what, bytes, sha256);
    const sk = `BLOB#${name}#${sha256}`;
    const item: Item = { ...key({ pk: `MIG#${id}`, sk }), bytes: { B: bytes } };
    // Refused means it is there already, under a key that holds its digest: the same bytes.
    await this.#table.put(what, item, itemDoesNotExist);
    return { in: "item", key: sk, sha256, bytes: bytes.byteLength };
  }

  async getBlob(id: string, blob: StoredBlob): Promise<Uint8Array | null> {
    if (blob.in !== "item") return null;
    const what = `payload ${blob.key} of migration ${id}`;
    const item = await this.#table.get(what, { pk: `MIG#${id}`, sk: blob.key });
    const bytes = item?.bytes?.B;
    if (bytes === undefined) return null;
    await checkDigest(what, bytes, blob.sha256);
    return bytes;
  }

  async lockDomain(lock: {
    domainUuid: string;
    migrationId: string;
    source: string;
    destination: string;
  }): Promise<boolean> {
    const item: Item = {
      ...key(lockKey(lock.domainUuid)),
      migrationId: { S: lock.migrationId },
      source: { S: lock.source },
      destination: { S: lock.destination },
    };
    const what = `the lock of domain ${lock.domainUuid}`;
    return (await this.#table.put(what, item, isFreeOrOurs(lock.migrationId))) === "written";
  }

  async domainLock(domainUuid: string): Promise<{ migrationId: string } | null> {
    const what = `the lock of domain ${domainUuid}`;
    const item = await this.#table.get(what, lockKey(domainUuid));
    return item === null ? null : { migrationId: textOf(what, item, "migrationId") };
  }

  async unlockDomain(domainUuid: string, migrationId: string): Promise<void> {
    // Refused: another migration holds it, or nobody does; both mean that it is not ours any more.
    await this.#table.delete(`the lock of domain ${domainUuid}`, lockKey(domainUuid), isOurs(migrationId));
  }

  async activeMigrations(): Promise<
    { migrationId: string; domainUuid: string; source: string; destination: string }[]
  > {
    const what = "the list of locks";
    const items = await this.#table.partition(what, "ACTIVE", "");
    return items.map((item) => ({
      migrationId: textOf(what, item, "migrationId"),
      domainUuid: textOf(what, item, "sk"),
      source: textOf(what, item, "source"),
      destination: textOf(what, item, "destination"),
    }));
  }

  async point(hostIds: readonly string[], migrationId: string): Promise<void> {
    const pointers = hostIds.map((hostId) => key(pointerKey(hostId, migrationId)));
    await this.#table.writeAll(`the pointers to ${migrationId}`, pointers, []);
  }

  async unpoint(hostIds: readonly string[], migrationId: string): Promise<void> {
    const pointers = hostIds.map((hostId) => pointerKey(hostId, migrationId));
    await this.#table.writeAll(`the pointers to ${migrationId}`, [], pointers);
  }

  async migrationsOf(hostId: string): Promise<string[]> {
    const what = `the migrations of host ${hostId}`;
    const items = await this.#table.partition(what, `HOST#${hostId}`, "MIG#");
    return items.map((item) => textOf(what, item, "sk").slice("MIG#".length));
  }

  async bindKey(want: {
    owner: string;
    key: string;
    bodySha256: string;
    resource: string;
  }): Promise<{ bodySha256: string; resource: string }> {
    const what = "an idempotency key";
    // Hashed: a key of any length and content fits, and what a client put into it is not kept.
    const at = { pk: `KEY#${await sha256Hex(JSON.stringify([want.owner, want.key]))}`, sk: "KEY" };
    const nowMs = Date.parse(this.#clock.now());
    const item: Item = {
      ...key(at),
      bodySha256: { S: want.bodySha256 },
      resource: { S: want.resource },
      expiresAtMs: { N: String(nowMs + keyMsLife) },
      // Only a broom (DynamoDB's TTL, in seconds): the condition above decides what has expired.
      expiresAtSeconds: { N: String(Math.ceil((nowMs + keyMsLife) / 1000)) },
    };
    if ((await this.#table.put(what, item, isUnboundOrExpired(nowMs))) === "written")
      return { bodySha256: want.bodySha256, resource: want.resource };
    const bound = await this.#table.get(what, at);
    if (bound === null)
      throw new Fault({
        code: "store.unreachable",
        cause: "An idempotency key expired between two reads.",
        action: "Send the request again.",
        retry: "safe",
      });
    return { bodySha256: textOf(what, bound, "bodySha256"), resource: textOf(what, bound, "resource") };
  }
}

const summaryOf = ({ id, domain, source, destination, status, step, createdAt, endedAt }: MigrationState) =>
  ({ id, domain, source, destination, status, step, createdAt, endedAt }) satisfies MigrationSummary;

async function checkDigest(what: string, bytes: Uint8Array, sha256: string): Promise<void> {
  const found = await sha256Hex(bytes);
  if (found === sha256) return;
  throw new Fault({
    code: "cookie.altered",
    cause: `The ${what} has the SHA-256 ${found}, but ${sha256} was announced.`,
    action: "It was altered on its way; the step is repeated or rolled back.",
    retry: "safe",
  });
}
