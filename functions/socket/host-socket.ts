/**
 * The Durable Object that holds a host's websocket, one object per host. It hibernates: the runtime keeps the socket and
 * answers pings while this object is evicted, and the session comes back from the socket's attachment. It holds sockets,
 * waiting queries and the newest progress, never truth: that is in the store, the shim's journal and libvirt.
 */
import { DurableObject } from "cloudflare:workers";
import type { DurableObjectState, WebSocket as HostWebSocket, WebSocketPair as Pair } from "@cloudflare/workers-types";
import * as z from "zod/mini";
import { decodeUp, encode, ForeignMessage } from "#protocol/codec";
import { Fault } from "#protocol/fault";
import { hostIdSchema } from "#protocol/identity";
import { messageBytesMax } from "#protocol/limits";
import type { Answer, DownMessage, Progress, Query, UpMessage } from "#protocol/message";
import type { Ports } from "../ports.ts";
import type { RuleRunner } from "../rule-runner.ts";
import type { Runner } from "../runner.ts";
import { challenge, closeCodes, receive, type Session } from "../session.ts";
import { Crowd } from "./crowd.ts";
import { InventoryParts } from "./inventory-parts.ts";

declare const WebSocketPair: typeof Pair;
declare const WebSocketRequestResponsePair: new (request: string, response: string) => never;

/** Sockets that have not proved a key yet: one host has one shim, some retries may overlap. */
const unprovedMax = 4;
/** Time to answer the challenge: one signature and one round trip over a bad line. */
const proveMsMax = 10_000;
/** Messages of one host in work or waiting; a shim that sends faster than the store takes is cut off and reconnects. */
const waitingMax = 256;
/** Migrations whose progress is remembered; a host moves a handful at once. */
const progressesMax = 64;

/** 1013, "try again later" (IANA's registry of close codes): the shim reconnects with its usual pause. */
const tryAgainLater = 1013;
/** Application codes beside `closeCodes` of the session. */
const socketCodes = { late: 4408, flooded: 4429, dropped: 4003 } as const;

const attachmentSchema = z.object({
  acceptedMs: z.number(),
  session: z.object({
    hostId: hostIdSchema,
    nonce: z.string(),
    publicUrl: z.string(),
    session: z.nullable(z.string()),
  }),
});
type Attachment = z.infer<typeof attachmentSchema>;

/** Of this isolate: the objects and the entry count together. */
export const crowd = new Crowd({
  nowMs: () => Date.now(),
  random: Math.random,
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
});

export interface SocketWiring {
  ports: Ports;
  runner: Runner;
  /** Where rules are at hand, what a host says of its shutdown need not wait for the timer. */
  ruleRunner?: Pick<RuleRunner, "lookAtShutdowns"> | undefined;
}

/** What the functions call on the object. */
export interface HostSocketStub {
  fetch(request: Request): Promise<Response>;
  push(message: DownMessage): Promise<boolean>;
  query(query: Query, waitMs: number): Promise<Answer | null>;
  progress(migrationId: string): Promise<Progress | null>;
  drop(cause: string): Promise<void>;
}

export abstract class HostSocketObject<Env> extends DurableObject<Env> {
  readonly #answers = new Map<string, (answer: Answer | null) => void>();
  readonly #progress = new Map<string, Progress>();
  readonly #inventory = new InventoryParts();
  #tail: Promise<void> = Promise.resolve();
  #waiting = 0;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    // Answered by the runtime without waking the object.
    ctx.setWebSocketAutoResponse(new WebSocketRequestResponsePair("ping", "pong"));
  }

  /** The ports and the runner of this environment. */
  protected abstract wire(): SocketWiring;

  /** Accepts a shim's socket (`?host=`, checked by the entry) and challenges it. `x-vmferry-url` says how the shim reached us. */
  async fetch(request: Request): Promise<Response> {
    const url = new URL(request.url);
    const hostId = hostIdSchema.parse(url.searchParams.get("host"));
    const nowMs = Date.now();
    this.#closeLate(nowMs);
    if (this.#sockets().filter(({ link }) => link.session.session === null).length >= unprovedMax)
      return new Response("too many connections of this host are waiting to prove themselves", { status: 429 });
    const { ports } = this.wire();
    const [client, server] = Object.values(new WebSocketPair());
    if (client === undefined || server === undefined) throw new Error("the runtime made no pair of sockets");
    const { session, message } = challenge(ports, {
      hostId,
      publicUrl: request.headers.get("x-vmferry-url") ?? url.origin,
    });
    this.ctx.acceptWebSocket(server);
    attach(server, { acceptedMs: nowMs, session });
    server.send(encode(message));
    // An alarm and not a timer: it lets the object hibernate, and wakes it also if it was evicted.
    await this.ctx.storage.setAlarm(nowMs + proveMsMax);
    const upgrade = { status: 101, webSocket: client };
    return new Response(null, upgrade);
  }

  /** Looks after those who have not proved themselves; a later connection has moved the alarm to its own end. */
  async alarm(): Promise<void> {
    const nowMs = Date.now();
    this.#closeLate(nowMs);
    const waiting = this.#sockets().filter(({ link }) => link.session.session === null);
    const soonestMs = Math.min(...waiting.map(({ link }) => link.acceptedMs)) + proveMsMax;
    if (waiting.length > 0) await this.ctx.storage.setAlarm(Math.max(soonestMs, nowMs + 1));
  }

  async webSocketMessage(socket: HostWebSocket, data: string | ArrayBuffer): Promise<void> {
    const link = linkOf(socket);
    if (link === null) return socket.close(closeCodes.malformed, "session lost");
    let message: UpMessage;
    try {
      message = decoded(data);
    } catch (error) {
      if (link.session.session === null || !(error instanceof ForeignMessage)) return this.#refuse(socket, error);
      const { type, cause_: cause } = error;
      const { hostId: host } = link.session;
      return this.wire().ports.log.write("error", "a message of a shim was not understood and passed over", {
        host,
        type,
        cause,
      });
    }
    if (link.session.session !== null && message.type === "answered") return this.#answered(message);
    if (link.session.session !== null && message.type === "progress") return this.#progressed(message);
    if (this.#waiting >= waitingMax) return socket.close(socketCodes.flooded, "too many messages at once");
    // In order, one by one: an inventory's parts and a report after its grant must not overtake each other.
    this.#waiting += 1;
    const turn = this.#tail
      .then(() => this.#received(socket, message))
      .finally(() => {
        this.#waiting -= 1;
      });
    this.#tail = turn.catch(() => {});
    return turn;
  }

  async webSocketClose(socket: HostWebSocket, code: number): Promise<void> {
    // The runtime's own codes (1005, 1006) may not be sent.
    socket.close(code >= 3000 ? code : 1000, "closed");
    this.#forgetIfGone(socket);
  }

  async webSocketError(socket: HostWebSocket): Promise<void> {
    this.#forgetIfGone(socket);
  }

  async push(message: DownMessage): Promise<boolean> {
    const socket = this.#proved();
    return socket !== null && this.#send(socket, message);
  }

  async query(query: Query, waitMs: number): Promise<Answer | null> {
    const { ports } = this.wire();
    const queryId = ports.ids.ulid();
    const answer = new Promise<Answer | null>((resolve) => this.#answers.set(queryId, resolve));
    const timer = setTimeout(() => this.#answers.get(queryId)?.(null), waitMs);
    try {
      // No socket is no answer, which says nothing about the host's domains (I2).
      return (await this.push({ type: "query", queryId, query })) ? await answer : null;
    } finally {
      clearTimeout(timer);
      this.#answers.delete(queryId);
    }
  }

  async progress(migrationId: string): Promise<Progress | null> {
    return this.#progress.get(migrationId) ?? null;
  }

  async drop(cause: string): Promise<void> {
    for (const { socket } of this.#sockets()) socket.close(socketCodes.dropped, cause.slice(0, 100));
  }

  async #received(socket: HostWebSocket, message: UpMessage): Promise<void> {
    const link = linkOf(socket);
    // 1: open. A message that waited while its socket was closed is not acted upon; what matters is sent again.
    if (link === null || socket.readyState !== 1) return;
    const { ports, runner } = this.wire();
    const whole =
      message.type === "inventory" && link.session.session !== null ? this.#inventory.take(message) : message;
    if (whole === null) return;
    try {
      const reaction = await receive(ports, runner, link.session, whole);
      if (reaction.session.session !== link.session.session) {
        this.#inventory.clear();
        attach(socket, { ...link, session: reaction.session });
        this.#replaceOthers(socket);
        // Nobody is waited for any more: the object may sleep.
        if (this.#sockets().every(({ link: { session } }) => session.session !== null))
          await this.ctx.storage.deleteAlarm();
      }
      if (whole.type === "inventory" || whole.type === "heartbeat") crowd.left(link.session.hostId);
      for (const reply of reaction.replies) this.#send(socket, reply);
      if (reaction.close !== null) socket.close(reaction.close.code, reaction.close.reason);
      if (reaction.replies.some(({ type }) => type === "shutdownHeard")) this.#lookAtShutdowns();
    } catch (error) {
      ports.log.write("warn", "a message of a shim could not be handled", {
        host: link.session.hostId,
        type: message.type,
        error: error instanceof Fault ? error.code : String(error),
      });
      // Unheard, these two leave the shim in a wrong belief; it starts anew and says them again.
      if (message.type === "hello" || message.type === "inventory")
        socket.close(tryAgainLater, error instanceof Fault ? error.code : "internal");
    }
  }

  /** Beside the socket's own messages: an evacuation's plan asks this very host. What fails here, the timer does. */
  #lookAtShutdowns(): void {
    const { ports, ruleRunner } = this.wire();
    const looked = ruleRunner
      ?.lookAtShutdowns()
      .catch((error: unknown) =>
        ports.log.write("warn", "a host's shutdown waits for the timer", { error: String(error).slice(0, 300) }),
      );
    if (looked !== undefined) this.ctx.waitUntil(looked);
  }

  #answered(message: Extract<UpMessage, { type: "answered" }>): void {
    this.#answers.get(message.queryId)?.(message.answer);
  }

  #progressed(message: Extract<UpMessage, { type: "progress" }>): void {
    const { migrationId, progress } = message;
    this.#progress.delete(migrationId);
    this.#progress.set(migrationId, progress);
    const oldest = this.#progress.keys().next().value;
    if (this.#progress.size > progressesMax && oldest !== undefined) this.#progress.delete(oldest);
    const { feed } = this.wire().ports;
    this.ctx.waitUntil(feed.publish(migrationId, { type: "progress", progress }).catch(() => {}));
  }

  #refuse(socket: HostWebSocket, error: unknown): void {
    const fault =
      error instanceof Fault
        ? error
        : new Fault({ code: "internal", cause: "A message could not be read.", action: "Report it.", retry: "never" });
    this.#send(socket, { type: "refused", fault: fault.toBody() });
    socket.close(closeCodes.malformed, fault.code);
  }

  #send(socket: HostWebSocket, message: DownMessage): boolean {
    try {
      socket.send(encode(message));
      return true;
    } catch (error) {
      // Closing, or too large: a push is best effort, redelivery repairs the first and the log tells of the second.
      if (error instanceof Fault)
        this.wire().ports.log.write("error", "a message to a shim was not sent", {
          type: message.type,
          code: error.code,
        });
      return false;
    }
  }

  /** One proved socket per host: the newest, since only the shim knows which of two it still reads. */
  #replaceOthers(newest: HostWebSocket): void {
    for (const { socket, link } of this.#sockets())
      if (socket !== newest && link.session.session !== null)
        socket.close(closeCodes.replaced, "replaced by a newer session");
  }

  #closeLate(nowMs: number): void {
    for (const { socket, link } of this.#sockets())
      if (link.session.session === null && nowMs - link.acceptedMs >= proveMsMax)
        socket.close(socketCodes.late, "no hello in time");
  }

  #sockets(): { socket: HostWebSocket; link: Attachment }[] {
    return this.ctx.getWebSockets().flatMap((socket) => {
      const link = socket.readyState === 1 ? linkOf(socket) : null;
      return link === null ? [] : [{ socket, link }];
    });
  }

  #proved(): HostWebSocket | null {
    return this.#sockets().find(({ link }) => link.session.session !== null)?.socket ?? null;
  }

  #forgetIfGone(closed: HostWebSocket): void {
    const proved = this.#proved();
    if (proved !== null && proved !== closed) return;
    const gone = linkOf(closed)?.session.hostId;
    if (gone !== undefined) crowd.left(gone);
    // Nobody is left who could answer.
    for (const resolve of this.#answers.values()) resolve(null);
  }
}

const attach = (socket: HostWebSocket, link: { acceptedMs: number; session: Session }): void =>
  socket.serializeAttachment(link);

function linkOf(socket: HostWebSocket): Attachment | null {
  const link = attachmentSchema.safeParse(socket.deserializeAttachment());
  return link.success ? link.data : null;
}

function decoded(data: string | ArrayBuffer): UpMessage {
  if (typeof data !== "string")
    throw new Fault({
      code: "message.malformed",
      cause: "A binary message came; the treaty's messages are text.",
      action: "Update the shim.",
      retry: "never",
    });
  if (data.length > messageBytesMax)
    throw new Fault({
      code: "message.tooLarge",
      cause: `A message of ${data.length} characters is over the limit of ${messageBytesMax} bytes.`,
      action: "Payloads above 24 KiB go to the bucket; this is a defect of the sender.",
      retry: "never",
    });
  return decodeUp(data);
}
