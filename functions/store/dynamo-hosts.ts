/**
 * Hosts and their domains in DynamoDB. What a person sets (`cordoned`) and what a session says (`lastSeenAt`, facts) are
 * attributes of their own, so a heartbeat never overwrites a cordon. A name is unique by an item of its own, written
 * before the host; a name left behind by a crash between the two is taken over after `nameMsAbandoned`.
 */
import * as z from "zod/mini";
import { hostFactsSchema, type InventoryDomain, inventoryDomainSchema, openJournalSchema } from "#protocol/message";
import type { CommitResult, HostRecord, HostStore, PlacedDomain } from "../ports.ts";
import { type Condition, type DynamoTable, type Item, itemDoesNotExist, itemExists } from "./dynamo-table.ts";
import { decoded, jsonOf, textOf } from "./stored-item.ts";

/** Enrolment writes the name and then the host within one request; after a minute nobody is between the two any more. */
const nameMsAbandoned = 60_000;
/** Names remembered per isolate: a fleet's worth, some 100 KB. */
const namesKnownMax = 1_000;
/** Candidates of one name or UUID: more copies of one name than this are not told apart by a person anyway. */
const candidatesMax = 100;

const openJournalsSchema = z.object({ at: z.string(), journals: z.array(openJournalSchema) });

/** Of the attributes that are no JSON. */
const hostSchema = z.object({
  id: z.string(),
  name: z.string(),
  publicKey: z.string(),
  cordoned: z.boolean(),
  enrolledAt: z.string(),
  lastSeenAt: z.nullable(z.string()),
  protocol: z.nullable(z.int()),
  shuttingUntil: z.optional(z.string()),
});

/** Texts kept: a large fleet's, some megabytes. */
const textsKeptMax = 5_000;

/**
 * Parses a JSON attribute once for each text that a host has there. The list of a thousand hosts is read for every look of an evacuation, and what hosts
 * say of themselves changes once a minute. What comes back is shared and must not be changed.
 */
class KnownTexts<T> {
  readonly #schema: z.ZodMiniType<T>;
  readonly #attribute: string;
  readonly #known = new Map<string, { text: string; value: T }>();

  constructor(schema: z.ZodMiniType<T>, attribute: string) {
    this.#schema = schema;
    this.#attribute = attribute;
  }

  of(hostId: string, item: Item): T {
    const text = item[this.#attribute]?.S;
    const known = this.#known.get(hostId);
    if (known !== undefined && known.text === text) return known.value;
    const value = jsonOf("a host", this.#schema, item, this.#attribute);
    if (this.#known.size >= textsKeptMax) this.#known.clear();
    if (text !== undefined) this.#known.set(hostId, { text, value });
    return value;
  }
}

const hostKey = (id: string) => ({ pk: "HOSTS", sk: id });
const nameKey = (name: string) => ({ pk: `HOSTNAME#${name}`, sk: "HOST" });
const domainKey = (hostId: string, uuid: string) => ({ pk: `HOST#${hostId}`, sk: `DOM#${uuid}` });
const namesHost = (hostId: string): Condition => ({
  expression: "hostId = :hostId",
  values: { ":hostId": { S: hostId } },
});

export class DynamoHosts implements HostStore {
  readonly #table: DynamoTable;
  /** Name -> id as last read; only a hint that saves a request, the host itself is always read and its name compared. */
  readonly #idsByName = new Map<string, string>();
  readonly #features = new KnownTexts(z.array(z.string()), "features");
  readonly #facts = new KnownTexts(hostFactsSchema, "facts");
  readonly #openJournals = new KnownTexts(openJournalsSchema, "openJournals");

  constructor(table: DynamoTable) {
    this.#table = table;
  }

  async create(host: HostRecord): Promise<CommitResult> {
    if (!(await this.#takeName(host))) return "conflict";
    const what = `host ${host.name}`;
    const item: Item = {
      pk: { S: "HOSTS" },
      sk: { S: host.id },
      hostName: { S: host.name },
      publicKey: { S: host.publicKey },
      cordoned: { BOOL: host.cordoned },
      enrolledAt: { S: host.enrolledAt },
      features: { S: JSON.stringify(host.features) },
      ...(host.lastSeenAt === null ? {} : { lastSeenAt: { S: host.lastSeenAt } }),
      ...(host.protocol === null ? {} : { protocol: { N: String(host.protocol) } }),
      ...(host.facts === null ? {} : { facts: { S: JSON.stringify(host.facts) } }),
    };
    if ((await this.#table.put(what, item, itemDoesNotExist)) === "written") return "committed";
    const standing = await this.byId(host.id);
    return standing?.publicKey === host.publicKey && standing.name === host.name ? "committed" : "conflict";
  }

  async #takeName(host: HostRecord): Promise<boolean> {
    const what = `host name ${host.name}`;
    const { pk, sk } = nameKey(host.name);
    const item = { pk: { S: pk }, sk: { S: sk }, hostId: { S: host.id }, enrolledAt: { S: host.enrolledAt } };
    if ((await this.#table.put(what, item, itemDoesNotExist)) === "written") return true;
    const standing = await this.#table.get(what, { pk, sk });
    const holder = standing === null ? null : textOf(what, standing, "hostId");
    if (holder === host.id) return true;
    if (standing !== null && holder !== null) {
      const ageMs = Date.parse(host.enrolledAt) - Date.parse(textOf(what, standing, "enrolledAt"));
      if (ageMs < nameMsAbandoned || (await this.byId(holder)) !== null) return false;
    }
    const condition = holder === null ? itemDoesNotExist : namesHost(holder);
    if ((await this.#table.put(what, item, condition)) === "written") return true;
    // Refused by another, or by our own first attempt whose answer was lost.
    const now = await this.#table.get(what, { pk, sk });
    return now !== null && textOf(what, now, "hostId") === host.id;
  }

  #hostOf(item: Item): HostRecord {
    const protocol = item.protocol?.N;
    const head = decoded("a host", hostSchema, {
      id: item.sk?.S,
      name: item.hostName?.S,
      publicKey: item.publicKey?.S,
      cordoned: item.cordoned?.BOOL,
      enrolledAt: item.enrolledAt?.S,
      lastSeenAt: item.lastSeenAt?.S ?? null,
      protocol: protocol === undefined ? null : Number(protocol),
      ...(item.shuttingUntil?.S === undefined ? {} : { shuttingUntil: item.shuttingUntil.S }),
    });
    return {
      ...head,
      features: this.#features.of(head.id, item),
      facts: item.facts === undefined ? null : this.#facts.of(head.id, item),
      ...(item.openJournals === undefined ? {} : { openJournals: this.#openJournals.of(head.id, item) }),
    };
  }

  async byId(id: string): Promise<HostRecord | null> {
    const item = await this.#table.get(`host ${id}`, hostKey(id));
    return item === null ? null : this.#hostOf(item);
  }

  /** One request once the name was seen by this isolate, two before. */
  async byName(name: string): Promise<HostRecord | null> {
    const known = this.#idsByName.get(name);
    if (known !== undefined) {
      const host = await this.byId(known);
      if (host?.name === name) return host;
      this.#idsByName.delete(name);
    }
    const what = `host name ${name}`;
    const item = await this.#table.get(what, nameKey(name));
    if (item === null) return null;
    const id = textOf(what, item, "hostId");
    const host = await this.byId(id);
    if (host === null || host.name !== name) return null;
    if (this.#idsByName.size >= namesKnownMax) this.#idsByName.clear();
    this.#idsByName.set(name, id);
    return host;
  }

  async list(): Promise<HostRecord[]> {
    return (await this.#table.partition("the list of hosts", "HOSTS", "")).map((item) => this.#hostOf(item));
  }

  async seen(id: string, seen: Parameters<HostStore["seen"]>[1]): Promise<void> {
    const sets = ["lastSeenAt = :at"];
    const values: Item = { ":at": { S: seen.at } };
    const names: Record<string, string> = {};
    if (seen.protocol !== undefined) {
      sets.push("#protocol = :protocol");
      names["#protocol"] = "protocol";
      values[":protocol"] = { N: String(seen.protocol) };
    }
    if (seen.features !== undefined) {
      sets.push("features = :features");
      values[":features"] = { S: JSON.stringify(seen.features) };
    }
    if (seen.facts !== undefined) {
      sets.push("facts = :facts");
      values[":facts"] = { S: JSON.stringify(seen.facts) };
    }
    if (seen.openJournals !== undefined) {
      sets.push("openJournals = :openJournals");
      values[":openJournals"] = { S: JSON.stringify({ at: seen.at, journals: seen.openJournals }) };
    }
    let removes = "";
    if (seen.shuttingUntil === null) removes = " REMOVE shuttingUntil";
    else if (seen.shuttingUntil !== undefined) {
      sets.push("shuttingUntil = :shuttingUntil");
      values[":shuttingUntil"] = { S: seen.shuttingUntil };
    }
    // Refused: the host was removed. A late heartbeat must not bring it back.
    await this.#table.update(`host ${id}`, hostKey(id), `SET ${sets.join(", ")}${removes}`, {
      ...itemExists,
      values,
      ...(Object.keys(names).length === 0 ? {} : { names }),
    });
  }

  async setCordoned(id: string, cordoned: boolean): Promise<boolean> {
    const result = await this.#table.update(`host ${id}`, hostKey(id), "SET cordoned = :cordoned", {
      ...itemExists,
      values: { ":cordoned": { BOOL: cordoned } },
    });
    return result === "written";
  }

  async remove(id: string): Promise<boolean> {
    const host = await this.byId(id);
    if (host === null) return false;
    // Refused: it is gone by now, perhaps by our own first attempt whose answer was lost.
    await this.#table.delete(`host ${id}`, hostKey(id), itemExists);
    const domains = await this.#table.partition(`the domains of host ${id}`, `HOST#${id}`, "DOM#");
    await this.#table.writeAll(
      `the domains of host ${id}`,
      [],
      domains.map((item) => ({ pk: `HOST#${id}`, sk: textOf("a domain", item, "sk") })),
    );
    // Last: while the host's remains are there its name cannot be taken by another.
    await this.#table.delete(`host name ${host.name}`, nameKey(host.name), namesHost(id));
    return true;
  }

  async putInventory(
    hostId: string,
    change: { full: boolean; domains: InventoryDomain[]; gone: string[] },
  ): Promise<void> {
    const what = `the domains of host ${hostId}`;
    if (!change.full) {
      const puts = change.domains.map((domain) => domainItem(hostId, domain));
      await this.#table.writeAll(
        what,
        puts,
        [...new Set(change.gone)].map((uuid) => domainKey(hostId, uuid)),
      );
      return;
    }
    const standing = new Map(
      (await this.#table.partition(what, `HOST#${hostId}`, "DOM#")).map((item) => [
        textOf(what, item, "sk").slice("DOM#".length),
        textOf(what, item, "row"),
      ]),
    );
    const named = new Set(change.domains.map((domain) => domain.uuid));
    const puts = change.domains.filter((domain) => standing.get(domain.uuid) !== JSON.stringify(domain));
    const gone = [...standing.keys()].filter((uuid) => !named.has(uuid));
    await this.#table.writeAll(
      what,
      puts.map((domain) => domainItem(hostId, domain)),
      gone.map((uuid) => domainKey(hostId, uuid)),
    );
  }

  async domainsOf(hostId: string): Promise<PlacedDomain[]> {
    const what = `the domains of host ${hostId}`;
    const items = await this.#table.partition(what, `HOST#${hostId}`, "DOM#");
    return items.map((item) => ({ ...jsonOf(what, inventoryDomainSchema, item, "row"), hostId }));
  }

  /**
   * One request, and one for each candidate: the index lags behind, and right after a migration it may show the domain
   * where it was. So it only says where to look; what is returned is read there, strongly.
   */
  async findDomains(nameOrUuid: string): Promise<PlacedDomain[]> {
    const what = `domains called ${nameOrUuid}`;
    const page = { limit: candidatesMax, before: null };
    const isUuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(nameOrUuid);
    const items = isUuid
      ? await this.#table.index(what, { name: "domainUuid", hash: nameOrUuid.toLowerCase() }, page)
      : await this.#table.index(what, { name: "domainName", hash: nameOrUuid }, page);
    const found = await Promise.all(
      items.map(async (item): Promise<PlacedDomain[]> => {
        const hostId = textOf(what, item, "domainHost");
        const standing = await this.#table.get(what, { pk: textOf(what, item, "pk"), sk: textOf(what, item, "sk") });
        return standing === null ? [] : [{ ...jsonOf(what, inventoryDomainSchema, standing, "row"), hostId }];
      }),
    );
    // Renamed meanwhile is not what was asked for.
    return found.flat().filter((domain) => isUuid || domain.name === nameOrUuid);
  }
}

const domainItem = (hostId: string, domain: InventoryDomain): Item => {
  const { pk, sk } = domainKey(hostId, domain.uuid);
  return {
    pk: { S: pk },
    sk: { S: sk },
    row: { S: JSON.stringify(domain) },
    domainName: { S: domain.name },
    domainUuid: { S: domain.uuid },
    domainHost: { S: hostId },
  };
};
