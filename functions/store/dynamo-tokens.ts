/**
 * Join and API tokens in DynamoDB: only the digest of a secret is kept (I9). A use is taken by a conditional write, so a
 * token of N uses enrols N hosts also when more ask at once.
 */
import * as z from "zod/mini";
import type { TokenRecord, TokenStore } from "../ports.ts";
import { type Condition, type DynamoTable, type Item, itemDoesNotExist, itemExists } from "./dynamo-table.ts";
import { decoded } from "./stored-item.ts";

const tokenSchema = z.object({
  id: z.string(),
  kind: z.enum(["join", "api"]),
  secretSha256: z.string(),
  name: z.nullable(z.string()),
  createdAt: z.string(),
  expiresAt: z.string(),
  usesLeft: z.nullable(z.int()),
});

const tokenKey = (id: string) => ({ pk: "TOKENS", sk: id });

/** Times are RFC 3339 UTC with milliseconds, so text order is time order. */
const hasUseLeftAt = (at: string): Condition => ({
  expression: "attribute_exists(pk) AND usesLeft > :zero AND expiresAt > :at",
  values: { ":zero": { N: "0" }, ":one": { N: "1" }, ":at": { S: at } },
});

export class DynamoTokens implements TokenStore {
  readonly #table: DynamoTable;

  constructor(table: DynamoTable) {
    this.#table = table;
  }

  async create(token: TokenRecord): Promise<void> {
    const item: Item = {
      pk: { S: "TOKENS" },
      sk: { S: token.id },
      kind: { S: token.kind },
      secretSha256: { S: token.secretSha256 },
      createdAt: { S: token.createdAt },
      expiresAt: { S: token.expiresAt },
      ...(token.name === null ? {} : { tokenName: { S: token.name } }),
      ...(token.usesLeft === null ? {} : { usesLeft: { N: String(token.usesLeft) } }),
    };
    // Ids are random: one that exists already is our own first attempt.
    await this.#table.put(`token ${token.id}`, item, itemDoesNotExist);
  }

  async byId(id: string): Promise<TokenRecord | null> {
    const item = await this.#table.get(`token ${id}`, tokenKey(id));
    return item === null ? null : tokenOf(item);
  }

  async list(kind: TokenRecord["kind"]): Promise<TokenRecord[]> {
    const items = await this.#table.partition("the list of tokens", "TOKENS", "");
    return items.map(tokenOf).filter((token) => token.kind === kind);
  }

  async remove(id: string): Promise<boolean> {
    return (await this.#table.delete(`token ${id}`, tokenKey(id), itemExists)) === "written";
  }

  async use(id: string, at: string): Promise<boolean> {
    const result = await this.#table.update(
      `token ${id}`,
      tokenKey(id),
      "SET usesLeft = usesLeft - :one",
      hasUseLeftAt(at),
    );
    return result === "written";
  }
}

const tokenOf = (item: Item): TokenRecord =>
  decoded("a token", tokenSchema, {
    id: item.sk?.S,
    kind: item.kind?.S,
    secretSha256: item.secretSha256?.S,
    name: item.tokenName?.S ?? null,
    createdAt: item.createdAt?.S,
    expiresAt: item.expiresAt?.S,
    usesLeft: item.usesLeft?.N === undefined ? null : Number(item.usesLeft.N),
  });
