/**
 * The one table `vmferry` and the few requests that adapters make of it. Every write is one conditional write of one
 * item; no transactions, no streams, no ALL_OLD, so that the embedded store and the real one behave alike.
 *
 * Keys (pk / sk):
 *   MIG#id / STATE            a migration            MIG#id / BLOB#name#sha   an immutable payload
 *   ACTIVE / domain uuid      a domain's lock        HOST#id / MIG#id         a host takes part in a migration
 *   HOSTS / id                a host                 HOSTNAME#name / HOST     a taken name
 *   HOST#id / DOM#uuid        a domain on a host     TOKENS / id              a token
 *   TASK#id / STATE           a bundle task          KEY#digest / KEY         an idempotency key
 *   EVAC#id / STATE           an evacuation          EVACUATIONS / HOST#id    which evacuation a host is under
 *   EVACUATIONS / TURN        whose turn it is to decide what is started
 *   EVENT#id / EVENT          a line of the chronicle
 * Rules have keys of their own (dynamo-rules.ts), sockets as well (dynamo-links.ts).
 * Sparse indexes, eventually consistent, for lists only: `newest` (migrations, evacuations, the chronicle), `active` (migrations, evacuations),
 * `domainName`, `domainUuid`.
 * `row` is what an index projects: the JSON of what a list shows, so that a list never reads whole states.
 *
 * dynalite and DynamoDB Local pass the same cases (test/contract/store.test.ts); they differ where this file does not go:
 * dynalite has no transactions, no ReturnValuesOnConditionCheckFailure (a refused write is read again instead) and sets no
 * TTL; its indexes never lag, so lag is made by a proxy in the tests. DynamoDB Local takes access keys of letters and digits only.
 */
import {
  type AttributeValue,
  BatchWriteItemCommand,
  ConditionalCheckFailedException,
  CreateTableCommand,
  DeleteItemCommand,
  DescribeTableCommand,
  DynamoDBClient,
  GetItemCommand,
  PutItemCommand,
  QueryCommand,
  ResourceInUseException,
  UpdateItemCommand,
  type WriteRequest,
} from "@aws-sdk/client-dynamodb";
import { Fault } from "#protocol/fault";
import type { RequestCounter } from "./request-counter.ts";
import type { RequestGate } from "./request-gate.ts";

export type Item = Record<string, AttributeValue>;
/** `refused`: the condition did not hold. */
export type WriteResult = "written" | "refused";
/** A named condition with its values; names are aliased because DynamoDB reserves many words. */
export interface Condition {
  expression: string;
  names?: Record<string, string>;
  values?: Item;
}

/** DynamoDB's bound of an item is 400 KB (409,600 bytes) with attribute names; the rest is left for keys and rows. */
export const bodyBytesMax = 390_000;

/** Attempts of one request. The first retry waits some tens of ms, so three attempts bridge a broken connection or a
 *  throttle; longer outages are the caller's: its command is redelivered. */
const attemptsMax = 3;
/** DynamoDB answers in about 10 ms; after this the connection is taken for dead. */
const requestMsMax = 3_000;
const connectMsMax = 1_000;
/** BatchWriteItem takes 25 items (AWS: DynamoDB quotas). */
const batchItemsMax = 25;
/** Rounds for what BatchWriteItem left unprocessed; DynamoDB leaves items only when it throttles. */
const batchRoundsMax = 5;
/** Before the second round, then twice as long each time (AWS: "use exponential backoff"), jittered; 1.5 s in all at most. */
const batchPauseMs = 100;
const pauseBefore = (round: number) =>
  new Promise((resolve) => setTimeout(resolve, batchPauseMs * 2 ** (round - 1) * (0.5 + Math.random() / 2)));

export const itemDoesNotExist: Condition = { expression: "attribute_not_exists(pk)" };
export const itemExists: Condition = { expression: "attribute_exists(pk)" };

export interface DynamoOptions {
  region: string;
  /** Undefined: AWS itself. */
  endpoint?: string | undefined;
  credentials?: { accessKeyId: string; secretAccessKey: string; sessionToken?: string } | undefined;
  counter?: RequestCounter | undefined;
  /** Where one process serves the store: how many requests it gets at once. */
  gate?: RequestGate | undefined;
  /** Sends the requests in place of the runtime's own fetch, where the SDK uses one. */
  fetch?: ((request: Request) => Promise<Response>) | undefined;
}

const bytesOf = (body: unknown): number =>
  typeof body === "string"
    ? new TextEncoder().encode(body).byteLength
    : body instanceof Uint8Array
      ? body.byteLength
      : 0;

const headersOf = (value: unknown): Record<string, string> => {
  if (typeof value !== "object" || value === null || !("headers" in value)) return {};
  const { headers } = value;
  if (typeof headers !== "object" || headers === null) return {};
  return Object.fromEntries(Object.entries(headers).map(([name, text]) => [name.toLowerCase(), String(text)]));
};

/** A client with bounded time and attempts, fit for Node and for workerd. */
export function createDynamoClient(options: DynamoOptions): DynamoDBClient {
  const client = new DynamoDBClient({
    region: options.region,
    maxAttempts: attemptsMax,
    requestHandler: {
      requestTimeout: requestMsMax,
      connectionTimeout: connectMsMax,
      ...(options.fetch === undefined ? {} : { customFetch: options.fetch }),
    },
    ...(options.endpoint === undefined ? {} : { endpoint: options.endpoint }),
    ...(options.credentials === undefined ? {} : { credentials: options.credentials }),
  });
  const { counter, gate } = options;
  if (gate !== undefined)
    client.middlewareStack.add(
      (next) => async (args) => {
        const leave = await gate.enter();
        try {
          return await next(args);
        } finally {
          leave();
        }
      },
      // Around each attempt, so that no attempt's time passes while it waits.
      { step: "deserialize", priority: "high", name: "vmferryGate" },
    );
  if (counter !== undefined)
    client.middlewareStack.add(
      (next, context) => async (args) => {
        const sentBytes =
          typeof args.request === "object" && args.request !== null && "body" in args.request
            ? bytesOf(args.request.body)
            : 0;
        let receivedBytes = 0;
        try {
          const result = await next(args);
          receivedBytes = Number(headersOf(result.response)["content-length"] ?? 0);
          return result;
        } finally {
          const operation = (context.commandName ?? "Unknown").replace(/Command$/, "");
          counter.add("dynamodb", operation, { sentBytes, receivedBytes });
        }
      },
      // Below the retry loop and next to the wire: each attempt passes here once, with the raw response.
      { step: "deserialize", priority: "low", name: "vmferryCount" },
    );
  return client;
}

const unreachable = (what: string, error: unknown) => {
  const text = error instanceof Error ? error.message || error.name : String(error);
  return new Fault(
    {
      code: "store.unreachable",
      cause: `DynamoDB could not be reached for ${what}: ${text}.`,
      action:
        "Nothing was decided; it is tried again by itself. Check the network to DynamoDB, or that `vmferry up` still runs its store.",
      retry: "safe",
    },
    { cause: error },
  );
};

const refusedByStore = (what: string, name: string, error: Error) =>
  name === "ResourceNotFoundException"
    ? new Fault(
        {
          code: "store.unreachable",
          cause: `The table does not exist (${what}).`,
          action: "Deploy it, or start `vmferry up`, which creates it.",
          retry: "person",
        },
        { cause: error },
      )
    : new Fault(
        {
          code: "internal",
          cause: `DynamoDB refused ${what}: ${name}: ${error.message}.`,
          action: "This is a defect or a missing permission; report it with this text.",
          retry: "person",
        },
        { cause: error },
      );

/** Errors that say nothing about our request: the same request may be sent again. */
const passingErrors = new Set([
  "ProvisionedThroughputExceededException",
  "ThrottlingException",
  "RequestLimitExceeded",
  "InternalServerError",
  "ServiceUnavailable",
  "TimeoutError",
  "LimitExceededException",
]);

function faultOf(what: string, error: unknown): Fault {
  if (error instanceof Fault) return error;
  if (!(error instanceof Error)) return unreachable(what, error);
  const metadata = "$metadata" in error ? error.$metadata : undefined;
  const status =
    typeof metadata === "object" && metadata !== null && "httpStatusCode" in metadata
      ? Number(metadata.httpStatusCode)
      : 0;
  if (passingErrors.has(error.name) || !(status >= 400 && status < 500)) return unreachable(what, error);
  return refusedByStore(what, error.name, error);
}

export class DynamoTable {
  readonly #client: DynamoDBClient;
  readonly name: string;

  constructor(client: DynamoDBClient, name: string) {
    this.#client = client;
    this.name = name;
  }

  async #write(what: string, send: () => Promise<unknown>): Promise<WriteResult> {
    try {
      await send();
      return "written";
    } catch (error) {
      if (error instanceof ConditionalCheckFailedException) return "refused";
      throw faultOf(what, error);
    }
  }

  /** Writes one whole item. `what` names it in a fault. `msMax`: it is not sent, nor tried again, when so much time has passed; absent: as for all. */
  async put(what: string, item: Item, condition: Condition, msMax?: number): Promise<WriteResult> {
    const input = { TableName: this.name, Item: item, ...conditionInput(condition) };
    const send = (options = {}) => this.#write(what, () => this.#client.send(new PutItemCommand(input), options));
    if (msMax === undefined) return send();
    const late = new AbortController();
    // Cleared at once: a Durable Object does not rest while a timer is open.
    const timer = setTimeout(() => late.abort(), msMax);
    return send({ abortSignal: late.signal }).finally(() => clearTimeout(timer));
  }

  /** Changes attributes of one item. `expression` is DynamoDB's UpdateExpression. */
  update(
    what: string,
    key: { pk: string; sk: string },
    expression: string,
    condition: Condition,
  ): Promise<WriteResult> {
    return this.#write(what, () =>
      this.#client.send(
        new UpdateItemCommand({
          TableName: this.name,
          Key: keyItem(key),
          UpdateExpression: expression,
          ...conditionInput(condition),
        }),
      ),
    );
  }

  delete(what: string, key: { pk: string; sk: string }, condition: Condition): Promise<WriteResult> {
    return this.#write(what, () =>
      this.#client.send(
        new DeleteItemCommand({ TableName: this.name, Key: keyItem(key), ...conditionInput(condition) }),
      ),
    );
  }

  /** Strongly consistent. */
  async get(what: string, key: { pk: string; sk: string }): Promise<Item | null> {
    try {
      const command = new GetItemCommand({ TableName: this.name, Key: keyItem(key), ConsistentRead: true });
      return (await this.#client.send(command)).Item ?? null;
    } catch (error) {
      throw faultOf(what, error);
    }
  }

  /** All items of a partition whose sort key begins with `prefix`; strongly consistent. One request per MiB. */
  async partition(what: string, pk: string, prefix: string): Promise<Item[]> {
    const items: Item[] = [];
    let start: Item | undefined;
    try {
      do {
        const page = await this.#client.send(
          new QueryCommand({
            TableName: this.name,
            ConsistentRead: true,
            KeyConditionExpression: prefix === "" ? "pk = :pk" : "pk = :pk AND begins_with(sk, :prefix)",
            ExpressionAttributeValues: { ":pk": { S: pk }, ...(prefix === "" ? {} : { ":prefix": { S: prefix } }) },
            ...(start === undefined ? {} : { ExclusiveStartKey: start }),
          }),
        );
        items.push(...(page.Items ?? []));
        start = page.LastEvaluatedKey;
      } while (start !== undefined);
    } catch (error) {
      throw faultOf(what, error);
    }
    return items;
  }

  /** Items of a sparse index, newest sort key first, below `before`; eventually consistent. */
  index(
    what: string,
    index: { name: IndexName; hash: string },
    page: { limit: number; before: string | null },
  ): Promise<Item[]> {
    return this.range(what, index, { ...page, after: null, oldestFirst: false });
  }

  /** Items of a sparse index between two sort keys, both left out; null: to the end. Eventually consistent. One request per MiB. */
  async range(
    what: string,
    index: { name: IndexName; hash: string },
    page: { limit: number; after: string | null; before: string | null; oldestFirst: boolean },
  ): Promise<Item[]> {
    const { hash, range } = indexes[index.name];
    const { after, before, limit } = page;
    // DynamoDB refuses a range that is upside down.
    if (after !== null && before !== null && after >= before) return [];
    const bounds = boundsOf(after, before);
    const items: Item[] = [];
    let start: Item | undefined;
    try {
      do {
        const answer = await this.#client.send(
          new QueryCommand({
            TableName: this.name,
            IndexName: index.name,
            ScanIndexForward: page.oldestFirst,
            Limit: limit - items.length,
            KeyConditionExpression: `#hash = :hash${bounds}`,
            ExpressionAttributeNames: { "#hash": hash, ...(bounds === "" ? {} : { "#range": range }) },
            ExpressionAttributeValues: {
              ":hash": { S: index.hash },
              ...(after === null ? {} : { ":after": { S: after } }),
              ...(before === null ? {} : { ":before": { S: before } }),
            },
            ...(start === undefined ? {} : { ExclusiveStartKey: start }),
          }),
        );
        for (const item of answer.Items ?? []) {
          const at = item[range]?.S;
          if (at !== after && at !== before) items.push(item);
        }
        start = answer.LastEvaluatedKey;
      } while (start !== undefined && items.length < limit);
    } catch (error) {
      throw faultOf(what, error);
    }
    return items;
  }

  /** Unconditional writes of independent items: only for what is observed again anyway (inventory), never for a decision. */
  async writeAll(what: string, puts: Item[], deletes: { pk: string; sk: string }[]): Promise<void> {
    let open: WriteRequest[] = [
      ...puts.map((item) => ({ PutRequest: { Item: item } })),
      ...deletes.map((key) => ({ DeleteRequest: { Key: keyItem(key) } })),
    ];
    try {
      for (let round = 0; open.length > 0; round += 1) {
        const left: WriteRequest[] = [];
        if (round > 0) await pauseBefore(round);
        for (let at = 0; at < open.length; at += batchItemsMax) {
          const command = new BatchWriteItemCommand({
            RequestItems: { [this.name]: open.slice(at, at + batchItemsMax) },
          });
          left.push(...((await this.#client.send(command)).UnprocessedItems?.[this.name] ?? []));
        }
        if (left.length > 0 && round + 1 >= batchRoundsMax)
          throw unreachable(what, `${left.length} items were left unprocessed (throttled)`);
        open = left;
      }
    } catch (error) {
      throw faultOf(what, error);
    }
  }
}

/** BETWEEN has its ends among it: whoever asks leaves them out. */
function boundsOf(after: string | null, before: string | null): string {
  if (after !== null && before !== null) return " AND #range BETWEEN :after AND :before";
  if (after !== null) return " AND #range > :after";
  return before === null ? "" : " AND #range < :before";
}

const keyItem = (key: { pk: string; sk: string }): Item => ({ pk: { S: key.pk }, sk: { S: key.sk } });

const conditionInput = (condition: Condition) => ({
  ConditionExpression: condition.expression,
  ...(condition.names === undefined ? {} : { ExpressionAttributeNames: condition.names }),
  ...(condition.values === undefined ? {} : { ExpressionAttributeValues: condition.values }),
});

/** The sparse indexes: an item without the hash attribute is not in it and costs nothing there. */
export const indexes = {
  newest: { hash: "newestOf", range: "newestSort" },
  active: { hash: "activeOf", range: "newestSort" },
  domainName: { hash: "domainName", range: "domainHost" },
  domainUuid: { hash: "domainUuid", range: "domainHost" },
} as const;
export type IndexName = keyof typeof indexes;

/** How long a table may take to be made; the embedded stores need milliseconds, AWS some seconds. */
const creationMsMax = 30_000;
const creationPollMs = 20;

/** Creates the table where it is ours to create (`vmferry up`, tests); an existing one is left as it is. Ends when the table
 *  takes requests: until then it "does not exist", dynalite's for a turn of the event loop or two, DynamoDB's for seconds. */
export async function createTable(client: DynamoDBClient, name: string): Promise<void> {
  const attributes = new Set(["pk", "sk", ...Object.values(indexes).flatMap(({ hash, range }) => [hash, range])]);
  try {
    await client.send(
      new CreateTableCommand({
        TableName: name,
        BillingMode: "PAY_PER_REQUEST",
        AttributeDefinitions: [...attributes].map((AttributeName) => ({ AttributeName, AttributeType: "S" as const })),
        KeySchema: [
          { AttributeName: "pk", KeyType: "HASH" },
          { AttributeName: "sk", KeyType: "RANGE" },
        ],
        GlobalSecondaryIndexes: Object.entries(indexes).map(([IndexName, { hash, range }]) => ({
          IndexName,
          KeySchema: [
            { AttributeName: hash, KeyType: "HASH" as const },
            { AttributeName: range, KeyType: "RANGE" as const },
          ],
          Projection: { ProjectionType: "INCLUDE" as const, NonKeyAttributes: ["row"] },
        })),
      }),
    );
  } catch (error) {
    if (!(error instanceof ResourceInUseException)) throw faultOf("creating the table", error);
  }
  await tableActive(client, name);
}

async function tableActive(client: DynamoDBClient, name: string): Promise<void> {
  const what = "looking at the table that is being created";
  for (let waitedMs = 0; waitedMs < creationMsMax; waitedMs += creationPollMs) {
    try {
      const { Table } = await client.send(new DescribeTableCommand({ TableName: name }));
      if (Table?.TableStatus === "ACTIVE") return;
    } catch (error) {
      throw faultOf(what, error);
    }
    await new Promise((resolve) => setTimeout(resolve, creationPollMs));
  }
  throw unreachable(what, `it was not active after ${creationMsMax} ms`);
}
