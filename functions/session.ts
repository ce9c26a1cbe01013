/**
 * A shim's session, the same over every kind of socket: challenge -> hello -> welcome, then reports, heartbeats, inventory
 * and grants. Pure of transport: an adapter keeps `Session` beside its socket (it is small and serialisable, so a hibernating
 * socket can carry it) and sends what comes back. A report is acknowledged only after it is stored.
 */

import { Fault, type FaultBody } from "#protocol/fault";
import { helloSignedText } from "#protocol/identity";
import {
  type DownMessage,
  offeredFeatures,
  protocolFeatures,
  protocolVersions,
  type UpMessage,
} from "#protocol/message";
import type { Ports } from "./ports.ts";
import type { Runner } from "./runner.ts";
import { keepShutdown } from "./shutdown-desk.ts";

export interface Session {
  hostId: string;
  nonce: string;
  /** Where the shim reached us; presigned URLs of local storage must lead through the same door. */
  publicUrl: string;
  /** Null until the shim has proved its key. */
  session: string | null;
}

/** What the carrier of a socket asks of the shim beyond the bare session; told in the welcome. */
export type Offers = Pick<Extract<DownMessage, { type: "welcome" }>, "renewAfterMs" | "progressMs">;

export interface Reaction {
  session: Session;
  /** Set by a hello: the session that this one takes over from, which the shim itself will close. */
  renews?: string | undefined;
  replies: DownMessage[];
  close: { code: number; reason: string } | null;
}

/** The next step of a host that is not, or not any more, who it says. A shim that has an identity takes no token, so that goes first; its key
 *  and its journals stay, for a journal may hold the only copy of a snapshot's record (I3). */
export const enrolAgain =
  "Enrol it again: move host.json out of the shim's state directory (/var/lib/vmferry-shim) and leave the rest there; vmferry join-token create; vmferry shim --join TOKEN.";

/** Application close codes of the socket. */
export const closeCodes = { refused: 4403, malformed: 4400, replaced: 4001 } as const;

export function challenge(
  ports: Pick<Ports, "ids">,
  from: { hostId: string; publicUrl: string },
): { session: Session; message: DownMessage } {
  const nonce = ports.ids.secret(32);
  return {
    session: { ...from, nonce, session: null },
    message: { type: "challenge", nonce, protocols: protocolVersions },
  };
}

const stay = (session: Session, ...replies: DownMessage[]): Reaction => ({ session, replies, close: null });

const refuse = (session: Session, fault: FaultBody): Reaction => ({
  session,
  replies: [{ type: "refused", fault }],
  close: { code: closeCodes.refused, reason: fault.code },
});

/** Reacts to one decoded message. `answered` and `progress` are the adapter's own business. */
export async function receive(
  ports: Ports,
  runner: Runner,
  session: Session,
  message: UpMessage,
  offers: Offers = {},
): Promise<Reaction> {
  if (message.type === "hello") return hello(ports, runner, session, message, offers);
  if (session.session === null)
    return refuse(session, {
      code: "shim.unauthorised",
      cause: `A ${message.type} message came before hello.`,
      action: "Update the shim.",
      retry: "never",
    });
  switch (message.type) {
    case "heartbeat":
      await ports.hosts.seen(session.hostId, {
        at: ports.clock.now(),
        ...(message.facts === undefined ? {} : { facts: message.facts }),
      });
      return stay(session, ...(await redelivery(runner, session.hostId)));
    case "inventory":
      await ports.hosts.putInventory(session.hostId, message);
      return stay(session);
    case "journals":
      await ports.hosts.seen(session.hostId, { at: ports.clock.now(), openJournals: message.migrations });
      return stay(session);
    case "report":
      return report(ports, runner, session, message);
    case "lost":
      await runner.connectionLost(session.hostId, message);
      return stay(session);
    case "shutdown": {
      const { requestId, state } = message;
      // Unheard, the shim says it again.
      const isKept = await keepShutdown(ports, session.hostId, message);
      return isKept ? stay(session, { type: "shutdownHeard", requestId, state }) : stay(session);
    }
    case "grant":
      return stay(session, await grant(ports, runner, session, message));
    case "progress":
    case "answered":
      return stay(session);
  }
}

const redelivery = async (runner: Runner, hostId: string): Promise<DownMessage[]> =>
  (await runner.pendingOf(hostId)).map((command) => ({ type: "command", command }));

async function hello(
  ports: Ports,
  runner: Runner,
  session: Session,
  message: Extract<UpMessage, { type: "hello" }>,
  offers: Offers,
): Promise<Reaction> {
  const protocol = Math.min(message.protocols.max, protocolVersions.max);
  if (protocol < message.protocols.min || protocol < protocolVersions.min)
    return refuse(session, {
      code: "shim.incompatible",
      cause: `The shim speaks protocol ${message.protocols.min} to ${message.protocols.max}, this control plane ${protocolVersions.min} to ${protocolVersions.max}.`,
      action: message.protocols.max < protocolVersions.min ? "Update the shim." : "Update the control plane.",
      retry: "person",
    });
  const host = message.hostId === session.hostId ? await ports.hosts.byId(session.hostId) : null;
  const proved = host !== null && (await proves(host.publicKey, helloSignedText(session), message.signature));
  if (!proved)
    return refuse(session, {
      code: "shim.unauthorised",
      cause:
        host === null
          ? "This host is not enrolled here, or was removed."
          : "The signature is not of the key that this host enrolled with.",
      action: enrolAgain,
      retry: "person",
    });
  // A shim that begins anew says at once what still stands: nothing, where the host has been down meanwhile.
  const isAnew = message.renews === undefined && host.shuttingUntil !== undefined;
  if (isAnew) await ports.shutdowns.doubt(host.id, ports.clock.now());
  await ports.hosts.seen(host.id, {
    at: ports.clock.now(),
    protocol,
    features: message.features,
    facts: message.facts,
    ...(isAnew ? { shuttingUntil: null } : {}),
  });
  const opened: Session = { ...session, session: ports.ids.ulid() };
  const welcome: DownMessage = {
    type: "welcome",
    session: opened.session ?? "",
    protocol,
    features: [...protocolFeatures, ...offeredFeatures],
    name: host.name,
    heartbeatMs: ports.pace.heartbeatMs,
    controlKey: await ports.tickets.publicKey(),
    ...offers,
  };
  return { ...stay(opened, welcome, ...(await redelivery(runner, host.id))), renews: message.renews };
}

/** Whether an Ed25519 signature (base64url) over the UTF-8 bytes of a text is of that key (raw 32 bytes, base64url). */
export async function proves(publicKey: string, text: string, signature: string): Promise<boolean> {
  try {
    const raw = Buffer.from(publicKey, "base64url");
    const key = await crypto.subtle.importKey("raw", raw, { name: "Ed25519" }, false, ["verify"]);
    return await crypto.subtle.verify(
      "Ed25519",
      key,
      Buffer.from(signature, "base64url"),
      new TextEncoder().encode(text),
    );
  } catch {
    // A key or signature of the wrong form proves nothing, which is all the caller asks.
    return false;
  }
}

async function report(
  ports: Ports,
  runner: Runner,
  session: Session,
  message: Extract<UpMessage, { type: "report" }>,
): Promise<Reaction> {
  try {
    await runner.reported(session.hostId, message.report);
    return stay(session, { type: "acknowledged", commandId: message.report.commandId });
  } catch (error) {
    // Unacknowledged, so the shim keeps it and repeats it: nothing is lost by failing here.
    ports.log.write("warn", "a report could not be stored and will be repeated", {
      migration: message.report.migrationId,
      command: message.report.commandId,
      error: error instanceof Fault ? error.code : String(error),
    });
    return stay(session);
  }
}

async function grant(
  ports: Ports,
  runner: Runner,
  session: Session,
  message: Extract<UpMessage, { type: "grant" }>,
): Promise<DownMessage> {
  const { request, migrationId, commandId, want } = message;
  try {
    await runner.authorise(session.hostId, { migrationId, commandId, key: want.op === "get" ? want.key : null });
    const granted =
      want.op === "get"
        ? await ports.bundles.grantGet({ key: want.key, publicUrl: session.publicUrl })
        : await ports.bundles.grantPut({ ...want, publicUrl: session.publicUrl });
    return { type: "granted", request, ...granted };
  } catch (error) {
    if (error instanceof Fault) return { type: "grantRefused", request, fault: error.toBody() };
    ports.log.write("error", "a grant failed", { migration: migrationId, error: String(error) });
    return {
      type: "grantRefused",
      request,
      fault: {
        code: "bundle.unreachable",
        cause: "The control plane could not reach its bucket.",
        action: "It is asked again by itself; look at the control plane's log if this stays.",
        retry: "safe",
      },
    };
  }
}
