/**
 * A shim over the real websocket whose host is a line in a table: it enrols, says its facts and inventory, allows every preflight and reports success to
 * every command. Domains of such a fleet have no snapshots, so no bundle has to lie in a bucket.
 */
import { generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import WebSocket from "ws";
import * as z from "zod/mini";
import type { Command, ReportBody } from "#protocol/command";
import { enrolmentPath, helloSignedText, shimSocketPath } from "#protocol/identity";
import {
  downMessageSchema,
  type InventoryDomain,
  protocolFeatures,
  type Query,
  type UpMessage,
} from "#protocol/message";
import { factsOf, reportBody } from "#test/fake/memory-fleet";

const enrolledSchema = z.object({ hostId: z.string(), name: z.string() });
const heartbeatMs = 2_000;

/** Where every domain of the fleet is, by its UUID, and how often each was told to leave. */
export type Table = Map<string, { domain: InventoryDomain; hostId: string }>;

export class ScriptedShim {
  readonly hostId: string;
  readonly #url: string;
  readonly #index: number;
  readonly #privateKey: KeyObject;
  readonly #table: Table;
  /** Of its own shutdown, what the functions said that they heard: id and state. */
  readonly heard: string[] = [];
  #socket: WebSocket | undefined;
  #beat: NodeJS.Timeout | undefined;

  private constructor(url: string, index: number, hostId: string, privateKey: KeyObject, table: Table) {
    this.#url = url;
    this.#index = index;
    this.hostId = hostId;
    this.#privateKey = privateKey;
    this.#table = table;
  }

  /** Its name is "host" and the index. */
  static async enrol(url: string, joinToken: string, index: number, table: Table): Promise<ScriptedShim> {
    const { publicKey, privateKey } = generateKeyPairSync("ed25519");
    const response = await fetch(`${url}${enrolmentPath}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        token: joinToken,
        name: `host${index}`,
        publicKey: publicKey.export({ format: "jwk" }).x,
      }),
    });
    if (response.status !== 201) throw new Error(`enrolment answered ${response.status}: ${await response.text()}`);
    const { hostId } = enrolledSchema.parse(await response.json());
    return new ScriptedShim(url, index, hostId, privateKey, table);
  }

  /** Resolves once it is welcome and has said what it has. */
  async connect(): Promise<void> {
    const socket = new WebSocket(`${this.#url.replace(/^http/, "ws")}${shimSocketPath}?host=${this.hostId}`);
    this.#socket = socket;
    await new Promise<void>((resolve, reject) => {
      socket.once("error", reject);
      socket.once("close", (code) => reject(new Error(`closed with ${code} before it was welcome`)));
      socket.on("message", (data) => {
        const message = downMessageSchema.parse(JSON.parse(data.toString()));
        if (message.type === "challenge") this.#hello(message.nonce);
        else if (message.type === "query") this.#answer(message.queryId, message.query);
        else if (message.type === "command") this.#obey(message.command);
        else if (message.type === "shutdownHeard") this.heard.push(`${message.requestId} ${message.state}`);
        else if (message.type === "welcome") {
          const domains = [...this.#table.values()].filter(({ hostId }) => hostId === this.hostId);
          this.#inventory({ full: true, domains: domains.map(({ domain }) => domain), gone: [] });
          this.#beat = setInterval(() => this.#say({ type: "heartbeat" }), heartbeatMs);
          resolve();
        }
      });
    });
  }

  /** Says that this host is asked to shut down, or is not any more. */
  shutdown(requestId: string, state: "requested" | "withdrawn", budgetMs: number): void {
    this.#say({ type: "shutdown", requestId, state, kind: "reboot", at: new Date().toISOString(), budgetMs });
  }

  close(): void {
    clearInterval(this.#beat);
    this.#socket?.terminate();
    this.#socket = undefined;
  }

  #say(message: UpMessage): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #hello(nonce: string): void {
    const text = helloSignedText({ hostId: this.hostId, nonce });
    this.#say({
      type: "hello",
      protocols: { min: 1, max: 1 },
      features: [...protocolFeatures],
      hostId: this.hostId,
      signature: sign(null, Buffer.from(text), this.#privateKey).toString("base64url"),
      facts: { ...factsOf(this.#index), labels: { rack: this.#index === 1 ? "a" : "b" } },
    });
  }

  #inventory(change: { full: boolean; domains: InventoryDomain[]; gone: string[] }): void {
    this.#say({ type: "inventory", last: true, ...change });
  }

  #answer(queryId: string, { kind }: Query): void {
    if (kind !== "inspectSource" && kind !== "inspectDestination") return;
    this.#say({ type: "answered", queryId, answer: { ok: true, body: bodyOf(kind) } });
  }

  #obey(command: Command): void {
    const { id: commandId, migrationId, epoch, kind } = command;
    this.#say({
      type: "report",
      report: { commandId, migrationId, epoch, ms: 1, result: { ok: true, body: bodyOf(kind) } },
    });
    const row = this.#table.get(command.domain.uuid);
    if (row === undefined) return;
    if (kind === "perform") this.#inventory({ full: false, domains: [], gone: [row.domain.uuid] });
    if (kind !== "settle") return;
    row.hostId = this.hostId;
    this.#inventory({ full: false, domains: [row.domain], gone: [] });
  }
}

function bodyOf(kind: Command["kind"]): ReportBody {
  const body = reportBody(kind);
  if (body.kind === "inspectSource") return { ...body, findings: [], carries: { snapshots: 0, checkpoints: 0 } };
  return body.kind === "settle" ? { ...body, tree: { ...body.tree, snapshots: 0 } } : body;
}
