/**
 * A proxy in front of any implementation of DynamoDB's API that does to it what the real one does on bad days. Requests are
 * passed on whole; what goes wrong is decided by the test, by the client's own count of attempts (`amz-sdk-request`) where a
 * fault is to strike each request once.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { endpointOf } from "./store-proxies.ts";

/**
 * What strikes each request's first attempt, until it is changed:
 * `throttle`: refused before anything is done. `lose`: done, and the connection ends before the answer.
 * `refuse`: InternalServerError, nothing done. `halve`: BatchWriteItem does half and hands the rest back.
 */
export type Plague = "none" | "throttle" | "lose" | "refuse" | "halve";

export interface FaultyStore {
  endpoint: string;
  plague: Plague;
  /** The next N requests are throttled, whichever attempt they are. */
  throttleNext: number;
  /** The answers to the next N are lost, whichever attempt they are. */
  loseNext: number;
  /** Indexes answer from now on as they did last before now, and an index that was not asked yet is empty. */
  staleIndexes: boolean;
  /** How often something went wrong so far. */
  struck(): number;
  close(): Promise<void>;
}

interface Sent {
  operation: string;
  attempt: number;
  body: string;
  headers: Record<string, string>;
}
interface Answer {
  status: number;
  body: string;
}

const amzJson = "application/x-amz-json-1.0";
const refusal = (status: number, name: string): Answer => ({
  status,
  body: JSON.stringify({ __type: `com.amazonaws.dynamodb.v20120810#${name}`, message: "struck by the test" }),
});

async function readWhole(request: IncomingMessage): Promise<Sent> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) if (Buffer.isBuffer(chunk)) chunks.push(chunk);
  const headers = Object.fromEntries(
    Object.entries(request.headers).flatMap(([name, value]) =>
      typeof value === "string" && !["host", "connection", "content-length"].includes(name) ? [[name, value]] : [],
    ),
  );
  return {
    operation: headers["x-amz-target"]?.split(".").at(-1) ?? "",
    attempt: Number(/attempt=(\d+)/.exec(headers["amz-sdk-request"] ?? "")?.[1] ?? 1),
    body: Buffer.concat(chunks).toString("utf8"),
    headers,
  };
}

/** The first half of a batch, and what is left of it in the words of UnprocessedItems; null when it cannot be halved. */
function halved(body: string): { first: string; left: Record<string, unknown[]> } | null {
  const batch: { RequestItems: Record<string, unknown[]> } = JSON.parse(body);
  const [table = "", requests = []] = Object.entries(batch.RequestItems)[0] ?? [];
  if (requests.length < 2) return null;
  const middle = requests.length >> 1;
  const first = JSON.stringify({ ...batch, RequestItems: { [table]: requests.slice(0, middle) } });
  return { first, left: { [table]: requests.slice(middle) } };
}

/** Opens the proxy before `target`. */
export async function openFaultyStore(target: string): Promise<FaultyStore> {
  let struck = 0;
  /** What an index answered last, by the question. */
  const answered = new Map<string, Answer>();

  async function pass(sent: Sent, body = sent.body): Promise<Answer> {
    const answer = await fetch(target, { method: "POST", headers: sent.headers, body });
    return { status: answer.status, body: await answer.text() };
  }

  /** Null: the connection ends without an answer. */
  async function answer(sent: Sent): Promise<Answer | null> {
    const isIndex = sent.operation === "Query" && sent.body.includes('"IndexName"');
    if (isIndex && store.staleIndexes) {
      struck += 1;
      return answered.get(sent.body) ?? { status: 200, body: '{"Count":0,"Items":[],"ScannedCount":0}' };
    }
    if (store.throttleNext > 0) {
      store.throttleNext -= 1;
      struck += 1;
      return refusal(400, "ProvisionedThroughputExceededException");
    }
    const strikes = sent.attempt === 1;
    if (strikes && store.plague === "throttle") {
      struck += 1;
      return refusal(400, "ThrottlingException");
    }
    if (strikes && store.plague === "refuse") {
      struck += 1;
      return refusal(500, "InternalServerError");
    }
    if (strikes && store.plague === "halve" && sent.operation === "BatchWriteItem") {
      const halves = halved(sent.body);
      if (halves !== null) {
        struck += 1;
        const { status, body } = await pass(sent, halves.first);
        return { status, body: JSON.stringify({ ...JSON.parse(body), UnprocessedItems: halves.left }) };
      }
    }
    const passed = await pass(sent);
    if (isIndex) answered.set(sent.body, passed);
    if (store.loseNext > 0 || (strikes && store.plague === "lose")) {
      store.loseNext = Math.max(0, store.loseNext - 1);
      struck += 1;
      return null;
    }
    return passed;
  }

  async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const given = await answer(await readWhole(request));
      if (given === null) request.socket.destroy();
      else response.writeHead(given.status, { "content-type": amzJson }).end(given.body);
    } catch {
      request.socket.destroy();
    }
  }

  const server: Server = createServer((request, response) => void serve(request, response));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const store: FaultyStore = {
    endpoint: endpointOf(server),
    plague: "none",
    throttleNext: 0,
    loseNext: 0,
    staleIndexes: false,
    struck: () => struck,
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  return store;
}
