/**
 * Stands before a DynamoDB and keeps account of what AWS would bill: every request asks for its consumed capacity, and the answers are added up.
 * dynalite and DynamoDB Local count as AWS documents it: a write unit for each KB begun, half a read unit for each 4 KB begun of an eventually
 * consistent read and a whole one of a consistent.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { buffer } from "node:stream/consumers";
import * as z from "zod/mini";

export interface DynamoCounts {
  requests: Record<string, number>;
  readUnits: number;
  writeUnits: number;
  sentBytes: number;
  receivedBytes: number;
}

const consumedSchema = z.object({ CapacityUnits: z.optional(z.number()) });
const answerSchema = z.object({
  ConsumedCapacity: z.optional(z.union([consumedSchema, z.array(consumedSchema)])),
});

const reads = new Set(["GetItem", "Query", "BatchGetItem", "Scan"]);

export class MeteredDynamo {
  readonly counts: DynamoCounts = { requests: {}, readUnits: 0, writeUnits: 0, sentBytes: 0, receivedBytes: 0 };
  readonly #server: Server;
  readonly #target: string;

  private constructor(server: Server, target: string) {
    this.#server = server;
    this.#target = target;
    server.on("request", (request, reply) => {
      this.#pass(request, reply).catch(() => request.socket.destroy());
    });
  }

  static async start(target: string): Promise<MeteredDynamo> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return new MeteredDynamo(server, target);
  }

  get endpoint(): string {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("the meter does not listen");
    return `http://127.0.0.1:${address.port}`;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #pass(request: IncomingMessage, reply: ServerResponse): Promise<void> {
    const body = await buffer(request);
    const operation = String(request.headers["x-amz-target"] ?? "").split(".")[1] ?? "Unknown";
    const asked: unknown = JSON.parse(body.toString());
    const metered = JSON.stringify({ ...(asked ?? {}), ReturnConsumedCapacity: "TOTAL" });
    const headers = Object.fromEntries(
      Object.entries(request.headers).flatMap(([name, value]) =>
        typeof value === "string" && !["host", "connection", "content-length"].includes(name) ? [[name, value]] : [],
      ),
    );
    const answer = await fetch(this.#target, { method: "POST", headers, body: metered });
    const text = await answer.text();
    this.counts.requests[operation] = (this.counts.requests[operation] ?? 0) + 1;
    this.counts.sentBytes += body.byteLength;
    this.counts.receivedBytes += Buffer.byteLength(text);
    this.#add(operation, text, answer.ok);
    reply.writeHead(answer.status, { "content-type": "application/x-amz-json-1.0" }).end(text);
  }

  #add(operation: string, text: string, ok: boolean): void {
    const units = ok ? unitsOf(text) : 1;
    if (reads.has(operation)) this.counts.readUnits += units;
    // A refused conditional write costs a unit as well.
    else this.counts.writeUnits += units;
  }
}

function unitsOf(text: string): number {
  const { ConsumedCapacity: consumed } = answerSchema.parse(JSON.parse(text));
  if (consumed === undefined) return 0;
  return (Array.isArray(consumed) ? consumed : [consumed]).reduce(
    (sum, { CapacityUnits = 0 }) => sum + CapacityUnits,
    0,
  );
}
