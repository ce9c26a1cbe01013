/**
 * What API Gateway tells of a shim's socket -> the session (session.ts). Every call is on its own: several run at once for one connection, in any
 * order, in processes that know nothing of each other.
 *
 * - A connection is opened by a proof in its request (connect-proof.ts), good once; a refusal has no words, so the shim asks the door why.
 * - Nothing is sent before the connection stands, so the welcome answers the hello and not the connect.
 * - Order of a hello: the connection may speak; the welcome; the host is reached by it; older connections go; what is pending. A command
 *   that is pushed meanwhile goes the old way or is found among what is pending, and none comes before the welcome.
 * - The host is read again before a message counts: who was removed, or enrolled with another key, has no power by a socket that is left.
 */
import { decodeUp, encode, ForeignMessage } from "#protocol/codec";
import { Fault, type FaultBody } from "#protocol/fault";
import { connectMsMax, hostIdSchema } from "#protocol/identity";
import type { DownMessage, UpMessage } from "#protocol/message";
import { checkConnectProof } from "../connect-proof.ts";
import type { Inventory, Link, LinkStore, Ports } from "../ports.ts";
import type { Runner } from "../runner.ts";
import { enrolAgain, type Reaction, receive, type Session } from "../session.ts";
import type { ApiGatewayCallbacks } from "./api-gateway-callbacks.ts";

/** A connection's record outlives the connection by this: the carrier's clock and the cut itself are not to the millisecond. */
const lifeSlackMs = 5 * 60_000;
/** A socket is renewed at a random time between these shares of its life: a fleet that connected at once does not renew at once, and the old
 *  one lives for the overlap in any case. */
const renewShareMin = 0.8;
const renewShareMax = 0.92;
/** Parts of one list: 20,000 domains at 200 each, far above what a host runs. */
const partsMax = 100;

/** What the carrier tells, decoded by the entry. */
export type SocketEvent =
  | {
      type: "connect";
      connectionId: string;
      connectedAtMs: number;
      /** The header of the proof. */
      proof: string | null;
      /** The host that the address names. */
      hostId: string | null;
    }
  | { type: "disconnect"; connectionId: string }
  /** `text` null: it was binary. `atMs`: when the carrier had it. */
  | { type: "message"; connectionId: string; atMs: number; text: string | null };

export interface SocketReply {
  statusCode: number;
}

export interface SocketHandlerParts {
  ports: Ports;
  runner: Runner;
  links: LinkStore;
  callbacks: ApiGatewayCallbacks;
  /** Where shims connect, as the door tells it: their proofs are made for it. */
  socketUrl: string;
  /** How long the carrier lets a connection live (API Gateway: 2 h). */
  lifeMs: number;
  /** Progress is worth a message no more often than this. */
  progressMs: number;
  /** Where shims reach local storage; unused with a bucket of its own address. */
  publicUrl?: string | undefined;
  random?: (() => number) | undefined;
}

/** Never rejects but for `connect`, where a failure must refuse the connection. */
export function createSocketHandler(parts: SocketHandlerParts): (event: SocketEvent) => Promise<SocketReply> {
  return (event) => {
    switch (event.type) {
      case "connect":
        return connected(parts, event);
      case "disconnect":
        return disconnected(parts, event.connectionId);
      case "message":
        return said(parts, event);
    }
  };
}

const ok: SocketReply = { statusCode: 200 };

async function connected(
  { ports, links, lifeMs, socketUrl }: SocketHandlerParts,
  event: Extract<SocketEvent, { type: "connect" }>,
): Promise<SocketReply> {
  const { connectionId, connectedAtMs } = event;
  const checked = await checkConnectProof({ ...ports, socket: socketUrl }, event.proof, event.hostId);
  if (!checked.ok) {
    // Anybody can knock: only what has the form of an id is written down, at its length.
    const named = hostIdSchema.safeParse(event.hostId);
    ports.log.write("info", "a connect was refused", {
      host: named.success ? named.data : null,
      cause: checked.fault.cause,
    });
    return { statusCode: 401 };
  }
  const { host, proof } = checked;
  const hostId = host.id;
  // Remembered for as long as the proof could hold by any clock here.
  const untilMs = proof.atMs + 2 * connectMsMax;
  if (!(await links.useNonce({ hostId, nonce: proof.nonce, connectionId, untilMs }))) {
    ports.log.write("warn", "a connect proof came twice", { host: host.name });
    return { statusCode: 401 };
  }
  await links.open({
    connectionId,
    hostId,
    publicKey: host.publicKey,
    nonce: proof.nonce,
    session: null,
    openedAtMs: connectedAtMs,
    expiresAtMs: connectedAtMs + lifeMs + lifeSlackMs,
  });
  return ok;
}

/** A hint: it may come late, twice or never, and says nothing of any other connection of that host. */
async function disconnected({ ports, links }: SocketHandlerParts, connectionId: string): Promise<SocketReply> {
  try {
    const link = await links.byConnection(connectionId);
    if (link !== null) await links.close(link);
  } catch (error) {
    // The next push finds nobody there, or its time runs out.
    ports.log.write("warn", "a closed socket was not forgotten", { error: causeOf(error) });
  }
  return ok;
}

async function said(parts: SocketHandlerParts, event: Extract<SocketEvent, { type: "message" }>): Promise<SocketReply> {
  const { ports, callbacks } = parts;
  const { connectionId } = event;
  if (event.text === "ping") {
    await callbacks.post(connectionId, "pong");
    return ok;
  }
  const message = decoded(event.text);
  try {
    const link = await parts.links.byConnection(connectionId);
    // Its record is gone or its time is up: whoever is there begins anew.
    if (link === null) await callbacks.close(connectionId);
    else if (message instanceof ForeignMessage && link.session !== null) {
      const { type, cause_: cause } = message;
      ports.log.write("error", "a message of a shim was not understood and passed over", {
        host: link.hostId,
        type,
        cause,
      });
    } else if (message instanceof Fault) await refuse(parts, link, message.toBody());
    else await heard(parts, link, message, event.atMs);
  } catch (error) {
    const type = message instanceof Fault ? message.code : message.type;
    ports.log.write("warn", "a message of a shim could not be handled", { connectionId, type, error: causeOf(error) });
    // Unheard, these two leave the shim in a wrong belief; it starts anew and says them again. Its record waits for the disconnect: the
    // store may be what failed.
    if (type === "hello" || type === "inventory") await callbacks.close(connectionId);
  }
  return ok;
}

async function heard(parts: SocketHandlerParts, link: Link, message: UpMessage, atMs: number): Promise<void> {
  const { ports, runner, links } = parts;
  const { hostId } = link;
  if (link.session !== null && message.type === "answered") {
    await links.answer(hostId, message.queryId, message.answer);
    return;
  }
  if (link.session !== null && message.type === "progress") {
    await links.putProgress(hostId, message.migrationId, message.progress, atMs);
    return;
  }
  const host = await ports.hosts.byId(hostId);
  if (host === null || host.publicKey !== link.publicKey) {
    await refuse(parts, link, {
      code: "shim.unauthorised",
      cause:
        host === null
          ? "This host is not enrolled here, or was removed."
          : "This host was enrolled anew with another key since this socket was opened.",
      action: enrolAgain,
      retry: "person",
    });
    return;
  }
  if (message.type === "heartbeat" && link.session !== null) await reached(links, link);
  const leave =
    message.type === "inventory" && link.session !== null ? await ordered(links, hostId, message, atMs) : null;
  if (leave === null && message.type === "inventory" && link.session !== null) return;
  const session: Session = {
    hostId,
    nonce: link.nonce,
    publicUrl: parts.publicUrl ?? "",
    session: link.session,
  };
  const share = renewShareMin + (renewShareMax - renewShareMin) * (parts.random ?? Math.random)();
  const reaction = await receive(ports, runner, session, leave?.list ?? message, {
    renewAfterMs: Math.round(parts.lifeMs * share),
    progressMs: parts.progressMs,
  });
  // What a complete list does not name is taken away, item by item: a change that got leave meanwhile may have gone with it.
  if (leave?.list.full === true && (await links.changedSince(hostId, leave.atMs))) throw disordered();
  if (reaction.close !== null) {
    await postAll(parts, link, reaction.replies);
    await end(parts, link);
  } else if (reaction.session.session !== null && reaction.session.session !== link.session)
    await opened(parts, link, reaction, reaction.session.session);
  else await postAll(parts, link, reaction.replies);
}

/** The hello holds: see the order at the top. */
async function opened(
  parts: SocketHandlerParts,
  link: Link,
  { replies, renews }: Reaction,
  session: string,
): Promise<void> {
  const { links, runner } = parts;
  if (!(await links.prove(link.connectionId, session))) return;
  if (!(await postAll(parts, link, replies.slice(0, 1)))) return end(parts, link);
  // Newer by the carrier's clock: a hello that was overtaken must not take the host back to a socket that its shim has left.
  if (!(await links.bind(link))) return end(parts, link);
  for (const other of await links.of(link.hostId)) {
    const isOlder = other.connectionId !== link.connectionId && other.openedAtMs <= link.openedAtMs;
    // The shim itself closes the one it renews, after both have overlapped.
    if (isOlder && (renews === undefined || other.session !== renews)) await end(parts, other);
  }
  // Asked for once more: what was committed between the first asking and the binding was pushed to nobody.
  const pending = await runner.pendingOf(link.hostId);
  await postAll(
    parts,
    link,
    pending.map((command) => ({ type: "command", command })),
  );
}

/**
 * A host that speaks is reached by somebody. Its hello may have been cut off between the welcome and the binding, or the successor that took the
 * binding was given up by the shim while this connection serves on: nothing else would repair that before the next renewal.
 */
async function reached(links: LinkStore, link: Link): Promise<void> {
  if ((await links.current(link.hostId)) === null) await links.bind(link);
}

/** The list or the change that may be stored now; null: nothing yet, or nothing any more. */
async function ordered(
  links: LinkStore,
  hostId: string,
  part: Inventory,
  partAtMs: number,
): Promise<{ list: Inventory; atMs: number } | null> {
  const isWhole = part.full && part.last;
  const { series } = part;
  const inParts =
    !isWhole && series !== undefined && series.parts > 1 && series.parts <= partsMax && series.part < series.parts;
  const collected = inParts ? await links.collect(hostId, part, partAtMs) : { list: part, atMs: partAtMs };
  if (collected === null) return null;
  const { atMs } = collected;
  // A part whose others cannot be told apart is taken as the change it looks like; what is gone since, the next whole list tells.
  const list: Inventory = inParts || isWhole ? collected.list : { ...collected.list, full: false };
  const uuids = [...list.domains.map((domain) => domain.uuid), ...list.gone];
  const order = await links.orderInventory(hostId, { atMs, full: list.full, uuids });
  if (order === "disordered") throw disordered();
  if (order.except === "all") return null;
  const except = new Set(order.except);
  const domains = list.domains.filter((domain) => !except.has(domain.uuid));
  return { list: { ...list, domains, gone: list.gone.filter((uuid) => !except.has(uuid)) }, atMs };
}

const disordered = () =>
  new Fault({
    code: "request.conflict",
    cause: "A complete list of domains came after changes that were made since.",
    action: "The socket is closed; the shim says everything anew.",
    retry: "safe",
  });

/** In order; false when one did not leave. Those after it are left out: every one of them is said again. */
async function postAll(
  { ports, links, callbacks }: SocketHandlerParts,
  link: Link,
  messages: readonly DownMessage[],
): Promise<boolean> {
  for (const message of messages) {
    let text: string;
    try {
      text = encode(message);
    } catch (error) {
      // Too large for any carrier: the others still go.
      ports.log.write("error", "a message to a shim was not sent", { type: message.type, code: causeOf(error) });
      continue;
    }
    const posted = await callbacks.post(link.connectionId, text);
    if (posted === "gone") await links.close(link);
    if (posted !== "sent") return false;
  }
  return true;
}

async function refuse(parts: SocketHandlerParts, link: Link, fault: FaultBody): Promise<void> {
  await postAll(parts, link, [{ type: "refused", fault }]);
  await end(parts, link);
}

async function end({ links, callbacks }: SocketHandlerParts, link: Link): Promise<void> {
  await links.close(link);
  await callbacks.close(link.connectionId);
}

const causeOf = (error: unknown): string => (error instanceof Fault ? error.code : String(error));

function decoded(text: string | null): UpMessage | Fault {
  if (text === null)
    return new Fault({
      code: "message.malformed",
      cause: "A binary message came; the treaty's messages are text.",
      action: "Update the shim.",
      retry: "never",
    });
  try {
    return decodeUp(text);
  } catch (error) {
    return error instanceof Fault
      ? error
      : new Fault({
          code: "internal",
          cause: "A message could not be read.",
          action: "Report it.",
          retry: "never",
        });
  }
}
