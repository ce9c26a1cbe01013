/**
 * Join and API tokens in DynamoDB: only the digest of a secret is kept (I9). A use is taken by a conditional write, so a
 * token of N uses enrols N hosts also when more ask at once. Each use has a name of its own that is written with it: the
 * client repeats a write whose answer was lost, and a counter alone would go down twice, or refuse the one who took the last.
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
const hasUseLeftAt = (at: string, use: string): Condition => ({
  expression: "attribute_exists(pk) AND usesLeft > :zero AND expiresAt > :at AND NOT contains(usesTaken, :use)",
  values: {
    ":zero": { N: "0" },
    ":one": { N: "1" },
    ":at": { S: at },
    ":use": { S: use },
    ":uses": { SS: [use] },
  },
});

/** 72 random bits, 12 characters: they are told apart within one token, and a token of 1,000 uses stays a small item. */
const useBytes = 9;
const newUse = () => btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(useBytes))));

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
    if ((await this.byId(id)) === null) return false;
    // Refused: it is gone by now, perhaps by our own first attempt whose answer was lost.
    await this.#table.delete(`token ${id}`, tokenKey(id), itemExists);
    return true;
  }

  async use(id: string, at: string): Promise<boolean> {
    const what = `token ${id}`;
    const use = newUse();
    const taken = await this.#table.update(
      what,
      tokenKey(id),
      "SET usesLeft = usesLeft - :one ADD usesTaken :uses",
      hasUseLeftAt(at, use),
    );
    if (taken === "written") return true;
    const standing = await this.#table.get(what, tokenKey(id));
    return standing?.usesTaken?.SS?.includes(use) ?? false;
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
