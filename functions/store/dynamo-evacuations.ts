/**
 * Evacuations in DynamoDB: one item each, written over the version before (I5), and the one lease under which evacuations start migrations: by
 * turns, so that two of them never count the same room or the same limit at once.
 */
import {
  type EvacuationState,
  type EvacuationSummary,
  evacuationStateSchema,
  evacuationSummary,
  evacuationSummarySchema,
} from "#core/evacuation-state";
import type { Clock, CommitResult, EvacuationStore, Page } from "../ports.ts";
import { type Condition, type DynamoTable, type Item, itemDoesNotExist } from "./dynamo-table.ts";
import { bodyText, jsonOf, textOf } from "./stored-item.ts";

/** DynamoDB's 409,600 bytes less keys, names and a row of at most 1 KiB; what the core lets an evacuation grow to (`itemBytesMax`) fits. */
const bytesMax = 407_000;

const stateKey = (id: string) => ({ pk: `EVAC#${id}`, sk: "STATE" });
const claimKey = (hostId: string) => ({ pk: "EVACUATIONS", sk: `HOST#${hostId}` });
const turnKey = { pk: "EVACUATIONS", sk: "TURN" };

const isOneVersionAhead = (state: EvacuationState): Condition => ({
  expression: "#version = :previous",
  names: { "#version": "version" },
  values: { ":previous": { N: String(state.version - 1) } },
});

const isHeldBy = (holder: string): Condition => ({
  expression: "holder = :holder",
  values: { ":holder": { S: holder } },
});

export class DynamoEvacuations implements EvacuationStore {
  readonly #table: DynamoTable;
  readonly #clock: Clock;

  constructor(table: DynamoTable, clock: Clock) {
    this.#table = table;
    this.#clock = clock;
  }

  create(state: EvacuationState): Promise<CommitResult> {
    return this.#write(state, itemDoesNotExist);
  }

  commit(state: EvacuationState): Promise<CommitResult> {
    return this.#write(state, isOneVersionAhead(state));
  }

  async #write(state: EvacuationState, condition: Condition): Promise<CommitResult> {
    const what = `evacuation ${state.id}`;
    const body = bodyText(what, state, bytesMax);
    const { pk, sk } = stateKey(state.id);
    const item: Item = {
      pk: { S: pk },
      sk: { S: sk },
      version: { N: String(state.version) },
      body: { S: body },
      row: { S: JSON.stringify(evacuationSummary(state)) },
      newestOf: { S: "EVACUATIONS" },
      newestSort: { S: state.id },
      ...(state.endedAt === null ? { activeOf: { S: "EVACUATIONS" } } : {}),
    };
    if ((await this.#table.put(what, item, condition)) === "written") return "committed";
    // The refusal may come from our own first attempt whose answer was lost.
    const standing = await this.#table.get(what, stateKey(state.id));
    return standing?.body?.S === body ? "committed" : "conflict";
  }

  async load(evacuationId: string): Promise<EvacuationState | null> {
    const what = `evacuation ${evacuationId}`;
    const item = await this.#table.get(what, stateKey(evacuationId));
    return item === null ? null : jsonOf(what, evacuationStateSchema, item, "body");
  }

  async list(page: { limit: number; cursor: string | null; active: boolean }): Promise<Page<EvacuationSummary>> {
    const what = "the list of evacuations";
    const items = await this.#table.index(
      what,
      { name: page.active ? "active" : "newest", hash: "EVACUATIONS" },
      { limit: page.limit, before: page.cursor },
    );
    const rows = items.map((item) => jsonOf(what, evacuationSummarySchema, item, "row"));
    return { items: rows, cursor: rows.length < page.limit ? null : (rows.at(-1)?.id ?? null) };
  }

  async claim(hostId: string, evacuationId: string): Promise<{ evacuationId: string; at: string }> {
    const what = `the evacuation of host ${hostId}`;
    const at = this.#clock.now();
    const key = claimKey(hostId);
    const item: Item = { pk: { S: key.pk }, sk: { S: key.sk }, evacuationId: { S: evacuationId }, at: { S: at } };
    if ((await this.#table.put(what, item, itemDoesNotExist)) === "written") return { evacuationId, at };
    const standing = await this.#table.get(what, key);
    // Freed between the two requests: the next try finds it free.
    if (standing === null) return this.claim(hostId, evacuationId);
    return { evacuationId: textOf(what, standing, "evacuationId"), at: textOf(what, standing, "at") };
  }

  async unclaim(hostId: string, evacuationId: string): Promise<void> {
    // Refused: it is another's, or free already.
    await this.#table.delete(`the evacuation of host ${hostId}`, claimKey(hostId), {
      expression: "evacuationId = :evacuationId",
      values: { ":evacuationId": { S: evacuationId } },
    });
  }

  async claims(): Promise<{ hostId: string; evacuationId: string; at: string }[]> {
    const what = "the hosts under evacuation";
    const items = await this.#table.partition(what, "EVACUATIONS", "HOST#");
    return items.map((item) => ({
      hostId: textOf(what, item, "sk").slice("HOST#".length),
      evacuationId: textOf(what, item, "evacuationId"),
      at: textOf(what, item, "at"),
    }));
  }

  async takeTurn(holder: string, lifeMs: number): Promise<"first" | "again" | null> {
    const nowMs = Date.parse(this.#clock.now());
    const take = (condition: Condition) => this.#putTurn(holder, nowMs + lifeMs, condition);
    // Still named as its holder: nobody else has had it since.
    if (await take(isHeldBy(holder))) return "again";
    const free = "attribute_not_exists(pk) OR holder = :holder OR expiresAtMs < :now";
    const values = { ":holder": { S: holder }, ":now": { N: String(nowMs) } };
    return (await take({ expression: free, values })) ? "first" : null;
  }

  async endTurn(holder: string): Promise<void> {
    // Refused: it has expired and is another's by now. Its holder stays named, so that it can tell whether anybody came in between.
    await this.#putTurn(holder, 0, isHeldBy(holder));
  }

  async #putTurn(holder: string, expiresAtMs: number, condition: Condition): Promise<boolean> {
    const item = { pk: { S: turnKey.pk }, sk: { S: turnKey.sk }, holder: { S: holder } };
    const timed = { ...item, expiresAtMs: { N: String(expiresAtMs) } };
    return (await this.#table.put("the turn of evacuations", timed, condition)) === "written";
  }
}
