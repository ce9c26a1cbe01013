/**
 * The sockets of hosts as functions share them that keep nothing in memory. Nothing here is truth about a migration: all of it may be lost,
 * and the next hello builds it up again. `ttl` (epoch seconds) is the broom alone; what decides is the time in the item, held against the clock.
 *
 * Keys (pk / sk):
 *   LINK#connection / LINK         who is at the end of a connection
 *   LINKS#host / CONN#connection   which connections a host has      LINKS#host / CURRENT        by which one it is reached
 *   LINKS#host / QUERY#id          a question and its answer         LINKS#host / PROGRESS#mig   the newest progress
 *   LINKS#host / ORDER             when what was said of domains     PARTS#host#list / number    a part of a complete list
 *   NONCE#host#nonce / NONCE       a connect proof that was used
 */
import * as z from "zod/mini";
import { type Answer, answerSchema, inventoryDomainSchema, type Progress, progressSchema } from "#protocol/message";
import type { Clock, Inventory, Link, LinkStore } from "../ports.ts";
import { type Condition, type DynamoTable, type Item, itemDoesNotExist, itemExists } from "./dynamo-table.ts";
import { bodyText, decoded, jsonOf, textOf } from "./stored-item.ts";

/** The broom comes this long after the time is up: clocks differ, and a late reader should find what explains it. */
const ttlSlackMs = 60 * 60_000;
/** Progress older than this is of nothing that runs: a shim tells it every few seconds. */
const progressMsMax = 60 * 60_000;
/** All parts of a list come within seconds; what is left of one after this belongs to a socket that died. */
const partMsMax = 10 * 60_000;
/** Changes are compared for so long: no message of API Gateway is under way longer (integration timeout 29 s). */
const orderMsMax = 5 * 60_000;
/** Domains whose last change is remembered, 50 bytes each: the item is written with every change and billed by the KB. */
const orderedMax = 500;
/** Rounds of a contended write; each means that somebody else's was written. */
const roundsMax = 20;

const changesSchema = z.array(z.tuple([z.string(), z.number()]));

const inventorySchema = z.object({
  type: z.literal("inventory"),
  series: z.optional(z.object({ id: z.string(), part: z.int(), parts: z.int() })),
  full: z.boolean(),
  last: z.boolean(),
  domains: z.array(inventoryDomainSchema),
  gone: z.array(z.string()),
});

const linkSchema = z.object({
  connectionId: z.string(),
  hostId: z.string(),
  publicKey: z.string(),
  nonce: z.string(),
  session: z.nullable(z.string()),
  openedAtMs: z.number(),
  expiresAtMs: z.number(),
});

const linkKey = (connectionId: string) => ({ pk: `LINK#${connectionId}`, sk: "LINK" });
const hostKey = (hostId: string, sk: string) => ({ pk: `LINKS#${hostId}`, sk });
const connectionPrefix = "CONN#";

const keyed = (key: { pk: string; sk: string }, untilMs: number, rest: Item): Item => ({
  pk: { S: key.pk },
  sk: { S: key.sk },
  ttl: { N: String(Math.ceil((untilMs + ttlSlackMs) / 1000)) },
  ...rest,
});
const number = (item: Item, attribute: string): number | null => {
  const text = item[attribute]?.N;
  return text === undefined ? null : Number(text);
};

/** Deletes are of what may be gone already. */
const always: Condition = { expression: "attribute_exists(pk) OR attribute_not_exists(pk)" };
const connectionIs = (connectionId: string): Condition => ({
  expression: "connectionId = :connectionId",
  values: { ":connectionId": { S: connectionId } },
});

export class DynamoLinks implements LinkStore {
  readonly #table: DynamoTable;
  readonly #clock: Clock;

  constructor(table: DynamoTable, clock: Clock) {
    this.#table = table;
    this.#clock = clock;
  }

  #nowMs(): number {
    return Date.parse(this.#clock.now());
  }

  async useNonce(use: { hostId: string; nonce: string; connectionId: string; untilMs: number }): Promise<boolean> {
    const what = `a connect proof of host ${use.hostId}`;
    const key = { pk: `NONCE#${use.hostId}#${use.nonce}`, sk: "NONCE" };
    const item = keyed(key, use.untilMs, { connectionId: { S: use.connectionId } });
    if ((await this.#table.put(what, item, itemDoesNotExist)) === "written") return true;
    // An ambiguous write of our own stands there under our own connection.
    return (await this.#table.get(what, key))?.connectionId?.S === use.connectionId;
  }

  async open(link: Link): Promise<void> {
    const what = `a connection of host ${link.hostId}`;
    // First what leads to it: a connection that is known and not listed could not be dropped.
    const listed = keyed(hostKey(link.hostId, `${connectionPrefix}${link.connectionId}`), link.expiresAtMs, {});
    await this.#table.put(what, listed, always);
    const { connectionId, openedAtMs, expiresAtMs, session, hostId, publicKey, nonce } = link;
    await this.#table.put(
      what,
      keyed(linkKey(connectionId), expiresAtMs, {
        hostId: { S: hostId },
        publicKey: { S: publicKey },
        nonce: { S: nonce },
        openedAtMs: { N: String(openedAtMs) },
        expiresAtMs: { N: String(expiresAtMs) },
        ...(session === null ? {} : { linkSession: { S: session } }),
      }),
      always,
    );
  }

  async byConnection(connectionId: string): Promise<Link | null> {
    const item = await this.#table.get("a connection", linkKey(connectionId));
    if (item === null) return null;
    const link = decoded("a connection", linkSchema, {
      connectionId,
      hostId: item.hostId?.S,
      publicKey: item.publicKey?.S,
      nonce: item.nonce?.S,
      session: item.linkSession?.S ?? null,
      openedAtMs: number(item, "openedAtMs"),
      expiresAtMs: number(item, "expiresAtMs"),
    });
    return link.expiresAtMs > this.#nowMs() ? link : null;
  }

  async of(hostId: string): Promise<Link[]> {
    const what = `the connections of host ${hostId}`;
    const listed = await this.#table.partition(what, `LINKS#${hostId}`, connectionPrefix);
    const ids = listed.map((item) => textOf(what, item, "sk").slice(connectionPrefix.length));
    const links = await Promise.all(ids.map((id) => this.byConnection(id)));
    return links.filter((link) => link !== null);
  }

  async prove(connectionId: string, session: string): Promise<boolean> {
    const condition = { ...itemExists, values: { ":session": { S: session } } };
    const result = await this.#table.update(
      "a proved connection",
      linkKey(connectionId),
      "SET linkSession = :session",
      condition,
    );
    return result === "written";
  }

  async bind(link: Pick<Link, "connectionId" | "hostId" | "openedAtMs" | "expiresAtMs">): Promise<boolean> {
    const what = `the current connection of host ${link.hostId}`;
    const item = keyed(hostKey(link.hostId, "CURRENT"), link.expiresAtMs, {
      connectionId: { S: link.connectionId },
      openedAtMs: { N: String(link.openedAtMs) },
      expiresAtMs: { N: String(link.expiresAtMs) },
    });
    const isNewest: Condition = {
      expression: "attribute_not_exists(pk) OR openedAtMs <= :openedAtMs OR expiresAtMs <= :nowMs",
      values: { ":openedAtMs": { N: String(link.openedAtMs) }, ":nowMs": { N: String(this.#nowMs()) } },
    };
    return (await this.#table.put(what, item, isNewest)) === "written";
  }

  async current(hostId: string): Promise<string | null> {
    const what = `the current connection of host ${hostId}`;
    const item = await this.#table.get(what, hostKey(hostId, "CURRENT"));
    if (item === null || (number(item, "expiresAtMs") ?? 0) <= this.#nowMs()) return null;
    return textOf(what, item, "connectionId");
  }

  async close({ connectionId, hostId }: Pick<Link, "connectionId" | "hostId">): Promise<void> {
    const what = `a closed connection of host ${hostId}`;
    await this.#table.delete(what, hostKey(hostId, "CURRENT"), connectionIs(connectionId));
    await this.#table.delete(what, linkKey(connectionId), always);
    await this.#table.delete(what, hostKey(hostId, `${connectionPrefix}${connectionId}`), always);
  }

  async ask(question: { hostId: string; queryId: string; untilMs: number }): Promise<void> {
    const key = hostKey(question.hostId, `QUERY#${question.queryId}`);
    const item = keyed(key, question.untilMs, { untilMs: { N: String(question.untilMs) } });
    await this.#table.put(`a question to host ${question.hostId}`, item, always);
  }

  async answer(hostId: string, queryId: string, answer: Answer): Promise<boolean> {
    const what = `an answer of host ${hostId}`;
    const result = await this.#table.update(what, hostKey(hostId, `QUERY#${queryId}`), "SET answer = :answer", {
      expression: "attribute_exists(pk) AND untilMs > :nowMs AND attribute_not_exists(answer)",
      values: { ":answer": { S: bodyText(what, answer) }, ":nowMs": { N: String(this.#nowMs()) } },
    });
    return result === "written";
  }

  async answerTo(hostId: string, queryId: string): Promise<Answer | null> {
    const what = `an answer of host ${hostId}`;
    const item = await this.#table.get(what, hostKey(hostId, `QUERY#${queryId}`));
    return item?.answer === undefined ? null : jsonOf(what, answerSchema, item, "answer");
  }

  async withdraw(hostId: string, queryId: string): Promise<void> {
    await this.#table.delete(`a question to host ${hostId}`, hostKey(hostId, `QUERY#${queryId}`), always);
  }

  async putProgress(hostId: string, migrationId: string, progress: Progress, atMs: number): Promise<void> {
    const what = `progress of ${migrationId}`;
    const item = keyed(hostKey(hostId, `PROGRESS#${migrationId}`), atMs + progressMsMax, {
      atMs: { N: String(atMs) },
      elapsedMs: { N: String(progress.elapsedMs) },
      body: { S: bodyText(what, progress) },
    });
    await this.#table.put(what, item, {
      expression: "attribute_not_exists(pk) OR atMs < :atMs OR (atMs = :atMs AND elapsedMs <= :elapsedMs)",
      values: { ":atMs": { N: String(atMs) }, ":elapsedMs": { N: String(progress.elapsedMs) } },
    });
  }

  async progress(hostId: string, migrationId: string): Promise<Progress | null> {
    const what = `progress of ${migrationId}`;
    const item = await this.#table.get(what, hostKey(hostId, `PROGRESS#${migrationId}`));
    if (item === null || (number(item, "atMs") ?? 0) + progressMsMax <= this.#nowMs()) return null;
    return jsonOf(what, progressSchema, item, "body");
  }

  async collect(hostId: string, part: Inventory, atMs: number): Promise<{ list: Inventory; atMs: number } | null> {
    const { series } = part;
    if (series === undefined) return null;
    const what = `a list of the domains of host ${hostId}`;
    const pk = `PARTS#${hostId}#${series.id}`;
    const item = keyed({ pk, sk: String(series.part) }, atMs + partMsMax, {
      atMs: { N: String(atMs) },
      body: { S: bodyText(what, part) },
    });
    await this.#table.put(what, item, always);
    const items = await this.#table.partition(what, pk, "");
    const parts = items.map((each) => ({
      atMs: number(each, "atMs") ?? 0,
      part: jsonOf(what, inventorySchema, each, "body"),
    }));
    if (parts.length < series.parts) return null;
    parts.sort((one, other) => (one.part.series?.part ?? 0) - (other.part.series?.part ?? 0));
    const list: Inventory = {
      type: "inventory",
      full: true,
      last: true,
      domains: parts.flatMap((each) => each.part.domains),
      gone: parts.flatMap((each) => each.part.gone),
    };
    await this.#table.writeAll(
      what,
      [],
      items.map((each) => ({ pk, sk: textOf(what, each, "sk") })),
    );
    return { list, atMs: Math.max(...parts.map((each) => each.atMs)) };
  }

  async orderInventory(
    hostId: string,
    said: { atMs: number; full: boolean; uuids: readonly string[] },
  ): Promise<{ except: readonly string[] | "all" } | "disordered"> {
    const what = `the order of what host ${hostId} said`;
    const key = hostKey(hostId, "ORDER");
    for (let round = 0; round < roundsMax; round += 1) {
      const item = await this.#table.get(what, key);
      const fullAtMs = item === null ? 0 : (number(item, "fullAtMs") ?? 0);
      const changes = new Map(item === null ? [] : jsonOf(what, changesSchema, item, "changes"));
      // At the same instant the repeated list is the same list; a change was made by another look and is applied.
      if (said.full ? said.atMs <= fullAtMs : said.atMs < fullAtMs) return { except: "all" };
      const isNewer = (uuid: string) => (changes.get(uuid) ?? 0) > said.atMs;
      if (said.full && [...changes.keys()].some(isNewer)) return "disordered";
      const except = said.uuids.filter(isNewer);
      if (said.full) changes.clear();
      else for (const uuid of said.uuids) if (!isNewer(uuid)) changes.set(uuid, said.atMs);
      const kept = [...changes]
        .filter(([, atMs]) => atMs > said.atMs - orderMsMax)
        .sort(([, one], [, other]) => other - one)
        .slice(0, orderedMax);
      const version = item === null ? 0 : (number(item, "version") ?? 0);
      const next = keyed(key, said.atMs + orderMsMax, {
        version: { N: String(version + 1) },
        fullAtMs: { N: String(said.full ? said.atMs : fullAtMs) },
        changes: { S: JSON.stringify(kept) },
      });
      const condition: Condition =
        item === null
          ? itemDoesNotExist
          : { expression: "version = :version", values: { ":version": { N: String(version) } } };
      if ((await this.#table.put(what, next, condition)) === "written") return { except };
    }
    return "disordered";
  }

  async changedSince(hostId: string, atMs: number): Promise<boolean> {
    const what = `the order of what host ${hostId} said`;
    const item = await this.#table.get(what, hostKey(hostId, "ORDER"));
    if (item === null) return false;
    return jsonOf(what, changesSchema, item, "changes").some(([, saidAtMs]) => saidAtMs > atMs);
  }
}
